"Recipes: every one builds, the paper-sized ones take two steps, runs of images, text and a space of one's own, and costs are counted."
import json, subprocess, sys
from dataclasses import dataclass, replace

import numpy as np, pytest, torch
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.training import GradientClip
from torch import nn

from enas_nb.cost import count_params, estimate, multiply_adds
from enas_nb.data import images_dls
from enas_nb.draw import draw
from enas_nb.macro import MacroSpace
from enas_nb.presets import n_epochs, released, robust
from enas_nb.published import heads, published
from enas_nb.experiment import run_recipe
from enas_nb.trainings import lstm_lm, retrain
from enas_nb.recipes import Recipe, recipes
from enas_nb.recurrent import RecurrentSpace
from enas_nb.report import paired, plot_retrained, report, write_result, write_search
from enas_nb.retrain import arch_learner
from enas_nb.search import search_learner
from enas_nb.arch_files import load_arch
from enas_nb.space import Op, SearchSpace, Step
from enas_nb.text import lm_dls
from enas_nb.train import preset_cbs

class TwoSteps(Callback):
    "Stop a fit after two batches."
    def before_fit(self): self.n = 0
    def after_batch(self):
        self.n += 1
        if self.n==2: raise CancelFitException()

def cifar_like(bs=4, n=16):
    draw = lambda n: (torch.randint(256, (n,3,32,32), dtype=torch.uint8), torch.arange(n)%10)
    return images_dls(draw(n), draw(20), list('0123456789'), bs=bs, device='cpu')

def ptb_like(bs=4, seq_len=5):
    vocab = ['<eos>', '<unk>', *(f'w{i}' for i in range(9_998))]
    words = lambda n: [vocab[i] for i in torch.randint(10_000, (n,)).tolist()]
    return lm_dls(words(400), words(100), words(100), vocab, bs=bs, seq_len=seq_len, device='cpu')

def of(task): return [o for o in recipes.values() if o.task.name==task]

@pytest.mark.parametrize('name', [o.name for o in of('text') if o.gpu])
def test_two_steps_of_text_at_the_papers_size(name):
    "A step of ω on each of two batches of 4 rows and 5 words, a step of θ, and two steps of the final training."
    torch.manual_seed(0)
    r, dls = recipes[name], ptb_like()
    p = r.preset.override(search=dict(bs=4), controller=dict(steps=1, n_archs=2))
    learn, two = search_learner(dls, r.space, preset=p), TwoSteps()
    with learn.no_bar(), learn.no_logging(): learn.fit(1, .01, cbs=two)
    assert two.n==2 and torch.isfinite(learn.model.net.encoder.weight).all()
    learn.search.after_train()
    assert 0 < learn.search.value('reward') < 80 and learn.search.value('entropy') > 0
    arch = learn.derive(2)
    del learn
    final = arch_learner(dls, arch, preset=p, **r.final_sizes())
    before = final.model.ws[-1].detach().clone()
    with final.no_bar(), final.no_logging(): final.fit(1, .01, cbs=two)
    assert two.n==2 and (final.model.ws[-1]!=before).any()

@pytest.mark.parametrize('name', [o.name for o in of('images') if o.gpu])
def test_two_steps_at_the_papers_size(name):
    "A step of ω on each of two batches of 4 images, a step of θ, and two steps of the final training."
    torch.manual_seed(0)
    r, dls = recipes[name], cifar_like()
    p = r.preset.override(search=dict(bs=4), controller=dict(steps=1, n_archs=2))
    learn = search_learner(dls, r.space, preset=p, **r.sizes)
    two = TwoSteps()
    with learn.no_bar(), learn.no_logging(): learn.fit(1, .01, cbs=two)
    assert two.n==2 and all(torch.isfinite(o).all() for o in learn.model.net.parameters())
    learn.search.after_train()
    assert -12 <= learn.search.value('reward') < 0 and learn.search.value('entropy') > 0 # minus the loss, which is bounded
    arch = learn.derive(2)
    final = arch_learner(dls, arch, preset=p, **r.final_sizes())
    before = final.model.head.fc.weight.detach().clone()
    with final.no_bar(), final.no_logging(): final.fit(1, .01, cbs=two)
    assert two.n==2 and (final.model.head.fc.weight!=before).any()
    assert [o for o in final.dls.train.after_batch.fs if type(o).__name__=='CutOut' and o.size==r.preset.final.cutout] or not r.preset.final.cutout

@pytest.mark.parametrize('name', recipes)
def test_a_recipe_is_json_and_scales(name):
    r = recipes[name]
    d = json.loads(json.dumps(r.to_dict()))
    assert d['space']['name']==r.space.name and d['preset']['search']['width']==r.preset.search.width
    short = r.with_epochs(2)
    assert n_epochs(short.preset.search)==n_epochs(short.preset.final)==2
    with pytest.raises(ValueError, match='epochs is 0'): r.with_epochs(0)

