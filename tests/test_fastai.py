"A Learner in every respect: what fastai's callbacks and methods do on a search and on a retraining."
import html, inspect, random, re, warnings
from functools import partial
import numpy as np, pandas as pd, pytest, torch, torch.nn.functional as F
from sklearn.metrics import balanced_accuracy_score, brier_score_loss
from fastai.callback.core import Callback
from fastai.callback.tracker import ReduceLROnPlateau
from fastai.data.core import DataLoaders
from fastai.learner import AvgMetric, Learner, load_learner
from fastai.losses import CrossEntropyLossFlat, DiceLoss, FocalLoss, LabelSmoothingCrossEntropy
from fastai.metrics import (BalancedAccuracy, Dice, F1Score, HammingLoss, JaccardCoeff, LossMetric, Perplexity, RocAuc, accuracy, error_rate, exp_rmspe, mae, rmse, skm_to_fastai,
                            top_k_accuracy)
from fastai.vision.augment import Flip, FlipItem, aug_transforms
from fastai.optimizer import Adam, SGD

from enas_nb.checkpoint import read_state, write_state
from enas_nb.cost import latency, multiply_adds
from enas_nb.data import PadCropFlip, cifar10_dls, digits_dls, images_dls
from enas_nb.learner import build_net, rows, try_row
from enas_nb.macro import MacroSpace
from enas_nb.presets import released
from enas_nb.retrain import arch_learner
from enas_nb.recurrent import RecurrentSpace
from enas_nb.search import search_learner
from enas_nb.text import docs_dls, lm_dls
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
        with pytest.raises(ValueError, match='no data to train on'): fit(learn, 1)
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

# --- what an attacker found: other data, losses as rewards, files of 16 bits, generators, pieces of a file -----------------------

