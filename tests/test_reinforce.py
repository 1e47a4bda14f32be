"The estimator beside exact sums over a listed space; its plumbing: baselines, loss, resuming, devices."
import itertools, math
from dataclasses import replace
from types import SimpleNamespace

import pytest, torch
from hypothesis import given, settings, strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from enas_nb.controller import Controller, Decision, Walk, reported_entropy
from enas_nb.presets import paper, released
from enas_nb.reinforce import (LeaveOneOut, MovingAverage, Reinforce, make_baseline, make_credit, ppl_reward, rank_credit, ranks, skip_count,
                               skip_penalty)
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

# --- credit by rank, and the bonus -----------------------------------------------------------------------------------------

numbers = st.floats(-100, 100, width=32)

@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(numbers, st.sampled_from([1., 2., math.nan, math.inf, -math.inf])), min_size=2, max_size=12))
def test_ranks_are_counted_by_hand(rs):
    "Wins against the others, a tie is half a win; what is no finite number loses against all that is one."
    true = [o if math.isfinite(o) else -math.inf for o in rs]
    want = [sum((a>b) + .5*(a==b) for j,b in enumerate(true) if j!=i)/(len(rs)-1) for i,a in enumerate(true)]
    got = ranks(torch.tensor(rs, dtype=torch.float64))
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64))
    assert got.mean().item()==pytest.approx(.5)
    torch.testing.assert_close(rank_credit(torch.tensor(rs)), torch.tensor(want)**3)

def test_ranks_with_ties():
    assert ranks(torch.tensor([.9, .1, .9, .5, .9])).tolist()==[.75, 0, .75, .25, .75]
    assert ranks(torch.full((4,), .7)).tolist()==[.5]*4

GROWING = dict(exp=torch.exp, cube=lambda r: r**3, shift=lambda r: 5*r-7, loss=lambda r: -torch.exp(-r), steep=lambda r: 1e3*torch.sinh(3*r))

@each_baseline
@pytest.mark.parametrize('name', GROWING)
def test_a_growing_function_of_the_rewards_changes_nothing(name, baseline):
    f, moved = GROWING[name], []
    for g in (lambda r: r, f):
        rf, gen = make(baseline=baseline, credit='rank', bonus=.1), torch.Generator().manual_seed(2)
        for i in range(4): rf.step(lambda codes: g(score(codes).double()), gen, done=i/3)
        moved.append(theta(rf))
    assert torch.equal(*moved)
    rf, gen = make(baseline=baseline, bonus=.1), torch.Generator().manual_seed(2)   # rewards do notice
    for i in range(4): rf.step(lambda codes: f(score(codes).double()), gen, done=i/3)
    assert not torch.equal(theta(rf), moved[0])

def test_an_accuracy_is_no_growing_function_of_the_loss():
    right = torch.tensor([[.51, .51], [.99, .45]])                         # P(the right of two classes), two networks, two images
    acc, loss = (right>.5).float().mean(1), -right.log().mean(1)
    assert ranks(acc).tolist()==[1, 0] and ranks(-loss).tolist()==ranks(80*(-loss).exp()).tolist()==[0, 1]

@settings(max_examples=60, deadline=None)
@given(st.lists(numbers, min_size=2, max_size=12, unique=True))
def test_leaving_one_out_of_ranks_makes_them_longer_and_no_more(rs):
    "Without ties the sum of a step is fixed, so the baseline is a constant and the credit n/(n-1) times itself."
    n, r = len(rs), rank_credit(torch.tensor(rs, dtype=torch.float64))
    assert r.sum().item()==pytest.approx(sum((i/(n-1))**3 for i in range(n)))
    left = r - LeaveOneOut()(r) - n/(n-1)*r
    torch.testing.assert_close(left, left[:1].expand(n))

def test_a_step_in_which_all_earn_the_same_moves_nothing():
    rf = make(credit='rank', baseline='leave-one-out', entropy_weight=0., skip_weight=0.)
    before = theta(rf)
    rf.step(lambda codes: torch.full((len(codes),), .4))
    assert torch.equal(theta(rf), before)

