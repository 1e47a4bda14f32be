"Loaders that others made: each trains rightly, shuffled and augmented, or is one line at construction"
import pickle
import numpy as np, pytest, torch
from fastai.data.load import DataLoader as PlainDL
from fastai.vision.all import (BCEWithLogitsLossFlat,Categorize,CategoryBlock,DataBlock,DataLoaders,Datasets,Learner,MSELossFlat,MultiCategoryBlock,Normalize,
                               RegressionBlock,TensorCategory,TensorImage,TensorImageBW,TfmdDL,TransformBlock,accuracy,load_learner,nn)
from torch.utils.data import (BatchSampler,DataLoader,Dataset,IterableDataset,RandomSampler,SubsetRandomSampler,Subset,TensorDataset,WeightedRandomSampler)
from enas_nb.all import MacroSpace,arch_learner,memory_dls,search_learner
from enas_nb.data import CutOut,PadCropFlip,add_cutout,images_dls,split_valid
from enas_nb.memory import MemoryDL,fastai_dls
from enas_nb.randomness import rng
from enas_nb.task import ImageTask

SPACE = MacroSpace(2)
ARCH  = SPACE.archs(SPACE.random(1))[0]
def pixels(n, c=3, h=8, seed=0): return torch.rand(n, c, h, h, generator=rng(seed, 'noise'))
class Pairs(Dataset):
    "A data set as people write it: a tensor and a Python int, in a tuple or a list"
    def __init__(self, n, kind=tuple, k=4, seed=0, x=None, y=None):
        self.x,self.kind = pixels(n, seed=seed) if x is None else x,kind
        self.y = [i%k for i in range(n)] if y is None else y
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return self.kind((self.x[i],self.y[i]))
class Stream(IterableDataset):
    def __init__(self, n, known=True): self.n = n; self.known = known
    def __iter__(self): return iter([(o,i%4) for i,o in enumerate(pixels(self.n))])
    def __len__(self):
        if not self.known: raise TypeError('no length')
        return self.n
def loaders(train, valid, bs=8, **kwargs): return DataLoader(train, bs, shuffle=not isinstance(train, IterableDataset), **kwargs),DataLoader(valid, bs)
def pair(**kwargs): return loaders(Pairs(32, **kwargs), Pairs(16, seed=1, **kwargs))
class Named(Pairs): classes = ['a','b','c','d']

KINDS = dict(
    torch=lambda: DataLoaders(*pair()), pair=lambda: pair(), listed=lambda: list(pair(kind=list)), workers=lambda: loaders(Pairs(32), Pairs(16), num_workers=1),
    dropping=lambda: loaders(Pairs(35), Pairs(16), drop_last=True), plain=lambda: DataLoaders(PlainDL(Pairs(32), bs=8, shuffle=True), PlainDL(Pairs(16), bs=8)),
    dsets=lambda: DataLoaders.from_dsets(Pairs(32), Pairs(16), bs=8, num_workers=0), items=lambda: DataLoaders.from_dsets(*[list(Pairs(32, kind=o)) for o in (tuple,list)], bs=8, num_workers=0),
    stream=lambda: loaders(Stream(32), Stream(16)), subset=lambda: loaders(Subset(Pairs(40), range(32)), Subset(Pairs(40), range(32,40))),
    sampler=lambda: (DataLoader(Pairs(40), 8, sampler=SubsetRandomSampler(range(32))),DataLoader(Pairs(40), 8, sampler=SubsetRandomSampler(range(32,40)))),
    weighted=lambda: (DataLoader(Pairs(32), 8, sampler=WeightedRandomSampler([1.]*32, 32)),DataLoader(Pairs(16), 8)),
    batches=lambda: (DataLoader(Pairs(32), batch_sampler=BatchSampler(RandomSampler(range(32)), 8, False)),DataLoader(Pairs(16), 8)),
    byte=lambda: loaders(TensorDataset(pixels(32).mul(255).byte(), torch.arange(32)%4), TensorDataset(pixels(16).mul(255).byte(), torch.arange(16)%4)),
    int32=lambda: loaders(*[TensorDataset(pixels(n), torch.arange(n, dtype=torch.int32)%4) for n in (32,16)]), uint8=lambda: loaders(*[TensorDataset(pixels(n), torch.arange(n).byte()%4) for n in (32,16)]),
    column=lambda: loaders(*[TensorDataset(pixels(n), torch.arange(n)[:,None]%4) for n in (32,16)]), double=lambda: loaders(*[Pairs(n, x=pixels(n).double().numpy()) for n in (32,16)]),
    half=lambda: loaders(*[Pairs(n, x=pixels(n).half()) for n in (32,16)]), normalised=lambda: loaders(*[Pairs(n, x=pixels(n)*4-2) for n in (32,16)]),
    grey=lambda: loaders(*[Pairs(n, x=pixels(n, 1)) for n in (32,16)]), rgba=lambda: loaders(*[Pairs(n, x=pixels(n, 4)) for n in (32,16)]))

