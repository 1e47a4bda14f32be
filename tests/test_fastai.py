"A Learner in every respect: what fastai's callbacks and methods do on a search and on a retraining."
import inspect, random, warnings
from functools import partial
import numpy as np, pandas as pd, pytest, torch, torch.nn.functional as F
from sklearn.metrics import balanced_accuracy_score, brier_score_loss
from fastai.callback.core import Callback
from fastai.callback.tracker import ReduceLROnPlateau
from fastai.data.core import DataLoaders
from fastai.learner import AvgMetric, Learner, load_learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import F1Score, BalancedAccuracy, HammingLoss, Perplexity, accuracy, error_rate, mae, skm_to_fastai, top_k_accuracy
from fastai.optimizer import Adam, SGD

from enas_nb.data import PadCropFlip, cifar10_dls, digits_dls
from enas_nb.learner import rows, try_row
from enas_nb.macro import MacroSpace
from enas_nb.presets import released
from enas_nb.retrain import arch_learner
from enas_nb.recurrent import RecurrentSpace
from enas_nb.search import search_learner
from enas_nb.text import docs_dls
from enas_nb.train import optimizer

pytestmark = pytest.mark.filterwarnings('ignore')
SMALL = released['macro'].override(controller=dict(steps=2, n_archs=2, baseline='leave-one-out'), search=dict(bs=64, same_valid=False))

def search(**kw):
    torch.manual_seed(0)
    return search_learner(digits_dls(bs=256, device='cpu'), MacroSpace(2), preset=SMALL, width=4, **kw)

def final(**kw):
    torch.manual_seed(0)
    space = MacroSpace(2)
    return arch_learner(digits_dls(bs=256, device='cpu'), space.archs(space.random(1))[0], preset=SMALL, width=4, **kw)

both = pytest.mark.parametrize('make', [search, final], ids=['search', 'final'])

def fit(learn, *args, **kw):
    with learn.no_bar(), learn.no_logging(): learn.fit(*args, **kw)
    return learn

@both
def test_reduce_lr_on_plateau_lowers_the_rate(make, capsys):
    learn = fit(make(), 4, .05, cbs=ReduceLROnPlateau(min_delta=1e9, patience=1, factor=10.))
    assert learn.opt.hypers[-1]['lr']==pytest.approx(5e-5, rel=.01) and learn.opt.opt.param_groups[0]['lr']==pytest.approx(5e-5, rel=.01)
    assert 'reducing lr' in capsys.readouterr().out

@pytest.mark.parametrize('opt', ['nesterov', 'sgd', 'adam'])
def test_what_is_set_in_hypers_is_set_in_torch(opt):
    o = optimizer(released['recurrent'].override(search=dict(opt=opt)).search if opt!='nesterov' else SMALL.search)([torch.nn.Parameter(torch.zeros(2))], lr=.1)
    o.hypers[0]['lr'] = .3
    o.hypers[-1]['mom'] = .5
    group = o.opt.param_groups[0]
    assert (group['lr'], group['betas'][0] if opt=='adam' else group['momentum'])==(.3, .5)

@pytest.mark.parametrize('opt', [Adam, SGD])
def test_a_search_with_an_optimiser_of_fastai_is_saved_and_goes_on(opt, tmp_path):
    learn = fit(search(opt_func=opt), 2, .01)
    learn.save_search(tmp_path/'s')
    fit(learn, 3, .01, start_epoch=2)
    again = search(opt_func=opt); again.load_search(tmp_path/'s')
    fit(again, 3, .01, start_epoch=2)
    assert all(torch.equal(a, b) for a,b in zip(learn.model.parameters(), again.model.parameters()))

# --- the tables of 12 and 13: every row runs, and asserts its own effect ---------------------------------------------------------

def augmented(): return digits_dls(bs=256, augment=PadCropFlip(1, flip=False), device='cpu')
ALONE = SMALL.override(search=dict(bn_eval='recalibrated'))
def row_search(**kw):
    torch.manual_seed(0)
    return search_learner(augmented(), MacroSpace(2), preset=ALONE, width=4, **kw)
