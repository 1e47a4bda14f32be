"A fit that is killed and begun again ends with the same numbers; damaged files are no danger."
import random, shutil
from functools import cache
import numpy as np, pytest, torch
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback
from fastai.callback.training import GradientAccumulation

from enas_nb.checkpoint import Checkpoint, learn_state, read_state, write_state
from enas_nb.data import digits_dls
from enas_nb.macro import MacroSpace
from enas_nb.micro import MicroSpace
from enas_nb.recurrent import RecurrentSpace
from enas_nb.recipes import recipes
from enas_nb.retrain import arch_learner
from enas_nb.search import search_learner
from enas_nb.text import lm_dls

class Stop(Callback):
    "Ends a fit in the middle of an epoch."
    def __init__(self, epoch, batch=3): self.at = epoch, batch
    def after_batch(self):
        if self.training and (self.epoch, self.iter)==self.at: raise KeyboardInterrupt

def equal(a, b):
    "Are two trees equal, bit by bit?"
    if isinstance(a, torch.Tensor): return torch.equal(a, b) or bool((a.isnan()&b.isnan()).all())
    if isinstance(a, dict): return a.keys()==b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)) or type(a).__name__=='L': return len(a)==len(b) and all(map(equal, a, b))
    return a==b or (a!=a and b!=b)

def end(learn):
    "The state of a Learner, without times."
    state = learn_state(learn)
    for _,o in state['cbs']:
        for k in ('theta_seconds', 'start_epoch', 'log'): o.get('own', {}).pop(k, None)
    return state

def images(kind):
    dls, space = digits_dls(bs=64), MacroSpace(3) if kind=='macro' else MicroSpace(2)
    p = recipes[f'digits-{kind}'].preset.override(controller=dict(steps=2, warmup=1), search=dict(width=4), final=dict(width=4))
    sizes = dict(n_layers=3) if kind=='macro' else dict(n_layers=1)
    return dls, space, p, sizes

def text():
    vocab = ['<eos>', '<unk>', *(f'w{i}' for i in range(58))]
    g = torch.Generator().manual_seed(0)
    words = lambda n: [vocab[i] for i in torch.randint(60, (n,), generator=g).tolist()]
    dls = lm_dls(words(4000), words(1000), words(1000), vocab, bs=8, seq_len=20, device='cpu')
    p = recipes['text-small'].preset.override(controller=dict(steps=2, warmup=1, n_archs=2), search=dict(width=6, hidden_p=.1), final=dict(width=6))
    return dls, RecurrentSpace(3), p, {}

def make(kind, cbs=()):
    torch.manual_seed(0); random.seed(0); np.random.seed(0)
    dls, space, p, sizes = text() if 'text' in kind else images(kind.split('-')[0])
    if kind.endswith('final'): return arch_learner(dls, space.archs(space.random(1))[0], preset=p, cbs=cbs, **sizes)
    return search_learner(dls, space, preset=p, cbs=cbs, **sizes)

def fit(learn, n=4, **kwargs):
    with learn.no_bar(), learn.no_logging(): learn.fit_preset(epochs=n, **kwargs)
    learn.end = end(learn) # now: random states go on
    return learn

@cache
def whole(kind):
    "How a fit ends that nobody stopped: its state, and the scores of a search."
    learn = fit(make(kind))
    return learn.end, None if kind.endswith('final') else learn.derive(4).scores

@pytest.fixture(scope='module')
def killed(tmp_path_factory):
    "The two files of a fit that was killed in its last epoch."
    path = tmp_path_factory.mktemp('killed')
    with pytest.raises(KeyboardInterrupt): fit(make('macro-final'), cbs=[Checkpoint(path), Stop(3)])
    return path

@pytest.mark.parametrize('epoch,batch', [(0, 3), (2, 0), (3, 3)])
@pytest.mark.parametrize('kind', ['macro', 'micro', 'text', 'macro-final', 'micro-final', 'text-final'])
def test_a_fit_that_was_killed_ends_alike(kind, epoch, batch, tmp_path):
    with pytest.raises(KeyboardInterrupt): fit(make(kind), cbs=[Checkpoint(tmp_path/'night'), Stop(epoch, batch)])
    torch.manual_seed(9); random.seed(9); np.random.seed(9)
    again = fit(make(kind), cbs=Checkpoint(tmp_path/'night', log=lambda o: None))
    state, scores = whole(kind)
    assert equal(state, again.end)
    if scores: assert scores==again.derive(4).scores