@each_space
@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite(space, bad):
    "By rank it is the last; as a reward it is refused before anything moves."
    def with_bad(codes): return torch.cat([score(codes)[1:], torch.tensor([bad])])
    def with_low(codes): return torch.cat([score(codes)[1:], torch.tensor([-9.])])
    moved = []
    for f in (with_bad, with_low):
        rf = make(space, credit='rank', baseline='leave-one-out')
        rf.step(f, torch.Generator().manual_seed(0))
        moved.append(theta(rf))
    assert torch.equal(*moved) and moved[0].isfinite().all()
    rf = make(space)
    before, average = theta(rf), rf.baseline.value
    with pytest.raises(ValueError, match='finite numbers only') as e: rf.step(with_bad)
    assert torch.equal(theta(rf), before) and rf.baseline.value==average and '\n' not in str(e.value)

def test_what_credit_allows():
    assert make_credit(SMALL)(torch.tensor([.3, .1])).tolist()==pytest.approx([.3, .1])
    with pytest.raises(ValueError, match="credit is 'place', allowed are 'reward', 'rank'"): make(credit='place')
    with pytest.raises(ValueError, match='credit by rank needs 2 or more .* n_archs is 1'):  make(credit='rank', n_archs=1)

@each_space
@pytest.mark.parametrize('done', [0, .25, 1.])
def test_the_bonus_is_the_entropy_itself_and_falls_to_zero(space, done):
    rf, plain = (make(space, bonus=b, baseline='leave-one-out', init=1.) for b in (.3, 0.))
    walk = rf.controller.sample(5)
    def grad(y): return flat([o for o in torch.autograd.grad(y, list(rf.controller.parameters()), retain_graph=True, allow_unused=True) if o is not None])
    got  = grad(rf.loss(walk, score(walk.codes), done)) - grad(plain.loss(walk, score(walk.codes), done))
    of_H = grad(.3*walk.entropy.mean())
    torch.testing.assert_close(got, -(1-done)*of_H, atol=1e-6, rtol=1e-3)
    assert of_H.abs().max()>1e-3 and got.any().item()==(done<1)

def test_a_bonus_keeps_the_entropy_and_leaves_at_the_end():
    def end(bonus, done):
        rf, gen = make(LISTED, bonus=bonus, baseline='leave-one-out', credit='rank', tanh_constant=5., skip_weight=0., entropy_weight=0.,
                       n_archs=10, lr=.02), torch.Generator().manual_seed(0)
        for i in range(120): rf.step(lambda codes: TABLE[codes@PLACE], gen, done=done(i/119))
        return truth(rf.controller, TABLE).H
    assert end(.5, lambda x: 0.) > end(.5, lambda x: x)+1 > 1
    assert end(.5, lambda x: 0.) > end(0., lambda x: 0.)+1

@pytest.mark.parametrize('done', [-.1, 1.01, math.nan])
def test_done_is_a_share(done):
    rf = make()
    before = theta(rf)
    with pytest.raises(ValueError, match='done is .*, allowed is 0 to 1'): rf.step(score, done=done)
    assert torch.equal(theta(rf), before)

# --- repeat and resume -----------------------------------------------------------------------------------------------------

