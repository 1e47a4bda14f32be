"Plumbing of `enas_nb.text`: what its notebook does not show"
import ast,codecs,hashlib,json,math,random,re,string,subprocess,sys,tarfile,time,unicodedata
from copy import copy,deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
import pandas as pd, pytest, torch
import fastai.callback.schedule
from fastai.losses import CrossEntropyLossFlat
from fastai.data.core import Datasets
from fastai.data.external import untar_data
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import Perplexity
from fastai.text.core import BaseTokenizer
from fastai.text.data import LMDataLoader,LMTensorText,TensorText,TextDataLoaders
from fastai.text.learner import language_model_learner
from fastai.text.models.core import get_language_model
from fastai.text.models.awdlstm import AWD_LSTM,awd_lstm_lm_config
from fastai.learner import load_learner
from fastai.tabular.data import TabularDataLoaders
from hypothesis import given,settings,strategies as st
from enas_nb import text
from torch import nn
from torch.nn import functional as F
from enas_nb.data import digits_dls,open_test,split_valid
from enas_nb.memory import MemoryDL,cache_valid,random_batch,with_valid
from enas_nb.own_data import *
from enas_nb.randomness import rng
from enas_nb.presets import released
from enas_nb.reinforce import ppl_reward
from enas_nb.task import *
from enas_nb.text import *

try: text._ptb_path(); ptb_there = True
except FileNotFoundError: ptb_there = False
needs_ptb = pytest.mark.skipif(not ptb_there, reason='no Penn Treebank in the data folder of fastai')

VOCAB = ['<eos>','<unk>',*'abcdefgh']
def draw(n, seed=0): return [VOCAB[i] for i in torch.randint(len(VOCAB), (n,), generator=rng(seed, 'words'))]
def toy(n=200, m=90, k=70, bs=4, seq_len=5, **kw):
    return lm_dls(draw(n), draw(m, 1), draw(k, 2), vocab=VOCAB, bs=bs, seq_len=seq_len, device='cpu', **kw)
def same(a, b):
    for p,q in zip(a, b, strict=True):
        for o in (0,1): assert torch.equal(p[o], q[o]) and type(p[o]) is type(q[o])

# ---- words
@settings(deadline=None)
@given(st.text(alphabet="aB.!? \n'’1,-é\t", max_size=40), st.text(alphabet="aB.!? \n'’1,-é\t", max_size=40))
def test_paragraphs_are_tokenised_apart(a, b): assert tokenize(f'{a}\n\n{b}')==tokenize(a)+tokenize(b)

@settings(deadline=None)
@given(st.text(max_size=80))
def test_sentences_end_and_are_not_empty(s):
    words = tokenize(s)
    assert all(isinstance(o, str) and o and not any(c.isspace() for c in o) for o in words)
    assert not words or words[-1]=='<eos>'!=words[0]
    assert ('<eos>','<eos>') not in set(zip(words, words[1:]))

@pytest.mark.parametrize('prose,words', [
    ('A be. See de!', 'a be <eos> see de <eos>'), ('Is it? "Yes." No', 'is it <eos> yes <eos> no <eos>'),
    ("We can't, they'll", "we ca n't they 'll <eos>"), ('It’s 3.5% of 1,000.', "it 's N of N <eos>"),
    ('the U.S. economy', 'the u.s. economy <eos>'), ('see e.g. Dr. Dean etc. here', 'see e.g. dr. dean etc here <eos>'),
    ('state-of-the-art x2', 'state-of-the-art x2 <eos>'), ('...', ''), ('', ''), ('one\ntwo\n \nthree', 'one two <eos> three <eos>')])
def test_tokenize(prose, words): assert tokenize(prose)==words.split()

@pytest.mark.parametrize('prose,words', [
    ('हिन्दी में लिखा है।यह दूसरा है॥ हाँ', 'हिन्दी में लिखा है <eos> यह दूसरा है <eos> हाँ <eos>'),   # vowel signs are marks
    ('वह किन. और', 'वह किन <eos> और <eos>'),               # a letter after a mark is no abbreviation of one letter
    ('cafe\u0301 A\u030a', 'caf\u00e9 \u00e5 <eos>'), ('x\u0302y q\u0323\u0307', 'x\u0302y q\u0323\u0307 <eos>'),   # NFC, or no such letter
    ("x\u0302's", "x\u0302 's <eos>"), ('e\u0323\u0302.g. so', '\u1ec7.g. so <eos>'),
    ('كَتَبَ الوَلَدُ؟ نَعَم۔ لا', 'كَتَبَ الوَلَدُ <eos> نَعَم <eos> لا <eos>'), ('می\u200cخواهم', 'می\u200cخواهم <eos>'),
    ('क्\u200dष', 'क्\u200dष <eos>'), ('他说好。真的？对！', '他说好 <eos> 真的 <eos> 对 <eos>'), ('こう「そう。」だ', 'こう そう <eos> だ <eos>'),
    ('Wait… no. A…b', 'wait <eos> no <eos> a b <eos>'), ('“Yes.” No', 'yes <eos> no <eos>'), ('«Oui.» Non', 'oui <eos> non <eos>'),
    ('\ufeffA be', 'a be <eos>'), ('a\ufeffb co\u00adop', 'ab coop <eos>'), ('\u0301a \u200db', 'a b <eos>'),
    ('a\r\n\r\nb\rc\r\rd', 'a <eos> b c <eos> d <eos>'), ('a\u2028b\u2029c\u2028\u2028d\x85e', 'a b <eos> c <eos> d e <eos>'),
    ('state\u2010of\u2011art it＇s', "state-of-art it 's <eos>"), ('١٬٠٠٠ 1,000.5 १२', 'N N N <eos>'), ('1️⃣ one', 'N one <eos>'),
    ("they 'll ca n't", "they 'll ca n't <eos>"), ("the 's' of 'd", "the s of 'd <eos>"), ('etc.... so e.g.. so', 'etc <eos> so e.g. <eos> so <eos>')])
