"Nothing broken is reported as a result: what is not finite, a fit that ends early, a file of another search, alarms."
import copy, json, math, random, struct, warnings
from functools import partial
from types import SimpleNamespace
import numpy as np, pytest, torch
from fastai.callback.core import Callback
from fastai.learner import load_learner
from fastai.metrics import accuracy
from torch.nn import functional as F

from enas_nb.checkpoint import Checkpoint, learn_state, read_state
from enas_nb.controller import Controller
from enas_nb.data import digits_dls, images_dls
from enas_nb.evaluate import gain_over, measures
from enas_nb.macro import MacroSpace
from enas_nb.micro import MicroSpace
from enas_nb.presets import released, robust
from enas_nb.alarms import _ignorant, decided
from enas_nb.reinforce import Reinforce, loss_reward, ppl_reward
from enas_nb.report import verdict
from enas_nb.retrain import arch_learner
from enas_nb.search import search_learner
from enas_nb.steady import Diverged
from enas_nb.text import lm_dls
from enas_nb.recurrent import RecurrentSpace

pytestmark = pytest.mark.filterwarnings('ignore')
SMALL = released['macro'].override(controller=dict(steps=5, n_archs=3, baseline='leave-one-out', lr=1e-3),
                                   search=dict(bs=64, same_valid=False))

def make(space=MacroSpace(2), preset=SMALL, bs=64, seed=0, dls=None, **kw):
    torch.manual_seed(seed)
    return search_learner(dls or digits_dls(bs=bs, device='cpu'), space, preset=preset, **dict(width=4) | kw)

def fit(learn, *args, **kw):
    with learn.no_bar(), learn.no_logging(): learn.fit(*args, **kw)
    return learn

def text_dls(words=40):
    rng = np.random.default_rng(0)
    some = lambda n: [f'w{i}' for i in rng.integers(0, words, n)]
    return lm_dls(some(2000), some(600), some(600), bs=8, seq_len=10, device='cpu')

# --- A. not finite ---------------------------------------------------------------------------------------------------------

def test_a_search_that_diverges_stops_before_theta_moves_and_keeps_the_last_good_checkpoint(tmp_path):
    learn, folder = make(), tmp_path/'night'
    class Explode(Callback):
        def before_train(self):
            if self.epoch==1: self.opt.set_hyper('lr', 1e30)
    with pytest.raises(Diverged, match=r'diverged in epoch 2 of 3: the loss is .*; the learning rate was 1e\+30') as e:
        fit(learn, 3, .05, cbs=[Checkpoint(folder, log=lambda o: None), Explode()])
    assert all(p.isfinite().all() for p in learn.model.controller.parameters()) and len(str(e.value))<300
    kept = read_state(sorted(folder.glob('*.safetensors'))[-1])
    assert kept['fit']['epoch']==1 and all(v.isfinite().all() for v in kept['model'].values())

@pytest.mark.parametrize('space', [MacroSpace(2), MicroSpace(1)], ids=['macro', 'micro'])
def test_a_retraining_that_diverges_stops(space):
    learn = arch_learner(digits_dls(device='cpu'), space.archs(space.random(1))[0], width=4, **dict(n_layers=1, aux=False) if space.name=='micro' else {})
    with pytest.raises(Diverged, match='diverged in epoch 1 of 4'): fit(learn, 4, 1e30)

def test_lr_find_may_diverge():
    learn = make()
    with learn.no_bar(), learn.no_logging(): learn.lr_find(start_lr=1e-3, end_lr=1e30, num_it=14, show_plot=False, suggest_funcs=(), stop_div=False)

@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('kind', [float, np.float32, np.float64, torch.tensor])
def test_a_reward_that_is_not_finite_is_refused_before_theta_moves(bad, kind):
    seen = []
    def reward(pred, targ): seen.append(1); return kind(bad if len(seen)>3 else .5)
    learn = make(reward=reward)
    theta = copy.deepcopy(learn.model.controller.state_dict())
    with pytest.raises(ValueError, match='rewards are .*; θ learns from finite numbers only'): fit(learn, 1, .05)
    assert all(torch.equal(v, theta[k]) for k,v in learn.model.controller.state_dict().items())

@pytest.mark.parametrize('kind', [list, np.array, lambda o: np.array(o, np.float32), torch.tensor, lambda o: [round(x) for x in o]],
                         ids=['list', 'float64', 'float32', 'tensor', 'ints'])