def quiet(learn): learn.remove_cb(learn.progress) if hasattr(learn, 'progress') else None; learn.logger = lambda *a: None; return learn
def search(dls, **kwargs):
    learn = search_learner(dls, SPACE, **{'n_out': 4, 'width': 4, 'warmup': 0, **kwargs})
    learn.search.preset = learn.search.preset.override(controller=dict(steps=2))
    return quiet(learn)
def retrain(dls, **kwargs): return quiet(arch_learner(dls, ARCH, **{'n_out': 4, 'width': 4, **kwargs}))

@pytest.mark.parametrize('kind', KINDS)
def test_a_whole_search_on_loaders_of_others(kind):
    learn = search(KINDS[kind]())
    learn.fit(1)
    assert all(np.isfinite(learn.recorder.values[-1])) and learn.derive(2).space==SPACE
    assert len(learn.search.reward_dl.dataset)+len(learn.dls.valid.dataset)==len(fastai_dls(KINDS[kind]()).valid.dataset.o.dataset if kind not in ('dsets','items') else KINDS[kind]().valid_ds) or kind=='sampler'
    final = retrain(KINDS[kind](), cutout=3)
    final.fit(1)
    assert all(np.isfinite(final.recorder.values[-1])) and [o.name for o in final.metrics]==['accuracy']

@pytest.mark.parametrize('kind', KINDS)
def test_batches_are_typed_shuffled_and_cut(kind):
    torch.manual_seed(0) # eight byte images may all hold a 0: one order in 170
    dls = fastai_dls(KINDS[kind]())
    xb,yb = dls.one_batch()
    assert isinstance(xb, TensorImageBW if kind=='grey' else TensorImage) and xb.dtype==torch.float32 and type(yb) is TensorCategory and yb.dtype==torch.int64 and yb.shape==(8,)
    if kind!='normalised': assert 0<=xb.min() and .9<xb.max()<=1
    a,b = [torch.cat([x for x,_ in dls.train]) for _ in range(2)]
    assert len(a)==len(dls.train)*8 and torch.equal(a, b)==(kind=='stream')          # a stream has the order of its maker
    holed = add_cutout(KINDS[kind](), 3)
    assert (holed.one_batch()[0]==0).flatten(1).any(1).all() and not (xb==0).flatten(1).any(1).all()
    assert not (holed.valid.one_batch()[0]==0).flatten(1).any(1).all()
    assert fastai_dls(dls) is dls

@pytest.mark.parametrize('kind', KINDS)
def test_in_memory_they_are_shuffled_and_whole(kind):
    if kind in ('weighted',):
        with pytest.raises(ValueError, match='a WeightedRandomSampler draws anew in each epoch'): memory_dls(KINDS[kind]())
        return
    mem = memory_dls(KINDS[kind]())
    assert all(isinstance(o, MemoryDL) for o in mem.loaders) and mem.train.bs==8 and mem.device is not None
    assert [len(o.dataset) for o in mem.loaders]==dict(dropping=[35,16], items=[32,32], subset=[32,8], sampler=[32,8]).get(kind, [32,16])
    assert len(mem.train)==4 and mem.train.shuffle and not torch.equal(*[torch.cat([x for x,_ in mem.train]) for _ in range(2)])
    xb,yb = add_cutout(mem, 3).one_batch()
    assert xb.dtype==torch.float32 and yb.dtype==torch.int64 and (xb==0).flatten(1).any(1).all() and (kind=='normalised' or xb.max()<=1)
    retrain(mem).fit(1)

