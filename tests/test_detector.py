"The detector in one file: pictures of all kinds in, boxes in their own pixels out; files that are none are refused"
import copy
from importlib.resources import files
import numpy as np, pytest, torch, torchvision
from PIL import Image
from objdet.detector import Detector, TopDownHead, _open, _read_detector, find_pictures, load_detector
from objdet.focal_nms import detect
from objdet.learner import set_seed, write_whole
from objdet.pascal_data import DetectionDataset, load_annotations, pad_batch, squash
from objdet.single_obj import create_body
from objdet.score import mean_ap
from objdet.sources import get_data
from objdet.ssd_loss import SSDHead, SSDMultiHead
from conftest import needs_voc, voc

ANCHORS, ARGS = ([4, 2], [1.], [(1., 1.), (1., .5)]), dict(k=2, bias=-1., nf=16, n_grids=2)

def make(seed=0):
    set_seed(seed)
    body = create_body('symbols', 'DEFAULT')
    return Detector(body, SSDMultiHead(body.channels, 3, **ARGS), ['cat', 'dog', 'owl'], ANCHORS, 112, ARGS, notes=dict(made=(1, np.float32(.5)))).eval()

@pytest.fixture(scope='module')
def det(): return make()

@pytest.fixture(scope='module')
def val(): return load_annotations(get_data('sample'), 'val')

def picture(w=150, h=90, seed=0): return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)

def same(a, b, tol=0.):
    assert a['names'] == b['names'] and a['labels'].equal(b['labels']), (a, b)
    for k in 'boxes', 'scores': torch.testing.assert_close(a[k], b[k], rtol=0, atol=tol)

# --- predict

def test_predict_is_detect_on_the_squashed_validation_batch_scaled(det, val):
    "Another resize, normalization or scaling than in training would show"
    ds = DetectionDataset(val, squash(112))
    x, _ = pad_batch([ds[i] for i in range(6)])
    with torch.no_grad(): want = detect(det(x), det.anchors, det.grid_sizes, 112, thresh=.2)
    got = det.predict([r.file for r in val.records[:6]], thresh=.2, bs=4)
    assert sum(len(d['scores']) for d in got) > 20
    for d, g, r in zip(want, got, val.records):
        scale = torch.tensor([r.width, r.height]*2)/112
        assert g['labels'].equal(d['labels'])
        torch.testing.assert_close(g['boxes']/scale, d['boxes'], rtol=0, atol=1e-4)
        torch.testing.assert_close(g['scores'], d['scores'], rtol=0, atol=1e-4)

def test_every_kind_of_picture_gives_the_same(det, tmp_path):
    a = picture()
    Image.fromarray(a).save(tmp_path/'a.png')
    tensor = torch.from_numpy(a).permute(2, 0, 1)
    want, = det.predict(a, thresh=.2)
    assert len(want['scores'])
    kinds = [a[::-1][::-1], np.asfortranarray(a), tensor, tensor.contiguous(), torchvision.tv_tensors.Image(tensor), Image.fromarray(a), tmp_path/'a.png', str(tmp_path/'a.png')]
    frozen = a.copy(); frozen.flags.writeable = False
    for got in [*det.predict([*kinds, frozen], thresh=.2), *det.predict(tmp_path, thresh=.2), *det.predict(iter([a]), thresh=.2)]: same(got, want, 1e-4)

@pytest.mark.parametrize('orientation', range(1, 9))
def test_boxes_are_in_the_pixels_of_the_upright_picture(det, tmp_path, orientation):
    "A telephone's picture on its side gives sideways boxes where EXIF is forgotten"
    upright = Image.fromarray(picture())
    stored = {1: [], 2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}[orientation] # Image.Transpose, inverse of what the note says
    im = upright
    for t in stored: im = im.transpose(Image.Transpose(t))
    exif = Image.Exif(); exif[274] = orientation
    im.save(tmp_path/'a.png', exif=exif)
    assert _open(tmp_path/'a.png').equal(_open(upright))
    with Image.open(tmp_path/'a.png') as again: assert _open(again).equal(_open(upright))

