"Plumbing of `enas_nb.memory` and `enas_nb.data`: what their notebooks do not show"
import hashlib,os,random,subprocess,sys,time
from contextlib import contextmanager
import numpy as np, pytest, torch
from fastai.data.core import DataLoaders
from fastai.vision.all import (ImageDataLoaders,Learner,Normalize,RandomResizedCrop,Resize,TensorCategory,TensorImage,
                               aug_transforms,accuracy,get_random_states,imagenet_stats,load_learner,nn)
from fastcore.basics import ifnone
from hypothesis import given,settings,strategies as st
from PIL import Image
from torch.nn import functional as F
from enas_nb import data
from enas_nb.data import *
from enas_nb.memory import *
from enas_nb.randomness import *
from enas_nb.task import ImageTask

cifar_there = (data.fastai_path('data')/'cifar10').is_dir()
needs_cifar = pytest.mark.skipif(not cifar_there, reason='no CIFAR-10 in the data folder of fastai')
try: data._fashion_files(); fashion_there = True
except FileNotFoundError: fashion_there = False
needs_fashion = pytest.mark.skipif(not fashion_there, reason='no Fashion-MNIST on this machine')

def noise(n, c=3, h=8, seed=0): return torch.randint(256, (n,c,h,h), generator=rng(seed, 'noise')).to(torch.uint8)
def toy(n=50, m=21, c=3, h=8, k=3, **kwargs):
    return images_dls((noise(n,c,h), torch.arange(n)%k), (noise(m,c,h,1), torch.arange(m)%k), [f'c{i}' for i in range(k)],
                      device='cpu', **{'bs':16, **kwargs})
def flat(dl): return torch.cat([x for x,_ in dl])
def keys(x): return [hashlib.sha256(o.contiguous().numpy().tobytes()).digest() for o in x]
def net(c=3, k=3): return nn.Sequential(nn.Conv2d(c,8,3,padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8,k))
def quiet(learn): learn.remove_cb(learn.progress) if hasattr(learn, 'progress') else None; learn.logger = lambda *a: None; return learn

@contextmanager
def untouched():
    "The global random streams end where they began"
    a = get_random_states(); yield; b = get_random_states()
    assert torch.equal(a['torch_state'], b['torch_state'])
    assert a['random_state']==b['random_state']
    assert (a['numpy_state'][1]==b['numpy_state'][1]).all() and a['numpy_state'][2]==b['numpy_state'][2]

@pytest.fixture
def still():
    with untouched(): yield

@pytest.fixture
def folder(tmp_path):
    "24 + 12 png images of two classes"
    for i in range(36):
        f = tmp_path/('valid' if i%3==0 else 'train')/'ab'[i%2]/f'{i:02}.png'
        f.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(1, 3, 16, i)[0].permute(1,2,0).numpy()).save(f)
    return tmp_path

# ---- random numbers
def test_rng_is_the_same_in_another_process():
    code = "from enas_nb.randomness import rng; print(rng(7,'order',2,3).initial_seed())"
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, env={**os.environ, 'PYTHONHASHSEED':'5'})
    assert int(out.stdout)==rng(7, 'order', 2, 3).initial_seed()

purpose = st.tuples(st.integers(0, 2**40), st.text(max_size=8), st.lists(st.integers(0, 2**40), max_size=3))
@given(purpose, purpose)
def test_rng_tells_purposes_apart(a, b):
    seeds = [rng(s, role, *steps).initial_seed() for s,role,steps in (a,b)]
    assert (seeds[0]==seeds[1])==(a==b)

def test_keep_random_puts_every_stream_back(folder):
    dls = ImageDataLoaders.from_folder(folder, bs=8, num_workers=0, device='cpu', batch_tfms=aug_transforms())
    with untouched():
        restore = keep_random(dls)
        seen = [[x for x,_ in dls.train] for _ in range(2)]
        torch.rand(1), np.random.rand(), random.random()
        restore()
    assert not torch.equal(*map(torch.cat, seen))
    assert all(map(torch.equal, seen[0], [x for x,_ in dls.train]))

# ---- the loader
@settings(max_examples=40, deadline=None)
@given(n=st.integers(1,40), bs=st.integers(1,17), shuffle=st.booleans(), drop=st.booleans(), epoch=st.integers(0,5), seed=st.integers(0,9))
def test_a_pass_sees_each_item_once(n, bs, shuffle, drop, epoch, seed):
    dl = toy(n=n, k=2, bs=bs, drop_last=drop, seed=seed).train.new(shuffle=shuffle)
    dl = MemoryDL(MemoryDataset((noise(n), torch.arange(n)), dl.dataset.types, dl.dataset.source), bs=bs, shuffle=shuffle, drop_last=drop, seed=seed)
    dl.epoch = epoch
    ys = [y for _,y in dl]
    assert len(ys)==len(dl) and dl.epoch==epoch+1
    got,full = torch.cat(ys).tolist() if ys else [],n//bs*bs if drop else n
    assert len(got)==full==len(set(got))
    if not shuffle: assert got==list(range(full))