def test_words_of_other_scripts_are_whole(prose, words): assert tokenize(prose)==words.split()

HUGE = dict(dots='.'*10**6+'x', ellipses='…'*10**6+'x', stops='。'*10**6, lines='\n'*10**6, blanks='\n'+' '*10**6+'x', closers='.'+')'*10**6+'x', both='.)'*500_000+'x',
            word='a'*10**6, marks='a'+'\u0301'*10**6, hyphens='a-'*500_000, letters='a.'*500_000, digits='1,'*500_000, quotes="'s"*500_000, not_="n't"*300_000,
            bars='_'*10**6, titles='mr.'*300_000, joiners='\u200d'*10**6, prose='It is, e.g., so. '*60_000, blanks_only=' '*10**6, crs='\r'*10**6)
@pytest.mark.parametrize('name', HUGE)
def test_a_huge_line_takes_its_length(name):
    start = time.process_time()
    tokenize(HUGE[name])
    assert time.process_time()-start<20, "seconds for a million letters: more than its length"

def letters(s): return sorted(filter(str.isalpha, unicodedata.normalize('NFD', s.lower()).replace('ς', 'σ')))

def holds(s):
    "What is true of the words of any text: all letters are there, and the words of the words are the same"
    words = tokenize(s)
    again = ' '.join('0' if o=='N' else '\n\n' if o=='<eos>' else o for o in words)
    assert tokenize(again)==words, (s, words, tokenize(again))
    kept = ''.join(o for o in words if o not in ('N','<eos>'))
    assert letters(kept)==letters(s), (s, words)
    assert all(unicodedata.is_normalized('NFC', o) and not re.search(r'\s|\ufeff', o) for o in words)

ALPHABETS = [string.printable, 'aA éÉ.!? ’\'"()-1,n\'t mr. \n\r', 'हिन्दी में। ॥\u200d\u200c १', 'كَتَبَ ؟۔ می\u200c١٬', 'か゚が。「」！？…こ', 'cafe\u0301 ö\u0323\u0302 \u0130ΣΑς\u017f\ufb01ǅ',
             'Зд́раствуй. «»', 'שָׁלוֹם ', 'ไทยก็', '\ufeff\u00ad\u2060\u200b\u2028\u2029\x85\x0b\x1c\x00', '👩\u200d👩1\ufe0f\u20e3½²Ⅷ', '\ud7b0\u1100\u1161\u11a8각']
def odd_text(r):
    "A short text, of one or several scripts, or of any letters at all"
    mix = [r.choice(ALPHABETS) for _ in range(r.randint(1, 3))]
    s = ''.join(r.choice(r.choice(mix)) for _ in range(r.randint(0, 40)))
    return s if r.random()<.8 else s+''.join(chr(o) for o in (r.randrange(0x110000) for _ in range(5)) if not 0xd800<=o<0xe000)

def odd_bytes(s, r):
    "Its bytes in some encoding, some of them flipped, cut or doubled"
    data = bytearray(s.encode(r.choice(['utf-8','utf-8','utf-8-sig','utf-16','utf-16-le','utf-32'])))
    for _ in range(r.choice([0,0,1,3]) if data else 0): data[r.randrange(len(data))] ^= 1<<r.randrange(8)
    return bytes(data[:r.randrange(len(data)+1)] if r.random()<.1 else data)

def fuzz_texts(n, path, seed=0):
    "How many of `n` odd texts were read; the others must be refused by one short line"
    r,read = random.Random(seed),0
    for i in range(n):
        holds(s := odd_text(r))
        path.write_bytes(odd_bytes(s, r))
        try: assert read_tokens(path, raw=r.random()<.5); read += 1
        except ValueError as e: assert '\n' not in str(e) and path.name in str(e) and len(str(e))<=300+len(str(path.parent)), e
    return read

def test_odd_texts_are_read_or_refused(tmp_path): assert 10_000<fuzz_texts(20_000, tmp_path/'odd.txt')<19_000

def test_the_words_of_plain_english_are_those_that_were_measured():
    said = tokenize((Path(__file__).parents[1]/'LICENSE').read_text())
    assert len(said)==1650 and hashlib.sha256(' '.join(said).encode()).hexdigest()[:16]=='c74c09ab6255a9fe'

def test_a_prepared_file_is_read_as_it_is(tmp_path):
    f = tmp_path/'a.txt'
    f.write_text(" the <unk> u.s. N\n\n it 's $ \n")
    assert read_tokens(f)=="the <unk> u.s. N <eos> it 's $ <eos>".split()
    with pytest.raises(ValueError, match='a.txt holds <unk>.*raw=False'): read_tokens(f, raw=True)
    f.write_text('\n \n')
    with pytest.raises(ValueError, match='a.txt holds no words'): read_tokens(f)
    with pytest.raises(FileNotFoundError): read_tokens(tmp_path/'b.txt')

# ---- the vocabulary
def test_vocab_is_the_most_frequent_words_sorted():
    words = 'b b b a a d d c <eos>'.split()
    assert text._vocab(words, 4)==['<eos>','<unk>','a','b']       # a before d, which is as frequent
    assert text._vocab(words, 99)==['<eos>','<unk>','a','b','c','d']
    for n in (2, 0, -5, 1e4, math.nan, '9', None):
        with pytest.raises(ValueError, match=f'max_vocab={n!r}; a whole number of at least 3'): text._vocab(words, n)