def test_boxes_stay_in_the_picture_and_are_plain(det):
    d, = det.predict(picture(333, 77), thresh=.0, top_k=1000)
    assert d['boxes'].dtype == d['scores'].dtype == torch.float32 and d['labels'].dtype == torch.int64 and len(d['scores']) > 50
    assert d['boxes'].min() >= 0 and (d['boxes'] <= torch.tensor([333, 77]*2)).all() and (d['boxes'][:, 2:] > d['boxes'][:, :2]).all()
    assert d['scores'].equal(d['scores'].sort(descending=True).values) and d['names'] == [det.classes[i] for i in d['labels']]
    d['boxes'] *= 2; d['scores'].mul_(torch.ones(1, requires_grad=True).detach()) # no inference tensors: they could not be changed in place
    assert not any(d[k].is_inference() for k in ('boxes', 'scores', 'labels'))

def test_nothing_found_and_nothing_given(det):
    d, = det.predict(picture(), thresh=1.)
    assert d['boxes'].shape == (0, 4) and d['scores'].shape == d['labels'].shape == (0,) and d['names'] == []
    assert det.predict([]) == []
    assert len(det.predict(picture(1, 1))) == 1 and len(det.predict(picture(900, 2))) == 1

def test_a_training_detector_answers_as_in_evaluation_and_goes_on_training(det):
    "Dropout and batch statistics would change the answer, and the answer would change the statistics"
    want = det.predict(picture(), thresh=.2)[0]
    one = copy.deepcopy(det).train()
    one.body.eval()
    modes, state = [m.training for m in one.modules()], {k: v.clone() for k, v in one.state_dict().items()}
    same(one.predict(picture(), thresh=.2)[0], want)
    assert modes == [m.training for m in one.modules()] and all(v.equal(state[k]) for k, v in one.state_dict().items())

def test_one_batch_of_squares_at_a_time(det, monkeypatch):
    "A folder larger than the memory: no more than `bs` squares are held, each picture squashed as soon as it is open"
    sizes, inner = [], Detector._detect
    monkeypatch.setattr(Detector, '_detect', lambda self, x, *a: sizes.append(tuple(x.shape)) or inner(self, x, *a))
    assert len(det.predict([picture()]*7, bs=3)) == 7
    assert sizes == [(3, 3, 112, 112)]*2 + [(1, 3, 112, 112)]

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA')
def test_moves_to_another_device(det):
    there = copy.deepcopy(det).to('cuda')
    d, = there.predict(picture(), thresh=.2)
    assert d['boxes'].device.type == 'cpu' and len(d['boxes'])

def test_moves_of_type_take_everything_along(det):
    "The buffers move with the weights: double in, double anchors"
    moved = copy.deepcopy(det).double()
    same(moved.predict(picture(), thresh=.2)[0], det.predict(picture(), thresh=.2)[0], 1e-3)

# --- pictures that are none

bad = {'None': (None, TypeError, 'picture 1 is None'), 'a number': (3.5, TypeError, 'picture 1 is 3.5'),
       'float tensor': (torch.zeros(3, 4, 4), ValueError, 'picture 1: tensor of torch.float32; expected uint8'),
       'float array': (np.zeros((4, 4, 3)), ValueError, 'picture 1: array of float64'), '16 bits': (np.zeros((4, 4, 3), np.uint16), ValueError, 'uint16'),
       'batch': (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), ValueError, 'give list(x)'), 'gray': (np.zeros((4, 5), np.uint8), ValueError, '(4, 5); expected (h, w, 3)'),
       'RGBA': (np.zeros((4, 5, 4), np.uint8), ValueError, '(4, 5, 4); expected (h, w, 3)'), 'channels last': (torch.zeros(4, 5, 3, dtype=torch.uint8), ValueError, 'expected (3, h, w)'),
       'empty': (np.zeros((0, 5, 3), np.uint8), ValueError, '(0, 5, 3)'), 'missing': ('no/such.jpg', FileNotFoundError, 'no/such.jpg: no such picture')}