def test_order_and_augmentation_depend_on_seed_and_epoch_alone(still):
    mk = lambda **kw: toy(augment=[PadCropFlip(2), CutOut(3)], **kw).train
    a,b = mk(),mk()
    first = flat(a)
    list(b), b.one_batch(), b.new().one_batch()
    b.epoch = 0
    assert torch.equal(first, flat(b))
    assert not torch.equal(first, flat(a))
    assert torch.equal(flat(a.new(shuffle=True)), flat(a))         # `new` keeps seed and epoch
    assert not torch.equal(first, flat(mk(seed=1)))

def test_two_passes_at_once_do_not_mix():
    dls = toy(augment=PadCropFlip(2))
    other = add_cutout(dls, 2)
    want = flat(dls.train); dls.train.epoch = 0
    want2 = flat(other.train); other.train.epoch = 0
    pairs = list(zip(dls.train, other.train))
    assert torch.equal(want, torch.cat([a[0] for a,_ in pairs])) and torch.equal(want2, torch.cat([b[0] for _,b in pairs]))

def test_validation_is_never_augmented():
    dls = toy(augment=[PadCropFlip(2), CutOut(3)])
    plain = toy()
    assert torch.equal(flat(dls.valid), flat(plain.valid))
    x = random_batch(dls.train, 50, rng(0, 'a'))[0]
    assert set(keys(x))==set(keys(flat(plain.train)))

@settings(max_examples=25, deadline=None)
@given(n=st.integers(1,9), c=st.sampled_from([1,3]), h=st.integers(3,9), pad=st.integers(0,3), flip=st.booleans(), seed=st.integers(0,99))
def test_pad_crop_flip_gives_one_of_the_crops(n, c, h, pad, flip, seed):
    x,t = TensorImage(torch.randn(n, c, h, h+1)),PadCropFlip(pad, flip)
    t.generator = rng(seed, 'augment')
    y = t(x, split_idx=0)
    assert y.shape==x.shape and type(y) is TensorImage
    for a,b in zip(x.as_subclass(torch.Tensor), y.as_subclass(torch.Tensor)):
        p = F.pad(a, (pad,)*4)
        crops = [p[:, i:i+h, j:j+h+1] for i in range(2*pad+1) for j in range(2*pad+1)]
        assert any(torch.equal(b, o) for o in crops+[o.flip(-1) for o in crops if flip])

@settings(max_examples=25, deadline=None)
@given(h=st.integers(2,12), w=st.integers(2,12), size=st.integers(1,14), seed=st.integers(0,99))
def test_cutout_hides_one_clipped_square(h, w, size, seed):
    t = CutOut(size); t.generator = rng(seed, 'augment')
    for o in t(TensorImage(torch.ones(6,2,h,w)), split_idx=0).as_subclass(torch.Tensor):
        assert torch.equal(o[0], o[1])
        r,c = (o[0]==0).nonzero(as_tuple=True)
        i,j = r.min(),c.min()
        want = torch.ones(h,w); want[i:i+size, j:j+size] = 0
        assert torch.equal(o[0], want)

def test_images_are_channels_last_and_normalised():
    dls = toy(n=400)
    x = dls.train.one_batch()[0]
    assert x.is_contiguous(memory_format=torch.channels_last) and x.dtype==torch.float32
    plain = flat(dls.train.new(shuffle=False))
    u = noise(400).float()/255
    want = (u-u.mean((0,2,3), keepdim=True))/u.std((0,2,3), keepdim=True, unbiased=False)
    assert torch.allclose(plain.as_subclass(torch.Tensor), want, atol=1e-4)
    back = dls.train.decode((plain, TensorCategory(torch.zeros(400))))[0]
    assert torch.allclose(back.as_subclass(torch.Tensor), u, atol=1e-5)

def test_a_constant_channel_is_no_nan():
    x = torch.zeros(4,1,8,8, dtype=torch.uint8)
    assert not flat(images_dls((x, torch.arange(4)), (x, torch.arange(4)), 'abcd', device='cpu').train).isnan().any()

def test_a_memory_dl_refuses_other_data():
    with pytest.raises(TypeError, match='reads a MemoryDataset, not list'): MemoryDL([1,2])

