"Recurrent networks: devices, precision, the memory, saved searches, and perplexity on Penn Treebank."
import math, pickle, re
from pathlib import Path
import pandas as pd, pytest, torch, torch.nn.functional as F
from fastai.callback.rnn import RNNRegularizer
from fastai.callback.training import GradientClip
from fastai.data.block import DataBlock
from fastai.data.external import fastai_path
from fastai.data.transforms import ColReader, RandomSplitter
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import Perplexity, accuracy
from fastai.text.core import BaseTokenizer
from fastai.text.data import TextBlock
from fastai.text.models.core import get_language_model
from fastai.text.models.awdlstm import AWD_LSTM, awd_lstm_lm_config
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from enas_nb import fused, recurrent
from enas_nb.fused import WordLoss, decode, word_loss
from enas_nb.presets import released
from enas_nb.recurrent import RecurrentLM, RecurrentSpace, RNNode, SharedRecurrentLM
from enas_nb.reinforce import ppl_reward
from enas_nb.retrain import arch_learner
from enas_nb.rewards import score_batch
from enas_nb.search import search_learner
from enas_nb.space import Op

from enas_nb.own_data import file_dls
from enas_nb.text import evaluate_ppl, lm_dls, ptb_dls, tokens
from enas_nb.steady import NTASGD

space = RecurrentSpace(5)
a, b = space.archs(space.random(2, seed=3))