def test_a_loader_that_does_not_shuffle_stays_so():
    dl = lambda: DataLoader(Pairs(32), 8)
    for dls in (fastai_dls((dl(),dl())), memory_dls((dl(),dl()))): assert torch.equal(*[torch.cat([x for x,_ in dls.train]) for _ in range(2)])

def test_the_numbers_of_the_loader_arrive_unchanged():
    x = pixels(32)
    for dls in (fastai_dls(loaders(Pairs(32), Pairs(16))), memory_dls(loaders(Pairs(32), Pairs(16)))):
        xs,ys = map(torch.cat, zip(*dls.train))
        where = (xs.as_subclass(torch.Tensor)[:,None]==x).flatten(2).all(2).nonzero()[:,1]
        assert sorted(where.tolist())==list(range(32)) and (where%4).tolist()==ys.tolist()
    byte = fastai_dls(KINDS['byte']()).valid.one_batch()[0]
    assert torch.allclose(byte, pixels(16)[:8].mul(255).byte().float()/255)

def test_random_transforms_of_the_data_set_stay_random():
    class Noisy(Pairs):
        def __getitem__(self, i): return torch.rand(3,8,8),self.y[i]
    dls = search(loaders(Noisy(32), Pairs(16))).dls
    assert not isinstance(dls.train, MemoryDL)
    a,b = [torch.cat([x for x,_ in dls.train]) for _ in range(2)]
    assert not (a[:,None]==b).flatten(2).all(2).any()

def test_a_look_moves_no_random_state():
    def orders(look):
        torch.manual_seed(0); np.random.seed(0)
        own = torch.Generator().manual_seed(3)
        train = DataLoader(Pairs(32), 8, shuffle=True, generator=own)
        if look: ImageTask((train,DataLoader(Pairs(16), 8, shuffle=True))).expect(n_out=4)
        return torch.cat([y for _,y in train]).tolist(),torch.rand(1).item()
    assert orders(False)==orders(True)

@pytest.mark.parametrize('make', [CutOut, PadCropFlip])
def test_transforms_work_on_plain_tensors(make):
    t = make(3); t.generator = rng(0, 'augment')
    x = pixels(6)
    y = t(x, split_idx=0)
    assert type(y) is torch.Tensor and y.shape==x.shape and not (y==x).flatten(1).all(1).any()
    assert torch.equal(t(x, split_idx=1), x)
    for o in (torch.rand(6), torch.rand(6,4), torch.arange(6)): assert t(o, split_idx=0) is o
    t = make(3); t.generator = rng(0, 'augment')
    assert torch.equal(t(TensorImage(x), split_idx=0), y)

def test_batch_transforms_of_fastai_work_on_data_sets_of_pytorch():
    dls = DataLoaders.from_dsets(Pairs(32), Pairs(16), bs=8, num_workers=0, after_batch=[CutOut(3), Normalize.from_stats([.5]*3, [.5]*3, cuda=False)])
    for o in (fastai_dls(dls), memory_dls(dls)):
        assert (o.train.one_batch()[0]==0).flatten(1).any(1).all() and o.train.one_batch()[0].min()<-.5
        assert not (o.valid.one_batch()[0]==0).flatten(1).any(1).all() and o.valid.one_batch()[0].min()<-.5

def test_classes_that_a_data_set_knows():
    for dls in (loaders(Named(32), Named(16)), loaders(Subset(Named(40), range(32)), Named(16)), DataLoaders.from_dsets(Named(32), Named(16), bs=8, num_workers=0)):
        assert ImageTask(dls).n_out==ImageTask(memory_dls(dls)).n_out==4
    told = DataLoaders(*pair()); told.vocab = list('wxyz')
    assert ImageTask(told).n_out==4 and memory_dls(told).vocab==list('wxyz') and search(told, n_out=None).dls.vocab==list('wxyz')
    told = DataLoaders(*pair()); told.c = 4
    assert ImageTask(told).n_out==ImageTask(memory_dls(told)).n_out==4
    for make in (search, retrain):
        with pytest.raises(ValueError, match='does not say the number of classes: pass `n_out`'): make(pair(), n_out=None)

