"Plumbing and properties of the estimator: baselines, loss, resuming, devices."
import copy
from dataclasses import replace

import pytest, torch
from hypothesis import given, settings, strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from enas_nb.controller import Controller
from enas_nb.presets import paper, released
from enas_nb.reinforce import LeaveOneOut, MovingAverage, Reinforce, make_baseline, skip_count, skip_penalty
from enas_nb.macro import MacroSpace
from enas_nb.micro import MicroSpace
from enas_nb.recurrent import RecurrentSpace

SMALL  = replace(released['macro'].controller, hidden=8, n_archs=5, lr=.01)
SPACES = [MacroSpace(3), MicroSpace(1), RecurrentSpace(3)]
each_space    = pytest.mark.parametrize('space', SPACES, ids=lambda o: o.name)
each_baseline = pytest.mark.parametrize('baseline', ['moving-average', 'leave-one-out'])

rewards = st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=40)

def make(space=SPACES[0], **kw):
    torch.manual_seed(0)
    return Reinforce(Controller(space, replace(SMALL, **kw)))

def score(codes): return codes.float().mean(1)

def theta(rf): return torch.cat([o.detach().flatten() for o in rf.controller.parameters()])

# --- baselines -----------------------------------------------------------------------------------------------------------

@settings(max_examples=60, deadline=None)
@given(rewards, st.sampled_from([0., .5, .9, .99, .999]), st.floats(-5, 5), st.integers(0, 40))
def test_moving_average_is_the_authors_recursion(rs, decay, start, cut):
    ma, b, want = MovingAverage(decay), start, []
    ma.value = start
    for o in rs: b = b - (1-decay)*(b-o); want.append(b)
    parts = [o for o in (rs[:cut], rs[cut:]) if o]                       # in one batch or in two: the same
    got = torch.cat([ma(torch.tensor(o)) for o in parts])
    torch.testing.assert_close(got, torch.tensor(want), atol=1e-4, rtol=1e-4)
    assert float(ma.value) == pytest.approx(b, abs=1e-3)

@settings(max_examples=60, deadline=None)
@given(rewards.filter(lambda o: len(o)>1))
def test_leave_one_out_is_the_mean_of_the_others(rs):
    loo = LeaveOneOut()
    want = [sum(rs[:i]+rs[i+1:])/(len(rs)-1) for i in range(len(rs))]
    torch.testing.assert_close(loo(torch.tensor(rs)), torch.tensor(want), atol=1e-4, rtol=1e-4)
    assert float(loo.value) == pytest.approx(sum(rs)/len(rs), abs=1e-4)

@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_baselines_keep_the_dtype(dtype):
    r = torch.rand(4, dtype=dtype)
    for b in (MovingAverage(), LeaveOneOut()): assert b(r).dtype==b.value.dtype==dtype

def test_make_baseline():
    ma = make_baseline(replace(SMALL, baseline_decay=.5))
    assert isinstance(ma, MovingAverage) and ma.decay==.5
    assert isinstance(make_baseline(replace(SMALL, baseline='leave-one-out')), LeaveOneOut)
    with pytest.raises(ValueError, match='moving-average'): make_baseline(replace(SMALL, baseline='mean'))
    with pytest.raises(ValueError, match='n_archs is 1'):   make(baseline='leave-one-out', n_archs=1)
    with pytest.raises(ValueError, match='n_archs is 1'):   LeaveOneOut()(torch.ones(1))

# --- loss and step -------------------------------------------------------------------------------------------------------

@each_space
@each_baseline
@pytest.mark.parametrize('w', [0., .3])
def test_gradient_of_the_loss(space, baseline, w):
    rf = make(space, baseline=baseline, entropy_weight=w)
    walk = rf.controller.sample(5)
    r = score(walk.codes)
    rf.loss(walk, r).backward()
    got = {k: p.grad for k,p in rf.controller.named_parameters()}

    rf = make(space, baseline=baseline)                                    # once more, an architecture at a time
    paid = r + w*walk.entropy.detach()
    adv = paid - make_baseline(rf.preset)(paid)
    for code,a in zip(walk.codes, adv.tolist()):
        one = rf.controller.score(code[None])
        (-one.log_prob[0]*a/5 + SMALL.skip_weight*skip_penalty(one, SMALL.skip_target)[0]/5).backward()
    for k,p in rf.controller.named_parameters():
        assert (got[k] is None)==(p.grad is None), k
        if p.grad is not None: torch.testing.assert_close(got[k], p.grad, atol=1e-5, rtol=1e-3, msg=k)

