"A reader's own folder of images, as strangers have them: each works, or is one line that names what is amiss"
import io,json,os,re,resource,struct,time,zlib
from pathlib import Path
import numpy as np, pytest, torch
from fastai.torch_core import TensorImage
from fastai.vision.learner import load_learner
from PIL import Image
from enas_nb.data import *
from enas_nb.own_data import *
from enas_nb.randomness import rng
from enas_nb import data,own_data

def picture(i, size=(8,8), mode='RGB'):
    "A PIL image of noise, `size` is (width, height)"
    bands = {'L': (), 'RGB': (3,), 'RGBA': (4,), 'LA': (2,), 'CMYK': (4,)}[mode]
    return Image.fromarray(np.random.default_rng(i).integers(0, 256, (*size[::-1],*bands), dtype=np.uint8), mode if mode=='CMYK' else None)
def make(path, n=5, classes='ab', size=(8,8), mode='RGB', start=0):
    for c in classes:
        (path/c).mkdir(parents=True, exist_ok=True)
        for i in range(n): picture(start+1000*ord(c[0])+i, size, mode).save(path/c/f'{i:03}.{"jpg" if mode=="CMYK" else "png"}')
    return path
def put(path, img, **kwargs): path.parent.mkdir(parents=True, exist_ok=True); img.save(path, **kwargs); return path
def load(path, **kwargs): return folder_dls(path, **{'bs': 4, 'device': 'cpu', **kwargs})
def every(dls):
    "All images and labels, training first"
    return [torch.cat(o) for o in zip(*(ds.tensors for ds in (dls.train_ds, dls.valid_ds, open_test(dls).dataset)))]
def of_first(dls, c=0): x,y = every(dls); return x[y==c]
def refused(path, *words, error=ValueError, **kwargs):
    with pytest.raises(error) as e: load(path, **kwargs)
    s = str(e.value)
    assert '\n' not in s and len(s)<400, s
    assert all(o in s for o in words), s

# ---- layouts and splits
def test_classes_directly_below(tmp_path):
    dls = load(make(tmp_path/'pets', 10))
    assert dls.vocab==['a','b'] and dls.found==Found('pets', dict(a=10,b=10), 3, (8,8), dict(train=12,valid=4,test=4), ('test','valid'), 0, (8,8), 0, ())
    for ds,n in ((dls.train_ds,6), (dls.valid_ds,2), (open_test(dls).dataset,2)): assert ds.tensors[1].bincount().tolist()==[n,n]
    x,y = every(dls)
    truth = {np.asarray(picture(1000*ord(c)+i)).tobytes(): k for k,c in enumerate('ab') for i in range(10)}
    assert [truth[o.permute(1,2,0).contiguous().numpy().tobytes()] for o in x]==y.tolist() and len(truth)==20
    assert str(dls.found).splitlines()[0]=='pets: 20 colour images in 2 classes of 10 each (a, b)'

def test_the_seed_draws_the_parts(tmp_path):
    make(tmp_path/'x', 10)
    a,b,c = load(tmp_path/'x'),load(tmp_path/'x'),load(tmp_path/'x', seed=1)
    assert torch.equal(every(a)[0], every(b)[0]) and not torch.equal(every(a)[0], every(c)[0])

@pytest.mark.parametrize('names,made', [(('train','test'),('valid',)), (('train','valid'),('test',)), (('train','val'),('test',)), (('train','valid','test'),()),
    (('train','val','test'),()), (('training','testing'),('valid',)), (('Train','Test'),('valid',)), (('train',),('test','valid'))])
def test_parts_that_are_folders(tmp_path, names, made):
    for k,o in enumerate(names): make(tmp_path/'x'/o, 10, start=100*k)
    dls = load(tmp_path/'x')
    assert dls.found.made==made and dls.vocab==['a','b'] and sum(dls.found.parts.values())==20*len(names) and dls.found.repeated==0
    for part,n in dls.found.parts.items(): assert n==(20 if part!='train' and part not in made else 4 if part in made else 20-4*len(made))

