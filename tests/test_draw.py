"Pictures and plots at every size: well-formed, complete, deterministic, with clear errors."
from base64 import b64decode
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import ClassVar
import subprocess, sys
import xml.etree.ElementTree as ET

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from IPython.core.formatters import DisplayFormatter

from enas_nb.curves import plot_history, plot_op_share, shares
from enas_nb.draw import Drawing, _d, _el, _ink, _say_edge, _say_node, _slots, _spare, draw, op_colors
from enas_nb.layout import crossings, layered
from enas_nb.macro import MacroSpace
from enas_nb.micro import MicroSpace
from enas_nb.published import published
from enas_nb.recurrent import RecurrentSpace
from enas_nb.arch_files import load_arch
from enas_nb.space import Arch, Op, SearchSpace, Step, TinySpace

ns = '{http://www.w3.org/2000/svg}'
spaces = st.one_of(st.builds(TinySpace), st.builds(MacroSpace, st.integers(1, 14)), st.builds(MicroSpace, st.integers(1, 8)), st.builds(RecurrentSpace, st.integers(1, 13)))
extremes = [c(n) for c in (MacroSpace, MicroSpace, RecurrentSpace) for n in (1, 2, 12)] + [TinySpace(), MacroSpace(24), MacroSpace(2, ops='conv3x3'), MicroSpace(2, ops='identity')]

def numbers(root):
    "All coordinates of a picture."
    for o in root.iter():
        for k in ('x','y','cx','cy','width','height'):
            if k in o.attrib: yield float(o.attrib[k])

def check(arch):
    "Everything that a picture of `arch` promises."
    d, g, full = draw(arch), arch.graph(), arch.space.graph()
    root = ET.fromstring(d.svg)
    chosen = root.findall(f".//{ns}path[@class='chosen']")
    assert len(chosen)==g.number_of_edges() and all(o.find(ns+'title').text for o in chosen)
    assert sorted(o.find(ns+'title').text for o in chosen)==sorted(_say_edge(g, a, b, d) for a,b,d in g.edges(data=True))
    assert len(root.findall(f".//{ns}g[@class='unchosen']/{ns}path")) == len(set(full.edges())-set(g.edges()))
    nodes = root.findall(f".//{ns}g[@class='node']")
    assert len(nodes)==len(g) and all(o.find(ns+'title').text for o in nodes)
    assert {o.text for o in root.findall(f".//{ns}g[@class='legend']/{ns}text")}==set(arch.space.ops)
    assert root.get('role')=='img' and root.get('aria-label')
    assert np.isfinite(list(numbers(root))).all() and 'nan' not in d.svg and 'inf' not in d.svg
    (x,y,w,h), shown = map(float, root.get('viewBox').split()), float(root.get('width'))
    assert x==y==0 and w>0 and h>0 and shown<=880 and abs(shown/w-float(root.get('height'))/h)<.01
    assert str(draw(arch))==d.svg==arch._repr_svg_()
    for word in ('<script', 'href', 'url(', ' id=', '<style'): assert word not in d.svg
    assert eval(repr(arch), {type(arch.space).__name__: type(arch.space)})==arch and arch.space.parse(str(arch))==arch
    return root

def edges(arch):
    "The numbers of coloured and of grey edges of a picture that keeps its promises."
    root = check(arch)
    return tuple(len(root.findall(f".//{ns}{o}")) for o in ("path[@class='chosen']", f"g[@class='unchosen']/{ns}path"))

RESULTS = Path(__file__).parents[1]/'nbs'/'tutorials'/'results'

@pytest.mark.parametrize('path', sorted(RESULTS.glob('*/arch.svg')), ids=lambda p: p.parent.name)
def test_pictures_of_committed_runs_stay_the_same_bytes(path):
    arch = load_arch(path.parent/'arch.json')
    assert f'{draw(arch, pools=arch.space.pools)}\n'.encode() == path.read_bytes()