def test_words_refuses_a_bad_vocab():
    with pytest.raises(ValueError, match='only 3 are different'): Words(['<eos>','<unk>','a','a'])
    with pytest.raises(ValueError, match='without <eos>'): Words(['<unk>','a'])

# ---- the loader
@settings(max_examples=40, deadline=None)
@given(n=st.integers(80, 300), bs=st.integers(1, 6), seq_len=st.integers(1, 12), seed=st.integers(0, 9))
def test_tokens_in_are_tokens_out(n, bs, seq_len, seed):
    words = draw(n, seed)
    dls = lm_dls(words, words, vocab=VOCAB, bs=bs, seq_len=seq_len, device='cpu')
    ids,bl = torch.tensor([VOCAB.index(o) for o in words]),(n-1)//bs
    assert torch.equal(tokens(dls, 'train'), ids) and tokens(dls, 'train').dtype==torch.int64
    for dl in dls.loaders:
        x,y = (torch.cat(o, 1).as_subclass(torch.Tensor) for o in zip(*dl))
        assert torch.equal(x.flatten(), ids[:bs*bl]) and torch.equal(y.flatten(), ids[1:bs*bl+1])
        assert len(list(dl))==len(dl) and x.shape==(bs,bl)

@settings(max_examples=30, deadline=None)
@given(lens=st.lists(st.integers(1, 30), min_size=1, max_size=6), bs=st.integers(1, 5), seq_len=st.integers(1, 9))
def test_batches_are_those_of_fastai(lens, bs, seq_len):
    if sum(lens)<=bs: return
    words = Words(VOCAB)
    docs = Datasets([words(draw(n, i)) for i,n in enumerate(lens)], [[words]])
    same(StreamDL(docs, bs=bs, seq_len=seq_len), LMDataLoader(docs, bs=bs, seq_len=seq_len))

def test_a_batch_is_contiguous(): assert all(o.is_contiguous() for b in toy().train for o in b)

def test_new_copy_and_pickle():
    dl = toy().train
    for o in (dl.new(), copy(dl), deepcopy(dl), dl.new(shuffle=True), dl.new(num_workers=0)): same(o, dl)
    other = dl.new(bs=2, seq_len=7)
    assert type(other) is StreamDL and [x.shape[1] for x,_ in other]==[7]*14+[1]
    assert dl.one_batch()[0].shape==(4,5) and dl.seq_len==5

def test_a_batch_is_shown_as_a_table(monkeypatch):
    shown,dls = [],toy()
    monkeypatch.setattr(text, 'display_df', shown.append)
    dls.show_batch(max_n=2, trunc_at=3)
    words = draw(200)
    assert shown[0].values.tolist()==[[' '.join(words[i+j:i+j+3]) for j in (0,1)] for i in (0,49)]

def test_shuffle_keeps_documents_whole():
    words = Words(VOCAB)
    docs = Datasets([words([c]*10) for c in 'abcdefgh'], [[words]])
    dl = StreamDL(docs, bs=1, seq_len=10, shuffle=True)
    seen = {tuple(x.flatten().tolist()) for x,_ in list(dl)[:-1]}
    assert all(len(set(o))==1 for o in seen)
    orders = set()
    for _ in range(5): list(dl); orders.add(tuple(dl.stream[::10].tolist()))
    assert len(orders)>1 and all(sorted(o)==list(range(2, 10)) for o in orders)

def test_the_stream_lives_on_the_device():
    dls = toy()
    assert dls.to('meta') is dls
    assert {o.device.type for b in dls.train for o in b}=={'meta'} and tokens(dls, 'valid').device.type=='meta'

@pytest.mark.parametrize('bad', [dict(bs=0), dict(bs=-4), dict(seq_len=0), dict(bs=2.), dict(seq_len='5'), dict(bs=None)])
def test_sizes_of_a_batch_are_whole_numbers(bad):
    (name,value), = bad.items()
    line = re.escape(f'{name}={value!r}; a whole number of at least 1')
    for make in (toy, docs_dls):
        with pytest.raises(ValueError, match=line): make(**bad)

def test_a_test_text_is_looked_at_when_it_is_given():
    for bad,kind in (('a b c', TypeError), ([1], TypeError), (['a'], ValueError)):
        with pytest.raises(kind, match='test text'): lm_dls(draw(200), draw(90), bad, bs=4, seq_len=5)

def test_what_cannot_be_a_text_is_refused():
    words = draw(100)
    for bad,kind in (('a b c','str'),([1,2,3],'list'),(None,'NoneType')):
        with pytest.raises(TypeError, match=f'training text is {kind} where a list of words'): lm_dls(bad, words)
    with pytest.raises(ValueError, match=r'20 tokens of validation text where one batch needs 21 \(bs\*seq_len\+1\)'):
        lm_dls(words, words[:20], bs=4, seq_len=5)

# ---- in and out of fastai
def test_test_words_wait_outside():
    opened = []
    def words(): opened.append(1); return draw(70, 2)
    dls = lm_dls(draw(200), draw(90), words, vocab=VOCAB, bs=4, seq_len=5, device='cpu')
    list(dls.train), list(dls.valid)
    assert len(dls.loaders)==2 and not opened
    want = torch.tensor([VOCAB.index(o) for o in draw(70, 2)])
    assert torch.equal(tokens(dls, 'test'), want) and opened==[1]
    dl = open_test(dls)
    assert type(dl) is StreamDL and torch.equal(dl.stream, want) and not dl.shuffle
    two = dls.test_dl([['a','b']*6,['zzz']*12], bs=1)
    assert two.stream.tolist()==[VOCAB.index(o) for o in ['a','b']*6+['<unk>']*12] and two.bs==1