def test_other_folders_beside_the_parts_are_not_classes(tmp_path):
    for o in ('train','valid'): make(tmp_path/'x'/o, 10)
    make(tmp_path/'x'/'models')
    assert load(tmp_path/'x').vocab==['a','b']

def test_a_train_is_a_vehicle(tmp_path):
    assert load(make(tmp_path/'x', classes=('bus','car','train'))).vocab==['bus','car','train']

def test_layouts_that_are_refused(tmp_path):
    refused(tmp_path/'lost', 'lost is not a folder', error=FileNotFoundError)
    refused(put(tmp_path/'one.png', picture(0)), 'is not a folder', error=FileNotFoundError)
    (tmp_path/'empty').mkdir()
    refused(tmp_path/'empty', 'empty holds no folders', 'one folder per class')
    put(tmp_path/'flat'/'0.png', picture(0)); refused(tmp_path/'flat', 'flat holds no folders', 'CLASS/IMAGE')
    refused(make(tmp_path/'one', classes='a'), 'holds one class, a', 'at least 2')
    make(tmp_path/'deep'/'a', classes='xy'), make(tmp_path/'deep'/'b', classes='xy')
    refused(tmp_path/'deep', 'deep/a holds a folder, x', 'one folder per class')
    make(tmp_path/'wrap'/'inner'); refused(tmp_path/'wrap', 'is it', 'wrap/inner that you mean?')
    (make(tmp_path/'hollow')/'c').mkdir()
    refused(tmp_path/'hollow', 'hollow/c holds no images', '.png')
    make(tmp_path/'two'/'train'), make(tmp_path/'two'/'val'), make(tmp_path/'two'/'valid')
    refused(tmp_path/'two', 'val and valid')
    make(tmp_path/'late'/'test'), make(tmp_path/'late'/'valid')
    refused(tmp_path/'late', 'no folder `train`')
    make(tmp_path/'other'/'train'), make(tmp_path/'other'/'test', classes='ac')
    refused(tmp_path/'other', 'only in the first: c', 'only in the second: b')
    make(tmp_path/'contest'/'train'), put(tmp_path/'contest'/'test'/'0.png', picture(0))
    refused(tmp_path/'contest', 'test holds no folders', 'give', 'contest/train alone')
    put(tmp_path/'bare'/'train'/'0.png', picture(0)), put(tmp_path/'bare'/'test'/'0.png', picture(0))
    refused(tmp_path/'bare', 'train holds no folders')

def test_too_few_images(tmp_path):
    refused(make(tmp_path/'x', 4), 'test and valid cannot be drawn', '5 training images of each class', 'a has 4, b has 4')
    refused(make(tmp_path/'many', 1, 'abcdefgh'), 'a has 1, b has 1, c has 1, and 5 more')
    dls = load(make(tmp_path/'y', 5))
    assert dls.found.parts==dict(train=6,valid=2,test=2)
    for o in ('train','valid','test'): make(tmp_path/'z'/o, 1, 'abc')
    assert load(tmp_path/'z').found.parts==dict(train=3,valid=3,test=3)         # nothing to be drawn: nothing to refuse

@pytest.mark.parametrize('few,many', [(5,200), (5,7), (6,5001), (9,11)])
def test_each_class_is_in_each_part(few, many):
    y = torch.tensor([0]*few+[1]*many)
    parts,_ = own_data._fill_parts(dict(train=(torch.arange(len(y)), y)), 'ab', 0)
    assert all(len(o.unique())==2 for _,o in parts.values())
    assert torch.equal(torch.cat([x for x,_ in parts.values()]).sort().values, torch.arange(len(y)))

def test_long_names_and_many_classes_in_one_line(tmp_path):
    classes = [f'a class with quite a long name {i:02}' for i in range(12)]
    s = str(load(make(tmp_path/'x', classes=classes)).found).splitlines()[0]
    assert s.startswith('x: 60 colour images in 12 classes of 5 each (a class') and s.endswith('...)') and len(s)<140

def test_n_train(tmp_path):
    dls = load(make(tmp_path/'x', 20), n_train=10)
    assert dls.found.parts==dict(train=10,valid=8,test=8) and dls.train_ds.tensors[1].bincount().tolist()==[5,5]
    refused(tmp_path/'x', 'n_train=1 of 24', n_train=1)

