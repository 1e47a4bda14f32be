"What two processes compute together, for `test_parallel.py`: `torchrun --nproc_per_node 2 two_ranks.py FOLDER`. Rank 0 writes answers.json."
import json, sys, traceback, warnings
from pathlib import Path
import torch
import torch.distributed as dist
from fastai.distributed import * # adds `distrib_ctx`
from fastai.callback.core import Callback
from fastai.learner import Learner
from fastai.torch_core import rank_distrib, set_seed
from enas_nb.all import *
warnings.simplefilter('ignore'); torch.set_num_threads(1)

RANK, TEXT = rank_distrib(), [f'w{i*i%17}' for i in range(2000)]
def text(bs): return lm_dls(TEXT, TEXT[:600], bs=bs, seq_len=5, device='cpu')
def digits(bs=64): return digits_dls(bs=bs, device='cpu')
SPACES = dict(macro=(MacroSpace(3), dict(width=8)), micro=(MicroSpace(2), dict(width=8, n_layers=1, aux=False)), recurrent=(RecurrentSpace(3), dict(width=8)))
def learner(name, **kwargs):
    set_seed(RANK) # first weights differ from rank to rank: those of rank 0 are everybody's
    space, sizes = SPACES[name]
    preset = space.presets['robust'].override(controller=dict(steps=3, warmup=0, n_archs=5))
    return search_learner(text(4) if name=='recurrent' else digits(128), space, preset=preset, **sizes | kwargs)
def everywhere(o):
    res = [None]*2; dist.all_gather_object(res, o); return res
def numbers(module): return torch.cat([p.detach().flatten() for p in module.parameters()])
def fit(learn, *args, cbs=None, method='fit', **kwargs):
    with learn.no_bar(), learn.no_logging(), learn.distrib_ctx(sync_bn=False, cpu=True): getattr(learn, method)(*args, cbs=cbs, **kwargs)

class Same(OwnModel, Callback):
    "Are ω and θ equal on both ranks after each step? And which paths ran?"
    order = 50
    def before_fit(self): self.omega, self.theta, self.paths, self.start = [], [], [], numbers(self.model)
    def before_batch(self): self.paths.append(str(self.model.path))
    def after_step(self): self.omega.append(self._same(self.model.net))
    def after_theta(self, i, n): self.theta.append(self._same(self.model.controller))
    def _same(self, net): a,b = everywhere(numbers(net)); return torch.equal(a, b)

def search(name):
    learn, same = learner(name), Same()
    fit(learn, 2, cbs=same)
    first, both = everywhere(same.start)[0], everywhere(same.paths)
    return dict(omega=same.omega, theta=same.theta, moved=not torch.equal(first, numbers(learn.model)), rows=everywhere([list(map(float, o)) for o in learn.recorder.values]),
                paths=sum(a!=b for a,b in zip(*both))/len(both[0]), n=len(both[0]), arch=everywhere(str(learn.derive(4))), wrapped=type(learn.model).__name__)

class Grads(OwnModel, Callback):
    "The gradient of the first batch, DDP's and the one of this rank alone."
    order = 200
    def after_pred(self): # the same batch through the bare network, before DDP's backward pass
        if self.training and not hasattr(self, 'alone'):
            ps = list(self.model.net.parameters())
            alone = torch.autograd.grad(self.loss_func(self.model.net(*self.xb), *self.yb), ps, allow_unused=True)
            self.alone = alone
    def before_step(self):
        if not hasattr(self, 'joint'): self.joint = [None if p.grad is None else p.grad.clone() for p in self.model.net.parameters()]

def gradients():
    learn = learner('macro', dropout=0.)
    learn.remove_cbs([o for o in learn.cbs if type(o).__name__ in ('PathClip', 'FiniteClip', 'AuxLoss')])
    space = MacroSpace(3)
    two = [space.parse('0\n1 0\n2 0 1'), space.parse('0\n3 1\n2 1 1')]
    learn.search.omega_paths = lambda n: [two[i%2] for i in range(n)]
    cb = Grads()
    fit(learn, 1, cbs=cb)
    alone, joint = everywhere(cb.alone), everywhere(cb.joint)
    kinds = {0: 0, 1: 0, 2: 0}
    for a,b,j,k in zip(*alone, *joint):
        used = [o for o in (a,b) if o is not None]; kinds[len(used)] += 1
        if not used: assert j is None and k is None
        else: assert torch.allclose(j, sum(used)/2, atol=1e-6) and torch.equal(j, k)
    return kinds

