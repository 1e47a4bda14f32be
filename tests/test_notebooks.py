"The form that every notebook has: what its page needs, what it exports, on which floors it stands, how large it is."
import ast, json, re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NBS  = ROOT/'nbs'
LIB  = ROOT/'enas_nb'

def visible(p): return not any(o[0] in '._' for o in p.relative_to(NBS).parts)
ALL      = sorted(filter(visible, NBS.rglob('*.ipynb')))
CHAPTERS = [p for p in ALL if p.parent==NBS and re.match(r'\d\d_', p.name)]
APPENDIX = [p for p in ALL if p.parent==NBS/'appendix']
ONE_PAGE = NBS/'00_enas.ipynb'                       # plain torch: neither exports nor imports
def name_of(p): return re.sub(r'^\d\d_', '', p.stem)
ROOMS    = {name_of(p): p for p in CHAPTERS+APPENDIX if p != ONE_PAGE}
FLOOR    = {name_of(p): p.stem for p in CHAPTERS}    # '05_data' lies below '06_text'
MODULES  = sorted(p for p in LIB.glob('*.py') if p.stem != 'all' and p.name[0] != '_')

def ident(p): return p.relative_to(p.parents[1] if p.parent in (NBS, LIB) else NBS).as_posix()
each_nb       = pytest.mark.parametrize('path', ALL, ids=ident)
each_room    = pytest.mark.parametrize('path', ROOMS.values(), ids=ident)
each_module   = pytest.mark.parametrize('path', MODULES, ids=ident)

def cells(path, kind=None):
    "(position, source, cell) of each cell, or of those of one `kind`."
    nb = json.loads(path.read_text(encoding='utf-8'))
    return [(i, ''.join(c['source']), c) for i,c in enumerate(nb['cells']) if kind in (None, c['cell_type'])]

def directives(src): return re.findall(r'^#\|\s*(.+?)\s*$', src, re.M)
def exported(src): return any(re.match(r'(export|exports|exporti)\b', o) for o in directives(src))

def outputs(path):
    "(position, mime type, text) of everything that the code cells show."
    for i,_,c in cells(path, 'code'):
        for o in c['outputs']:
            if o['output_type']=='stream': yield i, 'text/plain', ''.join(o['text'])
            elif o['output_type']=='error': yield i, 'error', '\n'.join(o['traceback'])
            else: yield from ((i, k, v if isinstance(v, str) else ''.join(v) if isinstance(v, list) else json.dumps(v)) for k,v in o['data'].items())

@each_nb
def test_title_and_promise(path):
    first = next(iter(cells(path, 'markdown')))
    assert first[0] <= 1, 'the title comes first'
    assert re.match(r'# \S.*\n+> \S', first[1]), f'wants "# Title" and "> one-line promise", has {first[1]!r}'

@each_nb
def test_no_errors_in_outputs(path):
    assert not [(i, v[-300:]) for i,k,v in outputs(path) if k=='error']

@each_nb
def test_no_place_of_one_machine_in_outputs(path):
    def places(v): return re.findall(r'(?<![\w.~:/<-])/(?:home|root|work|tmp|Users)/[\w.-]+', re.sub(r'base64,[\w+/=]+', '', v))
    bad = [(i, places(v)) for i,k,v in outputs(path) if not re.match(r'image/(?!svg)', k) and places(v)]
    assert not bad, f'(cell, paths): {bad}'

def visible_code(path):
    "(position, source) of the code cells that a reader sees."
    return [(i, s) for i,s,_ in cells(path, 'code') if 'hide' not in directives(s)]

@each_nb
def test_size(path):
    n, kb = len(cells(path)), path.stat().st_size/1000
    cells_most = 48 if re.match(r'\d\d_', path.name) and path.parent.name=='nbs' else 60 # chapters are short
    assert n <= cells_most, f'{n} cells, at most {cells_most}'
    assert kb <= 600, f'{kb:.0f} KB, at most 600'
    seen = {i for i,_ in visible_code(path)}
    most = lambda i: 40 if i in seen else 60
    tall = [(i, n) for i,s,_ in cells(path, 'code') if (n := len(s.splitlines())) > most(i)]
    assert not tall, f'cells of more than 40 lines, or hidden ones of more than 60 (cell, lines): {tall}'

@each_nb
def test_lines_fit_the_page(path):
    wide = [(i, len(o)) for i,s in visible_code(path) for o in s.splitlines() if len(o) > 100]
    assert not wide, f'lines of more than 100 characters that a reader reads (cell, characters): {wide}'

@pytest.mark.parametrize('path', sorted(LIB.glob('*.py')), ids=lambda p: p.name)
def test_lines_of_the_library(path):
    wide = [i+1 for i,o in enumerate(path.read_text(encoding='utf-8').splitlines()) if len(o) > 140]
    assert path.name=='_modidx.py' or not wide, f'lines of more than 140 characters: {wide}'

@pytest.mark.parametrize('path', [p for p in ALL if p.name != 'index.ipynb'], ids=ident)
def test_shows_something(path):
    assert [k for _,k,_ in outputs(path) if k.startswith('image/') or k=='text/html'], 'no picture and no table among its outputs'