def test_a_checkpoint_changes_nothing(tmp_path):
    assert equal(fit(make('macro'), cbs=Checkpoint(tmp_path/'a')).end, whole('macro')[0])

@pytest.mark.parametrize('make_cbs', [
    lambda d: SaveModelCallback('accuracy', fname='best'), lambda d: EarlyStoppingCallback('valid_loss', patience=2),
    lambda d: ReduceLROnPlateau('valid_loss', patience=1), lambda d: GradientAccumulation(64)],
    ids=['SaveModel', 'EarlyStopping', 'ReduceLR', 'GradientAccumulation'])
def test_callbacks_of_fastai_go_on(make_cbs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = fit(make('macro-final', cbs=make_cbs(tmp_path)))
    with pytest.raises(KeyboardInterrupt): fit(make('macro-final', cbs=make_cbs(tmp_path)), cbs=[Checkpoint('night'), Stop(2)])
    again = fit(make('macro-final', cbs=make_cbs(tmp_path)), cbs=Checkpoint('night', log=lambda o: None))
    assert equal(whole.end, again.end)

def test_averaged_weights_go_on(tmp_path):
    "NTASGD has begun to average before the kill."
    from enas_nb.steady import NTASGD
    def learner():
        learn = make('text-final')
        learn.add_cb(NTASGD(1))
        return learn
    rate = dict(lr=.01) # random words: there is nothing to learn, so averaging begins early
    def fit(learn, **kwargs):
        with learn.no_bar(), learn.no_logging(): learn.fit(6, **rate, **kwargs)
        learn.end = end(learn)
        return learn
    whole = fit(learner())
    assert whole.ntasgd.started is not None and whole.ntasgd.started < 4
    with pytest.raises(KeyboardInterrupt): fit(learner(), cbs=[Checkpoint(tmp_path), Stop(5)])
    assert equal(whole.end, fit(learner(), cbs=Checkpoint(tmp_path, log=lambda o: None)).end)

def test_the_older_file_serves(tmp_path, killed):
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    lines = []
    older, newer = sorted(tmp_path.iterdir())
    newer.write_bytes(newer.read_bytes()[:-100])
    again = fit(make('macro-final'), cbs=Checkpoint(tmp_path, log=lines.append))
    assert equal(whole('macro-final')[0], again.end) and 'the one before is used' in lines[0] and older.name in lines[1]

def test_foreign_files_do_not_begin_anew(tmp_path):
    with pytest.raises(KeyboardInterrupt): fit(make('macro'), cbs=[Checkpoint(tmp_path), Stop(2)])
    for o in tmp_path.iterdir(): read_state(o)
    with pytest.raises(ValueError, match='another space or size.*') as e: fit(make('micro'), cbs=Checkpoint(tmp_path))
    assert '\n' not in str(e.value)
    with pytest.raises(ValueError, match='of a fit of 4 epochs, this one has 3'): fit(make('macro'), 3, cbs=Checkpoint(tmp_path))
    learn = make('macro')
    with pytest.raises(ValueError): fit(learn, 3, cbs=Checkpoint(tmp_path))
    fit(learn, 1) # and the Learner is as before

def test_lr_find_and_validate_leave_no_files(tmp_path):
    learn = make('macro-final', cbs=Checkpoint(tmp_path/'none'))
    with learn.no_bar(), learn.no_logging(): learn.lr_find(show_plot=False, num_it=10); learn.validate()
    assert not (tmp_path/'none').exists()

def test_two_fits_in_one_folder(tmp_path):
    "`fine_tune` is two fits: each has files of its own."
    def tune(*cbs):
        learn = make('macro-final')
        with learn.no_bar(), learn.no_logging(): learn.fit(2, .01, cbs=cbs); learn.fit(2, .005, cbs=cbs)
        return learn
    whole = end(tune())
    point = Checkpoint(tmp_path)
    learn = make('macro-final')
    with learn.no_bar(), learn.no_logging():
        learn.fit(2, .01, cbs=point)
        with pytest.raises(KeyboardInterrupt): learn.fit(2, .005, cbs=[point, Stop(1)])
    assert equal(whole, end(tune(Checkpoint(tmp_path, log=lambda o: None))))

def test_a_full_disk_is_known_at_once(tmp_path, monkeypatch):
    import enas_nb.checkpoint as room
    def full(*args): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(room, 'write_file', full)
    learn, seen = make('macro-final'), []
    class Seen(Callback):
        def before_batch(self): seen.append(1)
    with pytest.raises(OSError, match='No space'): fit(learn, cbs=[Checkpoint(tmp_path), Seen()])
    assert not seen

def resumed(cbs, again, n=4, **kwargs):
    "A fit that was killed in its third epoch and gone on with: the Learner."
    with pytest.raises(KeyboardInterrupt): fit(make('macro-final'), n, cbs=[*cbs(), Checkpoint('night'), Stop(2)])
    return fit(make('macro-final'), n, cbs=[*again(), Checkpoint('night', log=lambda o: None)])

def test_a_progress_bar_may_be_shown(tmp_path, capsys):
    learn = make('macro-final')
    with pytest.raises(KeyboardInterrupt): learn.fit(3, .01, cbs=[Checkpoint(tmp_path), Stop(1)])
    learn = make('macro-final')
    learn.fit(3, .01, cbs=Checkpoint(tmp_path))
    assert len(learn.recorder.values)==3

def test_two_callbacks_of_a_kind_keep_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    two = lambda: [SaveModelCallback('accuracy', fname='a'), SaveModelCallback('valid_loss', fname='b')]
    first, again = two(), two()
    fit(make('macro-final'), cbs=first)
    resumed(two, lambda: again)
    assert [(o.fname, float(o.best)) for o in again]==[(o.fname, float(o.best)) for o in first]

def test_what_a_callback_is_made_with_is_not_from_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    new = EarlyStoppingCallback('valid_loss', patience=7)
    resumed(lambda: [EarlyStoppingCallback('valid_loss', patience=3)], lambda: [new])
    assert new.patience==7

def test_another_rate_is_refused(tmp_path):
    def flat(lr, *cbs):
        learn = make('macro-final')
        with learn.no_bar(), learn.no_logging(): learn.fit(3, lr, cbs=[Checkpoint(tmp_path, log=lambda o: None), *cbs])
    with pytest.raises(KeyboardInterrupt): flat(.01, Stop(2))
    with pytest.raises(ValueError, match="began with .*0.01.*this one with .*0.5"): flat(.5)
    flat(.01)

class Cancel(Callback):
    "Ends a fit as trackers do."
    order = 60
    def after_epoch(self):
        if self.epoch==1: raise CancelFitException

def test_a_fit_that_was_ended_is_done(tmp_path):
    "The next fit with the same Checkpoint is a new one, and the same line has nothing to do."
    def two(point):
        learn = make('macro-final')
        with learn.no_bar(), learn.no_logging(): learn.fit(4, .01, cbs=[point, Cancel()]); learn.fit(3, .02, cbs=point)
        return learn
    whole = two(Checkpoint(tmp_path/'a', log=lambda o: None))
    assert len(whole.recorder.values)==3 and [o.name for o in sorted((tmp_path/'a').iterdir())][-1]=='01-00003.safetensors'
    again = two(Checkpoint(tmp_path/'a', log=lambda o: None))
    assert equal(whole.model.state_dict(), again.model.state_dict())

def test_two_checkpoints_are_refused(tmp_path):
    with pytest.raises(ValueError, match='two Checkpoints'): fit(make('macro-final', cbs=Checkpoint(tmp_path/'a')), cbs=Checkpoint(tmp_path/'b'))

wrong = dict(
    opt_empty=lambda s: s.update(opt={}), opt_list=lambda s: s.update(opt=[1]), cbs_none=lambda s: s.update(cbs=None), fit_empty=lambda s: s.update(fit={}),
    epoch_text=lambda s: s['fit'].update(epoch='2'), epoch_99=lambda s: s['fit'].update(epoch=99), epoch_half=lambda s: s['fit'].update(epoch=1.5),
    no_own=lambda s: s['cbs'].insert(0, ['recorder', dict(parts={})]), random=lambda s: s.update(random={}), rng=lambda s: s['random'].update(torch=s['random']['torch'][:9]),
    model_none=lambda s: s.update(model=None), loaders=lambda s: s.update(loaders=['x', 'y']), grads=lambda s: s.update(grads={next(iter(s['model'])): torch.zeros(3)}),
    dtype=lambda s: s['model'].update({k: v.int() for k,v in s['model'].items()}),
    moments=lambda s: [o.update({k: torch.zeros(3) for k,v in o.items() if torch.is_tensor(v)}) for o in s['opt']['state'].values()])

@pytest.mark.parametrize('name', wrong)
def test_a_damaged_state_takes_no_effect(name, tmp_path, killed):
    "The older file serves; where there is none, one line, and the Learner is as before."
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    older, newer = sorted(tmp_path.iterdir())
    state = read_state(newer)
    wrong[name](state)
    write_state(newer, state)
    assert equal(whole('macro-final')[0], fit(make('macro-final'), cbs=Checkpoint(tmp_path, log=lambda o: None)).end)
    for o in tmp_path.iterdir(): o.unlink()
    write_state(tmp_path/newer.name, state)
    learn = make('macro-final')
    before = {k: v.clone() for k,v in learn.model.state_dict().items()}
    with pytest.raises(ValueError, match='no checkpoint in') as e: fit(learn, cbs=Checkpoint(tmp_path))
    assert '\n' not in str(e.value) and equal(before, dict(learn.model.state_dict()))

@pytest.mark.parametrize('arch', [False, 0, '', [], {}, 'x', [0]])
def test_a_path_that_is_none_loads_nothing(arch, tmp_path):
    "What is no architecture is refused before weights are loaded, also what counts as false."
    learn, other, file = fit(make('macro'), 1), make('macro'), tmp_path/'a.safetensors'
    learn.save_search(file)
    write_state(file, read_state(file) | dict(arch=arch))
    before = {k: v.clone() for k,v in other.model.state_dict().items()}
    with pytest.raises(ValueError, match='is not a saved search'): other.load_search(file)
    assert equal(before, dict(other.model.state_dict())) and other.model.arch is None

def test_no_method_and_no_path_comes_from_a_file(tmp_path, monkeypatch):
    (tmp_path/'here').mkdir(); monkeypatch.chdir(tmp_path/'here') # fastai's callback saves where the process is
    tmp_path = tmp_path/'kept'
    with pytest.raises(KeyboardInterrupt): fit(make('macro-final', cbs=SaveModelCallback(fname='mine')), cbs=[Checkpoint(tmp_path), Stop(2)])
    newer = sorted(tmp_path.iterdir())[-1]
    state = read_state(newer)
    for name,o in state['cbs']:
        if name=='save_model': o['own'].update(fname='../../evil', before_batch=3, learn='x')
    write_state(newer, state)
    learn = make('macro-final', cbs=SaveModelCallback(fname='mine'))
    learn.path = tmp_path
    fit(learn, cbs=Checkpoint(tmp_path, log=lambda o: None))
    assert learn.save_model.fname=='mine' and 'before_batch' not in vars(learn.save_model) and learn.save_model.learn is learn

def test_a_folder_that_must_be_there_is_not_made(tmp_path):
    with pytest.raises(FileNotFoundError, match='the folder of checkpoints .*f is gone'): fit(make('macro-search'), cbs=Checkpoint(tmp_path/'f', parents=False))
    assert not list(tmp_path.iterdir())

@pytest.mark.parametrize('when', ['before', 'while the state is collected'])
def test_a_folder_that_vanishes_ends_the_fit_at_its_next_epoch(tmp_path, monkeypatch, when):
    "It is not made again, so that hours of epochs go nowhere."
    import enas_nb.checkpoint as room
    learn, f = make('macro-search'), tmp_path/'f'
    class Gone(Callback):
        def after_epoch(self):
            if self.epoch==1 and when=='before': f.rename(tmp_path/'elsewhere')
    def collect(learn):
        state = learn_state(learn)
        if learn.epoch==1 and when!='before': f.rename(tmp_path/'elsewhere')
        return state
    monkeypatch.setattr(room, 'learn_state', collect)
    with pytest.raises(FileNotFoundError, match='the folder of checkpoints .*f is gone'): fit(learn, cbs=[Checkpoint(f), Gone()])
    assert learn.epoch==1 and not f.exists() and list((tmp_path/'elsewhere').glob('*.safetensors'))