def test_export_and_predict(tmp_path):
    dls = fastai_dls(loaders(Named(32), Named(16))); dls.path = tmp_path
    learn = retrain(dls); learn.fit(1)
    p = learn.get_preds()[0]
    learn.export('m.pkl')
    again = load_learner(tmp_path/'m.pkl')
    assert all(torch.equal(a, b) for a,b in zip(again.model.state_dict().values(), learn.model.state_dict().values()))
    quiet(again)
    q = again.model.eval()(torch.stack([Named(16)[i][0] for i in range(16)]))
    assert torch.allclose((q[0] if isinstance(q, tuple) else q).softmax(1), p, atol=1e-5)

def test_recalibration_rides_on_loaders_of_others():
    learn = search(pair(), bn_eval='recalibrated'); learn.fit(1)
    assert learn.derive(2).space==SPACE
    learn = search(DataLoaders.from_dsets(Pairs(32), Pairs(16), bs=8, num_workers=0), bn_eval='recalibrated'); learn.fit(1)

# ---- targets that are no classes
def numbers(k=None, n=32, **kwargs): return loaders(*[TensorDataset(pixels(m), torch.rand(m) if k is None else torch.rand(m, k)) for m in (n,16)])
def several(k=4): return loaders(*[TensorDataset(pixels(m), (torch.rand(m, k)>.5).float()) for m in (32,16)])
def blocks(y, get):
    items = list(range(40))
    return DataBlock((TransformBlock(type_tfms=lambda i: TensorImage(pixels(1, seed=i)[0])),y), get_items=lambda _: items, get_x=lambda i: i, get_y=get).dataloaders(None, bs=8, num_workers=0)

@pytest.mark.parametrize('make,loss,n_out', [(lambda: numbers(), MSELossFlat(), 1), (lambda: numbers(3), MSELossFlat(), 3), (lambda: numbers(3), nn.MSELoss(), 3), (lambda: numbers(), nn.L1Loss(), 1),
                                             (lambda: several(), BCEWithLogitsLossFlat(), 4), (lambda: several(), nn.BCEWithLogitsLoss(), 4),
                                             (lambda: memory_dls(numbers(3)), nn.MSELoss(), 3), (lambda: loaders(*[TensorDataset(pixels(m), torch.rand(m).double()) for m in (32,16)]), nn.MSELoss(), 1),
                                             (lambda: blocks(RegressionBlock, lambda i: i/40), None, 1), (lambda: blocks(MultiCategoryBlock, lambda i: ['abc'[i%3],'d']), None, 4)])
def test_other_targets_reward_by_minus_the_loss(make, loss, n_out):
    learn = search(make(), n_out=None, loss_func=loss)
    assert learn.model.like==(3,n_out) and [o.name for o in learn.metrics]==['reward','entropy','baseline', 'alarms']
    learn.fit(1)
    arch = learn.derive(2)
    assert all(np.isfinite(learn.recorder.values[-1]))
    p,y = learn.get_preds()
    quiet(learn)
    assert learn.search.reward(p[:5], y[:5]).item()==pytest.approx(-learn.loss_func(p[:5], y[:5]).item(), rel=1e-5)
    final = retrain(make(), n_out=None, loss_func=loss, cutout=2); final.fit(1)
    assert not final.metrics and np.isfinite(final.recorder.values[-1]).all()

def test_more_about_other_targets():
    with pytest.raises(ValueError, match="reward is 'accuracy', allowed are .*'loss'"): search(numbers(), n_out=1, loss_func=MSELossFlat(), reward='accuracy')
    own = lambda p,t: (p[:,0]-t[:,0]).abs().mean().neg()
    assert search(numbers(), n_out=1, loss_func=MSELossFlat(), reward=own).search.reward is own
    assert pickle.loads(pickle.dumps(search(numbers(), n_out=1, loss_func=MSELossFlat()).search.reward))(torch.ones(2,1), torch.zeros(2,1))==-1