# ---- size and channels
@pytest.mark.parametrize('size,want', [((8,8),(8,8)), ((32,32),(32,32)), ((12,20),(20,12)), ((33,33),(32,32)), ((64,48),(32,32)), ((300,200),(32,32))])
def test_one_size(tmp_path, size, want):
    dls = load(make(tmp_path/'x', size=size))
    assert dls.found.size==want==tuple(dls.one_batch()[0].shape[2:])
    assert dls.found.resized==(0 if want==size[::-1] else 10)

def test_different_sizes(tmp_path):
    make(tmp_path/'x', 8, size=(10,14)), put(tmp_path/'x'/'a'/'big.png', picture(1, (640,480)))
    dls = load(tmp_path/'x')
    assert dls.found.size==(10,10) and dls.found.resized==17 and dls.found.was==(10,480)
    assert '17 resized and centre-cropped to 10x10 pixels; their shorter sides were 10 to 480' in str(dls.found)
    assert load(tmp_path/'x', size=16).found.size==(16,16)

def test_the_centre_is_kept(tmp_path):
    make(tmp_path/'x', size=(8,8))
    wide = Image.new('RGB', (64,32), 'red'); wide.paste('blue', (16,0,48,32))
    put(tmp_path/'x'/'a'/'wide.png', wide)
    assert (of_first(load(tmp_path/'x', size=8))[:,2,:,1:-1].flatten(1)==255).all(1).sum()==1

@pytest.mark.parametrize('size', [0, 3, 257, 16., '16', (16,16)])
def test_sizes_that_are_refused(tmp_path, size): refused(tmp_path, 'allowed is the side of an image in whole pixels, 4 to 256', size=size)

def test_tiny_images_are_made_larger_if_that_is_said(tmp_path):
    refused(make(tmp_path/'x', size=(2,2)), 'images of 2x2 pixels; at least 4x4', 'size=8')
    assert load(tmp_path/'x', size=8).found.size==(8,8)

def test_more_than_fits_is_refused(tmp_path, monkeypatch):
    make(tmp_path/'x')
    monkeypatch.setattr(own_data, '_each', lambda files, f: [(8,8)]*len(files))
    files = dict(train=[('f',0)]*30_000)
    with pytest.raises(ValueError, match='30,000 images of 256x256 pixels need 5 GB of memory, allowed are 4'): own_data._folder_parts(tmp_path, 256, files, 'k')

def test_grey_is_grey_however_it_is_written(tmp_path):
    for mode in ('L','RGB'):
        make(tmp_path/mode, mode='L')
        if mode=='RGB':
            for f in (tmp_path/mode).rglob('*.png'): Image.open(f).convert('RGB').save(f)
    a,b = load(tmp_path/'L'),load(tmp_path/'RGB')
    assert a.found.channels==b.found.channels==1 and torch.equal(every(a)[0], every(b)[0])
    put(tmp_path/'L'/'a'/'c.png', picture(0))
    assert load(tmp_path/'L').found.channels==3

# ---- files of all kinds
def test_kinds_of_pictures(tmp_path):
    make(tmp_path/'x', 6, 'b')
    g = picture(0, mode='L')
    put(tmp_path/'x'/'a'/'0.png', g); put(tmp_path/'x'/'a'/'1.png', g.convert('RGB')); put(tmp_path/'x'/'a'/'2.png', g.convert('P'))
    put(tmp_path/'x'/'a'/'3.png', Image.fromarray(np.asarray(g).astype(np.uint16)<<8))
    put(tmp_path/'x'/'a'/'4.tif', Image.fromarray((np.asarray(g).astype(np.int32)<<8)+7))
    put(tmp_path/'x'/'a'/'5.webp', g.convert('RGB'), lossless=True); put(tmp_path/'x'/'a'/'6.bmp', g); put(tmp_path/'x'/'a'/'7.PNG', g)
    put(tmp_path/'x'/'a'/'8.gif', g, save_all=True, append_images=[picture(1, mode='L')], loop=0)
    put(tmp_path/'x'/'a'/'9.png', Image.merge('LA', (g,Image.new('L', g.size, 255))))
    x = of_first(load(tmp_path/'x'))
    assert len(x)==10 and (x==torch.from_numpy(np.asarray(g).copy())).all()

