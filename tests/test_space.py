"Spaces and architectures: what is refused, what a file carries, ops that are rows, a space that only lists its decisions."
import json, os, pickle, re, stat
from dataclasses import dataclass
from functools import partial

import networkx as nx
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn

from enas_nb.macro import MacroNet, MacroSpace, SharedMacroNet, final_conv, shared_conv
from enas_nb.genotype import Genotype, from_genotype
from enas_nb.micro import MicroNet, MicroSpace, SharedMicroNet
from enas_nb.recurrent import RecurrentSpace
from enas_nb.checks import approx, write_file
from enas_nb.arch_files import ListedSpace, arch_from_json, find_space, load_arch, space_from_dict
from enas_nb.space import Arch, Op, SearchSpace, Step, TinySpace

def activations():
    "A space that has nothing but decisions: an activation after each of a few layers."
    @dataclass(frozen=True)
    class Activations(SearchSpace):
        n_layers: int = 3
        ops: tuple = (Op('relu'), Op('tanh'), Op('sigmoid'))
        def decisions(self):
            for i in range(self.n_layers): yield Step('op', f'after layer {i+1}', n=len(self.ops), at=i, feed='op')
    return Activations
Activations = activations()
Activations.__qualname__ = 'Activations' # pickle looks for it here

LATER  = RecurrentSpace(8, ops=('tanh', 'relu', 'sigmoid', 'identity'), tanh_first=True)
SPACES = [TinySpace(), MacroSpace(6), MacroSpace(3, ops=('conv3x3', 'max3x3')), MicroSpace(5), RecurrentSpace(12), LATER, Activations(4)]
each_space = pytest.mark.parametrize('space', SPACES, ids=str)

def refused(error, f, *args, **kwargs):
    "The one line that an error shows."
    with pytest.raises(error) as e: f(*args, **kwargs)
    assert '\n' not in str(e.value)
    return str(e.value)

@each_space
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 70), st.integers(0, 2**32-1))
def test_fair_samples(space, n, seed):
    "Each choice of a decision as often as any other, but for one; any two decisions independent; a function of the seed."
    codes = space.fair(n, seed)
    assert codes.shape==(n, space.length) and codes.dtype.kind=='i' and [o.code for o in space.archs(codes)]==[tuple(o) for o in codes.tolist()]
    for column,(step,_) in zip(codes.T, space.slots):
        counts = np.bincount(column, minlength=step.choices)
        assert counts.sum()==n and len(counts)==step.choices and counts.max()-counts.min()<=(n%step.choices>0)
        k = step.choices # within each round, too
        for i in range(0, n-n%k, k): assert sorted(column[i:i+k])==list(range(k))
    assert np.array_equal(codes, space.fair(n, seed)) and np.array_equal(codes, space.fair(n, np.random.default_rng(seed)))
    assert n<8 or not np.array_equal(codes, space.fair(n, seed+1))

@each_space
def test_round_trips(space, tmp_path):
    full = space.graph()
    for arch in space.archs(space.random(50, seed=3)):
        assert space.parse(str(arch)) == arch == arch_from_json(arch.to_json()) == pickle.loads(pickle.dumps(arch))
        assert arch_from_json(arch.to_json()).to_json() == arch.to_json()
        g = arch.graph()
        assert nx.is_directed_acyclic_graph(g) and set(g.edges()) <= set(full.edges())
    arch.save(tmp_path/'arch.json')
    assert [o.name for o in tmp_path.iterdir()] == ['arch.json'] and load_arch(tmp_path/'arch.json') == arch

def test_files_of_before_still_load():
    "Names of ops as strings, no steps: what the library wrote before a space was one class."
    text = '{"space": {"name": "macro", "n_layers": 3, "ops": ["conv3x3", "sep3x3", "conv5x5", "sep5x5", "avg3x3", "max3x3"]}, "arch": [0, 3, 1, 5, 0, 1]}'
    arch = arch_from_json(text)
    assert arch == MacroSpace(3).parse('0 3 1 5 0 1') and arch.to_json() == text