def test_rewards_may_be_numbers_of_python_or_numpy(kind):
    theta = Reinforce(Controller(MacroSpace(2), SMALL.controller))
    said = theta.step(lambda codes: kind([float(o) for o in codes[:,0]]))
    assert all(v.isfinite() for v in said.values()) and all(p.isfinite().all() for p in theta.controller.parameters())

def nan_weights(learn):
    with torch.no_grad():
        for p in learn.model.net.parameters(): p.fill_(math.nan)
    return learn

@pytest.mark.parametrize('reward', ['accuracy', 'loss'])
def test_derive_refuses_what_it_cannot_score(reward):
    learn = nan_weights(fit(make(reward=reward), 1, .05))
    before = learn.model.arch
    with pytest.raises(ValueError, match='no score is a finite number: the shared weights have diverged'): learn.derive(4)
    assert learn.model.arch is before and learn.score_archs(learn.search.paths('x', 3)).isnan().all()

def test_derive_refuses_a_text_that_it_cannot_score():
    preset = released['recurrent'].override(controller=dict(steps=2, n_archs=2, baseline='leave-one-out'), search=dict(bs=8, bptt=10))
    torch.manual_seed(0)
    learn = nan_weights(fit(search_learner(text_dls(), RecurrentSpace(2), preset=preset, width=8), 1, .1))
    with pytest.raises(ValueError, match='no score is a finite number'): learn.derive(3)

def test_an_architecture_that_explodes_never_wins():
    learn = fit(make(), 1, .05)
    space = learn.model.controller.space
    with torch.no_grad():
        for p in learn.model.net.layers[0].ops['conv5x5'].parameters(): p.fill_(math.nan)
    archs = space.archs(space.random(12))
    assert learn.score_archs(archs).isnan().tolist()==[a.code[0]==2 for a in archs]
    best = learn.derive(30)
    assert best.code[0]!=2 and math.isfinite(best.scores[0][1])

def test_two_that_diverged_cannot_be_compared():
    m, none = measures['accuracy'], dict(test_accuracy=None)
    assert gain_over(m, none, none, 100).verb=='could not be compared with'
    said = verdict(dict(test_accuracy=None, equal_cost_rival=none, images=dict(test=100), policy_shared_accuracy=.1,
                        uniform_shared_accuracy=.1, paired_difference=dict(mean=None, se=0, n=0)))
    assert 'nothing to compare' in said and 'could not be told' not in said and 'nan' not in said

# --- D. a fit that ends early ----------------------------------------------------------------------------------------------

class Break(Callback):
    "Raises at one event of the second batch of a pass."
    def __init__(self, at, training, error): self.at, self.train_only, self.error = at, training, error
    def _go(self):
        if self.training==self.train_only and self.iter==1: raise self.error
    def before_batch(self): self.at=='before_batch' and self._go()
    def after_pred(self): self.at=='after_pred' and self._go()
    def after_step(self): self.at=='after_step' and self._go()
    def after_batch(self): self.at=='after_batch' and self._go()

@pytest.mark.parametrize('error', [KeyboardInterrupt, RuntimeError('x')])
@pytest.mark.parametrize('at', ['before_batch', 'after_pred', 'after_step', 'after_batch'])
@pytest.mark.parametrize('night', [False, True])
def test_a_fit_that_ends_early_leaves_no_path_behind(error, at, night, tmp_path):
    learn = make()
    own = learn.model.controller.space.archs(learn.model.controller.space.random(2, seed=3))
    cbs = [Break(at, True, error), *[Checkpoint(tmp_path/'n', log=lambda o: None)]*night]
    with pytest.raises((KeyboardInterrupt, RuntimeError)): fit(learn, 1, .05, cbs=cbs)
    assert learn.model.path is None
    for arch in own:
        learn.model.arch = arch
        learn.model.eval(); learn.model(torch.zeros(4, 1, 8, 8))
        assert learn.model.net.arch==arch
    learn.export(tmp_path/'e.pkl')
    assert load_learner(tmp_path/'e.pkl').model.path is None

@pytest.mark.parametrize('at', ['before_batch', 'after_pred'])
def test_a_validation_that_ends_early_leaves_no_path_behind(at):
    learn = fit(make(bs=32), 1, .05)
    with pytest.raises(KeyboardInterrupt), learn.no_bar(): learn.validate(cbs=Break(at, False, KeyboardInterrupt))
    assert learn.model.path is None

