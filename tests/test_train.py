"What the chapter on training does not show: refusals, momentum after a skipped batch, averages that are not needed, saving an average."
import tempfile
from functools import partial

import pytest, torch
from fastai.callback.core import Callback
from fastai.callback.rnn import rnn_cbs
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.test_utils import synth_learner
from fastai.text.data import LMDataLoader
from fastai.text.models.awdlstm import AWD_LSTM
from fastai.text.models.core import get_language_model
from torch import nn

from enas_nb.presets import enas_lm, released
from enas_nb.steady import NTASGD, FiniteClip
from enas_nb.train import nesterov, optimizer

def quiet(learn, *args):
    with learn.no_bar(), learn.no_logging(): learn.fit(*args)
    return learn

def test_schedules_refuse():
    learn = synth_learner()
    with pytest.raises(ValueError, match='n_cycles is 0'): learn.fit_restarts(0, 1)
    with pytest.raises(ValueError, match='lr_min is 0.2'): learn.fit_restarts(1, 1, lr_max=.1, lr_min=.2)
    with pytest.raises(ValueError, match='max_norm is 0'): FiniteClip(0)
    with pytest.raises(ValueError, match='n is 0'): NTASGD(0)

class Steps(Callback):
    "Keeps the weights after each training batch."
    def before_fit(self): self.learn.path_w = []
    def after_batch(self):
        if self.training: self.path_w.append(torch.cat([p.detach().flatten().clone() for p in self.model.parameters()]))

def skipping(opt_func):
    "Two epochs on four batches of 16, in order; a target of the second batch is not a number."
    torch.manual_seed(0)
    x = torch.randn(64, 3); y = x.sum(1, keepdim=True)
    good = [*zip(x, y.clone())]; y[20] = float('nan')
    dls = DataLoaders(*[DataLoader(o, bs=16, num_workers=0) for o in ([*zip(x, y)], good)], device='cpu')
    return quiet(Learner(dls, nn.Linear(3, 1), nn.MSELoss(), opt_func=opt_func, cbs=[FiniteClip(.5), Steps()]), 2, .1).path_w

def test_a_skipped_batch_changes_nothing_under_plain_sgd_and_rolls_on_under_momentum():
    plain, rolls = map(skipping, (optimizer(released['recurrent'].search), nesterov))
    assert torch.equal(plain[1], plain[0])
    assert (rolls[1]-rolls[0]).abs().max() > .01
    assert (plain[2]-plain[1]).abs().max() > .01 # and on it goes

class Point(nn.Module):
    "A point in ten dimensions."
    def __init__(self): super().__init__(); self.w = nn.Parameter(torch.full((10,), 3.))
    def forward(self, x): return self.w.expand_as(x)

def test_nothing_is_averaged_while_validation_improves():
    data = [(torch.zeros(10), torch.zeros(10))]*80
    dls  = DataLoaders(*[DataLoader(data, bs=4, num_workers=0) for _ in range(2)], device='cpu')
    loss = lambda p, y: (p-y).pow(2).sum(1).mean()/2
    learn = quiet(Learner(dls, Point(), loss, cbs=[NTASGD(1), Steps()], opt_func=optimizer(enas_lm['recurrent'].final)), 8, .01)
    losses = [o[1] for o in learn.recorder.values]
    assert losses == sorted(losses, reverse=True) and learn.ntasgd.started is None
    assert torch.equal(learn.model.w, learn.path_w[-1])

def text(n, seed):
    "`n` words: each is the one before plus 1 (mod 10), or now and then any."
    g = torch.Generator().manual_seed(seed)
    return (torch.arange(n) + (torch.rand(n, generator=g)<.1).cumsum(0)*3) % 10

def tiny_lm(cbs, **kwargs):
    "A Learner of a language model: 8 rows, windows of 7 words."
    torch.manual_seed(0)
    config = dict(emb_sz=8, n_hid=8, n_layers=1, pad_token=9, bidir=False, output_p=.1, hidden_p=.1, input_p=.1, embed_p=.1,
                  weight_p=.1, tie_weights=True, out_bias=True)
    dls = DataLoaders(*(LMDataLoader([text(m, i)], bs=8, seq_len=7, shuffle=False) for i,m in enumerate((900, 300))), device='cpu')
    return Learner(dls, get_language_model(AWD_LSTM, 10, config), loss_func=CrossEntropyLossFlat(), cbs=cbs,
                   opt_func=optimizer(released['recurrent'].search), **kwargs)

def test_the_average_of_a_language_model_is_kept_and_saved():
    "With the rate of 20 and the clip of 0.25 of `enas_lm`; embedding and decoder are one parameter, and stay one."
    learn = quiet(tiny_lm([*rnn_cbs(), FiniteClip(.25), NTASGD(1)]), 8, 20.)
    assert learn.ntasgd.started is not None and learn.model[0].encoder.weight is learn.model[1].decoder.weight
    last = learn.recorder.values[-1][1]
    def loss(o):
        with o.no_bar(): return o.validate()[0]
    assert loss(learn) == pytest.approx(last, abs=1e-5) and learn.ntasgd.started is not None # still known
    with tempfile.TemporaryDirectory() as d:
        learn.path = type(learn.path)(d)
        learn.save('averaged', with_opt=False)
        new = tiny_lm(rnn_cbs(), path=learn.path).load('averaged', with_opt=False)
    assert loss(new) == pytest.approx(last, abs=1e-5)
    quiet(learn, 2, .1)
    assert len(learn.ntasgd.valid_losses) == 2 and learn.ntasgd.average is None
