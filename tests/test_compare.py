"Several runs of a recipe beside fair rivals: what is written down, what is gone on with, what is said."
import json, math
from dataclasses import replace
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, settings, strategies as st
from scipy import stats

from enas_nb.cli import enas_compare, enas_evaluate, enas_search
from enas_nb.controller import Controller
from enas_nb.cost import count_params
from enas_nb.comparison import Comparison, answer, checklist, compare, comparison_report, plot_arms, t_interval
from enas_nb.evaluate import arm_names, check_arms, evolve, further_arms, mutate, size_twin
from enas_nb.macro import MacroSpace
from enas_nb.micro import MicroSpace
from enas_nb.recipes import recipes
from enas_nb.recurrent import RecurrentSpace
from enas_nb.space import TinySpace
from forked import Forked

quiet = lambda line: None

def tiny(**kwargs):
    r = recipes['digits-macro']
    p = r.preset.override(controller=dict(steps=2), search=dict(n_layers=2, width=4), final=dict(n_layers=2, width=4))
    sizes = dict(n_children=2, n_random=2, n_derive=3, n_look=2) | kwargs
    return replace(r, space=MacroSpace(2), preset=p, **sizes).with_epochs(1)

@pytest.fixture(scope='module')
def all_arms(tmp_path_factory):
    out = tmp_path_factory.mktemp('compare')/'all'
    return out, compare(tiny(arms=further_arms), out, seeds=(3, 5), log=quiet)

# twins and evolution

@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from([MacroSpace(4), MicroSpace(2)]))
def test_a_twin_has_about_as_many_parameters(seed, space):
    arch = space.archs(space.random(1, seed))[0]
    params = lambda o: sum(count_params(o, width=4, **{} if space.name=='macro' else dict(n_layers=3)))
    twin = size_twin(arch, params, seed)
    assert abs(params(twin)/params(arch)-1) <= .1 and size_twin(arch, params, seed)==twin

def test_twins_are_uniform_over_what_has_that_size():
    "Where the ops' sizes are 0 and 1, all architectures with as many ones are equally likely."
    space, ones = TinySpace(), lambda o: 10+sum(o.code[i]==0 for i in (0, 2, 4))
    start = space.parse('0 0 1 0 1')
    twins = [size_twin(start, ones, i, tol=.01) for i in range(3240)]
    assert set(map(ones, twins))=={11}
    counts = np.unique([o.code for o in twins], axis=0, return_counts=True)[1]
    assert len(counts)==3*3*3*6 and stats.chisquare(counts).pvalue > 1e-4

def test_the_largest_has_a_twin():
    space = MacroSpace(6)
    size  = lambda o: sum(count_params(o, width=4))
    arch  = space.parse('2 '+' '.join('2 '+'1 '*i for i in range(1, 6)))
    twins = [size_twin(arch, size, i, tries=5) for i in range(5)]
    assert all(abs(size(o)/size(arch)-1)<=.1 for o in twins) and len({*twins, arch})>1

def test_a_mutation_changes_one_integer():
    rng, space = np.random.default_rng(0), MacroSpace(4)
    arch = space.archs(space.random(1, 0))[0]
    for _ in range(50):
        other = mutate(arch, rng)
        assert sum(a!=b for a,b in zip(arch.code, other.code))==1
        arch = other

def test_evolution_finds_what_random_search_does_not():
    space = MacroSpace(6)
    score = lambda archs: [sum(o==2 for o in a.code) + sum(a.code) for a in archs]
    seen  = []
    def counted(archs): seen.extend(archs); return score(archs)
    alive = evolve(space, counted, 600, seed=0)
    assert len(seen)==600 and len(alive)==50
    assert max(score(alive)) > max(score(space.archs(space.random(600, 1))))
    assert evolve(space, score, 60, seed=1)==evolve(space, score, 60, seed=1)

def test_evolution_survives_what_is_no_number():
    space = MacroSpace(3)
    score = lambda archs: [math.nan if a.code[0]==5 else -a.code[0] for a in archs]
    fives = [o.code[0]==5 for o in evolve(space, score, 300, seed=0)]
    assert sum(fives) < 50/6/2 # only as mutations, never as parents

# intervals