def images(side, channels=1, n=10, **kw):
    x = torch.randint(0, 256, (120, channels, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    y = torch.arange(120)%n
    return images_dls((x, y), (x[:60], y[:60]), [f'k{i}' for i in range(n)], bs=60, device='cpu', **kw)
def torch_loaders():
    pairs = torch.utils.data.TensorDataset((torch.rand(40, 1, 8, 8)*255).byte(), torch.arange(40)%10)
    return DataLoaders(torch.utils.data.DataLoader(pairs, 20, shuffle=True), torch.utils.data.DataLoader(pairs, 20))

@pytest.mark.parametrize('make', [lambda: images(16), torch_loaders], ids=['larger', 'torch'])
@pytest.mark.parametrize('fitted', [False, True], ids=['new', 'fitted'])
def test_other_data_pay_and_calibrate(make, fitted):
    learn = search_learner(digits_dls(bs=256, device='cpu'), MacroSpace(2), preset=ALONE, width=4)
    if fitted: fit(learn, 1, .05)
    before, learn.dls = learn.model.net.calibration, make()
    n, side = len(learn.dls.valid.dataset), next(iter(learn.dls.train))[0].shape[-1]
    fit(learn, 1, .05)
    assert learn.search.reward_dl.dataset.tensors[0].shape[2:]==(side, side) and len(learn.dls.valid_ds)+len(learn.search.reward_dl.dataset)==n
    assert learn.model.net.calibration is not before and learn.model.net.calibration.shape[2:]==(side, side)
    learn.derive(2)

def test_other_classes_or_words_are_refused():
    learn = search()
    learn.dls = images(8, n=5)
    with pytest.raises(ValueError, match='the data have 5 classes or words, the search was made for 10'): fit(learn, 1)
    space, text = RecurrentSpace(3), lambda a: [a+o for o in 'a b c d e f g'.split()]*60+['<eos>']
    some  = space.presets['robust'].override(controller=dict(steps=1))
    learn = search_learner(lm_dls(text(''), text(''), bs=4, seq_len=5, device='cpu'), space, preset=some, width=8)
    learn.dls = lm_dls(text('z'), text('z'), bs=4, seq_len=5, device='cpu')
    with pytest.raises(ValueError, match='or for other ones'): fit(learn, 1)

@pytest.mark.parametrize('reward', [FocalLoss(), DiceLoss(), LabelSmoothingCrossEntropy(), rmse, exp_rmspe, torch.nn.CrossEntropyLoss, LossMetric('x')],
                         ids=lambda o: getattr(o, '__name__', type(o).__name__))
def test_losses_of_fastai_and_torch_do_not_pay(reward):
    with pytest.raises(ValueError, match='is smaller for better networks'): search(reward=reward)

def test_a_reward_that_needs_every_class_and_one_that_is_never_finite():
    assert 0<fit(search(reward=RocAuc()), 1, .05).search.value('reward')<1
    never = SMALL.override(controller=dict(credit='rank'))
    learn = search_learner(digits_dls(bs=256, device='cpu'), MacroSpace(2), preset=never, width=4, reward=lambda p, t: float('nan'))
    with pytest.raises(ValueError, match='rewards are nan, nan; θ learns from finite numbers only'): fit(learn, 1)

def test_tta_and_sizes_of_fastais_own_augmentation():
    learn = fit(arch_learner(images(16, 3, augment=aug_transforms(max_lighting=0.)), ARCH, width=4), 1, .05)
    with learn.no_bar(): moved, plain = learn.tta(beta=None)[0]
    assert (moved-plain).abs().max()>1e-3 and torch.allclose(plain, learn.get_preds()[0])
    fit(search_learner(images(16, 3, augment=aug_transforms(size=12)), MacroSpace(2), preset=SMALL, width=4), 1, .05)
    before = random.getstate()
    learn.dls.valid.batch(torch.arange(4)); assert random.getstate()==before

def test_files_of_16_bits_of_other_classes(tmp_path):
    from fastai.vision.all import CategoryBlock, DataBlock, GrandparentSplitter, ImageBlock, PILImageBW, get_image_files, parent_label
    from PIL import Image
    for part in ('train', 'valid'):
        for c in 'ab':
            (tmp_path/part/c).mkdir(parents=True)
            for i in range(6): Image.fromarray(np.full((8, 8), 20000, np.uint16)).save(tmp_path/part/c/f'{i}.png')
    block = DataBlock((ImageBlock(PILImageBW), CategoryBlock), get_items=get_image_files, get_y=parent_label, splitter=GrandparentSplitter())
    with pytest.raises(ValueError, match='mode I;16'): search_learner(block.dataloaders(tmp_path, bs=4, num_workers=0), MacroSpace(2))
    vision = pytest.importorskip('torchvision', reason='torchvision reads folders, too')
    theirs = vision.datasets.ImageFolder(tmp_path/'train', transform=vision.transforms.ToTensor())
    with pytest.raises(ValueError, match='mode I;16'): search_learner((torch.utils.data.DataLoader(theirs, 4),)*2, MacroSpace(2))

class Dims:
    "A transform with a generator of its own, and one in a list"
    def __init__(self): self.a, self.more = np.random.default_rng(1), [np.random.PCG64(2)]
    def __call__(self, x): return x*(.5+self.a.random()+np.random.Generator(self.more[0]).random())
class Dimmed(torch.utils.data.Dataset):
    def __init__(self): self.transform = Dims()
    def __len__(self): return 40
    def __getitem__(self, i): return self.transform(torch.full((1, 8, 8), i/40)), i%4

def test_generators_deep_inside_a_data_set_are_saved(tmp_path):
    from torch.utils.data import DataLoader, Subset
    valid = [(torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(i)), i%4) for i in range(32)]
    def make():
        torch.manual_seed(0)
        return search_learner((DataLoader(Subset(Dimmed(), range(40)), 20, shuffle=True), DataLoader(valid, 16)), MacroSpace(2), preset=SMALL, width=4, n_out=4)
    class Stop(Callback):
        def before_epoch(self):
            if self.epoch==1: raise KeyboardInterrupt
    through, first, second = fit(make(), 2, .05), make(), make()
    with pytest.raises(KeyboardInterrupt): fit(first, 2, .05, cbs=Stop())
    first.save_search(tmp_path/'s'); second.load_search(tmp_path/'s')
    fit(second, 2, .05, start_epoch=1)
    assert all(map(torch.equal, through.model.parameters(), second.model.parameters()))

pieces = dict(earlier=[{'a': torch.ones(2)}], first='x', counts='x', theta_seconds=None, mark='x', fell='x', saw='z', alarms=[5], stats={'reward': 'x'})
@pytest.mark.parametrize('piece', pieces)
def test_a_piece_of_a_search_of_another_kind_is_refused(piece, tmp_path):
    fit(search(), 1, .05).save_search(tmp_path/'s')
    state = read_state(tmp_path/'s')
    dict(state['cbs'])['search']['own'][piece] = pieces[piece]
    write_state(tmp_path/'bad', state)
    with pytest.raises(ValueError, match=f'is not a saved search: {piece} is'): search().load_search(tmp_path/'bad')
    search().load_search(tmp_path/'s')

more_wrong = dict(loss_class=(lambda: search(loss_func=torch.nn.CrossEntropyLoss), r'is the class CrossEntropyLoss; CrossEntropyLoss\(\)'), opt_class=(lambda: search(opt_func=torch.optim.Adam), r'partial\(OptimWrapper, opt=Adam\)'),
    augment=(lambda: images(8, augment='flip'), "augment holds 'flip'"), seconds=(lambda: latency(ARCH, seconds=-1), 'seconds is -1'), bs=(lambda: latency(ARCH, bs=0), 'bs is 0'))
@pytest.mark.parametrize('case', more_wrong)
def test_more_lines_when_it_is_given(case):
    make, words = more_wrong[case]
    with pytest.raises((TypeError, ValueError), match=words): make()
def test_numbers_of_numpy_are_numbers(): assert search(lr=np.float32(.1)).lr==np.float32(.1)

def test_counting_leaves_no_trace_and_says_the_same_everywhere():
    space = MacroSpace(4)
    net = space.final_net(space.parse('4 4 1 5 1 1 4 1 1 1'), 1, 10, width=16)
    with torch.device('meta'): there = space.final_net(space.parse('4 4 1 5 1 1 4 1 1 1'), 1, 10, width=16)
    assert multiply_adds(net, (1, 8, 8))==multiply_adds(there, (1, 8, 8)) and net.training
    lm = RecurrentSpace(4).archs(RecurrentSpace(4).random(1))[0]; net = lm.space.final_net(lm, 100, 100, width=16)
    net.hidden = kept = ('x', torch.ones(8, 16))
    assert multiply_adds(net, ())==100*16+2*16*32+3*2*16*16 and net.hidden is kept and net.training

# --- at home: late labels, copies, summaries, rates, exports without data, odd rewards -------------------------------------------

from test_foreign_data import Pairs, retrain, search as foreign   # loaders of torch over images of 4 classes, 3 channels
def lazy(y=None, v=None, **kw):
    dl = torch.utils.data.DataLoader
    return dl(Pairs(32, y=y, **kw), 8), dl(Pairs(16, y=v, **kw), 8)
def one_line(make, words, error=ValueError):
    with pytest.raises(error, match=words) as e: make()
    said = str(e.value).split('\n\t')[-1]   # fastai says before it which callback it was
    assert '\n' not in said and len(said)<=300
def reads(make=search_learner, preset='released', bn=None, **kw):
    torch.manual_seed(0)
    space, dls = RecurrentSpace(3), docs_dls(bs=8, n_train=5000, max_vocab=60, device='cpu')
    if make is arch_learner: return arch_learner(dls, space.archs(space.random(1))[0], width=8, **kw)
    some = space.presets[preset].override(controller=dict(steps=1, n_archs=2, baseline='leave-one-out'), search=dict(reward_bs=8, **bn or {}))
    return search_learner(dls, space, preset=some, width=8, **kw)

@pytest.mark.parametrize('make', [foreign, retrain])
@pytest.mark.parametrize('label', [9, -1])
def test_a_late_label_that_is_no_class_is_one_line(make, label):
    one_line(lambda: make(lazy([0]*29+[label, 1, 2])).fit(1), rf'a target in the training data is {label} \(batch 4 of 4\); 4 classes allow 0\.\.3')
    if make is retrain:
        one_line(lambda: make(lazy(v=[0]*15+[label])).fit(1), rf'a target in the validation data is {label} \(batch 2 of 2\); 4 classes allow 0\.\.3')
        one_line(lambda: make(lazy(v=[0]*15+[label])).validate(), 'in the validation data')
def test_a_late_word_that_is_none_is_one_line():
    learn = reads(arch_learner)
    learn.dls.train.stream[-20] = 60
    with pytest.raises(ValueError, match='a target in the training data is 60 .*60 words allow 0..59'): fit(learn, 1)
def test_other_errors_of_a_batch_stay_what_they_are():
    def broken(pred, targ): raise RuntimeError('mine')
    with pytest.raises(RuntimeError, match='^mine$'): fit(retrain(lazy(), loss_func=broken), 1)

@pytest.mark.parametrize('how', ['copy', 'deepcopy'])
@pytest.mark.parametrize('make', [search, final, reads])
def test_methods_of_a_copy_act_on_the_copy(make, how, tmp_path):
    import copy
    learn = fit(make(), 1, .05); learn.path = tmp_path
    before = [p.clone() for p in learn.model.parameters()]
    other = getattr(copy, how)(learn)
    if how=='copy': assert other.model is learn.model and other.dls is learn.dls; other.model, other.opt = copy.deepcopy(learn.model), None
    names = {o for o in vars(other) if inspect.ismethod(vars(other)[o])}
    assert names and all(getattr(other, o).__self__ is other and getattr(learn, o).__self__ is learn for o in names)
    assert all(o.learn is other for o in other.cbs) and all(o.learn is learn for o in learn.cbs)
    n = len(other.dls.valid_ds)
    fit(other, 1, .05)
    assert len(other.dls.valid_ds)==n and all(map(torch.equal, before, learn.model.parameters()))
    assert not all(map(torch.equal, before, other.model.parameters()))
    if make is not final:
        assert (other.search.trained, learn.search.trained)==(2, 1) and other.search.stats is not learn.search.stats
        assert [o.value for o in other.metrics if o.name=='reward']==[other.search.value('reward')]
        other.derive(2); assert learn.model.arch is None and other.model.arch is not None
    other.save('w')
    kept = torch.load(tmp_path/'models'/'w.pth')['model']
    assert all(torch.equal(kept[k], v) for k,v in other.model.state_dict().items())

def test_summary_of_a_text_by_the_statistics_of_a_batch():
    one_line(lambda: reads(preset='robust').summary(), 'normalises by the statistics of a batch')
    assert 'Total params' in reads(preset='robust', bn=dict(bn_eval='running')).summary() and 'Total params' in reads(arch_learner).summary()

rates = dict(cycle=lambda l,r: l.fit_one_cycle(1, r), flat=lambda l,r: l.fit_flat_cos(1, r), sgdr=lambda l,r: l.fit_sgdr(1, 1, r), tune=lambda l,r: l.fine_tune(1, r), fit=lambda l,r: l.fit(1, r),
             find=lambda l,r: l.lr_find(start_lr=r, num_it=3, show_plot=False))
@both
@pytest.mark.parametrize('rate', [-1., float('nan')])
@pytest.mark.parametrize('how', rates)
def test_a_rate_below_0_is_one_line_before_a_weight_moves(make, how, rate):
    learn = make(); before = [p.clone() for p in learn.model.parameters()]
    with learn.no_bar(), learn.no_logging(): one_line(lambda: rates[how](learn, rate), 'the learning rate is (-|nan|.*j).*allowed is a number of 0 or more')
    assert all(map(torch.equal, before, learn.model.parameters()))
@both
def test_a_rate_of_0_moves_nothing(make):
    learn = make(); before = [p.clone() for p in (learn.model.net if make is search else learn.model).parameters()]
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, 0); learn.fit(1, 0)
    assert all(map(torch.equal, before, (learn.model.net if make is search else learn.model).parameters()))