@each_space
def test_skips_of_spaces_with_and_without(space):
    w = Controller(space, SMALL).sample(3)
    if space.name=='macro': assert (skip_penalty(w)>0).all() and (skip_count(w)<=3).all()
    else: assert not skip_penalty(w).any() and not skip_count(w).any()

def test_clipping_bounds_the_gradient():
    rf, norms = make(grad_clip=1e-3), []
    grads = lambda: [p.grad.flatten() for p in rf.controller.parameters() if p.grad is not None]
    rf.opt.register_step_pre_hook(lambda *_: norms.append(torch.cat(grads()).norm()))
    rf.step(score)
    assert 0 < norms[0] <= 1.001e-3 and not grads() # nor is anything left for others to clip

def test_step_reports_and_moves():
    rf = make()
    before, gen = theta(rf), torch.Generator().manual_seed(3)
    want = rf.controller.sample(5, torch.Generator().manual_seed(3))
    res = rf.step(score, gen)
    assert not torch.equal(theta(rf), before)
    torch.testing.assert_close(res['reward'],  score(want.codes).mean())
    torch.testing.assert_close(res['entropy'], want.entropy.mean())
    assert not any(o.requires_grad for o in res.values())

def test_scoring_is_without_gradient():
    seen = []
    make().step(lambda codes: (seen.append(torch.is_grad_enabled()), score(codes))[1])
    assert seen==[False]

def test_rewards_of_a_wrong_shape():
    rf = make()
    walk = rf.controller.sample(5)
    for bad in (torch.ones(5, 1), torch.ones(4), torch.tensor(1.)):
        with pytest.raises(ValueError, match='5 architectures'): rf.loss(walk, bad)

def test_presets_build():
    for p in (paper, released): assert Reinforce(Controller(MacroSpace(2), p['macro'].controller)).opt.defaults['lr']==p['macro'].controller.lr

# --- repeat and resume -----------------------------------------------------------------------------------------------------

@each_space
@each_baseline
def test_resume_goes_on_identically(space, baseline, tmp_path):
    rf, gen = make(space, baseline=baseline), torch.Generator().manual_seed(1)
    for _ in range(3): rf.step(score, gen)
    torch.save(dict(rf=rf.state_dict(), theta=rf.controller.state_dict(), gen=gen.get_state()), tmp_path/'s.pt')
    for _ in range(3): rf.step(score, gen)

    s = torch.load(tmp_path/'s.pt', weights_only=True)                     # tensors and numbers alone
    again, gen = make(space, baseline=baseline), torch.Generator()
    again.controller.load_state_dict(s['theta']); again.load_state_dict(s['rf']); gen.set_state(s['gen'])
    for _ in range(3): again.step(score, gen)
    assert torch.equal(theta(again), theta(rf))
    assert torch.equal(torch.as_tensor(again.baseline.value), torch.as_tensor(rf.baseline.value))

def test_a_generator_repeats_and_leaves_the_global_one_alone():
    res = []
    for _ in range(2):
        rf, state, gen = make(), torch.get_rng_state(), torch.Generator().manual_seed(5)
        for _ in range(2): rf.step(score, gen)
        assert torch.equal(torch.get_rng_state(), state)
        res.append(theta(rf))
    assert torch.equal(*res)

@each_space
@each_baseline
def test_no_tensor_forgets_the_device(plain_lstm_cell, monkeypatch, space, baseline):
    "On fake tensors of an accelerator, which refuse to meet one of the CPU. Autograd would want the real thing, so gradients are made up."
    losses = []
    def backward(loss):
        losses.append(loss)
        for p in rf.controller.parameters(): p.grad = torch.zeros_like(p)
    monkeypatch.setattr(torch.Tensor, 'backward', backward)
    with FakeTensorMode():
        with torch.device('cuda'): c = Controller(space, replace(SMALL, baseline=baseline, entropy_weight=.1, grad_clip=1.))
        rf = Reinforce(c)
        res = [rf.step(score) for _ in range(2)]
    assert len(losses)==2
    for o in (*losses, *(v for r in res for v in r.values()), rf.baseline.value): assert o.device.type=='cuda'
