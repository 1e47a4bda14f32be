"The site: nbdev processes every page, links and anchors lead somewhere, pages say nothing of the machine that made them."
import ast, json, os, re, subprocess, sys
from itertools import count
from pathlib import Path
from urllib.parse import unquote

import pytest, yaml

ROOT = Path(__file__).parents[1]
NBS  = ROOT/'nbs'

def each(folder, end): return sorted(p for p in folder.rglob(f'*.{end}') if not any(o[0] in '._' for o in p.relative_to(folder).parts))
def text_of(o): return o if isinstance(o, str) else ''.join(o)
def cells(path): return [(c['cell_type'], text_of(c['source']), c.get('outputs', ())) for c in json.loads(path.read_text(encoding='utf-8'))['cells']]
def directives(src): return re.findall(r'^#\|\s*(.+?)\s*$', src, re.M)

def shown(outputs):
    "(mime type, text) of outputs; pictures that are no text are left out."
    for o in outputs:
        data = {'text/plain': o['text']} if o['output_type']=='stream' else o.get('data', {})
        yield from ((k, re.sub(r'base64,[\w+/=\s]+', '', text_of(v))) for k,v in data.items() if re.match('text/|image/svg', k))

# --- Markdown: headings and links, as Pandoc reads them

def bare(md):
    "Markdown without its code blocks and inline code."
    return re.sub(r'(`+)(?!`).+?(?<!`)\1(?!`)', '', re.sub(r'^```.*?^```', '', md, flags=re.M|re.S), flags=re.S)

def anchor(heading):
    "Pandoc's identifier of a heading."
    s = re.sub(r'\[([^]]*)\](\([^)]*\))?(\{[^}]*\})?', r'\1', heading)
    s = re.sub(r'[^\w\s.-]', '', s.replace('*', '').lower()).strip()
    return re.sub(r'^[^a-z]+', '', re.sub(r'\s+', '-', s)) or 'section'

def anchors(md):
    "Identifiers of all headings; one that comes again gets a number."
    res = set()
    for o in re.findall(r'^#{1,6} +(.+?)\s*$', re.sub(r'^```.*?^```', '', md, flags=re.M|re.S), re.M):
        a = anchor(o)
        res.add(next(b for b in (a if not i else f'{a}-{i}' for i in count()) if b not in res))
    return res | set(re.findall(r'\bid="([^"]+)"', md))

def links(md):
    md = bare(md)
    return [unquote(o.strip('<>')) for o in re.findall(r'\]\(\s*(<[^>]+>|[^)\s]+)', md) + re.findall(r'\b(?:href|src)="([^"]+)"', md)]

def nested(md):
    "Links whose text holds a link: nbdev makes one of a name in backticks."
    return re.findall(r'\[[^][\n]*\[[^][\n]*\]\([^)\n]*\)[^][\n]*\]\(', md)

def markdown(path):
    "All Markdown and HTML of a page: text, and what its cells show."
    if path.suffix != '.ipynb': return path.read_text(encoding='utf-8')
    parts = ((s if kind != 'code' else '\n\n'.join(t for k,t in shown(outs) if k in ('text/markdown', 'text/html'))) for kind,s,outs in cells(path))
    return '\n\n'.join(parts)

def dead_links(path, root, pages, site='https://no.site/', top=None):
    """Links of a page to what is not there: files below `root`, headings of `pages` (path: anchors), pages of the `site`.
    Files that no page is made of, such as CSV files, are looked for below `top`, too."""
    def dead(link):
        file, _, place = link.partition('#')
        if file.startswith(site): to = next((o for o in pages if root/address(o)==root/file[len(site):]), None)
        elif re.match(r'\w+:', file): return False
        else: to = (path.parent/file).resolve() if file else path.resolve()
        if to is None: return True
        if place: return place not in pages.get(to, ())
        return not to.exists() and not (top and (top/to.relative_to(root.resolve())).exists())
    return [o for o in links(markdown(path)) if dead(o)]

def address(path):
    "Where a processed page is on the site: `output-file` says how it is called."
    named = path.suffix=='.ipynb' and re.search(r'^output-file: (\S+)', cells(path)[0][1], re.M)
    return path.with_name(named[1] if named else f'{path.stem}.html')

# --- what no page may say

def of_this_machine(text):
    "Places of one machine, addresses in memory."
    return re.findall(r'(?<![\w.~:/<-])/(?:home|root|work|tmp|Users)/[\w.-]+|\b0x[0-9a-f]{6,}\b|__main__\.\w+', text)

def said(path):
    "All that a reader of a page sees."
    if path.suffix != '.ipynb': return path.read_text(encoding='utf-8')
    return '\n'.join('\n'.join([s, *(t for _,t in shown(outs))]) for _,s,outs in cells(path))

# --- notebooks, before nbdev reads them

