"""A space and ops of a reader's own, end to end: the cell of NAS-Bench-201 as `tutorials/05_your_own_space` writes it, `conv7x7` in the
macro space, `dil3x3` in the micro space."""
import ast, importlib, json, os, subprocess, sys, sysconfig
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import matplotlib; matplotlib.use('Agg')
import pytest, torch
from torch import nn

import enas_nb.all as everything
from enas_nb.all import (MacroSpace, MicroSpace, Op, Recipe, SearchSpace, arch_from_json, arch_learner, batch_norm, conv, digits_dls, draw,
    final_conv, robust, load_arch, open_test, report, run_recipe, search_learner, shared_conv)

TUTORIAL = Path(__file__).parents[1]/'nbs'/'tutorials'/'05_your_own_space.ipynb'
MARGIN   = .3 # of accuracy above chance, 0.1, after a short retraining

@pytest.fixture(scope='module')
def file(tmp_path_factory):
    "The file that the tutorial writes, from its `%%writefile` cells."
    cells = (''.join(o['source']) for o in json.loads(TUTORIAL.read_text(encoding='utf-8'))['cells'])
    heads = '%%writefile my_space.py\n', '%%writefile -a my_space.py\n'
    path  = tmp_path_factory.mktemp('own')/'my_space.py'
    path.write_text('\n'.join(o[len(h):] for o in cells for h in heads if o.startswith(h))+'\n', encoding='utf-8')
    return path

@pytest.fixture(scope='module', autouse=True)
def as_before():
    "What a process knows of spaces and ops is put back, and so are its threads."
    classes, known, threads = dict(SearchSpace.classes), [(o, dict(o.known)) for o in (MacroSpace, MicroSpace)], torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    SearchSpace.classes.clear(); SearchSpace.classes.update(classes)
    for cls,rows in known: cls.known = rows

@pytest.fixture(scope='module')
def space(file, as_before):
    sys.path.insert(0, str(file.parent))
    try: yield importlib.import_module('my_space').Bench201()
    finally: sys.path.remove(str(file.parent)); sys.modules.pop('my_space', None)

@pytest.fixture(scope='module')
def dls(): return digits_dls(bs=64)

def quiet(learn, epochs, **kwargs):
    with learn.no_bar(), learn.no_logging(): learn.fit_preset(epochs=epochs, **kwargs)
    return learn

def accuracy_after(dls, arch, epochs, **sizes):
    "On test images, retrained."
    torch.manual_seed(0)
    learn = quiet(arch_learner(dls, arch, preset=robust['images'], **sizes), epochs)
    with learn.no_bar(): return learn.validate(dl=open_test(dls))[1]

def changed_by_an_epoch(dls, arch, **sizes):
    "Names of ω's parameters that an epoch changes in which only `arch` is trained, and of all."
    still = robust['images'].override(controller=dict(steps=0))
    learn = search_learner(dls, arch.space, preset=still, **sizes)
    learn.search.omega_paths = lambda n: [arch]*n
    before = {k: o.clone() for k,o in learn.model.net.named_parameters()}
    quiet(learn, 1)
    return {k for k,o in learn.model.net.named_parameters() if not torch.equal(o, before[k])}, set(before)

# --- the cell of NAS-Bench-201 ---------------------------------------------------------------------------------------------

def test_the_file_is_short_and_uses_public_names_only(file):
    text = file.read_text(encoding='utf-8')
    assert len(text.splitlines()) <= 60
    for o in ast.walk(ast.parse(text)):
        if isinstance(o, ast.ImportFrom) and o.module.startswith('enas_nb'): assert all(hasattr(everything, a.name) for a in o.names)
        if isinstance(o, ast.Attribute): assert o.attr[0]!='_' or o.attr=='__init__', o.attr