def test_macro_refuses():
    small = MacroSpace(3)
    said = partial(refused, ValueError, small.parse)
    assert said('0 7 1 5 0 1') == 'position 1 (op of layer 2) is 7, allowed is 0 to 5 (conv3x3, sep3x3, conv5x5, sep5x5, avg3x3, max3x3)'
    assert said('0 3 1 5 0 2') == 'position 5 (skip into layer 3 from layer 1) is 2, allowed is 0 or 1'
    assert 'has 6' in said('0') and "position 3 is 'x'" in said('0 3 2 x 0 1')
    assert 'not an integer' in refused(TypeError, Arch, small, [0., 3, 1, 5, 0, 1])
    assert 'not an integer' in refused(TypeError, Arch, small, [0, 3, True, 5, 0, 1])
    assert 'allowed is 1 to 100' in refused(ValueError, MacroSpace, 0)
    assert 'not an integer' in refused(TypeError, MacroSpace, '3') and 'not an integer' in refused(TypeError, MacroSpace, 2.5)

@pytest.mark.parametrize('text,why', [
    ('{"space":{"name":"x"}, "arch":[]}', 'unknown space'), ('{"arch": []}', 'is an object with'), ('[]', 'is an object with'), ('{', 'not JSON'),
    ('{"space":{"name":"macro","depth":3}, "arch":[]}', 'has no depth'), ('{"space":{"name":"tiny","depth":3}, "arch":[]}', 'has no depth'),
    ('{"space":{"name":"macro","n_layers":3,"ops":["conv3x3","conv9x9"]}, "arch":[]}', "unknown op 'conv9x9'")])
def test_files_refused(text, why, tmp_path):
    assert why in refused(ValueError, arch_from_json, text)
    (tmp_path/'a.json').write_text(text)
    assert why in refused(ValueError, load_arch, tmp_path/'a.json')

def test_ops_are_rows(monkeypatch):
    monkeypatch.setattr(MacroSpace, 'known', dict(MacroSpace.known)) # other tests do not see the new row
    assert 'or a row of your own' in refused(ValueError, MacroSpace, 3, ops=['conv11x11'])
    assert 'repetitions' in refused(ValueError, MacroSpace, 3, ops=[]) and 'repetitions' in refused(ValueError, MacroSpace, 3, ops=['max3x3']*2)
    row = Op('conv9x9', partial(shared_conv, ks=9), partial(final_conv, ks=9))
    space = MacroSpace(2, ops=(*MacroSpace.ops, row))
    assert space.ops[-1].search is row.search and MacroSpace(2, ops=('conv9x9',)).ops[0] is row # known by name from now on
    assert space == MacroSpace(2, ops=(*MacroSpace.ops, 'conv9x9')) != MacroSpace(2)
    assert json.loads(space.parse('6 | 6 1').to_json())['space']['ops'][-1] == 'conv9x9'

def test_a_class_is_known_by_its_name():
    assert find_space('macro') is MacroSpace and find_space('Activations') is Activations
    def taken():
        class Other(SearchSpace): name = 'macro'
    assert "'macro' is in the library already" in refused(ValueError, taken)
    again = activations() # as a cell does that runs again
    try: assert find_space('Activations') is again is not Activations
    finally: SearchSpace.classes['Activations'] = Activations

def test_a_file_whose_class_is_missing_can_be_shown():
    mine = Activations(4).parse('0 1 0 2')
    text = mine.to_json().replace('Activations', 'Gone')
    gone = arch_from_json(text)
    assert isinstance(gone.space, ListedSpace) and gone.to_json() == text and arch_from_json(gone.to_json()) == gone
    assert gone.nodes == mine.nodes and gone.space.size == mine.space.size
    assert 'no shared network' in refused(TypeError, gone.space.shared_net, 1, 10)

def test_a_file_with_other_decisions_than_the_class_is_refused():
    d = json.loads(Activations(4).parse('0 1 0 2').to_json())
    d['space']['steps'][0]['n'] = 2
    assert 'other decisions' in refused(ValueError, space_from_dict, d['space'])

def of_steps(*steps, rows=('a', 'b'), answer=None):
    "A space with these decisions."
    @dataclass(frozen=True)
    class Mine(SearchSpace):
        ops = rows
        def decisions(self): return answer if answer else iter(steps)
    return Mine()