def test_a_result_keeps_what_the_policy_favoured():
    assert recipes['digits-micro'].to_dict()['space'].items() >= dict(name='micro', n_nodes=4, sep_bias=0., sep_prior=0.).items()

def test_heads_say_what_recipes_are():
    assert {k: (o.about, o.gpu) for k,o in heads.items()}=={k: (o.about, o.gpu) for k,o in recipes.items()}
    assert all(('on one core' in o.about)!=o.gpu for o in heads.values())

def test_strings_need_no_torch():
    code = "import enas_nb.published, sys, time; print(time.process_time(), [o for o in ('torch','numpy','networkx') if o in sys.modules])"
    seconds, slow = subprocess.check_output([sys.executable, '-c', code], text=True).split(maxsplit=1)
    assert slow=='[]\n' and float(seconds) < .6

def test_the_gradient_is_clipped_by_the_preset_alone():
    "Image recipes to 5, in search and final training; text recipes bring their own norm."
    for recipe in of('images'):
        for part in (recipe.preset.search, recipe.preset.final):
            assert part.clip==5 and [o.max_norm for o in preset_cbs(part) if isinstance(o, GradientClip)]==[5]
    assert all(part.clip in (.1, .25, 10.) for o in of('text') for part in (o.preset.search, o.preset.final))

def test_an_lstm_stands_beside_text_alone(): assert all(o.lstm==(o.task.name=='text') for o in recipes.values())

def test_data_and_text_that_do_not_fit():
    with pytest.raises(ValueError, match="data is 'no_dls'"): replace(recipes['digits-macro'], data='no_dls').dls(0, 'cpu')
    with pytest.raises(ValueError, match='is about images'): recipes['digits-macro'].on_text('a.txt')
    other = recipes['text-small'].on_text('some/where.txt')
    assert (other.name, other.data, other.data_args)==('text-small-where', 'file_dls', dict(path='some/where.txt', bs=20, max_vocab=2_000))

def test_paper_sizes():
    s, f = recipes['cifar10-micro'].preset.search, recipes['cifar10-micro'].preset.final
    assert (s.n_layers, s.width, n_epochs(s), f.n_layers, f.width, n_epochs(f), f.drop_path, f.aux_weight) == (6, 20, 100, 18, 36, 630, .4, .4)
    s, f = recipes['cifar10-macro'].preset.search, recipes['cifar10-macro'].preset.final
    assert (recipes['cifar10-macro'].space.n_layers, s.width, n_epochs(s), f.width, n_epochs(f), f.sep) == (12, 36, 100, 96, 310, 'full')
    assert [n_epochs(released[o].search) for o in ('micro', 'macro')]==[150, 310] # `robust` is shorter
    assert recipes['cifar10-macro-wide'].preset.final.width==128 and recipes['cifar10-micro-cutout'].preset.final.cutout==16

# Costs

def test_estimate_scales_with_epochs():
    r = recipes['digits-macro']
    a, b = (estimate(o, n_train=1000, shape=(1,8,8), n=2) for o in (r, r.with_epochs(40)))
    assert b['omega']==pytest.approx(a['omega']*40/n_epochs(r.preset.search)) and b['retrain']==pytest.approx(a['retrain']*40/n_epochs(r.preset.final))

def test_a_word_costs_as_much_as_there_are_parameters():
    cell = published['ptb-cell'].arch
    with torch.device('meta'): net = cell.space.final_net(cell, 500, 500, width=20)
    assert multiply_adds(net, ())==sum(count_params(cell, 500, 500, width=20))==sum(o.numel() for o in net.parameters())

# Runs of images

def test_training_on_all_images_leaves_nothing_to_choose_by():
    r = replace(recipes['digits-macro'].with_epochs(1), space=MacroSpace(2), n_children=1, n_random=2, n_derive=2, n_look=2)
    r = replace(r, preset=r.preset.override(controller=dict(steps=1), final=dict(all_train=True), search=dict(n_layers=2)))
    r = replace(r, preset=r.preset.override(final=dict(n_layers=2, cutout=3)))
    d, history, arch = run_recipe(r, log=lambda o: None)
    assert d['valid_accuracy'] is None and d['random_valid_accuracy']==[None]*len(d['random_archs'])
    assert d['equal_cost_rival']['n']==1 and d['equal_cost_rival']['arch']==d['random_archs'][0]
    assert 'the rival is one random architecture' in report(d) and 'by validation' not in report(d)

def test_who_trains_on_all():
    assert all(o.preset.final.all_train==o.gpu for o in of('images'))

