"Recipes: every one builds, the paper-sized ones take two steps, and costs are counted."
import json
from dataclasses import replace
from pathlib import Path
import pytest, torch
from fastai.data.external import fastai_path

from enas_nb.data import images_dls
from enas_nb.text import lm_dls
from enas_nb.presets import n_epochs
from enas_nb.cost import estimate
from enas_nb.published import published
from enas_nb.recipes import lstm_lm, recipes, run_recipe
from enas_nb.report import paired, plot_retrained, report, verdict
from enas_nb.retrain import arch_learner
from enas_nb.search import search_learner
from enas_nb.macro import MacroSpace
from enas_nb.recurrent import RecurrentSpace
from fastai.callback.core import Callback, CancelFitException

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

@pytest.mark.parametrize('name', [o.name for o in recipes.values() if o.gpu and o.task.name=='text'])
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

@pytest.mark.parametrize('name', [o.name for o in recipes.values() if o.gpu and o.task.name=='images'])
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
    assert 0 <= learn.search.value('reward') <= 1 and learn.search.value('entropy') > 0
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

def test_paper_sizes():
    s, f = recipes['cifar10-micro'].preset.search, recipes['cifar10-micro'].preset.final
    assert (s.n_layers, s.width, n_epochs(s), f.n_layers, f.width, n_epochs(f), f.drop_path, f.aux_weight) == (6, 20, 150, 18, 36, 630, .4, .4)
    s, f = recipes['cifar10-macro'].preset.search, recipes['cifar10-macro'].preset.final
    assert (recipes['cifar10-macro'].space.n_layers, s.width, n_epochs(s), f.width, n_epochs(f), f.sep) == (12, 36, 310, 96, 310, 'full')
    assert recipes['cifar10-macro-wide'].preset.final.width==128 and recipes['cifar10-micro-cutout'].preset.final.cutout==16

def test_estimate_scales_with_epochs():
    r = recipes['digits-macro']
    a, b = (estimate(o, n_train=1000, shape=(1,8,8), n=2) for o in (r, r.with_epochs(40)))
    assert b['omega']==pytest.approx(a['omega']*40/n_epochs(r.preset.search)) and b['retrain']==pytest.approx(2*a['retrain'])

def result(p, q, n=1000):
    return dict(images=dict(test=n), test_accuracy=p, equal_cost_rival=dict(test_accuracy=q), policy_shared_accuracy=.9, uniform_shared_accuracy=.5)

@pytest.mark.parametrize('p,q,words', [(.9, .8, 'beat'), (.8, .9, 'lost to'), (.9, .905, 'could not be told from')])
def test_the_verdict_follows_the_numbers(p, q, words): assert words in verdict(result(p, q)) and f'{p:.1%} against {q:.1%}' in verdict(result(p, q))

def test_training_on_all_images_leaves_nothing_to_choose_by():
    r = replace(recipes['digits-macro'].with_epochs(1), space=MacroSpace(2), n_children=1, n_random=2, n_derive=2, n_look=2)
    r = replace(r, preset=r.preset.override(controller=dict(steps=1), final=dict(all_train=True)))
    d, history, arch = run_recipe(r, log=lambda o: None)
    assert d['valid_accuracy'] is None and d['random_valid_accuracy']==[None]*len(d['random_archs'])
    assert d['equal_cost_rival']['n']==1 and d['equal_cost_rival']['arch']==d['random_archs'][0]
    assert 'the rival is one random architecture' in report(d) and 'by validation' not in report(d)

def test_who_trains_on_all():
    assert all(o.preset.final.all_train==o.gpu for o in recipes.values() if not (o.task.name=='text'))

# Text

def tiny_text():
    r = recipes['text-small'].with_epochs(2)
    p = r.preset.override(controller=dict(steps=1, n_archs=2), search=dict(width=6), final=dict(width=8, epochs=1))
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
    assert same['epochs']==1 and abs(longer['epochs']-d['enas_cost']/d['cost']['lstm']) < 1.1 # costs are rounded