def test_published_architectures():
    script, paper = (published[o].arch for o in ('cifar10-macro-script', 'cifar10-macro'))
    assert edges(script)==(25+98, 276-98) and edges(paper)==(13+32, 66-32)
    skips = [(a[1], b[1]) for a,b,k in script.graph().edges(data='kind') if k=='skip']
    assert [sum(a==1 for a,_ in skips), sum(b==24 for _,b in skips), sum(b==10 for _,b in skips)]==[10, 10, 0]
    micro, text = published['cifar10-micro'].arch, published['ptb-cell'].arch
    assert edges(micro)==(29, 29) and {a[1] for a,b in micro.graph().edges() if b[0]=='normal' and b[1]<7}=={0, 1}
    assert check(text) and str(draw(text)).count('stroke-dasharray')==6
    assert edges(MacroSpace(3).parse('0 3 1 5 0 1'))==(6, 1) # 4 of the flow and 2 skips; 1 skip not taken
    check(MicroSpace(2).parse('0 0 0 0 2 3 1 1  0 4 1 4 2 3 1 3')) # a node that reads the same node twice
    check(Arch(RecurrentSpace(12), [0]+[v for i in range(11) for v in (i, (i+1)%4)])) # a chain, the deepest cell there is

def test_the_published_cell_is_a_tree_without_crossings():
    cols, y, chains = layered(published['ptb-cell'].arch.graph(), lambda o: 20)
    assert crossings(cols, chains)==0
    assert [[o[1] for o in c if o[0]=='cell'] for c in cols][:5]==[[-1], [0], [1], [2, 7], [3, 4, 5]]
    for c in cols: assert all(y[b]-y[a]>=20-1e-6 for a,b in pairwise(c)) # in order, and with room

def test_words_of_edges_and_nodes():
    g = MicroSpace(1).parse('0 1 1 3  0 0 0 0').graph()
    a,b,d = next(o for o in g.edges(data=True) if o[2]['op'])
    assert _say_edge(g, a, b, d)=='sep5x5 from input 0 to node 2'
    assert _say_node(g, ('normal',2))=='node 2: sep5x5 of input 0 + max3x3 of input 1'
    g = MacroSpace(3).parse('0 3 1 5 0 1').graph()
    assert _say_node(g, ('network',3))=='layer 3: max3x3 of layer 2 + layer 1'

def test_elements():
    assert ET.tostring(_el('text', 'a<b & c', font_size=11, class_='x'), 'unicode')=='<text font-size="11" class="x">a&lt;b &amp; c</text>'
    assert _d('M', 1, 2.04, 'H', 3.)=='M 1 2 H 3'

@settings(max_examples=60, deadline=None)
@given(spaces, st.integers(0, 2**32-1))
def test_any_architecture(space, seed): check(space.archs(space.random(seed=seed))[0])

@settings(max_examples=30, deadline=None)
@given(st.one_of(st.builds(MicroSpace, st.integers(1, 6)), st.builds(RecurrentSpace, st.integers(1, 12))), st.integers(0, 2**32-1))
def test_cards_apart_and_inside(space, seed):
    "No two cards of a part overlap, and none leaves the picture."
    root = check(space.archs(space.random(seed=seed))[0])
    _,_,W,H = map(float, root.get('viewBox').split())
    for part in root.findall(f"{ns}g[@class='part']"):
        box = [tuple(float(r.get(k)) for k in ('x','y','width','height')) for r in (o.find(ns+'rect') for o in part.iter(ns+'g') if o.get('class')=='node')]
        for i,(x,y,w,h) in enumerate(box):
            assert x>=0 and y>=0 and x+w<=W and y+h<=H
            for a,b,c,d in box[:i]: assert x+w<=a or a+c<=x or y+h<=b or b+d<=y

@pytest.mark.parametrize('space', extremes, ids=str)
def test_extremes(space):
    for code in space.random(2, seed=1): check(Arch(space, code))
    for code in (np.zeros(space.length, int), [o.choices-1 for o,_ in space.slots]): check(Arch(space, code))

@pytest.mark.parametrize('space', extremes, ids=str)
def test_spaces(space):
    root = ET.fromstring(space._repr_svg_())
    assert not root.findall(f".//{ns}path[@class='chosen']")
    assert len(root.findall(f".//{ns}g[@class='unchosen']/{ns}path"))==space.graph().number_of_edges()
    assert {o.text for o in root.findall(f".//{ns}g[@class='legend']/{ns}text")}==set(space.ops)

