"A search is a plain fastai `Learner`: each promise of the design about ω and θ taking turns, tried."
import math, pickle, random, shutil, warnings
from collections import Counter
from dataclasses import replace

import matplotlib; matplotlib.use('Agg')
import numpy as np, pytest, torch
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.progress import CSVLogger
from fastai.callback.tracker import SaveModelCallback
from fastai.callback.training import GradientClip
from fastai.data.core import DataLoaders
from fastai.learner import load_learner
from fastai.metrics import accuracy
from fastai.optimizer import Adam
from fastai.text.data import LMDataLoader
from fastai.vision.augment import Resize, aug_transforms
from fastai.vision.data import ImageDataLoaders
from hypothesis import given, settings, strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from enas_nb.data import digits_dls
from enas_nb.layers import FactorizedReduction, _Grids
from enas_nb.macro import MacroNet, SharedMacroNet
from enas_nb.checkpoint import Checkpoint, read_state
from enas_nb.cost import count_params
from enas_nb.presets import paper, released, robust, who_trains
from enas_nb.controller import Controller
from enas_nb.reinforce import Reinforce, loss_reward
from enas_nb.retrain import arch_learner
from enas_nb.choose import Derived
from enas_nb.learner import pick_preset
from enas_nb.rewards import score_batch
from enas_nb.search import SearchCallback, search_learner
from enas_nb.space import Arch, Op, SearchSpace, TinySpace
from enas_nb.text import lm_dls
from enas_nb.macro import MacroSpace
from enas_nb.micro import MicroSpace
from enas_nb.recurrent import RecurrentSpace

SPACE = MacroSpace(3)

def preset(controller={}, search={}):
    "Numbers for a search of less than a second."
    if controller.get('warmup', 0) is None: search = dict(paths='uniform') | search # θ at the end
    return released['macro'].override(controller=dict(steps=2, n_archs=3, hidden=8, lr=.05) | controller,
                                      search=dict(bs=32, width=4, lr_max=.02, same_valid=False) | search)

@pytest.fixture
def make(tmp_path):
    "A function that makes a small search on digits: 4 training batches, 2 validation batches."
    def make(seed=0, space=SPACE, bs=250, init=0, controller={}, search={}, **kw):
        torch.manual_seed(init)
        dls = digits_dls(bs=bs, seed=seed, device='cpu')
        dls.valid.bs = 120
        learn = search_learner(dls, space, preset=preset(controller, search), seed=seed, path=tmp_path, **kw)
        learn.logger, learn.create_mbar = (lambda row: None), False
        return learn
    return make

def theta(learn): return torch.cat([p.detach().flatten().clone() for p in learn.model.controller.parameters()])
def state(learn): return {k: v.clone() for k,v in learn.model.state_dict().items()}
def same(a, b): return a.keys()==b.keys() and all(torch.equal(a[k], b[k]) for k in a)
def one_line(e): return '\n' not in str(e.value) and len(str(e.value))>10

class Events(Callback):
    "What happened, in order: training and validation batches, with their architectures, and steps of θ."
    def __init__(self): self.log, self.archs = [], []
    def after_pred(self):
        self.log.append('train' if self.training else 'valid')
        self.archs.append((self.log[-1], self.model.net.arch))

@pytest.fixture
def events(monkeypatch):
    ev, step = Events(), Reinforce.step
    monkeypatch.setattr(Reinforce, 'step', lambda self, *a, **kw: (ev.log.append('theta'), step(self, *a, **kw))[1])
    return ev

def runs(log):
    "Runs of equal events: their names and lengths."
    res = []
    for o in log:
        if res and res[-1][0]==o: res[-1][1] += 1
        else: res.append([o,1])
    return [tuple(o) for o in res]

# --- turns -------------------------------------------------------------------------------------------------------------

epoch = [('train',4), ('theta',2), ('valid',2)]

def test_theta_moves_after_training_and_before_validation(make, events):
    learn = make(cbs=events)
    with learn.no_bar(): learn.fit(2)
    assert runs(events.log) == epoch*2 and learn.search.trained == 2

def test_no_theta_in_warmup(make, events):
    learn = make(cbs=events, controller=dict(warmup=1))
    before = theta(learn)
    with learn.no_bar(): learn.fit(1)
    assert torch.equal(theta(learn), before)
    with learn.no_bar(): learn.fit(1)
    assert runs(events.log) == [('train',4), ('valid',2), *epoch] and not torch.equal(theta(learn), before)

def test_no_theta_in_skipped_epochs(make, events):
    learn = make(cbs=events)
    with learn.no_bar(): learn.fit(3, start_epoch=2)
    assert runs(events.log) == epoch and learn.search.trained == 1

@pytest.mark.parametrize('opt', [None, Adam], ids=['default','fastai Adam'])
def test_only_the_chosen_path_has_gradients_and_theta_has_none(make, opt):
    class Grads(Callback):
        order, n = 90, 0
        def before_step(self):
            net = self.model.net
            for layer,l in zip(net.layers, net.arch.nodes):
                for name,op in layer.ops.items():
                    for p in op.parameters(): assert (p.grad is not None) == (name==l.op)
            assert all(p.grad is None for p in self.model.controller.parameters()) # or GradientClip would count them
            self.n += 1
    learn = make(cbs=[Grads(), GradientClip(1.)], **(dict(opt_func=opt) if opt else {}))
    with learn.no_bar(): learn.fit(2)
    assert learn.grads.n == 8

def test_the_optimiser_holds_omega_only(make):
    learn = make()
    learn.create_opt()
    held = [id(p) for g in learn.opt.param_lists for p in g]
    assert len(held)==len(set(held)) and set(held) == {id(p) for p in learn.model.net.parameters()}
    before = theta(learn)
    learn.search.preset = learn.search.preset.override(controller=dict(steps=0))
    with learn.no_bar(): learn.fit(1)
    assert torch.equal(theta(learn), before)

# --- which architecture runs when ----------------------------------------------------------------------------------------

def archs(ev, what): return [a for k,a in ev.archs if k==what]

def test_validation_in_fit_takes_a_fresh_sample(make):
    res = []
    for bs in (250, 100):
        ev = Events()
        learn = make(bs=bs, cbs=ev, controller=dict(warmup=9))
        with learn.no_bar(): learn.fit(2)
        res.append(archs(ev, 'valid'))
        assert len(set(res[-1])) > 1 and res[-1][:2] != res[-1][2:] # another sample in each epoch
        assert not set(res[-1]) & set(archs(ev, 'train')[:2])
        assert learn.model.path is None
    assert res[0]==res[1] # whatever the training took

def test_outside_fit_the_arch_or_samples(make):
    ev = Events()
    learn = make(cbs=ev, bs=30)
    with learn.no_bar():
        learn.fit(1)
        arch = SPACE.parse('5 0 1 2 1 0')
        for want in (arch, None):
            learn.model.arch, ev.archs = want, []
            learn.validate(); learn.get_preds(); learn.show_results(max_n=2); learn.model.eval()(learn.dls.one_batch()[0])
            seen = archs(ev, 'valid')
            if want: assert set(seen)=={want} and learn.model.net.arch==want
            else: # each batch takes a sample of the policy, the mode is nowhere an answer
                assert len(set(seen))>1 and learn.model.path is None
                first, ev.archs = seen, []
                learn.validate(); learn.get_preds()
                assert archs(ev, 'valid')[:2]==first[:2] # the same ones as long as θ stays
        assert not hasattr(learn.model, 'mode')

class Stop(Callback):
    "Ctrl-C in the middle of an epoch's training, validation or θ."
    order = 10
    def __init__(self, where): self.where = where
    def before_batch(self):
        if self.where==('train' if self.training else 'valid') and self.iter==1: self.where = ''; raise KeyboardInterrupt

@pytest.mark.parametrize('where', ['train', 'valid', 'theta'])
def test_ctrl_c(make, where):
    ev = Events()
    learn = make(cbs=ev)
    arch = learn.model.arch = SPACE.parse('5 0 1 2 1 0')
    if where=='theta':
        reward = learn.search.reward
        def stop(*args): learn.search.reward = reward; raise KeyboardInterrupt
        learn.search.reward = stop
    with learn.no_bar(), pytest.raises(KeyboardInterrupt): learn.fit(2, cbs=Stop(where))
    ev.archs = []
    with learn.no_bar():
        learn.validate()
        learn.get_preds()
        assert set(archs(ev, 'valid')) == {arch}
        assert arch in [learn.model.net.arch] and learn.model.eval()(learn.dls.one_batch()[0]) is not None and learn.model.net.arch == arch
        learn.fit(1)
        assert learn.search.trained in (1,2) and np.isfinite(learn.recorder.values[-1]).all()
        assert learn.derive(2).space == SPACE

# --- fastai's ways to fit and to look -------------------------------------------------------------------------------------

@pytest.mark.parametrize('fit', [lambda l: l.fit(1), lambda l: l.fit_one_cycle(1, .02), lambda l: l.fit_sgdr(1, 1, lr_max=.02),
                                 lambda l: l.fit_restarts(1, 1, lr_max=.02, lr_min=1e-3)], ids=['fit','one_cycle','sgdr','restarts'])