@each_space
@each_baseline
@pytest.mark.parametrize('credit', ['reward', 'rank'])
def test_resume_goes_on_identically(space, baseline, credit, tmp_path):
    rf, gen = make(space, baseline=baseline, credit=credit, bonus=.1), torch.Generator().manual_seed(1)
    for _ in range(3): rf.step(score, gen)
    torch.save(dict(rf=rf.state_dict(), theta=rf.controller.state_dict(), gen=gen.get_state()), tmp_path/'s.pt')
    for _ in range(3): rf.step(score, gen)

    s = torch.load(tmp_path/'s.pt', weights_only=True)                     # tensors and numbers alone
    again, gen = make(space, baseline=baseline, credit=credit, bonus=.1), torch.Generator()
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
@pytest.mark.parametrize('credit', ['reward', 'rank'])
def test_no_tensor_forgets_the_device(plain_lstm_cell, monkeypatch, space, baseline, credit):
    "On fake tensors of an accelerator, which refuse to meet one of the CPU. Autograd would want the real thing, so gradients are made up."
    losses = []
    def backward(loss):
        losses.append(loss)
        for p in rf.controller.parameters(): p.grad = torch.zeros_like(p)
    monkeypatch.setattr(torch.Tensor, 'backward', backward)
    with FakeTensorMode():
        with torch.device('cuda'): c = Controller(space, replace(SMALL, baseline=baseline, entropy_weight=.1, grad_clip=1., credit=credit, bonus=.1))
        rf = Reinforce(c)
        res = [rf.step(score) for _ in range(2)]
    assert len(losses)==2
    for o in (*losses, *(v for r in res for v in r.values()), rf.baseline.value): assert o.device.type=='cuda'

# --- a space of 216 architectures, listed: 3 layers, 3 ops, skips ------------------------------------------------------------

LISTED = MacroSpace(3, ops=('conv3x3', 'sep3x3', 'max3x3'))
CHOICES = [o.choices for o,_ in LISTED.slots]
CODES = torch.tensor(list(itertools.product(*map(range, CHOICES))))                                  # [216, 6]
PLACE = torch.tensor([math.prod(CHOICES[i+1:]) for i in range(len(CHOICES))])
BASE  = replace(released['macro'].controller, hidden=32, n_archs=10, lr=5e-3, entropy_weight=0., skip_weight=0.,
                betas=paper['macro'].controller.betas, eps=paper['macro'].controller.eps)

def make_table(best, seed=0):
    "Rewards like accuracies: the best has 0.9, each decision that differs costs 0.05, give or take a little."
    best = torch.tensor(LISTED.parse(best).code)
    noise = .01*torch.randn(LISTED.size, generator=torch.Generator().manual_seed(seed))
    return .9 - .05*(CODES!=best).sum(1) + noise*(CODES!=best).any(1)

TABLE = make_table('1 | 1 1 | 1 1 1')

def minibatch(table, common=.05, own=.02, generator=None):
    "A function of codes that returns noisy rewards; each call is a minibatch."
    def score(codes):
        e = torch.randn(len(codes)+1, generator=generator)
        return table[codes@PLACE] + common*e[0] + own*e[1:]
    return score

def flat(grads): return torch.cat([g.flatten() for g in grads])
def stderr(x): return (x.std()/len(x)**.5).item()

@pytest.fixture(scope='module')
def listed():
    "An untrained policy, all its probabilities and scores, the exact gradient and mean reward."
    torch.manual_seed(0)
    c = Controller(LISTED, BASE)
    log_p = c.score(CODES).log_prob
    params = list(c.parameters())
    G = torch.autograd.grad(log_p, params, torch.eye(len(CODES)), is_grads_batched=True, retain_graph=True)
    G, p = torch.cat([g.flatten(1) for g in G], 1), log_p.detach().exp()
    auto = flat(torch.autograd.grad(log_p.exp()@TABLE, params))
    return SimpleNamespace(c=c, p=p, G=G, exact=(p*TABLE)@G, auto=auto, J=(p@TABLE).item())

def test_exact_gradient_and_baselines(listed):
    p, G, exact = listed.p, listed.G, listed.exact
    assert torch.equal(CODES@PLACE, torch.arange(216))
    assert str(LISTED.archs(CODES[TABLE.argmax()][None])[0])=='1 1 1 1 1 1' and TABLE.max().item()==pytest.approx(.9)
    torch.testing.assert_close(exact, listed.auto, atol=1e-6, rtol=0)
    assert (p@G).norm() < 1e-6
    torch.testing.assert_close((p*(TABLE-.7))@G, exact, atol=1e-6, rtol=0)