def text_dls(n=2000, words=40):
    g = torch.Generator().manual_seed(0)
    draw = lambda n: [f'w{i}' for i in torch.randint(words, (n,), generator=g).tolist()]
    return lm_dls(draw(n), draw(n//2), draw(n//2), bs=4, seq_len=10, device='cpu')

@pytest.mark.parametrize('bn', ['all', 'output', None])
@pytest.mark.parametrize('train', [True, False])
def test_no_tensor_is_made_on_another_device(bn, train):
    with FakeTensorMode(allow_non_fake_inputs=False):
        with torch.device('cuda'): net = SharedRecurrentLM(space, 50, width=8, bn=bn, hidden_p=.1, input_p=.1, output_p=.1, embed_p=.1, weight_p=.1).train(train)
        net.arch = a
        for _ in range(2): logits, raw, dropped = net(torch.randint(50, (3, 7), device='cuda')) # the second goes on
        assert {o.device.type for o in (logits, raw, dropped, net.hidden[1])} == {'cuda'}

def test_mixed_precision():
    "The cell takes the type that the word's product has."
    torch.manual_seed(0)
    net = RecurrentLM(a, 50, width=16)
    x = torch.randint(50, (3, 7))
    exact = net(x)[0]; net.reset()
    with torch.autocast('cpu', torch.bfloat16): half = net(x)[0]
    half.float().sum().backward()
    assert net.ws[0].grad.isfinite().all() and (half.float()-exact).abs().max() < .02

def test_second_backward_is_refused():
    out = RecurrentLM(a, 50, width=8)(torch.randint(50, (2, 4)))[0].sum()
    out.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match='second backward pass'): out.backward()

def test_scoring_leaves_the_memory_as_it_was():
    torch.manual_seed(0)
    net = SharedRecurrentLM(space, 50, width=8).train()
    x, y = torch.randint(50, (2, 3, 6))
    net.arch = a; net(x)
    hidden = net.hidden
    first = score_batch(net, [a, b], (x, y), ppl_reward)
    assert net.hidden is hidden and net.arch is a and net.training
    assert torch.equal(first.flip(0), score_batch(net, [b, a], (x, y), ppl_reward)) # nothing goes from one to the next

def test_a_text_search_goes_on_from_a_file(tmp_path):
    dls = text_dls()
    p = released['recurrent'].override(controller=dict(steps=2, n_archs=3), search=dict(bn=None, bs=4, lr=.1))
    def fresh(): torch.manual_seed(1); return search_learner(dls, space, preset=p, width=8, seed=2)
    whole, part, rest = fresh(), fresh(), fresh()
    torch.manual_seed(5) # dropout
    with whole.no_bar(), whole.no_logging(): whole.fit(3)
    torch.manual_seed(5)
    with part.no_bar(), part.no_logging(): part.fit(2)
    part.save_search(tmp_path/'s.safetensors')
    rest.load_search(tmp_path/'s.safetensors')
    with rest.no_bar(), rest.no_logging(): rest.fit(3, start_epoch=2)
    for x,y in zip(whole.model.state_dict().values(), rest.model.state_dict().values()): assert torch.equal(x, y)
    assert whole.recorder.metric_names[3:-1]==['median_ppl', 'reward', 'entropy', 'baseline', 'alarms', 'skipped']

def test_perplexity_of_fastais_own_model():
    torch.manual_seed(0)
    net = get_language_model(AWD_LSTM, 60, config=awd_lstm_lm_config | dict(emb_sz=12, n_hid=16, n_layers=2)).eval()
    text = torch.randint(60, (700,))
    assert evaluate_ppl(net, text, rows=6, warm=50).ppl == pytest.approx(evaluate_ppl(net, text, rows=1).ppl, rel=1e-3)

def test_perplexity_on_real_text_agrees_with_word_after_word():
    if not (fastai_path('data')/'ptb'/'ptb.test.txt').is_file(): pytest.skip('Penn Treebank is not on this machine')
    dls = ptb_dls(bs=8, n_train=20_000, device='cpu')
    torch.manual_seed(0)
    net = RecurrentLM(a, 10_000, width=16, init=.3)
    text = tokens(dls, 'test')[:4000]
    score = evaluate_ppl(net, text, rows=8)
    assert score.n==3999 and score.ppl == pytest.approx(evaluate_ppl(net, text, rows=1, seq_len=1).ppl, rel=1e-3)

def test_the_readmes_lines_for_text():
    "The README's block on text, smaller."
    readme = (Path(__file__).parents[1]/'README.md').read_text(encoding='utf-8')
    code = next(o for o in re.findall(r'```python\n(.*?)```', readme, re.S) if 'ptb_dls' in o)
    for a,b in (('ptb_dls(bs=64)', 'docs_dls(bs=20, n_train=10_000, max_vocab=100)'),
                ('RecurrentSpace(12))', "RecurrentSpace(12), preset=RecurrentSpace.presets['robust'].override(controller=dict(steps=1)), width=8)"),
                ('arch_learner(dls, arch)', 'arch_learner(dls, arch, width=8)'), ('fit_preset()', 'fit_preset(epochs=1)'), ('evaluate_ppl', 'score = evaluate_ppl')):
        assert a in code; code = code.replace(a, b)
    exec(code, d := {})
    assert d['score'].n==len(d['tokens'](d['dls'], 'test'))-1 and 1 < d['score'].ppl < len(d['dls'].vocab) # better than a guess
    assert list(d['learn'].recorder.metric_names[1:-1])==['train_loss', 'valid_loss', 'median_ppl', 'reward', 'entropy', 'baseline', 'alarms', 'skipped']

@pytest.mark.parametrize('how', ['files', 'fastai'])
def test_everything_of_fastais_together(how, tmp_path):
    "Loaders from a file, or fastai's own; restarts, clipping, both regularisers, averaging, `Perplexity`."
    g = torch.Generator().manual_seed(0)
    lines = [' '.join(f'w{chr(97+i)}' for i in torch.randint(26, (12,), generator=g).tolist()) + '.' for _ in range(300)]
    if how=='files':
        (tmp_path/'a.txt').write_text('\n'.join(lines))
        dls = file_dls(tmp_path/'a.txt', bs=4, seq_len=10, device='cpu')
    else:
        df = pd.DataFrame(dict(text=lines))
        block = TextBlock.from_df('text', is_lm=True, tok=BaseTokenizer())
        dls = DataBlock(block, get_x=ColReader('text'), splitter=RandomSplitter(.2, seed=0)).dataloaders(df, bs=4, seq_len=10, device='cpu')
    p = released['recurrent'].override(controller=dict(steps=1, n_archs=2), search=dict(time_sum=False, beta=.1, lr=1.), final=dict(time_sum=False, beta=.1, alpha=.1, asgd=None, lr=1.))
    learn = search_learner(dls, RecurrentSpace(3), preset=p, width=8, cbs=GradientClip(1.))
    with learn.no_bar(), learn.no_logging(): learn.fit_restarts(2, 1, lr_max=1.)
    assert len(learn.recorder.values)==3 and learn.recorder.lrs[0]==1 and all(torch.tensor(learn.recorder.values[-1]).isfinite())
    final = arch_learner(dls, learn.derive(3), preset=p, width=8, metrics=Perplexity(), cbs=NTASGD(1))
    assert any(isinstance(o, RNNRegularizer) for o in final.cbs)
    with final.no_bar(), final.no_logging(): final.fit_restarts(2, 2, lr_max=5.)
    assert len(final.recorder.values)==6 and final.recorder.metric_names[3]=='perplexity'
    assert final.recorder.values[-1][2] < len(dls.vocab) and evaluate_ppl(final.model, tokens(dls, 'valid')).ppl < len(dls.vocab) # better than a guess

def test_a_function_of_ones_own_runs_even_under_a_known_name():
    "The fused cell knows tanh, and not what somebody else calls tanh."
    x = torch.randint(20, (2, 6))
    def logits(op):
        torch.manual_seed(0)
        space = RecurrentSpace(2, ops=(op,))
        try: return space.final_net(space.parse('0 0 0'), 20, 20, width=5, init=.5)(x)[0]
        finally: RecurrentSpace.known[Op('tanh')] = RecurrentSpace.ops[0]
    assert torch.equal(logits(RecurrentSpace.ops[0]), logits('tanh'))
    assert not torch.allclose(logits(Op('tanh', torch.sin)), logits('tanh'))

@pytest.fixture
def own_rows(monkeypatch): monkeypatch.setattr(RecurrentSpace, 'known', dict(RecurrentSpace.known)) # rows stay in the test

def both_nets(op, **sizes):
    "Shared and final network of a space with one function."
    own = RecurrentSpace(2, ops=(op,))
    arch = own.parse('0 0 0')
    torch.manual_seed(0); shared = own.shared_net(20, 20, width=5, init=.5, **sizes)
    torch.manual_seed(0); final = own.final_net(arch, 20, 20, width=5, init=.5)
    shared.arch = arch
    return shared, final

@pytest.mark.parametrize('name', ['relu', 'mine'])
def test_the_final_network_runs_the_function_of_final(name, own_rows):
    "A row may have another function in the final network, under a known name or a new one."
    x = torch.randint(20, (2, 6))
    rows = Op(name, torch.tanh), Op(name, torch.sin), Op(name, torch.tanh, torch.sin)
    tanh, sin, two = ([net(x)[0] for net in both_nets(o)] for o in rows)
    assert torch.equal(two[0], tanh[0]) and torch.equal(two[1], sin[1])
    assert not torch.allclose(two[0], sin[0]) and not torch.allclose(two[1], tanh[1])

def test_which_cell_runs(own_rows, monkeypatch):
    "The fused cell where both the name and the function are ours, and the loop for the rest, in both networks."
    ran = []
    for f in (recurrent.cell_fused, recurrent.cell_loop):
        monkeypatch.setattr(recurrent, f.__name__, lambda *args, f=f: (ran.append(f.__name__), f(*args))[1])
    def cells(op, **sizes):
        ran.clear()
        for net in both_nets(op, **sizes): net(torch.randint(20, (2, 6)))
        return [o.removeprefix('cell_') for o in ran]
    for op in RecurrentSpace.ops: assert cells(op)==['fused', 'fused']
    for bn in ('all', 'output'): assert cells('tanh', bn=bn)==['fused', 'fused']
    assert cells(Op('softsign', torch.nn.functional.softsign))==['loop', 'loop']
    assert cells(Op('tanh', torch.sin))==['loop', 'loop']
    assert cells(Op('relu', torch.relu, final=torch.sin))==['fused', 'loop']
    assert cells(Op('relu', torch.sin, final=torch.relu))==['loop', 'fused']

def batch_normed(dtype, **sizes):
    torch.manual_seed(0)
    net = SharedRecurrentLM(space, 20, width=6, init=.5, **sizes).to(dtype)
    for name,o in net.state_dict().items():
        if 'norm' in name and 'num' not in name: o.uniform_(.5, 1.5)
    net.arch = a
    return net

@pytest.mark.parametrize('dtype,tol', [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize('train', [True, False])
@pytest.mark.parametrize('bn_eval', ['batch', 'running'])
@pytest.mark.parametrize('bn', ['all', 'output'])
@pytest.mark.parametrize('arch', [a, b, RecurrentSpace(5).parse('0 0 1 0 2 0 3 0 0')], ids=str)
def test_the_fused_cell_with_batch_norm_is_the_loop(arch, bn, bn_eval, train, dtype, tol, monkeypatch):
    "Outputs, all gradients and the running statistics, with dropout, over two batches; then without gradients."
    x, res = torch.randint(20, (2, 16, 7)), []
    for loop in (False, True):
        net = batch_normed(dtype, bn=bn, bn_eval=bn_eval, hidden_p=.3).train(train)
        net.arch = arch
        if loop: monkeypatch.setattr(recurrent._LM, 'fused', lambda *_: False)
        else: assert net.fused(arch.nodes, torch.zeros(16, 6, dtype=dtype))
        torch.manual_seed(1)
        outs = [net(o)[0] for o in x]
        sum((o**2).mean() for o in outs).backward()
        with torch.no_grad(): outs.append(net(x[0])[0])
        res.append([*outs, *net.buffers(), *(o.grad for o in net.parameters() if o.grad is not None)])
    for one,other in zip(*res, strict=True): assert (one-other).abs().max() <= tol*other.abs().max().clamp(min=1.)

def test_batch_norm_where_the_fused_cell_does_not_run():
    "In half precision, and for a single row, which torch refuses in its own words."
    net, x = batch_normed(torch.float32, bn='all'), torch.randint(20, (3, 7))
    exact = net(x)[0]; net.reset()
    with torch.autocast('cpu', torch.bfloat16): half = net(x)[0]
    half.float().sum().backward()
    assert (half.float()-exact).abs().max() < .05
    with pytest.raises(ValueError, match='more than 1 value per channel'): net(x[:1])

def test_batch_norm_costs_few_calls():
    "One product and one batch norm for all siblings. (The loop calls torch more than twice as often.)"
    class Calls(TorchDispatchMode):
        n = 0
        def __torch_dispatch__(self, f, types, args=(), kwargs=None):
            self.n += 1
            return f(*args, **(kwargs or {}))
    net, counts = batch_normed(torch.float32, bn='all'), []
    for run in (net.fused, lambda *_: False):
        net.fused = run
        net.reset()
        with Calls() as calls: net(torch.randint(20, (3, 35)))[0].sum().backward()
        counts.append(calls.n)
    assert counts[0] < .6*counts[1], counts

# --- what the chapter does not show ---------------------------------------------------------------------------------------

FIGURE6 = RecurrentSpace(12).parse('0 | 0 0 | 1 1 | 2 1 | 2 0 | 2 0 | 5 1 | 1 0 | 6 1 | 8 1 | 8 1 | 8 1') # of the paper
LATER   = RecurrentSpace(8, ops=('tanh', 'relu', 'sigmoid', 'identity'), tanh_first=True) # enas_lm's
small   = RecurrentSpace(4)

def test_the_later_space():
    assert (LATER.length, LATER.size)==(16, 4**8*math.factorial(8))
    nodes = LATER.parse('0 2 1 0 2 1 2 2 4 0 5 0 3 2 6 2').nodes # the cell that enas_lm publishes
    assert nodes[:3]==[RNNode(-1, 'tanh'), RNNode(0, 'sigmoid'), RNNode(1, 'tanh')]

def count(make):
    with torch.device('meta'): return sum(p.numel() for p in make().parameters())

def test_numbers_of_parameters():
    assert count(lambda: RecurrentLM(FIGURE6, n_vocab=500, width=20, n_emb=30))==500*30 + 20*30 + 30*40 + 12*20*40
    assert count(lambda: SharedRecurrentLM(FIGURE6.space, bn='all'))==289_209_600 + 36_000
    assert count(lambda: SharedRecurrentLM(RecurrentSpace(9, tanh_first=True), width=200, layout='enas_lm'))==16_560_000

def test_reset_forgets():
    torch.manual_seed(0)
    net, x = RecurrentLM(FIGURE6, n_vocab=50, width=16, init=.4), torch.randint(50, (2, 12))
    logits = net(x)[0]
    net.reset()
    assert (net(x[:,5:])[0]-logits[:,5:]).abs().max() > 1e-4

def test_a_path_is_a_final_network():
    "The same path with weights of its own gives the same numbers."
    torch.manual_seed(0)
    net, x = SharedRecurrentLM(small, n_vocab=50, width=16), torch.randint(50, (2, 12))
    net.arch = small.parse('0 0 1 1 3 1 0')
    final = RecurrentLM(net.arch, n_vocab=50, width=16)
    ws = {f'ws.{i}': w for i,w in enumerate(net.path()[1][1:])}
    final.load_state_dict({'encoder.weight': net.encoder.weight, 'word': net.word['word_tanh'], **ws})
    torch.testing.assert_close(final(x)[0], net(x)[0], atol=1e-6, rtol=0)

def test_what_no_network_has_is_refused():
    def said(f, *args, **kwargs):
        with pytest.raises(ValueError) as e: f(*args, **kwargs)
        return str(e.value)
    net = SharedRecurrentLM(small, n_vocab=50, width=16)
    assert 'does not run on shared weights' in said(setattr, net, 'arch', FIGURE6)
    assert 'use RecurrentSpace(8' in said(SharedRecurrentLM, small, layout='enas_lm')
    assert "allowed are 'paper', 'released', 'enas_lm'" in said(SharedRecurrentLM, small, layout='theirs')
    assert "bn is 'some', allowed are 'all', 'output', None" in said(SharedRecurrentLM, small, bn='some')
    assert 'embed_p is 1, allowed is 0 or more and less than 1' in said(SharedRecurrentLM, small, embed_p=1)
    assert 'reads and guesses the same words, not 50 and 40' in said(small.final_net, a, 50, 40)

def test_whose_memory_goes_on():
    x, (a,b) = torch.randint(50, (2, 12)), (small.parse('0 0 1 1 3 1 0'), small.parse('3 0 0 0 0 2 1'))
    def second(train, *archs):
        net.train(train).reset()
        for net.arch in archs: out = net(x)[0].detach()
        return out
    torch.manual_seed(0)
    net = SharedRecurrentLM(small, n_vocab=50, width=16, init=.2)
    fresh = second(True, b)
    assert (second(True, b, b)-fresh).abs().max() > 1e-3 # the same cell goes on
    assert (second(True, a, b)-fresh).abs().max() > 1e-3 # in training, also from another's memory
    torch.testing.assert_close(second(False, a, b), fresh, atol=1e-6, rtol=0) # outside, never
    net.carry = False
    torch.testing.assert_close(second(True, a, b), fresh, atol=1e-6, rtol=0)

def test_a_row_of_the_memory_that_is_not_finite_starts_again():
    torch.manual_seed(1)
    chain = RecurrentSpace(8).parse('2 ' + ' '.join(f'{i} 2' for i in range(7))) # identities
    net = RecurrentLM(chain, n_vocab=50, width=16, init=2.)
    assert not net(torch.randint(50, (8, 60)))[0].isfinite().all() and net.hidden[1].isfinite().all()

# --- the loss ---------------------------------------------------------------------------------------------------------------

def loss_and_grads(score, loss, dtype=torch.float32, n=70, words=50, targets=None):
    "Loss, and gradients of states [3, n, 8] and of the words' vectors."
    g = torch.Generator().manual_seed(0)
    h, w = (torch.randn(size, generator=g, dtype=dtype).requires_grad_() for size in ((3, n, 8), (words, 8)))
    y = torch.randint(words, (3, n), generator=g) if targets is None else targets
    res = loss(score(h, w), y)
    (3*res).backward() # as `SumOverTime` and a gradient scaler do
    return res.detach(), h.grad, w.grad

def flat(x, y): return F.cross_entropy(x.flatten(0, 1), y.flatten())

@pytest.mark.parametrize('n', [1, 11, 70]) # fewer rows than a part, some more, several parts
@pytest.mark.parametrize('score', [decode, F.linear])
def test_the_loss_is_torchs(n, score):
    for _ in range(2): # the second in the memory that the first has left
        for a,b in zip(loss_and_grads(score, WordLoss(), n=n), loss_and_grads(F.linear, flat, n=n)):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    fused._spare.pop('scores', None)

def test_a_second_backward_of_the_loss_is_refused():
    x = torch.randn(6, 5, requires_grad=True)
    loss = WordLoss()(decode(x, torch.randn(5, 5)), torch.arange(6)%5)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match='second backward pass through the same batch: its scores are gone'): loss.backward()

@pytest.mark.parametrize('of', [lambda h, w, y: decode(h, w).sum(), lambda h, w, y: WordLoss()(decode(h, w), y),
                                lambda h, w, y: fused.cell_fused([RNNode(-1, 'tanh')], (0,), h[:,None]@torch.ones(8, 16), torch.zeros(1, 8), [torch.ones(8, 16)]).sum()])
def test_a_gradient_of_the_gradient_is_refused(of):
    "Silently it would be a constant."
    h, w, y = torch.randn(4, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True), torch.arange(4)
    with pytest.raises(RuntimeError, match='computed by hand and has none of its own'): torch.autograd.grad(of(h, w, y), h, create_graph=True)
    torch.autograd.grad(of(h, w, y), h)

def test_scores_that_others_need_are_not_lost_silently():
    "Another term on the same scores: right, or refused."
    x, y = torch.randn(6, 5, requires_grad=True), torch.arange(6)%5
    def grad(loss):
        s = x*1
        return torch.autograd.grad(loss(s, y) + s.pow(2).mean(), x)[0]
    try: ours = grad(WordLoss())
    except RuntimeError as e: assert 'modified by an inplace operation' in str(e)
    else: torch.testing.assert_close(ours, grad(F.cross_entropy))

def test_what_the_loss_leaves_to_torch():
    "Ignored targets, half precision, no reduction, no gradients: the scores stay."
    y = torch.randint(50, (3, 70)); y[:,::3] = -100
    for a,b in zip(loss_and_grads(decode, WordLoss(), targets=y), loss_and_grads(F.linear, flat, targets=y)): torch.testing.assert_close(a, b)
    for a,b in zip(loss_and_grads(decode, WordLoss(), torch.float64), loss_and_grads(F.linear, flat, torch.float64)): torch.testing.assert_close(a, b)
    x, y, each = torch.randn(2, 3, 5, requires_grad=True), torch.randint(5, (2, 3)), WordLoss()
    each.reduction = 'none' # as fastai's `get_preds(with_loss=True)` does
    torch.testing.assert_close(each(x, y), F.cross_entropy(x.flatten(0, 1), y.flatten(), reduction='none'))
    before = x.detach().clone()
    with torch.no_grad(): WordLoss()(x, y)
    assert torch.equal(x, before)
    assert torch.equal(each.activation(x), x.softmax(2)) and torch.equal(each.decodes(x), x.argmax(2))

@pytest.mark.parametrize('n,words', [(1, 1), (31, 10_000), (65, 10_000), (70, 50), (3, 40_000), (33, 320_001)])
@torch.no_grad()
def test_the_loss_of_a_reward_is_torchs_to_the_last_bit_and_makes_no_second_array_of_scores(n, words):
    x, y = 9*torch.randn(n, words), torch.randint(words, (n,))
    x[0] = float('nan') if n==70 else x[0]
    class Large(TorchDispatchMode):
        "Sizes of what is made."
        sizes = ()
        def __torch_dispatch__(self, f, types, args=(), kwargs=None):
            out = f(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.untyped_storage()._cdata!=x.untyped_storage()._cdata:
                self.sizes += (out.numel(),)
            return out
    before = x.clone()
    for loss in (word_loss, WordLoss()):
        with Large() as made: ours = loss(x, y)
        assert max(made.sizes)<=max(320_000, words) and torch.equal(x.nan_to_num(), before.nan_to_num())
        torch.testing.assert_close(ours, F.cross_entropy(x, y), atol=0, rtol=0, equal_nan=True)

def test_the_loss_of_a_reward_leaves_the_rest_to_torch():
    "Ignored targets, doubles, probabilities as targets, no places; scores that learn keep their gradient and their numbers."
    x, y = torch.randn(6, 5), torch.tensor([0, 1, -100, 3, 4, -100])
    for a,b in ((x, y), (x.double(), y.abs()%5), (x, x.softmax(1))): assert torch.equal(word_loss(a, b), F.cross_entropy(a, b))
    assert word_loss(x[:0], y[:0]).isnan()
    for a,b in ((x, y[:2]), (x, torch.tensor(3)), (x, torch.arange(7)), (x, y+5)):
        for loss in (word_loss, WordLoss()):
            with pytest.raises((ValueError, IndexError), match='match target|is out of bounds'): loss(a, b)
    x.requires_grad_()
    before, loss = x.detach().clone(), word_loss(x, y.abs()%5)
    loss.backward(retain_graph=True); loss.backward()
    assert torch.equal(x, before) and x.grad.abs().sum()>0

def test_scores_of_others_are_left_alone():
    "A leaf, and a view whose rows share their memory: writing over that one broke the heap."
    leaf, y = torch.randn(7, 5, requires_grad=True), torch.arange(7)%5
    before = leaf.detach().clone()
    WordLoss()(leaf, y).backward()
    assert torch.equal(leaf, before) and leaf.grad.abs().sum()>0
    row = torch.randn(1, 5, requires_grad=True)
    torch.testing.assert_close(torch.autograd.grad(WordLoss()(row.expand(7, 5), y), row), torch.autograd.grad(F.cross_entropy(row.expand(7, 5), y), row))

def test_memory_is_kept_only_where_the_scores_are_gone():
    "With torch's loss the scores stay theirs; with ours the next batch has their memory."
    h, w, y = torch.randn(4, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True), torch.arange(4)
    fused._spare.pop('scores', None)
    first = decode(h, w); seen = first.detach().clone()
    F.cross_entropy(first, y).backward()
    second = decode(h, w)
    assert 'scores' not in fused._spare and torch.equal(first, seen) and second.data_ptr()!=first.data_ptr()
    WordLoss()(second, y).backward()
    third = decode(h, w)
    assert third.data_ptr()==second.data_ptr() and torch.equal(third, seen) # and what is in use is not given twice:
    assert 'scores' not in fused._spare and decode(h, w).data_ptr()!=third.data_ptr()
    WordLoss()(third, y).backward()
    torch.testing.assert_close(decode(h[:2], w), F.linear(h[:2], w)) # another size
    fused._spare.pop('scores', None)

@pytest.mark.parametrize('half', [False, True])
def test_a_learner_with_either_loss(half):
    "The same losses, metrics and predictions; the loss of a training batch leaves nothing else changed."
    dls = text_dls(2008) # windows of one length: fastai cannot put others together
    def fit(loss):
        torch.manual_seed(0)
        p = released['recurrent'].override(final=dict(lr=1., alpha=.1, beta=.1))
        learn = arch_learner(dls, a, preset=p, width=8, loss_func=loss, metrics=[Perplexity(), accuracy])
        if half: learn.to_bf16()
        with learn.no_bar(), learn.no_logging(): learn.fit(2); preds = learn.get_preds(with_loss=True, with_decoded=True)
        return learn, torch.tensor([o[:4] for o in learn.recorder.values]), preds
    (learn, ours, ps), (_, torchs, qs) = fit(WordLoss()), fit(CrossEntropyLossFlat())
    torch.testing.assert_close(ours, torchs)
    for p,q in zip(ps, qs, strict=True): torch.testing.assert_close(p.as_subclass(torch.Tensor), q.as_subclass(torch.Tensor))
    torch.testing.assert_close(ps[0].sum(-1), torch.ones(ps[0].shape[:-1])) # probabilities
    assert isinstance(pickle.loads(pickle.dumps(learn.loss_func)), WordLoss)