def test_fit(make, fit):
    learn = make()
    before, t = state(learn), theta(learn)
    with learn.no_bar(): fit(learn)
    row = dict(zip(learn.recorder.metric_names[1:-1], learn.recorder.values[-1]))
    assert list(row) == ['train_loss','valid_loss','accuracy','reward','entropy','baseline','alarms'] and np.isfinite(list(row.values())).all()
    assert 0<=row['accuracy']<=1 and 0<=row['reward']<=1 and row['entropy']>0
    assert not torch.equal(theta(learn), t) and any(not torch.equal(v, before[k]) for k,v in learn.model.net.state_dict(prefix='net.').items())

def test_restarts_set_the_rate_of_each_epoch(make):
    class Rates(Callback):
        def after_batch(self):
            if self.training: rates.append(self.opt.hypers[-1]['lr'])
    rates, learn = [], make(cbs=Rates())
    with learn.no_bar(): learn.fit_restarts(2, 1, lr_max=.05, lr_min=.01)
    assert rates == pytest.approx([.05]*4+[.05]*4+[.03]*4)
    for kw in (dict(n_cycles=0), dict(cycle_len=0), dict(cycle_len=1.5), dict(lr_min=1.), dict(cycle_mult=0)):
        with pytest.raises(ValueError) as e: learn.fit_restarts(**(dict(n_cycles=1, cycle_len=1, lr_max=.05) | kw))
        assert one_line(e)

def globals_(): return random.getstate(), np.random.get_state(), torch.get_rng_state()
def equal_globals(a, b): return a[0]==b[0] and all(np.array_equal(x, y) for x,y in zip(a[1], b[1])) and torch.equal(a[2], b[2])

finds = dict(epochs=dict(num_it=10), diverges=dict(start_lr=1., end_lr=1e5, num_it=40))

@pytest.mark.parametrize('kw', finds.values(), ids=finds)
@pytest.mark.parametrize('fitted', [False, True])
def test_lr_find_moves_nothing(make, events, kw, fitted):
    def start():
        learn = make()
        if fitted:
            with learn.no_bar(): learn.fit(1)
        return learn
    learn = start()
    with learn.no_bar(): learn.fit(2)
    want, rows = state(learn), learn.recorder.values
    learn = start()
    learn.add_cb(events); events.log = []
    before, g, trained = state(learn), globals_(), learn.search.trained
    base = learn.search.reinforce and float(learn.search.reinforce.baseline.value)
    with learn.no_bar(): learn.lr_find(show_plot=False, suggest_funcs=None, **kw)
    n = events.log.count('train')
    assert n==10 if 'end_lr' not in kw else 2<n<40
    assert set(events.log)=={'train'} and learn.search.trained==trained and equal_globals(g, globals_()) and same(before, state(learn))
    assert not fitted or float(learn.search.reinforce.baseline.value)==base
    with learn.no_bar(): learn.fit(2)
    assert [list(map(float, o)) for o in learn.recorder.values] == [list(map(float, o)) for o in rows] and same(state(learn), want)

def test_validate_and_preds(make):
    learn = make()
    with learn.no_bar():
        learn.fit(1)
        loss, acc, *theta_ = learn.validate()
        preds, targs = learn.get_preds()
    assert len(preds)==len(learn.dls.valid.dataset) and accuracy(preds, targs).item()==pytest.approx(acc) and len(theta_)==4
    assert torch.allclose(preds.sum(1), torch.ones(len(preds)), atol=1e-5)

def test_predict_needs_running_statistics(make):
    learn = make(bn_eval='batch')
    x = learn.dls.valid.dataset.tensors[0][0]
    with learn.no_bar():
        learn.fit(1)
        learn.derive(2)
        with pytest.raises(ValueError, match='bn_eval') as e: learn.predict(x)
        assert '\n' not in str(e.value).split(':\n\t')[-1] # fastai puts a line before it that says in which callback
        learn.validate() # and nothing is broken
    for bn_eval in ('running', 'recalibrated'):
        learn = make(bn_eval=bn_eval)
        with learn.no_bar():
            learn.fit(1)
            learn.derive(2)
            label, i, probs = learn.predict(x)
        assert label==str(i.item())==str(probs.argmax().item()) and len(probs)==10

def test_save_and_load(make):
    learn = make()
    with learn.no_bar(): learn.fit(1)
    learn.save('a')
    other = make(init=1)
    assert not torch.equal(theta(other), theta(learn))
    other.load('a')
    assert same(state(other), state(learn))

@pytest.mark.parametrize('given', [False, True])
def test_export(make, given):
    learn = make(bn_eval='running')
    with learn.no_bar(): learn.fit(1)
    arch = learn.model.arch = SPACE.parse('5 0 1 2 1 0') if given else None
    learn.export('x.pkl')
    assert learn.search.reward_dl is not None
    file, data = learn.path/'x.pkl', [o.dataset.tensors[0] for o in (learn.dls.train, learn.dls.valid, learn.search.reward_dl)]
    raw = file.read_bytes()
    for x in (*data, digits_dls(device='cpu').test_source[0]): assert not any(o.numpy().tobytes() in raw for o in x[:20])
    n = sum(p.numel() for p in learn.model.parameters())
    assert len(raw) < 4*3*n + 200_000, 'weights, momentum and names' # 2,000 images of 64 bytes as floats are 500 kB
    loaded = load_learner(file)
    assert loaded.search.reward_dl is None and same(state(loaded), state(learn))
    x = data[1][0]
    with loaded.no_bar(), learn.no_bar():
        if not given:
            for o in (loaded, learn):
                with pytest.raises(ValueError, match='which architecture shall predict'): o.predict(x)
            return
        a, b = loaded.predict(x), learn.predict(x)
    assert torch.allclose(a[2], b[2], atol=1e-6) and loaded.model.net.arch==arch
    with learn.no_bar(): learn.fit(1)

def test_csv_logger(make):
    learn = make(cbs=CSVLogger('h.csv'))
    with learn.no_bar(): learn.fit(2)
    head, *rows = (learn.path/'h.csv').read_text().splitlines()
    assert head.split(',') == ['epoch','train_loss','valid_loss','accuracy','reward','entropy','baseline','alarms','time'] and len(rows)==2
    assert not any('nan' in o for o in rows)

def test_scores_use_the_learners_autocast(make):
    class CPUMixed(MixedPrecision):
        name = 'mixed_precision'
        def before_fit(self): super().before_fit(); self.autocast = torch.autocast('cpu', torch.bfloat16)
    seen = []
    def reward(p, y): seen.append(p.dtype); return accuracy(p, y)
    learn = make(cbs=CPUMixed('bf16'), reward=reward)
    with learn.no_bar(): learn.fit(1)
    assert set(seen)=={torch.bfloat16} and np.isfinite(learn.recorder.values[-1]).all()
    assert all(p.dtype==torch.float32 for p in learn.model.parameters()) and torch.get_autocast_dtype('cpu') and not torch.is_autocast_enabled('cpu')
    learn = make(reward=reward).to_bf16(); seen.clear()
    with learn.no_bar(): learn.fit(1); learn.derive(2)
    learn.to_fp32()
    with learn.no_bar(): learn.fit(1)

# --- data ----------------------------------------------------------------------------------------------------------------

def images(dl): return Counter(o.numpy().tobytes() for o in dl.dataset.tensors[0])

def test_reward_and_select(make):
    learn, dls = make(), digits_dls(device='cpu')
    reward, select, both = images(learn.search.reward_dl), images(learn.dls.valid), images(dls.valid)
    assert reward+select == both and not reward & select and abs(sum(reward.values())-sum(select.values()))<=10
    assert not both & images(dls.train)
    learn = make(search=dict(same_valid=True))
    assert images(learn.search.reward_dl) == images(learn.dls.valid) == both

def test_the_users_dataloaders_are_left_alone():
    dls = digits_dls(device='cpu')
    loaders, epoch, n = list(dls.loaders), dls.train.epoch, len(dls.valid.dataset)
    learn = search_learner(dls, SPACE, preset=preset())
    assert dls.loaders==loaders and len(dls.valid.dataset)==n and dls.train.epoch==epoch and learn.dls is not dls

def folder(path, n=14):
    "Three classes of small pictures, told apart by colour."
    gen = np.random.default_rng(0)
    for i,c in enumerate(('cat','dog','eel')):
        (path/c).mkdir(parents=True)
        for j in range(n):
            x = gen.integers(0, 100, (20,24,3)); x[...,i] += 150
            Image.fromarray(x.astype(np.uint8)).save(path/c/f'{j}.png')
    return path

