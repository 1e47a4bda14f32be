"A run owns its folder from the first second, keeps what is done, and is gone on with by any process."
import json, os, shutil, signal, subprocess, sys, time
from functools import partial
from pathlib import Path

import pandas as pd, pytest

from enas_nb.report import write_result, write_search
from enas_nb.checkpoint import write_state
from enas_nb.run import Run, new_run, next_run
from enas_nb.arch_files import load_arch

RESULTS = Path(__file__).parents[1]/'nbs/tutorials/results'

@pytest.mark.parametrize('name', ['digits-macro-seed0', 'digits-micro-seed0', 'text-small'])
def test_a_committed_run_is_written_again(tmp_path, name):
    old = RESULTS/name
    history = pd.read_csv(old/'history.csv', index_col=0)
    write_search(tmp_path, load_arch(old/'arch.json'), history)
    write_result(tmp_path, json.loads((old/'result.json').read_text()))
    files = {'arch.json', 'arch.svg', 'history.csv', 'curves.png', 'retrained.png', 'result.json', 'report.md'}
    assert {o.name for o in tmp_path.iterdir()}==files
    for o in ('arch.json', 'arch.svg', 'report.md', 'result.json'): assert (tmp_path/o).read_text()==(old/o).read_text()

def test_a_folder_with_something_in_it_is_refused(tmp_path):
    (tmp_path/'a').mkdir(); (tmp_path/'a'/'b').touch()
    with pytest.raises(ValueError, match='holds b: choose a new or an empty folder'): new_run(tmp_path/'a', {})
    with pytest.raises(ValueError, match='is a file'): new_run(tmp_path/'a'/'b', {})
    assert (tmp_path/'a'/'b').is_file()

@pytest.mark.parametrize('kind', ['empty', 'mount', 'link', 'here', 'deep'])
def test_folders_that_will_do(tmp_path, kind, monkeypatch):
    folder = tmp_path/'real'
    if kind!='deep': folder.mkdir()
    if kind=='mount': (folder/'lost+found').mkdir()
    if kind=='deep': folder = folder/'in'/'it'
    if kind=='link': (tmp_path/'link').symlink_to(folder); folder = tmp_path/'link'
    if kind=='here': monkeypatch.chdir(folder); folder = Path('.')
    run = new_run(folder, dict(a=1))
    run.take('one', lambda o: dict(x=1))
    assert Run(folder).asked==dict(a=1) and Run(folder).result('one')==dict(x=1)

def test_what_nothing_was_done_in_goes_again(tmp_path):
    kept = tmp_path/'mine'; kept.mkdir()
    assert new_run(kept, {}).drop() and kept.is_dir() and list(kept.iterdir())==[] # it was there before
    assert new_run(tmp_path/'x'/'y', {}).drop() and not (tmp_path/'x').exists()
    run = new_run(tmp_path/'z', {})
    run.take('one', lambda o: {})
    assert not run.drop() and run.done('one')

def test_one_folder_for_one_run(tmp_path):
    "Eight processes ask at once: with a chosen name one gets it; with a default name each gets its own."
    code = '''
import sys
from enas_nb.run import new_run, next_run
try: print((new_run if sys.argv[2]=='new' else next_run)(sys.argv[1], {}).path.name)
except ValueError as e: print('refused', e)
'''
    for kind in ('new', 'next'):
        ps = [subprocess.Popen([sys.executable, '-c', code, tmp_path/kind/'run', kind], stdout=subprocess.PIPE, text=True)
              for _ in range(8)]
        said = [p.communicate()[0].strip() for p in ps]
        if kind=='new': assert sum(o=='run' for o in said)==1 and sum(o.startswith('refused') for o in said)==7, said
        else: assert len(set(said))==8 and len(list((tmp_path/kind).iterdir()))==8, said

def test_no_run(tmp_path):
    for text in (None, '', '{', '[1'):
        if text is not None: (tmp_path/'run.json').write_text(text)
        with pytest.raises(ValueError, match='holds no run'): Run(tmp_path)

