"The authors' own graphs, run once on small sizes: our classes with their weights must give their numbers."
import json, os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest, torch
from torch import tensor
from torch.utils._python_dispatch import TorchDispatchMode

from enas_nb.controller import Controller, reported_entropy
from enas_nb.layers import FactorizedReduction
from enas_nb.macro import MacroNet, SharedMacroNet, pool_layers, shared_conv
from enas_nb.micro import MicroNet, SharedMicroNet
from enas_nb.presets import released
from enas_nb.recurrent import RecurrentLM, SharedRecurrentLM
from enas_nb.reinforce import skip_count, skip_penalty
from enas_nb.space import Arch
from enas_nb.macro import MacroSpace
from enas_nb.micro import MicroSpace
from enas_nb.recurrent import RecurrentSpace

FOLDER = Path(os.environ.get('GOLDEN_DIR', Path(__file__).parent/'golden'))
TOL = 1e-4

class Golden:
    "One file: its `config`, its other arrays, and its variables, each of which must be used exactly once."
    def __init__(self, path):
        with np.load(path, allow_pickle=False) as z:
            self.config = json.loads(str(z['config']))
            self.vars   = {k.removeprefix('var/'): tensor(z[k]) for k in z.files if k.startswith('var/')}
            self.arrays = {k: tensor(z[k]) for k in z.files if k!='config' and not k.startswith('var/')}

    def __getitem__(self, k): return self.arrays[k]

    def load(self, model, mapped):
        "Load `mapped` (our name -> tensor); nothing of ours may stay unfilled, nothing of theirs unused."
        assert not self.vars, f'variables that are not mapped: {sorted(self.vars)}'
        model.load_state_dict(mapped, strict=True)
        return model

    def take(self, name): return self.vars.pop(name)

def close(ours, theirs, what): np.testing.assert_allclose(ours.detach().numpy(), theirs.numpy(), atol=TOL, rtol=0, err_msg=what)

# --- controllers -----------------------------------------------------------------------------------------------------

def load_controller(g, space, emb, g_emb, **changes):
    "Our controller with the authors' weights. Their LSTM is one matrix [x,h] -> i,f,o,g; torch's gates are i,f,g,o."
    c = g.config
    p = replace(released['macro'].controller, hidden=c['lstm_size'], n_lstm=c['lstm_num_layers'],
                tanh_constant=c['tanh_constant'], temperature=c['temperature'] or 1., **changes)
    m, H = {}, p.hidden
    for i in range(p.n_lstm):
        wi,wf,wo,wg = g.take(f'controller/lstm/layer_{i}/w').chunk(4, 1)
        w = torch.cat([wi,wf,wg,wo], 1).T
        m[f'lstm.{i}.weight_ih'], m[f'lstm.{i}.weight_hh'] = w[:,:H], w[:,H:]
    m['start'], m['op_emb.weight'] = g.take(f'controller/{g_emb}'), g.take(f'controller/{emb}')
    m['op_out.weight'] = g.take('controller/softmax/w').T
    if space.op_bias: m['op_bias'] = g.take('controller/softmax/b')[0]
    for ours,theirs in dict(key='w_1', query='w_2', v='v').items(): m[f'{ours}.weight'] = g.take(f'controller/attention/{theirs}').T
    return g.load(Controller(space, p), m)

def controller_macro(g):
    c = g.config
    model = load_controller(g, MacroSpace(c['num_layers'], ops=MacroSpace.ops[:c['num_branches']]), 'emb/w', 'g_emb')
    w = model.score(g['arcs'].long())
    close(w.log_prob, g['log_prob'], 'log_prob')
    close(reported_entropy(w), g['reported_entropy'], 'reported_entropy')
    close(skip_penalty(w, c['skip_target'], released=True), g['skip_penalty'], 'skip_penalty')
    close(skip_count(w).float(), g['skip_count'].float(), 'skip_count')

def controller_micro(g):
    c = g.config
    space = MicroSpace(c['num_cells'], ops=MicroSpace.ops[:c['num_branches']])
    w = load_controller(g, space, 'emb/w', 'g_emb', op_tanh_reduce=c['op_tanh_reduce']).score(g['arcs'].long())
    close(w.log_prob, g['log_prob'], 'log_prob')
    close(w.entropy, g['entropy'], 'entropy')