def test_equal_numbers_share_all_randomness():
    "Training number 1 is the same whatever was trained before; number 2 is another."
    r = replace(recipes['digits-macro'].with_epochs(1), space=MacroSpace(2))
    r = replace(r, preset=r.preset.override(final=dict(n_layers=2, width=4)))
    dls, arch = r.dls(0, torch.device('cpu')), r.space.parse('0 1 1')
    tests = [retrain(r, dls, arch, 0, i)['test'] for i in (1, 2, 1)]
    assert tests[0]==tests[2]!=tests[1]

# A space of one's own

def conv(n): return nn.Sequential(nn.Conv2d(n, n, 3, padding=1), nn.BatchNorm2d(n), nn.ReLU())
def pool(n): return nn.MaxPool2d(3, 1, 1)

class StackNet(nn.Module):
    def __init__(self, rows, n_in, n_out, width, arch=None):
        super().__init__()
        self.arch, self.stem = arch, nn.Conv2d(n_in, width, 3, padding=1)
        self.layers = nn.ModuleList(nn.ModuleDict({o: o.search(width) for o in ops}) for ops in rows)
        self.head = nn.Linear(width, n_out)
    def forward(self, x):
        x = self.stem(x)
        for layer,(_,op) in zip(self.layers, self.arch.nodes): x = layer[op](x)
        return self.head(x.mean((2,3)))

@dataclass(frozen=True)
class TwoStack(SearchSpace):
    "Two layers, each a convolution or a pool."
    ops = (Op('conv', conv, conv, '#0072b2'), Op('pool', pool, pool, '#cc79a7'))
    def decisions(self):
        for i in range(2): yield Step('op', f'layer {i+1}', n=2, at=i, feed='op', remember='h')
    def shared_net(self, n_in, n_out, width): return StackNet([self.ops]*2, n_in, n_out, width)
    def final_net(self, arch, n_in, n_out, width): return StackNet([[op] for _,op in arch.nodes], n_in, n_out, width, arch)

def test_a_recipe_runs_a_space_of_ones_own(tmp_path):
    preset = robust['images'].override(controller=dict(steps=2))
    mine = Recipe('mine', 'My own', 'digits_dls', dict(bs=64), TwoStack(), preset, dict(width=5), 3, 3, 2, 2).with_epochs(2)
    result, history, arch = run_recipe(mine, log=lambda o: None)
    of = {str(a): count_params(a, 1, 10, width=5)[0] for a in mine.space.archs(torch.tensor([(0,0), (0,1), (1,0), (1,1)]))}
    conv_params = 5*5*9+5+2*5
    assert of=={'0 0': of['1 1']+2*conv_params, '0 1': of['1 1']+conv_params, '1 0': of['1 1']+conv_params, '1 1': (9+1)*5+(5+1)*10}
    assert result['params']==of[str(arch)] and result['child_params']==[of[o] for o in result['child_archs']]
    assert json.loads(json.dumps(result['recipe']))['space']['name']=='TwoStack' and len(history)==2
    write_search(tmp_path, arch, history)
    write_result(tmp_path, result)
    assert load_arch(tmp_path/'arch.json')==arch and (tmp_path/'arch.svg').read_text().strip()==str(draw(arch)).strip()
    assert 'None' not in report(result) and 'shared weights (width 5, batches of 64)' in report(result)
    assert estimate(mine, n_train=1000, shape=(1,8,8), n=2)['hours'] > 0

# Text

def tiny_text():
    r = recipes['text-small'].with_epochs(2)
    p = r.preset.override(controller=dict(steps=1, n_archs=2), search=dict(width=6), final=dict(width=8, epochs=1, input_p=.1, output_p=.1))
    return replace(r, space=RecurrentSpace(2), preset=p, data_args=dict(bs=20, n_train=15_000, max_vocab=200), n_children=2, n_random=2, n_derive=2, n_look=2)

@pytest.fixture(scope='module')
def text_run(): return run_recipe(tiny_text(), seed=1, log=lambda o: None)

def test_a_text_recipe_compares_perplexities(text_run):
    d, history, arch = text_run
    d = json.loads(json.dumps(d))
    assert {len(o['parts']) for o in (d, d['equal_cost_rival'], *d['lstms'])} == {64}
    told = [o for o in d['random_valid_perplexity'][:d['equal_cost_rival']['n']] if o]
    assert d['valid_perplexity'] > 10 and min(told)==d['equal_cost_rival']['valid_perplexity']
    assert d['words']['train']==15_000 and 'images' not in d and not [k for k in d if 'accuracy' in k]
    assert {'median_ppl', 'reward', 'entropy', 'skipped'} <= {*history} and len(history)==2
    assert d['arch']==str(arch) and d['cost']['lstm'] > 0

