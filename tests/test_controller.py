"The policy on small random spaces of every kind: probabilities, repeatability, devices, and what a batch costs."
import gc, itertools, time, weakref
from dataclasses import dataclass, replace

import pytest, torch
from hypothesis import given, settings, strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from enas_nb.controller import Controller
from enas_nb.presets import released
from enas_nb.macro import MacroSpace
from enas_nb.micro import MicroSpace
from enas_nb.recurrent import RecurrentSpace
from enas_nb.space import SearchSpace, Step

SMALL = replace(released['macro'].controller, hidden=8)

def some_ops(cls, most): return st.lists(st.sampled_from(cls.ops), min_size=1, max_size=most, unique=True).map(tuple)

spaces = st.one_of( # at most 3*3*2 * 3*4 = 216, 6*6 squared = 1296 ... all small enough to list
    st.builds(MacroSpace,     st.integers(1, 3), some_ops(MacroSpace, 3)),
    st.builds(MicroSpace,     st.just(1),        some_ops(MicroSpace, 3)),
    st.builds(RecurrentSpace, st.integers(1, 4), some_ops(RecurrentSpace, 2)))
seeds = st.integers(0, 1000)

def policy(space, seed=0, scale=6., **kw):
    "A controller with opinions: an untrained one is close to uniform."
    torch.manual_seed(seed)
    c = Controller(space, replace(SMALL, **kw))
    with torch.no_grad():
        for p in c.parameters(): p.mul_(scale)
    return c

def listed(space): return torch.tensor(list(itertools.product(*[range(o.choices) for o,_ in space.slots])))

@settings(max_examples=30, deadline=None)
@given(spaces, seeds, st.integers(1, 2))
@torch.no_grad()
def test_probabilities_sum_to_one(space, seed, n_lstm):
    codes = listed(space)
    assert len(codes)==space.size<=1300
    w = policy(space, seed, n_lstm=n_lstm).score(codes)
    p = w.log_prob.exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-4)
    assert (p*w.entropy).sum().item() == pytest.approx(-(p*w.log_prob).sum().item(), abs=1e-3) # chain rule of entropy

@settings(max_examples=30, deadline=None)
@given(spaces, seeds, st.integers(1, 5))
@torch.no_grad()
def test_score_agrees_with_sample(space, seed, n):
    c = policy(space, seed)
    w = c.sample(n)
    assert w.codes.shape==(n, space.length) and w.codes.dtype==torch.long
    for o in space.archs(w.codes): assert space.check(o.code)==o.code
    for again in (c.score(w.codes), c.score(space.archs(w.codes))):
        assert torch.equal(again.codes, w.codes)
        torch.testing.assert_close(again.log_prob, w.log_prob, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(again.entropy,  w.entropy,  atol=1e-5, rtol=1e-5)

@settings(max_examples=20, deadline=None)
@given(spaces, seeds)
@torch.no_grad()
def test_architectures_of_a_batch_do_not_see_each_other(space, seed):
    c = policy(space, seed)
    w = c.sample(4)
    one = torch.cat([c.score(o[None]).log_prob for o in w.codes])
    torch.testing.assert_close(one, w.log_prob, atol=1e-5, rtol=1e-5)

@settings(max_examples=20, deadline=None)
@given(spaces, seeds)
@torch.no_grad()
def test_mode_takes_the_likeliest_choice_of_every_step(space, seed):
    w = policy(space, seed).mode()
    assert len(w.codes)==1
    for d in w.decisions: torch.testing.assert_close(d.log_prob, d.logits.max(-1).values)

@settings(max_examples=20, deadline=None)
@given(spaces, seeds)
def test_a_generator_repeats_and_leaves_the_global_one_alone(space, seed):
    c, state = policy(space), torch.get_rng_state()
    a,b = (c.sample(8, torch.Generator().manual_seed(seed)).codes for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), state)

