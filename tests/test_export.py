"Final networks and a supernet with its architecture set leave Python as they are: `torch.export` and full-graph compilation."
import pytest, torch

from enas_nb.macro import MacroNet, MacroSpace
from enas_nb.micro import MicroNet, MicroSpace
from enas_nb.space import Arch

pytestmark = pytest.mark.filterwarnings('ignore')

def macro(): space = MacroSpace(6); return MacroNet(space.archs(space.random(1, seed=1))[0], 3, 10, width=8)
def shared_macro():
    space = MacroSpace(6); net = space.shared_net(3, 10, width=8)
    net.arch = space.archs(space.random(1, seed=2))[0]
    return net
def micro(op=None):
    space = MicroSpace(3)
    code = space.random(1, seed=1)[0].tolist() if op is None else [op if i%2 else 0 for i in range(space.length)]
    return MicroNet(Arch(space, code), 3, 10, n_layers=2, width=8, aux=False)
def shared_micro():
    space = MicroSpace(3); net = space.shared_net(3, 10, n_layers=2, width=8)
    net.arch = space.archs(space.random(1, seed=2))[0]
    return net

nets = dict(macro=macro, micro=micro, pools=lambda: micro(3), averages=lambda: micro(2), shared_macro=shared_macro, shared_micro=shared_micro)

@pytest.fixture(params=nets)
def net(request):
    torch.manual_seed(0)
    return nets[request.param]().eval()

def logits(o): return o[0] if isinstance(o, tuple) else o

@torch.no_grad()
@pytest.mark.parametrize('side', [32, 35])
def test_an_exported_network_gives_the_same_logits_at_another_batch_size(net, side):
    some = dict(dynamic_shapes=({0: torch.export.Dim('batch', min=2, max=512)},))
    program, x = torch.export.export(net, (torch.randn(4, 3, side, side),), **some), torch.randn(7, 3, side, side)
    assert (logits(program.module()(x))-logits(net(x))).abs().max()<1e-5

@torch.no_grad()
def test_a_network_compiles_as_one_graph(net):
    torch._dynamo.reset()
    x = torch.randn(4, 3, 32, 32)
    said = torch.compile(net, fullgraph=True, backend='aot_eager')(x)
    assert (logits(said)-logits(net(x))).abs().max()<1e-5