def row_final(**kw):
    torch.manual_seed(0)
    return arch_learner(augmented(), MacroSpace(2).parse('0 4 1'), preset=ALONE, width=4, **kw)

LOOKS = {'lr_find', 'validate', 'get_preds', 'predict', 'tta', 'show_results', 'ClassificationInterpretation', 'summary', 'save, load',
         'export, load_learner, fit'}
@pytest.mark.parametrize('make', [row_search, row_final], ids=['search', 'final'])
@pytest.mark.parametrize('row', rows, ids=[o.name for o in rows])
def test_a_row_of_the_table(row, make):
    line, search = try_row(row, make), make is row_search
    moved = 'as before' if row.name in LOOKS else 'trained'
    assert line['']==row.name and line['what it does'] and line['what was seen'] and line['ω' if search else 'weights']==moved
    if search: assert line['θ']==('as before' if row.name in ('TerminateOnNaNCallback', *LOOKS) else 'trained')
    if row.name=='ActivationStats': assert line['what was seen']==('10 of 55 modules ran in the first batch' if search else '11 of 11 modules ran in the first batch')

def test_every_row_that_was_promised_is_there():
    names = ' '.join(o.name for o in rows)
    for o in '''to_fp16 to_bf16 GradientAccumulation GradientClip SaveModelCallback EarlyStoppingCallback ReduceLROnPlateau CSVLogger TerminateOnNaNCallback
        ShowGraphCallback MixUp CutMix LabelSmoothing ActivationStats ParamScheduler AveragedModel fit_one_cycle fit_flat_cos fit_sgdr fit_restarts fit_decay fit_preset
        fine_tune freeze lr_find validate get_preds predict tta show_results Interpretation summary export load_learner'''.split(): assert o in names

# --- rewards -------------------------------------------------------------------------------------------------------------------

def theirs(pred, targ): return -F.cross_entropy(pred, targ)
def with_size(pred, targ, arch): return float(arch.code[0])
rewards = dict(name='accuracy', function=accuracy, metric=F1Score(average='macro'), cls=BalancedAccuracy, skm=skm_to_fastai(balanced_accuracy_score), partial=partial(top_k_accuracy, k=3),
               own_minus_loss=theirs, avg=AvgMetric(accuracy), keyword=lambda p, t, arch=None: accuracy(p, t), third=with_size)
@pytest.mark.parametrize('reward', rewards.values(), ids=[*rewards])
def test_what_pays(reward):
    learn = fit(search(reward=reward), 1, .05)
    assert learn.search.value('reward')==learn.search.value('reward') and learn.derive(2).scores[0][1]==learn.derive(2).scores[0][1]

def test_a_reward_may_ask_for_the_architecture():
    learn = fit(search(reward=with_size), 1, .05)
    space = learn.model.controller.space
    archs = space.archs(space.random(6, seed=0))
    assert learn.score_archs(archs).tolist()==[o.code[0] for o in archs]
    assert learn.score_archs(archs, metric='accuracy').tolist()!=[o.code[0] for o in archs]

@pytest.mark.parametrize('reward,name', [(error_rate, 'error_rate'), (HammingLoss(), 'hamming_loss'), (Perplexity(), 'Perplexity'), (CrossEntropyLossFlat(), 'CrossEntropyLossFlat'),
    (F.cross_entropy, 'cross_entropy'), (skm_to_fastai(brier_score_loss), 'brier_score_loss'), (partial(error_rate, axis=-1), 'error_rate'), (AvgMetric(error_rate), 'error_rate'), (mae, 'mae')])
def test_what_is_smaller_for_better_networks_does_not_pay(reward, name):
    with pytest.raises(ValueError, match=f'reward is {name}, which is smaller for better networks') as e: search(reward=reward)
    assert "or 'loss'" in str(e.value) and '\n' not in str(e.value)
    with pytest.raises(ValueError, match=f'metric is {name}'): fit(search(), 1, .05).score_archs([MacroSpace(2).parse('0 4 1')], metric=reward)