def test_an_interval_is_students():
    x = [1., 4., 2., 2.5]
    mean, low, high, n = t_interval(x)
    known = stats.ttest_1samp(x, 0).confidence_interval(.95)
    assert (mean, n)==(np.mean(x), 4) and (low, high)==pytest.approx((known.low, known.high))
    assert t_interval([1., 1.1]).verb=='better' and t_interval([-1., -1.1]).verb=='worse'
    assert t_interval([7.]).verb=='not told apart'
    assert t_interval([2., 2., 2.]).verb=='not told apart' # no spread tells nothing
    assert t_interval([]).verb=='not told apart' and t_interval([]).n==0

def rows(*nets, measure='accuracy'):
    cols = ['seed', 'arm', 'i', 'test', 'valid', 'shared', 'params', 'search_macs', 'train_macs']
    return Comparison(pd.DataFrame([dict(zip(cols, o)) | dict(recipe='r', measure=measure, arch=str(k)) for k,o in enumerate(nets)]))

def test_a_difference_is_paired_within_a_seed():
    c = rows((0, 'children', 1, .9, .9, 1, 5, 9, 1), (0, 'children', 2, .8, .9, 1, 5, 9, 1),
             (0, 'equal', 0, .1, .9, 1, 5, 0, 1), (0, 'equal', 1, .88, .9, 1, 5, 0, 1), (0, 'equal', 2, .79, .9, 1, 5, 0, 1),
             (1, 'children', 1, .7, .9, 1, 5, 9, 1), (1, 'equal', 1, .6, .9, 1, 5, 0, 1))
    assert list(c.gains('children', 'equal'))==pytest.approx([1.5, 10.]) # points; equal 0 has no partner
    assert c.difference('children', 'equal').n==2

def test_perplexities_gain_by_their_ratio_and_the_diverged_stay_out():
    c = rows((0, 'children', 1, 100., 90., 1, 5, 9, 1), (0, 'children', 2, np.nan, np.nan, 1, 5, 9, 1),
             (0, 'random', 1, 200., 190., 2, 5, 0, 1), (0, 'random', 2, 100., 90., 2, 5, 0, 1), measure='perplexity')
    assert list(c.gains('children', 'random'))==pytest.approx([math.log(2)/2]) # the geometric mean of both
    assert c.improvement('children').mean==pytest.approx(100*(150-100)/150)
    assert '| 3, 1 diverged |' in comparison_report(rows(*[(s, a, 1, t, t, k, 5, 1, 1) for s in (0, 1) for a,t,k in (
        ('derived', 90., 3), ('children', 95., 2), ('random', 100.+s, 1))], (0, 'random', 2, np.nan, np.nan, 0, 5, 1, 1), measure='perplexity'))

def test_survivors_alone_are_not_better():
    nets = [(s, 'children', i, .9+.001*s if i==1 else np.nan, .9, 1, 5, 9, 1) for s in range(3) for i in (1, 2, 3)]
    nets += [(s, 'random', i, .8+.002*s if i==1 else .95, .9, 1, 5, 0, 1) for s in range(3) for i in (1, 2, 3)]
    said = answer(rows(*nets, *[(s, 'derived', 0, .9, .9, 1, 5, 9, 1) for s in range(3)]))
    assert 'not told apart' in said and '6 of 9 children diverged' in said

@pytest.mark.parametrize('arm', ['derived', 'children', 'random', 'shared', 'equal'])
def test_an_arm_that_diverged_as_a_whole_does_not_stop_the_report(arm):
    nets = [(s, a, i, np.nan if a==arm else .8+.01*i+.02*s, .8+.01*i, i, 5, 1, 1) for s in (0, 1)
            for a,i in (('derived', 0), ('children', 1), ('random', 1), ('random', 2), ('equal', 0), ('equal', 1), ('shared', 0))]
    text = comparison_report(rows(*nets))
    assert 'none' in text and 'nan' not in text and 'diverged' in text
    plot_arms(rows(*nets))

def test_a_column_has_one_reference():
    "All random networks of a seed, whatever the arm."
    nets = [(s, 'derived', 0, .9, .9, 1, 5, 1, 1) for s in (0, 1)] + [(s, 'children', i, .8+.01*s, .9, 1, 5, 1, 1) for s in (0, 1) for i in (1, 2)]
    nets += [(s, 'random', i, t, .9, 1, 5, 0, 1) for s in (0, 1) for i,t in ((1, .7), (2, .7), (3, 1.))]
    c = rows(*nets)
    assert list(c.gains('children', 'random'))==pytest.approx([0, 1]) and list(c.gains('derived', 'random'))==pytest.approx([10, 10])
    assert c.improvement('children').mean==pytest.approx(100*.005/.8)