def test_space(space):
    assert (space.size, space.length, space.name) == (5**6, 6, 'Bench201')
    arch = space.parse('3 0 1 4 2 3')
    assert [(o.decision, o.choice) for o in arch.nodes] == [
        ('0 to 1', 'conv3x3'), ('0 to 2', 'none'), ('1 to 2', 'skip'), ('0 to 3', 'avg3x3'), ('1 to 3', 'conv1x1'), ('2 to 3', 'conv3x3')]
    assert len(space.graph().edges)==6 and len(arch.graph().edges)==5 # `none` is no edge
    for o in (space, arch): ElementTree.fromstring(draw(o).svg)

@pytest.mark.parametrize('code,n_params', [('1 1 1 1 1 1', 73_306), ('3 3 3 3 3 3', 1_531_546)])
def test_sizes_are_those_of_the_benchmark(space, code, n_params):
    "The smallest and the largest network of its tables, in millions for CIFAR-10: 0.073306 and 1.531546."
    with torch.device('meta'): net = space.final_net(space.parse(code), 3, 10)
    assert sum(o.numel() for o in net.parameters())==n_params

@pytest.mark.parametrize('code', ['3 0 1 4 2 3', '2 3 0 2 1 3', '1 3 3 3 0 2'])
def test_only_the_chosen_path_gets_gradients(space, code):
    net, arch = space.shared_net(1, 10, width=4, n_cells=1), space.parse(code)
    net.arch = arch
    out = net(torch.randn(8, 1, 8, 8))
    assert out.shape==(8, 10)
    out.square().sum().backward()
    used = {(str(k), str(o.choice)) for k,o in enumerate(arch.nodes)}
    for name,p in net.named_parameters():
        part = name.split('.')
        assert (p.grad is not None) == (part[0]!='stages' or (part[3], part[4]) in used), name

def test_only_the_chosen_path_is_trained(space, dls):
    arch = space.parse('3 0 1 4 2 3')
    changed, every = changed_by_an_epoch(dls, arch, width=4, n_cells=1)
    chosen = ('.0.conv3x3.', '.4.conv1x1.', '.5.conv3x3.')
    assert changed == {k for k in every if not k.startswith('stages') or any(o in k for o in chosen)}

@pytest.fixture(scope='module')
def found(space, dls):
    torch.manual_seed(0)
    learn = quiet(search_learner(dls, space, width=8, n_cells=1), 2)
    assert learn.search.value('entropy') < 9.6 # 6 ln 5 = 9.66 is where it starts
    return learn.derive(n=8)

def test_search_and_retrain(found, space, dls):
    assert found.space==space and found.scores[0][0]==found and all(-12<=o<0 for _,o in found.scores) # minus the loss
    assert accuracy_after(dls, found, 4, width=8, n_cells=1) > .1+MARGIN

def test_saved_and_loaded(found, tmp_path):
    found.save(tmp_path/'found.json')
    assert load_arch(tmp_path/'found.json')==found

def test_enas_show(found, file, tmp_path):
    "With the file that defines it, the program counts the network's parameters; without, it shows the decisions all the same."
    found.save(tmp_path/'found.json')
    def show(*args):
        res = subprocess.run([Path(sysconfig.get_path('scripts'))/'enas-show', 'found.json', *args], cwd=tmp_path, text=True,
                             capture_output=True, env=os.environ|dict(OMP_NUM_THREADS='1'))
        assert res.returncode==0 and 'Traceback' not in res.stderr, res.stderr
        assert str(found) in res.stdout and all(f'{o.decision!r}' in res.stdout and f'{str(o.choice)!r}' in res.stdout for o in found.nodes)
        return res.stdout
    params = sum(o.numel() for o in found.space.final_net(found, 3, 10).parameters())
    assert f'{params:,} parameters' in show('--import', str(file), '--svg', 'own.svg')
    ElementTree.parse(tmp_path/'own.svg')
    assert 'parameters' not in show('--svg', 'listed.svg')
    ElementTree.parse(tmp_path/'listed.svg')

