"""Every reader answers malformed input in time: it works, or it says one short line.

20,000 calls by default, always the same ones. `ENAS_NB_FUZZ=100000 pytest -s tests/test_fuzz.py` makes so many for each
reader, and prints what came of them."""
import copy, functools, io, json, os, random, re, resource, shutil, time
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest, torch
from PIL import Image

from enas_nb import cli, comparison, experiment
from enas_nb.macro import MacroSpace
from enas_nb.genotype import from_genotype, to_genotype
from enas_nb.micro import MicroSpace
from enas_nb.presets import Preset, robust
from enas_nb.published import published
from enas_nb.recipes import Recipe, recipes
from enas_nb.recurrent import RecurrentSpace
from enas_nb.checks import _from_json
from enas_nb.checkpoint import read_state, write_state
from enas_nb.data import images_dls
from enas_nb.own_data import file_dls, folder_dls
from enas_nb.arch_files import arch_from_json, load_arch, space_from_dict
from enas_nb.search import search_learner
from enas_nb.space import TinySpace
from enas_nb.trace import read_trace

EACH    = int(os.environ.get('ENAS_NB_FUZZ', 0)) # calls of each reader; 0: the shares of `READERS`
RESULTS = Path(__file__).parents[1]/'nbs/tutorials/results'
SPACES  = [TinySpace(), MacroSpace(4), MicroSpace(2), RecurrentSpace(4), published['enas-lm'].arch.space]

# --- how good input is spoilt ----------------------------------------------------------------------------------------------

TOKENS = ['9'*9, '9'*30, '9'*5000, '-1', '1e400', '1e9', 'NaN', '-Infinity', '٣', '１', '\0', '\x1b[31m', '\ud800', '\u2028', '\ufeff', '[', ']',
          '{', '}', '(', ')', '"', "'", '\\', ',', ':', '|', 'null', 'true', '""', '[]', '{}', '\n', '\r', ' ', '['*2000, '{"a":'*2000, '('*300, '-'*9000,
          'range(10**9)', 'range(1000000000)', '1+'*3000, 'lambda: 0', '=', '--', 'é', '🙂', '%s', '{0}', '<img src=x>', 'x'*300]
VALUES = [None, True, False, 0, -1, 2, 3.5, 10**3, 10**9, 10**30, 10**400, -10**12, float('nan'), float('inf'), 1e308, '', '1', 'false', 'x'*70, 'x'*5000,
          'op\n', '\x00', '\x1b[2J', '\ud800', '٣', '<img>', [], {}, [[]], [1, 2], ['a', 'a'], [None], {'a': 1}, [[[[1]]]]*3, 'policy', 'macro', 'micro',
          'recurrent', 'tiny', 'listed', 'table201', 'conv3x3', 'skips', 'index', 'op', ['conv3x3'], [0]*300]