def test_learner_trains_shows_exports_and_loads(tmp_path, capsys):
    dls = toy(600, 90, path=tmp_path)
    config = {**awd_lstm_lm_config, **dict(emb_sz=8, n_hid=8, n_layers=1)}
    learn = language_model_learner(dls, AWD_LSTM, config=config, pretrained=False, metrics=Perplexity())
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-2)
        learn.lr_find(show_plot=False)
        loss = learn.validate()[0]
        learn.show_results(max_n=2)
        assert learn.validate(dl=open_test(dls))[0]!=loss
        learn.export('a.pkl')
        again = load_learner(tmp_path/'a.pkl')
    assert list(again.dls.vocab)==VOCAB and len(again.dls.train.stream)==0
    fresh = again.dls.test_dl(draw(90, 1))
    with again.no_bar(): assert abs(again.validate(dl=fresh)[0]-loss)<1e-6

TEXTS = ['one two three four '*5, 'five six '*9, 'seven eight nine '*8, 'two four six '*7]

def lm_of_fastai(how, folder):
    "Fastai's own `DataLoaders` of `TEXTS`, cut at blanks by its `BaseTokenizer`"
    kw = dict(is_lm=True, tok_tfm=BaseTokenizer(), seq_len=4, bs=2, device='cpu', n_inp=1)
    if how=='df':
        df = pd.DataFrame(dict(text=TEXTS, is_valid=[False,True,False,True]))
        return TextDataLoaders.from_df(df, path=folder, text_col='text', valid_col='is_valid', **kw)
    for i,o in enumerate(TEXTS):
        f = folder/('valid' if i%2 else 'train')/'news'/f'{i}.txt'
        f.parent.mkdir(parents=True, exist_ok=True); f.write_text(o)
    return TextDataLoaders.from_folder(folder, **kw)

@pytest.mark.parametrize('how', ['df','folder'])
def test_tokens_of_fastais_own_dataloaders(how, tmp_path):
    dls = lm_of_fastai(how, tmp_path)
    for part,ds in (('train',dls.train_ds),('valid',dls.valid_ds)):
        list(dls.train)                                          # the order of an epoch is not that of the text
        got = tokens(dls, part)
        assert got.dtype==torch.int64 and type(got) is torch.Tensor
        assert torch.equal(got, torch.cat([o[0] for o in ds]).as_subclass(torch.Tensor))
    with pytest.raises(ValueError, match='no test text'): tokens(dls, 'test')
    same(StreamDL(dls.valid_ds, bs=2, seq_len=4), LMDataLoader(dls.valid_ds, bs=2, seq_len=4))

@pytest.mark.parametrize('how', ['df','folder'])
def test_halves_of_fastais_own_dataloaders(how, tmp_path):
    dls = lm_of_fastai(how, tmp_path)
    full = [b for b in dls.valid if b[0].shape[1]==4]
    assert sum(len(o.dataset) for o in split_valid(dls))==2*len(full)

def test_tokens_says_what_it_can_not_give():
    dls = toy()
    with pytest.raises(ValueError, match="part 'val'; there are 'train', 'valid' and 'test'"): tokens(dls, 'val')
    searched = with_valid(dls, split_valid(dls)[1])
    assert torch.equal(tokens(searched, 'test'), tokens(dls, 'test'))
    with pytest.raises(ValueError, match='valid loader is a MemoryDL, which holds no running text'): tokens(searched, 'valid')

def test_no_spacy_is_needed():
    code = ("import sys; sys.modules['spacy'] = None\n"
            "from enas_nb.text import *\n"
            "w = tokenize('One two. Three four. ')*20\n"
            "print(len(list(lm_dls(w, w, bs=2, seq_len=5, device='cpu').train)))")
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert out.stdout.strip()=='12', out.stderr[-500:]

# ---- halves for a search
@settings(max_examples=20, deadline=None)
@given(m=st.integers(50, 400), bs=st.integers(1, 5), seq_len=st.integers(1, 10), seed=st.integers(0, 5))
def test_the_halves_are_all_full_windows_once(m, bs, seq_len, seed):
    words = [f'w{i}' for i in range(m)]                            # no two windows are equal
    dls = lm_dls(words, words, bs=bs, seq_len=seq_len, device='cpu')
    if bs*((m-1)//bs//seq_len)<2: return
    halves = split_valid(dls, seed)
    x = [o.dataset.tensors[0] for o in halves]
    ids,bl = tokens(dls, 'valid').tolist(),dls.valid.bl
    want = sorted(ids[r*bl+c:r*bl+c+seq_len] for r in range(bs) for c in range(0, bl-seq_len+1, seq_len))
    assert sorted(torch.cat(x).tolist())==want and abs(len(x[0])-len(x[1]))<=1
    for o in halves:
        assert type(o) is MemoryDL and all(torch.equal(y[:,:-1], x[:,1:]) for x,y in o)
        assert [type(t) for t in o.one_batch()]==[LMTensorText,TensorText]

def test_a_random_batch_of_windows():
    reward,_ = split_valid(toy(m=300))
    x,y = random_batch(reward, 8, rng(0, 'reward', 1))
    assert x.shape==y.shape==(8,5) and torch.equal(x, random_batch(reward, 8, rng(0, 'reward', 1))[0])

def test_a_whole_number_of_windows_is_kept(): assert len(cache_valid(toy(m=4*15+1)).dataset)==4*3

# ---- Penn Treebank
def fake_ptb(folder):
    folder.mkdir(parents=True)
    for o in ('train','valid','test'): (folder/f'ptb.{o}.txt').write_text('a b <unk> N\n'*9)
    return folder

def test_absent_or_other_files_are_refused_in_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match='no ptb.train.txt, ptb.valid.txt, ptb.test.txt in .*simple-examples.tgz') as e: ptb_dls(path=tmp_path)
    assert '\n' not in str(e.value)
    with pytest.raises(ValueError, match='ptb.train.txt in .* holds 45 tokens, Penn Treebank 929,589'): ptb_dls(path=fake_ptb(tmp_path/'ptb'))