# ---- in fastai
def test_lr_find_moves_neither_streams_nor_epoch(tmp_path):
    dls = toy(augment=PadCropFlip(1))
    learn = quiet(Learner(dls, net(), path=tmp_path, cbs=DataEpoch()))
    with untouched():
        learn.lr_find(show_plot=False, num_it=10)
        assert dls.train.epoch==0
        learn.fit(2)
    assert dls.train.epoch==2

def test_a_resumed_run_sees_the_same_batches():
    a,b = toy(augment=PadCropFlip(1)).train,toy(augment=PadCropFlip(1)).train
    runs = [flat(a) for _ in range(3)]
    b.epoch = 2
    assert torch.equal(flat(b), runs[2])

def test_export_and_predict(tmp_path):
    dls = toy(path=tmp_path, test=(noise(9), torch.zeros(9, dtype=torch.long)), augment=[PadCropFlip(1), CutOut(2)])
    learn = quiet(Learner(dls, net(), metrics=accuracy))
    learn.fit_one_cycle(1, .01)
    test = open_test(dls)
    p,y = learn.get_preds(dl=test)
    assert p.shape==(9,3) and y.tolist()==[0]*9
    learn.export('m.pkl')
    again = load_learner(tmp_path/'m.pkl')
    q,_ = again.get_preds(dl=again.dls.test_dl(noise(9)))
    r,_ = again.get_preds(dl=again.dls.test_dl(list(noise(9))))
    s,_ = again.get_preds(dl=again.dls.test_dl([Image.fromarray(o.permute(1,2,0).numpy()) for o in noise(9)], bs=4))
    t,_ = again.get_preds(dl=again.dls.test_dl(noise(9).numpy()))
    for o in (q,r,s,t): assert torch.allclose(o, p, atol=1e-5)
    with pytest.raises(ValueError, match='no test split'): open_test(again.dls)
    assert [len(o.dataset) for o in again.dls.loaders]==[0,0]
    assert learn.validate(dl=dls.test_dl((noise(9), torch.zeros(9, dtype=torch.long))))==learn.validate(dl=test)

def test_predict_shows_names_and_refuses_other_sizes(tmp_path):
    dls = digits_dls(device='cpu')
    dls.path = tmp_path
    learn = quiet(Learner(dls, net(1, 10), metrics=accuracy))
    learn.fit(1)
    test = open_test(dls)
    for i in (0,1): assert torch.equal(learn.get_preds(i)[1], dls[i].dataset.tensors[1])   # in order, though training is shuffled
    p,_ = learn.get_preds(dl=test)
    learn.export('digits.pkl')
    assert (tmp_path/'digits.pkl').stat().st_size<200_000          # the pipeline without any image
    again = load_learner(tmp_path/'digits.pkl')
    assert torch.allclose(again.get_preds(dl=again.dls.test_dl(test.dataset.tensors))[0], p, atol=1e-4)
    again.remove_cb(again.progress) if hasattr(again, 'progress') else None
    assert again.predict(test.dataset.tensors[0][0])[0]==again.dls.vocab[p[0].argmax()]
    with pytest.raises(ValueError, match=r'\(1, 9, 9\) where uint8 \(1, 8, 8\) is needed'): again.predict(np.zeros((9,9), np.uint8))
    with pytest.raises(ValueError, match='no test split'): open_test(again.dls)

def test_interpretation_finds_the_items():
    from fastai.interpret import ClassificationInterpretation
    learn = quiet(Learner(toy(), net()))
    i = ClassificationInterpretation.from_learner(learn)
    assert i.confusion_matrix().sum()==21
    x,_,y,*_ = i[[3,5]]
    assert torch.equal(x, flat(learn.dls.valid)[[3,5]]) and y.tolist()==[0,2]

def test_add_cutout_leaves_the_old_loaders_alone():
    dls = toy()
    before = flat(dls.train); dls.train.epoch = 0
    holed = add_cutout(dls, 4)
    assert torch.equal(before, flat(dls.train)) and not (before==0).any()
    x = flat(holed.train)
    assert ((x==0).flatten(1).any(1)).all()
    assert torch.equal(flat(holed.valid), flat(dls.valid)) and holed.vocab==dls.vocab

def test_add_cutout_to_fastai_loaders(folder):
    dls = ImageDataLoaders.from_folder(folder, bs=8, num_workers=0, device='cpu', batch_tfms=Normalize.from_stats(*imagenet_stats, cuda=False))
    holed = add_cutout(dls, 6)
    assert ((holed.train.one_batch()[0]==0).flatten(1).any(1)).all()
    assert not (holed.valid.one_batch()[0]==0).any() and not (dls.train.one_batch()[0]==0).any()
    assert torch.equal(flat(holed.valid), flat(dls.valid)) and type(holed) is type(dls)

