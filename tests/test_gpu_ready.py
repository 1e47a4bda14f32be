"""No tensor is made on the wrong device: networks, losses and steps of θ run on a CUDA device that torch only imagines (`FakeTensorMode`).

Two stand-ins, since there is no device: fake LSTM cells refuse `bias=False`, and autograd's engine asks for a real context, so gradients are zeros."""
from contextlib import contextmanager
import pytest, torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from enas_nb import fused
from enas_nb.controller import Controller
from enas_nb.macro import MacroSpace
from enas_nb.micro import MicroSpace
from enas_nb.presets import released, robust
from enas_nb.recurrent import RecurrentSpace
from enas_nb.reinforce import Reinforce, loss_reward, ppl_reward
from enas_nb.rewards import score_batch
from enas_nb.search import Supernet

pytestmark = pytest.mark.filterwarnings('ignore')
SPACES = dict(macro=MacroSpace(6), micro=MicroSpace(3), recurrent=RecurrentSpace(4))

def lstm_cell(x, state, w_x, w_h, *bias):
    "An LSTM cell of torch's operations."
    i, f, g, o = (F.linear(x, w_x)+F.linear(state[0], w_h)).chunk(4, 1)
    c = f.sigmoid()*state[1] + i.sigmoid()*g.tanh()
    return o.sigmoid()*c.tanh(), c

@contextmanager
def imagined(monkeypatch):
    def backward(self, *args, **kwargs): pass
    monkeypatch.setattr(torch, 'lstm_cell', lstm_cell)
    monkeypatch.setattr(torch.Tensor, 'backward', backward)
    monkeypatch.setattr(fused, '_spare', {}) # its memory is of an earlier imagination
    with FakeTensorMode(): yield

def there(make, *args):
    "What `make` builds, on the device; what runs later gets no default device, so a tensor made without one is found."
    with torch.device('cuda'): return make(*args)

def batch(name):
    return ((torch.randint(50, (4, 7)),)*2 if name=='recurrent' else (torch.randn(4, 3, 32, 32), torch.randint(10, (4,))))
def shared(name, space): return space.shared_net(50, 50, width=16) if name=='recurrent' else space.shared_net(3, 10, width=8)
def final(name, space, arch): return space.final_net(arch, 50, 50, width=16) if name=='recurrent' else space.final_net(arch, 3, 10, width=8)
def loss(out, y):
    out = out[0] if isinstance(out, tuple) else out
    return F.cross_entropy(out.flatten(0, -2), y.flatten())

@pytest.mark.parametrize('training', [True, False], ids=['training', 'evaluation'])
@pytest.mark.parametrize('name', SPACES)
def test_forward_and_loss(name, training, monkeypatch):
    space = SPACES[name]
    archs = space.archs(space.random(6, seed=0))
    with imagined(monkeypatch):
        x, y = there(batch, name)
        net  = there(shared, name, space).train(training)
        for net.arch in archs: assert loss(net(x), y).device.type=='cuda'
        for arch in archs: assert loss(there(final, name, space, arch).train(training)(x), y).device.type=='cuda'

@pytest.mark.parametrize('preset', ['released', 'robust'])
@pytest.mark.parametrize('name', SPACES)
def test_a_step_of_theta(name, preset, monkeypatch):
    space  = SPACES[name]
    preset = space.presets[preset].override(controller=dict(n_archs=3))
    archs  = space.archs(space.random(3, seed=0))
    with imagined(monkeypatch):
        model  = Supernet(there(shared, name, space), there(Controller, space, preset.controller))
        theta  = Reinforce(model.controller, preset.controller)
        metric = ppl_reward if name=='recurrent' else loss_reward
        def score(codes): # fake codes have no numbers, so that they are no architectures
            assert codes.device.type=='cuda' and codes.shape==(preset.controller.n_archs, space.length)
            return score_batch(model.net, archs, there(batch, name), metric)
        said = theta.step(score, None)
        assert all(v.device.type=='cuda' for v in said.values())