def test_a_users_own_images(tmp_path):
    def run(find=False):
        torch.manual_seed(0); random.seed(0); np.random.seed(0)
        dls = ImageDataLoaders.from_folder(files, valid_pct=.4, seed=0, item_tfms=Resize(12), batch_tfms=aug_transforms(), bs=8, num_workers=0, device='cpu')
        learn = search_learner(dls, SPACE, preset=preset(search=dict(bs=64)), bn_eval='running', path=tmp_path) # fewer images than bs
        learn.logger = lambda row: None
        with learn.no_bar():
            if find: learn.lr_find(num_it=7, show_plot=False)
            learn.fit(2)
        return dls, learn, [list(map(float, o)) for o in learn.recorder.values]
    files = folder(tmp_path/'images')
    dls, learn, rows = run()
    assert learn.model.net.head is not None and learn.get_preds()[0].shape == (len(learn.dls.valid.dataset), 3)
    arch = learn.derive(3)
    with learn.no_bar(): assert learn.predict(files/'cat'/'0.png')[0] in ('cat','dog','eel'); learn.show_results(max_n=2)
    learn.export('own.pkl')
    loaded = load_learner(tmp_path/'own.pkl')
    with loaded.no_bar(): assert loaded.predict(files/'cat'/'0.png')[0]==learn.predict(files/'cat'/'0.png')[0]
    final = arch_learner(dls, arch, width=4, cutout=3, path=tmp_path)
    final.logger = lambda row: None
    with final.no_bar(): final.fit_restarts(1, 1); assert final.predict(files/'cat'/'0.png')[2].shape==(3,)
    assert len(dls.train_ds)+len(dls.valid_ds)==42 # the DataLoaders are as they were
    assert run(find=True)[2]==rows # lr_find gives fastai's own loaders their random states back

# --- networks, presets, errors -------------------------------------------------------------------------------------------

class OwnNet(nn.Module):
    "A network of a user's own: its op 0 or 1 for each of two layers."
    arch = None
    def __init__(self):
        super().__init__()
        self.layers, self.head = nn.ModuleList([nn.ModuleList([nn.Linear(64, 64), nn.Linear(64, 64)]) for _ in range(2)]), nn.Linear(64, 10)
    def forward(self, x):
        x = x.flatten(1)
        for layer,l in zip(self.layers, self.arch.nodes): x = layer[SPACE2.ops.index(l.op)](x).relu()
        return self.head(x)
SPACE2 = MacroSpace(2, ops=('conv3x3','max3x3'))

def test_a_users_own_net(make):
    learn = make(space=SPACE2, net=OwnNet())
    with learn.no_bar(): learn.fit(1); assert learn.derive(20).scores; learn.validate(); learn.predict(learn.dls.valid.dataset.tensors[0][0])
    assert len(learn.derive(30).scores) <= 8 # all there are; equal ones are scored once

def test_presets():
    dls = digits_dls(device='cpu')
    for p in ('paper', 'released', paper['macro'], preset()):
        learn = search_learner(dls, SPACE, preset=p, width=4)
        want = p if not isinstance(p, str) else dict(paper=paper, released=released)[p]['macro']
        assert learn.search.preset == want == pick_preset(p, SPACE) and learn.lr==want.search.lr_max and learn.wd==pytest.approx(2*want.search.l2)
        assert learn.model.net.stem[0].out_channels==4 # an argument goes before the preset
    assert search_learner(dls, SPACE, preset=preset()).model.net.stem[0].out_channels==4

def text_dls():
    dl = LMDataLoader([torch.arange(99)], bs=4, seq_len=5)
    return DataLoaders(dl, dl, device='cpu')

def unknown_classes():
    ds = [(torch.zeros(1,8,8), torch.zeros(())) for _ in range(8)]
    return DataLoaders.from_dsets(ds, ds, bs=4, device='cpu')

D = lambda: digits_dls(device='cpu')
wrong = {
    'preset name':       (ValueError, 'allowed', lambda: search_learner(D(), SPACE, preset='papr')),
    'preset type':       ((ValueError,TypeError), 'allowed', lambda: search_learner(D(), SPACE, preset={})),
    'unknown argument':  (TypeError,  'widht',   lambda: search_learner(D(), SPACE, widht=4)),
    'argument and net':  (TypeError,  'width',   lambda: search_learner(D(), SPACE2, net=OwnNet(), width=4)),
    'no arch':           (TypeError,  'arch',    lambda: search_learner(D(), SPACE, net=nn.Linear(2,2))),
    'n_layers':          (ValueError, 'n_layers',lambda: search_learner(D(), SPACE, n_layers=4)),
    'bn_eval':           (ValueError, 'bn_eval', lambda: search_learner(D(), SPACE, bn_eval='no')),
    'text':              (ValueError, 'image',   lambda: search_learner(text_dls(), SPACE, n_out=10)),
    'text, no words':    (ValueError, 'vocab',   lambda: search_learner(text_dls(), SPACE)),
    'no classes':        (ValueError, 'n_out',   lambda: search_learner(unknown_classes(), SPACE)),
    'other space':       (ValueError, 'network', lambda: setattr(search_learner(D(), SPACE, width=4).model, 'arch', MacroSpace(2).parse('0 0 0'))),
    'final argument':    (TypeError,  'widht',   lambda: arch_learner(D(), SPACE.parse('0 0 0 0 0 0'), widht=4)),
    'final no arch':     (TypeError,  'Arch',    lambda: arch_learner(D(), '0 0 0 0 0 0')),
    'final preset':      (ValueError, 'allowed', lambda: arch_learner(D(), SPACE.parse('0 0 0 0 0 0'), preset='papr')),
    'final skip':        (ValueError, 'skip',    lambda: arch_learner(D(), SPACE.parse('0 0 0 0 0 0'), skip='no')),
    'final text':        (ValueError, 'image',   lambda: arch_learner(text_dls(), SPACE.parse('0 0 0 0 0 0'), n_out=3)),
}
@pytest.mark.parametrize('name', wrong)
def test_errors_are_one_clear_line(name):
    exc, match, f = wrong[name]
    with pytest.raises(exc, match=match) as e: f()
    assert one_line(e) and e.value.__cause__ is None

def test_a_refused_arch_changes_nothing(make):
    learn = make()
    arch = learn.model.arch = SPACE.parse('5 0 1 2 1 0')
    with pytest.raises(ValueError): learn.model.arch = MacroSpace(2).parse('0 0 0')
    assert learn.model.arch==arch==learn.model.net.arch

# --- repeat and resume ---------------------------------------------------------------------------------------------------

def test_seeds(make):
    def run(seed):
        learn = make(seed=seed, init=seed)
        with learn.no_bar(): learn.fit(2)
        return [list(map(float, o)) for o in learn.recorder.values], learn.derive(5)
    a, b, c = run(0), run(0), run(1)
    assert a==b and a[1].scores==b[1].scores and a[0]!=c[0] and a[1]!=c[1]

class Until(Callback):
    def __init__(self, epoch): self.until = epoch
    def before_epoch(self):
        if self.epoch==self.until: raise CancelFitException

def test_resume_is_exact(make, tmp_path):
    fit = lambda learn, **kw: learn.fit_restarts(2, 1, lr_max=.05, lr_min=.001, **kw)
    with make(dropout=.3).no_bar() as learn: fit(learn)
    with make(dropout=.3).no_bar() as first: fit(first, cbs=Until(2))
    first.model.arch = SPACE.parse('5 0 1 2 1 0')
    first.save_search(tmp_path/'s.safetensors')
    last = make(dropout=.3, init=7)
    last.load_search(tmp_path/'s.safetensors')
    assert last.search.trained==2 and last.model.arch==first.model.arch
    last.model.arch = None
    with last.no_bar(): fit(last, start_epoch=last.search.trained)
    assert same(state(last), state(learn)) 
    row = lambda l: list(map(float, l.recorder.values[-1][1:])) # fastai's training loss is smoothed since the last `fit`
    assert row(last)==row(learn)
    mom = lambda l: [l.opt.opt.state[p]['momentum_buffer'] for g in l.opt.param_lists for p in g if p in l.opt.opt.state]
    assert len(mom(last))==len(mom(learn))>0 and all(map(torch.equal, mom(last), mom(learn)))
    adam = lambda l: [v for s in l.search.reinforce.opt.state.values() for v in s.values()]
    assert len(adam(last))==len(adam(learn))>0 and all(map(torch.equal, adam(last), adam(learn)))
    assert float(last.search.reinforce.baseline.value)==float(learn.search.reinforce.baseline.value) and last.derive(4).scores==learn.derive(4).scores
    assert [o.name for o in tmp_path.iterdir() if 's.safe' in o.name]==['s.safetensors'] # no temporary file

class Evil:
    def __reduce__(self): return exec, ("import pathlib; pathlib.Path('evil').touch()",)