def test_a_report_of_text_has_no_images(text_run):
    d = text_run[0]
    text = report(d)
    assert not [o for o in ('images', 'accurac', 'nan', 'points') if o in text] and '| LSTM, 1 epochs | 1 |' in text
    assert f"{d['test_perplexity']:.1f}" in text and 'All have as many parameters' in paired(d)
    assert len(plot_retrained(d).axes[0].get_yticks())==4

def test_equal_seeds_give_equal_text_runs(text_run):
    d = run_recipe(tiny_text(), seed=1, log=lambda o: None)[0]
    for k in ('arch', 'test_perplexity', 'child_test_perplexity', 'policy_shared_perplexity'): assert d[k]==text_run[0][k]
    assert d['lstms'][0]['test_perplexity']==text_run[0]['lstms'][0]['test_perplexity']

def texts(a, b, c):
    parts = lambda ppl: [torch.tensor(ppl).log().item()+.01*(i%2) for i in range(64)]
    net = lambda ppl, noise=0: dict(test_perplexity=ppl, valid_perplexity=ppl, parts=[o+noise*(-1)**i for i,o in enumerate(parts(ppl))])
    return net(a) | dict(words=dict(test=1000), equal_cost_rival=net(b, .1), lstms=[net(c, .1)], policy_shared_perplexity=200., uniform_shared_perplexity=300.)

@pytest.mark.parametrize('a,b,words', [(100., 120., 'beat random'), (120., 100., 'lost to random'), (100., 101., 'could not be told from random')])
def test_the_verdict_on_text_follows_the_numbers(a, b, words):
    text = verdict(texts(a, b, 90.))
    assert words in text and f'{a:.1f} against {b:.1f} on 1,000 test words' in text and 'lost to an LSTM' in text and '200.0 against 300.0' in text

def diverged(d, *which):
    for o in which: o.update(test_perplexity=None, valid_perplexity=None, parts=None)
    return d

def test_a_diverged_network_loses():
    d = texts(100., 90., 80.)
    text = verdict(diverged(d, d['equal_cost_rival']))
    assert 'ENAS beat random' in text and '100.0 against none, it diverged' in text and 'where one diverged' in text
    d = texts(100., 90., 80.)
    assert 'ENAS lost to random' in verdict(diverged(d, d))
    d = texts(100., 90., 80.)
    assert 'lost to an LSTM' in verdict(diverged(d, d['lstms'][0]) | dict(lstms=[*d['lstms'], texts(1, 1, 70.)['lstms'][0]]))

def test_a_report_counts_what_diverged(text_run):
    d = json.loads(json.dumps(text_run[0]))
    d['child_test_perplexity'] = [None, *d['child_test_perplexity'][1:]]
    d['random_test_perplexity'] = [None]*len(d['random_test_perplexity'])
    d = d | dict(random_mean=None, paired_difference=dict(mean=None, se=0., n=0))
    text = report(d)
    assert 'on average, 1 diverged' in text and f"on average, {len(d['random_archs'])} diverged" in text and 'in every such pair one diverged' in text and 'nan' not in text
    plot_retrained(d)

def test_a_gain_in_perplexity_is_in_nats():
    assert 'a gain of +0.010 ± 0.013 nats a word' in verdict(texts(100., 101., 90.)) # sd of ±.1 over 64 parts is .1008, /8

@pytest.mark.parametrize('n', [5_000, 100_000, 22_027_104])
def test_an_lstm_of_equal_parameters(n):
    with torch.device('meta'): net = lstm_lm(n, 200 if n<1e6 else 10_000)
    count = lambda net: sum(o.numel() for o in net.parameters())
    with torch.device('meta'): wider = lstm_lm(n+40_000, 200 if n<1e6 else 10_000)
    assert count(net) <= n < count(wider)

@pytest.mark.parametrize('folder', sorted((Path(__file__).parents[1]/'nbs/tutorials/results').iterdir()), ids=lambda o: o.name)
def test_committed_reports_follow_from_their_results(folder):
    assert report(json.loads((folder/'result.json').read_text()))==(folder/'report.md').read_text()