@each_nb
def test_pictures_are_seen_where_nothing_is_trusted(path):
    "Of a notebook that is not trusted, JupyterLab shows images, tables and markdown, but no SVG and no widget."
    datas = [(i, set(o['data'])) for i,_,c in cells(path, 'code') for o in c['outputs'] if 'data' in o]
    rich  = {'image/svg+xml', 'application/vnd.jupyter.widget-view+json', 'application/javascript'}
    plain = {'text/html', 'text/markdown', 'image/png', 'image/jpeg'}
    alone = [(i, sorted(d)) for i,d in datas if d&rich and not d&plain]
    assert not alone, f'(cell, mime types): {alone}'

@each_nb
def test_no_execution_counts(path):
    assert not [i for i,_,c in cells(path, 'code') if c['execution_count'] is not None], 'run `nbdev-clean`'

@each_room
def test_exports_the_module_of_its_name(path):
    names = [o.split()[1] for _,s,_ in cells(path, 'code') for o in directives(s) if o.startswith('default_exp')]
    assert names == [name_of(path)]
    lib, at = (LIB/f'{names[0]}.py').read_text(encoding='utf-8'), path.relative_to(ROOT).as_posix()
    assert f'File to edit: ../{at}.' in lib, lib[:300]
    want = [c['id'] for _,s,c in cells(path, 'code') if exported(s)]
    got  = re.findall(rf'^# %% \.\./{re.escape(at)} #(\S+)$', lib, re.M)
    assert got == want, 'run `nbdev-export`'

@each_room
def test_ends_with_the_hidden_export(path):
    _,src,_ = cells(path)[-1]
    assert directives(src) == ['hide'] and 'nbdev_export()' in src, src

@pytest.mark.parametrize('path', [p for p in ALL if p not in ROOMS.values()], ids=ident)
def test_other_notebooks_export_nothing(path):
    assert not [i for i,s,_ in cells(path, 'code') if exported(s) or 'default_exp' in ' '.join(directives(s))]

@each_module
def test_module_comes_from_a_notebook(path): assert path.stem in ROOMS, f'no notebook of the name {path.stem}; only all.py is written by hand'

def imports(path):
    "Names of the modules of `enas_nb` that a module imports, at any depth."
    for o in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(o, ast.Import): full = [a.name for a in o.names]
        elif isinstance(o, ast.ImportFrom):
            full = [o.module or ''] if not o.level else [f'enas_nb.{o.module}'] if o.module else [f'enas_nb.{a.name}' for a in o.names]
            if full == ['enas_nb']: full = [f'enas_nb.{a.name}' for a in o.names]
        else: continue
        yield from (f.split('.')[1] for f in full if f.startswith('enas_nb.'))

@each_module
def test_chapters_import_only_from_chapters_below(path):
    "The appendix holds machinery that any chapter may import."
    if path.stem not in FLOOR: return
    bad = [o for o in imports(path) if o in FLOOR and not FLOOR[o] < FLOOR[path.stem]]
    assert not bad, f'{path.stem} is {FLOOR[path.stem]}; not below it: {bad}'

def top_imports(path):
    "Modules of `enas_nb` that a module imports when it is imported itself."
    tree = ast.parse(path.read_text(encoding='utf-8'))
    return {o.module for o in tree.body if isinstance(o, ast.ImportFrom) and o.level==1 and o.module}

def test_modules_form_no_circle():
    graph = {p.stem: top_imports(p) for p in MODULES}
    assert list(TopologicalSorter(graph).static_order())

def test_nothing_is_imported_for_its_side_effects():
    "Each module that a module imports is used by a name."
    for p in MODULES:
        tree = ast.parse(p.read_text(encoding='utf-8'))
        bare = [a.name for o in tree.body if isinstance(o, ast.ImportFrom) and o.level==1 and not o.module for a in o.names]
        used = {o.id for o in ast.walk(tree) if isinstance(o, ast.Name)}
        assert set(bare)-{'__version__'} <= used, f'{p.stem} imports {bare} and uses {used & set(bare)}'

def test_all_imports_every_module():
    tree  = ast.parse((LIB/'all.py').read_text(encoding='utf-8'))
    stars = [o.module for o in tree.body if isinstance(o, ast.ImportFrom) and o.level==1 and o.names[0].name=='*']
    assert set(stars) == {p.stem for p in MODULES}-{'cli'}, 'all.py star-imports every module but the command line'
    early = [(m, o) for i,m in enumerate(stars) for o in top_imports(LIB/f'{m}.py') & set(stars) if stars.index(o) > i]
    assert not early, f'imported before what it imports: {early}'

def test_the_first_page_needs_torch_only():
    text = '\n'.join(s for _,s,_ in cells(ONE_PAGE, 'code') if 'nbdev' not in s)
    assert not re.findall(r'^\s*(?:import|from) (?:enas_nb|fastai)\b', text, re.M)
    lines = [o for o in text.splitlines() if o.strip() and not o.strip().startswith('#')]
    assert len(lines) <= 150, f'{len(lines)} lines of code, at most 150'