# ---- any DataLoaders in memory
def test_memory_dls_of_a_folder(folder):
    dls = ImageDataLoaders.from_folder(folder, bs=8, num_workers=0, device='cpu', item_tfms=Resize(12),
                                       batch_tfms=[*aug_transforms(), Normalize.from_stats(*imagenet_stats, cuda=False)])
    with untouched():
        mem = memory_dls(dls)
        assert [len(o.dataset) for o in mem.loaders]==[24,12] and mem.vocab==['a','b'] and mem.c==2
        a = flat(mem.train); mem.train.epoch = 0
        assert torch.equal(a, flat(mem.train)) and not torch.equal(a, flat(mem.train))
    valid = flat(mem.valid)
    learn = quiet(Learner(mem, net(k=2), path=folder))
    files  = list(dls.valid_ds.items)
    labels = ['ab'.index(o.parent.name) for o in files]
    assert learn.get_preds()[1].tolist()==labels
    p,q = learn.get_preds()[0],learn.get_preds(dl=mem.test_dl(files))[0]
    assert torch.allclose(p, q, atol=1e-6)
    _,y = learn.get_preds(dl=mem.test_dl(files, with_labels=True))
    assert y.tolist()==labels
    learn.export('m.pkl')
    again = load_learner(folder/'m.pkl')
    assert again.predict(files[0])[0] in 'ab' and torch.allclose(again.get_preds(dl=again.dls.test_dl(files))[0], p, atol=1e-6)
    assert torch.equal(valid, flat(cache_valid(mem)))

def test_the_same_values_as_the_pipeline(folder):
    dls = ImageDataLoaders.from_folder(folder, bs=8, num_workers=0, device='cpu', batch_tfms=Normalize.from_stats(*imagenet_stats, cuda=False))
    want = flat(dls.valid)
    assert torch.equal(want, flat(memory_dls(dls).valid))
    cached = cache_valid(dls)
    assert torch.equal(want, flat(cached)) and cached.dataset.tensors[0].dtype==torch.float32
    assert torch.equal(cached.decode(cached.one_batch())[0], dls.valid.decode(dls.valid.one_batch())[0])
    assert torch.equal(want, torch.cat([x for x,_ in cached]))
    r,s = split_valid(dls)
    assert set(keys(flat(r)))|set(keys(flat(s)))==set(keys(want)) and not set(keys(flat(r)))&set(keys(flat(s)))
    assert len(r.dataset)==len(s.dataset)==6 and r.dataset.tensors[1].bincount().tolist()==[3,3]
    r.show_batch(max_n=2)

def test_random_item_transforms_are_frozen(folder):
    dls = ImageDataLoaders.from_folder(folder, bs=8, num_workers=0, device='cpu', item_tfms=RandomResizedCrop(8))
    mem = memory_dls(dls)
    dl = mem.train.new(shuffle=False)
    assert torch.equal(flat(dl), flat(dl)) and torch.equal(flat(dl), flat(memory_dls(dls).train.new(shuffle=False)))
    assert not torch.equal(flat(dl), flat(memory_dls(dls, seed=1).train.new(shuffle=False)))

def test_plain_torch_loaders():
    mk = lambda n: torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(n,3,4,4), torch.arange(n)%2), batch_size=4)
    dls = DataLoaders(mk(10), mk(7))
    r,s = split_valid(dls)
    assert len(r.dataset)+len(s.dataset)==7
    x,y = random_batch(r, 3, rng(0, 'reward'))
    assert x.shape==(3,3,4,4) and y.shape==(3,)
    learn = quiet(Learner(memory_dls(dls), net(k=2), loss_func=nn.CrossEntropyLoss()))
    learn.fit(1)

def test_what_cannot_be_kept_is_refused(folder):
    Image.fromarray(np.zeros((9,9,3), np.uint8)).save(folder/'valid'/'a'/'00.png')
    dls = ImageDataLoaders.from_folder(folder, bs=8, num_workers=0, device='cpu')
    with pytest.raises(ValueError, match='items of different shapes cannot share a tensor'): cache_valid(dls)

def test_one_item_cannot_be_split():
    with pytest.raises(ValueError, match=r'1 validation item\(s\) cannot be split'): split_valid(toy(m=1))