@settings(max_examples=30, deadline=None)
@given(spaces, seeds, st.integers(1, 5))
def test_what_is_drawn_and_added_up_is_the_plain_way_to_the_last_bit(space, seed, n):
    c, (a,b) = policy(space, seed), [torch.Generator().manual_seed(seed) for _ in range(2)]
    def plain(step, logits):
        return torch.multinomial(logits.detach().exp().flatten(0, 1), 1, generator=b).view(n, -1)
    w, codes = c.sample(n, a), c.walk(n, plain).codes
    assert torch.equal(w.codes, codes) and torch.equal(a.get_state(), b.get_state())
    sums = sum(d.log_prob.sum(1) for d in w.decisions), sum(d.entropy.sum(1) for d in w.decisions)
    grad = lambda o: torch.autograd.grad((o*torch.arange(1., n+1)).sum(), list(c.parameters()), retain_graph=True, materialize_grads=True)
    for ours,theirs in zip((w.log_prob, w.entropy), sums, strict=True):
        assert torch.equal(ours, theirs)
        for x,y in zip(grad(ours), grad(theirs), strict=True): assert torch.equal(x, y)

# --- the gradient by hand (appendix/bptt) ------------------------------------------------------------------------------

@dataclass(frozen=True)
class Mixed(SearchSpace):
    "All kinds of steps and of feeds in one space, states in another order than they were remembered, a state of zeros."
    ops = ('relu', 'tanh')
    def decisions(self):
        yield Step('none', 'begin', remember='zero')
        yield Step('op', 'first op', n=2, at=0, feed='op', remember='h', bias=(.5, 0.), reduce=True)
        yield Step('none', 'go on', remember='h')
        yield Step('skips', 'two of three', n=2, at=1, among=(2, 0), feed='mean', remember='h')
        yield Step('index', 'one of three', n=3, at=3, among=(3, 0, 1), feed='state', locality=True)
        yield Step('index', 'one of two', n=2, at=4, among=(1, 2), feed='state/distance', remember='h')
        yield Step('op', 'second op', n=2, at=5, feed='op')
        yield Step('op', 'third op', n=2, at=6)

def plain_walk(c, codes):
    "Log-probabilities and entropies of architectures, as autograd sees them."
    x, zero = c.start.expand(len(codes), -1), c.start.new_zeros(len(codes), c.preset.hidden)
    hc, states, keys, log_p, entropy = [(zero, zero)]*len(c.lstm), [], [], 0., 0.
    for t,step in enumerate(c.space.steps):
        for i,cell in enumerate(c.lstm): hc[i] = cell(x, hc[i]); x = hc[i][0]
        h, action = x, codes[:,step.at:step.at+step.width]
        if step.kind!='none':
            logits = c._logits(step, getattr(c, f'fixed{t}'), h, None if step.kind=='op' else c._attend(step, h, keys))
            log_p, entropy = log_p + logits.gather(-1, action[...,None]).sum((1, 2)), entropy - (logits.exp()*logits).sum((1, 2))
        if step.remember: states.append(h if step.remember=='h' else zero); keys.append(c.key(h))
        x = c._next(step, action, states)
    return log_p, entropy

@settings(max_examples=60, deadline=None)
@given(st.one_of(spaces, st.just(Mixed()), st.builds(RecurrentSpace, st.integers(1, 4), tanh_first=st.just(True)),
                 st.builds(MicroSpace, st.integers(2, 4)), st.builds(MacroSpace, st.integers(4, 8))),
       seeds, st.integers(1, 4), st.integers(1, 3), st.sampled_from([1., 5.]))
def test_the_gradient_by_hand_is_that_of_autograd(space, seed, n, n_lstm, temperature):
    c = policy(space, seed, n_lstm=n_lstm, temperature=temperature).double()
    codes, ps = torch.as_tensor(space.random(n, seed=seed)), list(c.parameters())
    plain, w = plain_walk(c, codes), c.score(codes)
    grad = lambda y, *args, **kw: torch.autograd.grad(y, ps, *args, retain_graph=True, materialize_grads=True, **kw)
    weigh = torch.rand(3, n, dtype=torch.double)
    for a,b in zip(plain, (w.log_prob, w.entropy), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)
        for gs in (grad(b, weigh[0]), grad(b, weigh[0])): # twice through the same walk
            for x,y in zip(grad(a, weigh[0]), gs, strict=True): torch.testing.assert_close(x, y, atol=1e-11, rtol=1e-11)
        many = grad(b, weigh, is_grads_batched=True) # several gradients in one go
        for k,o in enumerate(weigh):
            for x,y in zip(grad(b, o), many, strict=True): torch.testing.assert_close(x, y[k], atol=1e-11, rtol=1e-11)

def test_a_gradient_of_the_gradient_is_refused():
    "Silently it would be a constant."
    c = policy(MicroSpace(2))
    with pytest.raises(RuntimeError, match='computed by hand and has none of its own'):
        torch.autograd.grad(c.sample(2).log_prob.sum(), c.start, create_graph=True)