def lost_text(path):
    "nbdev takes title and promise from the first cell, and drops what else is in it."
    kind, src, _ = next(o for o in cells(path) if o[0]=='markdown')
    return re.sub(r'\A# .+\n+> .+\n*', '', src)

def mixed(path):
    """Cells that import and do something else, in a notebook that exports: nbdev runs them to document the others."""
    code = [(i, s) for i,(kind,s,_) in enumerate(cells(path)) if kind=='code']
    if not any('default_exp' in s for _,s in code): return []
    free = lambda s: 'nbdev_export()' in s or any(re.match(r'export|eval: false', o) for o in directives(s))
    def body(s): return ast.parse(re.sub(r'^[%!].*$', '', s, flags=re.M)).body
    imports = (ast.Import, ast.ImportFrom)
    return [i for i,s in code if not s.startswith('%%') and not free(s) and any(isinstance(n, imports) for o in body(s) for n in ast.walk(o))
            and not all(isinstance(o, imports) for o in body(s))]

def public(path):
    "Functions, classes and methods of a notebook's cells that go to the library and are documented, as the site calls them."
    for _,s,_ in cells(path):
        if not any(re.fullmatch(r'exports?', o) for o in directives(s)): continue
        for o in ast.parse(s).body:
            if not isinstance(o, (ast.FunctionDef, ast.ClassDef)) or o.name[0]=='_': continue
            around = [ast.unparse(d) for d in o.decorator_list] # nbdev looks through a wrapper, at a plain function
            patched = 'patch' in ''.join(around[:1]) and 'contextmanager' not in around
            yield f'{ast.unparse(o.args.args[0].annotation)}.{o.name}' if patched else o.name

# --- the pages

def process(root):
    "Process the notebooks of a project as `make docs` does."
    env = os.environ | dict(PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]), OMP_NUM_THREADS='1')
    run = "from nbdev.serve import proc_nbs\nif __name__=='__main__': proc_nbs(n_workers=2)"
    return subprocess.run([sys.executable, '-c', run], cwd=root, env=env, capture_output=True, text=True)

@pytest.fixture(scope='session')
def site():
    "Anchors of each processed page. nbdev does again only what has changed since."
    done = process(ROOT)
    assert done.returncode==0, done.stderr[-3000:]
    folder = (ROOT/'_proc').resolve()
    return {p: anchors(markdown(p)) for p in each(folder, 'ipynb')+each(folder, 'md')}

def test_every_notebook_is_processed(site):
    pages = {p.relative_to(ROOT/'_proc').as_posix() for p in site if p.suffix=='.ipynb'}
    assert pages == {p.relative_to(NBS).as_posix() for p in each(NBS, 'ipynb')}
    assert len({address(p) for p in site}) == len(site), 'two pages have one address'

def test_links_of_the_site(site):
    address_of = yaml.safe_load((NBS/'nbdev.yml').read_text(encoding='utf-8'))['website']['site-url'].rstrip('/')+'/'
    dead = {p.relative_to(ROOT/'_proc').as_posix(): o for p in site if (o := dead_links(p, ROOT/'_proc', site, address_of, NBS))}
    assert not dead, f'links that lead nowhere (nbdev makes links of names in backticks; it documents no method of a class by itself): {dead}'
    inner = {p.relative_to(ROOT/'_proc').as_posix(): o for p in site if (o := nested(markdown(p)))}
    assert not inner, f'links within links: {inner}'

def test_links_of_notebooks_and_readme():
    pages = {p.resolve(): anchors(markdown(p)) for p in [*each(NBS, 'ipynb'), *each(NBS, 'md'), *ROOT.glob('*.md')]}
    dead = {p.relative_to(ROOT).as_posix(): o for p in pages if (o := dead_links(p, ROOT, pages))}
    assert not dead, f'links that lead nowhere: {dead}'

def test_no_page_speaks_of_the_machine_that_made_it(site):
    bad = {p.relative_to(ROOT/'_proc').as_posix(): o for p in site if (o := of_this_machine(said(p)))}
    assert not bad, bad

@pytest.mark.parametrize('path', each(NBS, 'ipynb'), ids=lambda p: p.relative_to(NBS).as_posix())
def test_public_functions_are_documented(path, site):
    missing = [o for o in public(path) if anchor(o) not in site[(ROOT/'_proc'/path.relative_to(NBS)).resolve()]]
    assert not missing, f'nothing documents {missing}'

@pytest.mark.parametrize('path', each(NBS, 'ipynb'), ids=lambda p: p.relative_to(NBS).as_posix())
def test_the_site_loses_nothing_and_runs_imports_only(path):
    assert not lost_text(path), 'the site drops this: give it a cell of its own, below title and promise'
    assert not mixed(path), 'nbdev runs these cells for the site, since they import: give imports cells of their own'

# --- each check sees a page that is broken