def test_all_images_trained_on_leave_nothing_to_choose_by():
    nets = [(s, a, i, .8+.01*i, np.nan, 1, 5, 1, 1) for s in (0, 1) for a,i in (('derived', 0), ('children', 1), ('random', 1), ('random', 2))]
    c = rows(*nets)
    assert len(c.curse())==0 and 'random search is one random network' in comparison_report(c)

def test_the_curse_is_a_mean_over_all_seeds():
    nets = [(0, 'random', i, .5+.1*i, .5+.1*i, 1, 5, 0, 1) for i in (1, 2, 3)] + [(1, 'random', i, .1*i, .1*i, 1, 5, 0, 1) for i in (1, 2)]
    c = rows(*nets, *[(s, 'derived', 0, .9, .9, 1, 5, 9, 1) for s in (0, 1)]).curse()
    assert list(c.index)==[1, 2] and c.valid.is_monotonic_increasing

def test_ranks_of_one_architecture_agree_with_nothing():
    c = rows(*[(0, 'random', i, .5, .5, 1, 5, 0, 1) for i in (1, 2)], (0, 'derived', 0, .5, .5, 1, 5, 9, 1), (0, 'children', 1, .5, .5, 1, 5, 9, 1))
    assert c.tau().n==0 and not [o for o in ('nan', '(-inf', '+inf') if o in comparison_report(c)]

@pytest.mark.parametrize('change,said', [
    (lambda t: t.drop(columns='shared'), 'no column shared'), (lambda t: t[:0], 'no row'), (lambda t: t.assign(arm=t.arm.str.title()), "no arm 'Derived'"),
    (lambda t: t.assign(measure='luck'), "measure is 'luck'"), (lambda t: pd.concat([t, t]), 'more than one row'),
    (lambda t: t.assign(test=t.test.map('{:.1%}'.format)), "'90.0%', a number is needed"), (lambda t: t.assign(seed=np.nan), 'seed has an empty place'),
    (lambda t: t.assign(recipe=[f'r{i}' for i in range(len(t))]), 'more than one recipe'), (lambda t: t[(t.arm!='children')|(t.seed==0)], 'different arms')])
def test_a_table_is_checked_when_it_is_given(change, said):
    good = rows(*[(s, a, i, .9, .9, 1, 5, 1, 1) for s in (0, 1) for a,i in (('derived', 0), ('children', 1), ('random', 1))]).table
    with pytest.raises(ValueError, match=said): Comparison(change(good))

def test_random_search_gets_what_the_search_has_cost():
    nets = [(0, 'derived', 0, .9, .9, 1, 5, 15., 10.)]
    nets += [(0, 'random', i, .8, v, 1, 5, 0., 10.) for i,v in ((1, .5), (2, .7), (3, .9))]
    rival = rows(*nets).rows('search').iloc[0]
    assert rival.valid==.7 and rival.train_macs==20. # the third could not be paid for

def test_the_curse_counts_every_choice():
    c = rows(*[(0, 'random', i, t, v, 1, 5, 0, 1) for i,(t,v) in enumerate([(.5, .6), (.7, .5), (.6, .7)], 1)],
             (0, 'derived', 0, .9, .9, 1, 5, 9, 1))
    curse = c.curse()
    assert list(curse.valid)==pytest.approx([.6, (.6+.7+.7)/3, .7]) and list(curse.test)==pytest.approx([.6, (.5+.6+.6)/3, .6])

def test_shared_scores_that_rank_as_perplexities_agree():
    c = rows(*[(s, 'random', i, 100.+i, 1., -i, 5, 0, 1) for s in (0, 1) for i in (1, 2, 3)], measure='perplexity')
    assert c.tau().mean==pytest.approx(1)

# a comparison

def test_every_arm_has_its_networks(all_arms):
    _, table = all_arms
    counts = table[table.seed==3].arm.value_counts()
    assert set(counts.index)=={'derived', 'children', 'random', *further_arms}
    assert {k: counts[k] for k in counts.index if k!='random'}==dict(derived=1, children=2, equal=3, shared=1, evolution=1,
                                                                    untrained=2, released=1, released_children=2)
    assert counts['random']>=2 and set(table.seed)=={3, 5}
    free = table.arm.isin(['random', 'equal', 'untrained'])
    assert (table[free].search_macs==0).all() and (table[~free].search_macs>0).all()
    ours, twins = (table[table.arm.isin(o)].set_index(['seed', 'i']).params for o in (['derived', 'children'], ['equal']))
    assert (abs(twins/ours-1)<=.1).all()