def controller_recurrent(g):
    c = g.config
    space = RecurrentSpace(c['rhn_depth'], ops=RecurrentSpace.ops[:c['num_funcs']])
    w = load_controller(g, space, 'embedding/w', 'embedding/g_emb').score(g['arcs'].long())
    close(w.log_prob, g['log_prob'], 'log_prob')
    close(reported_entropy(w), g['reported_entropy'], 'reported_entropy')

# --- macro networks ------------------------------------------------------------------------------------------------------

def conv(w): "[kh, kw, in, out] -> torch"; return w.permute(3,2,0,1)
def images(x): "NHWC -> NCHW"; return x.permute(0,3,1,2)

def take_bn(g, theirs, m, ours):
    "Map a batch norm with its moving averages."
    for a,b in dict(weight='scale', bias='offset', running_mean='moving_mean', running_var='moving_variance').items():
        m[f'{ours}.{a}'] = g.take(f'{theirs}/{b}')
    m[f'{ours}.num_batches_tracked'] = tensor(0)

def take_conv(g, theirs, m, ours): m[f'{ours}.weight'] = conv(g.take(f'{theirs}/w'))

def take_macro(g, n_layers, m):
    "Stem, factorized reductions and linear layer, which search and final network have in common."
    take_conv(g, 'child/stem_conv', m, 'stem.0'); take_bn(g, 'child/stem_conv/bn', m, 'stem.1')
    for i in pool_layers(n_layers):
        for j in range(i+2):
            theirs, ours = f'child/layer_{i}/pool_at_{i}/from_{j}', f'pools.{i}.{j}'
            take_conv(g, f'{theirs}/path1_conv', m, f'{ours}.even'); take_conv(g, f'{theirs}/path2_conv', m, f'{ours}.odd')
            take_bn(g, f'{theirs}/bn', m, f'{ours}.bn')
    m['head.fc.weight'] = g.take('child/fc/w').T

def macro_fixed(g):
    c, m = g.config, {}
    L = c['num_layers']
    arch = Arch(MacroSpace(L, ops=MacroSpace.ops[:c['num_branches']]), g['arc'].tolist())
    take_macro(g, L, m)
    for i,l in enumerate(arch.nodes):
        theirs, ours, ks = f'child/layer_{i}', f'layers.{i}', l.op[-1]
        take_conv(g, f'{theirs}/conv_1x1', m, f'{ours}.op.0.1'); take_bn(g, f'{theirs}/conv_1x1/bn', m, f'{ours}.op.0.2')
        take_conv(g, f'{theirs}/conv_{ks}x{ks}', m, f'{ours}.op.2'); take_bn(g, f'{theirs}/conv_{ks}x{ks}/bn', m, f'{ours}.op.3')
        if i: take_conv(g, f'{theirs}/skip', m, f'{ours}.skip.1'); take_bn(g, f'{theirs}/skip/bn', m, f'{ours}.skip.2')
    net = g.load(MacroNet(arch, width=c['out_filters'], sep='full', dropout=0), m)
    x = images(g['images'])
    close(net.eval()(x), g['logits_eval'], 'logits_eval')
    close(net.train()(x), g['logits_train'], 'logits_train')

def macro_search(g):
    c, m = g.config, {}
    L, space = c['num_layers'], MacroSpace(c['num_layers'], ops=MacroSpace.ops[:c['num_branches']])
    take_macro(g, L, m)
    for i in range(L):
        for b,op in enumerate(space.ops):
            theirs, ours, ks = f'child/layer_{i}/branch_{b}', f'layers.{i}.ops.{op}', op[-1]
            first = 'conv_1' if op[:3] in ('avg','max') else 'inp_conv_1'
            take_conv(g, f'{theirs}/{first}', m, f'{ours}.0'); take_bn(g, f'{theirs}/{first}/bn', m, f'{ours}.1')
            if first=='conv_1': continue
            out = f'{theirs}/out_conv_{ks}'
            if op.startswith('conv'): take_conv(g, out, m, f'{ours}.3')
            else:
                m[f'{ours}.3.0.weight'] = g.take(f'{out}/w_depth').permute(2,3,0,1)
                m[f'{ours}.3.1.weight'] = g.take(f'{out}/w_point')[...,None,None] # [out, in]
            take_bn(g, f'{out}/bn', m, f'{ours}.4')
        if i: take_bn(g, f'child/layer_{i}/skip/bn', m, f'layers.{i}.bn')
    net = g.load(SharedMacroNet(space, width=c['out_filters'], dropout=0, bn_eval='running'), m)
    state, x = {k: v.clone() for k,v in net.state_dict().items()}, images(g['images'])
    for net.arch, evald, train in zip(space.archs(g['arcs']), g['logits_eval'], g['logits_train']):
        net.load_state_dict(state) # the moving averages of the file, whatever ran before
        close(net.eval()(x), evald, f'logits_eval of {net.arch}')
        close(net.train()(x), train, f'logits_train of {net.arch}')