def test_refusals_of_images_dls():
    x,y = noise(4),torch.tensor([0,1,0,1])
    for trn,msg in (((x/255,y), 'training images are torch.float32'), ((x[0],y), r'training images are torch.uint8 \(3, 8, 8\)'),
                    ((x,y[:3]), r'training labels are torch.int64 \(3,\)'), ((x,y.float()), 'training labels are torch.float32'),
                    ((x,y+1), r'training labels lie in 1\.\.2; 2 classes allow 0\.\.1'), ((x[:0],y[:0]), 'there are no training images')):
        with pytest.raises(ValueError, match=msg): images_dls(trn, (x,y), 'ab')

@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0,3), min_size=2, max_size=30), st.integers(0,99))
def test_the_split_is_fair(ys, seed):
    y,n = torch.tensor(ys),len(ys)
    dls = images_dls((noise(4), torch.arange(4)), (noise(n), y), 'abcd', device='cpu')
    r,s = split_valid(dls, seed)
    ks = [keys(o.dataset.tensors[0]) for o in (r,s)]
    assert sorted(ks[0]+ks[1])==sorted(keys(noise(n))) and len(ks[0])-len(ks[1]) in (0,1)
    d = torch.stack([o.dataset.tensors[1].bincount(minlength=4) for o in (r,s)])
    assert (d[0]-d[1]).abs().max()<=1
    label = dict(zip(keys(noise(n)), ys))
    for o,k in zip((r,s), ks): assert [label[i] for i in k]==o.dataset.tensors[1].tolist()

# ---- data sets
def test_digits_with_another_seed():
    a,b,c = digits_dls(),digits_dls(),digits_dls(seed=1)
    assert torch.equal(a.train_ds.tensors[0], b.train_ds.tensors[0]) and not torch.equal(a.train_ds.tensors[0], c.train_ds.tensors[0])
    assert torch.equal(flat(a.train), flat(b.train))

@needs_fashion
def test_fashion_subset_and_errors(tmp_path):
    dls = fashion_dls(n_train=500, n_valid=200)
    assert dls.train_ds.tensors[1].bincount().tolist()==[50]*10 and len(dls.valid_ds)==200
    assert set(keys(fashion_dls(n_valid=200, n_train=50).valid_ds.tensors[0]))==set(keys(dls.valid_ds.tensors[0]))
    with pytest.raises(ValueError, match=r'n_train=5 of 59800 images in 10 classes; allowed: 10\.\.59790'): fashion_dls(n_train=5, n_valid=200)
    with pytest.raises(FileNotFoundError, match='no Fashion-MNIST in'): fashion_dls(path=tmp_path)

def idx(x, dtype=8): return bytes([0,0,dtype,x.ndim])+np.array(x.shape, '>u4').tobytes()+x.astype(np.uint8).tobytes()
def clothes(path, n=40, images=None, labels=None, zipped=False):
    "A little Fashion-MNIST"
    import gzip
    path.mkdir(exist_ok=True)
    for part in ('train','t10k'):
        for name,b in (('images-idx3',ifnone(images, idx(noise(n,1,28)[:,0].numpy()))), ('labels-idx1',ifnone(labels, idx(np.arange(n)%10)))):
            (path/f'{part}-{name}-ubyte{".gz" if zipped else ""}').write_bytes(gzip.compress(b) if zipped else b)
    return path

@pytest.mark.parametrize('zipped', [False,True])
def test_idx_files(tmp_path, zipped):
    dls = fashion_dls(path=clothes(tmp_path/'x', zipped=zipped), n_valid=10, device='cpu')
    assert [len(dls.train_ds), len(dls.valid_ds), len(open_test(dls).dataset)]==[30,10,40]
    assert set(keys(open_test(dls).dataset.tensors[0]))==set(keys(noise(40,1,28)))

GOOD = idx(noise(40,1,28)[:,0].numpy())
@pytest.mark.parametrize('b', [b'', b'\0\0\x08', GOOD[:10], GOOD[:-1], GOOD+b'1', b'\x89PNG'+GOOD[4:], idx(np.zeros((40,28,28)), 13), idx(np.zeros((40,784))), b'\0\0\x08\x03'+b'\xff'*12+b'1234'])
def test_a_short_idx_file_is_named(tmp_path, b):
    with pytest.raises(ValueError, match='train-images-idx3-ubyte is no whole IDX file of bytes with 3 dimensions') as e: fashion_dls(path=clothes(tmp_path/'x', images=b), n_valid=10)
    assert '\n' not in str(e.value) and len(str(e.value))<300