def test_accuracy_pays_for_text():
    torch.manual_seed(0)
    preset = RecurrentSpace.presets['released'].override(controller=dict(steps=1, n_archs=2, baseline='leave-one-out'), search=dict(bn=None, bn_eval=None))
    learn  = search_learner(docs_dls(bs=8, n_train=5000, max_vocab=60, device='cpu'), RecurrentSpace(3), preset=preset, width=8, reward=accuracy)
    assert 0<=fit(learn, 1, .1).search.value('reward')<1

# --- what does not belong to a search, or to these data ------------------------------------------------------------------------

def tabular():
    from fastai.tabular.all import CategoryBlock, Categorify, TabularDataLoaders
    df = pd.DataFrame(dict(a=range(40), b=['x','y']*20, y=[0,1]*20))
    return TabularDataLoaders.from_df(df, procs=[Categorify], cat_names=['b'], cont_names=['a'], y_names='y', y_block=CategoryBlock(), bs=8)
def documents():
    from fastai.text.all import TextDataLoaders
    return TextDataLoaders.from_df(pd.DataFrame(dict(text=['a few words of text']*40, label=['a','b']*20)), text_col='text', label_col='label', bs=8)
def plain(): return Learner(digits_dls(device='cpu'), torch.nn.Flatten())
def few(): return digits_dls(device='cpu')
no_search = 'this Learner is no search; `search_learner'
ARCH = MacroSpace(2).parse('0 4 1')
wrong = dict(
    swapped=(lambda: search_learner(MacroSpace(2), few()), 'after the data: `search_learner'), its_class=(lambda: search_learner(few(), MacroSpace), r'but a space is needed, `MacroSpace\(\)`'),
    name=(lambda: search_learner(few(), 'macro'), 'space is a str'), arch_swapped=(lambda: arch_learner(ARCH, few()), 'arch is a MemoryDataLoaders'),
    tabular=(lambda: search_learner(tabular(), MacroSpace(2)), 'a pair of tensors is needed'), tabular_arch=(lambda: arch_learner(tabular(), ARCH), 'a pair of tensors is needed'),
    documents=(lambda: search_learner(documents(), RecurrentSpace(3)), 'running text is needed'), text=(lambda: search_learner(docs_dls(bs=4, n_train=2000, device='cpu'), MacroSpace(2)), 'MacroSpace is for images, the data are text'),
    images=(lambda: search_learner(few(), RecurrentSpace(3)), 'RecurrentSpace is for text, the data are images'), no_valid=(lambda: search_learner(DataLoaders(few().train), MacroSpace(2)), r'DataLoaders with 1 loader'),
    derive=(lambda: plain().derive(), no_search), choose=(lambda: plain().choose([ARCH]), no_search), score=(lambda: plain().score_archs([ARCH]), no_search), glance=(lambda: plain().glance([ARCH]), no_search),
    agreement=(lambda: plain().agreement(), no_search), save=(lambda: plain().save_search('x'), no_search), load=(lambda: plain().load_search('x'), no_search), final=(lambda: final().derive(), no_search),
    metric=(lambda: search(metrics=3), 'a metric is 3'), metrics=(lambda: final(metrics=[accuracy, 'accuracy']), "a metric is 'accuracy'"), cbs=(lambda: search(cbs=3), 'cbs holds 3'),
    opt=(lambda: search(opt_func=3), 'opt_func is 3'), loss=(lambda: final(loss_func='mse'), "loss_func is 'mse'"), argument=(lambda: search(widht=3), "neither the Learner nor the network has the argument 'widht'"))
@pytest.mark.parametrize('case', wrong)
def test_one_line_when_it_is_given(case):
    make, words = wrong[case]
    with pytest.raises((TypeError, ValueError), match=words) as e: make()
    assert '\n' not in str(e.value) and len(str(e.value))<=300

def test_tab_completion_shows_the_arguments_of_the_learner():
    for f in (search_learner, arch_learner):
        names = inspect.signature(f).parameters
        assert {'path', 'model_dir', 'moms', 'lr', 'wd', 'opt_func', 'train_bn', 'kwargs'} <= {*names} and names['lr'].default is None

