"A Learner in every respect: what fastai's callbacks and methods do on a search and on a retraining."
import pytest, torch
from fastai.callback.tracker import ReduceLROnPlateau
from fastai.optimizer import Adam, SGD

from enas_nb.data import digits_dls
from enas_nb.macro import MacroSpace
from enas_nb.presets import released
from enas_nb.retrain import arch_learner
from enas_nb.search import search_learner
from enas_nb.train import optimizer

pytestmark = pytest.mark.filterwarnings('ignore')
SMALL = released['macro'].override(controller=dict(steps=2, n_archs=2, baseline='leave-one-out'), search=dict(bs=64, same_valid=False))

def search(**kw):
    torch.manual_seed(0)
    return search_learner(digits_dls(bs=256, device='cpu'), MacroSpace(2), preset=SMALL, width=4, **kw)

def final(**kw):
    torch.manual_seed(0)
    space = MacroSpace(2)
    return arch_learner(digits_dls(bs=256, device='cpu'), space.archs(space.random(1))[0], preset=SMALL, width=4, **kw)

both = pytest.mark.parametrize('make', [search, final], ids=['search', 'final'])

def fit(learn, *args, **kw):
    with learn.no_bar(), learn.no_logging(): learn.fit(*args, **kw)
    return learn

@both
def test_reduce_lr_on_plateau_lowers_the_rate(make, capsys):
    learn = fit(make(), 4, .05, cbs=ReduceLROnPlateau(min_delta=1e9, patience=1, factor=10.))
    assert learn.opt.hypers[-1]['lr']==pytest.approx(5e-5, rel=.01) and learn.opt.opt.param_groups[0]['lr']==pytest.approx(5e-5, rel=.01)
    assert 'reducing lr' in capsys.readouterr().out

@pytest.mark.parametrize('opt', ['nesterov', 'sgd', 'adam'])
def test_what_is_set_in_hypers_is_set_in_torch(opt):
    o = optimizer(released['recurrent'].override(search=dict(opt=opt)).search if opt!='nesterov' else SMALL.search)([torch.nn.Parameter(torch.zeros(2))], lr=.1)
    o.hypers[0]['lr'] = .3
    o.hypers[-1]['mom'] = .5
    group = o.opt.param_groups[0]
    assert (group['lr'], group['betas'][0] if opt=='adam' else group['momentum'])==(.3, .5)

@pytest.mark.parametrize('opt', [Adam, SGD])
def test_a_search_with_an_optimiser_of_fastai_is_saved_and_goes_on(opt, tmp_path):
    learn = fit(search(opt_func=opt), 2, .01)
    learn.save_search(tmp_path/'s')
    fit(learn, 3, .01, start_epoch=2)
    again = search(opt_func=opt); again.load_search(tmp_path/'s')
    fit(again, 3, .01, start_epoch=2)
    assert all(torch.equal(a, b) for a,b in zip(learn.model.parameters(), again.model.parameters()))