def test_without_its_class(found):
    "A file says enough to show an architecture; its network needs the class."
    was = SearchSpace.classes.pop('Bench201')
    try: listed = arch_from_json(found.to_json())
    finally: SearchSpace.classes['Bench201'] = was
    assert type(listed.space).__name__=='ListedSpace' and listed.nodes==found.nodes and listed.space.size==found.space.size
    assert json.loads(listed.to_json())==json.loads(found.to_json())
    with pytest.raises(TypeError, match='Bench201 has no final network: run the module or cell that defines its class') as e: listed.space.final_net(listed, 1, 10)
    assert '\n' not in str(e.value)

def test_recipe_and_report(space):
    preset = robust['images'].override(search=dict(T_0=1), final=dict(T_0=1), controller=dict(steps=5))
    recipe = Recipe('own', 'A space of my own', 'digits_dls', dict(bs=64), space, preset, sizes=dict(width=4, n_cells=1), n_derive=3,
                    n_look=3, n_children=1, n_random=1)
    result, history, arch = run_recipe(recipe, log=lambda o: None)
    assert result['arch']==str(arch) and result['n_archs']==5**6 and len(history)==1
    for o in ('test_accuracy', 'random_test_accuracy', 'child_test_accuracy', 'equal_cost_rival', 'policy_shared_accuracy', 'enas_cost'):
        assert o in result
    json.dumps(result)
    text = report(result)
    assert str(arch) in text and f"{result['test_accuracy']:.2%}" in text

# --- ops -------------------------------------------------------------------------------------------------------------------

def dilated(nf, stride=1, bn_eval='running'):
    depthwise = nn.Conv2d(nf, nf, 3, stride, padding=2, dilation=2, groups=nf, bias=False)
    return nn.Sequential(nn.ReLU(), depthwise, conv(nf, nf), batch_norm(nf, bn_eval))

def conv7x7(): return MacroSpace(3, ops=(*MacroSpace.ops, Op('conv7x7', partial(shared_conv, ks=7), partial(final_conv, ks=7), '#5b6472')))
def dil3x3(): return MicroSpace(2, ops=(*MicroSpace.ops, Op('dil3x3', dilated, color='#d55e00')), sep_bias=0., sep_prior=0.)

own_ops = pytest.mark.parametrize('make,code,other,sizes', [
    (conv7x7, '6 | 6 1 | 0 0 1', '0 | 1 1 | 0 0 1', dict(width=8)),
    (dil3x3, '1 5 0 5 | 2 5 0 4 | 0 5 1 5 | 2 5 1 3', '1 0 0 1 | 2 2 0 4 | 0 1 1 0 | 2 4 1 3', dict(width=8, n_layers=1))],
    ids=['conv7x7', 'dil3x3'])

@own_ops
def test_op_trains(make, code, other, sizes, dls):
    "Its weights change where it is chosen, and only there."
    op = make.__name__
    for text in (code, other):
        changed, every = changed_by_an_epoch(dls, make().parse(text), **sizes)
        assert any(f'.{op}.' in o for o in every)
        assert any(f'.{op}.' in o for o in changed)==(text==code)

@own_ops
def test_op_is_searched(make, code, other, sizes, dls):
    torch.manual_seed(0)
    preset = robust['images'].override(controller=dict(steps=5))
    learn = quiet(search_learner(dls, make(), preset=preset, **sizes), 1)
    codes = learn.model.controller.sample(50, torch.Generator().manual_seed(0)).codes
    assert sum(make.__name__ in str(o.nodes) for o in make().archs(codes)) > 10
    assert learn.derive(n=3).space==make()

@own_ops
def test_op_is_drawn_retrained_saved_and_loaded(make, code, other, sizes, dls, tmp_path):
    arch, op = make().parse(code), make.__name__
    assert op in draw(arch).svg
    assert accuracy_after(dls, arch, 3, **sizes) > .1+MARGIN
    arch.save(tmp_path/'op.json')
    assert load_arch(tmp_path/'op.json')==arch
    with pytest.raises(ValueError, match=r"unknown op 'new', allowed are .*Op\('new'"): arch_from_json(arch.to_json().replace(op, 'new'))