def test_sizes():
    "Twenty-four layers fit a notebook's column, two are not blown up, and a picture stays small."
    big, small = draw(Arch(MacroSpace(24), MacroSpace(24).random(seed=1)[0])), draw(MacroSpace(2).parse('0 3 1'))
    assert float(ET.fromstring(big.svg).get('viewBox').split()[2]) < 940 and float(ET.fromstring(small.svg).get('width')) < 400
    assert len(big.svg) < 120_000

def test_same_bytes_in_another_process():
    code = "from enas_nb.micro import *; from enas_nb.draw import *; print(draw(MicroSpace(5).archs(MicroSpace(5).random(seed=7))[0]))"
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, env={'PYTHONHASHSEED':'5', 'PATH':''}).stdout
    assert out.strip()==str(draw(MicroSpace(5).archs(MicroSpace(5).random(seed=7))[0]))

@pytest.mark.parametrize('o', ['0 3 1', None, 3, [0, 3, 1], MacroSpace])
def test_wrong_type(o):
    with pytest.raises(TypeError, match='draw takes an Arch or a SearchSpace, not') as e: draw(o)
    assert '\n' not in str(e.value)

@pytest.mark.parametrize('pools', [[2], [-1], [.5], ['1'], [True]])
def test_wrong_pools(pools):
    with pytest.raises(ValueError, match='allowed are layers 0 to 1') as e: draw(MacroSpace(2), pools=pools)
    assert '\n' not in str(e.value)

@dataclass(frozen=True)
class Plain(SearchSpace):
    "Nothing but decisions: six edges with an op each, then an index and two skips."
    ops: tuple = (Op('none'), Op('skip', color='#123456'), Op('conv1x1'))
    def decisions(self):
        for i,edge in enumerate(('0 to 1', '0 to 2', '1 to 2', '0 to 3', '1 to 3', '2 to 3')):
            yield Step('op', f'edge {edge}', n=3, at=i, feed='op', remember='h')
        yield Step('index', 'which edge first', n=6, at=6, among=tuple(range(6)), feed='state', remember='h')
        yield Step('skips', 'which also', n=2, at=7, among=(0, 1), feed='mean')

def boxes(svg):
    "Left, right, height and size of each text of a picture, by the width of its letters."
    root = ET.fromstring(svg)
    for g in root.iter(f'{ns}text'):
        w = .6*float(g.get('font-size'))*len(g.text or '')
        x = float(g.get('x')) - (w/2 if g.get('text-anchor')=='middle' else 0)
        yield x, x+w, float(g.get('y')), float(g.get('font-size')), g.text

def test_a_space_that_only_lists_its_decisions_draws_itself():
    space = Plain()
    for o in (space, *space.archs(space.random(5, seed=0))):
        svg = str(draw(o))
        width = float(ET.fromstring(svg).get('viewBox').split()[2])
        texts = list(boxes(svg))
        assert all(l >= 0 and r <= width for l,r,*_ in texts), 'a label leaves the card'
        bad = [(a[4], b[4]) for i,a in enumerate(texts) for b in texts[:i] if abs(a[2]-b[2])<a[3] and min(a[1], b[1])-max(a[0], b[0])>1]
        assert not bad, f'labels overlap: {bad}'
    arch = space.parse('0 1 2 0 1 2 3 1 0')
    assert {(g[0][1], g[1][1]) for g in arch.graph().edges() if arch.graph().edges[(*g, 0)]['kind']=='skip'} == {(3, 6), (0, 7)}

def test_an_op_has_the_colour_of_its_row():
    colors = op_colors(Plain())
    assert colors['skip']=='#123456' and len(set(colors.values()))==3

def test_pools():
    root = ET.fromstring(str(draw(MacroSpace(6), pools=(1, np.int64(3)))))
    assert len(root.findall(f".//{ns}g[@class='pool']"))==2
    with pytest.raises(ValueError, match="not for 'recurrent'"): draw(RecurrentSpace(2), pools=[0])

def test_save_is_atomic(tmp_path):
    f = tmp_path/'a.svg'
    f.write_text('before')
    with pytest.raises(UnicodeEncodeError): Drawing('\ud800').save(f)
    assert f.read_text()=='before' and [o.name for o in tmp_path.iterdir()]==['a.svg']
    draw(MacroSpace(2)).save(f)
    assert f.read_text()==str(draw(MacroSpace(2)))+'\n'