def test_the_archive_is_fetched_only_if_asked(tmp_path, monkeypatch):
    fake_ptb(tmp_path/'made'/'simple-examples'/'data')
    with tarfile.open(tmp_path/'simple-examples.tgz', 'w:gz') as f: f.add(tmp_path/'made'/'simple-examples', 'simple-examples')
    monkeypatch.setattr(text, '_ptb_url', (tmp_path/'simple-examples.tgz').as_uri())
    monkeypatch.setattr(text, 'untar_data', partial(untar_data, base=tmp_path/'home'))
    monkeypatch.setattr(text, 'fastai_path', lambda o: tmp_path/'home'/o)
    with pytest.raises(FileNotFoundError): ptb_dls()
    assert not list((tmp_path/'home').rglob('*.*'))
    with pytest.raises(ValueError, match='holds 45 tokens'): ptb_dls(download=True)

@needs_ptb
def test_ptb():
    dls = ptb_dls(device='cpu')
    assert [len(tokens(dls, o)) for o in ('train','valid','test')]==[929589,73760,82430]
    v = dls.vocab
    assert type(v) is list and len(v)==10000 and v==sorted(v) and {'<unk>','<eos>','N'}<={*v}
    path = text._ptb_path()
    theirs = (path/'ptb.valid.txt').read_text().replace('\n', '<eos>').split()   # as the authors read it
    assert [v[i] for i in tokens(dls, 'valid')]==theirs
    few = ptb_dls(n_train=50_000, bs=20, device='cpu')
    assert few.vocab==v and torch.equal(tokens(few, 'train'), tokens(dls, 'train')[:50_000])
    for n in (0, 929590):
        with pytest.raises(ValueError, match=f'n_train={n} of 929,589'): ptb_dls(n_train=n)

# ---- docstrings
DOC = '''Compute a thing from other things.

The `first` line is *really* good [1]_, see :func:`~a.b.other`.  Short one.
An unfinished line with many words

Parameters
----------
x : array_like
    The data to look at, all of it.
y, z : int
    See the following list of items.

    * The bullet is a sentence too.
    * The other goes over
      two lines of text.

Notes
-----
.. versionadded:: 1.2
   This is not at all prose.

We use an equation that is here::

    This is code which looks like prose.

Then :math:`x` is not prose but maths.
The end is x = 3 as you see.

Examples
--------
>>> f(3)
The result of this is never read.
'''
def test_prose_of_a_docstring():
    assert [' '.join(s.split()) for s in text._prose(DOC)]==[
        'Compute a thing from other things', 'The first line is really good , see other', 'The data to look at, all of it',
        'See the following list of items', 'The bullet is a sentence too', 'The other goes over two lines of text']

@pytest.mark.parametrize('n', [0, -5, 1e4, '9', 10**9])
def test_a_number_of_tokens_is_a_whole_number_and_there(n, read):
    with pytest.raises(ValueError, match=f'n_train={n!r} of '): docs_dls(n_train=n)

def test_places_of_docstrings():
    tree = ast.parse('"M."\nclass A:\n    "C."\n    def f(self):\n        "F."\ndef g(): pass')
    assert list(text._docstrings(tree, 'm'))==[('m','M.'),('m.A','C.'),('m.A.f','F.')]

@pytest.fixture
def read(monkeypatch, tmp_path):
    "Four thousand sentences instead of the installed packages, and a data folder of the test's own"
    calls = []
    def few(): calls.append(1); return [(f'm.f{i//2}', f'sentence number {i} is here') for i in range(4000)]
    monkeypatch.setattr(text, '_read_docs', few)
    monkeypatch.setattr(text, 'fastai_path', lambda o: tmp_path)
    return calls

def test_docstrings_are_read_once(read, tmp_path):
    a,b = text._doc_sentences(),text._doc_sentences()
    assert a==b and read==[1] and len(list((tmp_path/'docstrings').iterdir()))==1

def test_a_docstring_goes_whole_to_one_part(read):
    dls = docs_dls(bs=2, seq_len=5, max_vocab=9999, device='cpu')
    parts = [' '.join(dls.vocab[i] for i in tokens(dls, o)).split(' <eos>') for o in ('train','valid','test')]
    ns = [len(o)-1 for o in parts]
    assert sum(ns)==4000 and not any(n%2 for n in ns) and ns[0]>3000 and min(ns[1:])>250

def test_a_folder_that_cannot_be_written(read, monkeypatch, tmp_path):
    (tmp_path/'docstrings').write_text('a file where the folder should be')
    assert len(text._doc_sentences())==4000 and len(text._doc_sentences())==4000 and read==[1,1]

def test_all_of_it_is_there():
    dls = docs_dls(device='cpu')
    assert len(tokens(dls, 'train'))>100_000 and len(dls.vocab)==2000
    assert {p.split('.')[0] for p,_ in text._doc_sentences()}=={*text._packages}

