"""Runs that are killed with SIGKILL at random moments, and gone on with, end like one that was never stopped: bit by bit.

Three kills in every test run. Fifty, over three recipes: `python tests/test_kills.py 50 > tests/kills.log`, some 15 minutes."""
import json, random, shutil, subprocess, sys, tempfile, time
from pathlib import Path

import pytest, torch

from enas_nb.checkpoint import read_state
from enas_nb.cli import enas_search
from forked import Forked

def start(*args):
    "`enas-search` as a process."
    return Forked(enas_search, [*map(str, args)])

def equal(a, b):
    if isinstance(a, torch.Tensor): return torch.equal(a, b)
    if isinstance(a, dict): return a.keys()==b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)) or type(a).__name__=='L': return len(a)==len(b) and all(map(equal, a, b))
    return a==b or (a!=a and b!=b)

def ended(out):
    "All that a run leaves, without times."
    state = read_state(out/'search.safetensors')
    for _,o in state['cbs']:
        for k in ('theta_seconds', 'start_epoch', 'log'): o.get('own', {}).pop(k, None)
        o.pop('spent', None)
    result = {k: v for k,v in json.loads((out/'result.json').read_text()).items() if k not in ('cost', 'enas_cost')}
    assert (out/'report.md').is_file() and not list(out.rglob('*.lock')) and not list(out.rglob('tmp*tmp'))
    return dict(state=state, result=result, **{o: (out/o).read_bytes() for o in ('arch.json', 'arch.svg', 'history.csv', 'trace.json')})

def killed(folder, args, kills, within, rng):
    "Do a run, killed `kills` times, each after a random time of up to `within` seconds; how far it was at each kill."
    out, seen = folder/'killed', []
    while True:
        begun = (out/'run.json').is_file()
        if not begun: shutil.rmtree(out, ignore_errors=True) # killed in its first moment
        p = start('--resume', out) if begun else start(*args, '--out', out)
        try: p.wait(timeout=rng.uniform(0, within) if len(seen)<kills else 600)
        except subprocess.TimeoutExpired: p.kill()
        err = p.communicate()[1]
        if p.returncode==0: return out, seen
        assert p.returncode==-9, err
        tasks = sorted((out/'tasks').glob('*')) if begun else []
        done = [o.stem for o in tasks if o.suffix=='.json']
        at = [f'{o.name} {max(int(f.stem.split("-")[1]) for f in o.glob("*.safetensors"))}'
              for o in tasks if o.is_dir() and list(o.glob('*.safetensors'))]
        seen.append(f"{len(done)} tasks done{', in '+', '.join(at) if at else ''}")

def test_three_kills(tmp_path):
    args = ['digits-macro', '--epochs', '2', '--device', 'cpu', '--seed', '5']
    begun, p = time.monotonic(), start(*args, '--out', tmp_path/'whole')
    assert p.wait(timeout=300)==0
    seconds = time.monotonic()-begun
    out, seen = killed(tmp_path, args, 3, seconds/3, random.Random(1))
    assert len(seen)==3 and equal(ended(tmp_path/'whole'), ended(out)), seen

if __name__=='__main__':
    n, rng = int(sys.argv[1]), random.Random(0)
    for i,(name,part) in enumerate({'digits-macro': .4, 'digits-micro': .3, 'text-small': .3}.items()):
        with tempfile.TemporaryDirectory() as d:
            args, d, left = [name, '--epochs', '2', '--device', 'cpu'], Path(d), round(n*part)
            began = time.time()
            assert start(*args, '--out', d/'whole').wait()==0
            whole, seconds = ended(d/'whole'), time.time()-began
            print(f'{name}: never stopped in {seconds:.0f} s', flush=True)
            while left > 0:
                shutil.rmtree(d/'killed', ignore_errors=True)
                out, seen = killed(d, args, left, seconds/2, rng)
                left -= len(seen)
                same = equal(whole, ended(out))
                print(f'  killed {len(seen)} times ({"; ".join(seen)}): {"bit-identical" if same else "DIFFERENT"}', flush=True)
                assert same
