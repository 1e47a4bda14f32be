"A run's folder appears when all of it is there, and holds what a run returned."
import json
from pathlib import Path

import pandas as pd, pytest

from enas_nb.run import new_folder, write_run
from enas_nb.space import load_arch

RESULTS = Path(__file__).parents[1]/'nbs/tutorials/results'

@pytest.mark.parametrize('name', ['digits-macro-seed0', 'digits-micro-seed0', 'text-small'])
def test_a_committed_run_is_written_again(tmp_path, name):
    old = RESULTS/name
    result, history = json.loads((old/'result.json').read_text()), pd.read_csv(old/'history.csv', index_col=0)
    with new_folder(tmp_path/'runs'/'one') as out: write_run(out, result, history, load_arch(old/'arch.json'))
    new = tmp_path/'runs'/'one'
    assert {'arch.json', 'arch.svg', 'history.csv', 'curves.png', 'retrained.png', 'result.json', 'report.md'}=={o.name for o in new.iterdir()}
    for o in ('arch.json', 'report.md', 'result.json'): assert (new/o).read_text()==(old/o).read_text()
    assert new.stat().st_mode & 0o777==0o755 and [o.name for o in (tmp_path/'runs').iterdir()]==['one']

def test_a_folder_with_something_in_it_is_refused(tmp_path):
    (tmp_path/'a').mkdir(); (tmp_path/'a'/'b').touch()
    for path in (tmp_path/'a', tmp_path/'a'/'b'):
        with pytest.raises(ValueError, match='exists already'):
            with new_folder(path): pass
    (tmp_path/'empty').mkdir()
    with new_folder(tmp_path/'empty') as out: (out/'c').touch()
    assert [o.name for o in (tmp_path/'empty').iterdir()]==['c']

@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt])
def test_a_run_that_fails_leaves_nothing(tmp_path, error):
    with pytest.raises(error):
        with new_folder(tmp_path/'x'/'y') as out:
            (out/'half').touch()
            raise error
    assert not list(tmp_path.iterdir())
