"`README.md` is `nbs/index.ipynb`, made by `make readme`, and its links lead somewhere."
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

def test_readme_is_the_index_notebook():
    nbconvert = pytest.importorskip('nbconvert')
    exporter = nbconvert.MarkdownExporter()
    exporter.register_preprocessor(nbconvert.preprocessors.RegexRemovePreprocessor(patterns=[r'^#\|\s*hide']), enabled=True)
    md,_ = exporter.from_filename(str(ROOT/'nbs/index.ipynb'))
    want = re.sub(r'\]\(([a-z0-9_/-]+\.(ipynb|svg))', r'](nbs/\1', md)
    assert (ROOT/'README.md').read_text(encoding='utf-8').strip() == want.strip(), 'README.md is out of date: run `make readme`'

def test_readme_links_lead_somewhere():
    readme = (ROOT/'README.md').read_text(encoding='utf-8')
    links  = [o for o in re.findall(r'\]\(([^)#]+)', readme) if not o.startswith('http')]
    assert len(links) > 10
    missing = sorted({o for o in links if not (ROOT/o).is_file()})
    assert not missing, f'linked in README.md but not there: {missing}'

def test_readme_is_finished():
    assert 'TODO' not in (ROOT/'README.md').read_text(encoding='utf-8')
