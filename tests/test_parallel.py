"Two processes search, retrain and go on together (torch's gloo, on the CPU): `two_ranks.py` computes, these tests read."
import json, os, subprocess, sys
from pathlib import Path
import pytest

pytest.importorskip('accelerate')
HERE = Path(__file__).parent

@pytest.fixture(scope='module')
def said(tmp_path_factory):
    folder = tmp_path_factory.mktemp('ranks')
    run = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', str(HERE/'two_ranks.py'), str(folder)],
                         cwd=HERE, env=os.environ | dict(OMP_NUM_THREADS='1'), capture_output=True, text=True, timeout=900)
    assert (folder/'answers.json').exists(), run.stderr[-3000:]
    return json.loads((folder/'answers.json').read_text())

@pytest.mark.parametrize('name', ['macro', 'micro', 'recurrent'])
def test_a_search_is_the_same_on_both_ranks(said, name):
    o = said[name]
    assert o['omega'] and all(o['omega']) and len(o['theta'])==6 and all(o['theta']) and o['moved']
    assert o['paths']>.9                          # each rank walks paths of its own
    assert o['rows'][0]==o['rows'][1] and o['arch'][0]==o['arch'][1] and o['wrapped']=='Supernet'

def test_the_gradient_is_the_mean_of_both_ranks(said):
    "`two_ranks.py` compares each weight's: of two ranks, of one (half of it), of none (it has none)."
    assert all(n>5 for n in said['gradients'].values()) and len(said['gradients'])==3

def test_two_ranks_are_one_process_with_the_joint_batch(said):
    o = said['joint_batch']
    assert o['norms']==0 and o['omega']<1e-4*o['size'] and o['theta']<1e-5
    for both,one in zip(*o['rows']): assert both[0]==pytest.approx(one[0], rel=1e-5) and both[3:]==pytest.approx(one[3:], rel=1e-4) # validation reads other rows

def test_a_retraining_reads_everything_once_an_epoch_in_a_new_order(said):
    o = said['retrain']
    again = o['n']-o['unlike']                    # digits that are in the data twice
    assert o['read']==[[o['n']//2]*2]*2 and all(o['all']) and o['twice']==[again]*2 and o['reshuffled'] and o['after']==[0, 1, o['n']//50]

def test_metrics_and_predictions_are_gathered(said):
    o = said['retrain']
    assert o['rows'][0]==o['rows'][1] and o['rows'][0][2]==pytest.approx(o['whole'][1], abs=1.01/o['preds'][1]) # the last image is read twice
    assert o['gap']<1e-5 and o['preds'][0]==o['preds'][1] and o['targs']

@pytest.mark.parametrize('name', ['macro', 'recurrent', 'retraining'])
def test_a_killed_fit_goes_on_to_the_same_bits(said, name): assert said['resumed'][name]==[True, True]

def test_a_learner_is_as_before_also_after_an_error(said):
    o = said['tidy']
    assert o['error']=='Diverged' and o['left']==[['Supernet', [[0, 1]]*2, True]]*2 and o['alone']

def test_fastais_own_loaders_are_wrapped_by_fastai_each_time():
    "`fit`, then `validate`: both prepare fastai's trainer."
    from types import SimpleNamespace
    from enas_nb.parallel import Ranks
    class Trainer:
        sync_bn, accelerator = False, SimpleNamespace(device=SimpleNamespace(type='cuda'), ddp_handler=1)
        def _wrap_dl(self, dl): return 'by fastai'
    cb, trainer = Ranks(), Trainer()
    cb.learn = SimpleNamespace(distributed_trainer=trainer, model=None, dls=SimpleNamespace(to=lambda device: None))
    for _ in range(2):
        cb.before_fit()
        assert trainer._wrap_dl(SimpleNamespace(device=trainer.accelerator.device))=='by fastai'

@pytest.mark.parametrize('name,words', [('sync_bn', '`distrib_ctx(sync_bn=False)` is needed: each process walks another path'), ('sync_bn of a retraining', 'SyncBatchNorm needs a GPU'),
    ('torch loaders', '`memory_dls(dls)` keeps them there'), ('few images', 'the data are less than a batch of 900 for each of 2 processes'), ('lr_find', 'call it before `distrib_ctx`'), ('folders', 'is not the same folder for all processes')])
def test_refused_in_one_line(said, name, words): assert said['refusals'][name].endswith(words)