# --- micro networks ------------------------------------------------------------------------------------------------------

def take_fr(g, theirs, m, ours, bn):
    "Map a factorized reduction."
    take_conv(g, f'{theirs}/path1_conv', m, f'{ours}.even'); take_conv(g, f'{theirs}/path2_conv', m, f'{ours}.odd')
    bn(g, f'{theirs}/bn', m, f'{ours}.bn')

def take_batch_bn(g, theirs, m, ours):
    "Map a batch norm without moving averages; a search's graph has some, which it never reads."
    m[f'{ours}.weight'], m[f'{ours}.bias'] = g.take(f'{theirs}/scale'), g.take(f'{theirs}/offset')
    g.take(f'{theirs}/moving_mean'); g.take(f'{theirs}/moving_variance')

def take_micro(g, net, m, bn):
    "Stem, calibrations, linear layer and, where the file has one, auxiliary head."
    take_conv(g, 'child/stem_conv', m, 'stem.0'); bn(g, 'child/stem_conv/bn', m, 'stem.1')
    for i,cell in enumerate(net.cells):
        for j,side in enumerate('xy'):
            theirs, ours, c = f'child/layer_{i}/calibrate/pool_{side}', f'cells.{i}.calibrate.{j}', cell.calibrate[j]
            if isinstance(c, torch.nn.Identity): continue
            if isinstance(c[1], FactorizedReduction): take_fr(g, theirs, m, f'{ours}.1', bn)
            else: take_conv(g, theirs, m, f'{ours}.1'); bn(g, f'{theirs}/bn', m, f'{ours}.2')
    m['head.fc.weight'] = g.take('child/fc/w').T
    if net.aux is None: return
    for theirs,ours in dict(proj='proj', avg_pool='conv').items():
        take_conv(g, f'child/aux_head/{theirs}', m, f'aux.{ours}.0'); bn(g, f'child/aux_head/{theirs}/bn', m, f'aux.{ours}.1')
    m['aux.head.fc.weight'] = g.take('child/aux_head/fc/w').T

def micro_space(c): return MicroSpace(c['num_cells'], ops=MicroSpace.ops[:c.get('num_branches', len(MicroSpace.ops))])
def has_aux(g): return any('aux_head' in k for k in g.vars)

def micro_fixed(g):
    c, m = g.config, {}
    arch = Arch(micro_space(c), g['arc'].tolist())
    net = MicroNet(arch, n_layers=c['num_layers'], width=c['out_filters'], n_out=g.vars['child/fc/w'].shape[1], dropout=0, aux=has_aux(g))
    take_micro(g, net, m, take_bn)
    for i,cell in enumerate(net.cells):
        take_conv(g, f'child/layer_{i}/layer_base', m, f'cells.{i}.base.1'); take_bn(g, f'child/layer_{i}/layer_base/bn', m, f'cells.{i}.base.2')
        for k,ops in enumerate(cell.nodes):
            for s,op in enumerate(ops):
                theirs, ours = f'child/layer_{i}/cell_{k}/{"xy"[s]}_conv', f'cells.{i}.nodes.{k}.{s}'
                if isinstance(op, FactorizedReduction): take_fr(g, theirs, m, ours, take_bn)
                if not isinstance(op, torch.nn.Sequential): continue
                for stack in range(2):
                    w = f'{theirs}/sep_conv_{stack}'
                    m[f'{ours}.{3*stack+1}.0.weight'] = g.take(f'{w}/w_depth').permute(2,3,0,1)
                    m[f'{ours}.{3*stack+1}.1.weight'] = conv(g.take(f'{w}/w_point'))
                    take_bn(g, f'{w}/bn', m, f'{ours}.{3*stack+2}')
        for j in cell.fit: take_fr(g, f'child/layer_{i}/final_combine/calibrate_{j}', m, f'cells.{i}.fit.{j}', take_bn)
    g.load(net, m)
    x = images(g['images'])
    close(net.eval()(x), g['logits_eval'], 'logits_eval')
    out = net.train()(x)
    if net.aux is not None:
        out,aux = out
        close(aux, g['aux_logits_train'], 'aux_logits_train')
    close(out, g['logits_train'], 'logits_train')