def test_other_idx_files_that_are_refused(tmp_path):
    with pytest.raises(ValueError, match='train-labels-idx1-ubyte is no whole IDX'): fashion_dls(path=clothes(tmp_path/'a', labels=GOOD), n_valid=10)
    with pytest.raises(ValueError, match='40 images and 39 labels of train'): fashion_dls(path=clothes(tmp_path/'b', labels=idx(np.arange(39)%10)), n_valid=10)
    with pytest.raises(ValueError, match=r'labels lie in 0\.\.11; 10 classes'): fashion_dls(path=clothes(tmp_path/'c', labels=idx(np.arange(40)%12)), n_valid=15)
    f = clothes(tmp_path/'d', zipped=True)/'train-images-idx3-ubyte.gz'
    whole = f.read_bytes()
    for b in (b'', whole[:len(whole)//2], whole[:-3], b'no zip', whole[:12]+b'\xff'*40+whole[52:]):
        f.write_bytes(b)
        with pytest.raises(ValueError, match='ubyte.gz is no whole IDX file'): fashion_dls(path=f.parent, n_valid=10)
    (tmp_path/'d'/'train-labels-idx1-ubyte.gz').unlink(), f.write_bytes(whole)
    with pytest.raises(ValueError, match='train-labels is no whole IDX file.*No such file'): fashion_dls(path=f.parent, n_valid=10)

def test_spoilt_idx_files(tmp_path, n=2000):
    g,f = np.random.default_rng(0),tmp_path/'x-ubyte'
    for i in range(n):
        b = bytearray(idx(np.arange(24).reshape(2,3,4)))
        for _ in range(g.integers(1, 5)): b[int(g.integers(len(b)))] = int(g.choice([0,1,8,127,255]))
        f.write_bytes(b[:g.integers(len(b)+1)] if i%2 else b)
        t = time.process_time()
        try: assert data._idx(f, 3).shape.numel()==f.stat().st_size-16
        except ValueError as e: assert str(e).startswith(f'{f} is no whole IDX file') and '\n' not in str(e)
        assert time.process_time()-t<2

def test_more_refusals_of_images_dls():
    x,y = noise(4),torch.tensor([0,1,0,1])
    for args,msg in ((((x,y),(noise(4,3,4),y),'ab'), r'training images are \(3, 8, 8\), validation images are \(3, 4, 4\)'), (((x,y),(noise(4,1),y),'ab'), r'validation images are \(1, 8, 8\)'),
                     (((x,y*0),(x,y*0),'a'), r"vocab is \['a'\]; at least 2 classes"), (((x,y*0),(x,y*0),''), 'at least 2 classes'), (((x,y),(x[:0],y[:0]),'ab'), 'there are no validation images'),
                     (((x.numpy().astype(np.uint16),y),(x,y),'ab'), 'training images are torch.uint16'), (((x,y.int()),(x,y),'ab'), 'training labels are torch.int32'), (((x,F.one_hot(y)),(x,y),'ab'), r'training labels are torch.int64 \(4, 2\)'),
                     (((x,y),(x,y),'ab',0), 'bs is 0, allowed is an integer of 1 or more'), (((x,y),(x,y),'ab',-1), 'bs is -1')):
        with pytest.raises(ValueError, match=msg): images_dls(*args, device='cpu')
    with pytest.raises(ValueError, match='bs is 0'): digits_dls(bs=0)
    dls = images_dls((x.numpy(),[0,1,0,1]), (x.numpy(),y.numpy()), 'ab', np.int64(2), device='cpu')      # arrays are as good
    assert torch.equal(dls.train_ds.tensors[0], x) and dls.train_ds.tensors[1].tolist()==[0,1,0,1]

def test_test_items_of_another_kind_are_refused():
    dls = toy()
    for o in (torch.rand(9,3,8,8), noise(9,3,4), noise(9,1), (noise(9),torch.zeros(9)), torch.zeros(9,3,8,8, dtype=torch.int32)):
        with pytest.raises(ValueError, match="test items are .* but .*'torch.uint8', 3, 8, 8.* needed"): dls.test_dl(o)

@pytest.fixture
def little_cifar(tmp_path):
    p = tmp_path/'cifar'
    for part,n in (('train',20),('test',6)):
        for c in 'ab':
            (p/part/c).mkdir(parents=True)
            for i in range(n): Image.fromarray(noise(1, 3, 8, 1000*(part=='test')+100*(c=='b')+i)[0].permute(1,2,0).numpy()).save(p/part/c/f'{i:03}.png')
    return p

def test_folder_cache(little_cifar):
    mk = lambda **kw: cifar10_dls(path=little_cifar, n_valid=10, bs=8, device='cpu', **kw)
    cache = little_cifar.parent/'cifar.safetensors'
    a = mk(); stamp = cache.stat().st_mtime_ns
    b = mk()
    assert cache.stat().st_mtime_ns==stamp and torch.equal(a.train_ds.tensors[0], b.train_ds.tensors[0])
    assert [len(a.train_ds), len(a.valid_ds), len(open_test(a).dataset)]==[30,10,12] and a.vocab==['a','b']
    pix = {keys([torch.from_numpy(np.array(Image.open(f))).permute(2,0,1)])[0]: f.parent.name for f in (little_cifar/'train').rglob('*.png')}
    for ds in (a.train_ds, a.valid_ds): assert [pix[k] for k in keys(ds.tensors[0])]==[a.vocab[i] for i in ds.tensors[1]]
    (little_cifar/'train'/'a'/'000.png').unlink()
    assert len(mk().train_ds)==29 and cache.stat().st_mtime_ns!=stamp
    assert sorted(o.name for o in little_cifar.parent.iterdir())==['cifar','cifar.safetensors']

def test_images_of_another_size(little_cifar):
    mk = lambda **kw: cifar10_dls(path=little_cifar, n_valid=10, bs=8, device='cpu', **kw)
    plain,four = mk(),mk(size=4)
    assert plain.one_batch()[0].shape==(8,3,8,8) and four.one_batch()[0].shape==(8,3,4,4)
    for a,b in ((plain.train_ds,four.train_ds), (plain.valid_ds,four.valid_ds), (open_test(plain).dataset,open_test(four).dataset)):
        assert torch.equal(a.tensors[1], b.tensors[1])              # the same images, in the same order
        for x,y in zip(a.tensors[0], b.tensors[0]):                 # as Pillow makes them smaller, which antialiases
            want = np.array(Image.fromarray(x.permute(1,2,0).contiguous().numpy()).resize((4,4), Image.BILINEAR))
            assert np.array_equal(y.permute(1,2,0).numpy(), want)
    assert torch.equal(mk(size=8).train_ds.tensors[0], plain.train_ds.tensors[0])
    assert mk(size=16).one_batch()[0].shape==(8,3,16,16)
    x = flat(four.train.new(shuffle=False))
    y = flat(mk(size=4, augment=None).train)
    assert abs(y.mean())<1e-5 and abs(y.std()-1)<.01 and x.shape==(30,3,4,4)  # normalised by the statistics of what is used

@pytest.mark.parametrize('size', [0, -3, 3, 257, 16., '16', (16,16)])
def test_nonsense_sizes_are_refused(little_cifar, size):
    with pytest.raises(ValueError, match='allowed is the side of an image in whole pixels, 4 to 256'): cifar10_dls(path=little_cifar, size=size)

def test_folder_errors(little_cifar, tmp_path):
    with pytest.raises(FileNotFoundError, match='is not a folder'): cifar10_dls(path=tmp_path/'no')
    (tmp_path/'empty').mkdir()
    with pytest.raises(ValueError, match='one folder per class'): cifar10_dls(path=tmp_path/'empty')
    f = little_cifar/'test'/'b'/'000.png'
    f.write_bytes(b'no image')
    with pytest.raises(ValueError, match='000.png cannot be read as an image'): cifar10_dls(path=little_cifar, n_valid=10)
    Image.fromarray(np.zeros((5,5,3), np.uint8)).save(f)
    with pytest.raises(ValueError, match=r'\(5, 5\) pixels where \(8, 8\) are needed'): cifar10_dls(path=little_cifar, n_valid=10)
    for o in (little_cifar/'test'/'b').iterdir(): o.unlink()
    with pytest.raises(ValueError, match='holds no images'): cifar10_dls(path=little_cifar, n_valid=10)

@needs_cifar
def test_cifar(still, monkeypatch):
    cifar10_dls()                                  # makes sure of the cache
    monkeypatch.setattr(data, '_read_image', lambda *args: 1/0)
    dls = cifar10_dls(n_train=500)                 # read, not decoded
    assert [len(dls.train_ds), len(dls.valid_ds)]==[500,5000] and dls.valid_ds.tensors[1].bincount().tolist()==[500]*10
    assert dls.train.one_batch()[0].shape==(160,3,32,32)
    assert len(dls.train_ds.tensors[0].unique())==256

@needs_cifar
def test_cifar_in_16_pixels():
    dls = cifar10_dls(n_train=500, size=16)
    assert dls.one_batch()[0].shape==(160,3,16,16) and dls.valid_ds.tensors[0].shape==(5000,3,16,16)
    assert torch.equal(dls.train_ds.tensors[1], cifar10_dls(n_train=500).train_ds.tensors[1])

# ---- the task
def words(n=400, bs=4):
    from fastai.text.data import LMDataLoader,TensorText
    ids = TensorText(torch.arange(n)%7)
    dls = DataLoaders(*[LMDataLoader([ids], bs=bs, seq_len=5) for _ in range(2)])
    dls.vocab = list('abcdefg')
    return dls

def test_an_image_task_of_any_loaders(folder):
    theirs = ImageDataLoaders.from_folder(folder, bs=8, num_workers=0, device='cpu', batch_tfms=aug_transforms())
    for dls,n_in,n_out in ((toy(), 3, 3), (toy(c=1, k=2), 1, 2), (theirs, 3, 2)):
        with untouched():
            assert ImageTask.fits(dls)
            task = ImageTask(dls)
        assert (task.name, task.n_in, task.n_out)==('images', n_in, n_out) and task.dls is dls
    plain = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(9,3,4,4), torch.arange(9)%2), batch_size=4)
    assert ImageTask(memory_dls(DataLoaders(plain, plain))).n_out is None       # nobody knows how many classes there are