def test_the_lstm_is_as_large_and_gets_as_much(text_run):
    d = text_run[0]
    same, longer = d['lstms']
    assert .85*d['params'] < same['params'] <= d['params'] and same['params']==longer['params'] # one more unit would be 200 more
    assert same['epochs']==1 and longer['epochs']==int(d['macs']['enas']/d['macs']['lstm'])

def test_a_report_of_text_has_no_images(text_run):
    d = text_run[0]
    text = report(d)
    assert not [o for o in ('images', 'accurac', 'nan', 'points') if o in text] and '| LSTM, 1 epoch | 1 |' in text
    assert f"{d['test_perplexity']:.1f}" in text and 'All have as many parameters' in paired(d)
    assert len(plot_retrained(d).axes[0].get_yticks())==5 # random, children, derived, shared, LSTM

def test_equal_seeds_give_equal_text_runs(text_run):
    d = run_recipe(tiny_text(), seed=1, log=lambda o: None)[0]
    for k in ('arch', 'test_perplexity', 'child_test_perplexity', 'policy_shared_perplexity'): assert d[k]==text_run[0][k]
    assert d['lstms'][0]['test_perplexity']==text_run[0]['lstms'][0]['test_perplexity']

def test_a_report_counts_what_diverged(text_run):
    d = json.loads(json.dumps(text_run[0]))
    d['child_test_perplexity'] = [None, *d['child_test_perplexity'][1:]]
    d['random_test_perplexity'] = [None]*len(d['random_test_perplexity'])
    d = d | dict(random_mean=None, paired_difference=dict(mean=None, se=0., n=0))
    text = report(d)
    assert 'on average, 1 diverged' in text and f"on average, {len(d['random_archs'])} diverged" in text and 'in every such pair one diverged' in text and 'nan' not in text
    plot_retrained(d)

@pytest.mark.parametrize('n', [5_000, 100_000, 22_027_104])
def test_an_lstm_of_equal_parameters(n):
    with torch.device('meta'): net = lstm_lm(n, 200 if n<1e6 else 10_000)
    count = lambda net: sum(o.numel() for o in net.parameters())
    with torch.device('meta'): wider = lstm_lm(n+40_000, 200 if n<1e6 else 10_000)
    assert count(net) <= n < count(wider)

@pytest.mark.parametrize('part,error,why', [
    (dict(controller=dict(warmup=float('nan'))), TypeError, 'warmup is nan, not an integer'),
    (dict(controller=dict(lr='1e-3')), TypeError, "lr is '1e-3', not a number"), (dict(controller=dict(biased='no')), TypeError, "biased is 'no', allowed is True or False"),
    (dict(controller=dict(betas=(.9, 2.))), ValueError, 'betas is 2.0, allowed is 0 to 1'), (dict(controller=dict(baseline='x')), ValueError, "baseline is 'x', allowed are"),
    (dict(search=dict(lr_max=-1)), ValueError, 'lr_max is -1.0, allowed is 0 or more'), (dict(search=dict(bs=0)), ValueError, 'bs is 0, allowed is 1 to 1000000'),
    (dict(search=dict(width=0)), ValueError, 'width is 0, allowed is 1 to 100000'), (dict(final=dict(l2=float('inf'))), ValueError, 'l2 is inf, not a finite number'),
    (dict(search=dict(n_cycles=90, T_mul=100)), ValueError, 'the number of epochs is an integer of 596 bits, allowed is 1 to 1000000'),
    (dict(search=dict(paths='x'*10**6)), ValueError, "paths is 'xxx"), (dict(search=5), TypeError, 'search is 5, allowed is a dict')])
def test_a_preset_checks_its_fields(part, error, why):
    with pytest.raises(error) as e: robust['macro'].override(**part)
    assert str(e.value).startswith(why) and len(str(e.value))<=300

def test_what_json_gave_is_equal():
    p = robust['macro'].override(search=dict(paths=[['uniform', .5], ['fair', .5]]), controller=dict(betas=[.9, .99], lr=np.float32(.5), steps=np.int64(3)))
    assert p.controller.betas==(.9, .99) and p.search.paths==(('uniform', .5), ('fair', .5))
    d = json.loads(json.dumps(p.to_dict()))
    assert p.override(**{o: d[o] for o in ('controller', 'search', 'final')})==p

@pytest.mark.parametrize('field,error', [(dict(n_derive=0), ValueError), (dict(n_look='x'), TypeError), (dict(lstm='false'), TypeError), (dict(space=None), TypeError),
                                         (dict(preset={}), TypeError), (dict(arms='equal'), ValueError), (dict(data_args=[]), TypeError), (dict(arms=['x'*10**5]), ValueError)])
def test_a_recipe_checks_its_fields(field, error):
    with pytest.raises(error, match=next(iter(field)) if field.get('arms')!=['x'*10**5] else "no arm 'xxx") as e: replace(recipes['digits-macro'], **field)
    assert len(str(e.value))<=300
