"What a reader of a fresh clone sees in JupyterLab, where no notebook is trusted yet: pixels of a real Chromium."
import base64, io, json, os, re, shutil, socket, subprocess, sys, time
from itertools import pairwise
from pathlib import Path
from urllib.request import urlopen

import pytest
from PIL import Image

ROOT     = Path(__file__).parents[1]
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
PAGES    = ['00_enas', 'tutorials/01_first_search']
TOKEN    = 'reader'
WAIT     = 300 # seconds, at most, for anything that is to be seen: a machine may be busy

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

@pytest.fixture(scope='module')
def clone(tmp_path_factory):
    "What `git clone` gives to a reader."
    if not (ROOT/'.git').exists(): pytest.skip('no git checkout to clone')
    path = tmp_path_factory.mktemp('reader')/'clone'
    subprocess.run(['git', 'clone', '-q', ROOT, path], check=True)
    return path

@pytest.fixture(scope='module')
def lab(clone):
    "The address of a JupyterLab on the clone that shares nothing with the user's own: no settings, no trust."
    pytest.importorskip('jupyterlab', reason='JupyterLab is not installed')
    home, port = clone.parent, free_port()
    news = home/'config/lab/user-settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings'
    news.parent.mkdir(parents=True)
    news.write_text('{"fetchNews": "false"}') # or else a question covers the pictures
    dirs = {f'JUPYTER_{o.upper()}_DIR': str(home/o) for o in ('config', 'data', 'runtime')}
    args = ['--no-browser', '--allow-root', f'--ServerApp.root_dir={clone}', f'--ServerApp.port={port}', f'--IdentityProvider.token={TOKEN}']
    with (home/'log').open('w') as log:
        p = subprocess.Popen([sys.executable, '-m', 'jupyterlab', *args], stdout=log, stderr=log,
                             env={**os.environ, **dirs, 'IPYTHONDIR': str(home/'ipython'), 'PYTHONPATH': str(clone)})
    url, end = f'http://127.0.0.1:{port}', time.monotonic()+WAIT
    try:
        while True:
            try: urlopen(f'{url}/api?token={TOKEN}').close(); break
            except OSError:
                if p.poll() is not None or time.monotonic()>end: pytest.fail((home/'log').read_text()[-2000:])
                time.sleep(.1)
        yield url
    finally: p.kill(); p.wait() # its kernels end with it

@pytest.fixture(scope='module')
def browser():
    api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
    if CHROMIUM is None: pytest.skip('no Chromium on this machine')
    with api.sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        yield b
        b.close()

class Reader:
    "Opens a notebook in JupyterLab, looks at its cells, runs them, and stops them."
    def __init__(self, browser, lab, name):
        self.page = browser.new_page(viewport=dict(width=1600, height=1000))
        self.page.set_default_timeout(1000*WAIT)
        self.page.goto(f'{lab}/lab/tree/nbs/{name}.ipynb?token={TOKEN}&reset')
        self.page.get_by_text('| Idle').wait_for() # in the status bar: the kernel has started

    def cell(self, i): return self.page.locator(f'.jp-Notebook-cell[data-windowed-list-index="{i}"]')
    def prompt(self, i): return self.cell(i).locator('.jp-InputPrompt')
    def done(self, i): return self.prompt(i).filter(has_text=re.compile(r'\[\d+\]'))

    def sees(self, i, colours, looks=30):
        "All `colours` are on the screen below cell `i`, at the last of so many `looks` (the first may come before the picture)."
        out = self.cell(i).locator('.jp-Cell-outputArea')
        out.scroll_into_view_if_needed()
        for _ in range(looks):
            if not (missing := colours-paints(out.screenshot())): return
        pytest.fail(f'cell {i}: of {len(colours)} colours, these are not on the screen: {sorted(missing)}')

    def menu(self, *names):
        for kind,name in zip(('MenuBar', 'Menu'), names): self.page.locator(f'.lm-{kind}-itemLabel', has_text=re.compile(f'^{name}$')).click()

    def run(self, i, *names):
        "Run cell `i`, or what the menu `names`, seen from there."
        self.prompt(i).click()
        self.menu('Run', *(names or ['Run Selected Cell']))

    def wait(self, i): self.done(i).wait_for(state='attached') # JupyterLab hides what is scrolled away

    def interrupt(self, i):
        "Stop cell `i`, which runs; what waited behind it will not run."
        self.page.get_by_role('button', name='Interrupt the kernel').click()
        self.cell(i).get_by_text('KeyboardInterrupt').first.wait_for(state='attached')
        self.page.locator('.jp-InputPrompt').filter(has_text='[*]').first.wait_for(state='detached')

@pytest.fixture
def read(browser, lab):
    "A function that opens a notebook."
    readers = []
    def f(name):
        readers.append(Reader(browser, lab, name))
        return readers[-1]
    yield f
    for o in readers: o.page.close()