def test_a_task_that_fails_is_free_again(tmp_path):
    run = new_run(tmp_path/'a', {})
    with pytest.raises(ZeroDivisionError): run.work(lambda: dict(one=lambda folder: 1/0))
    run.work(lambda: dict(one=lambda folder: dict(x=1)))
    assert run.result('one')==dict(x=1)

CODE = '''
import sys, time
from pathlib import Path
from functools import partial
from enas_nb.run import Run
def task(name, folder):
    folder.mkdir(exist_ok=True)
    with open(folder/'steps', 'a') as f:
        for i in range(int(len((folder/'steps').read_text())), 20): time.sleep(.01); f.write('.'); f.flush()
    return dict(steps=len((folder/'steps').read_text()))
run = Run(sys.argv[1])
def plan():
    tasks = dict(first=partial(task, 'first'))
    return tasks | {f'then-{i}': partial(task, i) for i in range(4)} if run.done('first') else tasks
run.work(plan, nap=.02, log=lambda line: None)
'''

def test_many_processes_that_are_killed(tmp_path):
    "Two processes work, one is killed every now and then and another one started: all tasks are done, each once."
    run = new_run(tmp_path/'r', {})
    start = lambda: subprocess.Popen([sys.executable, '-c', CODE, tmp_path/'r'])
    ps, kills = [start(), start()], 0
    while any(p.poll() is None for p in ps) and kills<8:
        time.sleep(.35)
        if ps[kills%2].poll() is None: ps[kills%2].kill(); ps[kills%2].wait(); ps[kills%2] = start(); kills += 1
    assert [p.wait() for p in ps]==[0, 0] and kills > 1
    assert all(run.result(o)==dict(steps=20) for o in ('first', *(f'then-{i}' for i in range(4))))
    run.tidy()
    assert sorted(o.name for o in run.tasks.iterdir())==sorted(f'{o}.json' for o in ('first', *(f'then-{i}' for i in range(4))))

def test_a_full_disk_leaves_what_is_done(tmp_path, monkeypatch):
    run = new_run(tmp_path/'a', {})
    run.take('one', lambda o: dict(x=1))
    import enas_nb.run as room
    def full(*args, **kwargs): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(room, 'write_file', full)
    with pytest.raises(OSError, match='No space'): run.take('two', lambda o: {})
    assert run.result('one')==dict(x=1) and not run.done('two')

def test_files_of_a_run_honour_the_umask(tmp_path):
    old = os.umask(0o077)
    try: run = new_run(tmp_path/'a', {}); run.write('progress.md', 'x')
    finally: os.umask(old)
    assert {o.stat().st_mode & 0o777 for o in (tmp_path/'a').iterdir() if o.is_file()}=={0o600}

@pytest.mark.parametrize('lost', ['', 'run.json'])
def test_what_vanishes_is_not_made_again(tmp_path, lost):
    "Otherwise a whole search would go to a folder without a run."
    run, seen = new_run(tmp_path/'r', {}), []
    def do(folder):
        seen.append(folder.is_dir())
        gone = tmp_path/'r'/lost
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
        if not lost: write_state(folder/'x.safetensors', dict(a=1), parents=False)
        return {}
    with pytest.raises(FileNotFoundError): run.take('one', do)
    with pytest.raises(FileNotFoundError, match='r is gone'): run.take('two', do)
    assert seen==[True] and not run.drop() and not list(tmp_path.rglob('*.json'))

def test_nothing_is_dropped_that_cannot_be_seen(tmp_path):
    "Tasks that somebody took away, and checkpoints on another disk."
    run = new_run(tmp_path/'a', {})
    run.tasks.rename(tmp_path/'tasks')
    assert not run.drop() and (tmp_path/'a/run.json').exists()
    run = new_run(tmp_path/'b', {})
    (tmp_path/'disk').mkdir(), (run.tasks/'search').symlink_to(tmp_path/'disk')
    assert not run.drop() and (tmp_path/'b/run.json').exists()