def test_a_bad_file_is_refused_and_changes_nothing(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learn, path = make(), tmp_path/'s'
    with pytest.raises(ValueError, match='fitted') as e: learn.save_search(path)
    assert one_line(e) and not path.exists()
    with learn.no_bar(): learn.fit(1)
    learn.save_search(path)
    raw, files = path.read_bytes(), {}
    for n in (0, 4, 100, len(raw)//2, len(raw)-1): files[f'first {n} bytes'] = raw[:n]
    files |= dict(noise=np.random.default_rng(0).bytes(5000), text=b'hello', pickle=pickle.dumps(Evil()), broken=raw[:8]+b'x'*50+raw[58:])
    for name,meta in dict(foreign=None, other=dict(a='b'), empty=dict(enas_nb='{}'), list=dict(enas_nb='[]'), null=dict(enas_nb='null'),
                          less=dict(enas_nb='{"dict": []}'), nojson=dict(enas_nb='{')).items():
        save_file(dict(a=torch.zeros(2)), tmp_path/'f', meta); files[name] = (tmp_path/'f').read_bytes()
    torch.save(Evil(), tmp_path/'f'); files['torch'] = (tmp_path/'f').read_bytes()
    for k,space in dict(larger=MacroSpace(4), fewer=MacroSpace(3, ops=MacroSpace.ops[:3])).items():
        other = make(space=space)
        with other.no_bar(): other.fit(1)
        other.save_search(tmp_path/'f'); files[k] = (tmp_path/'f').read_bytes()
    before, failed = state(learn), []
    for name,b in files.items():
        path.write_bytes(b)
        try: learn.load_search(path); failed.append(f'{name}: no error')
        except ValueError as e:
            if '\n' in str(e) or 's' not in str(e): failed.append(f'{name}: {e}')
        except Exception as e: failed.append(f'{name}: {type(e).__name__} {e}')
        if not same(before, state(learn)): failed.append(f'{name}: the weights have changed'); learn.model.load_state_dict(before)
    with pytest.raises(FileNotFoundError): learn.load_search(tmp_path/'nothing')
    assert not failed, failed
    assert not (tmp_path/'evil').exists()

# --- scores --------------------------------------------------------------------------------------------------------------

def test_derive(make):
    learn = make()
    with learn.no_bar(): learn.fit(1)
    seen, arch = {}, SPACE.parse('5 0 1 2 1 0')
    learn.model.arch = arch
    h = learn.model.net.register_forward_hook(lambda m, x, y: seen.setdefault(m.arch, []).append(x[0].clone()))
    best = learn.derive(8)
    h.remove()
    archs, scores = zip(*best.scores)
    assert isinstance(best, Derived) and isinstance(best, Arch) and best==archs[0] and len(set(archs))==len(archs)<=8
    assert list(scores)==sorted(scores, reverse=True) and all(0<=o<=1 for o in scores)
    assert set(seen)==set(archs) and learn.model.arch==best and 0<best.sure<=1
    first = torch.cat(seen[best])
    assert all(torch.equal(torch.cat(o), first) for o in seen.values()) # the same images for all: `select`, once
    assert images(learn.dls.valid).total()==len(first)
    assert learn.derive(8).scores==best.scores and learn.score_archs([best]).tolist()==[scores[0]]
    assert len(learn.derive(1).scores)==1
    with pytest.raises(ValueError, match='1 or more') as e: learn.derive(0)
    assert one_line(e)
    best.save(learn.path/'a.json')
    assert str(SPACE.parse(str(best)))==str(best) and hash(best)==hash(archs[0])

def test_score_batch_puts_mode_and_arch_back():
    net, batch = SharedMacroNet(SPACE, 1, 10, width=4), (torch.rand(4,1,8,8), torch.arange(4))
    a, b = SPACE.parse('0 0 1 0 1 1'), SPACE.parse('5 0 1 2 1 0')
    for training in (True, False):
        net.train(training); net.arch = a
        s = score_batch(net, [b, a, b], batch)
        assert s.shape==(3,) and s[0]==s[2] and not s.requires_grad and net.arch==a and net.training==training
        def bad(*args): assert not net.training and net.arch==b; raise ZeroDivisionError
        with pytest.raises(ZeroDivisionError): score_batch(net, [b], batch, bad)
        assert net.arch==a and net.training==training and all(m.training==training for m in net.modules())
        with pytest.raises(ValueError): score_batch(net, [MacroSpace(2).parse('0 0 0')], batch)
        assert net.arch==a and net.training==training

@pytest.mark.parametrize('bn_eval', ['batch','running','recalibrated'])
@pytest.mark.parametrize('training', [True, False])
def test_no_tensor_forgets_the_device(bn_eval, training):
    arch = MacroSpace(6).archs(MacroSpace(6).random(1))[0]
    with FakeTensorMode():
        with torch.device('cuda'):
            x = torch.empty(4, 1, 8, 8)
            shared = SharedMacroNet(MacroSpace(6), 1, 10, width=4, bn_eval=bn_eval)
            nets = [shared, *(MacroNet(arch, 1, 10, width=4, skip=skip, sep=sep) for skip,sep in (('concat','separable'),('sum','full')))]
            if bn_eval=='recalibrated': shared.calibrate(torch.empty(6, 1, 8, 8))
        shared.arch = arch
        for net in nets: assert net.train(training)(x).device.type=='cuda'
        hits = lambda p, y: (p.argmax(1)==y).float().mean() # fastai's `accuracy` makes tensors of its own class, which fake ones cannot be
        assert score_batch(shared, [arch], (x, torch.zeros(4, dtype=torch.long, device='cuda')), hits).device.type=='cuda'

# --- a step costs its path, what children share is computed once ---------------------------------------------------------

def relatives(space, n):
    "Architectures that begin alike: the first, then ones that leave it at some decision; two are equal."
    first, *others = space.archs(space.random(n, seed=0))
    cut = lambda i: len(first.code)*i//n
    return [Arch(space, [*first.code[:cut(i)], *o.code[cut(i):]]) for i,o in enumerate(others, 1)] + [first, first]

@pytest.mark.parametrize('bn_eval', ['batch','running','recalibrated'])
@pytest.mark.parametrize('space', [MacroSpace(6), MicroSpace(2)], ids=['macro','micro'])
def test_scores_of_relatives_are_those_of_each_alone(space, bn_eval):
    torch.manual_seed(0)
    net, archs, runs = space.shared_net(1, 10, width=4, bn_eval=bn_eval), relatives(space, 12), []
    x, y = torch.rand(16,1,9,9), torch.arange(16)%10
    if bn_eval=='recalibrated': net.calibrate(torch.rand(12,1,9,9))
    logits = lambda out, y: out.double().log_softmax(1).mul(torch.arange(1,11)).sum() # one that tells any two outputs apart
    net.stem.register_forward_hook(lambda *_: runs.append('stem'))
    net.head.register_forward_hook(lambda *_: runs.append('head'))
    alone = torch.cat([score_batch(net, [o], (x, y), logits) for o in archs])
    runs.clear()
    random.Random(0).shuffle(order := list(range(len(archs))))
    together = score_batch(net, [archs[i] for i in order], (x, y), logits)
    assert torch.equal(together, alone[order]) and len(alone.unique())>6
    assert Counter(runs)==dict(stem=1, head=len(set(archs))) and net.trail is None

def test_other_images_or_none_to_remember_begin_anew():
    net = SharedMacroNet(SPACE, 1, 10, width=4).eval()
    net.arch = SPACE.parse('0 0 1 0 1 1')
    x, y = torch.rand(2, 4,1,8,8)
    with torch.no_grad():
        want = net(x), net(y)
        with net.remember(): got = net(x), net(y)
        with pytest.raises(ZeroDivisionError), net.remember(): net(x); 1/0
    assert net.trail is None and all(map(torch.equal, want, got))

def test_a_step_does_not_walk_through_the_modules(make, monkeypatch):
    seen, walk = [], nn.Module.named_modules
    def counted(self, *args, **kw):
        for o in walk(self, *args, **kw): seen.append(o); yield o
    class Count(Callback):
        order = SearchCallback.order-1 # before θ's turn
        def before_train(self): seen.clear()
        def after_train(self): self.walked = len(seen)
    learn = make(cbs=Count(), search=dict(clip=5.))
    monkeypatch.setattr(nn.Module, 'named_modules', counted)
    monkeypatch.setattr(nn.Module, 'zero_grad', lambda *_, **__: 1/0)
    with learn.no_bar(): learn.fit(1)
    assert learn.count.walked <= 4*10 # batches; fastai asks for the first parameter's device, three modules deep

def test_theta_switches_modes_once_for_all_its_steps(make, monkeypatch):
    calls, learn = [], make(controller=dict(steps=5))
    class Watch(Callback):
        order = SearchCallback.order-1
        def after_train(self): monkeypatch.setattr(learn.model.net, 'train', lambda mode=True: (calls.append(mode), type(learn.model.net).train(learn.model.net, mode))[1])
    class After(Callback):
        order = 90
        def after_train(self): self.learn.modes = [m.training for m in learn.model.net.modules()]; monkeypatch.undo()
    with learn.no_bar(): learn.fit(1, cbs=[Watch(), After()])
    assert calls==[False, True] and all(learn.modes)

@pytest.mark.parametrize('ni,nf', [(1,2), (3,5), (12,12), (16,33)])
def test_factorized_reduction_is_two_1x1_convolutions(ni, nf):
    torch.manual_seed(0)
    m = FactorizedReduction(ni, nf).eval()
    for h,w in ((8,8), (7,8), (8,5), (1,1), (9,9)):
        x = torch.randn(4, ni, h, w)
        shifted = F.pad(x, (0,1,0,1))[:,:,1::2,1::2]
        a, b = F.conv2d(x[:,:,::2,::2].contiguous(), m.even.weight), F.conv2d(shifted.contiguous(), m.odd.weight)
        want = m.bn(torch.cat([a, b[:,:,:a.shape[2],:a.shape[3]]], 1))
        assert (m(x)-want).abs().max() <= 4e-7*want.abs().max()

@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('ni,nf', [(1,2), (3,5), (12,12)])
def test_gradients_of_a_factorized_reduction(ni, nf, layout):
    "Those of two slices, in the layout of the images; torch's numerical ones, and those of gradients, too."
    torch.manual_seed(0)
    m = FactorizedReduction(ni, nf, bn_eval='batch').double()
    for h,w in ((8,8), (7,8), (1,1)):
        x = torch.randn(4, ni, h, w, dtype=torch.double).to(memory_format=layout).requires_grad_()
        y, ps = m(x), [x, *m.parameters()]
        padded = F.pad(x, (0, w%2, 0, h%2))
        plain = m.bn(torch.cat([F.conv2d(padded[:,:,::2,::2], m.even.weight), F.conv2d(padded[:,:,1::2,1::2], m.odd.weight)], 1))
        weigh = torch.randn_like(plain)
        for a,b in zip(*(torch.autograd.grad((o*weigh).sum(), ps, retain_graph=True) for o in (y, plain)), strict=True): torch.testing.assert_close(a, b)
        if h==w==8 and ni>1: assert torch.autograd.grad(y.sum(), x)[0].is_contiguous(memory_format=layout)
        with torch.no_grad(): torch.testing.assert_close(m(x), y)
    small = torch.randn(2, ni, 2, 2, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(_Grids.apply, small) and torch.autograd.gradgradcheck(_Grids.apply, small)

@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
def test_a_factorized_reduction_is_traced_and_transformed():
    "A trace, `torch.func` and several gradients at once see slices."
    m, x = FactorizedReduction(3, 4).eval(), torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(torch.jit.trace(m, x)(x), m(x))
    f = lambda x: m(x[None]).pow(2).sum()
    want = torch.autograd.grad(m(x.requires_grad_()).pow(2).sum(), x)[0]
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(f))(x), want)
    y = m(x).flatten()[:3]
    for a,b in zip(torch.autograd.grad(y, x, torch.eye(3), is_grads_batched=True, retain_graph=True)[0], y): torch.testing.assert_close(a, torch.autograd.grad(b, x, retain_graph=True)[0])

class Mirror(MacroSpace):
    "Another final network."
    name = 'mirror'
    def final_net(self, arch, n_in, n_out, **sizes): return nn.Linear(n_in, n_out)

@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(0, 99), st.sampled_from([{}, dict(skip='sum'), dict(sep='full'), dict(stem_stride=2, dropout=0.)]), st.integers(1, 3), st.booleans())
def test_parameters_that_are_counted_by_layers_are_those_of_the_network(n_layers, seed, sizes, n_in, own):
    ops = (*MacroSpace.ops[:3], Op('wide', lambda nf, bn: nn.Conv2d(nf, nf, 1), lambda nf, sep: nn.Conv2d(nf, nf, 7))) if own else MacroSpace.ops
    space = MacroSpace(n_layers, ops=ops)
    for arch in space.archs(space.random(3, seed=seed)):
        with torch.device('meta'): net = space.final_net(arch, n_in, 7, width=6, **sizes)
        assert count_params(arch, n_in, 7, width=6, **sizes)==(sum(p.numel() for p in net.parameters()), 0)