def test_an_interrupt_inside_a_network_leaves_no_path_behind():
    learn = make()
    def stop(*_): raise KeyboardInterrupt
    h = learn.model.net.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt): fit(learn, 1, .05)
    h.remove()
    assert learn.model.path is None and fit(learn, 1, .05).search.trained==1

# --- D. files of another search ------------------------------------------------------------------------------------------

def saved(learn, path): learn.save_search(path); return path

ops = MacroSpace.ops
others = dict(
    ops=(lambda: make(MacroSpace(2, ops=tuple(reversed(ops)))), r"space.ops\[0\] is 'conv3x3' in the file, 'max3x3' here"),
    temperature=(lambda: make(preset=SMALL.override(controller=dict(temperature=2.))), 'preset.controller.temperature is .* in the file, 2.0 here'),
    rate=(lambda: make(preset=SMALL.override(controller=dict(lr=.5))), 'preset.controller.lr is 0.001 in the file, 0.5 here'),
    seed=(lambda: search_learner(digits_dls(device='cpu'), MacroSpace(2), preset=SMALL, seed=1, width=4), 'seed is 0 in the file, 1 here'),
    classes=(lambda: make(dls=renamed()), r"words\[0\] is '0' in the file, 'zero' here"))

def renamed():
    dls = digits_dls(bs=64, device='cpu')
    xy  = [dl.dataset.tensors for dl in (dls.train, dls.valid)]
    return images_dls(*xy, ['zero', *'123456789'], bs=64, device='cpu')

@pytest.mark.parametrize('which', others)
def test_a_file_of_another_search_is_refused_though_its_shapes_fit(which, tmp_path):
    build, words = others[which]
    path, learn = saved(fit(make(), 1, .05), tmp_path/'s'), fit(build(), 1, .05)
    before = signature(learn)
    with pytest.raises(ValueError, match=words) as e: learn.load_search(path)
    assert signature(learn)==before and '\n' not in str(e.value)

def test_another_vocabulary_of_the_same_size_is_refused(tmp_path):
    preset = released['recurrent'].override(controller=dict(steps=2, n_archs=2, baseline='leave-one-out'), search=dict(bs=8, bptt=10))
    def searcher(word):
        words = lambda n: [word if i%7==0 else f'w{i%20}' for i in range(n)]
        return search_learner(lm_dls(words(2000), words(600), words(600), bs=8, seq_len=10, device='cpu'), RecurrentSpace(2), preset=preset, width=8)
    path = saved(fit(searcher('one'), 1, .1), tmp_path/'s')
    with pytest.raises(ValueError, match=r"words\[\d+\] is 'one' in the file, 'two' here"): searcher('two').load_search(path)
    searcher('one').load_search(path)

def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    space = MacroSpace(3)
    train = lambda code: fit(arch_learner(digits_dls(device='cpu'), space.parse(code), width=4), 1, .05, cbs=Checkpoint(tmp_path/'c', log=lambda o: None))
    train('4 4 0 4 0 0')
    with pytest.raises(ValueError, match="arch is '4 4 0 4 0 0' in the file, '5 4 0 4 0 0' here"): train('5 4 0 4 0 0')

def signature(learn):
    said = []
    def walk(o):
        if isinstance(o, torch.Tensor): said.append(o.detach().cpu().numpy().tobytes())
        elif isinstance(o, dict):
            for k in sorted(o, key=str): said.append(str(k)); walk(o[k])
        elif isinstance(o, (list, tuple)) or type(o).__name__=='L':
            for v in o: walk(v)
        else: said.append(repr(o))
    walk(learn_state(learn) | dict(arch=str(learn.model.arch)))
    return hash(tuple(said))

def places(o, at=()):
    "The places of all values in a tree of JSON."
    for k,v in (o.items() if isinstance(o, dict) else enumerate(o) if isinstance(o, list) else ()):
        yield (*at, k)
        yield from places(v, (*at, k))

junk = [None, True, -1, 10**30, 1.5, 'x', '', [], {}, dict(tensor='0'), dict(tensor='99999'), dict(list=[]), dict(dict=[]),
        dict(dict=[['a', 1]]), dict(stack=dict(tensor='0')), dict(foo=1), [1]]