def test_transparency_is_white(tmp_path):
    make(tmp_path/'x', 5)
    glyph = Image.new('RGBA', (8,8), (0,0,0,0)); glyph.paste((0,0,0,255), (0,0,4,8))
    put(tmp_path/'x'/'a'/'0.png', glyph)
    keyed = Image.new('P', (8,8), 1); keyed.putpalette([0,0,0, 9,9,9]); keyed.paste(0, (0,0,4,8))
    put(tmp_path/'x'/'a'/'1.png', keyed, transparency=1)
    want = torch.full((3,8,8), 255); want[:,:,:4] = 0
    assert (of_first(load(tmp_path/'x'))==want).flatten(1).all(1).sum()==2

def test_cameras_that_were_turned(tmp_path):
    make(tmp_path/'x', 5, size=(8,8))
    half = Image.new('RGB', (8,8), 'white'); half.paste('black', (0,0,8,4))
    exif = Image.Exif(); exif[274] = 6                                # to be turned a quarter, clockwise
    put(tmp_path/'x'/'a'/'0.png', half, exif=exif)
    want = torch.full((3,8,8), 255); want[:,:,4:] = 0
    assert (of_first(load(tmp_path/'x'))==want).flatten(1).all(1).sum()==1

def test_cmyk_and_large_jpgs(tmp_path):
    make(tmp_path/'x', mode='CMYK', size=(40,40))
    put(tmp_path/'x'/'a'/'big.jpg', Image.new('RGB', (2000,1500), (200,30,30)))
    x = of_first(load(tmp_path/'x')).float()
    assert ((x-torch.tensor([200,30,30.])[:,None,None]).abs()<4).flatten(1).all(1).sum()==1

def test_files_that_are_none(tmp_path):
    make(tmp_path/'x', 6)
    for o in ('a/notes.txt','a/.DS_Store','b/Thumbs.db','a/shot.heic','b/.hidden.png','labels.csv','.git/0.png'):
        f = tmp_path/'x'/o; f.parent.mkdir(exist_ok=True); f.write_text('no image')
    dls = load(tmp_path/'x')
    assert dls.found.left_out==('a/notes.txt','a/shot.heic','b/Thumbs.db') and sum(dls.found.parts.values())==12
    assert str(dls.found).endswith('3 file(s) left out, no images by their names, e.g. a/notes.txt')

def half(f): f.write_bytes(f.read_bytes()[:100])
@pytest.mark.parametrize('spoil', [lambda f: f.write_bytes(b''), lambda f: f.write_text('no image'), half, lambda f: (f.unlink(), f.symlink_to('nowhere'))[0], lambda f: (f.unlink(), os.mkfifo(f))[0],
    lambda f: Image.fromarray(np.zeros((8,8), np.float32)).save(f, 'TIFF')], ids='empty text half dangling pipe float'.split())
def test_broken_files_are_named(tmp_path, spoil):
    make(tmp_path/'x', 6)
    spoil(tmp_path/'x'/'a'/'003.png')
    refused(tmp_path/'x', 'a/003.png')
    assert not (tmp_path/'x.safetensors').exists()

def test_many_broken_files_are_counted(tmp_path):
    make(tmp_path/'x', 6)
    for i in range(4): (tmp_path/'x'/'b'/f'{i:03}.png').write_text('no image')
    refused(tmp_path/'x', 'b/000.png cannot be read as an image', 'nor can 3 others of 12 files')

def test_an_unreadable_folder_is_named(tmp_path, monkeypatch):
    make(tmp_path/'x', 6)
    real = os.scandir
    def shut(p):
        if str(p).endswith('b'): raise PermissionError(13, 'Permission denied', str(p))
        return real(p)
    monkeypatch.setattr(data.os, 'scandir', shut)
    refused(tmp_path/'x', 'Permission denied', 'x/b', error=PermissionError)