# ---- texts of the reader's own
def prose(n, w='word'): return ' '.join(f'This is {w} {i%7} indeed.' for i in range(n))
KW = dict(bs=2, seq_len=5, device='cpu')

def test_a_file_is_cut_at_sentences(tmp_path):
    f = tmp_path/'a.txt'
    f.write_text(prose(100))
    dls = file_dls(f, **KW)
    assert [len(tokens(dls, o))//6 for o in ('train','valid','test')]==[80,10,10]
    f.write_text('\n'.join('a b <unk> N' for _ in range(100)))
    assert sorted(file_dls(f, raw=False, **KW).vocab)==['<eos>','<unk>','N','a','b']

@pytest.mark.parametrize('name', ['{}.txt','wiki.{}.txt'])
def test_a_folder_with_parts(tmp_path, name):
    for part,n in (('train',30),('valid',20)): (tmp_path/name.format(part)).write_text(prose(n))
    (tmp_path/'README.txt').write_text('not read')
    dls = file_dls(tmp_path, **KW)
    assert [len(tokens(dls, o)) for o in ('train','valid')]==[180,120] and dls.test_source is None
    (tmp_path/name.format('test')).write_text(prose(7))
    assert len(tokens(file_dls(str(tmp_path), **KW), 'test'))==42

def test_a_folder_of_files_is_dealt_out_whole(tmp_path):
    (tmp_path/'sub').mkdir()
    for i in range(20): (tmp_path/('sub' if i%2 else '')/f'{i}.txt').write_text(prose(5, f'w{chr(97+i)}'))
    dls = file_dls(tmp_path, **KW)
    assert [len(tokens(dls, o))//30 for o in ('train','valid','test')]==[16,2,2]
    assert torch.equal(tokens(dls, 'train'), tokens(file_dls(tmp_path, seed=0, **KW), 'train'))
    assert file_dls(tmp_path, seed=1, **KW).vocab!=dls.vocab

def test_hidden_files_are_no_text(tmp_path):
    for o in ('.ipynb_checkpoints/a.txt','.b.txt','.ipynb_checkpoints/c.valid.txt','._d.train.txt','e.md'):
        (tmp_path/o).parent.mkdir(exist_ok=True)
        (tmp_path/o).write_bytes(b'\x00')
    for o in ('valid.txt','test.txt'): (tmp_path/o).mkdir()   # folders of texts, not texts
    with pytest.raises(ValueError, match=r'0 .txt file\(s\) in'): file_dls(tmp_path)
    for i in range(20): (tmp_path/('valid.txt' if i%2 else '')/f'{i}.TXT').write_text(prose(5, f'w{chr(97+i)}'))
    assert [len(tokens(file_dls(tmp_path, **KW), o))//30 for o in ('train','valid','test')]==[16,2,2]

def test_names_of_parts_in_capitals(tmp_path):
    for o,n in (('a.TRAIN.TXT',30),('VALID.txt',20),('Test.Txt',7)): (tmp_path/o).write_text(prose(n))
    assert [len(tokens(file_dls(tmp_path, **KW), o)) for o in ('train','valid','test')]==[180,120,42]

def test_penn_treebank_as_a_file_and_as_a_folder(tmp_path):
    for part in ('train','valid','test'): (tmp_path/f'ptb.{part}.txt').write_text(' a b <unk> N \n \'s no it \n'*30)
    for path,ns in ((tmp_path, [270]*3), (tmp_path/'ptb.train.txt', [216,27,27])):
        with pytest.raises(ValueError, match=r'holds <unk>.* raw=False \(on the command line: --raw\)'): file_dls(path, **KW)
        dls = file_dls(path, raw=False, **KW)
        assert [len(tokens(dls, o)) for o in ('train','valid','test')]==ns and {"'s",'N','<unk>'} <= {*dls.vocab}

def odd_file(path, data): path.write_bytes(data); return path

@pytest.mark.parametrize('data', [codecs.BOM_UTF8+b'a b', *(o+'a b'.encode(e) for o,e in ((codecs.BOM_UTF16_LE,'utf-16-le'), (codecs.BOM_UTF16_BE,'utf-16-be'),
    (codecs.BOM_UTF32_LE,'utf-32-le'), (codecs.BOM_UTF32_BE,'utf-32-be'))), b'a b\r', b'a\r\n'+codecs.BOM_UTF8+b'b'])
def test_a_byte_order_mark_is_no_letter(data, tmp_path):
    for prose in (True, False): assert [o for o in read_tokens(odd_file(tmp_path/'a.txt', data), raw=prose) if o!='<eos>']==['a','b']

@pytest.mark.parametrize('data,encoding,line', [
    (b'ab\xff', 'utf-8', r'a.txt is not utf-8 \(byte 2\)'), ('a b'.encode('utf-16')+b'x', 'utf-8', r'a.txt is not utf-16 \(byte 8\)'),
    (b'a', 'utf-9', "a.txt: 'utf-9' is no encoding"), (b'a', 'hex', "a.txt: 'hex' is no encoding"), (b'a', None, 'a.txt: None is no encoding'), (b'a', 'a\0b', 'a.txt: .* is no encoding'),
    (b'\xff-\xff', 'punycode', 'a.txt is not punycode'), ('a b'.encode('utf-16-le'), 'utf-8', r'a.txt holds a NUL \(character 1\), so it is no text, or not utf-8'),
    (b'GIF89a\0', 'latin-1', r'NUL \(character 6\).*latin-1'), (b'', 'utf-8', 'a.txt holds no words'), (codecs.BOM_UTF8+b' ', 'utf-8', 'a.txt holds no words'), (b'... !', 'utf-8', 'no words')])
def test_a_file_that_is_no_text_is_refused_in_one_line(data, encoding, line, tmp_path):
    with pytest.raises(ValueError, match=line) as e: read_tokens(odd_file(tmp_path/'a.txt', data), raw=True, encoding=encoding)
    assert '\n' not in str(e.value)

def test_a_path_that_cannot_be_read_is_refused(tmp_path):
    for p,kind,line in ((tmp_path/'no', FileNotFoundError, 'no file or folder'), (tmp_path, ValueError, r'0 .txt file\(s\) in')):
        with pytest.raises(kind, match=line): file_dls(p)
    f = tmp_path/'train.txt'
    f.write_text(prose(50))
    with pytest.raises(ValueError, match='0 files for valid in'): file_dls(tmp_path)
    (tmp_path/'valid.txt').write_bytes('é'.encode('latin-1')*50)
    with pytest.raises(ValueError, match=r'valid.txt is not utf-8 \(byte 0\)'): file_dls(tmp_path, **KW)
    (tmp_path/'valid.txt').write_text('')
    with pytest.raises(ValueError, match='valid.txt holds no words'): file_dls(tmp_path, **KW)
    with pytest.raises(ValueError, match='one batch needs 2,241'): file_dls(f)

def test_penn_treebank_on_the_command_line(tmp_path, monkeypatch, capfd):
    from enas_nb.cli import enas_search
    from enas_nb.recipes import recipes
    from enas_nb.recurrent import RecurrentSpace
    monkeypatch.chdir(tmp_path)
    r = recipes['text-small']
    r = replace(r, name='tiny', space=RecurrentSpace(2), n_derive=2, n_look=2, n_children=2, n_random=2, data_args=dict(bs=4, max_vocab=60),
                preset=r.preset.override(controller=dict(steps=1, n_archs=2, warmup=0), search=dict(width=4, epochs=1), final=dict(width=6, epochs=1)))
    monkeypatch.setitem(recipes, 'tiny', r)
    words = [f'w{chr(97+i)}' for i in torch.randint(26, (1200,), generator=rng(0, 'words')).tolist()]
    (tmp_path/'ptb').mkdir()
    for part in ('train','valid','test'): (tmp_path/f'ptb/ptb.{part}.txt').write_text(''.join(f" {' '.join(words[i:i+9])} <unk> N \n" for i in range(0, 1200, 9)))
    for asked,line in (('--text ptb', 'holds <unk>.* --raw'), ('--raw', 'there|give one')):
        assert enas_search(['tiny', *asked.split(), '--device','cpu'])==2
        err = capfd.readouterr().err
        assert err.count('\n')==1 and re.search(line, err) and not (tmp_path/'runs/tiny-ptb-seed0').exists()
    assert enas_search('tiny --text ptb --raw --device cpu'.split())==0
    run = tmp_path/'runs/tiny-ptb-seed0'
    result = json.loads((run/'result.json').read_text())
    assert result['recipe']['data_args']['raw'] is False and result['words']['test']==1200+3*134
    assert enas_search(['--resume', str(run)])==0 and 'The report is' in capfd.readouterr().out
    asked = json.loads((run/'run.json').read_text())
    (run/'run.json').write_text(json.dumps(asked).replace('"raw": true', '"raw": "yes"'))
    assert enas_search(['--resume', str(run)])==2 and 'run.json is damaged: raw' in capfd.readouterr().err

# ---- perplexity, exactly
class Always(nn.Module):
    "The same scores after any word"
    def __init__(self, n, large=1.): super().__init__(); self.scores = nn.Parameter(torch.linspace(-2, 2, n)*large)
    def reset(self): pass
    def forward(self, x): return self.scores.expand(*x.shape, -1),None,None

def lstm(n=60):
    torch.manual_seed(0)
    return get_language_model(AWD_LSTM, n, config=awd_lstm_lm_config | dict(emb_sz=12, n_hid=16, n_layers=2))

def test_perplexity_of_fastais_own_model():
    net,stream = lstm().eval(),torch.randint(60, (700,), generator=rng(0, 'stream'))
    assert evaluate_ppl(net, stream, rows=6, warm=50).ppl==pytest.approx(evaluate_ppl(net, stream, rows=1).ppl, rel=1e-3)

@needs_ptb
def test_perplexity_on_real_text_agrees_with_word_after_word():
    stream = tokens(ptb_dls(bs=8, n_train=20_000, device='cpu'), 'test')[:4000]
    net = lstm(10_000)
    score = evaluate_ppl(net, stream, rows=8)
    assert score.n==3999 and score.ppl==pytest.approx(evaluate_ppl(net, stream, rows=1, seq_len=1).ppl, rel=1e-3)

@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 300), rows=st.integers(1, 80), warm=st.integers(0, 60), seq_len=st.integers(1, 40))
def test_every_word_but_the_first_counts_once(n, rows, warm, seq_len):
    net,stream = Always(50),torch.randint(50, (n,), generator=rng(n, 'stream'))
    losses = F.cross_entropy(net.scores.expand(n-1, -1), stream[1:], reduction='none')
    score = evaluate_ppl(net, stream, rows, warm, seq_len)
    assert score.n==n-1 and score.loss==pytest.approx(losses.mean().item(), rel=1e-5) and score.ppl==math.exp(score.loss)
    assert 1<=len(score.parts)<=rows and min(score.parts)>=losses.min().item()-1e-5

def test_evaluation_leaves_the_model_as_it_was():
    net,stream = lstm(),torch.randint(60, (300,), generator=rng(0, 'stream'))
    first = evaluate_ppl(net.train(), stream, rows=3, warm=10)
    assert net.training and evaluate_ppl(net.eval(), stream, rows=3, warm=10)==first and not net.training
    assert all(p.grad is None for p in net.parameters())

def test_what_has_no_exact_perplexity_is_refused():
    with pytest.raises(ValueError, match='a text of 1 words has no perplexity'): evaluate_ppl(Always(5), torch.tensor([1]))
    net = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False))
    with pytest.raises(ValueError, match="statistics of a batch.*bn_eval='running'"): evaluate_ppl(net, torch.zeros(9, dtype=torch.long))

