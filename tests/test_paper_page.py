"The page that sets paper and code side by side: its links name the cells that hold the code that they quote."
import json, re
from pathlib import Path

NBS  = Path(__file__).parents[1]/'nbs'
PAGE = NBS/'tutorials'/'paper_and_code.ipynb'

def cells(path): return json.loads(path.read_text(encoding='utf-8'))['cells']

def links():
    "(notebook, anchor, cell, code) of every link in the committed outputs."
    outs = [o['data']['text/markdown'] for c in cells(PAGE) for o in c.get('outputs', ()) if 'text/markdown' in o.get('data', {})]
    text = '\n'.join(''.join(o) for o in outs)
    return [(nb, a, int(i), code) for nb,a,i,code in re.findall(r'\]\(\.\./([\w/]+)\.ipynb#([^)]*)\), cell (\d+): `([^`]+)`', text)]

def test_links_are_current():
    found = links()
    assert len(found) > 100
    stale = [o for o in found if o[3] not in ''.join(cells(NBS/f'{o[0]}.ipynb')[o[2]]['source'])]
    assert not stale, f'run the page again: {sorted(set(stale))}'

def test_every_number_seen_at_second_hand_is_marked():
    from enas_nb.presets import paper, preset_table, status
    want = sum(status(row[1])=='second hand' for o in paper for row in preset_table(o).values)
    text = ''.join(''.join(o['data'].get('text/markdown', '')) for c in cells(PAGE) for o in c.get('outputs', ()) if 'data' in o)
    rows = [l for l in text.splitlines() if re.match(r'\| (controller|search|final) \|', l)]
    assert len(rows) == sum(map(len, map(preset_table, paper)))
    assert sum('**second hand**' in l for l in rows) == want