def test_a_report_says_it_in_one_sentence_with_its_interval(all_arms):
    c = Comparison(all_arms[1])
    gain = c.difference('children', 'equal')
    said = answer(c)
    assert said.startswith("Over 2 seeds the policy's children are") and said.count('. ')==0
    assert f'{gain.mean:+.2f} points ({gain.low:+.2f} to {gain.high:+.2f})' in said
    text = comparison_report(c, json.loads((all_arms[0]/'protocol.json').read_text()))
    assert all(arm_names[o] in text for o in c.arms) and 'nan' not in text
    assert len(plot_arms(c).axes[0].get_yticks())==len(c.arms)-1
    assert len(checklist(c))==16 and dict(checklist(c))['The same protocol of evaluation?'].startswith('no') and len(checklist(c))==16

def test_a_comparison_is_begun_once_and_gone_on_with(all_arms, tmp_path):
    out, table = all_arms
    again = compare(tiny(arms=further_arms), out, seeds=(3, 5), log=quiet)
    pd.testing.assert_frame_equal(again, table)
    for kwargs,word in ((dict(seeds=(3, 5, 6)), 'seeds'), (dict(seeds=(3, 5), arms=('equal',)), 'recipe')):
        with pytest.raises(ValueError, match=f'begun with other.*{word}'): compare(tiny(arms=further_arms), out, log=quiet, **kwargs)
    (tmp_path/'thesis.tex').write_text('my work')
    with pytest.raises(ValueError, match='holds other things'): compare(tiny(), tmp_path, log=quiet)
    assert not (tmp_path/'protocol.lock').exists()
    for seeds,error in (((), ValueError), ((1, 1), ValueError), ([-1], ValueError), ([.5], TypeError), ([2**32], ValueError), (0, ValueError)):
        with pytest.raises(error, match='seed'): compare(tiny(), tmp_path/'new', seeds=seeds, log=quiet)
    assert not (tmp_path/'new').exists()
    with pytest.raises(ValueError, match='a list of names'): tiny(arms='equal')
    assert tiny(arms=['shared', 'equal', 'shared']).arms==('equal', 'shared')

def test_a_seed_of_another_comparison_is_refused(tmp_path, all_arms):
    one = tiny(arms=())
    compare(one, tmp_path/'a', seeds=[0, 1], device=torch.device('cpu'), log=quiet)
    for o in (tmp_path/'a/seed0').rglob('*'):
        if o.is_file(): o.write_bytes((tmp_path/'a/seed1'/o.relative_to(tmp_path/'a/seed0')).read_bytes()) if (tmp_path/'a/seed1'/o.relative_to(tmp_path/'a/seed0')).is_file() else None
    with pytest.raises(ValueError, match='another seed'): compare(one, tmp_path/'a', seeds=[0, 1], log=quiet)
    (tmp_path/'a/protocol.json').write_text('{"rec')
    with pytest.raises(ValueError, match='protocol.json is damaged'): compare(one, tmp_path/'a', seeds=[0, 1], log=quiet)

def test_what_is_lost_is_written_again(tmp_path):
    one = tiny(arms=())
    table = compare(one, tmp_path/'a', seeds=[0], log=quiet)
    for o in ('seed0/result.json', 'seed0/report.md', 'table.csv'): (tmp_path/'a'/o).unlink()
    pd.testing.assert_frame_equal(compare(one, tmp_path/'a', seeds=[0], log=quiet), table)
    assert (tmp_path/'a/table.csv').exists() and (tmp_path/'a/seed0/result.json').exists()

def test_an_interrupted_comparison_goes_on(tmp_path, all_arms):
    class Enough(Exception): pass
    lines = []
    def log(line):
        if not line.startswith('  !'): lines.append(line) # alarms come between
        if len(lines)==7: raise Enough
    with pytest.raises(Enough): compare(tiny(arms=further_arms), tmp_path/'c', seeds=(3,), log=log)
    kept = sorted(o.name for o in (tmp_path/'c/seed3/tasks').glob('*.json'))
    assert 'search.json' in kept and 'derived.json' in kept
    table = compare(tiny(arms=further_arms), tmp_path/'c', seeds=(3,), log=quiet)
    first = all_arms[1][all_arms[1].seed==3]
    pd.testing.assert_frame_equal(table, first.reset_index(drop=True))