def test_links(tmp_path):
    make(tmp_path/'real', 6), (tmp_path/'x').mkdir()
    for c in 'ab': (tmp_path/'x'/c).symlink_to(tmp_path/'real'/c)
    (tmp_path/'y').symlink_to(tmp_path/'x')
    for o in 'xy': assert sum(load(tmp_path/o).found.parts.values())==12
    (tmp_path/'real'/'a'/'loop').symlink_to(tmp_path/'real')
    refused(tmp_path/'x', 'x/a holds a folder, loop')

def test_names_of_all_tongues(tmp_path, monkeypatch):
    dls = load(make(tmp_path/'фото 写真', classes=('äpfel und birnen','猫','#1, "x"')))
    assert set(dls.vocab)=={'äpfel und birnen','猫','#1, "x"'} and '猫' in str(dls.found)
    monkeypatch.chdir(tmp_path/'фото 写真')
    assert load('.').found.name=='фото 写真'
    bad = os.fsencode(make(tmp_path/'latin'))+b'/caf\xe9'
    os.rename(tmp_path/'latin'/'b', bad)
    refused(tmp_path/'latin', 'cannot be printed; rename its folder')

def test_images_that_are_in_two_parts_are_counted(tmp_path):
    make(tmp_path/'x'/'train', 10), make(tmp_path/'x'/'test', 3)
    assert load(tmp_path/'x').found.repeated==6
    assert '6 image(s) to validate or test are in an earlier part as well, pixel by pixel' in str(load(tmp_path/'x').found)

# ---- deep pixels, large pixels
GREY16 = np.full((8,8), 20000, np.uint16)                             # of 65535: 78 of 255
def png16(kind, n):
    "A 16-bit PNG of colour type `kind` with `n` channels of 20000"
    chunk = lambda k,d: struct.pack('>I', len(d))+k+d+struct.pack('>I', zlib.crc32(k+d))
    rows  = (b'\0'+struct.pack('>H', 20000)*8*n)*8
    return (b'\x89PNG\r\n\x1a\n'+chunk(b'IHDR', struct.pack('>IIBBBBB', 8, 8, 16, kind, 0, 0, 0))
            +chunk(b'IDAT', zlib.compress(rows))+chunk(b'IEND', b''))
DEEP = {'grey.png': png16(0, 1), 'colour.png': png16(2, 3), 'grey.pgm': b'P5 8 8 65535\n'+GREY16.astype('>u2').tobytes(),
        'colour.ppm': b'P6 8 8 65535\n'+np.repeat(GREY16.astype('>u2'), 3).tobytes(), '16.tif': GREY16, '32.tif': GREY16.astype(np.int32)}
def put_any(f, o): f.parent.mkdir(parents=True, exist_ok=True); f.write_bytes(o) if isinstance(o, bytes) else Image.fromarray(o).save(f); return f

@pytest.mark.parametrize('name', DEEP)
def test_deep_pixels_are_scaled(tmp_path, name):
    f = put_any(tmp_path/'x'/'a'/name, DEEP[name])
    make(tmp_path/'x', 5)
    x = of_first(load(tmp_path/'x'))
    assert (x==78).flatten(1).all(1).sum()==1
    to = data._ToImage((3,8,8))                                       # what `predict` does to an item
    for o in (f, str(f), Image.open(f)): assert (to(o)==78).all()

@pytest.mark.parametrize('pixels,words', [(np.full((8,8), .3, np.float32), 'mode F, its pixels are decimal numbers'), (np.full((8,8), 20000, np.float32), 'mode F'),
                                          (np.full((8,8), 2**24, np.int32), 'mode I, its pixels lie in 16777216..16777216'), (np.full((8,8), -5, np.int32), 'in -5..-5; 16 bits allow 0..65535')])