class Narrow(MacroSpace):
    "Its networks know a width, and nothing else of a preset."
    def shared_net(self, n_in, n_out, width=8): return MacroSpace.shared_net(self, n_in, n_out, width=width)
    def final_net(self, arch, n_in, n_out, width=8): return MacroSpace.final_net(self, arch, n_in, n_out, width=width)
def test_sizes_of_a_preset_that_a_network_does_not_know_are_left_out():
    space = Narrow(2)
    assert search_learner(few(), space).model.net.stem is not None
    arch_learner(few(), space.archs(space.random(1))[0])
    with pytest.raises(TypeError, match="has the argument 'dropout'"): search_learner(few(), space, dropout=.1)

# --- predict of a text, other data, generators of others ------------------------------------------------------------------------

def reader(**kw):
    torch.manual_seed(0)
    space = RecurrentSpace(3)
    return arch_learner(docs_dls(bs=8, n_train=5000, max_vocab=60, device='cpu'), space.archs(space.random(1))[0], width=8, **kw)

def test_predict_of_a_text_gives_the_next_words(tmp_path):
    learn = fit(reader(), 1, 1.)
    learn.model.hidden = before = ('x', torch.ones(8, 8)); learn.model.train()
    said = learn.predict('The array', n_words=20).split()
    assert said[:2]==['the','array'] and len(said)==22 and '<unk>' not in said[2:] and {*said[2:]} <= {*learn.dls.vocab} and learn.model.training
    learn.model.reset(); words = torch.tensor([[learn.dls.vocab.index(o) for o in ('the','array')]])
    learn.model.eval()
    with torch.no_grad(): scores = learn.model(words)[0][0,-1]
    scores[learn.dls.vocab.index('<unk>')] = -torch.inf
    assert learn.predict('The array', temperature=1e-4).split()[2]==learn.dls.vocab[scores.argmax()]   # the likeliest
    learn.path = tmp_path; learn.export('e.pkl')
    assert len(load_learner(tmp_path/'e.pkl').predict('the', 3).split())==4
    for bad,words in ((lambda: learn.predict(''), 'a string with a word is needed'), (lambda: learn.predict(3), 'text is 3'), (lambda: learn.predict('a', n_words=0), 'n_words is 0'),
                      (lambda: learn.predict('a', temperature=0), 'temperature is 0')):
        with pytest.raises(ValueError, match=words): bad()

def test_predict_of_a_search_on_text_asks_for_derive():
    preset = RecurrentSpace.presets['released'].override(controller=dict(steps=1, n_archs=2, baseline='leave-one-out'), search=dict(bn=None, bn_eval=None))
    learn = fit(search_learner(docs_dls(bs=8, n_train=5000, max_vocab=60, device='cpu'), RecurrentSpace(3), preset=preset, width=8), 1, .1)
    with pytest.raises(ValueError, match='`learn.derive'): learn.predict('the')
    learn.derive(2)
    assert len(learn.predict('the', n_words=4).split())==5

def test_predict_with_loaders_of_fastai():
    from fastai.text.all import TextDataLoaders
    dls = TextDataLoaders.from_df(pd.DataFrame(dict(text=['The cat sees a dog . The dog sees a cat .']*30)), text_col='text', is_lm=True, bs=4, seq_len=5, device='cpu')
    space = RecurrentSpace(3)
    said = fit(arch_learner(dls, space.archs(space.random(1))[0], width=8), 1, 1.).predict('The cat', n_words=3)
    assert said.startswith('The cat') and len(said.split())>=3