def test_a_look_at_the_loaders_leaves_no_trace(folder):
    mk = lambda: ImageDataLoaders.from_folder(folder, bs=8, num_workers=0, device='cpu', batch_tfms=aug_transforms())
    epochs = []
    for look in (False,True):
        random.seed(0), np.random.seed(0), torch.manual_seed(0)
        dls = mk()
        if look: ImageTask.fits(dls), ImageTask(dls)
        epochs.append(flat(dls.train))
    assert torch.equal(*epochs)
    dls = toy(augment=PadCropFlip(2))
    ImageTask(dls)
    assert dls.train.epoch==0

def test_an_image_task_refuses_text():
    dls = words()
    assert not ImageTask.fits(dls)
    with pytest.raises(ValueError, match=r'a batch is torch.int64 \(4, 5\), and that is not images'): ImageTask(dls)

def test_halves_are_those_of_split_valid():
    task = ImageTask(toy(m=40))
    for seed,same in ((0,False), (3,False), (3,True)):
        reward,dls = task.halves(seed, same)
        want = split_valid(task.dls, seed, same)
        for a,b in zip((reward,dls.valid), want): assert torch.equal(flat(a), flat(b)) and a.bs==b.bs
        assert dls.train is task.dls.train
    assert len(task.dls.valid_ds)==40                                # the task's own loaders stay