def test_a_walk_notices_that_theta_changed_before_its_gradient():
    c = policy(MicroSpace(2))
    w = c.sample(2)
    with torch.no_grad(): c.start.add_(1)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'): w.log_prob.sum().backward()

def test_a_walk_notices_that_its_answers_changed_before_its_gradient():
    "A reused buffer of codes, or an edited decision."
    c = policy(MacroSpace(4))
    codes = torch.as_tensor(c.space.random(6, seed=0))
    w, v = c.score(codes[:3]), c.sample(3)
    codes.zero_(), v.decisions[1].action.zero_(), c.sharpness.clone()
    for o in (w, v):
        with pytest.raises(RuntimeError, match='modified by an inplace operation'): o.log_prob.sum().backward()
    w = c.score(codes[3:])
    c.sharpness.fill_(3.)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'): w.log_prob.sum().backward()

def gradients(c, codes):
    "Those of a walk, and those of autograd."
    ps = list(c.parameters())
    return [torch.autograd.grad(y.sum(), ps, materialize_grads=True) for y in (c.score(codes).log_prob, plain_walk(c, codes)[0])]

class Colder(Controller):
    def _logits(self, *args): return (super()._logits(*args)*2).log_softmax(-1)

def tie(c): c.op_out.weight = c.op_emb.weight
def more(c): c.extra = torch.nn.Parameter(torch.zeros(3))
def normed(c): torch.nn.utils.parametrizations.weight_norm(c.query)
def biased(c): c.op_out = torch.nn.Linear(8, len(c.space.ops))
def sharper(c): c.sharpness.fill_(9.)
def older(c): del c.sources
def subclass(c): c.__class__ = Colder

@pytest.mark.parametrize('change', [tie, more, normed, biased, sharper, older, subclass])
def test_the_gradient_is_right_after_a_change_of_the_policy(change):
    c = policy(MacroSpace(4))
    change(c)
    for a,b in zip(*gradients(c, torch.as_tensor(c.space.random(3, seed=0))), strict=True): torch.testing.assert_close(a, b)

def test_many_architectures_and_large_spaces_go_back_by_autograd(monkeypatch):
    import enas_nb.controller as room
    def never(*args): raise AssertionError('by hand')
    monkeypatch.setattr(room, 'with_gradient', never)
    c = policy(MacroSpace(4))
    with pytest.raises(AssertionError, match='by hand'): c.sample(3)
    for walk in (c.sample(3000), c.sample(0), policy(MacroSpace(100), hidden=64).sample(20)): walk.log_prob.sum().backward()

def test_a_walk_is_transformed():
    c = policy(MicroSpace(2))
    codes, ps = torch.as_tensor(c.space.random(2, seed=0)), dict(c.named_parameters())
    got = torch.func.grad(lambda ps: torch.func.functional_call(Scorer(c), {f'c.{k}': v for k,v in ps.items()}, codes))({k: v.detach() for k,v in ps.items()})
    for a,b in zip(got.values(), torch.autograd.grad(c.score(codes).log_prob.sum(), list(ps.values())), strict=True): torch.testing.assert_close(a, b)

class Scorer(torch.nn.Module):
    def __init__(self, c): super().__init__(); self.c = c
    def forward(self, codes): return self.c.score(codes).log_prob.sum()

@pytest.mark.parametrize('where', ['all', 'walk', 'backward'])
def test_mixed_precision_around_a_walk_leaves_its_gradient_alone(where):
    c = policy(MicroSpace(2))
    codes, ps = torch.as_tensor(c.space.random(3, seed=0)), list(c.parameters())
    half  = lambda on: torch.autocast('cpu', dtype=torch.bfloat16, enabled=on)
    with half(where!='backward'): y = c.score(codes).log_prob.sum()
    with half(where!='walk'): got = torch.autograd.grad(y, ps)
    for a,b in zip(got, torch.autograd.grad(c.score(codes).log_prob.sum(), ps), strict=True): assert torch.equal(a, b)

def test_a_walk_is_freed_with_its_last_name():
    "A graph that refers to itself would stay until Python's collector comes."
    c = policy(MicroSpace(2))
    gc.collect(); gc.disable()
    try:
        refs = []
        def pick(step, logits):
            action = logits.argmax(-1)
            refs.append(weakref.ref(action))
            return action
        w = c.walk(2, pick)
        assert all(o() is not None for o in refs)
        del w
        assert all(o() is None for o in refs)
    finally: gc.enable()