def op(label, at=0, n=2, **kwargs): return Step('op', label, n=n, at=at, **kwargs)

@pytest.mark.parametrize('steps,why', [
    ([op('one'), op('two'), op('three')], "Mine: 'one' and 'two' both fill position 0, give each decision its own `at`"), # a forgotten `at`
    ([op('one'), Step('none', 'wait'), Step('index', 'two', n=1)], "'two' has among=()"),
    ([op('one', remember='h'), Step('skips', 'two', n=1, among=(0,))], "'one' and 'two' both fill position 0"),
    ([op('one'), op('two', at=2), op('three', at=4)], "nothing fills position 1, 'two' is stored at 2"),
    ([op('one', at=1)], "nothing fills position 0, 'one' is stored at 1"),
    ([Step('none', 'wait', remember='h'), Step('skips', 'bits', n=2, at=1, among=(0, 0))], "nothing fills position 0, 'bits' is stored at 1"),
    ([op('one', n=3)], "'one' has n=3, the space has 2 ops (a, b): write n=len(self.ops)"),
    ([Step('none', 'wait', remember='h'), Step('index', 'two', n=1, among=(1,))], "'two' has among=(1,), allowed are n=1 positions among the 1 state"),
    ([Step('none', 'wait', remember='h'), Step('index', 'two', n=2, among=(0,))], "'two' has among=(0,), allowed are n=2 positions among the 1 state")])
def test_decisions_that_do_not_fit_together(steps, why):
    space = of_steps(*steps)
    for f in (lambda: space.steps, lambda: space.size, lambda: space.slots, space.random): assert why in refused(ValueError, f)

def test_decisions_that_are_missing():
    @dataclass(frozen=True)
    class Nothing(SearchSpace): pass
    assert 'Nothing has no decisions: give it a method decisions(self)' in refused(TypeError, lambda: Nothing().steps)
    for answer in (['one'], [op]): assert 'Mine.decisions gives' in refused(TypeError, lambda: of_steps(answer=answer).steps)
    assert 'Mine.decisions gives no `Step`' in refused(TypeError, lambda: of_steps().steps)
    @dataclass(frozen=True)
    class Forgot(SearchSpace): # to write `yield`
        def decisions(self): op('one')
    assert 'Forgot.decisions gives no `Step`' in refused(TypeError, lambda: Forgot().steps)

@pytest.mark.parametrize('args,error,why', [
    (dict(kind='ops'), ValueError, "'one': kind is 'ops', allowed are 'op', 'index', 'skips', 'none'"),
    (dict(feed='ops'), ValueError, "'one': feed is 'ops', allowed are 'start', 'op'"),
    (dict(feed='mean'), ValueError, "'one': feed is 'mean', allowed are 'start', 'op'"),
    (dict(kind='index', feed='op'), ValueError, "'one': feed is 'op', allowed are 'start', 'state', 'state/distance'"),
    (dict(kind='skips', feed='state'), ValueError, "'one': feed is 'state', allowed are 'start', 'mean'"),
    (dict(kind='none', feed='op'), ValueError, "'one': feed is 'op', allowed are 'start'"),
    (dict(remember='x'), ValueError, "'one': remember is 'x', allowed are '', 'h', 'zero'"),
    (dict(n=0), ValueError, "'one': n is 0, allowed is 1 to 1000000"),
    (dict(n=2.), TypeError, "'one': n is 2.0, not an integer"),
    (dict(at=-1), ValueError, "'one': at is -1, allowed is 0 to 1000000"),
    (dict(at='0'), TypeError, "'one': at is '0', not an integer"),
    (dict(bias=(1.,)), ValueError, "'one': bias is (1.0,), allowed are n=2 numbers")])
def test_steps_refused(args, error, why):
    assert refused(error, lambda: Step(**dict(dict(kind='op', label='one', n=2), **args))).startswith(why)