def paints(png, least=30):
    "The colours that at least `least` pixels of a picture have."
    return {c for n,c in Image.open(io.BytesIO(png)).convert('RGB').getcolors(1<<24) if n>=least}

def cells(clone, name):
    "(position, source, stored data) of each code cell."
    nb = json.loads((clone/f'nbs/{name}.ipynb').read_text(encoding='utf-8'))
    return [(i, ''.join(c['source']), [o['data'] for o in c['outputs'] if 'data' in o]) for i,c in enumerate(nb['cells']) if c['cell_type']=='code']

def pictures(clone, name, browser, least=100):
    "For each code cell with a stored picture, the colours of that picture that at least `least` pixels have."
    page, res = browser.new_page(), {}
    for i,_,datas in cells(clone, name):
        for data in datas:
            if 'image/png' in data: res.setdefault(i, set()).update(paints(base64.b64decode(''.join(data['image/png'])), least))
            elif 'image/svg+xml' in data:
                page.set_content(''.join(data['image/svg+xml']))
                res.setdefault(i, set()).update(paints(page.locator('svg').screenshot(), least))
    page.close()
    return res

@pytest.mark.parametrize('name', PAGES)
def test_pictures_are_seen_before_anything_is_run(browser, clone, lab, read, name):
    got = json.load(urlopen(f'{lab}/api/contents/nbs/{name}.ipynb?token={TOKEN}'))['content']['cells']
    assert {c['metadata']['trusted'] for c in got if c['cell_type']=='code' and c['outputs']}=={False}
    reader, want = read(name), pictures(clone, name, browser)
    assert len(want)>=5 and all(len(o)>=3 for o in want.values()), want
    for i,colours in want.items():
        reader.sees(i, colours)
        assert reader.prompt(i).inner_text()=='[ ]:'

def find(code, pattern):
    "Positions of the cells that `pattern` fits, each with that of the code cell before it."
    return [(b, a) for (a,*_),(b,src,_) in pairwise(code) if re.search(pattern, src, re.M)]

def test_all_cells_run_and_what_takes_long_can_be_stopped(browser, clone, read):
    "The cells that are not evaluated by tests take minutes: a reader stops the first ones, and goes on behind them."
    reader, code = read('00_enas'), cells(clone, '00_enas')
    (table, ready), (ten, found), *_ = find(code, r'^#\| eval: false')
    reader.menu('Run', 'Run All Cells')
    reader.wait(ready)
    reader.interrupt(table)
    reader.run(table+1, 'Run Selected Cell and All Below')
    reader.wait(found)
    reader.interrupt(ten)
    want = pictures(clone, '00_enas', browser, 400)
    for i in (ten+1, max(want)):
        reader.run(i)
        reader.wait(i)
    for i,colours in want.items():
        assert reader.done(i).count()==1 and len(colours)>1
        reader.sees(i, colours)

def test_a_fit_is_stopped_and_the_search_goes_on(clone, read):
    name = 'tutorials/01_first_search'
    reader, code = read(name), cells(clone, name)
    (fit, ready), = find(code, r'^learn\.fit_preset\(')
    (plot, _),    = find(code, r'^plot_history\(')
    (derive, _),  = find(code, r'^arch = learn\.derive\(')
    reader.run(fit, 'Run All Above Selected Cell')
    reader.wait(ready)
    reader.run(fit)
    reader.cell(fit).locator('tbody tr').nth(1).wait_for() # two epochs
    reader.interrupt(fit)
    for i in (plot, derive):
        reader.run(i)
        reader.wait(i)
    reader.sees(derive, {(255, 255, 255), (51, 65, 85)}) # the card, and the stem

def test_widgets_are_seen_and_a_slider_changes_the_picture(clone, read):
    name = '18_widgets'
    reader, code = read(name), cells(clone, name)
    (walk, _),   = find(code, r'^walk = SpaceWalk\(')
    (replay, _), = find(code, r'^view = SearchView\(')
    (after, _),  = find(code, r'^a, b = ')
    reader.run(after, 'Run All Above Selected Cell')
    reader.wait(replay)
    buttons = reader.cell(walk).get_by_role('button')
    buttons.get_by_text('Finish').click() # the policy takes the rest
    reader.cell(walk).get_by_text('All is decided:').wait_for()
    picture = reader.cell(replay).locator('.jp-RenderedHTMLCommon img').first
    before = picture.get_attribute('src')
    slider = reader.cell(replay).get_by_role('slider')
    slider.focus()
    reader.page.keyboard.press('ArrowRight') # no mouse is needed
    expect = pytest.importorskip('playwright.sync_api').expect
    expect(picture).not_to_have_attribute('src', before, timeout=1000*WAIT)
    assert len(paints(picture.screenshot()))>=3