def test_next_words_takes_min_p_and_a_decoder():
    learn = fit(reader(), 1, 1.)
    greedy = learn.predict('the', n_words=6, temperature=1e-4)
    assert learn.predict('the', n_words=6, min_p=1.)==greedy and learn.predict('the', n_words=6, min_p=0.).startswith('the ')
    assert learn.predict('the', n_words=2, decoder=lambda words: [o.upper() for o in words]).startswith('THE ')
    for bad in (-.1, 2, float('nan'), 'x'): one_line(lambda: learn.predict('the', min_p=bad), 'min_p is .*allowed is a probability')
def test_next_words_of_an_empty_text_with_loaders_of_fastai():
    from fastai.text.all import TextDataLoaders
    dls = TextDataLoaders.from_df(pd.DataFrame(dict(text=['The cat sees a dog . The dog sees a cat .']*30)), text_col='text', is_lm=True, bs=4, seq_len=5, device='cpu')
    space = RecurrentSpace(3)
    learn = arch_learner(dls, space.archs(space.random(1))[0], width=8)
    for text in ('', ' \n'): one_line(lambda: learn.predict(text), 'a string with a word is needed')

@both
@pytest.mark.parametrize('what,words', dict(lr_find='train', fit='train', fit_one_cycle='train', fine_tune='train', validate='score', tta='score', get_preds='score').items())
def test_a_loaded_export_asks_for_data(make, what, words, tmp_path):
    learn = fit(make(), 1, .05); learn.path = tmp_path; learn.export('e.pkl')
    again = load_learner(tmp_path/'e.pkl')
    with again.no_bar(), again.no_logging():
        one_line(lambda: getattr(again, what)(*[1]*(what.startswith('fi'))), f'no data to {words} on, as in a loaded Learner: set `learn.dls`')
        again.dls = few() if make is final else digits_dls(bs=256, device='cpu')
        fit(again, 1, .05)
    if make is search: again.derive(2)
    assert again.get_preds()[0].shape[1]==10