def test_single_estimates_are_unbiased_and_a_baseline_calms_them(listed):
    p, G, exact, J = listed.p, listed.G, listed.exact, listed.J
    along = G@exact/exact.norm()**2
    m = torch.multinomial(p, 20_000, replacement=True, generator=torch.Generator().manual_seed(0))
    none, mean = ((TABLE[m]-b)*along[m] for b in (0., J))
    for x in (none, mean): assert abs(x.mean()-1) < 4*stderr(x)
    assert none.std() > 5*mean.std()
    G2 = (G**2).sum(1)
    def variance(b): return ((p*(TABLE-b)**2*G2).sum() - exact.norm()**2).item()
    best_b = ((p*TABLE*G2).sum()/(p*G2).sum()).item()
    assert best_b == pytest.approx(J, abs=.01)
    assert variance(best_b) <= variance(J) < variance(0)/50

def test_whole_steps_under_common_noise(listed):
    p, G, exact, J = listed.p, listed.G, listed.exact, listed.J
    along, K, n, N = G@exact/exact.norm()**2, G@G.T, 10, 600
    settled = MovingAverage(); settled.value = J
    rivals, error = {'none': torch.zeros_like, 'average': settled, 'loo': LeaveOneOut()}, {}
    for common,(name,baseline) in itertools.product((0., .05, .15), rivals.items()):
        gen = torch.Generator().manual_seed(1)
        m = torch.multinomial(p, N*n, replacement=True, generator=gen).view(N, n)
        f = minibatch(TABLE, common, generator=gen)
        R = torch.stack([f(CODES[o]) for o in m])
        A = torch.stack([o-baseline(o) for o in R])/n
        a = torch.zeros(N, 216).scatter_add_(1, m, A) - p*TABLE
        x = (A*along[m]).sum(1)
        assert abs(x.mean()-1) < 4*stderr(x), (name, common)
        error[name,common] = (((a@K)*a).sum(1).mean()/exact.norm()**2).item()
    assert all(error['none',c] > 3*error['average',c] for c in (0., .05, .15))
    assert .8 < error['loo',0.]/error['average',0.] < 1.4
    assert error['loo',.05] < error['average',.05] and error['loo',.15] < error['average',.15]/3
    assert error['loo',0.] == pytest.approx(error['loo',.15], rel=1e-2)

def test_rank_credit_follows_the_chance_to_beat_three(listed):
    p, G = listed.p, listed.G
    F = (p*((TABLE[:,None]>TABLE) + .5*(TABLE[:,None]==TABLE))).sum(1)     # to beat one draw of the policy
    m = torch.multinomial(p, 40_000, replacement=True, generator=torch.Generator().manual_seed(0)).view(4000, 10)
    for credit,power in ((ranks, 1), (rank_credit, 3)):
        A = torch.stack([r-LeaveOneOut()(r) for r in map(credit, TABLE[m])])/10
        g, own = torch.zeros(216).scatter_add_(0, m.flatten(), A.flatten())/4000@G, (p*F**power)@G
        assert torch.cosine_similarity(g, own, 0) > .995, power
        if power==1: assert (g.norm()/own.norm()).item()==pytest.approx(10/9, rel=.02)

def test_gradient_of_the_loss_is_the_estimate(listed):
    rf = Reinforce(listed.c, replace(BASE, baseline='leave-one-out'))
    w = listed.c.sample(10, torch.Generator().manual_seed(0))
    R, rows = TABLE[w.codes@PLACE], listed.G[w.codes@PLACE]
    got = flat(torch.autograd.grad(rf.loss(w, R), list(listed.c.parameters())))
    torch.testing.assert_close(got, -((R-LeaveOneOut()(R))[:,None]*rows).mean(0), atol=1e-6, rtol=0)

def truth(c, table):
    "Exact expected reward, entropy, and probability of the best architecture."
    with torch.no_grad(): lp = c.score(CODES).log_prob
    return SimpleNamespace(J=(lp.exp()@table).item(), H=-(lp.exp()@lp).item(), best=lp[table.argmax()].exp().item())

