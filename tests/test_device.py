"""Networks, searches and retrainings on the device that `ENAS_NB_DEVICE` names (`make gpu`), beside the CPU: the same numbers, and few waits.

Without that variable the device is the CPU, so that these tests are tested themselves."""
import os, sys
from collections import Counter
import pytest, torch
from fastai.callback.core import Callback
from fastai.torch_core import set_seed
from torch.overrides import TorchFunctionMode

from enas_nb.all import *

DEVICE = torch.device(os.environ.get('ENAS_NB_DEVICE') or 'cpu')
TOL = 1e-4 if DEVICE.type=='cpu' else 2e-2 # a GPU may round products to TF32
pytestmark = pytest.mark.filterwarnings('ignore')
SPACES = dict(macro=MacroSpace(4), micro=MicroSpace(3), recurrent=RecurrentSpace(4))

def batch(name):
    g = torch.Generator().manual_seed(0)
    if name=='recurrent': return torch.randint(50, (8, 7), generator=g), torch.randint(50, (8, 7), generator=g)
    return torch.randn(8, 3, 32, 32, generator=g), torch.randint(10, (8,), generator=g)
def nets(name):
    space = SPACES[name]
    arch, sizes, n = space.archs(space.random(1, seed=3))[0], dict(width=16), (50, 50) if name=='recurrent' else (3, 10)
    shared = space.shared_net(*n, **sizes); shared.arch = arch
    return dict(shared=shared, final=space.final_net(arch, *n, **sizes))
def loss(net, x, y):
    out = net(x); out = out[0] if isinstance(out, tuple) else out
    return torch.nn.functional.cross_entropy(out.flatten(0, -2), y.flatten())

@pytest.mark.parametrize('kind', ['shared', 'final'])
@pytest.mark.parametrize('name', SPACES)
def test_the_same_loss_and_gradient_as_on_the_cpu(name, kind):
    set_seed(0)
    net, said = nets(name)[kind], []
    for o in net.modules():
        if isinstance(o, torch.nn.Dropout): o.p = 0.
    if hasattr(net, 'drop_path'): net.drop_path = 0.
    for device in ('cpu', DEVICE):
        net.to(device).zero_grad()
        if hasattr(net, 'reset'): net.reset()
        value = loss(net, *(o.to(device) for o in batch(name))); value.backward()
        said.append((value.item(), {k: p.grad.cpu() for k,p in net.named_parameters() if p.grad is not None}))
    (a, ga), (b, gb) = said
    assert b==pytest.approx(a, rel=TOL) and ga.keys()==gb.keys()
    size = max(o.abs().max() for o in ga.values())
    assert all((ga[k]-gb[k]).abs().max() <= 10*TOL*size for k in ga)

class Waits(TorchFunctionMode):
    "Counts calls that bring numbers from the device to the CPU. Where the device is a CPU, what is done on CPUs only is left out: an optimiser's count, looks at targets and at θ."
    names = {'item', 'tolist', 'cpu', 'numpy', '__bool__', '__float__', '__int__', '__index__', 'nonzero'}
    def __init__(self): super().__init__(); self.count = Counter()
    def __torch_function__(self, f, types, args=(), kwargs=None):
        name, at = getattr(f, '__name__', ''), sys._getframe(1).f_globals.get('__name__', '')
        if name in self.names and isinstance(args[0], torch.Tensor) and args[0].device.type==DEVICE.type and not (DEVICE.type=='cpu' and at.startswith(('torch.optim', 'enas_nb.fused', 'enas_nb.controller'))): self.count[name] += 1
        return f(*args, **(kwargs or {}))

class Windows(Callback):
    "How many waits there are in each batch of ω, and in each step of θ."
    order = 1000
    def __init__(self, waits): self.waits, self.omega, self.theta, self.at = waits, [], [], 0
    def _now(self): n, self.at = self.waits.count.total()-self.at, self.waits.count.total(); return n
    def before_batch(self): self.at = self.waits.count.total()
    def after_batch(self):
        if self.training: self.omega.append(self._now())
    def after_train(self): self.at = self.waits.count.total()
    def after_theta(self, i, n): self.theta.append(self._now())

def text(): words = [f'w{i*i%17}' for i in range(3000)]; return lm_dls(words, words[:900], bs=8, seq_len=10, device=DEVICE)
def searching(name, **kwargs):
    set_seed(0)
    space = SPACES[name]
    preset = space.presets['robust'].override(controller=dict(steps=4, warmup=0, n_archs=6))
    if name=='recurrent': return search_learner(text(), space, preset=preset, width=16, **kwargs)
    g = torch.Generator().manual_seed(0)
    x = torch.randint(256, (300, 3, 16, 16), generator=g).to(torch.uint8)
    dls = images_dls((x[:160], torch.arange(160)%10), (x[160:], torch.arange(140)%10), [*map(str, range(10))], bs=32, device=DEVICE)
    return search_learner(dls, space, preset=preset, width=8, **(dict(n_layers=1, aux=False) if name=='micro' else {}), **kwargs)

@pytest.mark.parametrize('name', SPACES)
def test_a_step_of_omega_never_waits_and_one_of_theta_twice(name):
    "θ's step brings down the architectures that were drawn, and whether all rewards are finite: one wait each, however many architectures."
    learn, waits = searching(name), Waits()
    cb = Windows(waits)
    with learn.no_bar(), learn.no_logging(), waits: learn.fit(2, cbs=cb)
    assert len(cb.theta)==8 and max(cb.theta[1:4]+cb.theta[5:])<=2, cb.theta
    assert len(cb.omega)>8 and max(cb.omega)==0, cb.omega

@pytest.mark.parametrize('half', ['to_fp32', 'to_bf16', 'to_fp16'])
@pytest.mark.parametrize('name', SPACES)
def test_search_save_load_derive_retrain(name, half, tmp_path):
    if half=='to_fp16' and DEVICE.type!='cuda': pytest.skip('half precision needs a CUDA device')
    learn = getattr(searching(name), half)()
    with learn.no_bar(), learn.no_logging():
        learn.fit_preset(epochs=2); learn.save_search(tmp_path/'s.safetensors')
        arch = learn.derive(5)
        again = getattr(searching(name), half)(); again.load_search(tmp_path/'s.safetensors')
        assert again.derive(5)==arch
        final = getattr(arch_learner(learn.dls, arch, width=8, **(dict(n_layers=2, aux=False) if name=='micro' else {})), half)()
        final.fit(1)
    assert all(p.device.type==DEVICE.type and p.isfinite().all() for p in [*learn.model.parameters(), *final.model.parameters()])
    assert all(map(lambda v: v==v, final.recorder.values[-1]))