odd_rewards = dict(complex=(lambda p, t: torch.tensor(1+2j), 'complex'), python=(lambda p, t: 1+2j, 'complex'), several=(lambda p, t: torch.ones(2), r'the shape \(2,\)'))
@pytest.mark.parametrize('case', odd_rewards)
def test_a_reward_that_is_not_one_real_number(case):
    reward, words = odd_rewards[case]
    learn = search(reward=reward); before = learn.search.theta
    one_line(lambda: fit(learn, 1, .05), words)
    assert learn.search.theta==before
    one_line(lambda: fit(search(), 1, .05).score_archs([ARCH], metric=reward), words)
def test_a_reward_that_changes_its_mind():
    said = []
    def reward(pred, targ): said.append(0); return torch.ones(1 if len(said)<2 else 2).squeeze()
    learn = search(reward=reward); before = learn.search.theta
    one_line(lambda: fit(learn, 1, .05), r'the shape \(2,\)')
    assert learn.search.theta==before

@pytest.mark.parametrize('reward,name', [(Dice(), 'Dice'), (Dice, 'Dice'), (JaccardCoeff(), 'JaccardCoeff')])
def test_rewards_for_two_classes_alone(reward, name):
    one_line(lambda: search(reward=reward), f'reward is {name}, which compares two classes, the data have 10: `{name}Multi')
    one_line(lambda: fit(search(), 1, .05).score_archs([ARCH], metric=reward), f'metric is {name}, which')
    two = search_learner(images(8, n=2), MacroSpace(2), preset=SMALL, width=4, reward=reward)
    assert 0<=fit(two, 1, .05).search.value('reward')<=1