def spoilt(rng, text):
    "A text with one to three faults."
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        i = rng.randrange(len(text)+1); j = min(len(text), i+rng.choice((1, 1, 2, 5, 50)))
        way = rng.randrange(8)
        if way==0:   text = text[:i]+text[j:]
        elif way==1: text = text[:i]+rng.choice(TOKENS)+text[i:]
        elif way==2: text = text[:i]+rng.choice(TOKENS)+text[j:]
        elif way==3: text = text[:i]+text[i:j]*rng.choice((2, 3, 100))+text[j:]
        elif way==4: text = text[:i]+text[i:j][::-1]+text[j:]
        elif way==5: text = text[:i]+chr(rng.choice((rng.randrange(128), rng.randrange(0x3000))))+text[i:]
        elif numbers := list(re.finditer(r'\d+', text)):
            o = rng.choice(numbers)
            text = text[:o.start()]+rng.choice(('-1', '7', '99', '1000000000', '9'*400, '1.5', '1e5', '٣', '+1', '0'*50, '_'))+text[o.end():]
    if rng.random()<.003: text = rng.choice((text*(10**6//(len(text)+1)), text+'0 '*500_000, text+'x'*10**6, '['*10**6))
    return text

def places(o):
    "All containers inside a value, with their keys."
    keys = o.keys() if isinstance(o, dict) else range(len(o)) if isinstance(o, list) else ()
    return [(o, k) for k in keys] + [p for k in keys for p in places(o[k])]

def twisted(rng, o):
    "A value of JSON with one to three faults."
    o = copy.deepcopy(o)
    for _ in range(rng.choice((1, 1, 2, 3))):
        if not (some := places(o)): return rng.choice(VALUES)
        (at, k), value = rng.choice(some), copy.deepcopy(rng.choice(VALUES))
        way = rng.randrange(5)
        if way==0: del at[k]
        elif way==1 and isinstance(at, dict): at[rng.choice(('more', 'x'*9000, 'a\nb', ''))] = value
        elif way==2 and isinstance(at, list): at.insert(k, value)
        else: at[k] = value
    return rng.choice(VALUES) if rng.random()<.01 else o

def as_text(rng, o):
    text = json.dumps(twisted(rng, o))
    return spoilt(rng, text) if rng.random()<.4 else text

# --- the readers -----------------------------------------------------------------------------------------------------------

ARCHS  = [o.archs(o.random(1, seed=i))[0] for i,o in enumerate(SPACES)]
LISTED = json.loads(ARCHS[0].to_json())
LISTED['space'] = dict(name='gone', ops=list(TinySpace.ops), steps=[dict(kind=o.kind, label=o.label, n=o.n, at=o.at, among=list(o.among),
                       remember=o.remember, feed=o.feed, bias=[], reduce=False) for o in TinySpace().steps])
JSONS  = [json.loads(o.to_json()) for o in ARCHS] + [LISTED]
GENOTYPES = [str(to_genotype(o)) for o in (ARCHS[2], published['cifar10-micro'].arch)]

def used(arch):
    "What is done with an architecture that was read."
    str(arch), repr(arch), arch.nodes, arch.space.size, arch.to_json(), arch.graph()

def strings(rng):
    space, arch = rng.choice(list(zip(SPACES, ARCHS)))
    text = spoilt(rng, rng.choice((str(arch), ','.join(map(str, arch.code)), str(list(arch.code)))))
    if rng.random()<.1: return lambda: cli._find(text, rng.choice(cli.spaces)) # ten times as slow
    return lambda: used(space.parse(text))

def genotypes(rng):
    text = spoilt(rng, rng.choice(GENOTYPES))
    return lambda: used(from_genotype(text))

def json_archs(rng):
    text = as_text(rng, rng.choice(JSONS))
    return lambda: used(arch_from_json(text))

def json_spaces(rng):
    text = as_text(rng, rng.choice(JSONS)['space'])
    def read():
        space = space_from_dict(_from_json(text))
        space.size, space.length, space.random(2), repr(space), space.to_dict()
    return read

def json_presets(rng):
    recipe = recipes[rng.choice(('digits-macro', 'cifar10-micro', 'text-small', 'ptb-lm'))].preset
    parts  = twisted(rng, {o: json.loads(json.dumps(recipe.to_dict()[o])) for o in ('controller', 'search', 'final')})
    def read():
        if not isinstance(parts, dict): return Preset('x', 'macro', parts, parts, parts)
        new = recipe.override(**parts)
        new.controller.n_steps(new.search.n_epochs), json.dumps(new.to_dict())
    return read

def json_recipes(rng):
    r = recipes[rng.choice(list(recipes))]
    numbers = {o.name: getattr(r, o.name) for o in fields(Recipe)}
    for _ in range(rng.choice((1, 2))): numbers[rng.choice(list(numbers))] = rng.choice(VALUES)
    value, path = rng.choice(VALUES), rng.choice(('x', 'book.txt', '.', '\0'))
    return rng.choice((lambda: Recipe(**numbers), lambda: r.with_epochs(value), lambda: r.on_text(path), lambda: r.on_images(path)))

def command(name, words):
    "Run a command; an error of its own is one line on stderr, with status 2."
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try: status = getattr(cli, name)(words)
        except SystemExit as e: status = e.code
    line = err.getvalue()
    if not status: return
    assert status==2 and line.startswith(name.replace('_', '-')+': error: ') and line.endswith('\n'), (status, line)
    raise ValueError(line[:-1])

def file_of(rng, text):
    "A file with this text, or with bytes that are none."
    data = text.encode('utf-8', 'surrogatepass')
    if rng.random()<.05: data = rng.choice((b'', bytes(range(256)), b'\xff\xfe'+data, b'\xef\xbb\xbf'+data, data[:len(data)//2]))
    Path('a.json').write_bytes(data)
    return 'a.json'

RESULT = json.loads((RESULTS/'text-small/result.json').read_text())
TRACE  = dict(space=TinySpace().to_dict(), most=4.5, rows=[dict(best=[0, 0, 0, 0, 0], reward=.5, entropy=1.)])
TRACE  = json.loads(json.dumps(TRACE))

def files(rng):
    way = rng.randrange(3)
    file = file_of(rng, as_text(rng, (rng.choice(JSONS), TRACE, RESULT)[way]) if way<2 or rng.random()<.9 else spoilt(rng, json.dumps(RESULT)))
    return lambda: (load_arch, read_trace, cli._said)[way](file)

def tables(rng):
    text = (RESULTS/'compare-digits-macro/table.csv').read_text()
    def read():
        Path('full').mkdir(exist_ok=True)
        Path('full/table.csv').write_bytes(spoilt(rng, text).encode('utf-8', 'surrogatepass'))
        command('enas_evaluate', ['full'])
    return read

WORDS = dict(
    enas_show=[['cifar10-macro'], ['a.json', '--svg', 'a.svg'], ['0 3 1 5 0 1', '--space', 'macro', '--json'], [GENOTYPES[0]], ['0 2', '--import', 'mine.py']],
    enas_search=[['digits-macro', '--epochs', '2', '--seed', '3', '--device', 'cpu'], ['text-small', '--text', 'book.txt', '--out', 'new'], ['--list'],
                 ['digits-micro', '--images', 'folder', '--device', 'cuda'], ['--resume', 'folder'], ['cifar10-macro'], ['ptb', '--device', 'hpu']],
    enas_train=[['0 3 1', 'digits-macro', '--space', 'macro', '--epochs', '1'], ['a.json', '--out', 'new'], ['cifar10-micro', 'ptb']],
    enas_compare=[['digits-macro', 'new', '--seeds', '0,1,2', '--arms', 'equal,shared'], ['text-small', 'new', '--seeds', '3', '--epochs', '9', '--device', 'meta']],
    enas_evaluate=[['folder', 'other', '--png', 'a.png'], ['folder']])

def arguments(rng):
    name  = rng.choice(list(WORDS))
    words = list(rng.choice(WORDS[name]))
    for _ in range(rng.choice((1, 1, 2))):
        i, way = rng.randrange(len(words)), rng.randrange(6)
        if way==0 and len(words)>1: del words[i]
        elif way==1: words.insert(i, rng.choice(('--seed', '--out', '-x', '--', '', '0', '--epochs=0', '--help', '--text=', '--space=macro', '--arms', ',')))
        elif way==2: words[i] = rng.choice(TOKENS)
        else: words[i] = spoilt(rng, words[i])
    return lambda: command(name, words)

@functools.cache
def search():
    "A small search after its fit, its file, and the tree in this file."
    x, y  = torch.randint(256, (12, 1, 8, 8), dtype=torch.uint8), torch.arange(12)%2
    learn = search_learner(images_dls((x, y), (x, y), ['a', 'b'], bs=6), MacroSpace(2), width=2,
                           preset=robust['macro'].override(search=dict(T_0=1, n_omega=1), controller=dict(steps=2, hidden=4)))
    with learn.no_bar(), learn.no_logging(): learn.fit_preset()
    learn.save_search('good.safetensors')
    return learn, Path('good.safetensors').read_bytes(), read_state('good.safetensors')

def bits(learn): return [o.clone() for o in learn.model.state_dict().values()]

def checkpoints(rng):
    "Bytes are spoilt, or the tree, whose file has a right checksum then."
    learn, data, tree = search()
    if rng.random()<.5:
        i, j = sorted(rng.randrange(len(data)) for _ in range(2))
        made = rng.choice((data[:i], data[:i]+data[j:], data[:i]+bytes([data[i]^1<<rng.randrange(8)])+data[i+1:], data[:i]+data[j:]+data[i:j],
                           rng.randbytes(8)+data[8:], spoilt(rng, data[8:j].decode('latin-1')).encode('utf-8', 'replace')+data[j:]))
        Path('a.safetensors').write_bytes(made)
    else:
        tree = twisted(rng, tree)
        try: write_state('a.safetensors', tree)
        except (TypeError, ValueError, UnicodeError, OverflowError): pass # nothing that we write; the last file is read once more
    def read():
        before = bits(learn)
        try: learn.load_search('a.safetensors')
        except Exception:
            assert all(torch.equal(a, b) for a,b in zip(before, bits(learn), strict=True)), 'half loaded'
            raise
    return read

def encoded(form, mode='L'):
    "A small picture as bytes of a format."
    out = io.BytesIO()
    Image.new(mode, (9, 7), 1 if mode in ('I;16', 'F') else None).save(out, form)
    return out.getvalue()

def images(rng):
    "A folder of two classes, whose pictures are sound but one."
    form, mode = rng.choice((('PNG', 'L'), ('PNG', 'RGB'), ('PNG', 'I;16'), ('PNG', 'P'), ('JPEG', 'RGB'), ('BMP', 'RGB'), ('GIF', 'L'), ('TIFF', 'F'),
                             ('TIFF', 'I;16'), ('WEBP', 'RGB')))
    good = encoded(form, mode)
    bad  = spoilt(rng, good.decode('latin-1')).encode('latin-1', 'replace') if rng.random()<.9 else rng.choice((b'', encoded('PNG', 'LA')))
    def read():
        shutil.rmtree('pictures', ignore_errors=True)
        for i,c in enumerate(f'{part}/{c}' for part in ('train', 'valid', 'test') for c in 'aab'):
            Path(f'pictures/{c}').mkdir(parents=True, exist_ok=True)
            Path(f'pictures/{c}/{i}.{form.lower()}').write_bytes(bad if i==1 else good)
        dls = folder_dls('pictures', bs=2, size=8, augment=None)
        x, y = dls.one_batch()
        assert x.isfinite().all()
    return read

def texts(rng):
    "A file of words, or what should be one."
    words = rng.choice(('The cell reads a word. It keeps what it needs! ', 'नमस्ते दुनिया। ', 'ab 3.5 N <unk> co-op \n', 'e\u0301t\u00e9 \u00df ', '字。字？'))
    data  = spoilt(rng, words*rng.choice((1, 40))).encode(rng.choice(('utf-8', 'utf-8', 'utf-16', 'latin-1')), 'replace')
    raw, encoding = rng.random()<.7, rng.choice(('utf-8', 'utf-8', 'latin-1', 'utf-16', 'x'))
    def read():
        Path('a.txt').write_bytes(data)
        file_dls('a.txt', raw=raw, bs=rng.choice((1, 2)), seq_len=5, encoding=encoding).one_batch()
    return read

READERS = dict(strings=(strings, 3500), genotypes=(genotypes, 2500), json_archs=(json_archs, 3500), json_spaces=(json_spaces, 2500),
               json_presets=(json_presets, 1500), json_recipes=(json_recipes, 1000), files=(files, 1000), tables=(tables, 500),
               arguments=(arguments, 2500), checkpoints=(checkpoints, 500), images=(images, 400), texts=(texts, 600))

def test_that_makes_20_000(): assert sum(n for _,n in READERS.values())==20_000

@pytest.fixture
def folder(tmp_path, monkeypatch):
    "A folder with something in it; nothing is trained, counted or plotted."
    monkeypatch.chdir(tmp_path)
    Path('folder').mkdir(); Path('folder/a.txt').write_text('words'); Path('book.txt').write_text('words')
    Path('mine.py').write_text('x = 1'); ARCHS[1].save('a.json')
    def begun(*args, **kwargs): raise ValueError('it would begin')
    for room,o in ((experiment, 'run_recipe'), (experiment, 'train_arch'), (comparison, 'compare')): monkeypatch.setattr(room, o, begun)
    monkeypatch.setattr(cli, '_count', lambda *args: (None, None))
    report, asked = comparison.comparison_report, count()
    monkeypatch.setattr(comparison, 'comparison_report', lambda *args: report(*args) if next(asked)%20==0 else '') # it is slow
    monkeypatch.setattr(comparison, 'plot_arms', lambda found: SimpleNamespace(savefig=lambda *args, **kwargs: None))
    monkeypatch.setattr('enas_nb.draw.write_file', lambda path, data: os.path.isdir(path))

@pytest.mark.parametrize('name', READERS)
def test_fuzzed(name, folder):
    "One line of at most 300 printable characters, of an expected kind; under 2 s of CPU; less than 1 GB more memory."
    make, n = READERS[name]
    rng, seen, slowest, start = random.Random(name), Counter(), 0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(EACH or n):
        call = make(rng)
        begun = time.process_time()
        try: call(); seen['fine'] += 1
        except (ValueError, TypeError, OSError) as e:
            line = str(e)
            assert len(line)<=300 and line.isprintable() and line, (i, type(e), len(line), line[:1000])
            seen[type(e).__name__] += 1
        slowest = max(slowest, time.process_time()-begun)
        assert slowest<2, (i, slowest)
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-start)/2**20
    print(f'\n{name}: {EACH or n} calls, {dict(seen)}, the slowest {slowest:.2f} s of CPU, {more:.2f} GB more')
    assert more<1 and len(seen)>1
