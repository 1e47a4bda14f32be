"Recipes: every one builds, the paper-sized ones take two steps, and costs are counted."
import json
import pytest, torch
from fastai.data.external import fastai_path

from enas_nb.data import images_dls
from enas_nb.presets import n_epochs
from enas_nb.recipes import estimate, published, recipes, verdict
from enas_nb.retrain import arch_learner
from enas_nb.search import search_learner
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

@pytest.mark.parametrize('name', [o.name for o in recipes.values() if o.gpu])
def test_two_steps_at_the_papers_size(name):
    "A step of ω on each of two batches of 4 images, a step of θ, and two steps of the final training."
    torch.manual_seed(0)
    r, dls = recipes[name], cifar_like()
    p = r.preset.override(search=dict(bs=4), controller=dict(steps=1, n_archs=2))
    learn = search_learner(dls, r.space, preset=p, **r.sizes)
    two = TwoSteps()
    with learn.no_bar(), learn.no_logging(): learn.fit(1, .01, cbs=two)
    assert two.n==2 and all(torch.isfinite(o).all() for o in learn.model.net.parameters())
    learn.search.in_epoch = False; learn.search.after_train()
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
    from dataclasses import replace
    from enas_nb.recipes import report, run_recipe
    from enas_nb.space import MacroSpace
    r = replace(recipes['digits-macro'].with_epochs(1), space=MacroSpace(2), n_children=1, n_random=2, n_derive=2, n_look=2)
    r = replace(r, preset=r.preset.override(controller=dict(steps=1), final=dict(all_train=True)))
    d, history, arch = run_recipe(r, log=lambda o: None)
    assert d['valid_accuracy'] is None and d['random_valid_accuracy']==[None]*len(d['random_archs'])
    assert d['equal_cost_rival']['n']==1 and d['equal_cost_rival']['arch']==d['random_archs'][0]
    assert 'the rival is one random architecture' in report(d) and 'by validation' not in report(d)

def test_who_trains_on_all():
    assert all(o.preset.final.all_train==o.gpu for o in recipes.values())