def test_a_final_network_of_ones_own_is_counted_as_it_is():
    arch, = Mirror(3).archs(Mirror(3).random(1))
    assert count_params(arch, 3, 7)==(28, 0)
    arch, = SPACE.archs(SPACE.random(1, seed=1)) # and the defaults of both ways are the same
    assert count_params(arch)==(sum(p.numel() for p in SPACE.final_net(arch, 3, 10).parameters()), 0)
    with pytest.raises(ValueError, match='skip'): count_params(SPACE.archs(SPACE.random(1))[0], skip='no')

# --- who trains ω, and when θ moves --------------------------------------------------------------------------------------

class TinyNet(nn.Module):
    "`TinySpace` without convolutions: each op a layer of its own for each node."
    arch = None
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(64, 12), nn.Linear(12, 10)
        self.nodes = nn.ModuleList([nn.ModuleDict({o: nn.Linear(12, 12) for o in TinySpace.ops}) for _ in range(3)])
    def forward(self, x):
        outs, code = [self.stem(x.flatten(1))], self.arch.code
        for i,ops in enumerate(self.nodes):
            source = code[2*i-1] if i else 0
            outs.append(ops[TinySpace.ops[code[2*i]]](outs[source]).relu())
        return self.head(outs[-1])

def words_dls():
    "Random words: 10 training windows."
    vocab, g = ['<eos>', '<unk>', *(f'w{i}' for i in range(28))], torch.Generator().manual_seed(0)
    words = lambda n: [vocab[i] for i in torch.randint(30, (n,), generator=g).tolist()]
    return lm_dls(words(401), words(400), words(200), vocab, bs=4, seq_len=10, device='cpu')

KINDS = ['macro', 'micro', 'recurrent', 'tiny']

def searcher(kind, tmp_path, controller={}, search={}, **kw):
    "A small search of a space by `robust`, changed."
    theta = dict(steps=2, n_archs=3, hidden=8, lr=.05) | controller
    torch.manual_seed(0)
    if kind=='recurrent':
        part = dict(width=6, epochs=4) | search
        learn = search_learner(words_dls(), RecurrentSpace(3), preset=robust[kind].override(controller=theta, search=part), path=tmp_path, **kw)
    else:
        space = dict(macro=MacroSpace(3), micro=MicroSpace(2), tiny=TinySpace())[kind]
        sizes = dict(macro=dict(width=4, n_layers=3), micro=dict(width=4, n_layers=1), tiny={})[kind]
        part = dict(bs=32, reward_bs=60, aux_weight=0.) | sizes | search
        net = dict(net=TinyNet()) if kind=='tiny' else {}
        p = robust.get(kind, robust['images']).override(controller=theta, search=part)
        learn = search_learner(digits_dls(bs=100, device='cpu'), space, preset=p, path=tmp_path, **net, **kw)
    learn.logger, learn.create_mbar = (lambda row: None), False
    return learn

def frequencies(space, archs):
    "How often each choice of each decision was taken."
    return [[sum(o.code[i]==c for o in archs) for c in range(step.choices)] for i,(step,_) in enumerate(space.slots)]

