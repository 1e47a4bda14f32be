"The controls of the widgets, pressed without a browser; what remains without ipywidgets; what a live picture costs."
import time

import pytest
import torch
from hypothesis import given, settings, strategies as st

from enas_nb.all import *
from enas_nb import widgets

SPACES = TinySpace(), MacroSpace(4), MicroSpace(3), RecurrentSpace(4)

def buttons(box):
    "Buttons and switches of a box by what is written on them."
    kids = [k for o in box.children for k in getattr(o, 'children', [o])]
    return {o.description: o for o in kids if hasattr(o, 'description') and type(o).__name__.endswith('Button')}

@settings(deadline=None, max_examples=20)
@given(st.sampled_from(SPACES), st.data())
def test_pressing_buttons_ends_in_the_architecture_that_was_pressed(space, data):
    walk = SpaceWalk(space)
    box  = walk.controls()
    code = space.random(1, seed=data.draw(st.integers(0, 1000)))[0].tolist()
    for step in walk.steps:
        names = list(walk.chances())
        if step.kind=='skips':
            for k in range(step.n): buttons(box)[names[k]].value = bool(code[step.at+k])
            buttons(box)['Go on'].click()
        else: buttons(box)[names[code[step.at]]].click()
    assert walk.arch.code==tuple(code)
    assert str(walk.arch) in box.children[0].value

@pytest.mark.parametrize('space', SPACES, ids=lambda o: o.name)
def test_undo_and_finish(space):
    walk = SpaceWalk(space)
    box  = walk.controls()
    buttons(box)['Undo'].click() # of nothing
    buttons(box)['Finish'].click()
    assert walk.done
    for _ in walk.steps: buttons(box)['Undo'].click()
    assert walk.code==[None]*space.length
    with pytest.raises(ValueError, match='decisions are open'): walk.arch
    walk.finish()
    with pytest.raises(ValueError, match='everything is decided'): walk.choose(0)

def test_chances_are_those_of_the_policy():
    "The product of the chances along a walk is what `score` says."
    torch.manual_seed(0)
    space = MacroSpace(4)
    walk, p = SpaceWalk(space), 1.
    arch = space.archs(space.random(1, seed=3))[0]
    for step in walk.steps:
        q, a = list(walk.chances().values()), arch.code[step.at:step.at+step.width]
        if step.kind=='skips':
            for k,bit in enumerate(a): p *= q[k] if bit else 1-q[k]
            walk.choose([k for k,bit in enumerate(a) if bit])
        else: p *= q[a[0]]; walk.choose(a[0])
    assert p==pytest.approx(walk.policy.score([arch]).log_prob.exp().item(), rel=1e-4)

def rows(n): return [dict(epoch=0, step=i, reward=.1*i, baseline=.1, entropy=5.-i, best=[0]*5, score=.2,
                          ops=[[.25]*3]*4, links=[[.5]*2]*3) for i in range(n)]

def test_without_ipywidgets_the_pictures_remain(monkeypatch):
    monkeypatch.setattr(widgets, 'W', None)
    shown = []
    monkeypatch.setattr(widgets, '_show', shown.append)
    for panel in (SpaceWalk(TinySpace()), SearchView((TinySpace(), 6., rows(3))),
                  Landscape([[1/384]*384], ['start'])):
        panel._ipython_display_()
    assert [type(o).__name__ for o in shown]==['Page']*3 and all('<img' in o.data for o in shown)

def test_slider_shows_another_moment():
    view = SearchView((TinySpace(), 6., rows(3)))
    play, slider = view.controls().children
    last = view.picture()
    slider.value = 0
    assert view.at==0 and view.picture()!=last
    assert SearchView((TinySpace(), 6., rows(1))).controls() is None # nothing to slide

def test_a_live_picture_takes_no_more_than_its_share(monkeypatch):
    "A clock of our own: a step takes 1 s, a picture 5 s; at 2% it is drawn every 250 steps, and at the end."
    now, drawn = [0.], []
    class Clock:
        @staticmethod
        def perf_counter(): return now[0]
    monkeypatch.setattr(widgets, 'time', Clock)
    class View:
        def __init__(self, _): self.refresh()
        def refresh(self): now[0] += 5; drawn.append(step)
        def picture(self): return ''
    monkeypatch.setattr(widgets, 'SearchView', View)
    monkeypatch.setattr(widgets, '_show', lambda _: None)
    monkeypatch.setattr(Trace, 'after_theta', lambda self, i, n: self.rows.append(i))
    show = ShowSearch()
    learn = search_learner(digits_dls(bs=64), MacroSpace(2), cbs=show, width=4, n_layers=2)
    for step in range(1000): show.after_theta(step, 1000); now[0] += 1
    assert drawn==[0, 250, 500, 750, 999]

def test_the_trace_of_a_real_search_feeds_the_landscape():
    "`Trace(also=policy_mass)` in a search of the small space, with a network that takes no notice of the path."
    class Net(torch.nn.Linear):
        arch = None
        def forward(self, x): return super().forward(x.flatten(1))
    trace  = Trace(n=2, also=policy_mass)
    preset = robust['images'].override(controller=dict(steps=2), search=dict(T_0=2, n_omega=1))
    learn  = search_learner(digits_dls(bs=256), TinySpace(), net=Net(64, 10), preset=preset, cbs=trace)
    with learn.no_bar(), learn.no_logging(): learn.fit_preset()
    masses = [o['also'] for o in trace.rows]
    assert [len(o) for o in masses]==[384]*2 and [sum(o) for o in masses]==pytest.approx([1., 1.], abs=1e-4)
    land = Landscape(masses, [o['step'] for o in trace.rows])
    last = land.picture()
    land.controls().children[1].value = 0
    assert land.picture()!=last

def test_numbers_of_a_comparison_are_those_of_the_networks():
    a, b = MicroSpace(3).archs(MicroSpace(3).random(2))
    page = compare_archs(a, b, accuracy=[.5, .61234]).data
    for o in (a, b): assert f'{sum(count_params(o)):,}' in page
    assert '0.6123' in page and page.count('<img')==2
    assert '<script' not in compare_archs(a, b, names=['<script>', 'b']).data