def learn(seed, table=TABLE, n_steps=50, common=.05, own=.02, goal=None, cls=Reinforce, **kw):
    "A trained policy's `truth` every 5 steps, and whether its mode is the table's best."
    torch.manual_seed(seed)
    gen = torch.Generator().manual_seed(seed)
    rf = cls(Controller(LISTED, replace(BASE, **kw)))
    f, looks = minibatch(table, common, own, gen), []
    for i in range(n_steps+1):
        if i%5==0: looks.append(truth(rf.controller, table))
        rf.step(f, gen)
    return looks, (rf.controller.mode().codes@PLACE).item()==table.argmax().item()

def test_the_policy_finds_the_best_architecture():
    goal, needed = .95*TABLE.max().item(), {}
    for b in ('moving-average', 'leave-one-out'):
        for seed in range(3):
            looks, found = learn(seed, baseline=b)
            assert found and .4 < looks[-1].best < .66 and looks[-1].H < 2.6, (b, seed)
            needed[b,seed] = next(10*5*i for i,o in enumerate(looks) if o.J>=goal)
    assert sorted(needed['leave-one-out',s] for s in range(3))[1] < sorted(needed['moving-average',s] for s in range(3))[1]
    e3, e1 = math.exp(3), math.exp(2*1.5)                                  # an op: logits ±1.5; a skip: σ(2·1.5)
    assert (e3/(e3+2))**3 * (e1/(e1+1))**3 == pytest.approx(.65, abs=.01) # the most that is possible

class Surprised(Reinforce):
    "Pays surprise, -log π(m), and not the path entropy."
    def paid(self, walk, rewards): return rewards - self.preset.entropy_weight*walk.log_prob.detach()

def test_what_an_entropy_in_the_reward_does():
    torch.manual_seed(0)
    gen = torch.Generator().manual_seed(0)
    rf = Reinforce(Controller(LISTED, replace(BASE, baseline='leave-one-out')))
    for _ in range(15): rf.step(minibatch(TABLE, generator=gen), gen)
    w, params = rf.controller.score(CODES), list(rf.controller.parameters())
    lp, p = w.log_prob, w.log_prob.detach().exp()
    def grad(y): return flat(torch.autograd.grad(y, params, retain_graph=True))
    H = -(lp.exp()*lp).sum()
    of_H = grad(H)
    path, sampled, surprise = w.entropy.detach(), reported_entropy(w).detach(), -lp.detach()
    by = grad((p*surprise*lp).sum())                                       # E[-log π ∇log π]
    assert torch.cosine_similarity(by, of_H, 0).item() == pytest.approx(1, abs=1e-3)
    assert (by.norm()/of_H.norm()).item() == pytest.approx(1, abs=1e-3)
    assert (p@path).item() == pytest.approx(H.item(), abs=1e-4)            # the right value,
    assert grad((p*path*lp).sum()).norm() < .1*of_H.norm()                 # and next to no gradient
    assert (p@sampled) < .7*H

def test_a_trap_that_surprise_leaves_and_path_entropy_does_not():
    "The last skip should be off. Skip logits share their weights, and two of three want on."
    trap = dict(table=make_table('1 | 1 1 | 1 1 0'), baseline='leave-one-out')
    tried = [(Surprised, 0.), (Surprised, .02), (Surprised, .1), (Reinforce, .02)]
    runs = {(cls,w): learn(1, cls=cls, entropy_weight=w, **trap) for cls,w in tried}
    last = {k: looks[-1] for k,(looks,_) in runs.items()}
    assert [runs[tried[i]][1] for i in (0, 1, 3)] == [False, True, False]
    assert last[Surprised,.02].best > .3 > last[Surprised,.1].best         # too much is too much
    assert last[Surprised,.1].H > 4.5
    assert abs(last[Reinforce,.02].J - last[Surprised,0.].J) < .01