@pytest.mark.parametrize('what', bad)
def test_what_is_no_picture_is_named_before_anything_is_computed(det, what, monkeypatch):
    o, error, words = bad[what]
    monkeypatch.setattr(Detector, '_detect', lambda *a: pytest.fail('it was asked already'))
    with pytest.raises(error) as e: det.predict([picture(), o])
    assert words in str(e.value)

def test_files_that_are_no_pictures_are_named(det, tmp_path):
    (tmp_path/'text.jpg').write_text('no picture')
    Image.fromarray(picture()).save(tmp_path/'whole.jpg')
    (tmp_path/'cut.jpg').write_bytes((tmp_path/'whole.jpg').read_bytes()[:2000])
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path/'deep.png')
    for name, words in dict(text='cannot be read', cut='cannot be read', deep='expected 8 bits').items():
        file, = tmp_path.glob(f'{name}.*')
        with pytest.raises(ValueError, match=words) as e: det.predict(file)
        assert str(file) in str(e.value)
    with Image.open(tmp_path/'cut.jpg') as im, pytest.raises(ValueError, match='picture 0: picture cannot be read'): det.predict([im])

def test_folder(det, tmp_path):
    with pytest.raises(ValueError, match='found nothing'): det.predict(tmp_path)
    for name in 'b.JPG', 'a.png', 'c.webp', 'd.bmp', 'e.jpeg': Image.fromarray(picture()).save(tmp_path/name)
    for name in 'notes.txt', '._b.jpg': (tmp_path/name).write_text('')
    (tmp_path/'sub.jpg').mkdir()
    assert [o.name for o in find_pictures(tmp_path)] == ['a.png', 'b.JPG', 'c.webp', 'd.bmp', 'e.jpeg']
    assert len(det.predict(tmp_path)) == 5
    with pytest.raises(ValueError, match='a folder among pictures'): det.predict([tmp_path])
    for o in find_pictures(tmp_path): o.unlink()
    with pytest.raises(ValueError, match='found notes.txt, sub.jpg'): det.predict(str(tmp_path))

@pytest.mark.parametrize('kw', [dict(thresh=30), dict(overlap=-1), dict(top_k=0), dict(bs=0), dict(thresh=float('nan')), dict(bs=4.), dict(top_k=4.), dict(bs='4')], ids=str)
def test_settings_are_checked(det, kw):
    (name, v), = kw.items()
    with pytest.raises(ValueError, match=f'{name} is {v!r}'): det.predict(picture(), **kw)

def test_show(det):
    import matplotlib.pyplot as plt
    ax = det.show(picture(), thresh=.2, title='found')
    n = len(det.predict(picture(), thresh=.2)[0]['scores'])
    assert len(ax.patches) == len(ax.texts) == n > 0 and ax.get_title() == 'found' and ax.get_xlim() == (0, 150)
    assert det.show(picture(), thresh=1., ax=ax) is ax
    with pytest.raises(ValueError, match='2 pictures'): det.show([picture()]*2)
    plt.close('all')

# --- files