def flips(n): return DataLoaders.from_dsets(Pairs(n), Pairs(16), bs=8, num_workers=0, after_batch=[Flip(1.)])
def moved_by_tta(learn, **kw):
    with learn.no_bar(): moved, plain = learn.tta(beta=None, n=2, **kw)[0]
    return (moved-plain).abs().max().item()
@both
def test_item_transforms_come_too_late_for_data_in_memory(make):
    learn = fit(make(), 1, .05)
    if make is search: learn.derive(2)
    one_line(lambda: learn.tta(item_tfms=[FlipItem(1.)]), 'items in memory are transformed already; give `batch_tfms`')
    assert moved_by_tta(learn, batch_tfms=[Flip(1.)])>1e-4
@pytest.mark.parametrize('data', [lambda: flips(32), lazy], ids=['fastai', 'torch'])
def test_tta_on_loaders_of_others(data):
    learn = foreign(data()); learn.fit(1); learn.derive(2)
    one_line(lambda: learn.tta(), r'kept as they are after their transforms.*learn.tta\(batch_tfms=')   # the validation data of a search are
    with torch.no_grad(): assert moved_by_tta(learn, batch_tfms=[Flip(1.)])>1e-4 and learn.get_preds()[0].isfinite().all()
    last = retrain(data()); last.fit(1)
    assert moved_by_tta(last, batch_tfms=[Flip(1.)])>1e-4