def test_a_large_learning_rate_collapses():
    runs = {lr: [learn(seed, lr=lr, own=.1)[0] for seed in range(2)] for lr in (BASE.lr, .1)}
    def mean(lr, f): return sum(map(f, runs[lr]))/2
    assert mean(.1, lambda o: o[-1].J) < mean(BASE.lr, lambda o: o[-1].J)-.03
    assert mean(.1, lambda o: o[2].H)  < mean(BASE.lr, lambda o: o[2].H)-1    # after 100 rewards

def test_the_released_adam_hardly_moves_on_small_rewards(listed):
    rf = Reinforce(listed.c, BASE)
    w = listed.c.sample(10, torch.Generator().manual_seed(0))
    g = flat(torch.autograd.grad(rf.loss(w, TABLE[w.codes@PLACE]), list(listed.c.parameters()))).abs()
    assert (g<1e-3).float().mean() > .95
    o = released['macro'].controller
    looks,_ = learn(0, baseline='leave-one-out', lr=o.lr, betas=o.betas, eps=o.eps)
    assert looks[-1].H > .99*math.log(216)

# --- the skip prior, and rewards of language models ------------------------------------------------------------------------------

def test_both_formulas_of_the_skip_prior():
    "As functions of the probability of the one skip of a walk that is made by hand."
    P, step = torch.linspace(.02, .9, 881)[:,None], MacroSpace(2).steps[-1]    # in thousandths
    d = Decision(step, torch.stack([1-P, P], -1).log(), torch.ones(P.shape, dtype=torch.long))
    w, P = Walk(torch.ones(P.shape, dtype=torch.long), d.log_prob.sum(1), d.entropy.sum(1), (d,)), P[:,0]
    torch.testing.assert_close(skip_penalty(w), P*(P/.4).log() + (1-P)*((1-P)/.6).log(), atol=1e-5, rtol=0)
    Q = (P.logit()/2).sigmoid()                                                # σ(q), where P = σ(2q)
    torch.testing.assert_close(skip_penalty(w, released=True), Q*(Q/.4).log() + (1-Q)*((1-Q)/.6).log(), atol=1e-5, rtol=0)
    low, low_released = (P[skip_penalty(w, released=o).argmin()].item() for o in (False, True))
    assert low == pytest.approx(.4, abs=1e-5)
    assert low_released == pytest.approx(torch.sigmoid(2*torch.tensor(.4).logit()).item(), abs=1e-3)
    for bad in (0., 1.):
        with pytest.raises(ValueError, match='more than 0 and less than 1'): skip_penalty(w, bad)

@pytest.mark.parametrize('formula,rate', [(False, .40), (True, .308)], ids=['kl', 'released'])
def test_the_prior_alone(formula, rate):
    torch.manual_seed(0)
    c, gen = Controller(MacroSpace(2), BASE), torch.Generator().manual_seed(0)
    opt = torch.optim.Adam(c.parameters(), lr=2e-2)
    for _ in range(40):
        opt.zero_grad(); skip_penalty(c.sample(2, gen), released=formula).mean().backward(); opt.step()
    w = c.sample(20_000, gen)
    assert torch.equal(skip_count(w), w.codes[:,2])                            # 2 layers have 1 possible skip
    assert skip_count(w).float().mean().item() == pytest.approx(rate, abs=.02)

def test_ppl_reward():
    logits, words = torch.zeros(2, 3, 40), torch.arange(6).view(2, 3)
    assert ppl_reward(logits, words).item() == pytest.approx(80/40)            # who knows nothing has the vocabulary's perplexity
    assert ppl_reward((logits, None), words, c=1.).item() == pytest.approx(1/40)
    worst = 80*math.exp(-12)
    assert ppl_reward((logits*float('nan'), None), words).item() == pytest.approx(worst)
    sure = torch.zeros(2, 3, 40); sure[...,39] = 100.                          # sure, and wrong
    assert ppl_reward(sure, words).item() == pytest.approx(worst)