def test_file_and_back(det, tmp_path):
    det.save(tmp_path/'a.pt'); one = load_detector(tmp_path/'a.pt')
    one.save(tmp_path/'b.pt'); two = load_detector(tmp_path/'b.pt')
    assert one.plan == two.plan == det.plan and det.plan['notes'] == dict(made=[1, .5]) and not one.training
    states = [_read_detector(tmp_path/f'{o}.pt')[1] for o in 'ab']
    assert list(states[0]) == list(states[1])
    assert all(a.numpy().tobytes() == b.numpy().tobytes() for a, b in zip(*(s.values() for s in states)))
    x = torch.rand(8, 3, 112, 112)
    with torch.no_grad(): a, b = det(x)[0].sigmoid(), one(x)[0].sigmoid()
    assert 0 < (a - b).abs().max() < 5e-3
    same(one.predict(picture(), thresh=.2)[0], two.predict(picture(), thresh=.2)[0])
    assert (tmp_path/'a.pt').stat().st_size < 1.1*sum(v.numel()*v.element_size() for v in states[0].values()) + 1e5

@pytest.mark.parametrize('head', [SSDHead, TopDownHead])
def test_other_heads_come_back(head, tmp_path):
    body = create_body('symbols', 'none')
    args, grids, taps = (dict(k=1, nf=8), [4], None) if head is SSDHead else (dict(k=1, nf=8, n_more=1), [14, 7, 4], (3, 4))
    nin = 256 if head is SSDHead else (112, 256)
    with pytest.raises(ValueError, match='anchors'): Detector(body, head(nin, 2, **args), ['a', 'b'], (grids[:-1] + [9], [1.], [(1., 1.)]), 112, args, taps)
    det = Detector(body, head(nin, 2, **args), ['a', 'b'], (grids, [1.], [(1., 1.)]), 112, args, taps).eval()
    det.save(tmp_path/'d.pt')
    x = torch.rand(2, 3, 112, 112)
    with torch.no_grad(): pairs = zip(det(x), load_detector(tmp_path/'d.pt')(x))
    for a, b in pairs: torch.testing.assert_close(a.sigmoid(), b.sigmoid(), rtol=0, atol=1e-3)

def test_one_outconv_for_all_grids(tmp_path):
    "As many weights as with one each, a weight twice in the file, or a file that brings back one each, would show"
    body, shape = create_body('symbols', 'none'), dict(k=2, nf=8, n_more=2)
    each, one = (TopDownHead((112, 256), 3, **shape, shared=o) for o in (False, True))
    numbers = [sum(p.numel() for p in h.parameters()) for h in (each, one)]
    assert numbers[0] - numbers[1] == 3*sum(p.numel() for p in one.out.parameters()) and len(each.outs) == 4
    keys = [k for k in one.state_dict() if k.startswith('out')]
    assert keys == [f'out.{o}.{w}' for o in ('clas', 'bbox') for w in ('weight', 'bias')]
    det = Detector(body, one, ['a', 'b', 'c'], ([14, 7, 4, 2], [1.], [(1., 1.), (1., .5)]), 112, dict(shape, shared=True), (3, 4)).eval()
    assert [tuple(o.shape) for o in det(torch.zeros(1, 3, 112, 112))] == [(1, n := 2*(14**2 + 7**2 + 4**2 + 2**2), 4), (1, n, 4)]
    det.save(tmp_path/'d.pt')
    again = load_detector(tmp_path/'d.pt')
    assert again.plan == det.plan and again.head.state_dict().keys() == one.state_dict().keys()
    for k, v in again.head.state_dict().items(): torch.testing.assert_close(v, one.state_dict()[k], rtol=1e-3, atol=1e-6)

def test_a_head_of_another_body_is_refused(det):
    "PyTorch's own errors say which sizes differ, and not what was put together"
    body = create_body('symbols', 'none')
    for head, taps in (SSDHead(128, 3), None), (TopDownHead((112, 256), 3), None), (SSDHead(256, 3), (3, 4)):
        with pytest.raises(ValueError, match='body and head do not fit each other'): Detector(body, head, det.classes, ANCHORS, 112, {}, taps)

def test_weights_that_are_not_finite_are_not_written(det, tmp_path):
    "Such a file could not be read again, which one would learn after the training is gone"
    bad = copy.deepcopy(det)
    bad.head.conv0.state_dict()[name := next(iter(bad.head.conv0.state_dict()))].view(-1)[0] = float('nan')
    with pytest.raises(ValueError, match=f"d.pt: not written.*'head.conv0.{name}'"): bad.save(tmp_path/'d.pt')
    assert not list(tmp_path.iterdir())