NO_LOSS = 'and no classes .so `n_out` is [14].: give `loss_func`, for numbers MSELossFlat.., for several classes of an image BCEWithLogitsLossFlat'
def xy(x, y): return loaders(TensorDataset(x, y), TensorDataset(x, y))
Y = torch.arange(16)%4
class Broken(Pairs):
    def __getitem__(self, i): raise KeyError('a field that is not there')
class Pictures(Pairs):
    def __getitem__(self, i): from PIL import Image; return Image.new('RGB', (8,8)),0
class Dicts(Pairs):
    def __getitem__(self, i): return dict(image=self.x[i], label=self.y[i])
class Triples(Pairs):
    def __getitem__(self, i): return self.x[i],self.y[i],i
class Sizes(Pairs):
    def __getitem__(self, i): return torch.rand(3,8,8+i%2),self.y[i]
REFUSED = dict(
    numbers=(lambda: numbers(), NO_LOSS), several=(lambda: several(), NO_LOSS), one_hot=(lambda: xy(pixels(16), torch.eye(4)[Y]), NO_LOSS),
    integer_rows=(lambda: xy(pixels(16), torch.eye(4).long()[Y]), r'targets are torch.int64 \(8, 4\).*classes are integers \[n\]'), masks=(lambda: xy(pixels(16), torch.zeros(16,8,8).long()), r'targets are torch.int64 \(8, 8, 8\)'),
    above=(lambda: xy(pixels(16), Y+1), r'classes lie in 1\.\.4; 4 classes allow 0\.\.3'), below=(lambda: xy(pixels(16), Y-1), r'classes lie in -1\.\.2'),
    above_to_validate=(lambda: (DataLoader(Pairs(32), 8),DataLoader(Pairs(16, y=[0]*15+[9]), 8)), r'validation classes lie in 0\.\.9; 4 classes'), above_in_memory=(lambda: memory_dls((DataLoader(Pairs(16, y=[0]*15+[9]), 8),)*2), r'training classes lie in 0\.\.9'),
    channels_last=(lambda: xy(pixels(16).permute(0,2,3,1), Y), r'a batch is \(8, 8, 8, 3\); channels come before height and width'), no_channel=(lambda: xy(pixels(16)[:,0], Y), 'images are .n, channels, height, width.'),
    flat=(lambda: xy(pixels(16).flatten(1), Y), 'images are .n, channels, height, width.'), integers=(lambda: xy(pixels(16).mul(255).int(), Y), 'images are torch.int32; decimal numbers are needed'),
    uint16=(lambda: loaders(*[Pairs(16, x=pixels(16).mul(65535).numpy().astype(np.uint16))]*2), 'images are torch.uint16; decimal numbers|fails at its first batch'), masks_in=(lambda: xy(pixels(16)>.5, Y), 'images are torch.bool'),
    nan=(lambda: xy(pixels(16)*float('nan'), Y), 'pixels that are no finite numbers'), sizes=(lambda: loaders(Pairs(16), Pairs(16, x=pixels(16, h=4))), r'training images are \(3, 8, 8\), validation images are \(3, 4, 4\)'),
    channels=(lambda: loaders(Pairs(16), Pairs(16, x=pixels(16, 1))), r'validation images are \(1, 8, 8\)'), mixed=(lambda: loaders(Sizes(16), Sizes(16)), 'the training loader fails at its first batch: stack expects each tensor to be equal size'),
    mixed_to_validate=(lambda: loaders(Pairs(16), Sizes(16)), 'the validation loader fails at its first batch: stack expects'), broken=(lambda: loaders(Broken(16), Pairs(16)), 'the training loader fails at its first batch: .*a field that is not there'),
    pictures=(lambda: loaders(Pictures(16), Pictures(16)), 'the training loader fails at its first batch: default_collate: batch must contain tensors'), dicts=(lambda: loaders(Dicts(16), Dicts(16)), 'a training batch is a dict; a pair of tensors is needed'),
    triples=(lambda: loaders(Triples(16), Triples(16)), 'a training batch is of Tensor.*, Tensor.*; a pair of tensors'), inputs=(lambda: loaders(*[list(pixels(16))]*2), 'a training batch is a Tensor.*; a pair of tensors'),
    words=(lambda: loaders(*[[(o,'cat') for o in pixels(16)]]*2), 'a pair of tensors is needed'), empty=(lambda: (DataLoader([], 8),DataLoader(Pairs(16), 8)), 'the training loader has no batches'),
    empty_to_validate=(lambda: loaders(Pairs(16), []), 'the validation loader has no batches'), dropped=(lambda: loaders(Pairs(7), Pairs(16), drop_last=True), 'the training loader has no batches: no items, or fewer than its batch size'),
    endless=(lambda: loaders(Stream(16, False), Stream(16)), 'the training loader has no length'), one_to_validate=(lambda: loaders(Pairs(16), Pairs(1)), r'1 validation item\(s\) cannot be split'),
    bs=(lambda: DataLoaders(PlainDL(Pairs(16), bs=0),PlainDL(Pairs(16), bs=8)), 'bs is 0, allowed is an integer of 1 or more'), negative=(lambda: DataLoaders.from_dsets(Pairs(16), Pairs(16), bs=-2, num_workers=0), 'bs is -2, allowed'),
    text=(lambda: ('train','valid'), 'a pair of tensors is needed'), mixed_targets=(lambda: loaders(Pairs(16), Pairs(16, y=torch.rand(16))), 'targets are torch.int64 .8,., torch.float32 .8, 1. to validate'))