def test_a_space_is_a_frozen_dataclass():
    class Bare(SearchSpace):
        def decisions(self): yield op('one')
    @dataclass
    class Thawed(SearchSpace):
        n_layers: int = 3
    for cls in (Bare, Thawed): assert f'{cls.__name__} is no frozen dataclass, write @dataclass(frozen=True)' in refused(TypeError, cls)
    class Wide(MacroSpace): pass # has no fields of its own
    assert Wide(3).size == MacroSpace(3).size

@pytest.mark.parametrize('args,error,why', [
    (dict(color='blue'), ValueError, "op 'mine': color is 'blue', allowed is like '#0072b2'"),
    (dict(color='#07b'), ValueError, "allowed is like '#0072b2'"), (dict(color=5), ValueError, "allowed is like '#0072b2'"),
    (dict(color='#0072b2\n'), ValueError, "allowed is like '#0072b2'"),
    (dict(search='#0072b2'), TypeError, "op 'mine': search is '#0072b2', a function is needed"),
    (dict(final=3), TypeError, "op 'mine': final is 3, a function is needed")])
def test_rows_refused(args, error, why): assert why in refused(error, Op, 'mine', **args)

def test_an_op_without_builder_is_named_when_a_network_is_built(monkeypatch):
    for space,sizes in ((MacroSpace, dict(width=4)), (MicroSpace, dict(width=4, n_layers=1)), (RecurrentSpace, dict(width=4))):
        monkeypatch.setattr(space, 'known', dict(space.known))
        mine = space(1, ops=(Op('mine'),))
        arch = mine.archs(mine.random(1))[0]
        def train(net):
            net.arch = arch
            net.reset(); net(torch.zeros(2, 2, dtype=torch.long))
        for build in (lambda: mine.shared_net(10, 10, **sizes), lambda: mine.final_net(arch, 10, 10, **sizes)):
            f = (lambda: train(build())) if space is RecurrentSpace else build # its ops are functions, called when it runs
            assert "op 'mine' has no builder" in refused(TypeError, f)
    assert pickle.loads(pickle.dumps(Op('mine', color='#0072b2'))).color == '#0072b2'
    only = Op('mine', final=nn.Identity)
    assert isinstance(only.final(), nn.Identity) and 'no builder' in refused(TypeError, only.search, 8)

def own_attribute():
    "A space whose ops are a class attribute, no field."
    @dataclass(frozen=True)
    class Attribute(SearchSpace):
        ops = (Op('relu', torch.relu), Op('tanh', torch.tanh))
        def decisions(self):
            for i in range(3): yield op(f'layer {i}', at=i, feed='op')
    return Attribute

def test_a_file_carries_the_ops():
    cls = own_attribute()
    arch = cls().parse('0 1 1')
    d = json.loads(arch.to_json())['space']
    assert d['ops'] == ['relu', 'tanh'] and arch_from_json(arch.to_json()) == arch
    was = SearchSpace.classes.pop('Attribute')
    try:
        listed = arch_from_json(arch.to_json())
        old = arch_from_json(json.dumps(dict(space={k: v for k,v in d.items() if k!='ops'}, arch=[0, 1, 1]))) # as files of before
    finally: SearchSpace.classes['Attribute'] = was
    assert listed.nodes == arch.nodes and [o.choice for o in old.nodes] == ['op 0', 'op 1', 'op 1']
    assert listed.to_json() == arch.to_json() and 'ops' not in json.loads(old.to_json())['space']
    assert arch_from_json(old.to_json()) == arch
    assert 'with other decisions or ops' in refused(ValueError, space_from_dict, d | dict(ops=['relu', 'sigmoid']))

def test_a_space_whose_class_is_missing():
    mine = MacroSpace(8)
    listed = space_from_dict(dict(mine.to_dict(), name='Gone', steps=[dict(kind=o.kind, label=o.label, n=o.n, at=o.at, among=o.among,
        remember=o.remember, feed=o.feed) for o in mine.steps]))
    assert repr(listed) == "ListedSpace('Gone')" and len(repr(listed.archs(listed.random(1))[0])) < 130
    for f in (listed.shared_net, partial(listed.final_net, None)):
        assert 'run the module or cell that defines its class' in refused(TypeError, f, 3, 10)