def malformed(raw, rng):
    "The bytes of a file whose header has one value replaced or taken away."
    n = struct.unpack('<Q', raw[:8])[0]
    head = json.loads(raw[8:8+n])
    tree = json.loads(head['__metadata__']['enas_nb'])
    *at, last = rng.choice([*places(tree)])
    o = tree
    for k in at: o = o[k]
    if rng.random()<.2: del o[last]
    else: o[last] = rng.choice(junk)
    head['__metadata__'] = dict(enas_nb=json.dumps(tree)) # as older files, without a checksum
    text = json.dumps(head).encode()
    text += b' '*(-len(text)%8)
    return struct.pack('<Q', len(text)) + text + raw[8+n:]

def test_a_malformed_file_is_refused_whole_or_goes_on(tmp_path):
    rng, good, bad = random.Random(0), saved(fit(make(), 1, .05), tmp_path/'good'), tmp_path/'bad'
    raw, learn = good.read_bytes(), fit(make(), 1, .05)
    before, n = signature(learn), 0
    for i in range(60):
        bad.write_bytes(malformed(raw, rng) if i%4 else raw[:rng.randrange(len(raw))])
        try: learn.load_search(bad)
        except ValueError as e:
            n += 1
            assert '\n' not in str(e) and len(str(e))<=400 and signature(learn)==before, e
            continue
        fit(learn, 2, .05, start_epoch=1).derive(2)
        learn = fit(make(), 1, .05); before = signature(learn)
    assert n>40

def callback(state, name): return dict(state['cbs'])[name]
def theta(state): return callback(state, 'search')['parts']['reinforce']['opt']['param_groups'][0]

wrong_kinds = dict(
    rate_missing=(lambda d: d['opt']['param_groups'][0].pop('momentum'), 'lack numbers'),
    rate_text=(lambda d: d['opt']['param_groups'][0].update(lr='x'), 'param_groups.lr is .x. in the file, a number is needed'),
    momentum_text=(lambda d: next(iter(d['opt']['state'].values())).update(momentum_buffer=''), 'momentum_buffer is'),
    trained_list=(lambda d: callback(d, 'search')['own'].update(theta_seconds=[1]), r'theta_seconds is \[1\] in the file, a number is needed'),
    stats_text=(lambda d: callback(d, 'search')['own'].update(stats='x'), "stats is 'x' in the file, a dict is needed"),
    lost_weights=(lambda d: next(iter(d['model'].values())).fill_(math.nan), 'are not finite'),
    theta_lacks=(lambda d: theta(d).pop('betas'), 'betas of an optimiser is None'),
    theta_none=(lambda d: theta(d).update(eps=None), 'eps of an optimiser is None'),
    theta_short=(lambda d: theta(d).update(betas=(.5,)), r'betas of an optimiser is \(0.5,\)|betas of an optimiser is \[0.5\]'),
    epoch_text=(lambda d: d['fit'].update(epoch='1'), "epoch is '1' of"))

@pytest.mark.parametrize('which', wrong_kinds)
def test_a_piece_of_another_kind_is_refused_by_its_name(which, tmp_path):
    from enas_nb.checkpoint import write_state
    spoil, words = wrong_kinds[which]
    path, learn = saved(fit(make(), 1, .05), tmp_path/'s'), fit(make(), 1, .05)
    tree, before = read_state(path), signature(learn)
    spoil(tree); write_state(path, tree)
    with pytest.raises(ValueError, match=words) as e: learn.load_search(path)
    assert signature(learn)==before and '\n' not in str(e.value)

def test_a_file_may_be_overwritten_while_its_numbers_are_in_use(tmp_path):
    path, learn = saved(fit(make(), 1, .05), tmp_path/'s'), make()
    learn.load_search(path)
    path.write_bytes(b'') # a mapped file would end the process here
    fit(learn, 2, .05, start_epoch=1).derive(2)

def test_a_changed_bit_is_seen(tmp_path):
    path, rng = saved(fit(make(), 1, .05), tmp_path/'s'), random.Random(0)
    raw, learn = path.read_bytes(), make()
    for i in rng.sample(range(8, len(raw)), 40):
        path.write_bytes(raw[:i] + bytes([raw[i]^1]) + raw[i+1:])
        with pytest.raises(ValueError): learn.load_search(path)
    path.write_bytes(raw); learn.load_search(path)