def page(path, *sources, outputs=()):
    "A notebook of these cells, Markdown if they begin with no directive; `outputs` are those of a last, empty cell."
    def cell(s):
        kind = 'code' if s.startswith('#|') or s=='' else 'markdown'
        return dict(cell_type=kind, source=s, metadata={}, **dict(outputs=[], execution_count=None) if kind=='code' else {})
    nb = dict(cells=[*map(cell, sources), *([cell('') | dict(outputs=list(outputs))] if outputs else [])], nbformat=4, nbformat_minor=5,
              metadata=dict(kernelspec=dict(name='python3', language='python', display_name='python3')))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(nb), encoding='utf-8')
    return path

def result(mime, text): return dict(output_type='display_data', data={mime: text}, metadata={})

def test_seen_a_dead_link(tmp_path):
    a = page(tmp_path/'a.ipynb', '---\noutput-file: first.html\n---', '# A `b` page: *1.5*\n\n> x', '```\n# no heading\n[no](link.ipynb)\n```\n`[no](link)`')
    good = '[a](a.ipynb) [b](a.ipynb#a-b-page-1.5) ![c](c.csv) [d](https://x.org/y#z) [e](#here) [f](https://our.site/first.html#a-b-page-1.5)'
    b = page(tmp_path/'b.ipynb', '## Here\n\n## Here\n\n[g](#here-1)', good)
    (tmp_path/'raw').mkdir(); (tmp_path/'raw/c.csv').write_text('')
    pages = {p: anchors(markdown(p)) for p in (a, b)}
    look = lambda: dead_links(b, tmp_path, pages, 'https://our.site/', tmp_path/'raw')
    assert links(markdown(a)) == [] and look() == []
    bad = ['c.ipynb', 'a.ipynb#no-heading', '#there', 'd.csv', 'https://our.site/a.html', 'https://our.site/first.html#b']
    page(b, '## Here', *[f'[x]({o})' for o in bad[:3]], outputs=[result('text/html', f'<img src="{bad[3]}">'), *[result('text/markdown', f'[x]({o})') for o in bad[4:]]])
    assert sorted(look()) == sorted(bad)
    assert nested('a [[`f`](x)](y)') and not nested('[a](b), [[c]](d), ![e](f) and [`g`](h)')

@pytest.mark.parametrize('text', ['/root/x.csv', 'in /home/me', "'/tmp/a1b2'", '<function f at 0x7f79e0ad0890>', 'net:__main__.Net'])
def test_seen_a_place_of_this_machine(tmp_path, text):
    assert not of_this_machine('see https://x.org/home/me, ../work/x, 0xff and ~/tmp/x')
    for o in (page(tmp_path/'a.ipynb', f'# A\n\n> {text}'), page(tmp_path/'b.ipynb', outputs=[result('text/plain', text)]),
              page(tmp_path/'c.ipynb', outputs=[dict(output_type='stream', name='stdout', text=[text])])): assert of_this_machine(said(o))

def test_seen_lost_text_and_mixed_cells(tmp_path):
    good = page(tmp_path/'a.ipynb', '# A\n\n> promise', 'more', '#| default_exp a\n#| hide\nimport os', '#| hide\nos.sep', '#| export\nimport re\nx = 1',
                '#| hide\nimport nbdev; nbdev.nbdev_export()', '#| eval: false\nimport os; os.sep')
    assert not lost_text(good) and not mixed(good)
    assert lost_text(page(tmp_path/'b.ipynb', '# A\n\n> promise\n\nmore')) == 'more'
    assert lost_text(page(tmp_path/'b.ipynb', '# A\n\n> promise\n> in two lines')) == '> in two lines'
    assert mixed(page(tmp_path/'b.ipynb', '#| default_exp a', '#| slow\nimport os\nassert False', '#| hide\ndef f(): import os')) == [1, 2]

def test_seen_a_function_without_documentation(tmp_path):
    path = page(tmp_path/'a.ipynb', '#| export\ndef f(): pass\ndef _g(): pass', '#| exports\n@patch\ndef h(self:K): pass\nclass C: pass', '#| exporti\ndef i(): pass')
    assert list(public(path)) == ['f', 'K.h', 'C']
    assert not {anchor(o) for o in public(path)} - anchors('### f\n\n### K.h\n\n### C') and anchor('K.h') not in anchors('### f')

def test_seen_a_page_that_fails(tmp_path):
    (tmp_path/'pyproject.toml').write_text('[project]\nname = "own"\nversion = "1"\n[project.urls]\nRepository = "https://github.com/a/own"\n[tool.nbdev]\n')
    (tmp_path/'own').mkdir(); (tmp_path/'own/__init__.py').write_text('__version__ = "1"')
    page(tmp_path/'nbs/a.ipynb', '# A\n\n> b', '#| default_exp a', '#| export\ndef f(): "Doc"', '#| slow\nimport os\nassert os.sep=="broken"')
    done = process(tmp_path)
    assert done.returncode and 'broken' in done.stderr