CELL = '0 0 1 1 2'
def joint_batch():
    "One architecture on both ranks, against one process with the joined batch; a network without batch norm or dropout."
    def run(bs, fit):
        set_seed(0)
        space = RecurrentSpace(3)
        preset = space.presets['robust'].override(controller=dict(steps=3, warmup=0, n_archs=5))
        dls = text(bs); dls.loaders[1] = text(4).valid # the same for rewards
        learn = search_learner(dls, space, preset=preset, width=8, bn=None, **{f'{k}_p': 0. for k in ('embed', 'input', 'hidden', 'weight', 'output')})
        paths = learn.search.paths
        learn.search.omega_paths = lambda n: [space.parse(CELL)]*n
        learn.search.paths = lambda role, n: [space.parse(CELL)]*n if role=='valid' else paths(role, n)
        with learn.no_bar(), learn.no_logging(): fit(learn, 2)
        return learn
    both, one = run(4, fit), run(8, Learner.fit)
    gap = lambda a,b: (numbers(a)-numbers(b)).abs().max().item()
    return dict(omega=gap(both.model.net, one.model.net), theta=gap(both.model.controller, one.model.controller), size=numbers(one.model.net).abs().max().item(),
                norms=sum('Norm' in type(o).__name__ for o in one.model.net.modules()), rows=[[list(map(float, o)) for o in l.recorder.values] for l in (both, one)])

def prints(x): "A number for each image."; x = x.double().flatten(1); return [round(o, 4) for o in (x@torch.arange(1, 1+x.shape[1], dtype=torch.double)).tolist()]
class Seen(Callback):
    "Which images a rank reads in each epoch."
    order = -50
    def __init__(self): self.epochs = []
    def before_batch(self):
        if self.training: self.epochs[self.epoch:] = [[*(self.epochs+[[]])[self.epoch], *prints(self.x)]]

ARCH = MacroSpace(3).parse('0\n1 0\n2 0 1')
def retrain():
    set_seed(RANK)
    dls = digits(50); dls = images_dls(*[o.dataset.tensors for o in dls.loaders], [*map(str, range(10))], bs=50, device='cpu')
    learn, seen = arch_learner(dls, ARCH, width=8, cutout=0), Seen()
    fit(learn, 2, cbs=seen)
    every = prints(dls.train.after_batch(dls.train.dataset.batch(torch.arange(len(dls.train_ds))))[0])
    (a,b), row = everywhere(seen.epochs), list(map(float, learn.recorder.values[-1]))
    with learn.no_bar(), learn.distrib_ctx(sync_bn=False, cpu=True): preds, targs = learn.get_preds()
    with learn.no_bar(): alone, whole = learn.get_preds()[0], list(map(float, learn.validate())) # every rank reads everything
    return dict(n=len(every), unlike=len(set(every)), read=[[len(o) for o in x] for x in (a,b)], all=[set(x+y)==set(every) for x,y in zip(a, b)], reshuffled=a[0]!=a[1], twice=[len(x+y)-len(set(x+y)) for x,y in zip(a, b)],
                rows=everywhere(row), whole=whole, gap=(preds-alone).abs().max().item(), preds=[len(preds), len(dls.valid_ds)], targs=targs.tolist()==dls.valid_ds.tensors[1].tolist(), after=[*dls.train.part, len(dls.train)])

class Halt(Exception): pass
class Stop(Callback):
    order = 2000
    def after_epoch(self):
        if self.epoch==0: raise Halt('after an epoch')