def test_slots():
    assert list(_slots(MacroSpace(2)).values())==[0, 1, 1, 0] and list(_slots(MicroSpace(1)).values())==[0, 0, 2, 0]*2
    assert list(_slots(RecurrentSpace(2)).values())==[0, 1, 1, 0]

@dataclass(frozen=True)
class Diamond(SearchSpace):
    "Two branches with an op each, a graph of its own, and a name that XML would not like."
    name: ClassVar[str] = 'diamond'
    ops: tuple = ('a<b & "c"', 'conv3x3')
    def decisions(self): return [Step('op', f'branch {i}', n=2, at=i) for i in range(2)]
    def nodes(self, code): return [self.ops[o] for o in code]
    def graph(self, code=None):
        ops = self.nodes(code) if code else (None, None)
        mid = [(('net',i+1), f'branch {i+1}', op) for i,op in enumerate(ops)]
        g = nx.MultiDiGraph()
        for n,label,op in [(('net',0), 'in', None), *mid, (('net',3), 'out', None)]: g.add_node(n, label=label, op=op)
        for a,b in [(0,1), (0,2), (1,3), (2,3)]: g.add_edge(('net',a), ('net',b), kind='flow', op=None)
        return g

def test_a_graph_of_a_readers_own(): assert edges(Diamond().parse('0 1'))==(4, 0)

def luminance(color):
    rgb = np.array([int(color[i:i+2], 16)/255 for i in (1,3,5)])
    return np.dot(np.where(rgb<=.03928, rgb/12.92, ((rgb+.055)/1.055)**2.4), (.2126,.7152,.0722))

def contrast(a, b):
    lo,hi = sorted(map(luminance, (a,b)))
    return (hi+.05)/(lo+.05)

def test_labels_can_be_read():
    "The contrast of 4.5 that accessibility guidelines ask for."
    colors = {c for space in (*extremes, Plain(), Diamond()) for c in op_colors(space).values()}
    assert all(contrast(c, _ink(c))>4.5 for c in [*colors, *_spare])

def test_colours():
    for space in extremes: assert len(set(op_colors(space).values()))==len(space.ops) and list(op_colors(space))==list(space.ops)

def test_history():
    d = dict(epoch=[0, 1, 2], train_loss=[3, 2, 1.], valid_loss=[None, 2, 1], entropy=[1, 1, 1], time=['00:01']*3)
    for o in (d, pd.DataFrame(d)):
        fig = plot_history(o)
        assert [a.get_title() for a in fig.axes]==['loss', 'entropy'] and all(a.get_xlabel()=='epoch' for a in fig.axes)
        assert list(fig.axes[0].lines[0].get_xdata())==[0, 1, 2]
    with pytest.raises(TypeError, match='DataFrame or a dict'): plot_history('x')
    for none in ({}, {'time': [1]}):
        with pytest.raises(ValueError, match='history has none of train_loss'): plot_history(none)

def test_panels():
    t = np.arange(20)
    fig = plot_history(dict(train_loss=2.3*np.exp(-t/9), valid_loss=.2+2.2*np.exp(-t/8), accuracy=.8-.7*np.exp(-t/6), reward=t/99, baseline=t/99, entropy=40-t))
    assert [(o.get_title(), len(o.lines)) for o in fig.axes]==[('loss', 2), ('accuracy', 3), ('entropy', 1)]
    text = plot_history(dict(train_loss=1e9**np.exp(-t/3.)+4, valid_loss=7-t/10, median_ppl=900-9*t, reward=t/99))
    assert [(o.get_title(), o.get_yscale()) for o in text.axes]==[('loss', 'log'), ('reward', 'linear'), ('perplexity', 'linear')]