def test_pixels_that_no_one_can_scale_are_refused_with_file_and_mode(tmp_path, pixels, words):
    f = put_any(tmp_path/'x'/'a'/'0.tif', pixels)
    make(tmp_path/'x', 5)
    refused(tmp_path/'x', 'a/0.tif cannot be read as an image', words)
    for o in (f, Image.open(f)):
        with pytest.raises(ValueError, match='0.tif cannot be read as an image') as e: data._ToImage((3,8,8))(o)
        assert words in str(e.value)

@pytest.mark.parametrize('item', [GREY16, GREY16/65535, GREY16.astype(np.float32), np.ones((8,8), bool), np.ones((8,8,4), np.uint8), np.ones((3,8,8), np.uint8), np.ones((1,8,8,3), np.uint8),
                                  torch.rand(3,8,8), torch.ones(8,8, dtype=torch.uint8), np.array(3), None, 5, [1,2]], ids=lambda o: f'{type(o).__name__} {getattr(o, "dtype", "")}')
def test_an_item_that_is_no_image(item):
    with pytest.raises(ValueError, match='^an image of .* where uint8 .3, 8, 8. is needed') as e: data._ToImage((3,8,8))(item)
    assert len(str(e.value))<300

def test_a_file_to_predict_that_is_none(tmp_path):
    to,f = data._ToImage((3,8,8)),tmp_path/('long'*40+'.png')
    with pytest.raises(FileNotFoundError, match='nowhere.png cannot be read as an image .No such file'): to(tmp_path/'nowhere.png')
    for b in (b'', b'no image', png16(0, 1)[:-30], b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n'):    # what another program would have to draw is none
        f.write_bytes(b)
        with pytest.raises(ValueError, match='long.png cannot be read as an image') as e: to(f)
        assert len(str(e.value))<300

def test_a_huge_picture_in_a_small_file(tmp_path, recwarn):
    make(tmp_path/'x', 5)
    for wh,words in (((6000,6000),'6000x6000 pixels; allowed are 33,554,432'), ((9500,9500),'9500x9500 pixels'), ((14000,14000),'Image size (196000000 pixels)')):
        f = put(tmp_path/'x'/'a'/'0.png', Image.new('1', wh))
        refused(tmp_path/'x', 'a/0.png cannot be read as an image', words, size=8)
    put(tmp_path/'x'/'a'/'0.jpg', Image.new('L', (6000,6000))), f.unlink()    # of a jpg no more is decoded than is needed
    assert sum(load(tmp_path/'x', size=8).found.parts.values())==11
    assert not [o for o in recwarn if 'Decompression' in o.category.__name__]

def test_hidden_folders_are_no_classes_and_endings_have_any_case(tmp_path):
    make(tmp_path/'x', 5)
    for p in ('.ipynb_checkpoints','a/.ipynb_checkpoints','.cache'): make(tmp_path/'x'/p, 1, 'c')
    for n in ('0.PNG','1.Png'): put(tmp_path/'x'/'a'/n, picture(7), format='PNG')
    for n in ('2.JPEG','3.JpG'): put(tmp_path/'x'/'b'/n, picture(8), format='JPEG')
    dls = load(tmp_path/'x')
    assert dls.vocab==['a','b'] and dls.found.classes==dict(a=7, b=7) and not dls.found.left_out

@pytest.mark.parametrize('name', ['<img src=x onerror=alert(1)>', '**a** | b', '&amp;'])
def test_any_printable_name_is_a_class(tmp_path, name):
    dls = load(make(tmp_path/'x', classes=('b',name)))
    assert name in dls.vocab and name in str(dls.found)

def test_a_single_pixel(tmp_path):
    make(tmp_path/'x', 5), put(tmp_path/'x'/'a'/'dot.png', picture(1, (1,1)))
    assert load(tmp_path/'x').found.size==(8,8)
    refused(make(tmp_path/'y', 5, size=(1,1)), 'images of 1x1 pixels; at least 4x4', 'size=8')

@pytest.mark.parametrize('bs', [0, -3, 2.5, None, '8'])
def test_batch_sizes_that_are_refused(tmp_path, bs): refused(make(tmp_path/'x'), f'bs is {bs!r}, allowed is an integer of 1 or more', bs=bs)

# ---- 20,000 spoilt files
def small_files():
    "Images of a few bytes, of each kind that is read"
    g,res = np.random.default_rng(0),[]
    noise = lambda mode: Image.fromarray(g.integers(0, 256, (9,11,4), dtype=np.uint8), 'RGBA').convert(mode)
    def add(img, kind, **kwargs): b = io.BytesIO(); img.save(b, kind, **kwargs); res.append(b.getvalue())
    for m in ('1','L','LA','P','RGB','RGBA'): add(noise(m), 'PNG')
    add(Image.fromarray(g.integers(0, 2**16, (9,11)).astype(np.uint16)), 'PNG'), add(noise('P'), 'PNG', transparency=3)
    for m in ('L','RGB','CMYK'): add(noise(m), 'JPEG')
    add(noise('RGB'), 'JPEG', progressive=True), add(noise('L'), 'JPEG', exif=b'Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0')
    add(noise('P'), 'GIF'), add(noise('P'), 'GIF', save_all=True, append_images=[noise('P')]*2, transparency=1)
    for m,kind in (('RGB','BMP'),('L','TIFF'),('RGBA','WEBP'),('RGB','PPM'),('RGB','JPEG2000')): add(noise(m), kind)
    return res

def spoilt(b, g):
    "`b` with a few bytes flipped, set, cut out or put in; a PNG gets its checksums right again, mostly"
    b = bytearray(b)
    for _ in range(g.integers(1, 6)):
        i,how = int(g.integers(max(1, min(len(b), 64) if g.random()<.5 else len(b)))),g.integers(6)
        if not b: break
        if   how==0: b[i] ^= 1<<int(g.integers(8))
        elif how==1: b[i] = int(g.choice([0,1,127,128,255]))
        elif how==2: del b[i:i+int(g.integers(1, 9))]
        elif how==3: b[i:i] = g.bytes(int(g.integers(1, 9)))
        elif how==4 and g.random()<.3: del b[i:]
        elif how==5: b[i:i+4] = struct.pack(str(g.choice(['>I','<I'])), int(g.choice([0,1,2**15,2**16-1,2**31-1,2**32-1,7000,5000])))
    b = bytes(b)
    if b[:4]!=b'\x89PNG' or g.random()<.3: return b
    out,i = b[:8],8
    while i+12<=len(b) and i+12+(n := struct.unpack('>I', b[i:i+4])[0])<=len(b):
        out,i = out+b[i:i+8+n]+struct.pack('>I', zlib.crc32(b[i+4:i+8+n])),i+12+n
    return out+b[i:]

def test_spoilt_images_are_one_line_each(tmp_path, recwarn, n=20_000):
    g,files,f = np.random.default_rng(0),small_files(),tmp_path/'a file.png'
    read = (data._ToImage((3,8,8)), lambda f: data._each([(f,0)], lambda f: np.asarray(data._read_image(f, 'RGB', (8,8)))))
    memory,worst,images = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,0,0
    before = memory()
    for i in range(n):
        f.write_bytes(spoilt(files[i%len(files)], g))
        t = time.process_time()
        try: read[i%2](f); images += 1
        except ValueError as e:
            e = str(e)
            assert e.startswith(f'{f} cannot be read as an image') and len(e)<300+len(str(f)) and e.isprintable(), (i, e)
        worst = max(worst, time.process_time()-t)
    assert worst<2 and memory()-before<2**20 and n/20<images<n/2 and not recwarn.list, (worst, memory()-before, images)

# ---- what is kept
def test_decoded_once(tmp_path, monkeypatch):
    a = load(make(tmp_path/'x', 6))
    monkeypatch.setattr(data, '_read_image', lambda *args: 1/0)
    assert torch.equal(every(a)[0], every(load(tmp_path/'x'))[0]) and load(tmp_path/'x').found==a.found
    refused(tmp_path/'x', 'cannot be read', size=4)                  # another size is made anew
    (tmp_path/'x'/'a'/'000.png').touch()
    refused(tmp_path/'x', 'cannot be read')                          # so is a folder that has changed

def test_a_spoilt_cache_and_a_place_that_cannot_be_written(tmp_path, monkeypatch):
    a = load(make(tmp_path/'x', 6))
    (tmp_path/'x.safetensors').write_bytes(b'half a file')
    assert torch.equal(every(a)[0], every(load(tmp_path/'x'))[0])
    (tmp_path/'x.safetensors').unlink(); (tmp_path/'x.safetensors').mkdir()
    assert torch.equal(every(a)[0], every(load(tmp_path/'x'))[0])

def test_a_file_of_somebody_else_stays(tmp_path):
    from safetensors.torch import save_file
    save_file(dict(w=torch.ones(3)), tmp_path/'x.safetensors')      # weights of a network, beside its images
    before = (tmp_path/'x.safetensors').read_bytes()
    load(make(tmp_path/'x', 6))
    assert (tmp_path/'x.safetensors').read_bytes()==before

# ---- a network of it
@pytest.mark.parametrize('mode', ['L','RGB'])
def test_a_file_is_predicted_as_it_was_trained(tmp_path, mode):
    from enas_nb.all import MacroSpace,arch_learner
    dls = load(make(tmp_path/'x', 10, mode=mode, size=(50,40)))
    x,_ = every(dls)
    to = data._ToImage(tuple(x.shape[1:]))
    seen = {o.contiguous().numpy().tobytes() for o in x}
    for f in (tmp_path/'x').rglob('*.png'):
        for o in (f, str(f), Image.open(f)): assert to(o).contiguous().numpy().tobytes() in seen
    space = MacroSpace(2)
    learn = arch_learner(dls, space.archs(space.random(1))[0], width=4, path=tmp_path)
    learn.fit(1)
    learn.export('m.pkl')
    again,f = load_learner(tmp_path/'m.pkl'),next((tmp_path/'x').rglob('*.png'))
    name,_,p = again.predict(f)
    assert name in 'ab' and torch.allclose(p, learn.get_preds(dl=learn.dls.test_dl([f]))[0][0], atol=1e-5)

def test_nothing_is_mirrored_by_default(tmp_path):
    arrow = np.zeros((8,8,3), np.uint8); arrow[3:5,:4] = 255
    for c in 'ab':
        for i in range(5): put(tmp_path/'x'/c/f'{i}.png', Image.fromarray(np.where(arrow, 255-i, ord(c)-97).astype(np.uint8)))
    dls = load(tmp_path/'x', bs=6)
    for _ in range(5):
        for xb,_ in dls.train: assert (xb.as_subclass(torch.Tensor)[...,:4].mean((1,2,3)) > xb.as_subclass(torch.Tensor)[...,4:].mean((1,2,3))).all()

@pytest.mark.parametrize('pad', [1/8, .25])
def test_a_pad_that_is_a_share(pad):
    x = TensorImage(torch.randn(6,3,8,12))
    a,b = PadCropFlip(pad),PadCropFlip(int(8*pad))
    for o in (a,b): o.generator = rng(0, 'augment')
    assert torch.equal(a(x, split_idx=0), b(x, split_idx=0)) and not torch.equal(a(x, split_idx=0), x)

# ---- the tutorial
TUTORIAL = Path(__file__).parents[1]/'nbs'/'tutorials'/'08_your_own_data.ipynb'

def test_the_commands_of_the_tutorial(tmp_path, monkeypatch, capsys):
    from enas_nb.cli import enas_search
    text = '\n'.join(''.join(c['source']) for c in json.loads(TUTORIAL.read_text(encoding='utf-8'))['cells'] if c['cell_type']=='markdown')
    commands = re.findall(r'```bash\n(enas-search .*--images photos)\n```', text)
    assert commands==['enas-search digits-macro --images photos']
    with pytest.raises(SystemExit): enas_search(['--help'])
    if '--images' not in capsys.readouterr().out: pytest.skip('enas-search has no --images yet')
    make(tmp_path/'photos', 10)
    monkeypatch.chdir(tmp_path)
    assert enas_search([*commands[0].split()[1:], '--epochs', '1', '--out', 'run'])==0
    assert 'photos' in (tmp_path/'run'/'report.md').read_text(encoding='utf-8')