def test_an_image_task_measures(tmp_path):
    dls = toy(m=40, test=(noise(9), torch.zeros(9, dtype=torch.long)), path=tmp_path)
    task,learn = ImageTask(dls),quiet(Learner(dls, net(), metrics=[accuracy]))
    learn.fit(1, .01)
    assert task.sizes()==dict(train=50, valid=40, test=9)
    for part,dl in (('valid',dls.valid), ('test',open_test(dls))):
        assert task.measured(learn, part)==dict(value=learn.validate(dl=dl)[1], parts=None)
        p,y = learn.get_preds(dl=dl)
        assert task.measured(learn, part)['value']==pytest.approx((p.argmax(1)==y).float().mean().item(), abs=1e-6)
    from fastai.metrics import error_rate
    other = quiet(Learner(dls, learn.model, metrics=error_rate))
    assert task.measured(other, 'test')==task.measured(learn, 'test') and [o.name for o in other.metrics]==['error_rate']
    with pytest.raises(ValueError, match="part is 'train', allowed are 'valid', 'test'"): task.measured(learn, 'train')
    assert task.reward(None)==task.metric()==task.search_metric()==accuracy
    assert task.shared(torch.tensor([.5,.75,1.]), None)==.75

def test_the_measure_of_images():
    m = ImageTask.measure
    assert (m.name, m.show.format(.8765), m.best([.1,.7,.3]))==('accuracy', '87.65%', .7)
    assert f'{m.gain(.9,.88)*m.scale:+.{m.digits}f} {m.unit}'=='+2.00 points'

def test_no_name_of_another_module():
    from enas_nb import memory
    assert not set(data.__all__)&set(memory.__all__)

def test_the_answer_of_the_chapters_exercise_is_right():
    dls = digits_dls(device='cpu')
    x,y = dls.train_ds.tensors
    first = torch.cat([(y==k).nonzero()[:20,0] for k in range(10)])
    few = images_dls((x[first],y[first]), dls.valid_ds.tensors, dls.vocab, device='cpu')
    seen = lambda dl: {o.numpy().tobytes() for o in dl.dataset.tensors[0]}
    assert few.train_ds.tensors[1].bincount(minlength=10).tolist()==[20]*10
    assert seen(few.valid)==seen(dls.valid) and seen(few.train)<seen(dls.train)
