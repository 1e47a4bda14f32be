"The code that a user writes, as the design shows it, on 500 images of CIFAR-10."
import configparser, os
from pathlib import Path

import matplotlib; matplotlib.use('Agg')
import pytest

def cifar10():
    "Is CIFAR-10 where `untar_data` looks? Nothing is downloaded here, nor is fastai's `config.ini` written."
    home, cfg = Path(os.getenv('FASTAI_HOME', '~/.fastai')).expanduser(), configparser.ConfigParser()
    cfg.read(home/'config.ini')
    return home/Path(cfg.get('DEFAULT', 'data', fallback='data')).expanduser()/'cifar10'

pytestmark = pytest.mark.skipif(not (cifar10()/'train').is_dir(), reason=f'CIFAR-10 is not in {cifar10()}')

def user_namespace():
    "What both star imports bring, in the user's order."
    d = {}
    exec('from fastai.vision.all import *\nfrom enas_nb.all import *', d)
    return d

def run(code, **names):
    d = user_namespace() | names
    exec(code, d)
    return d

def checked(d, length):
    arch, learn, final = d['arch'], d['learn'], d['final']
    assert len(arch.code)==length and '<svg' in arch._repr_svg_() and len(arch.scores)<=10
    assert type(learn).__name__ == type(final).__name__ == 'Learner'
    for l,names in ((learn, ['accuracy','reward','entropy','baseline','alarms']), (final, ['accuracy'])):
        assert len(l.recorder.values)==1 and list(l.recorder.metric_names[1:-1])==['train_loss','valid_loss',*names]
        assert all(v==v for v in l.recorder.values[0]) and 0<=l.recorder.values[0][2]<=1
    return final

def test_macro():
    d = run('''
dls   = cifar10_dls(bs=100, n_train=500, n_valid=200)
few   = released['macro'].override(controller=dict(steps=1, n_archs=5), search=dict(bs=100))
learn = search_learner(dls, MacroSpace(6), preset=few, width=8, metrics=accuracy)
learn.fit_restarts(1, 1, lr_max=.05, lr_min=5e-4)
arch  = learn.derive(n=10)
final = arch_learner(dls, arch, width=8, cutout=16, metrics=accuracy)
final.fit_restarts(1, 1, lr_max=.05, lr_min=1e-4)''')
    final = checked(d, 21)
    assert any(type(o).__name__=='CutOut' and o.size==16 for o in final.dls.train.after_batch.fs)
    assert not any(type(o).__name__=='CutOut' for o in d['dls'].train.after_batch.fs) # the search's data are left alone

def test_micro():
    pytest.importorskip('enas_nb.micro')
    d = run('''
dls   = cifar10_dls(bs=100, n_train=500, n_valid=200)
few   = released['micro'].override(controller=dict(steps=1, n_archs=3), search=dict(bs=50))
learn = search_learner(dls, MicroSpace(), preset=few, n_layers=2, width=4, metrics=accuracy)
learn.fit_restarts(1, 1, lr_max=.05, lr_min=5e-4)
arch  = learn.derive(n=4)
final = arch_learner(dls, arch, n_layers=2, width=4, drop_path=.4, cutout=16, metrics=accuracy)
final.fit_restarts(1, 1, lr_max=.05, lr_min=1e-4)''')
    final = checked(d, 40)
    assert final.model.drop_path==.4 and final.model.n_layers==2

def test_the_designs_lines_fit_their_signatures():
    "The very arguments of the design, networks built but not trained."
    pytest.importorskip('enas_nb.micro')
    d = run('''
dls   = cifar10_dls(bs=160, n_train=500, n_valid=200)
learn = search_learner(dls, MicroSpace(), n_layers=6, width=20, metrics=accuracy)
arch  = learn.model.sample()
final = arch_learner(dls, arch, n_layers=18, width=36, drop_path=.4, cutout=16, metrics=accuracy)''')
    assert d['learn'].model.net.n_layers==6 and d['final'].model.n_layers==18