def test_approx():
    assert [approx(o) for o in (7, 384, 15_625, 999_999)] == ['7', '384', '15,625', '999,999']
    assert [approx(o) for o in (10**6, 1_528_823_808, 999_999_999, 10**400)] == ['1.00e+06', '1.53e+09', '1.00e+09', '1.00e+400']

def test_tiny_space_has_its_table():
    codes, accuracies = TinySpace().table
    assert codes.shape == (384, 5) and accuracies.shape[0] == 384 and accuracies.shape[1] >= 3
    assert len({tuple(o) for o in codes.tolist()}) == 384 and ((0 <= accuracies) & (accuracies <= 1)).all()
    for o in codes: TinySpace().check(o)

def test_macro_networks_of_any_size():
    for n in (1, 2, 3, 7):
        space = MacroSpace(n)
        arch = space.archs(space.random(1, seed=n))[0]
        for net in (MacroNet(arch, n_in=1, n_out=4, width=4), MacroNet(arch, n_in=1, n_out=4, width=4, skip='sum')):
            assert net(torch.randn(3, 1, 9, 11)).shape == (3, 4)
        net = SharedMacroNet(space, n_in=1, n_out=4, width=4); net.arch = arch
        assert net(torch.randn(3, 1, 9, 11)).shape == (3, 4)

def test_macro_networks_refuse():
    arch, net = MacroSpace(3).parse('0 3 1 5 0 1'), SharedMacroNet(MacroSpace(6), width=4)
    assert "allowed are 'concat', 'sum'" in refused(ValueError, MacroNet, arch, skip='add')
    assert "allowed are 'separable', 'full'" in refused(ValueError, MacroNet, arch, sep='half')
    assert 'no architecture is set' in refused(ValueError, net, torch.randn(2, 3, 8, 8))
    assert 'in a network for MacroSpace(n_layers=6' in refused(ValueError, setattr, net, 'arch', arch)

PUBLISHED = MicroSpace(5).parse('''0 2 0 0  0 4 0 1  0 4 1 1  1 0 0 1  0 2 1 1
                                   1 0 1 0  0 3 0 2  1 1 3 1  1 0 0 4  0 3 1 1''')

def test_micro_networks_of_any_size():
    for n,space in ((1, MicroSpace(5)), (2, MicroSpace(1)), (4, MicroSpace(5)), (7, MicroSpace(2, ops=('sep5x5', 'identity')))):
        arch = space.archs(space.random(1, seed=n))[0]
        assert MicroNet(arch, n_in=1, n_out=4, n_layers=n, width=3)(torch.randn(3, 1, 9, 11)).shape == (3, 4)
        net = SharedMicroNet(space, n_in=1, n_out=4, n_layers=n, width=3); net.arch = arch
        assert net(torch.randn(3, 1, 9, 11)).shape == (3, 4)

def test_micro_networks_refuse():
    net = SharedMicroNet(MicroSpace(5), n_layers=1, width=4)
    assert 'no architecture is set' in refused(ValueError, net, torch.randn(2, 3, 8, 8))
    assert 'in a network for MicroSpace(n_nodes=5' in refused(ValueError, setattr, net, 'arch', MicroSpace(1).parse('0 0 1 1 0 0 1 1'))
    assert "allowed are 'batch', 'running'" in refused(ValueError, SharedMicroNet, MicroSpace(5), n_layers=1, bn_eval='moving')
    assert 'drop_path is 1, allowed is from 0 to less than 1' in refused(ValueError, MicroNet, PUBLISHED, drop_path=1)
    net, small = MicroNet(PUBLISHED, n_layers=4, width=4, aux=True), torch.randn(4, 3, 16, 16)
    assert 'at least 5x5 pixels and gets 4x4: take larger images, or aux=False' in refused(ValueError, net.train(), small)
    assert net.eval()(small).shape == (4, 10) # in evaluation there is no such head

@pytest.mark.parametrize('bn_eval,same', [('batch', True), ('running', False)])
def test_batch_statistics_in_evaluation(bn_eval, same):
    torch.manual_seed(0)
    net, x = SharedMicroNet(MicroSpace(5), n_layers=1, width=4, dropout=0, bn_eval=bn_eval), torch.randn(8, 3, 16, 16)
    net.arch = PUBLISHED
    assert torch.allclose(net.train()(x), net.eval()(x), atol=1e-5) == same

