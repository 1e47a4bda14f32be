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

def test_readme_says_what_the_tables_say():
    "Its numbers about quality are those of the committed comparisons."
    pd, readme = pytest.importorskip('pandas'), (ROOT/'README.md').read_text(encoding='utf-8')
    from enas_nb.comparison import Comparison, within
    def table(name): return Comparison(pd.read_csv(ROOT/f'nbs/tutorials/results/compare-{name}/table.csv'))
    digits, text = table('digits-macro'), table('text-small')
    assert {digits.table.seed.nunique(), text.table.seed.nunique()}=={5} and 'Over 5 seeds' in readme
    a, b = digits.difference('children', 'equal'), text.difference('children', 'random')
    assert f'by {a.mean:.2f} points on digits ({a.low:.2f} to {a.high:.2f})' in readme
    assert f'by {b.mean:.3f} nats a word on text ({b.low:.3f} to {b.high:.3f};' in readme
    cells, ptb = table('cifar10-micro-small'), table('ptb-small')
    c, d = cells.difference('children', 'equal'), ptb.difference('children', 'random')
    assert cells.table.seed.nunique()==5 and f'by {c.mean:.2f} points on CIFAR-10 with micro cells ({c.low:.2f} to {c.high:.2f})' in readme
    assert ptb.table.seed.nunique()==3 and within(d, 3, ' nats') in readme and within(cells.difference('derived', 'search'), 2, ' points') in readme
    macro = table('cifar10-macro-small')
    for arms in (('children', 'random'), ('children', 'equal'), ('derived', 'search')): assert within(macro.difference(*arms), 2, ' points') in readme, arms
    assert f'macro networks ({macro.table.seed.nunique()}' in readme
    for o in (within(digits.difference('derived', 'search'), 2, ' points'), within(text.difference('derived', 'search'), 3, ' nats')):
        assert o in readme, o
