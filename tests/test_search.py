"A search is a plain fastai `Learner`: each promise of the design about ω and θ taking turns, tried."
import pickle, random
from collections import Counter

import matplotlib; matplotlib.use('Agg')
import numpy as np, pytest, torch
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.progress import CSVLogger
from fastai.callback.training import GradientClip
from fastai.data.core import DataLoaders
from fastai.learner import load_learner
from fastai.metrics import accuracy
from fastai.optimizer import Adam
from fastai.text.data import LMDataLoader
from fastai.vision.augment import Resize, aug_transforms
from fastai.vision.data import ImageDataLoaders
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from enas_nb.data import digits_dls
from enas_nb.layers import FactorizedReduction
from enas_nb.macro import MacroNet, SharedMacroNet
from enas_nb.presets import paper, released
from enas_nb.reinforce import Reinforce
from enas_nb.retrain import arch_learner
from enas_nb.search import Derived, SearchCallback, pick_preset, score_batch, search_learner
from enas_nb.space import Arch
from enas_nb.macro import MacroSpace
from enas_nb.micro import MicroSpace

SPACE = MacroSpace(3)

def preset(controller={}, search={}):
    "Numbers for a search of less than a second."
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
    assert list(row) == ['train_loss','valid_loss','accuracy','reward','entropy','baseline'] and np.isfinite(list(row.values())).all()
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
    assert len(preds)==len(learn.dls.valid.dataset) and accuracy(preds, targs).item()==pytest.approx(acc) and len(theta_)==3
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
    assert head.split(',') == ['epoch','train_loss','valid_loss','accuracy','reward','entropy','baseline','time'] and len(rows)==2
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

@pytest.mark.parametrize('bn_eval', ['batch','running'])
@pytest.mark.parametrize('training', [True, False])
def test_no_tensor_forgets_the_device(bn_eval, training):
    arch = MacroSpace(6).archs(MacroSpace(6).random(1))[0]
    with FakeTensorMode():
        with torch.device('cuda'):
            x = torch.empty(4, 1, 8, 8)
            shared = SharedMacroNet(MacroSpace(6), 1, 10, width=4, bn_eval=bn_eval)
            nets = [shared, *(MacroNet(arch, 1, 10, width=4, skip=skip, sep=sep) for skip,sep in (('concat','separable'),('sum','full')))]
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

@pytest.mark.parametrize('bn_eval', ['batch','running'])
@pytest.mark.parametrize('space', [MacroSpace(6), MicroSpace(2)], ids=['macro','micro'])
def test_scores_of_relatives_are_those_of_each_alone(space, bn_eval):
    torch.manual_seed(0)
    net, archs, runs = space.shared_net(1, 10, width=4, bn_eval=bn_eval), relatives(space, 12), []
    x, y = torch.rand(16,1,9,9), torch.arange(16)%10
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