def test_drop_path_grows_with_depth_and_time_and_is_off_in_evaluation():
    torch.manual_seed(0)
    net, x = MicroNet(PUBLISHED, n_layers=3, width=4, dropout=0, drop_path=.4), torch.randn(4, 3, 16, 16)
    assert [net.drop_rate(i) for i in range(5)] == pytest.approx([.08, .16, .24, .32, .4])
    def same(): return torch.equal(net(x), net(x))
    assert not same()
    net.step_ratio = 0.
    assert same()
    net.step_ratio = 1.; net.eval()
    assert same() and [net.drop_rate(i) for i in range(5)] == [0]*5

def test_architectures_that_differ_in_one_source_share_every_other_weight():
    torch.manual_seed(0)
    net, x = SharedMicroNet(MicroSpace(5), n_layers=3, width=4), torch.randn(4, 3, 16, 16)
    def used(arch):
        net.zero_grad(); net.arch = arch; net(x).sum().backward()
        return {n for n,p in net.named_parameters() if p.grad is not None}
    code = list(PUBLISHED.code); code[18] = 2 # index 2 of the last node of the normal cell
    one, other = used(PUBLISHED), used(Arch(PUBLISHED.space, code))
    assert {re.sub(r'cells\.\d+\.', '', n.split('.sep')[0]) for n in other-one if '.nodes.' in n} == {'nodes.4.1'}
    assert len(one & other) > .9*len(other)

# --- fields, limits, files -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('make,error,why', [
    (lambda: RecurrentSpace(3, tanh_first='false'), TypeError, "tanh_first is 'false', allowed is True or False"),
    (lambda: MicroSpace(3, sep_bias='x'), TypeError, "sep_bias is 'x', not a number"),
    (lambda: MicroSpace(3, sep_bias=float('nan')), ValueError, 'sep_bias is nan, not a finite number'),
    (lambda: MicroSpace(3, sep_prior=10**400), ValueError, 'sep_prior is an integer of 1,329 bits, not a finite number'),
    (lambda: MacroSpace(10**6), ValueError, 'n_layers is 1000000, allowed is 1 to 100'),
    (lambda: MacroSpace(3, ops=dict(conv3x3=1)), TypeError, "ops are {'conv3x3': 1}, allowed is a list of names or `Op`s"),
    (lambda: Step('op', 'one', n=2, reduce='false'), TypeError, "'one': reduce is 'false', allowed is True or False"),
    (lambda: Step('op', 'one', n=2, bias=('a', None)), TypeError, "'one': bias is 'a', not a number"),
    (lambda: Step('op', 'x\n', n=2), ValueError, "the label of a step is 'x\\n', allowed are 1 to 60 printable characters"),
    (lambda: Step('skips', 'one', n=10**400), ValueError, "'one': n is an integer of 1,329 bits, allowed is 1 to 1000000"),
    (lambda: Op('\x1b[2J'), ValueError, "the name of an op is '\\x1b[2J', allowed are 1 to 60 printable characters")])
def test_a_field_has_its_type_and_range(make, error, why): assert refused(error, make)==why

def test_numbers_of_numpy_and_lists_are_pythons():
    @dataclass(frozen=True)
    class Wide(Activations):
        sizes: tuple = (3, 5)
        scale: float = 1.
    a, b = Wide(np.int64(2), sizes=[3, [5]], scale=np.float32(.5)), Wide(2, sizes=(3, (5,)), scale=.5)
    assert a==b and hash(a)==hash(b) and a.parse('0 1')==arch_from_json(a.parse('0 1').to_json())
    assert MacroSpace(np.int64(2)).parse('0 0 0').to_json()==MacroSpace(2).parse('0 0 0').to_json()