def test_theta_that_is_not_finite_is_refused():
    c = policy(MicroSpace(2))
    with torch.no_grad(): c.start[0,0] = float('nan')
    with pytest.raises(ValueError, match='θ has numbers that are not finite'): c.sample(3)

def test_score_refuses_another_length():
    with pytest.raises(ValueError, match=r'\(2, 5\)'): policy(MacroSpace(3)).score(torch.zeros(2, 5, dtype=torch.long))

def test_ops_that_are_not_counted_right_are_refused_at_once():
    @dataclass(frozen=True)
    class Mine(SearchSpace):
        ops = ('relu', 'tanh')
        def decisions(self): yield Step('op', 'the op', n=3)
    with pytest.raises(ValueError, match="'the op' has n=3, the space has 2 ops"): Controller(Mine(), SMALL)

@pytest.mark.parametrize('space', [MicroSpace(2), RecurrentSpace(3)], ids=lambda o: o.name)
def test_fixed_logits_are_made_once_and_are_not_saved(space, monkeypatch):
    c, gen = policy(space), torch.Generator().manual_seed(0)
    assert set(c.state_dict()) == {k for k,_ in c.named_parameters()}
    def never(*args, **kwargs): raise AssertionError('a constant is made in a walk')
    monkeypatch.setattr(torch, 'tensor', never)
    c.double().sample(4, gen)
    places = {id(c.first), *map(id, c.sources.buffers())}
    assert all((o.dtype in (torch.long, torch.bool))==(id(o) in places) and o.dtype!=torch.float32 for o in c.buffers())

@pytest.mark.parametrize('space', [MicroSpace(2), RecurrentSpace(3)], ids=lambda o: o.name)
@torch.no_grad()
def test_fixed_logits_are_those_of_the_steps(space):
    "A policy without opinions has them alone."
    c = policy(space, scale=0.)
    for d in c.sample(2).decisions:
        z = torch.zeros(d.step.n) + (torch.tensor(d.step.bias) if d.step.bias else 0)
        if d.step.locality: z = z - torch.tensor([(d.step.n-j)**2/6 for j in range(d.step.n)])
        torch.testing.assert_close(d.logits[0,0], z.log_softmax(0))

@pytest.mark.parametrize('space', [MacroSpace(3), MicroSpace(2), RecurrentSpace(3)], ids=lambda o: o.name)
def test_no_tensor_forgets_the_device(plain_lstm_cell, space):
    with FakeTensorMode():
        with torch.device('cuda'): c = Controller(space, SMALL)
        w = c.sample(4)
        walks = [w, c.mode(), c.score(w.codes)]
    for w in walks:
        for t in (w.codes, w.log_prob, w.entropy, *(o for d in w.decisions for o in (d.logits, d.action))): assert t.device.type=='cuda'

# --- cost --------------------------------------------------------------------------------------------------------------

def cpu(f, n=7):
    "Median CPU seconds of `n` calls."
    def once(): t = time.process_time(); f(); return time.process_time()-t
    once()
    return sorted(once() for _ in range(n))[n//2]

class Calls(TorchDispatchMode):
    "Counts torch's calls that compute or make something: views are free."
    def __init__(self): super().__init__(); self.n = 0
    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        self.n += not f.is_view
        return f(*args, **(kwargs or {}))

@pytest.mark.parametrize('space,most', [(MacroSpace(12), 830), (MicroSpace(5), 1500), (RecurrentSpace(12), 790)], ids=lambda o: getattr(o, 'name', ''))
def test_a_walk_is_few_calls_of_torch(space, most):
    "However many walk side by side. (With `torch.multinomial`, and sums of each decision's own, it is 873, 1612 and 851.)"
    counts = []
    for n in (1, 20):
        c = Controller(space)
        with Calls() as calls: c.sample(n)
        counts.append(calls.n)
    assert counts[0]==counts[1]<=most

def test_256_architectures_in_one_call():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        c, gen = Controller(MacroSpace(12)), torch.Generator().manual_seed(0)
        one, many = cpu(lambda: c.sample(1, gen), 15), cpu(lambda: c.sample(256, gen))
    finally: torch.set_num_threads(threads)
    assert many <= 256*one/20, f'256 calls cost only {256*one/many:.1f} times one call of 256'