# ---- the task
def test_the_task_of_text():
    dls,part = toy(),released['recurrent'].search
    state,order = torch.get_rng_state(),dls.train.rng.getstate()
    task = find_task(dls)
    assert torch.equal(state, torch.get_rng_state()) and order==dls.train.rng.getstate()
    assert type(task) is TextTask and TextTask.fits(dls) and not ImageTask.fits(dls)
    assert (task.name,task.n_in,task.n_out)==('text',10,10)
    assert task.sizes()==dict(train=200, valid=90, test=70)
    pred,targ = torch.randn(2, 3, 10, generator=rng(0, 'scores')),torch.tensor([[1,2,3],[4,5,6]])
    assert torch.equal(task.reward(part)(pred, targ), ppl_reward(pred, targ, c=part.reward_c))
    assert type(task.metric()) is Perplexity and type(task.search_metric()) is MedianPerplexity
    assert task.shared(part.reward_c/torch.tensor([90.,100.,5e4]), part)==pytest.approx(100)
    reward,searched = task.halves(seed=1)
    for a,b in zip((reward,searched.valid), split_valid(dls, 1)): same(a, b)
    assert torch.equal(tokens(searched, 'test'), tokens(dls, 'test'))

def test_the_measure_of_text():
    measure = TextTask.measure
    assert (measure.name,measure.items,measure.unit)==('perplexity','words','nats a word')
    assert measure.gain(90., 100.)==pytest.approx(math.log(100/90)) and measure.best([90.,100.])==90
    assert measure.show.format(123.456)=='123.5'