def test_a_policy_that_moves_once_has_no_curve():
    none = [None]*3 + [float('nan')]*2
    d = dict(train_loss=[5, 4, 3, 2, 1, 1.], accuracy=[.1, .2, .3, .4, .5, .6], reward=[*none, -1.2], entropy=[*none, 3.], baseline=[*none, .5])
    for o in (d, pd.DataFrame(d)):
        assert [(a.get_title(), len(a.lines)) for a in plot_history(o).axes]==[('loss', 1), ('accuracy', 1)]
    turns = plot_history(d | dict(reward=[-3, -2, -2, -1, -1, -1.], baseline=[0, -3, -2, -2, -2, -1.]))
    assert [(a.get_title(), len(a.lines)) for a in turns.axes]==[('loss', 1), ('accuracy', 1), ('reward', 2)] # not among accuracies
    one = plot_history({k: v[-1:] for k,v in d.items()}) # a fit of one epoch has dots
    assert [(a.get_title(), len(a.lines)) for a in one.axes]==[('loss', 1), ('accuracy', 1), ('reward', 2), ('entropy', 1)]
    assert [a.get_title() for a in plot_history(dict(train_loss=[float('nan')]*3)).axes]==['loss'] # all that there is

@settings(max_examples=30, deadline=None)
@given(spaces, st.integers(1, 20), st.integers(0, 2**32-1))
def test_shares(space, n, seed):
    codes = space.random(n, seed=seed)
    p,q = shares(codes, space)
    np.testing.assert_allclose(p.sum(0), 1)
    for (i,o) in enumerate(sorted((o for o in space.steps if o.kind in ('skips','index')), key=lambda o: o.at)):
        assert np.isfinite(q[:o.n,i]).all() and np.isnan(q[o.n:,i]).all()
        if o.kind=='index': assert q[:o.n,i].sum()==pytest.approx(1)
        else: np.testing.assert_allclose(q[:o.n,i], codes[:,o.at:o.at+o.n].mean(0))

def test_shares_are_counts():
    code = MacroSpace(4).parse('0 3 1 5 0 1 5 1 1 0').code
    p,q = shares([code, code], MacroSpace(4))
    assert list(p.argmax(0))==[0, 3, 5, 5]
    np.testing.assert_array_equal(q, [[1, 0, 1], [np.nan, 1, 1], [np.nan, np.nan, 0]])
    p,q = shares(MicroSpace(2).random(4000), MicroSpace(2))
    assert abs(p-1/5).max()<.03 and np.allclose(np.nansum(q, 0), 1)

@pytest.mark.parametrize('space', extremes, ids=str)
def test_plot_op_share(space, tmp_path):
    import torch
    fig = plot_op_share(torch.as_tensor(space.random(5)), space)
    fig.savefig(tmp_path/'a.png')
    assert (tmp_path/'a.png').stat().st_size>1000

@pytest.mark.parametrize('codes', [[[1]], [1, 2, 3], np.empty((0, 3), int)])
def test_wrong_codes(codes):
    with pytest.raises(ValueError, match=r'allowed is \[n, 3\]'): shares(codes, MacroSpace(2))

@pytest.mark.parametrize('o', [TinySpace(), Diamond(), Diamond().parse('0 1'), draw(Diamond()), Drawing('<svg xmlns="http://www.w3.org/2000/svg"/>')], ids=lambda o: type(o).__name__)
def test_offers_an_image_beside_the_svg(o):
    "JupyterLab shows no SVG of a notebook that is not trusted, but an image in HTML."
    data = DisplayFormatter().format(o)[0]
    img  = ET.fromstring(data['text/html'].removesuffix('>')+'/>')
    head, text = img.get('src').split(',')
    assert (img.tag, head)==('img', 'data:image/svg+xml;base64') and b64decode(text).decode()==data['image/svg+xml']==o._repr_svg_()
    assert img.get('alt')==ET.fromstring(o._repr_svg_()).get('aria-label', '')

def test_svg_has_no_control_characters():
    "A label of a graph of the user's own may hold anything."
    e = _el('text', 'a\x00\x1b\ud800b\uffff', label='c\x07d')
    assert ET.fromstring(ET.tostring(e, 'unicode')).text=='a\ufffd\ufffd\ufffdb\ufffd' and e.get('label')=='c\ufffdd'
    @dataclass(frozen=True)
    class Odd(SearchSpace):
        name: ClassVar[str] = 'odd'
        ops = ('<b>', 'a&b')
        def decisions(self): yield Step('op', '<i>one</i>', n=2)
        def graph(self, code=None):
            g = super().graph(code)
            for o in g.nodes.values(): o['label'] += '\x01'
            return g
    try: ET.fromstring(str(draw(Odd().parse('1'))))
    finally: del SearchSpace.classes['odd']