def test_an_older_file_says_that_only_shapes_were_compared(tmp_path):
    from enas_nb.checkpoint import write_state
    path = saved(fit(make(), 1, .05), tmp_path/'s')
    write_state(path, {k: v for k,v in read_state(path).items() if k!='about'})
    with pytest.warns(UserWarning, match='is of an older version, which kept shapes only'): make().load_search(path)

# --- D. arguments ------------------------------------------------------------------------------------------------------------

wrong = [dict(n_out=0), dict(n_out=-1), dict(n_out=2.5), dict(width=0), dict(width=-1), dict(width=1.5), dict(width='a'), dict(lr=-1), dict(lr=math.nan),
         dict(lr=math.inf), dict(lr='a'), dict(wd=-1)]

@pytest.mark.parametrize('kw', wrong, ids=str)
@pytest.mark.parametrize('final', [False, True], ids=['search', 'final'])
def test_wrong_numbers_are_refused_at_construction(kw, final):
    space, (name,value) = MacroSpace(2), [*kw.items()][0]
    with pytest.raises((ValueError, TypeError), match=f'{name} is {value!r}'.replace('.', r'\.')) as e:
        if final: arch_learner(digits_dls(device='cpu'), space.archs(space.random(1))[0], **kw)
        else: make(**kw)
    assert '\n' not in str(e.value)

@pytest.mark.parametrize('lr', [-1., math.nan, math.inf])
def test_a_fit_refuses_a_wrong_rate_before_it_starts(lr):
    learn = make()
    before = copy.deepcopy(learn.model.state_dict())
    with pytest.raises(ValueError, match='the learning rate is .*, allowed is a number of 0 or more'): fit(learn, 1, lr)
    assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())

@pytest.mark.parametrize('warmup,words', [(math.nan, 'warmup is nan, not an integer'), (-1, 'warmup is -1, allowed is 0 to 309'), (310, 'warmup is 310, allowed is 0 to 309')])
def test_a_warmup_that_cannot_be_is_refused_at_construction(warmup, words):
    with pytest.raises((ValueError, TypeError), match=words): make(warmup=warmup)

def test_half_a_pixel_of_cutout_is_refused():
    space = MacroSpace(2)
    with pytest.raises(TypeError, match='the side of CutOut is 1.5, not an integer'): arch_learner(digits_dls(device='cpu'), space.archs(space.random(1))[0], cutout=1.5)

# --- E. alarms ---------------------------------------------------------------------------------------------------------------

def decide(learn, code, strength=50.):
    "A policy that draws `code` nearly always: REINFORCE on a table does it."
    theta = Reinforce(learn.model.controller, SMALL.override(controller=dict(lr=.05, n_archs=10, entropy_weight=0., skip_weight=0.)).controller)
    target = torch.tensor(code)
    for _ in range(300): theta.step(lambda codes: (codes==target).float().mean(1)*strength)

def alarms(learn, epochs=1): fit(learn, epochs, .05); return learn.search.alarms

def test_a_collapsed_policy_is_told_with_epoch_op_and_size():
    preset = SMALL.override(controller=dict(tanh_constant=60., temperature=1., skip_weight=0., entropy_weight=0.))
    learn = make(preset=preset)
    learn.search.first = learn.search.entropy()
    decide(learn, [2, 2, 1])
    said = [o for o in alarms(learn) if 'collapsed' in o]
    assert len(said)==1 and 'in epoch 1' in said[0] and '% of its ops are conv5x5' in said[0] and 'times the parameters of random ones' in said[0]
    assert fit(learn, 1, .05).search.alarms and any('in epoch 1' in o for o in learn.search.alarms) # not the second
    assert learn.recorder.metric_names.index('alarms') and learn.recorder.values[-1][-1]==len(learn.search.alarms)>=1

def test_a_policy_that_did_not_move_and_one_that_never_got_its_turn():
    with pytest.warns(UserWarning, match='hardly moved.*more steps'):
        assert any('hardly moved' in o for o in alarms(make(preset=SMALL.override(controller=dict(lr=1e-9)))))
    late = make(warmup=5)
    with pytest.warns(UserWarning, match='θ has not moved'): fit(late, 1, .05)
    assert 'has not moved' in late.search.alarms[0]