def test_two_processes_take_different_seeds(tmp_path):
    out = tmp_path/'both'
    def run(argv): compare(tiny(arms=()), out, seeds=range(2), log=lambda o: print(o, flush=True))
    procs = [Forked(run, []) for _ in range(2)]
    said  = [p.communicate(timeout=300)[0] for p in procs]
    assert [p.returncode for p in procs]==[0, 0]
    assert sum('derived:' in o for s in said for o in s.splitlines())==2 # each seed was searched once
    assert set(pd.read_csv(out/'table.csv').seed)=={0, 1} and not list(out.glob('*.lock'))

def test_arms_are_checked_when_they_are_named():
    with pytest.raises(ValueError, match="no arm 'twin', allowed are equal"): tiny(arms=('twin',))
    with pytest.raises(ValueError, match='always there'): check_arms(['children'])
    assert check_arms(['equal'])==('equal',)

def test_the_released_policy_reads_as_many_images():
    for name in ('digits-macro', 'cifar10-micro-small', 'text-small'):
        ours = recipes[name]; theirs = ours.as_released
        def reads(r):
            s, t = r.preset.search, r.preset.controller
            return t.n_steps(s.n_epochs)*t.n_archs*(s.reward_bs or s.bs)
        assert reads(theirs)==pytest.approx(reads(ours), rel=.25), name
        assert theirs.preset.search.paths=='policy' and theirs.preset.final==ours.preset.final
        assert theirs.preset.search.width==ours.preset.search.width and theirs.preset.controller.warmup==0

def test_nothing_was_released_for_a_space_of_ones_own():
    p = replace(recipes['digits-macro'].preset, space='any')
    with pytest.raises(ValueError, match='nothing was released'): tiny(arms=('released',)).__class__(
        **{**tiny().__dict__, 'preset': p, 'arms': ('released',)})

# commands

def test_the_commands_say_what_is_wrong(capsys, tmp_path, all_arms):
    out, _ = all_arms
    old = tmp_path/'old'; old.mkdir(); (old/'result.json').write_text('{"test_accuracy": 0.5}')
    begun = tmp_path/'begun'; begun.mkdir(); (begun/'protocol.json').write_text('{}')
    cut = tmp_path/'cut'; cut.mkdir(); (cut/'protocol.json').write_bytes((out/'protocol.json').read_bytes())
    table = pd.read_csv(out/'table.csv'); table[table.seed==3].to_csv(cut/'table.csv', index=False)
    trained = tmp_path/'trained'; trained.mkdir(); (trained/'result.json').write_text('{"arch": "0", "test_accuracy": 0.5}')
    (old/'result.json').write_text('{"test_accuracy": 0.5, "random_archs": []}')
    for words,said in ((['nowhere'], 'holds no finished run'), ([str(old)], 'older version'), ([str(begun)], 'not finished'),
                       ([str(out), str(out)], 'the same seed'), ([str(cut)], 'other seeds than protocol.json'),
                       ([str(trained)], 'training of one architecture')):
        assert enas_evaluate(words)==2
        err = capsys.readouterr().err
        assert err.count('\n')==1 and said in err
    for words,said in ((['digits-makro', 'x'], 'no recipe'), (['digits-macro', str(tmp_path/'x'), '--arms', 'twin'], 'no arm'),
                       (['digits-macro', str(tmp_path)], 'holds other things'), (['digits-macro', ''], 'a path is needed'),
                       (['digits-macro', 'x', '--text', 'no.txt'], 'there is no no.txt'), (['digits-macro', 'x', '--epochs', '0'], 'allowed is 1')):
        assert enas_compare(words)==2
        err = capsys.readouterr().err
        assert err.count('\n')==1 and said in err, err

def test_a_seed_of_a_comparison_is_no_run_of_its_own(capsys, all_arms):
    assert enas_search(['--resume', str(all_arms[0]/'seed3')])==2
    assert 'is one seed of a comparison' in capsys.readouterr().err

@pytest.mark.parametrize('text', ['1e3', '-1', '', '20240101'])
def test_seeds_are_a_number_or_a_list(text, capsys):
    with pytest.raises(SystemExit): enas_compare(['digits-macro', 'x', '--seeds', text])
    assert 'argument --seeds' in capsys.readouterr().err

def test_a_folder_is_evaluated(capsys, all_arms):
    out, table = all_arms
    assert enas_evaluate([str(out)])==0
    said = capsys.readouterr().out
    assert answer(Comparison(table)) in said and 'written down before the first run' in said
    assert (out/'arms.png').read_bytes()[:4]==b'\x89PNG'
    assert enas_evaluate([str(out/'seed3'), str(out/'seed5')])==0
    assert answer(Comparison(table)) in capsys.readouterr().out