@pytest.mark.parametrize('kind', KINDS)
def test_fair_paths_train_every_choice_equally_often(kind, tmp_path):
    ev = Events()
    learn = searcher(kind, tmp_path, cbs=ev)
    learn.search.preset = learn.search.preset.override(search=dict(paths='fair')) # of `robust` for images
    space, n = learn.model.controller.space, len(learn.dls.train)
    with learn.no_bar(): learn.fit(2)
    ran = archs(ev, 'train')
    assert len(ran)==2*n and ran[:n]!=ran[n:]
    for epoch in (ran[:n], ran[n:]):
        for counts in frequencies(space, epoch): # a choice has one more where `n` is no multiple of their number
            assert sorted(counts)==sorted([n//len(counts)+(i<n%len(counts)) for i in range(len(counts))])
    for counts in frequencies(space, learn.search.omega_paths(60)): assert set(counts)=={60//len(counts)}
    assert learn.search.omega_paths(60)==learn.search.omega_paths(60) # a function of the seed and the epoch

ALL = ['policy', 'uniform', 'fair']
@pytest.mark.parametrize('paths,n,want', [
    *[(o, n, [o]*n) for o in ALL for n in (1, 3)],
    ((('fair', .5), ('policy', .5)), 4, ['fair']*2+['policy']*2), ((('fair', .5), ('policy', .5)), 3, ['fair']+['policy']*2),
    ((('uniform', .25), ('fair', .25), ('policy', .5)), 8, ['uniform']*2+['fair']*2+['policy']*4),
    ((('uniform', .7), ('policy', .3)), 10, ['uniform']*7+['policy']*3), ((('fair', 1/3), ('uniform', 1/3), ('policy', 1/3)), 3, ['fair','uniform','policy']),
    ((('uniform', .1), ('policy', .9)), 2, ['policy']*2)])
def test_phases_begin_at_their_epochs(paths, n, want, make, monkeypatch):
    assert [who_trains(paths, i, n) for i in range(n)]==want
    if n>4: return
    seen, sample = [], SearchCallback.paths
    for o in ('fair', 'random'):
        was = getattr(SearchSpace, o)
        monkeypatch.setattr(SearchSpace, o, lambda self, *a, o=o, was=was: (seen.append(dict(random='uniform').get(o, o)), was(self, *a))[1])
    monkeypatch.setattr(SearchCallback, 'paths', lambda self, role, n: (seen.append('policy') if role=='path' else None, sample(self, role, n))[1])
    learn = make(search=dict(paths=paths))
    with learn.no_bar(): learn.fit(n)
    assert seen==want

wrong_presets = {
    'paths':      (dict(search=dict(paths='all')),                            "allowed are 'policy', 'uniform', 'fair'"),
    'a phase':    (dict(search=dict(paths=(('fair', .5), ('all', .5)))),      "allowed are 'policy', 'uniform', 'fair'"),
    'sum':        (dict(search=dict(paths=(('fair', .5), ('policy', .4)))),   'sum 1'),
    'no phase':   (dict(search=dict(paths=())),                               'sum 1'),
    'share 0':    (dict(search=dict(paths=(('fair', 0.), ('policy', 1.)))),   'share'),
    'share -':    (dict(search=dict(paths=(('fair', -.5), ('policy', 1.5)))), 'share'),
    'n_omega':    (dict(search=dict(n_omega=0)),                              'n_omega is 0, allowed is 1 to 1000'),
    'credit':     (dict(controller=dict(credit='ranks')),                     "allowed are 'reward', 'rank'"),
}
@pytest.mark.parametrize('space', ['macro', 'micro', 'recurrent', 'images', 'text'])
@pytest.mark.parametrize('name', wrong_presets)
def test_a_preset_refuses_phases_that_cannot_be(name, space):
    d, match = wrong_presets[name]
    with pytest.raises(ValueError, match=match) as e: robust[space].override(**d)
    assert one_line(e)

def test_an_image_preset_refuses_unknown_rewards():
    with pytest.raises(ValueError, match="reward is 'acc', allowed are 'accuracy', 'loss'") as e: robust['macro'].override(search=dict(reward='acc'))
    assert one_line(e)

def test_theta_moves_once_at_the_end(make, events):
    learn = make(cbs=events, controller=dict(warmup=None), search=dict(n_omega=2))
    with learn.no_bar(): learn.fit(3)
    assert runs(events.log)==[('train',4), ('valid',2)]*2 + [('train',4), ('theta',6), ('valid',2)] # 2 steps for each of 3 epochs
    names = learn.recorder.metric_names[1:-1]
    rows  = [dict(zip(names, o)) for o in learn.recorder.values]
    for o in ('reward', 'entropy', 'baseline'): assert [math.isnan(r[o]) for r in rows]==[True, True, False]

def test_omega_is_frozen_while_theta_moves_at_the_end(make, monkeypatch):
    learn, seen, step = make(controller=dict(warmup=None), search=dict(n_omega=3)), [], Reinforce.step
    def watched(self, score, *args):
        def scored(codes):
            seen.append({k: v.clone() for k,v in learn.model.net.state_dict().items()})
            return score(codes)
        return step(self, scored, *args)
    monkeypatch.setattr(Reinforce, 'step', watched)
    with learn.no_bar(): learn.fit(4)
    assert len(seen)==8 and len(learn.search.earlier)==2
    kept = [*learn.search.earlier, learn.model.net.state_dict()] # of the last three epochs, in turn
    assert all(same(seen[i], kept[i%3]) for i in range(8)) and not any(same(kept[i], kept[j]) for i,j in ((0,1), (1,2), (0,2)))

PHASES = dict(paths=(('uniform', .25), ('fair', .5), ('policy', .25)), n_omega=3)
WHEN   = [None, 0, 2]
def by(warmup): # a policy that moves at the end cannot train ω
    return PHASES if warmup is not None else PHASES | dict(paths=(('uniform', .25), ('fair', .75)))

def rows(learn): return [list(map(float, o)) for o in learn.recorder.values]
def same_rows(a, b): return np.array_equal(a, b, equal_nan=True)
def equal_search(a, b):
    "Are two searches in the same state?"
    opt = lambda l: [v for s in l.search.reinforce.opt.state.values() for v in s.values()]
    return (same(state(a), state(b)) and len(a.search.earlier)==len(b.search.earlier) and all(map(same, a.search.earlier, b.search.earlier))
            and len(opt(a))==len(opt(b))>0 and all(map(torch.equal, opt(a), opt(b))) and a.search.stats==b.search.stats
            and float(a.search.reinforce.baseline.value)==float(b.search.reinforce.baseline.value) and a.derive(6).scores==b.derive(6).scores)

class StopIn(Callback):
    "Ctrl-C in the middle of an epoch's training."
    def __init__(self, epoch): self.at = epoch
    def after_batch(self):
        if self.training and (self.epoch, self.iter)==(self.at, 2): raise KeyboardInterrupt

@pytest.mark.parametrize('kind', ['macro', 'recurrent'])
@pytest.mark.parametrize('warmup', WHEN)
def test_phases_go_on_from_a_checkpoint(kind, warmup, tmp_path):
    def fit(name, *cbs):
        learn = searcher(kind, tmp_path, dict(warmup=warmup), by(warmup))
        with learn.no_bar(): learn.fit_preset(epochs=4, cbs=[Checkpoint(tmp_path/name, log=lambda o: None), *cbs])
        return learn
    whole = fit('whole')
    for epoch in (1, 3):
        with pytest.raises(KeyboardInterrupt): fit(f'night{epoch}', StopIn(epoch))
        assert equal_search(fit(f'night{epoch}'), whole)

@pytest.mark.parametrize('warmup', WHEN)
def test_phases_go_on_from_a_saved_search(warmup, make, tmp_path):
    new = lambda init=0: make(init=init, controller=dict(warmup=warmup), search=by(warmup))
    fit = lambda learn, **kw: learn.fit_restarts(1, 4, lr_max=.05, lr_min=.001, **kw)
    with new().no_bar() as whole: fit(whole)
    for epoch in (1, 3):
        with new().no_bar() as first: fit(first, cbs=Until(epoch))
        first.save_search(tmp_path/'s.safetensors')
        last = new(init=7)
        last.load_search(tmp_path/'s.safetensors')
        assert last.search.trained==epoch and len(last.search.earlier)==epoch-1
        with last.no_bar(): fit(last, start_epoch=epoch)
        assert equal_search(last, whole) and same_rows(rows(last)[-1][1:], rows(whole)[-1][1:])

@pytest.mark.parametrize('step', [0, 3])
def test_ctrl_c_while_theta_moves_at_the_end(step, tmp_path, monkeypatch):
    "The epoch before stays in its file, and the same line goes on from it."
    def fit(learn, name):
        with learn.no_bar(): learn.fit_preset(epochs=3, cbs=Checkpoint(tmp_path/name, log=lambda o: None))
        return learn
    whole = fit(searcher('macro', tmp_path), 'whole')
    learn, done, real = searcher('macro', tmp_path), [], Reinforce.step
    def stop(self, *args):
        if len(done)==step: raise KeyboardInterrupt
        done.append(1)
        return real(self, *args)
    monkeypatch.setattr(Reinforce, 'step', stop)
    with pytest.raises(KeyboardInterrupt): fit(learn, 'night')
    monkeypatch.undo()
    files = sorted((tmp_path/'night').iterdir())
    assert [o.name for o in files]==['00-00001.safetensors', '00-00002.safetensors']
    kept = read_state(files[-1])
    assert kept['fit']['epoch']==2 and dict(kept['cbs'])['search']['own']['trained']==2
    assert all(m.training for m in learn.model.net.modules()) and learn.model.path is None
    shutil.copytree(tmp_path/'night', tmp_path/'copy')
    assert equal_search(fit(searcher('macro', tmp_path), 'night'), whole) # by another Learner
    assert equal_search(fit(learn, 'copy'), whole) # and by the one that was stopped

@pytest.mark.parametrize('warmup', WHEN)
@pytest.mark.parametrize('fitted', [0, 3])
def test_lr_find_leaves_no_trace_of_several_omegas(warmup, fitted, make):
    def run(find):
        learn = make(controller=dict(warmup=warmup), search=by(warmup))
        with learn.no_bar():
            if fitted: learn.fit(fitted)
            before = [{k: v.clone() for k,v in o.items()} for o in learn.search.earlier]
            if find: learn.lr_find(num_it=10, show_plot=False, suggest_funcs=None)
            assert len(before)==len(learn.search.earlier)==max(0, min(2, fitted-1)) and all(map(same, before, learn.search.earlier))
            learn.fit(3)
        return learn
    a, b = run(False), run(True)
    assert equal_search(a, b) and same_rows(rows(a), rows(b))

# --- scores: metrics, batches, several ω ---------------------------------------------------------------------------------

def test_scores_over_several_omegas_are_the_mean_of_single_ones(make):
    learn = make(search=dict(n_omega=3))
    with learn.no_bar(): learn.fit(4)
    some, after = SPACE.archs(SPACE.random(5, seed=1)), state(learn)
    for metric in ('accuracy', 'loss', None):
        learn.search.earlier, kept = [], learn.search.earlier
        single, now = [], _weights(learn)
        for w in (*kept, now):
            learn.model.net.load_state_dict(w)
            single.append(learn.score_archs(some, metric=metric))
        learn.search.earlier = kept
        assert len(kept)==2 and torch.allclose(learn.score_archs(some, metric=metric), torch.stack(single).mean(0), atol=1e-6)
        assert not torch.allclose(single[0], single[-1]) and same(state(learn), after)

def _weights(learn): return {k: v.clone() for k,v in learn.model.net.state_dict().items()}

def by_hand(learn, arch, metric):
    "The mean of a metric over `select`."
    learn.model.net.eval(); learn.model.net.arch = arch
    batches = list(learn.dls.valid)
    with torch.no_grad(): parts = [(metric(learn.model.net(b[0].as_subclass(torch.Tensor)), b[1].as_subclass(torch.Tensor)).item(), len(b[1])) for b in batches]
    return sum(s*n for s,n in parts)/sum(n for _,n in parts)

def test_metrics_of_score_archs(make):
    learn, some = make(bn_eval='batch'), SPACE.archs(SPACE.random(4, seed=2))
    with learn.no_bar(): learn.fit(1)
    minus = lambda p, y: -F.cross_entropy(p, y)
    ones  = lambda p, y: (p.argmax(1)==1).float().mean()
    for metric,f in (('accuracy', accuracy), ('loss', minus), (ones, ones), (None, accuracy)):
        got = learn.score_archs(some, metric=metric)
        assert got.shape==(4,) and torch.allclose(got, torch.tensor([by_hand(learn, o, f) for o in some]), atol=1e-5)
    loss = make(search=dict(reward='loss', bn_eval='batch'))
    with loss.no_bar(): loss.fit(1)
    assert torch.allclose(loss.score_archs(some), loss.score_archs(some, metric='loss')) and (loss.score_archs(some)<0).all()
    for metric in ('acc', 'perplexity', ''):
        with pytest.raises(ValueError, match="allowed are a function of \\(predictions, targets\\), 'accuracy', 'loss'") as e: learn.score_archs(some, metric=metric)
        assert one_line(e)

def test_metrics_of_score_archs_on_text(tmp_path):
    learn = searcher('recurrent', tmp_path)
    with learn.no_bar(): learn.fit(1)
    some = learn.model.controller.space.archs(learn.model.controller.space.random(3, seed=2))
    assert (learn.score_archs(some, metric='loss')<0).all() and (learn.score_archs(some)>0).all() # 80/perplexity
    with pytest.raises(ValueError, match="'loss'") as e: learn.score_archs(some, metric='accuracy')
    assert one_line(e)

def test_batches_of_score_archs(make):
    sizes, some = [], SPACE.archs(SPACE.random(3, seed=2))
    def reward(p, y): sizes.append(len(y)); return accuracy(p, y)
    for reward_bs,bs,want in ((None, None, None), (None, 40, 40), (70, None, 70), (70, 40, 40)):
        learn = make(search=dict(reward_bs=reward_bs, n_omega=1), reward=reward)
        with learn.no_bar(): learn.fit(1)
        n, own = len(learn.dls.valid.dataset), learn.dls.valid.bs; sizes.clear()
        learn.score_archs(some, bs=bs)
        assert max(sizes)==(want or own) and sum(sizes)==3*n
        sizes.clear(); learn.derive(1)
        assert max(sizes)==(reward_bs or own) and learn.dls.valid.bs==own
    net = make(search=dict(bn_eval='batch')) # the statistics of a batch depend on its size
    with net.no_bar(): net.fit(1)
    assert not torch.allclose(net.score_archs(some, metric='loss', bs=20), net.score_archs(some, metric='loss', bs=120))

def rigged(learn, f):
    "Rewards of one's own for architectures: the Learner scores with them from now on."
    learn.search.reward = lambda p, y: torch.as_tensor(float(f(learn.model.net.arch, y)))

def test_derive_in_two_rounds(make):
    learn = make()
    with learn.no_bar(): learn.fit(1)
    sampled = list(dict.fromkeys(learn.search.paths('derive', 30)))
    place, seen = {o: i for i,o in enumerate(sampled)}, []
    assert len(sampled)>8
    def f(arch, y): # in the first round later ones are better, on all data earlier ones
        seen.append((arch, len(y)))
        return place[arch] if len(seen)<=len(sampled) else -place[arch]
    rigged(learn, f)
    best = learn.derive(30, finalists=4)
    assert {o for o,_ in seen[:len(sampled)]}==set(sampled) and {n for _,n in seen[:len(sampled)]}=={learn.dls.valid.bs} # one batch for all
    n = len(learn.dls.valid.dataset)
    assert Counter(o for o,_ in seen[len(sampled):])=={o: len(learn.dls.valid) for o in sampled[-4:]}
    assert sum(n for _,n in seen[len(sampled):])==4*n and [o for o,_ in best.scores]==sampled[-4:] and best==sampled[-4]==learn.model.arch
    for kw in (dict(finalists=0), dict(n=0)):
        with pytest.raises(ValueError, match='1 or more') as e: learn.derive(**kw)
        assert one_line(e)
    seen.clear()
    learn.derive(30, finalists=len(sampled)) # few enough: one round
    assert len(seen)==len(sampled)*len(learn.dls.valid)

def test_how_sure(make):
    learn = make()
    learn.dls.valid.bs = 5 # some 40 pieces
    with learn.no_bar(): learn.fit(1)
    sampled = list(dict.fromkeys(learn.search.paths('derive', 30)))
    gen = torch.Generator().manual_seed(0)
    noise = lambda: torch.randn(1, generator=gen).item()
    rigged(learn, lambda arch, y: 9*(arch==sampled[3]) + noise())
    best = learn.derive(30, finalists=5)
    assert best==sampled[3] and best.sure>.99
    for k in (2, 5): # equal networks cannot be told apart
        rigged(learn, lambda arch, y: float(y.sum()))
        best = learn.derive(30, finalists=k)
        assert len(best.scores)==k and best.sure==pytest.approx(1/k, abs=.05)
    learn.dls.valid.bs = len(learn.dls.valid.dataset)
    assert math.isnan(learn.derive(30).sure) # one piece says nothing
    learn.search.reward = accuracy
    assert 0<learn.derive(30).sure<=1 # images of one batch are several pieces

def test_size_in_derive(make):
    learn = make()
    with learn.no_bar(): learn.fit(1)
    n = lambda arch: sum(count_params(arch, 1, 10))
    sampled = list(dict.fromkeys(learn.search.paths('derive', 30)))
    place = {o: i for i,o in enumerate(sampled)}
    rigged(learn, lambda arch, y: place[arch])
    assert learn.derive(30)==learn.derive(30, size=0)==sampled[-1]
    for finalists in (5, 99): # both rounds know of it
        assert n(learn.derive(30, finalists, size=100.))==max(map(n, sampled)) and n(learn.derive(30, finalists, size=-100.))==min(map(n, sampled))
    few = learn.derive(30, 99, size=1e-3)
    assert few==sampled[-1] and [s for _,s in few.scores]==[place[o] for o,_ in few.scores] # scores stay scores

def told(f):
    "What a fit warns of θ."
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        f()
    return [str(o.message) for o in seen if 'θ' in str(o.message)]

@pytest.mark.parametrize('warmup', [0, None])
def test_a_warning_if_theta_has_hardly_moved(warmup, make):
    def fit(**controller):
        learn = make(controller=dict(warmup=warmup) | controller)
        likes = lambda arch, y: arch.code[0]==0 and arch.code[1]==0
        rigged(learn, likes)
        def run():
            with learn.no_bar(): learn.fit(2)
        return told(run), learn
    said, still = fit(lr=1e-6)
    assert len(said)==1 and 'hardly moved' in said[0] and f'of {still.search.most:.2f} nats' in said[0] and '\n' not in said[0]
    said, moved = fit(lr=.1, steps=60, n_archs=8, credit='rank', tanh_constant=5.)
    assert said==[] and moved.search.value('entropy') < .95*math.log(SPACE.size)
    assert fit(steps=0)[0]==[] # nobody wanted it to
    def look():
        with still.no_bar(): still.lr_find(num_it=5, show_plot=False, suggest_funcs=None)
    assert told(look)==[]
    said, _ = fit(warmup=9)
    assert len(said)==1 and 'θ has not moved' in said[0] and 'epoch 9 of ω, and 2 are trained' in said[0]

# --- recalibrated statistics ---------------------------------------------------------------------------------------------

@pytest.fixture(params=['macro', 'micro'])
def pair(request):
    "Two networks with the same weights, one recalibrated and one with the batch's statistics, and an architecture."
    space = dict(macro=MacroSpace(6), micro=MicroSpace(3))[request.param]
    torch.manual_seed(0)
    nets = [space.shared_net(1, 10, width=4, bn_eval=o) for o in ('recalibrated', 'batch')]
    for p in nets[0].parameters(): torch.nn.init.normal_(p, std=.3)
    nets[1].load_state_dict(nets[0].state_dict())
    for o in nets: o.eval().arch = space.archs(space.random(1, seed=3))[0]
    return nets

@torch.no_grad()
def test_recalibrated_predictions_are_an_images_own(pair):
    net, batch = pair
    seen, x = torch.rand(40,1,8,8), torch.rand(9,1,8,8)
    net.calibrate(seen)
    want = batch(seen)
    assert torch.allclose(net(seen), want, atol=1e-5) # by the statistics of those images
    together = net(x)
    assert together.shape==(9,10) and together.std(0).min()>1e-3
    for i in range(9): assert torch.allclose(net(x[i:i+1]), together[i:i+1], atol=1e-5)
    other = torch.cat([x[:3], 50*torch.rand(20,1,8,8)])
    assert torch.allclose(net(other)[:3], together[:3], atol=1e-5) and not torch.allclose(batch(other)[:3], batch(x)[:3], atol=1e-2)

def test_recalibrated_training_is_by_the_batch(pair):
    net, batch = pair
    net.calibrate(torch.rand(40,1,8,8))
    x = torch.rand(8,1,8,8)
    for o in pair: o.train()
    def run(o): torch.manual_seed(0); return o(x) # for dropout
    a, b = ((o[0] if isinstance(o, tuple) else o) for o in map(run, pair))
    assert a.shape==(8,10) and torch.allclose(a, b, atol=1e-6)

def test_recalibrated_statistics_go_along(pair, tmp_path):
    net, x = pair[0], torch.rand(5,1,8,8)
    net.calibrate(torch.rand(40,1,8,8))
    with torch.no_grad(): want = net(x)
    torch.save(net, tmp_path/'n'); again = torch.load(tmp_path/'n', weights_only=False)
    with torch.no_grad(): assert torch.equal(again(x), want)
    assert 'calibration' not in ' '.join(net.state_dict()) # weights fit those of another kind
    net(x)[0,0].backward() # gradients flow in evaluation, too
    double = net.to(torch.float64)
    with torch.no_grad(): assert torch.allclose(double(x.double()).float(), want, atol=1e-4)
    assert net.to('meta').calibration.device.type=='meta'

@pytest.mark.parametrize('kind', ['macro', 'micro'])
def test_recalibrated_searches_are_exported(kind, tmp_path):
    learn = searcher(kind, tmp_path, search=dict(bn_eval='recalibrated'))
    with learn.no_bar():
        learn.fit(1)
        learn.derive(3)
        x = learn.dls.valid.dataset.tensors[0][0]
        want = learn.predict(x)[2]
        preds = learn.get_preds()[0]
        for bs in (1, 7): assert torch.allclose(learn.get_preds(dl=learn.dls.valid.new(bs=bs))[0], preds, atol=1e-5)
    learn.export('r.pkl')
    loaded = load_learner(learn.path/'r.pkl')
    with loaded.no_bar(): assert torch.allclose(loaded.predict(x)[2], want, atol=1e-5)
    with learn.no_bar():
        learn.model.to('cpu'); assert torch.allclose(learn.predict(x)[2], want, atol=1e-5)

def test_recalibrated_search_on_loaders_of_ones_own(tmp_path):
    files = folder(tmp_path/'images')
    dls = ImageDataLoaders.from_folder(files, valid_pct=.4, seed=0, item_tfms=Resize(12), bs=8, num_workers=0, device='cpu')
    learn = search_learner(dls, SPACE, preset=preset(search=dict(bn_eval='recalibrated')), path=tmp_path)
    learn.logger = lambda row: None
    with learn.no_bar():
        learn.fit(1); learn.derive(2)
        assert learn.predict(files/'cat'/'0.png')[0] in ('cat','dog','eel')

# --- what was tried with other inputs ------------------------------------------------------------------------------------

def test_no_number_never_wins(make):
    learn = make()
    with learn.no_bar(): learn.fit(1)
    bad = learn.search.paths('derive', 6)[1]
    for value in (float('nan'), -float('inf')):
        learn.search.reward = lambda p, y: torch.tensor(value) if learn.model.net.arch==bad else accuracy(p, y)
        for kw in ({}, dict(size=.1), dict(finalists=2)):
            found = learn.derive(6, **kw)
            assert found!=bad and math.isfinite(found.scores[0][1]) and 0<found.sure<=1
    learn.search.reward = lambda p, y: torch.tensor(float('nan'))
    with pytest.raises(ValueError, match='no score is a finite number') as e: learn.derive(6)
    assert one_line(e)

def test_a_reward_is_tried_before_anything_is_trained(make):
    for reward,said in ((lambda p, y: p.argmax(1), 'one number for a batch'), (lambda p: p, 'cannot be computed'), (lambda p, y: p.nonsense, 'cannot be computed')):
        learn = make(reward=reward, controller=dict(warmup=None))
        before = state(learn)
        with learn.no_bar(), pytest.raises(ValueError, match=said): learn.fit(3)
        assert same(before, state(learn)) and learn.search.trained==0
    with pytest.raises(ValueError, match="reward is 'F1', allowed are a function") as e: make(reward='F1')
    assert one_line(e)
    learn = make(reward=lambda p, y: accuracy(p, y).item()) # a Python number will do
    with learn.no_bar(): learn.fit(1)
    assert make(reward='loss').search.reward is loss_reward and 0<=learn.search.value('reward')<=1

def test_no_more_omegas_than_the_preset_says(make, tmp_path):
    three = make(search=dict(n_omega=3))
    with three.no_bar(): three.fit(3)
    three.save_search(tmp_path/'s')
    assert len(three.search.earlier)==2
    one = make(search=dict(n_omega=1))
    with pytest.raises(ValueError, match='preset.search.n_omega is 3 in the file, 1 here'): one.load_search(tmp_path/'s')
    with one.no_bar(): one.fit(2)
    assert one.search.earlier==[]

def test_a_refused_file_changes_nothing_of_theta(make, tmp_path):
    other = make(opt_func=Adam)
    with other.no_bar(): other.fit(1)
    other.save_search(tmp_path/'s')
    learn = make()
    with learn.no_bar(): learn.fit(1)
    was, n = learn.search.reinforce, len(learn.search.reinforce.opt.state)
    with pytest.raises(ValueError): learn.load_search(tmp_path/'s')
    assert learn.search.reinforce is was and len(was.opt.state)==n>0

def test_equal_scores_share_a_rank_beside_size(make):
    learn = make()
    with learn.no_bar(): learn.fit(1)
    learn.search.reward = lambda p, y: torch.tensor(1.)
    found = learn.derive(10, size=.1)
    n = {o: sum(count_params(o, 1, 10)) for o,_ in found.scores}
    assert n[found]==max(n.values())
    for size in (float('nan'), float('inf'), 'big'):
        with pytest.raises(ValueError, match='size is'): learn.derive(10, size=size)

def test_one_finalist_is_not_sure(make):
    learn = make()
    with learn.no_bar(): learn.fit(1)
    assert math.isnan(learn.derive(30, finalists=1).sure) and learn.derive(30, finalists=3).sure>0
    for kw in (dict(n=0), dict(n=2.5), dict(finalists=0)):
        with pytest.raises((TypeError, ValueError)): learn.derive(**kw)

def test_derive_says_that_theta_has_not_moved(make):
    learn = make(controller=dict(warmup=None))
    with learn.no_bar():
        try: learn.fit(3, cbs=StopIn(1)) # Ctrl-C before its turn
        except KeyboardInterrupt: pass
    assert any('random search' in o for o in told(lambda: learn.derive(3)))

def test_a_loaded_learner_has_no_data_to_derive_with(make):
    learn = make()
    with learn.no_bar(): learn.fit(1)
    learn.derive(2); learn.export('x.pkl')
    loaded = load_learner(learn.path/'x.pkl')
    with pytest.raises(ValueError, match='no data to score on'): loaded.derive(2)
    assert loaded.model.arch==learn.model.arch

def test_robust_knows_all_ops_of_micro():
    space = MicroSpace(5)
    walk = Controller(space, robust['micro'].controller).sample(200)
    assert walk.entropy.mean() > .99*math.log(space.size)
    biased = replace(robust['micro'].controller, biased=True) # as it was: separable convolutions alone
    assert Controller(space, biased).sample(200).entropy.mean() < .8*math.log(space.size)

def test_derive_says_that_theta_is_another_one(make):
    learn = make(controller=dict(warmup=None, lr=.05))
    with learn.no_bar(): learn.fit(3, cbs=SaveModelCallback(monitor='train_loss', comp=np.greater)) # the first epoch is its best
    assert any('θ is another one' in o for o in told(lambda: learn.derive(3)))
    learn = make(controller=dict(warmup=None, lr=.05))
    with learn.no_bar(): learn.fit(3)
    assert not any('θ is another one' in o for o in told(lambda: learn.derive(3)))