@pytest.mark.parametrize('text,why', [
    ('{"space":{"name":"micro","n_nodes":1000000000},"arch":[]}', 'n_nodes is 1000000000, allowed is 1 to 100'), # took 6 GB
    ('{"space":{"name":"macro","n_layers":3,"n_layers":2},"arch":[0,0,0]}', 'twice in one object: n_layers'),
    ('['*10**5, 'not JSON: nested too deeply'), ('{"space":{"name":"macro","ops":'+'['*900+']'*900+'},"arch":[]}', 'a list is nested more than 20 times'),
    ('{"space":{"name":"q","steps":[{"kind":"op","label":"x","n":1000000}]},"arch":[0]}', '1 to 100 of them'),
    ('{"space":{"name":{}},"arch":[]}', 'the name of a space is {}, allowed are 1 to 60'), ('{"space":{"name":"q","steps":3},"arch":[]}', 'steps is 3'),
    ('{"space":{"name":"macro","'+'x'*10**6+'":1},"arch":[]}', 'MacroSpace has no xxx')])
def test_json_is_checked_before_anything_is_built(text, why):
    with pytest.raises((ValueError, TypeError)) as e: arch_from_json(text)
    assert why in str(e.value) and len(str(e.value))<=300

def test_a_space_that_cannot_be_listed():
    "Also one of the user's: 10^9 decisions, or more architectures than Python prints."
    for space in (Activations(10**9), Activations(9000)): assert 'it is too large to be listed' in refused(ValueError, lambda: space.size)
    assert 'n is 1000000000, allowed is 0 to ' in refused(ValueError, MacroSpace(12).random, 10**9)
    assert approx(MacroSpace(44).size)=='1.03e+319' and approx(10**10**6)=='1.00e+1000000'

def test_strings_are_plain_digits_and_short_lines():
    said = partial(refused, ValueError, TinySpace().parse)
    assert said('٣ 0 0 0 0')=="position 0 is '٣', not an integer of 1 to 9 digits"
    for text in ('x'*10**5, '1'*10**5, 'x'*10**7, '0 '*10**5): assert len(said(text))<=300

def test_write_file(tmp_path):
    "It follows a link, keeps a mode, honours the umask, and writes into what is no file."
    old = os.umask(0o027)
    try: write_file(tmp_path/'a', 'one')
    finally: os.umask(old)
    assert stat.S_IMODE((tmp_path/'a').stat().st_mode)==0o640
    (tmp_path/'a').chmod(0o600); (tmp_path/'link').symlink_to('a')
    write_file(tmp_path/'link', b'two')
    assert (tmp_path/'link').is_symlink() and (tmp_path/'a').read_bytes()==b'two' and stat.S_IMODE((tmp_path/'a').stat().st_mode)==0o600
    write_file('/dev/null', 'gone')
    assert stat.S_ISCHR(os.stat('/dev/null').st_mode)
    os.mkfifo(tmp_path/'pipe')
    reader = os.open(tmp_path/'pipe', os.O_RDONLY|os.O_NONBLOCK)
    write_file(tmp_path/'pipe', 'three')
    assert os.read(reader, 9)==b'three' and stat.S_ISFIFO((tmp_path/'pipe').stat().st_mode)
    os.close(reader)
    with pytest.raises(IsADirectoryError): write_file(tmp_path, 'x')
    with pytest.raises(UnicodeEncodeError): write_file(tmp_path/'a', '\ud800')
    assert sorted(o.name for o in tmp_path.iterdir())==['a', 'link', 'pipe'] and (tmp_path/'a').read_bytes()==b'two'

def test_genotypes():
    pair = ('skip_connect', 0)
    good = Genotype([pair]*4, [1, 2, 3], [pair]*4, range(1, 4))
    assert from_genotype(good)==from_genotype(str(good))
    odd = refused(ValueError, from_genotype, Genotype([pair]*3, [1, 2], [pair]*3, [1, 2])) # the last one was dropped
    assert odd.startswith('normal of the genotype is [(') and 'two for each node' in odd
    for bad in ('Genotype(range(1000000000),1,1,1)', 'Genotype('+'('*10**5, 'Genotype('+'-'*9000+'1)', 5, good._replace(normal=[({}, 0)]*4),
                good._replace(reduce_concat=range(10**30))):
        assert len(refused(ValueError, from_genotype, bad))<=300