@pytest.mark.parametrize('data,words', [(lambda: images(8, 3), '3 channels or words, the network was made for 1'), (lambda: images(8, 1, 12), '12 classes or words, the network was made for 10'),
                                        (lambda: images(8, 1, 5), '5 classes or words')])
def test_a_retraining_refuses_data_of_another_kind(data, words):
    learn = final(); learn.dls = data()
    for f in (lambda: fit(learn, 1), lambda: learn.validate()): one_line(f, words)
    learn.dls = images(16); fit(learn, 1)
def test_a_retraining_refuses_other_words():
    learn = reads(arch_learner); learn.dls = docs_dls(bs=8, n_train=5000, max_vocab=40, device='cpu')
    one_line(lambda: fit(learn, 1), '40 classes or words, the network was made for 60')

def test_an_unknown_size_is_told_however_python_says_it():
    def make(n_in, n_out, **sizes): raise TypeError("Net.__init__() got an unexpected keyword argument 'widht'. Did you mean 'width'?")
    with pytest.raises(TypeError, match="has the argument 'widht'$"): build_net(make, 1, 2, widht=3)

def test_what_a_row_says_is_what_the_run_returned():
    "The typed columns of the tables stand beside what `try_row` returned for the same row"
    import json
    from pathlib import Path
    for nb,make in (('appendix/learner', 'search'), ('13_retrain', 'final')):
        cells = json.loads((Path(__file__).parent.parent/'nbs'/f'{nb}.ipynb').read_text())['cells']
        table = next(o for c in cells for o in c.get('outputs', ()) if 'what was seen' in str(o.get('data', {}).get('text/html', '')))
        cell  = lambda o: html.unescape(re.sub('<[^>]*>', '', o))
        lines = [[cell(td) for td in re.findall('<td.*?>(.*?)</td>', tr, re.S)] for tr in re.findall('<tr>(.*?)</tr>', ''.join(table['data']['text/html']), re.S)]
        lines = [o for o in lines if o]
        assert [o[0] for o in lines]==[o.name for o in rows] and [o[1] for o in lines]==[o.does for o in rows] and all(o[2] for o in lines)
        if make=='search': assert [o[-1] for o in lines]==[o.know for o in rows]