def test_a_trained_network_is_measured_exactly():
    dls = toy()
    learn = Learner(dls, lstm(10), loss_func=CrossEntropyLossFlat())
    task = TextTask(dls)
    for part in ('valid','test'):
        score = evaluate_ppl(learn.model, tokens(dls, part))
        assert task.measured(learn, part)==dict(value=score.ppl, parts=score.parts)
    with pytest.raises(ValueError, match="part 'all'"): task.measured(learn, 'all')

@pytest.mark.parametrize('large', [1e4,float('nan')])
def test_an_exploded_network_has_no_measure(large):
    dls = toy()
    learn = Learner(dls, Always(10, large), loss_func=CrossEntropyLossFlat())
    assert TextTask(dls).measured(learn, 'test')==dict(value=None, parts=None)

@pytest.mark.parametrize('how', ['df','folder'])
def test_the_task_of_fastais_own_dataloaders(how, tmp_path):
    task = find_task(lm_of_fastai(how, tmp_path))
    assert type(task) is TextTask and task.n_in==task.n_out==len(task.dls.vocab)

def test_the_task_of_images(): assert type(find_task(digits_dls())) is ImageTask

def test_data_of_no_task_are_refused():
    df = pd.DataFrame(dict(a=torch.randn(20).numpy(), y=torch.randn(20).numpy()))
    dls = TabularDataLoaders.from_df(df, cont_names=['a'], y_names='y', bs=4)
    with pytest.raises(ValueError, match='a training batch is of Tensor, Tensor, Tensor; a pair of tensors is needed'): find_task(dls)
    with pytest.raises(ValueError, match='and that is not text'): TextTask(digits_dls())

def test_the_median_of_perplexities():
    metric = MedianPerplexity()
    metric.reset()
    assert metric.name=='median_ppl' and metric.value is None
    for i,ppl in enumerate((float('nan'),100.,float('inf'),110.,120.)):
        metric.accumulate(SimpleNamespace(loss=torch.tensor([ppl]).log(), to_detach=lambda o,cpu: o))
        if i==3: assert metric.value.item()==pytest.approx(110)   # of 100, 110, inf, inf the lower middle one
    assert metric.value.item()==pytest.approx(120)                # of 100, 110, 120, inf, inf

def test_metrics_of_training_batches_see_the_scores():
    "The words' loss leaves its gradient in the scores; where somebody looks at them afterwards, it must not."
    from fastai.learner import Recorder
    from fastai.metrics import accuracy
    from enas_nb.recurrent import RecurrentSpace
    from enas_nb.retrain import arch_learner
    vocab = ['<eos>', '<unk>', *(f'w{i}' for i in range(18))]
    words = lambda n, g: [vocab[i] for i in torch.randint(20, (n,), generator=torch.Generator().manual_seed(g)).tolist()]
    dls, space = lm_dls(words(900, 0), words(300, 1), words(300, 2), vocab, bs=4, seq_len=10, device='cpu'), RecurrentSpace(2)
    def rows(train_metrics, **kwargs):
        torch.manual_seed(0)
        learn = arch_learner(dls, space.archs(space.random(1))[0], width=8, metrics=accuracy, **kwargs)
        learn.recorder.train_metrics = train_metrics
        with learn.no_bar(), learn.no_logging(): learn.fit(1, .1)
        return dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[0]))
    ours, plain = rows(True), rows(True, loss_func=CrossEntropyLossFlat())
    assert ours['train_accuracy']==plain['train_accuracy'] and ours['valid_loss']==plain['valid_loss']==rows(False)['valid_loss']