@pytest.mark.parametrize('how', ['loaded', 'replaced'])
def test_other_data_are_halved_like_the_first(how, tmp_path):
    learn, data = fit(search(), 1, .05), digits_dls(bs=256, seed=3, device='cpu')
    if how=='loaded':
        learn.path = tmp_path; learn.export('e.pkl'); learn = load_learner(tmp_path/'e.pkl')
        with pytest.raises(ValueError, match='no data to score on'): fit(learn, 1)
        with pytest.raises(ValueError, match='no data to score on'): learn.derive(2)
    learn.dls = data
    assert 0<=learn.derive(2).scores[0][1]<=1 and learn.search.trained==1
    n = len(data.valid_ds)
    assert [len(learn.search.reward_dl.dataset), len(learn.dls.valid_ds)]==[n//2+n%2, n//2] or [len(learn.search.reward_dl.dataset), len(learn.dls.valid_ds)]==[n//2, n//2+n%2]
    every = torch.cat([o.tensors[0] for o in (learn.search.reward_dl.dataset, learn.dls.valid_ds)])
    key = lambda t: sorted(map(tuple, t.flatten(1).tolist()))
    assert key(every)==key(data.valid_ds.tensors[0])
    same = learn.search.reward_dl
    fit(learn, 1, .05)
    assert learn.search.trained==2 and learn.search.reward_dl is same
    learn.dls = cifar10_dls(bs=8, n_train=20, n_valid=20) if untar_cifar() else learn.dls
    if untar_cifar():
        with pytest.raises(ValueError, match='the data have 3 channels or words, the search was made for 1'): fit(learn, 1)
def untar_cifar():
    from fastai.data.external import fastai_path
    return (fastai_path('data')/'cifar10').exists()

def test_save_says_once_what_it_lacks(tmp_path):
    learn = fit(search(), 1, .05); learn.path = tmp_path
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        learn.save('w'); learn.load('w'); learn.save('w')
    assert [str(o.message) for o in said if 'fastai' in str(o.message)]==["`save` and `load` are fastai's: they leave out θ's optimiser, its baseline, the epochs and the random "
                                                                          'states of a search. `learn.save_search(path)` does not']

class Draws(torch.utils.data.Dataset):
    "Images with noise of three generators of its own"
    def __init__(self): self.a, self.b, self.c = np.random.default_rng(0), np.random.RandomState(0), random.Random(0)
    def __len__(self): return 64
    def __getitem__(self, i): return torch.full((1, 8, 8), i/64)+self.a.random()*.1+self.b.rand()*.1+self.c.random()*.1, i%4
class Sampled(torch.utils.data.Sampler):
    def __init__(self): self.g = np.random.default_rng(1)
    def __len__(self): return 64
    def __iter__(self): return iter(self.g.permutation(64).tolist())

def test_generators_of_others_are_saved(tmp_path):
    from torch.utils.data import DataLoader
    valid = [(torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(i)), i%4) for i in range(32)]
    def make(seed, sampler):
        torch.manual_seed(0)
        kw  = dict(sampler=Sampled()) if sampler else dict(shuffle=True, generator=torch.Generator().manual_seed(seed))
        dls = (DataLoader(Draws(), 16, **kw), DataLoader(valid, 16))
        return search_learner(dls, MacroSpace(2), preset=SMALL, width=4, n_out=4)
    for sampler in (False, True):
        through = fit(make(1, sampler), 3, .05)
        first   = make(1, sampler)
        class Stop(Callback):
            def before_epoch(self):
                if self.epoch==2: raise KeyboardInterrupt
        with pytest.raises(KeyboardInterrupt): fit(first, 3, .05, cbs=Stop())
        first.save_search(tmp_path/'s')
        second = make(9, sampler); second.load_search(tmp_path/'s')
        fit(second, 3, .05, start_epoch=2)
        assert all(torch.equal(a, b) for a,b in zip(through.model.parameters(), second.model.parameters())), sampler

def test_lasting_workers_are_said_once(tmp_path):
    from torch.utils.data import DataLoader
    pairs = [(torch.rand(1, 8, 8), i%4) for i in range(32)]
    for lasting in (False, True):
        dls   = (DataLoader(pairs, 16, shuffle=True, num_workers=1, persistent_workers=lasting), DataLoader(pairs, 16))
        learn = fit(search_learner(dls, MacroSpace(2), preset=SMALL, width=4, n_out=4), 1, .05)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            learn.save_search(tmp_path/'s'); learn.save_search(tmp_path/'s')
        assert [str(o.message)[:18] for o in said if 'workers' in str(o.message)]==['persistent workers']*lasting