def resumed(folder):
    from fastcore.basics import noop
    def run(name, where, cbs=()):
        set_seed(RANK)
        learn = learner(name) if name in SPACES else arch_learner(digits(), ARCH, width=8)
        try: fit(learn, 2, cbs=[Checkpoint(where, log=noop), *cbs])
        except Halt: pass
        return learn
    res = {}
    for name in ('macro', 'recurrent', 'retraining'):
        whole = run(name, folder/f'{name}-whole')
        run(name, folder/f'{name}-cut', [Stop()])
        assert not (folder/f'{name}-cut'/'00-00002.safetensors').exists()
        again = run(name, folder/f'{name}-cut')
        res[name] = everywhere(bool(torch.equal(numbers(whole.model), numbers(again.model))))
    return res

def tidy(folder):
    "What a fit leaves behind: files for all at once, a Learner as before, also after an error; and rank 0 may go on alone."
    res, learn = {}, learner('macro')
    with learn.no_bar(), learn.no_logging(), learn.distrib_ctx(sync_bn=False, cpu=True):
        learn.fit(1)
        learn.save_search(folder/'at once.safetensors'); learn.load_search(folder/'at once.safetensors')
        try: learn.fit(1, lr=1e30)
        except Exception as e: res['error'] = type(e).__name__
        learn.export(folder/f'{RANK}.pkl')
    res['left'] = everywhere([type(learn.model).__name__, [list(o.part) for o in learn.dls.loaders], all(p.requires_grad for p in learn.model.parameters())])
    if not RANK:
        learn.load_search(folder/'at once.safetensors')
        dls = digits()
        final = arch_learner(dls, learn.derive(2), width=8, cutout=0)
        with final.no_bar(), final.no_logging(): final.fit(1)
        res['alone'] = len(final.recorder.losses)==len(dls.train)
    dist.barrier()
    return res

def refusals(folder):
    said = {}
    def refused(name, f):
        try: f(); said[name] = 'nothing'
        except Exception as e: said[name] = f'{type(e).__name__}: {e}'
    def ctx(learn, **kwargs):
        with learn.no_bar(), learn.no_logging(), learn.distrib_ctx(cpu=True, **kwargs): learn.fit(1)
    def look():
        learn = learner('macro')
        with learn.no_bar(), learn.distrib_ctx(cpu=True, sync_bn=False): learn.lr_find(num_it=3, show_plot=False)
    refused('lr_find', look)
    refused('folders', lambda: fit(learner('macro'), 1, cbs=Checkpoint(folder/f'own{RANK}')) or fit(learner('macro'), 1, cbs=Checkpoint(folder/f'own{RANK}')))
    refused('sync_bn', lambda: ctx(learner('macro')))
    refused('sync_bn of a retraining', lambda: ctx(arch_learner(digits(), ARCH, width=8)))
    loaders = [torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.rand(64, 3, 8, 8), torch.arange(64)%10), batch_size=8, shuffle=True) for _ in range(2)]
    refused('torch loaders', lambda: ctx(arch_learner(loaders, ARCH, width=8, n_out=10, loss_func=torch.nn.functional.cross_entropy), sync_bn=False))
    few = images_dls(*[o.dataset.tensors for o in digits().loaders], [*map(str, range(10))], bs=900, drop_last=True, device='cpu')
    refused('few images', lambda: ctx(arch_learner(few, ARCH, width=8, cutout=0), sync_bn=False))
    return said

if __name__=='__main__':
    folder, answers = Path(sys.argv[1]), {}
    dist.init_process_group('gloo')
    jobs = dict(macro=lambda: search('macro'), micro=lambda: search('micro'), recurrent=lambda: search('recurrent'), gradients=gradients, joint_batch=joint_batch,
                retrain=retrain, resumed=lambda: resumed(folder), tidy=lambda: tidy(folder), refusals=lambda: refusals(folder))
    for name in sys.argv[2:] or jobs:
        try: answers[name] = jobs[name]()
        except Exception: answers[name] = 'rank %d: %s' % (RANK, traceback.format_exc()); print(answers[name], flush=True); break
    if not RANK: (folder/'answers.json').write_text(json.dumps(answers))
    dist.barrier(); dist.destroy_process_group()