def test_a_weight_too_large_for_half_precision_survives(det, tmp_path):
    big = copy.deepcopy(det)
    next(m for m in big.modules() if isinstance(m, torch.nn.BatchNorm2d)).running_var[0] = 1e6
    big.save(tmp_path/'d.pt')
    assert max(v.max().item() for v in load_detector(tmp_path/'d.pt').state_dict().values()) == 1e6

def test_what_no_file_can_carry_is_refused(det, tmp_path):
    body = create_body('symbols', 'none')
    with pytest.raises(ValueError, match=r"notes\['x'\] is .*expected a number"): Detector(body, det.head, det.classes, ANCHORS, 112, ARGS, notes=dict(x=torch.ones(1)))
    with pytest.raises(ValueError, match='head is Identity'): Detector(body, torch.nn.Identity(), det.classes, ANCHORS, 112, ARGS)
    own = copy.deepcopy(det); own.plan['body'] = 'my_own'
    with pytest.raises(ValueError, match='my_own'): own.save(tmp_path/'d.pt')
    assert not list(tmp_path.iterdir())

def change(*path, to=None):
    "An edit of what is saved: the value at `path` set to `to`, or removed"
    def edit(d):
        for k in path[:-1]: d = d[k]
        if to is None: del d[path[-1]]
        else: d[path[-1]] = to
    return edit

weight = 'head.outs.0.clas.weight'
edits = {'another kind': (change('kind', to='a checkpoint'), 'not a detector'), 'no kind': (change('kind'), 'not a detector'),
         'a newer format': (change('version', to=2), 'format 2; this objdet reads format 1'), 'no version': (change('version'), 'format None'),
         'no plan': (change('plan'), 'plan is None'), 'no state': (change('state'), 'state is None'), 'state of a list': (change('state', to=[1]), r'state is \[1\]'),
         **{f'no {k}': (change('plan', k), f"no '{k}'") for k in ('body', 'head', 'head_args', 'classes', 'anchors', 'size', 'taps', 'mean', 'std', 'notes')},
         'unknown body': (change('plan', 'body', to='resnet9000'), "unknown body 'resnet9000'"), 'unknown head': (change('plan', 'head', to='FCOS'), "unknown head 'FCOS'"),
         'size of a text': (change('plan', 'size', to='big'), "size is 'big'"), 'no size at all': (change('plan', 'size', to=0), 'size is 0'),
         'classes of numbers': (change('plan', 'classes', to=[1, 2, 3]), r'classes are \[1, 2, 3\]'), 'other classes': (change('plan', 'classes', to=['a']), 'weights .* are .*expected'),
         'other anchors': (change('plan', 'anchors', 0, to=[4, 1]), '40 rows .* 34 anchors'), 'taps out of range': (change('plan', 'taps', to=[99]), 'no detector can be made'),
         'another mean': (change('plan', 'mean', to=[.5, .5, .5]), r'mean is \[0.5, 0.5, 0.5\]; expected \[0.485'), 'another spread': (change('plan', 'std', to=[1., 1., 1.]), r'std is \[1.0, '),
         'strange argument': (change('plan', 'head_args', 'colour', to=1), "no detector can be made.*'colour'"),
         'a weight is missing': (change('state', weight), f"weights '{weight}' are missing"), 'a weight too many': (change('state', 'x', to=torch.ones(2)), "weights 'x' are .2,.; expected none"),
         'another shape': (change('state', weight, to=torch.ones(2)), rf"'{weight}' are .2,.; expected .8, 16, 3, 3."),
         'not finite': (change('state', weight, to=torch.full((8, 16, 3, 3), float('nan'))), f"'{weight}' hold numbers that are not finite"),
         'no tensor': (change('state', weight, to='ones'), f"'{weight}' are missing")}

