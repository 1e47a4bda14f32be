"Final networks and a supernet with its architecture set leave Python as they are: `torch.export` and full-graph compilation."
import pytest, torch

from enas_nb.macro import MacroNet, MacroSpace
from enas_nb.micro import MicroNet, MicroSpace
from enas_nb.recurrent import RecurrentLM, RecurrentSpace
from enas_nb.rnn_memory import StatelessLM
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

# --- a language model: (words, memory) -> (logits, memory) ------------------------------------------------------------------

def lm(shared=False, **kw):
    torch.manual_seed(0)
    space = RecurrentSpace(4)
    arch  = space.archs(space.random(1, seed=1))[0]
    if not shared: return RecurrentLM(arch, 30, width=16, **kw).eval()
    net = space.shared_net(30, 30, width=16, **kw); net.arch = arch
    return net.eval()

lms = dict(final=dict(), projected=dict(n_emb=8), shared=dict(shared=True))

@torch.no_grad()
@pytest.mark.parametrize('kind', lms)
def test_a_language_model_is_exported_with_its_memory_as_an_argument(kind):
    net, some = StatelessLM(lm(**lms[kind])), {0: torch.export.Dim('batch', min=2, max=512)}
    program = torch.export.export(net, (torch.randint(30, (4, 7)), torch.zeros(4, 16)), dynamic_shapes=(some, some)).module()
    words, memory = torch.randint(30, (3, 14)), torch.zeros(3, 16)
    net.net.reset()
    for x in words.split(7, 1):
        logits, memory = program(x, memory)
        assert (logits-net.net(x)[0]).abs().max()<1e-5

@torch.no_grad()
def test_a_language_model_compiles_as_one_graph():
    torch._dynamo.reset()
    net, args = StatelessLM(lm()), (torch.randint(30, (4, 7)), torch.randn(4, 16))
    for a,b in zip(torch.compile(net, fullgraph=True, backend='aot_eager')(*args), net(*args)): assert (a-b).abs().max()<1e-5

# --- ONNX ------------------------------------------------------------------------------------------------------------------

@torch.no_grad()
@pytest.mark.parametrize('name', ['macro', 'pools', 'shared_micro'])
def test_onnx_runs_elsewhere_and_says_the_same(name, tmp_path):
    ort, _, _ = (pytest.importorskip(o, reason="needs the extra `export`: pip install '.[export]'") for o in ('onnxruntime', 'onnx', 'onnxscript'))
    torch.manual_seed(0)
    net, batch = nets[name]().eval(), torch.export.Dim('batch', min=1, max=512)
    torch.onnx.export(net, (torch.randn(2, 3, 35, 35),), tmp_path/'n.onnx', dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
    run, x = ort.InferenceSession(tmp_path/'n.onnx'), torch.randn(5, 3, 35, 35)
    said = torch.from_numpy(run.run(None, {run.get_inputs()[0].name: x.numpy()})[0])
    assert torch.allclose(said, logits(net(x)), atol=1e-5, rtol=1e-4)

@torch.no_grad()
def test_onnx_of_a_language_model(tmp_path):
    ort, _, _ = (pytest.importorskip(o, reason="needs the extra `export`: pip install '.[export]'") for o in ('onnxruntime', 'onnx', 'onnxscript'))
    net, batch = StatelessLM(lm()), torch.export.Dim('batch', min=1, max=512)
    torch.onnx.export(net, (torch.randint(30, (2, 7)), torch.zeros(2, 16)), tmp_path/'n.onnx', dynamo=True, dynamic_shapes=({0: batch}, {0: batch}), verbose=False)
    run, words = ort.InferenceSession(tmp_path/'n.onnx'), torch.randint(30, (5, 7))
    x, h = (o.name for o in run.get_inputs())
    for got,ours in zip(run.run(None, {x: words.numpy(), h: torch.ones(5, 16).numpy()}), net(words, torch.ones(5, 16))):
        assert torch.allclose(torch.from_numpy(got), ours, atol=1e-5, rtol=1e-4)
