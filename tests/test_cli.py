"`enas-search` and `enas-show`: what they write, and one clear line for each thing that can go wrong."
import json, os, signal, subprocess, sys, sysconfig, time
from importlib.util import find_spec
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import matplotlib; matplotlib.use('Agg')
import pandas as pd, pytest, torch
from PIL import Image

from enas_nb import cli as cli_room, data, draw as draw_room, experiment as rooms
from safetensors.torch import load_file

from enas_nb.cli import enas_compare, enas_evaluate, enas_search, enas_show, enas_train
from enas_nb.cost import estimate
from enas_nb.published import heads
from enas_nb.recipes import published, recipes
from enas_nb.reinforce import Reinforce
from enas_nb.macro import MacroSpace
from enas_nb.genotype import to_genotype
from enas_nb.micro import MicroSpace
from enas_nb.recurrent import RecurrentSpace
from enas_nb.arch_files import load_arch
from forked import Forked

BIN = Path(sysconfig.get_path('scripts'))

@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    "Each test in an empty folder of its own."
    f = tmp_path/'here'; f.mkdir()
    monkeypatch.chdir(f)
    threads = torch.get_num_threads()
    yield f
    torch.set_num_threads(threads)

def script(cmd, *args, **env):
    "The installed script as a process whose SIGINT is the default one."
    return subprocess.Popen([BIN/cmd, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
                            env=os.environ|dict(OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')|env, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))

def start(cmd, *args, **env):
    "The command as a process that begins with everything imported: seconds faster."
    return Forked(globals()[cmd.replace('-', '_')], args, **env)

def call(start, cmd, *args, **env):
    "Status, stdout and stderr of a process."
    p = start(cmd, *args, **env)
    try: out,err = p.communicate(timeout=300)
    finally: p.kill()
    return p.returncode, out, err

def inside(f, capfd, *args):
    "The same of the function, in this process: seconds faster."
    capfd.readouterr()
    try: status = f(list(args))
    except SystemExit as e: status = e.code
    return status, *capfd.readouterr()

def is_one_line(err, name, *words):
    assert err.endswith('\n') and err.count('\n')==1, err
    assert err.startswith(f'{name}: ') and 'Traceback' not in err and all(o in err for o in words), err

# --- what goes wrong -------------------------------------------------------------------------------------------------------

def json_file(text): Path('a.json').write_text(text); return 'a.json'
arch_json = lambda **kw: json.dumps(dict(space=dict(name='macro', n_layers=2), arch=[0,0,0])|kw)

show = {
    'no such thing':  (lambda: ['no-such-arch'], ['no-such-arch','cifar10-macro']),
    'missing file':   (lambda: ['missing.json'], ['missing.json']),
    'op':             (lambda: ['9 0 0', '--space','macro'], ['position 0','9','allowed']),
    'skip':           (lambda: ['0 0 2', '--space','macro'], ['position 2','allowed']),
    'negative':       (lambda: ['0 0 -1', '--space','macro'], ['-1']),
    'length':         (lambda: ['0 0', '--space','macro'], ['2 integers','nearest']),
    'micro length':   (lambda: ['0 0 0', '--space','micro'], ['3 integers','nearest']),
    'empty':          (lambda: ['', '--space','macro'], []),
    'blank':          (lambda: [' ', '--space','macro'], []),
    'no space':       (lambda: ['0 0 0'], ['--space']),
    'space name':     (lambda: ['0 0 0', '--space','macaroni'], ['macaroni','macro']),
    'option':         (lambda: ['cifar10-macro', '--colour'], ['--colour']),
    'no argument':    (lambda: [], ['arch']),
    'folder':         (lambda: ['.'], []),
    'no JSON':        (lambda: [json_file('{')], ['a.json','JSON']),
    'other JSON':     (lambda: [json_file('[1, 2]')], ['a.json']),
    'null':           (lambda: [json_file('null')], ['a.json']),
    'binary':         (lambda: [(Path('a.json').write_bytes(bytes(range(256))), 'a.json')[1]], ['a.json']),
    'JSON space':     (lambda: [json_file(arch_json(space=dict(name='macaroni')))], ['macro']),
    'JSON size':      (lambda: [json_file(arch_json(space=dict(name='macro', n_layers=0)))], ['n_layers']),
    'JSON size type': (lambda: [json_file(arch_json(space=dict(name='macro', n_layers='2')))], ['n_layers']),
    'JSON ops':       (lambda: [json_file(arch_json(space=dict(name='macro', n_layers=2, ops=['conv9x9'])))], ['conv9x9']),
    'JSON code':      (lambda: [json_file(arch_json(arch=[0,0,'x']))], ['position 2']),
    'svg folder':     (lambda: ['cifar10-macro', '--svg','.'], []),
}
@pytest.mark.parametrize('name', show)
def test_show_errors(name, capfd, folder):
    args, words = show[name]
    args = args()
    before = sorted(folder.rglob('*'))
    status, out, err = inside(enas_show, capfd, *args)
    assert status==2
    is_one_line(err, 'enas-show', *words)
    assert sorted(folder.rglob('*'))==before

search = {
    'recipe':       (['no-such-recipe'], ['no-such-recipe','digits-macro']),
    'seed':         (['--seed','-1'], ['-1']),
    'seed type':    (['--seed','x'], ['x']),
    'epochs':       (['--epochs','0'], ['epochs','0']),
    'epochs type':  (['--epochs','1.5'], ['1.5']),
    'device':       (['--device','gpu9'], ['gpu9']),
    'option':       (['--colour'], ['--colour']),
    'text, images': (['digits-macro', '--text','full/a'], ['digits-macro','images']),
    'no text':      (['text-small', '--text','book.txt'], ['book.txt']),
    'empty text':   (['text-small', '--text','full/a'], ['full/a','no words']),
    'out':          (['--out','full'], ['full']),
    'out is a file':(['--out','full/a'], ['full/a']),
}
@pytest.mark.parametrize('name', search)
def test_search_errors(name, capfd, folder):
    args, words = search[name]
    Path('full').mkdir(); Path('full/a').touch()
    status, out, err = inside(enas_search, capfd, *args)
    assert status==2
    is_one_line(err, 'enas-search', *words)
    assert sorted(map(str, folder.rglob('*')))==[str(folder/'full'), str(folder/'full/a')]

def test_no_such_device(capfd, folder):
    if torch.cuda.is_available(): pytest.skip('there is one')
    status, out, err = inside(enas_search, capfd, '--device', 'cuda')
    assert status==2 and list(folder.iterdir())==[]
    is_one_line(err, 'enas-search', 'cuda')

@pytest.mark.parametrize('recipe', ['fashion-macro', 'cifar10-macro-small', 'ptb-small'])
@pytest.mark.parametrize('kind', ['nothing', 'empty folder'])
def test_no_data(recipe, kind, capfd, folder, tmp_path, monkeypatch, request):
    "Neither data nor a network: no download is tried for long, none succeeds."
    import urllib.request
    from fastai.data.external import fastai_cfg
    def offline(*args, **kwargs): raise urllib.error.URLError('no network')
    monkeypatch.setattr(urllib.request, 'urlopen', offline)
    monkeypatch.setattr(urllib.request.OpenerDirector, 'open', offline)
    monkeypatch.setenv('FASTAI_HOME', str(tmp_path/'home'))
    fastai_cfg.cache_clear(); request.addfinalizer(fastai_cfg.cache_clear) # fastai remembers its folders
    monkeypatch.setattr(data, '_debian', tmp_path/'debian')
    if kind=='empty folder':
        for o in ('cifar10','FashionMNIST/raw','ptb'): (tmp_path/'home/data'/o).mkdir(parents=True)
    status, out, err = inside(enas_search, capfd, recipe)
    assert status==2
    is_one_line(err, 'enas-search', str(tmp_path/'home'))
    assert list(folder.iterdir())==[]

def test_the_installed_scripts_say_one_line(folder):
    for cmd,args,word in (('enas-search',['no-such-recipe'],'no-such-recipe'), ('enas-show',['9 0 0','--space','macro'],'position 0')):
        status, out, err = call(script, cmd, *args)
        assert status==2 and out==''
        is_one_line(err, cmd, word)
    assert list(folder.iterdir())==[]

@pytest.mark.skipif(os.name!='posix', reason='signals')
@pytest.mark.parametrize('start,number', [(script, signal.SIGINT), (start, signal.SIGTERM), (start, signal.SIGHUP)])
def test_a_stopped_run_says_how_to_go_on(folder, start, number):
    p = start('enas-search', '--epochs', '4', '--out', 'deep/run')
    try:
        for line in p.stdout:
            if 'epoch' in line: break
        os.kill(p.pid, number)
        out,err = p.communicate(timeout=300)
    finally: p.kill()
    assert p.returncode==128+number
    is_one_line(err, 'enas-search', 'interrupted', 'enas-search --resume deep/run')
    assert [o.name for o in folder.iterdir()]==['deep'] and (folder/'deep/run/tasks/search').is_dir()

def test_stopped_before_anything_was_done(folder, monkeypatch, capfd):
    def stop(*args, **kwargs): raise KeyboardInterrupt
    monkeypatch.setattr(rooms, 'run_recipe', stop)
    status, out, err = inside(enas_search, capfd)
    assert status==130 and list(folder.iterdir())==[]
    is_one_line(err, 'enas-search', 'interrupted; nothing was written')

def test_a_failure_leaves_nothing(capfd, folder, monkeypatch):
    def fail(*args, **kwargs): raise ValueError('it went\nwrong')
    monkeypatch.setattr(rooms, 'run_recipe', fail)
    status, out, err = inside(enas_search, capfd)
    assert status==2 and list(folder.iterdir())==[]
    is_one_line(err, 'enas-search', 'it went wrong')

# --- a run ----------------------------------------------------------------------------------------------------------------

FILES = {'arch.json','arch.svg','curves.png','history.csv','report.md','result.json'}

def well_formed(out):
    "The six files of a run, checked: its result."
    assert FILES <= {o.name for o in out.iterdir()} and not any(o.name.startswith('.') or 'tmp' in o.name for o in out.iterdir())
    res, arch = json.loads((out/'result.json').read_text()), load_arch(out/'arch.json')
    assert str(arch)==res['arch'] and 0<=res['test_accuracy']<=1
    assert isinstance(res['random_test_accuracy'], list) and all(0<=o<=1 for o in res['random_test_accuracy'])
    assert {'omega','theta','derive','retrain','random'} <= res['cost'].keys() and all(v>=0 for v in res['cost'].values())
    assert ElementTree.parse(out/'arch.svg').getroot().tag.endswith('svg')
    for o in out.glob('*.png'): Image.open(o).verify()
    report = (out/'report.md').read_text()
    assert 'nan' not in report and 'arch.svg' in report and 'curves.png' in report and str(arch) in report and f"{res['test_accuracy']:.2%}" in report
    h = pd.read_csv(out/'history.csv')
    assert {'epoch','train_loss','valid_loss','accuracy','reward','entropy','baseline'} <= set(h) and not h.isna().any().any()
    assert out.stat().st_mode & 0o777 == 0o755
    return res, h

def free_of_costs(d):
    "A result without its times."
    return {k: v for k,v in d.items() if k not in ('cost','enas_cost')}

@pytest.fixture
def tiny(monkeypatch):
    "The recipe `tiny`: seconds."
    r = recipes['digits-macro']
    small = dict(n_cycles=1, T_0=1, n_layers=3, width=4)
    r = replace(r, name='tiny', data_args=dict(bs=250), space=MacroSpace(3), n_derive=3, n_look=2, n_children=2, n_random=3,
                preset=r.preset.override(controller=dict(steps=2), search=small, final=small))
    monkeypatch.setitem(recipes, 'tiny', r)

def test_the_same_seed_the_same_run(tiny, capfd, folder):
    Path('runs/empty').mkdir(parents=True) # an empty folder will do
    for args in (['--seed','3'], ['--seed','3'], ['--seed','4', '--out','runs/empty']):
        status, out, err = inside(enas_search, capfd, 'tiny', '--device','cpu', *args)
        assert status==0 and err=='', err
    dirs = sorted(o.name for o in Path('runs').iterdir())
    assert dirs==['empty','tiny-seed3','tiny-seed3-2'] # a second run takes another folder
    (c,_),(a,_),(b,_) = (well_formed(Path('runs')/o) for o in dirs)
    for o in ('arch.json','history.csv'): assert len({(Path('runs')/d/o).read_bytes() for d in dirs[1:]})==1
    assert free_of_costs(a)==free_of_costs(b)
    assert a['arch']!=c['arch'] and a['seed']==3 and len(a['random_test_accuracy'])>=3

@pytest.fixture
def three(tiny, monkeypatch):
    "The same for three epochs."
    monkeypatch.setitem(recipes, 'three', replace(recipes['tiny'].with_epochs(3), name='three'))

def test_the_log_says_when_theta_begins_at_the_end(three, capfd, folder):
    status, out, err = inside(enas_search, capfd, 'three', '--device', 'cpu')
    assert status==0 and err=='' and 'nan' not in out
    lines = out.splitlines()
    epochs = [o for o in lines if o.startswith('  epoch ')]
    assert len(epochs)==3 and all('accuracy' in o for o in epochs) and all(o.endswith(' left') for o in epochs[:2])
    assert ['entropy' in o and 'reward' in o and 'baseline' in o for o in epochs]==[False, False, True] # not before it has moved
    said = [o for o in lines if 'ω is frozen' in o]
    assert said==['  ω is frozen; 6 steps of the policy with 10 architectures each'] and lines.index(said[0])==lines.index(epochs[2])-1
    res, h = json.loads(Path('runs/three-seed0/result.json').read_text()), pd.read_csv('runs/three-seed0/history.csv')
    assert res['policy']['steps']==6 and 0<res['policy']['entropy']<=res['policy']['max_entropy'] and list(h.entropy.isna())==[True, True, False]
    report = Path('runs/three-seed0/report.md').read_text()
    assert 'on frozen weights, 6 steps of the policy' in report.replace('\n', ' ') and 'nan' not in report

def test_ctrl_c_while_theta_moves_at_the_end(three, capfd, folder, monkeypatch):
    "What was trained is in the folder, and the run ends as one that nobody stopped."
    done, real = [], Reinforce.step
    def stop(self, *args):
        if len(done)==3: raise KeyboardInterrupt
        done.append(1)
        return real(self, *args)
    assert inside(enas_search, capfd, 'three', '--device', 'cpu', '--out', 'whole')[0]==0
    monkeypatch.setattr(Reinforce, 'step', stop)
    status, out, err = inside(enas_search, capfd, 'three', '--device', 'cpu', '--out', 'night')
    assert status==130 and 'ω is frozen' in out
    is_one_line(err, 'enas-search', 'interrupted', 'enas-search --resume night')
    assert sorted(o.name for o in Path('night/tasks/search').glob('*.safetensors'))==['00-00001.safetensors', '00-00002.safetensors']
    monkeypatch.setattr(Reinforce, 'step', real)
    status, out, err = inside(enas_search, capfd, '--resume', 'night')
    assert status==0 and 'epoch 2 of 3 is done already' in out
    a, b = (json.loads(Path(o, 'result.json').read_text()) for o in ('whole', 'night'))
    assert free_of_costs(a)==free_of_costs(b) and Path('whole/history.csv').read_bytes()==Path('night/history.csv').read_bytes()

def test_a_run_of_the_installed_script(folder):
    "The main job, cut to one epoch: six files in a folder that did not exist, nothing on stderr."
    status, out, err = call(script, 'enas-search', '--epochs', '1', '--out', 'deep/run', '--device', 'cpu')
    assert status==0 and err=='' and 'deep/run' in out, err
    res, h = well_formed(folder/'deep/run')
    assert len(h)==1 and len(res['random_test_accuracy'])>=3
    assert [o.name for o in (folder/'deep').iterdir()]==['run']

def test_a_text_of_ones_own(capfd, folder, monkeypatch):
    r = recipes['text-small']
    r = replace(r, name='tiny-text', space=RecurrentSpace(2), n_derive=2, n_look=2, n_children=2, n_random=2, data_args=dict(bs=8, max_vocab=60),
                preset=r.preset.override(controller=dict(steps=1, n_archs=2, warmup=0), search=dict(width=4, epochs=1), final=dict(width=6, epochs=1)))
    monkeypatch.setitem(recipes, 'tiny-text', r)
    words = torch.randint(60, (6000,), generator=torch.Generator().manual_seed(0)).tolist()
    Path('book.txt').write_text(' '.join(f'w{chr(97+o%26)}' + ('.' if o<5 else '') for o in words))
    status, out, err = inside(enas_search, capfd, 'tiny-text', '--text', 'book.txt', '--device', 'cpu')
    assert status==0 and err=='', err
    run = Path('runs/tiny-text-book-seed0')
    d, report = json.loads((run/'result.json').read_text()), (run/'report.md').read_text()
    assert d['recipe']['data_args']==dict(path=str(Path('book.txt').resolve()), bs=8, max_vocab=60) and sum(d['words'].values())>=6000
    assert 'The text book.txt' in report and 'nan' not in report and f"{d['test_perplexity']:.1f}" in report
    for o in run.glob('*.png'): Image.open(o).verify()
    assert len(pd.read_csv(run/'history.csv'))==1

def test_two_processes_share_a_run(folder):
    "The second one takes what the first has left; the result is that of one process."
    alone = start('enas-search', '--epochs', '1', '--device', 'cpu', '--out', 'alone')
    alone.communicate(timeout=300)
    first = start('enas-search', '--epochs', '1', '--device', 'cpu', '--out', 'both')
    while not Path('both/tasks').is_dir(): time.sleep(.05)
    second = start('enas-search', '--resume', 'both')
    said = [p.communicate(timeout=300) for p in (first, second)]
    assert [first.returncode, second.returncode]==[0, 0], said
    retrained = [[l.split('  ')[1] for l in out.splitlines() if ' test accuracy ' in l] for out,err in said]
    assert all(retrained) and not set(retrained[0]) & set(retrained[1])
    (a,_), (b,_) = (well_formed(folder/o) for o in ('alone', 'both'))
    assert free_of_costs(a)==free_of_costs(b)

def test_a_finished_run_and_a_foreign_folder(folder, capfd, tiny):
    assert inside(enas_search, capfd, 'tiny', '--device', 'cpu', '--out', 'a')[0]==0
    before = {o: o.stat().st_mtime_ns for o in Path('a').rglob('*')}
    status, out, err = inside(enas_search, capfd, '--resume', 'a')
    assert (status, err)==(0, '') and 'a/report.md' in out and before=={o: o.stat().st_mtime_ns for o in Path('a').rglob('*')}
    for args,words in ((['--resume', 'nothing'], ['nothing holds no run']), (['--resume', 'a', '--seed', '1'], ['leave the other']),
                       (['tiny', '--resume', 'a'], ['leave the other']), (['tiny', '--out', 'a'], ['holds a run already'])):
        status, out, err = inside(enas_search, capfd, *args)
        assert status==2
        is_one_line(err, 'enas-search', *words)
    status, out, err = inside(enas_train, capfd, '--resume', 'a')
    assert status==2
    is_one_line(err, 'enas-train', 'a is a run of enas-search: enas-search --resume a')
    for o in ('report.md', 'result.json'): Path('a', o).unlink() # made again from the numbers of the tasks
    assert inside(enas_search, capfd, '--resume', 'a')[0]==0 and {o.name for o in Path('a').iterdir()}=={o.name for o in before if o.parent.name=='a'}
    for text in ('{}', '[1]', '3', json.dumps(dict(recipe='tiny', seed='0', epochs=None, text=None, images=None, device=None)), '{"seed": 0'):
        Path('a/run.json').write_text(text)
        status, out, err = inside(enas_search, capfd, '--resume', 'a')
        assert status==2
        is_one_line(err, 'enas-search', 'damaged')

@pytest.mark.parametrize('args', [['--resume', ''], ['--resume='], ['--out', ''], ['--text', ''], ['--images='], ['--seed', str(2**70)], ['--res', 'a']])
def test_empty_and_strange_arguments(args, capfd, folder):
    status, out, err = inside(enas_search, capfd, *args)
    assert status==2 and list(folder.iterdir())==[]
    is_one_line(err, 'enas-search')

def test_a_folder_that_vanishes(folder):
    "The run stops at the end of its epoch, and promises nothing."
    p = start('enas-search', '--out', 'gone', '--device', 'cpu')
    try:
        for line in p.stdout:
            if 'epoch' in line: break
        Path('gone').rename('elsewhere')
        out,err = p.communicate(timeout=300)
    finally: p.kill()
    assert p.returncode==2
    is_one_line(err, 'enas-search', 'gone is gone, with all that was done')
    assert 'go on with' not in err and [o.name for o in folder.iterdir()]==['elsewhere']

def test_other_data_are_refused(folder, capfd, tiny, monkeypatch):
    monkeypatch.setattr(rooms.Experiment, 'train', lambda *args: 1/0)
    with pytest.raises(ZeroDivisionError): inside(enas_search, capfd, 'tiny', '--device', 'cpu', '--out', 'a')
    monkeypatch.setitem(recipes, 'tiny', replace(recipes['tiny'], data_args=dict(bs=125)))
    status, out, err = inside(enas_search, capfd, '--resume', 'a')
    assert status==2
    is_one_line(err, 'enas-search', 'was begun with another seed, with other data')

@pytest.mark.skipif(os.geteuid()!=0, reason='mounting needs root')
def test_a_small_disk_and_a_mount_point(folder):
    "64 kB: refused in one line before anything is computed; a mount point with room is a folder like others."
    for size,status in (('64k', 2), ('64m', 0)):
        Path(size).mkdir()
        if subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size},mode=755', 'tmpfs', size]).returncode: pytest.skip('no mount here')
        try:
            code, out, err = call(start, 'enas-search', '--epochs', '1', '--device', 'cpu', '--out', size)
            assert code==status, err
            if status: is_one_line(err, 'enas-search', 'No space left'); assert 'epoch' not in out
            else: well_formed(folder/size)
        finally: subprocess.run(['umount', size])

def test_train_one_architecture(folder, capfd, tiny):
    arch = MacroSpace(3).parse('3 0 1 2 1 0')
    arch.save('a.json')
    for args in (['a.json', 'tiny'], [str(arch), 'tiny', '--space', 'macro', '--out', 'b']):
        status, out, err = inside(enas_train, capfd, *args, '--device', 'cpu')
        assert (status, err)==(0, '') and 'report.md' in out
    one, two = Path('runs/tiny-train-seed0'), Path('b')
    assert {o.name for o in one.iterdir()}=={'arch.json', 'card.md', 'input.json', 'arch.svg', 'curves.png', 'history.csv', 'net.safetensors', 'report.md',
                                             'result.json', 'run.json', 'tasks'}
    a, b = (json.loads((o/'result.json').read_text()) for o in (one, two))
    assert a['test_accuracy']==b['test_accuracy'] and a['params']==sum(o.numel() for o in load_file(one/'net.safetensors').values()
        if o.is_floating_point()) - sum(v.numel() for k,v in load_file(one/'net.safetensors').items() if 'running' in k)
    assert {'train_loss', 'valid_loss', 'accuracy'} <= {*pd.read_csv(one/'history.csv')} # of the fit, not of the test after it
    assert load_arch(one/'arch.json')==arch and len(pd.read_csv(one/'history.csv'))==1 and f"{a['test_accuracy']:.2%}" in (one/'report.md').read_text()
    for args,words in ((['cifar10-micro', 'tiny'], ['MacroSpace', 'MicroSpace']), (['nothing'], ['nothing']), ([], ['which architecture']),
                       (['a.json', 'no-recipe'], ['no-recipe'])):
        status, out, err = inside(enas_train, capfd, *args)
        assert status==2
        is_one_line(err, 'enas-train', *words)

# --- one short line ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('device', ['hpu', 'meta', 'cuda:99', 'x'*1000, ''])
def test_devices_that_are_not_here(device, capfd, folder):
    status, out, err = inside(enas_search, capfd, '--device', device)
    assert status==2 and list(folder.iterdir())==[] and len(err)<=301
    is_one_line(err, 'enas-search', 'device', 'allowed are cpu, or a GPU that torch finds' if device else 'is empty')

@pytest.mark.parametrize('name', ['cifar10-macro', 'ptb-lm'])
@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_a_recipe_for_a_gpu_is_refused_before_torch_is_there(name, folder):
    "It took 8 to 13 s. With torch hidden nothing but the check can answer."
    code = f"import sys; sys.modules['torch'] = None; from enas_nb import cli; sys.exit(cli.{{}}([{{}}{name!r}]))"
    for f,words in (('enas_search', ''), ('enas_train', "'cifar10-micro', ")):
        p = subprocess.run([sys.executable, '-c', code.format(f, words)], capture_output=True, text=True)
        assert p.returncode==2
        is_one_line(p.stderr, f.replace('_', '-'), f'{name} needs a GPU, for some ', '--device cpu runs it anyway')

def test_the_hours_of_a_gpu_are_those_that_are_counted():
    assert {k: o.hours for k,o in heads.items() if o.gpu}=={k: round(estimate(r)['hours']) for k,r in recipes.items() if r.gpu}

def test_architectures_longer_than_a_file_name(capfd, monkeypatch):
    "The published 24 layers as integers, 5 nodes as a genotype; 44 layers and more have more architectures than a float."
    monkeypatch.setattr(cli_room, '_count', lambda *args: (None, None))
    for name,words in (('cifar10-macro-script', [published['cifar10-macro-script'].text, '--space', 'macro']),
                       ('cifar10-micro', [str(to_genotype(published['cifar10-micro'].arch))])):
        status, out, err = inside(enas_show, capfd, *words)
        assert (status, err)==(0, '') and str(published[name].arch) in out
    status, out, err = inside(enas_show, capfd, ' '.join('0'*(50*51//2)), '--space', 'macro')
    assert (status, err)==(0, '') and '4.67e+407 architectures in this space' in out

long = 'x'*10**5
@pytest.mark.parametrize('f,words', [(enas_show, [long]), (enas_show, ['0 '*60_000, '--space', 'recurrent']), (enas_show, ['cifar10-macro', '--svg', long]),
    (enas_show, ['٣', '--space', 'macro']), (enas_show, ['a\0b']), (enas_show, ['0', '--import', long]), (enas_search, [long]), (enas_search, ['--out', long]),
    (enas_search, ['--text', long]), (enas_search, ['--resume', long]), (enas_search, ['--seed', '9'*10**4]), (enas_search, ['--epochs', '٣']),
    (enas_search, ['--epochs', '9'*12]), (enas_search, ['--'+long]), (enas_search, ['\x1b[2J\nx']), (enas_train, [long]), (enas_compare, ['digits-macro', long]),
    (enas_compare, ['digits-macro', 'c', '--seeds', '9'*10**4]), (enas_evaluate, [long])], ids=lambda o: getattr(o, '__name__', str(o))[:40].encode('ascii', 'replace').decode())
def test_long_and_strange_words(f, words, capfd, folder):
    status, out, err = inside(f, capfd, *words)
    assert status==2 and len(err)<=301 and err[:-1].isprintable() and list(folder.iterdir())==[], err[:500]
    is_one_line(err, f.__name__.replace('_', '-'))

def test_files_that_cannot_be_read(capfd, folder):
    for text in ('['*10**5, '{"space": {"name": "micro", "n_nodes": 1000000000}, "arch": []}'):
        Path('a.json').write_text(text)
        status, out, err = inside(enas_show, capfd, 'a.json')
        assert status==2 and len(err)<=301
        is_one_line(err, 'enas-show', 'a.json: ')
    Path('mine.py').write_text('1/0')
    status, out, err = inside(enas_show, capfd, '0', '--import', 'mine.py')
    assert status==2
    is_one_line(err, 'enas-show', "cannot import 'mine.py': ZeroDivisionError")

def test_list(capfd, folder):
    status, out, err = inside(enas_search, capfd, '--list')
    assert status==0 and err=='' and [o.split()[0] for o in out.splitlines()]==list(recipes) and list(folder.iterdir())==[]

# --- enas-show --------------------------------------------------------------------------------------------------------------

def test_macro_numbers(capfd):
    for name,length,n in (('cifar10-macro',78,160618186625454535808756219904), ('cifar10-macro-wide',78,6**12*2**66), ('cifar10-macro-script',300,4**24*2**276)):
        status, out, err = inside(enas_show, capfd, name, '--json')
        d = json.loads(out)
        assert status==0 and err=='' and {'params','aux_params','encoding','n_archs'} <= d.keys()
        assert d['n_archs']==n and len(d['encoding'].split())==length and d['encoding']==str(published[name].arch)
        assert isinstance(d['params'], int) and d['params']>10**6 and not d['aux_params']

def test_parameters_are_those_of_the_network(capfd):
    from enas_nb.macro import MacroNet
    arch = MacroSpace(3).parse('3 2 1 5 0 1')
    d = json.loads(inside(enas_show, capfd, str(arch), '--space', 'macro', '--json')[1])
    assert d['params']==sum(p.numel() for p in MacroNet(arch).parameters()) and d['encoding']==str(arch) and d['n_archs']==6**3*2**3

@pytest.mark.parametrize('name', published)
def test_published_names(name, capfd):
    status, out, err = inside(enas_show, capfd, name)
    assert status==0 and err=='' and str(published[name].arch) in out and ('parameters' in out)==('ptb' not in name or find_spec('enas_nb.recurrent') is not None)

@pytest.mark.parametrize('space', [MacroSpace(4), MicroSpace(2), RecurrentSpace(5)], ids=lambda o: o.name)
def test_file_and_integers(space, capfd, folder):
    arch = space.archs(space.random(1, seed=1))[0]
    arch.save('a.json')
    texts = [inside(enas_show, capfd, *args, '--json') for args in (['a.json'], [str(arch), '--space', space.name], [', '.join(str(arch).split()), '--space', space.name])]
    assert [o[0] for o in texts]==[0]*3 and len({o[1] for o in texts})==1 and json.loads(texts[0][1])['encoding']==str(arch)

def test_svg(capfd, folder, monkeypatch):
    status, out, err = inside(enas_show, capfd, 'cifar10-micro', '--svg', 'a.svg')
    assert status==0 and ElementTree.parse('a.svg').getroot().tag.endswith('svg') and [o.name for o in folder.iterdir()]==['a.svg']
    before = Path('a.svg').read_bytes()
    def full(*args, **kwargs): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(draw_room, 'write_file', full)
    status, out, err = inside(enas_show, capfd, 'cifar10-macro', '--svg', 'a.svg')
    assert status==2 and Path('a.svg').read_bytes()==before and [o.name for o in folder.iterdir()]==['a.svg']
    is_one_line(err, 'enas-show', 'No space left')