def refused(make, words, errors=ValueError):
    with pytest.raises(errors, match=words) as e: make()
    assert '\n' not in str(e.value) and len(str(e.value))<=300, str(e.value)

@pytest.mark.parametrize('kind', REFUSED)
def test_one_line_at_construction(kind):
    dls,words = REFUSED[kind]
    refused(lambda: search(dls()), words)
    if kind not in ('above_to_validate','one_to_validate'): refused(lambda: retrain(dls()), words)

def test_what_are_no_loaders():
    for o in (None, 5, DataLoader(Pairs(16), 8), DataLoaders(DataLoader(Pairs(16), 8)), (DataLoader(Pairs(16), 8),)): refused(lambda: search(o), 'fastai `DataLoaders` are needed, or a pair of loaders', TypeError)
    refused(lambda: search((DataLoader(Pairs(16), 8),5)), 'a loader is a int', TypeError)

def test_losses_that_do_not_fit():
    for loss,k,n_out,words in ((nn.MSELoss(),3,2,'the loss cannot compare 2 numbers with targets .8, 3.'), (nn.MSELoss(reduction='none'),3,None,'it gives .8, 3. instead of one number'), (nn.CrossEntropyLoss(),None,4,'the loss cannot compare 4 numbers')):
        for make in (search, retrain): refused(lambda: make(numbers(k), n_out=n_out, loss_func=loss), words)

def test_one_class():
    for make in (search, retrain): refused(lambda: make(xy(pixels(16), Y*0), n_out=1), 'there is one class; at least 2 are needed')

def test_files_that_fastai_would_make_white_are_refused(tmp_path):
    from PIL import Image
    from fastai.vision.all import ImageDataLoaders
    for part,kind in (('train',np.uint8),('valid',np.uint16)):
        for c in 'ab':
            (tmp_path/part/c).mkdir(parents=True)
            for i in range(8): Image.fromarray(np.full((8, 8), 200*(1+99*(kind is np.uint16)), kind)).save(tmp_path/part/c/f'{i}.png')
    dls = ImageDataLoaders.from_folder(tmp_path, bs=4, num_workers=0)
    with pytest.raises(ValueError, match=r'valid.*png cannot be read as an image \(mode I;16: all above 255 would be white'): search_learner(dls, SPACE, width=4)
    search_learner(ImageDataLoaders.from_folder(tmp_path, valid='train', bs=4, num_workers=0), SPACE, width=4) # 8 bits are fine