def micro_search(g):
    c, m = g.config, {}
    space, C = micro_space(c), c['out_filters']
    net = SharedMicroNet(space, n_layers=c['num_layers'], width=C, n_out=g.vars['child/fc/w'].shape[1], dropout=0, aux=has_aux(g))
    take_micro(g, net, m, take_batch_bn)
    for i,cell in enumerate(net.cells):
        nf = len(cell.bn.weight)
        if cell.reduce is not None: take_fr(g, f'child/layer_{i}', m, f'cells.{i}.reduce', take_batch_bn)
        for k in range(space.n_nodes):
            for s,side in enumerate('xy'):
                for ks in (int(o[-1]) for o in space.ops if o.startswith('sep')):
                    for stack in range(2): # 2-D banks, a row for each source
                        w = f'child/layer_{i}/cell_{k}/{side}/conv_{ks}x{ks}/stack_{stack}'
                        depth, point, scale, offset = (g.take(f'{w}/{o}') for o in ('w_depth', 'w_point', 'bn/scale', 'bn/offset'))
                        for j in range(k+2):
                            ours = f'cells.{i}.nodes.{k}.{s}.sep{ks}x{ks}.{j}'
                            m[f'{ours}.{3*stack+1}.0.weight'] = depth[j].view(ks, ks, nf, 1).permute(2,3,0,1)
                            m[f'{ours}.{3*stack+1}.1.weight'] = conv(point[j].view(1, 1, nf, nf))
                            m[f'{ours}.{3*stack+2}.weight'], m[f'{ours}.{3*stack+2}.bias'] = scale[j], offset[j]
        for j,w in enumerate(g.take(f'child/layer_{i}/final_conv/w')): m[f'cells.{i}.out.{j}'] = conv(w.view(1, 1, nf, nf))
        take_batch_bn(g, f'child/layer_{i}/final_conv/bn', m, f'cells.{i}.bn')
    g.load(net, m)
    x = images(g['images'])
    for net.arch, train in zip(space.archs(g['arcs']), g['logits_train']):
        out = net.train()(x)
        close(out if net.aux is None else out[0], train, f'logits_train of {net.arch}')
        close(net.eval()(x), train, f'logits in evaluation, which has the statistics of the batch too, of {net.arch}')

# --- language models ---------------------------------------------------------------------------------------------------

def take_start(g):
    "The graph's own starting states: the file's are in `h0`."
    for k in [k for k in g.vars if 'starting_states' in k]: g.take(k)

def check_lm(g, net, what, hidden, nll):
    "Outputs of all times, and the loss of each word."
    tokens, targets = g['tokens'].long(), g['targets'].long()
    net.hidden = net.arch, g['h0']
    logits, raw, _ = net(tokens)
    close(raw, hidden, f'hidden of {what}')
    close(torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction='none').view_as(nll), nll, f'nll of {what}')

def recurrent_fixed(g):
    c, m = g.config, {}
    arch, H = Arch(RecurrentSpace(c['rhn_depth']), g['arc'].tolist()), c['lstm_hidden_size']
    m['encoder.weight'] = g.take('child/embedding/w')
    w = g.take('child/rnn/layer_0/w_prev')
    m['word'], m['ws.0'] = w[:H], w[H:]
    for i in range(1, c['rhn_depth']): m[f'ws.{i}'] = g.take(f'child/rnn/layer_0/layer_{i}/w')
    take_start(g)
    net = g.load(RecurrentLM(arch, c['vocab_size'], H), m)
    check_lm(g, net.eval(), arch, g['hidden'], g['nll'])
    check_lm(g, net.train(), arch, g['hidden'], g['nll'])

