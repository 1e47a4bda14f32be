"What is declared (`settings.ini`, `pyproject.toml`, `_quarto.yml`) is what is installed and what is there."
import os, re, subprocess, sys
from configparser import ConfigParser
from importlib.metadata import entry_points, metadata, requires, version
from pathlib import Path

import pytest, yaml
from packaging.requirements import Requirement
from packaging.version import Version

import enas_nb

ROOT = Path(__file__).parents[1]

def settings():
    "Requirements of `settings.ini`, by extra; the extra '' is what everybody gets."
    cfg = ConfigParser(delimiters=['='])
    cfg.read(ROOT/'settings.ini', encoding='utf-8')
    return {re.sub('_?requirements$', '', k): set(v.split()) for k,v in cfg['DEFAULT'].items() if k.endswith('requirements')}

def installed():
    "The same of the installed package's metadata."
    res = {}
    for o in map(Requirement, requires('enas_nb')):
        extra = re.search(r'extra == "(\w+)"', str(o.marker or ''))
        res.setdefault(extra[1] if extra else '', set()).add(f'{o.name}{o.specifier}')
    return res

def test_settings_are_the_installed_requirements():
    assert installed() == settings(), 'settings.ini has changed since the installation: run `pip install -e .`'
    assert set(metadata('enas_nb').get_all('Provides-Extra')) == set(settings())-{''}

def test_what_everybody_gets_and_what_is_extra():
    s = {k: {Requirement(o).name for o in v} for k,v in settings().items()}
    assert {'networkx', 'safetensors'} <= s['']
    assert not {'ipywidgets', 'accelerate'} & s['']
    assert 'ipywidgets' in s['widgets'] and 'accelerate' in s['distributed']

def test_version():
    assert str(Version(enas_nb.__version__)) == enas_nb.__version__ == version('enas_nb')

def test_commands_load():
    mine = [o for o in entry_points(group='console_scripts') if o.value.startswith('enas_nb.')]
    assert {o.name for o in mine} >= {'enas-search', 'enas-show'}
    for o in mine: assert callable(o.load())

def quarto(): return yaml.safe_load((ROOT/'nbs/_quarto.yml').read_text(encoding='utf-8'))

def pages(contents):
    "Every page of a sidebar, sections opened."
    for o in contents: yield from pages(o['contents']) if isinstance(o, dict) else [o]

def test_quarto_file_is_the_one_at_the_top():
    assert (ROOT/'nbs/_quarto.yml').is_symlink() and not (ROOT/'_quarto.yml').is_symlink()
    assert (ROOT/'nbs/_quarto.yml').samefile(ROOT/'_quarto.yml')

def test_quarto_names_existing_files():
    q = quarto()
    names = [q['format']['html']['css'], *q['metadata-files'], *pages(q['website']['sidebar']['contents'])]
    missing = [o for o in names if not (ROOT/'nbs'/o).is_file()]
    assert not missing, f'named in _quarto.yml but not in nbs/: {missing}'

def test_sidebar_lists_every_notebook():
    listed = list(pages(quarto()['website']['sidebar']['contents']))
    nbs = {p.relative_to(ROOT/'nbs').as_posix() for p in (ROOT/'nbs').rglob('*.ipynb') if not re.search(r'/[._]', p.as_posix()[len(str(ROOT)):])}
    assert not nbs-set(listed), f'not in the sidebar of _quarto.yml: {sorted(nbs-set(listed))}'
    assert len(listed) == len(set(listed))

BLOCKED = '''
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {names}: raise ModuleNotFoundError(f'{{name}} is blocked', name=name)
sys.meta_path.insert(0, Block())
import enas_nb.all
print('imported', *[o for o in {names} if o in sys.modules])
'''

@pytest.mark.parametrize('names', [['ipywidgets', 'accelerate'], ['ipywidgets', 'accelerate', 'jupyterlab', 'notebook', 'IPython']])
def test_imports_without_extras_and_without_a_display(names):
    env = {k:v for k,v in os.environ.items() if k not in ('DISPLAY', 'WAYLAND_DISPLAY', 'MPLBACKEND')}
    r = subprocess.run([sys.executable, '-W', 'ignore', '-c', BLOCKED.format(names=names)], env=env, capture_output=True, text=True, timeout=300)
    assert r.returncode == 0 and r.stdout.split() == ['imported'], r.stderr[-2000:] or r.stdout