@pytest.fixture(scope='module')
def saved(det, tmp_path_factory):
    file = tmp_path_factory.mktemp('saved')/'d.pt'
    det.save(file)
    return file

def test_figures_of_numpy_that_came_after_the_training_can_be_read(det, tmp_path):
    "A mean of NumPy's in the notes was written without complaint, and the file could not be loaded"
    before = dict(det.plan['notes'])
    try:
        det.plan['notes'].update(map=np.mean([.5, .6]), ap={'a': np.float32(.25)})
        det.save(tmp_path/'d.pt')
        assert load_detector(tmp_path/'d.pt').plan['notes']['map'] == np.mean([.5, .6])
        det.plan['notes'].update(map=torch.ones(1))
        with pytest.raises(ValueError, match=r"plan\['notes'\]\['map'\] is tensor"): det.save(tmp_path/'e.pt')
        assert not (tmp_path/'e.pt').exists()
    finally: det.plan['notes'] = before

@pytest.mark.parametrize('what', edits)
def test_another_file_is_refused_with_its_name_and_the_value(saved, what, tmp_path):
    edit, words = edits[what]
    d = torch.load(saved, weights_only=True)
    edit(d)
    write_whole(d, tmp_path/'d.pt')
    with pytest.raises(ValueError, match=words) as e: load_detector(tmp_path/'d.pt')
    assert str(e.value).startswith(f'{tmp_path}/d.pt: ')

def test_broken_files_are_refused(saved, tmp_path):
    whole = saved.read_bytes()
    for n in (0, 10, 1000, len(whole)//2, len(whole) - 10):
        (tmp_path/'cut.pt').write_bytes(whole[:n])
        with pytest.raises(ValueError, match='cut.pt: not a file of PyTorch weights'): load_detector(tmp_path/'cut.pt')
    with pytest.raises(FileNotFoundError, match='none.pt'): load_detector(tmp_path/'none.pt')

class Trap:
    "Runs code when it is unpickled"
    def __reduce__(self): return print, ('trapped',)

def test_nothing_in_a_file_runs(tmp_path, capsys):
    torch.save(dict(kind='objdet detector', version=1, plan=Trap(), state={}), tmp_path/'d.pt')
    with pytest.raises(ValueError, match='not a file of PyTorch weights'): load_detector(tmp_path/'d.pt')
    assert 'trapped' not in capsys.readouterr().out

@pytest.mark.parametrize('name', ['sample', 'voc'])
def test_the_detectors_that_ship_are_small(name):
    assert (files('objdet')/'weights'/f'detector_{name}.pt').stat().st_size <= 12e6 # in single precision they would be twice as large

def test_the_detector_for_photographs_says_what_it_is():
    det = load_detector('voc')
    notes = det.plan['notes']
    assert len(det.classes) == 20 and det.size == 288 and set(notes['ap']) == set(det.classes)
    assert notes['map'] == pytest.approx(np.mean(list(notes['ap'].values())), abs=1e-3) and not notes['choose']
    assert {'data', 'body', 'license', 'recipe', 'seed', 'objdet'} <= notes.keys()

@needs_voc
@pytest.mark.filterwarnings('ignore:val')
def test_the_detector_for_photographs_finds_things_in_them():
    "From the files on; a wrong channel order or normalization would halve it"
    det = load_detector('voc')
    val = load_annotations(voc, 'val', classes=det.classes, missing='skip').records[:40]
    found = det.predict([r.file for r in val], thresh=.01)
    truth = [dict(boxes=torch.as_tensor(r.boxes), labels=torch.as_tensor(r.labels), difficult=torch.as_tensor(r.difficult)) for r in val]
    assert mean_ap(found, truth, n_classes=20).map > det.plan['notes']['map'] - .1