def recurrent_search(g):
    c, m = g.config, {}
    space, H = RecurrentSpace(c['rhn_depth']), c['lstm_hidden_size']
    F = len(space.ops)
    m['encoder.weight'] = g.take('child/embedding/w')
    for op,w in zip(space.ops, g.take('child/rnn/layer_0/w_prev').chunk(F)): m[f'word.word_{op}'], m[f'ws.0.hidden_{op}'] = w[:H], w[H:]
    for i in range(1, space.n_nodes):
        for k,w in enumerate(g.take(f'child/rnn/layer_0/layer_{i}/w').chunk(i*F)): m[f'ws.{i}.{k//F}_{space.ops[k%F]}'] = w
    for i in range(space.n_nodes): take_batch_bn(g, f'child/layer_0/rhn_layer_{i}/batch_norm', m, f'norms.{i}')
    take_batch_bn(g, 'child/layer_0/batch_norm', m, 'norm')
    take_start(g)
    net = g.load(SharedRecurrentLM(space, c['vocab_size'], H, bn='all'), m)
    for net.arch, hidden, nll in zip(space.archs(g['arcs']), g['hidden'], g['nll']):
        check_lm(g, net.train(), net.arch, hidden, nll)
        check_lm(g, net.eval(), net.arch, hidden, nll)

KINDS = {f.__name__: f for f in (controller_macro, controller_micro, controller_recurrent, macro_fixed, macro_search, micro_fixed, micro_search, recurrent_fixed, recurrent_search)}

# --- the folder --------------------------------------------------------------------------------------------------------

def kind(name):
    "The longest known kind that `name` starts with."
    known = [k for k in KINDS if name.startswith(k)]
    assert known, f'{name}: unknown kind of golden file, known are {", ".join(KINDS)}'
    return max(known, key=len)

FILES = sorted(FOLDER.glob('*.npz'))

def test_folder_is_not_empty(): assert FILES, f'no golden files in {FOLDER}'

@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
def test_golden(path): KINDS[kind(path.stem)](Golden(path))

# --- the test tests itself -----------------------------------------------------------------------------------------------

def test_unknown_kind_fails():
    with pytest.raises(AssertionError, match='unknown kind'): kind('controller_tree')

def test_longest_prefix():
    assert kind('controller_macro_l4') == 'controller_macro'

def corrupt(change):
    g = Golden(Path(__file__).parent/'golden'/'controller_macro.npz')
    change(g)
    return g

def test_unmapped_variable_fails():
    with pytest.raises(AssertionError, match='not mapped'): controller_macro(corrupt(lambda g: g.vars.update(extra=torch.zeros(1))))

def test_missing_variable_fails():
    with pytest.raises(KeyError): controller_macro(corrupt(lambda g: g.vars.pop('controller/g_emb')))

def test_wrong_number_fails():
    with pytest.raises(AssertionError, match='log_prob'): controller_macro(corrupt(lambda g: g['log_prob'].add_(1e-3)))

# --- what a search step keeps ------------------------------------------------------------------------------------------

def test_a_macro_op_keeps_bytes_of_its_last_relu_and_every_bit_of_its_gradients():
    torch.manual_seed(0)
    ours = shared_conv(4, ks=3)
    plain = torch.nn.Sequential(*ours[:-1], torch.nn.ReLU()) # the same parameters
    def run(op):
        x, live = torch.randn(8, 4, 16, 16, generator=torch.Generator().manual_seed(1)).requires_grad_(), []
        class Packed(TorchDispatchMode): # what the hook makes of a map
            def __torch_dispatch__(self, f, types, args=(), kwargs=None):
                out = f(*args, **(kwargs or {}))
                if f is torch.ops.aten.gt.Scalar: live.append((out.dtype, out.numel()))
                return out
        with Packed(): y = op(x)
        return [y, *torch.autograd.grad((y**3).sum(), [x, *op.parameters()])], live
    (one, packed), (other, nothing) = run(ours), run(plain)
    assert packed==[(torch.bool, 8*4*16*16)] and not nothing
    for a,b in zip(one, other, strict=True): assert torch.equal(a, b)