def test_a_baseline_that_lags():
    slow = SMALL.override(controller=dict(baseline='moving-average', baseline_decay=.999, steps=20))
    said = [o for o in alarms(make(preset=slow, reward=lambda p, y: 5+F.softmax(p, 1).max())) if 'baseline lags' in o]
    assert len(said)==1 and "baseline='leave-one-out'" in said[0]
    assert not [o for o in alarms(make(reward=lambda p, y: 5+F.softmax(p, 1).max())) if 'baseline lags' in o]

def test_choices_that_were_hardly_trained():
    learn = make(bs=8, preset=SMALL.override(controller=dict(tanh_constant=60.)))
    decide(learn, [2, 2, 1])
    said = [o for o in alarms(learn) if 'hardly trained' in o]
    assert len(said)==1 and '; and ' in said[0] and "paths='uniform'" in said[0] and ' of 125 batches)' in said[0]
    fair = make(bs=8, preset=SMALL.override(search=dict(paths='fair')))
    assert not [o for o in alarms(fair) if 'hardly trained' in o]
    assert fair.search.counts.sum(1).tolist()==[125]*3 and fair.search.counts[0].max()-fair.search.counts[0].min()<=1

@pytest.mark.parametrize('reward,n,guess', [(accuracy, 10, .1), (loss_reward, 10, -math.log(10)), (partial(ppl_reward, c=80.), 1000, .08)])
def test_an_omega_that_guesses_at_the_end_of_its_training(reward, n, guess):
    def search(paid, whole=True, **kw):
        return SimpleNamespace(**dict(stats=dict(reward=paid), whole=whole, reward=reward, model=SimpleNamespace(like=(3, n))) | kw)
    said, = _ignorant(search(guess-.01))
    assert said.startswith('ω has learned nothing') and f'a guess {guess:.3g}.' in said
    for o in (search(guess+.01), search(guess-.01, whole=False), search(-9., reward=lambda p, y: 0.), search(-9., model=SimpleNamespace())):
        assert not [*_ignorant(o)]

def test_an_omega_that_learns_is_no_alarm():
    learn = make(preset=robust['macro'].override(controller=dict(steps=2)))
    with learn.no_bar(), learn.no_logging(): learn.fit_preset(epochs=3)
    assert learn.search.whole and not [o for o in learn.search.alarms if 'learned nothing' in o]

def test_limits_are_one():
    assert [decided(e, 10.) for e in (.05, .2, 5., 9.4, 9.6)]==['collapsed', '', '', '', 'unmoved']

# --- a command and its report ----------------------------------------------------------------------------------------------

def recipe_with(search=None, final=None, **kw):
    from dataclasses import replace
    from enas_nb.recipes import recipes
    short = recipes['digits-macro'].with_epochs(1)
    return replace(short, name='unsound', preset=short.preset.override(search=search or {}, final=final or {}), **kw)

def test_a_command_whose_search_diverges_is_one_line_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch, capsys):
    from enas_nb.cli import enas_search
    from enas_nb.recipes import recipes
    monkeypatch.setitem(recipes, 'unsound', recipe_with(search=dict(lr_max=1e30)))
    assert enas_search(['unsound', '--out', str(tmp_path/'r'), '--device', 'cpu'])==2
    err = capsys.readouterr().err
    assert err.startswith('enas-search: error: training has diverged in epoch 1 of 1') and err.count('\n')==1 and 'Exception' not in err
    assert [*(tmp_path/'r/tasks/search').glob('*.safetensors')] and not (tmp_path/'r/result.json').exists()

def test_networks_that_all_diverged_are_nothing_to_compare():
    from enas_nb.experiment import run_recipe
    from enas_nb.report import report
    result, *_ = run_recipe(recipe_with(final=dict(lr_max=1e30), arms=()), device='cpu', log=lambda o: None)
    assert result['test_accuracy'] is None and all(o['test'] is None for o in result['nets'])
    assert 'nothing to compare' in report(result) and 'nan' not in report(result).replace('-nan-', '') and json.loads(json.dumps(result, allow_nan=False))

def test_a_report_tells_the_alarms_of_its_search():
    from pathlib import Path
    from enas_nb.report import report
    d = json.loads((Path(__file__).parents[1]/'nbs/tutorials/results/text-small/result.json').read_text())
    assert 'Alarms' not in report(d)
    d['policy'] = (d.get('policy') or dict(steps=1, entropy=5., max_entropy=10.)) | dict(alarms=['The policy has collapsed in epoch 3'])
    assert '**Alarms of the search.** The policy has collapsed in epoch 3.' in report(d)
