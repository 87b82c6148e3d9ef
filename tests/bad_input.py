"""Bad input: what is wrong, which error, and what the error must name.

`tests/test_bad_input.py` runs every row; the page `nbs/96_bad_input.ipynb` shows what every row says."""
import contextlib, functools, io, json, os, tarfile, tempfile, warnings
from pathlib import Path
from typing import Callable, NamedTuple
from unittest import mock
import numpy as np, torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision import tv_tensors
from objdet import detector
from objdet.anchors_matching import anchor_recall, create_anchors, suggest_anchors
from objdet.bbox_aug import RandomLighting
from objdet.focal_nms import detect
from objdet.learner import Learner, read_weights, steepest
from objdet.multilabel import multi_hot
from objdet.pascal_data import DetectionDataset, dataloaders, load_annotations, pad_batch, read_coco, squash
from objdet.score import mean_ap, recall_at
from objdet.show import normalize, show_boxes, show_img
from objdet.single_obj import SingleObjectDataset, create_body
from objdet.sources import extract, get_data
from objdet.ssd_loss import SSDLoss, SSDMultiHead


class Row(NamedTuple):
    "One kind of bad input"
    name: str
    area: str
    wrong: str # in words
    provoke: Callable # called with an empty folder
    error: type
    parts: tuple # what the message must contain: file, value, what was expected


rows = []


def bad(area, wrong, error, *parts):
    "Add a function that goes wrong to `rows`"
    def add(f): rows.append(Row(f.__name__, area, wrong, f, error, parts)); return f
    return add


def provoke(row):
    "What the row raises in a temporary folder, and its message in one line, with the paths shortened"
    with tempfile.TemporaryDirectory() as tmp, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter('ignore')
        try: row.provoke(Path(tmp).resolve())
        except Exception as e: return e, ' '.join(str(e).replace(f'{Path(tmp).resolve()}/', '').replace(f'{Path.cwd()}/', '').split())
    return None, 'nothing is said'


# what the rows spoil

OBJECT = '<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>'
ANNOTATION = '<annotation><size><width>40</width><height>30</height></size>' + OBJECT.format('cat', 1, 1, 10, 20) + OBJECT.format('dog', 5, 6, 40, 30) + '</annotation>'


def devkit(folder, old='', new=''):
    "A VOC devkit of one picture, 000001, 40 x 30 pixels; a piece of its annotation reads otherwise"
    assert old in ANNOTATION
    for o in ('Annotations', 'JPEGImages', 'ImageSets/Main'): (folder/o).mkdir(parents=True)
    (folder/'ImageSets/Main/train.txt').write_text('000001\n')
    (folder/'Annotations/000001.xml').write_text(ANNOTATION.replace(old, new, 1))
    Image.effect_noise((40, 30), 50).convert('RGB').save(folder/'JPEGImages/000001.jpg')
    return folder


def coco(folder, **changes):
    "A COCO file of one picture of 9 x 9 pixels with one object; `image`, `annotation` and `rest` are changed"
    d = dict(images=[dict(id=1, file_name='a.jpg', width=9, height=9)], categories=[dict(id=1, name='cat')],
             annotations=[dict(id=5, image_id=1, category_id=1, bbox=[1, 1, 3, 3])])
    d['images'][0].update(changes.get('image', {})); d['annotations'][0].update(changes.get('annotation', {}))
    d.update(changes.get('rest', {}))
    for k in ('images', 'annotations'): d[k] = [{n: v for n, v in o.items() if v is not None} for o in d[k]]
    (folder/'train.json').write_text(json.dumps({k: v for k, v in d.items() if v is not None}))
    return folder/'train.json'


def archive(folder, name='voc.tar', member='VOCdevkit/a.txt', mode='w'):
    "An archive of one text file"
    (folder/'a.txt').write_text('text '*4000)
    with tarfile.open(folder/name, mode) as t: t.add(folder/'a.txt', member)
    return folder/name


def cut(file, share=.5):
    "Half of a file"
    b = file.read_bytes()
    file.write_bytes(b[:int(len(b)*share)])
    return file


def unpacked(folder, file):
    "`get_data` with its cache in `folder`"
    with mock.patch.dict(os.environ, OBJDET_CACHE=str(folder/'cache')): return get_data(file)


def learner(groups=1, loss=nn.functional.mse_loss, wide=8):
    "A small learner with two layers"
    m = nn.Sequential(nn.Linear(3, wide), nn.Linear(wide, 1))
    dl = DataLoader(TensorDataset(torch.ones(8, 3), torch.ones(8, 1)), 4)
    class dls: train, valid = dl, dl
    return Learner(m, dls, loss, groups=list(m) if groups == 2 else None, device='cpu')


def ssd_loss(boxes=((20., 20, 80, 80),), labels=(1,), guesses=16, c=3):
    "The loss of a picture, a square of 100 pixels, with 16 anchors and 3 classes"
    preds = torch.zeros(1, guesses, c + 1), torch.zeros(1, guesses, 4)
    return SSDLoss(*create_anchors([4]), 100, 3)(preds, (torch.tensor([boxes]), torch.tensor([labels])))


@functools.cache
def small_detector():
    "A detector that has learned nothing"
    body, args = create_body('symbols', 'none'), dict(k=1, nf=8)
    return detector.Detector(body, SSDMultiHead(body.channels, 2, **args), ['cat', 'dog'], ((4, 2, 1), (1.,), ((1., 1.),)), 112, args).eval()


# data

data = functools.partial(bad, 'Data')
box = 'x1={}, y1={}, x2={}, y2={}'.format

@data('no such file or folder', FileNotFoundError, 'nowhere', 'no such data', "'sample'")
def no_folder(folder): get_data(folder/'nowhere')

@data('`OBJDET_DATA` is a name that nobody knows', FileNotFoundError, 'voc2077', 'no such data', "'voc2007'")
def unknown_source(folder):
    with mock.patch.dict(os.environ, OBJDET_DATA='voc2077'): get_data()

@data('an empty folder, or one with something else in it', FileNotFoundError, 'mine', 'neither a VOC devkit', 'nor a COCO folder')
def empty_folder(folder):
    (folder/'mine').mkdir()
    load_annotations(folder/'mine')

@data('a split that is not there', FileNotFoundError, 'ImageSets/Main/test.txt', 'no such split', "['train']")
def no_split(folder): load_annotations(devkit(folder), 'test')

@data('two years of VOC beside each other', ValueError, 'mine: 2 VOC devkits', 'VOCdevkit/VOC2007, VOCdevkit/VOC2012', 'give the path of one')
def two_years(folder):
    for year in 2007, 2012: devkit(folder/f'mine/VOCdevkit/VOC{year}')
    load_annotations(folder/'mine')

@data('an option of no meaning', ValueError, "missing is 'ignore'", "'error', 'skip' or 'keep'")
def unknown_option(folder): load_annotations(devkit(folder), missing='ignore')

@data('a listed picture has no annotation', FileNotFoundError, '000001.xml', 'missing')
def no_annotation(folder):
    (devkit(folder)/'Annotations/000001.xml').unlink()
    load_annotations(folder)

@data('a listed picture is not there', FileNotFoundError, '000001.jpg', 'missing', "missing='skip'")
def no_picture(folder):
    (devkit(folder)/'JPEGImages/000001.jpg').unlink()
    load_annotations(folder)

@data('a list of the files, where names are meant', FileNotFoundError, '000001.jpg.jpg', 'train.txt', '000001 is there', 'without their endings')
def names_with_endings(folder):
    (devkit(folder)/'ImageSets/Main/train.txt').write_text('000001.jpg\n')
    load_annotations(folder)

@data('a list of pictures in another code than UTF-8', ValueError, 'ImageSets/Main/train.txt', 'no text in UTF-8')
def utf16_list(folder):
    (devkit(folder)/'ImageSets/Main/train.txt').write_text('000001\n', encoding='utf-16')
    load_annotations(folder)

@data('an annotation is cut off', ValueError, '000001.xml', 'malformed XML')
def cut_annotation(folder): load_annotations(devkit(folder, '</annotation>', ''))

@data('an annotation without the size of its picture', ValueError, '000001.xml', 'no <width>')
def no_size(folder): load_annotations(devkit(folder, '<width>40</width>', ''))

@data('a picture of no width, as some tools write', ValueError, '000001.xml', 'picture of 0 x 30', 'above 0')
def zero_size(folder): load_annotations(devkit(folder, '<width>40</width>', '<width>0</width>'))

@data('a size that is no whole number', ValueError, '000001.xml', "'40.0'", 'expected a whole number')
def float_size(folder): load_annotations(devkit(folder, '<width>40</width>', '<width>40.0</width>'))

@data('an object without a name', ValueError, '000001.xml', 'object 1', 'no <name>')
def no_name(folder): load_annotations(devkit(folder, '<name>cat</name>', ''), classes=['cat', 'dog'])

@data('an object without a box, or a box of three numbers', ValueError, '000001.xml', 'object 1', 'no <xmax>')
def no_box(folder): load_annotations(devkit(folder, '<xmax>10</xmax>', ''))

@data('a word in the place of a number', ValueError, '000001.xml', 'object 1', "'ten'", 'expected a number')
def word_in_box(folder): load_annotations(devkit(folder, '<xmax>10</xmax>', '<xmax>ten</xmax>'))

@data('a box that is not a number', ValueError, '000001.xml', 'object 1', 'x2=nan', 'expected x1 < x2')
def nan_in_box(folder): load_annotations(devkit(folder, '<xmax>10</xmax>', '<xmax>nan</xmax>'))

@data('corners swapped', ValueError, '000001.xml', 'object 1', box(14, 0, 10, 20), 'expected x1 < x2')
def swapped_corners(folder): load_annotations(devkit(folder, '<xmin>1</xmin>', '<xmin>15</xmin>'))

@data('a box without area', ValueError, '000001.xml', 'object 2', box(4, 30, 40, 30), 'y1 < y2')
def no_area(folder): load_annotations(devkit(folder, '<ymin>6</ymin>', '<ymin>31</ymin>'))

@data('a box outside the picture', ValueError, '000001.xml', 'object 2', box(4, 5, 400, 30), '40 x 30')
def outside(folder): load_annotations(devkit(folder, '<xmax>40</xmax>', '<xmax>400</xmax>'))

@data('a box of which nothing is in the picture', ValueError, '000001.xml', 'object 2', box(40, 5, 41, 30), '40 x 30')
def beside(folder): load_annotations(devkit(folder, '<xmin>5</xmin><ymin>6</ymin><xmax>40</xmax>', '<xmin>41</xmin><ymin>6</ymin><xmax>41</xmax>'))

@data('a class that is not among those asked for', ValueError, '000001.xml', 'object 2', "unknown class 'dog'", 'expected one of cat, cow')
def unknown_class(folder): load_annotations(devkit(folder), classes=['cat', 'cow'])

@data('a picture that is cut off', ValueError, '000001.jpg', 'cannot be read', 'truncated')
def cut_picture(folder):
    cut(devkit(folder)/'JPEGImages/000001.jpg', .8)
    DetectionDataset(load_annotations(folder))[0]

@data('a text with the name of a picture', ValueError, '000001.jpg', 'cannot be read')
def no_image(folder):
    (devkit(folder)/'JPEGImages/000001.jpg').write_text('not a picture')
    DetectionDataset(load_annotations(folder))[0]

@data('a picture of 16 bits, which would turn white', ValueError, '000001.jpg', 'mode I', 'expected 8 bits')
def deep_picture(folder):
    Image.fromarray(np.full((30, 40), 300, np.uint16)).save(devkit(folder)/'JPEGImages/000001.jpg', 'png')
    DetectionDataset(load_annotations(folder))[0]

@data('a picture of another size than its annotation says', ValueError, '000001.jpg', '30 x 40', '40 x 30')
def other_size(folder):
    Image.new('RGB', (30, 40)).save(devkit(folder)/'JPEGImages/000001.jpg')
    DetectionDataset(load_annotations(folder))[0]

@data('a COCO file that is cut off', ValueError, 'train.json', 'malformed JSON')
def cut_json(folder): read_coco(cut(coco(folder)))

@data('a COCO file that is no text', ValueError, 'train.json', 'malformed JSON')
def binary_json(folder):
    coco(folder).write_bytes(b'\xff\xd8\xff\xe0')
    read_coco(folder/'train.json')

@data('a COCO file without categories', ValueError, 'train.json', "no 'categories'", 'images, annotations and categories')
def no_categories(folder): read_coco(coco(folder, rest=dict(categories=None)))

@data('a list of names where objects are meant', ValueError, 'train.json', 'images is no list of objects')
def coco_names(folder):
    coco(folder).write_text(json.dumps(dict(images=['a.jpg'], annotations=[], categories=[])))
    read_coco(folder/'train.json')

@data('a text in the place of a number', ValueError, 'train.json', "'width' is '9' in images, id 1", 'expected a number')
def coco_text(folder): read_coco(coco(folder, image=dict(width='9')))

@data('two categories with one id', ValueError, 'train.json', 'cat and dog', 'same id, 1')
def category_id_twice(folder): read_coco(coco(folder, rest=dict(categories=[dict(id=1, name=o) for o in ('cat', 'dog')])))

@data('a split of a single COCO file that is mistyped', ValueError, 'train.json', "no split 'vla'", "'train', 'val' and 'trainval'")
def coco_split(folder): load_annotations(coco(folder), 'vla')

@data('a category id that nothing explains', ValueError, 'train.json', 'annotation 5', 'category 3')
def unknown_category(folder): read_coco(coco(folder, annotation=dict(category_id=3)))

@data('an annotation of a picture that is not listed', ValueError, 'train.json', 'annotation 5', 'image 2')
def unknown_image(folder): read_coco(coco(folder, annotation=dict(image_id=2)))

@data('an annotation without a box', ValueError, 'train.json', "'bbox' is missing", 'annotations, id 5')
def coco_without_box(folder): read_coco(coco(folder, annotation=dict(bbox=None)))

@data('a picture without its width', ValueError, 'train.json', "'width' is missing", 'images, id 1')
def coco_without_width(folder): read_coco(coco(folder, image=dict(width=None)))

@data('a COCO box of three numbers', ValueError, 'train.json', 'annotation 5', '[1, 1, 3]', 'expected x, y, width, height')
def coco_three_numbers(folder): read_coco(coco(folder, annotation=dict(bbox=[1, 1, 3])))

@data('a COCO box with NaN in it', ValueError, 'train.json', 'a.jpg', 'object 1', 'x2=nan')
def coco_nan(folder): read_coco(coco(folder, annotation=dict(bbox=[1, 1, float('nan'), 3])))

@data('a COCO box of no height', ValueError, 'train.json', 'a.jpg', 'object 1 (annotation 5)', '[1, 1, 3, 0]', 'above 0 (1 such', "bad_boxes='skip'", '--skip-bad-boxes')
def coco_flat(folder): read_coco(coco(folder, annotation=dict(bbox=[1, 1, 3, 0])))

@data('a COCO box of negative width', ValueError, 'train.json', 'a.jpg', 'object 1', box(1, 1, -2, 4))
def coco_negative(folder): read_coco(coco(folder, annotation=dict(bbox=[1, 1, -3, 3])))

@data('two pictures with one id', ValueError, 'train.json', 'a.jpg and b.jpg', 'same id, 1')
def image_id_twice(folder): read_coco(coco(folder, rest=dict(images=[dict(id=1, file_name=f'{o}.jpg', width=9, height=9) for o in 'ab'])))

@data('a picture of a COCO file is not there', FileNotFoundError, 'a.jpg', 'missing', "missing='skip'")
def coco_no_picture(folder): coco(folder); load_annotations(folder)

@data('an archive that is cut off', ValueError, 'voc.tar', 'not a whole tar archive')
def cut_archive(folder): unpacked(folder, cut(archive(folder)))

@data('a compressed archive with a wrong byte', ValueError, 'voc.tar.gz', 'not a whole tar archive')
def spoiled_archive(folder):
    b = bytearray(archive(folder, 'voc.tar.gz', mode='w:gz').read_bytes())
    b[-8] ^= 255 # of the checksum
    (folder/'voc.tar.gz').write_bytes(b)
    unpacked(folder, folder/'voc.tar.gz')

@data('a file that is no archive, with the name of one', ValueError, 'voc.tar', 'not a whole tar archive')
def no_archive(folder):
    (folder/'voc.tar').write_text('not an archive')
    unpacked(folder, folder/'voc.tar')

@data('an archive with a member that climbs out of its folder', ValueError, 'voc.tar', 'not a safe one', '../../climbed')
def climbing_archive(folder): extract(archive(folder, member='../../climbed'), folder/'deep/out')

@data('an archive of something else', FileNotFoundError, 'cache/voc', 'neither a VOC devkit')
def other_archive(folder): load_annotations(extract(archive(folder), folder/'cache/voc')) # `get_data` adds a number that differs each time

@data('an archive of a kind that is not read', ValueError, 'voc.zip', "a '.zip'", 'a .tar or a .tgz')
def zip_archive(folder): get_data(archive(folder, 'voc.zip'))


# anchors

anchors = functools.partial(bad, 'Anchors')

@anchors('no grid', ValueError, 'grids []', 'at least one')
def no_grids(folder): create_anchors([])

@anchors('a grid of no cells', ValueError, 'grids [4, 0]', 'above 0')
def zero_grid(folder): create_anchors([4, 0])

@anchors('no shape', ValueError, 'shapes []', 'at least one')
def no_shapes(folder): create_anchors([4], shapes=[])

@anchors('a zoom of nothing', ValueError, 'zooms [1.0, 0]', 'above 0')
def zero_zoom(folder): create_anchors([4], zooms=[1., 0])

@anchors('no shape reaches any object', ValueError, 'none of 84 shapes', '(4,)', 'IoU 0.5', '1 boxes')
def no_anchor_fits(folder): suggest_anchors(torch.tensor([[.5, .5, .502, .503]]), (4,))

@anchors('boxes in pixels, where units of the square are meant', ValueError, 'up to 80', 'expected 0 to 1')
def recall_in_pixels(folder): anchor_recall(create_anchors([4])[0], torch.tensor([[20., 20, 80, 80]]))


# training

training = functools.partial(bad, 'Training')

@training('no pictures to train on', ValueError, 'no training pictures')
def no_training_pictures(folder):
    (devkit(folder)/'ImageSets/Main/train.txt').write_text('')
    a = load_annotations(folder, classes=['cat'])
    dataloaders(a, a, 64, workers=0)

@training('no pictures to validate on', ValueError, 'no pictures to validate')
def no_validation_pictures(folder):
    l = learner()
    l.dls.valid = []
    l.fit_one_cycle(1, .01)

@training('transforms for a data set that has its own', ValueError, 'tfms', 'DetectionDataset its own')
def tfms_of_a_data_set(folder):
    a = load_annotations(devkit(folder))
    dataloaders(DetectionDataset(a), a, 64, tfms=squash(64), workers=0)

@training('no picture has an object to train on', ValueError, 'none of 1 pictures', 'not difficult')
def all_difficult(folder):
    xml = devkit(folder)/'Annotations/000001.xml'
    xml.write_text(xml.read_text().replace('<bndbox>', '<difficult>1</difficult><bndbox>'))
    SingleObjectDataset(load_annotations(folder))

@training('pictures of different sizes in one batch', ValueError, '(3, 8, 9)', '(3, 8, 8)', 'squash')
def sizes_in_a_batch(folder):
    def item(w): return torch.zeros(3, 8, w, dtype=torch.uint8), dict(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    pad_batch([item(8), item(9)])

@training('a picture of whole numbers where 0 to 1 is meant', TypeError, 'uint8', 'divide by 255')
def bytes_to_normalize(folder): normalize(torch.zeros(3, 8, 8, dtype=torch.uint8))

@training('augmentation of a picture that is normalized already', TypeError, 'float32', 'expected uint8')
def augment_floats(folder): RandomLighting()(tv_tensors.Image(torch.zeros(3, 8, 8)))

@training('a loss that is not finite', FloatingPointError, 'loss is inf', 'step 0', 'smaller rate')
def infinite_loss(folder): learner(loss=lambda p, y: p.mean()*0 + float('inf')).fit_one_cycle(1, .01)

@training('rates for another number of groups', ValueError, '3 rates for 2 groups', 'one a group')
def other_rates(folder): learner(2).fit_one_cycle(1, [.1, .1, .1])

@training('a group that is not there', ValueError, 'freeze_to(3)', '2 groups')
def other_group(folder): learner(2).freeze_to(3)

@training('too few steps to find a rate', ValueError, 'only 2 steps', 'at least 3')
def too_few_steps(folder): steepest([.1, .2], [1., 2.])

@training('a model with another number of guesses than anchors', ValueError, '24 guesses', '16 anchors')
def other_anchors(folder): ssd_loss(guesses=24)

@training('a model with another number of classes than the loss', ValueError, '6 class activations', '3 classes', 'expected 4')
def other_classes(folder): ssd_loss(c=5)

@training('a label that is no class', ValueError, 'label 7', '0 to 2', '-1')
def other_label(folder): ssd_loss(labels=(7,))

@training('boxes outside the square', ValueError, '180', 'square of 100')
def boxes_outside(folder): ssd_loss(boxes=((20., 20, 180, 80),))

@training('a label that is no class, in a set of classes', ValueError, 'labels from 0 to 5', '-1 (padding) to 2')
def other_label_in_set(folder): multi_hot(torch.tensor([[0, 5]]), 3)

@training('a body that nobody knows', ValueError, "'mobilnet'", 'mobilenet_v2')
def unknown_body(folder): create_body('mobilnet', 'none')

@training('weights that are not there', FileNotFoundError, 'none.pt')
def no_weights(folder): create_body('symbols', folder/'none.pt')

@training('weights of another body', ValueError, 'other.pt', 'weights of another body', 'features.0.0.weight')
def other_weights(folder):
    torch.save(nn.Linear(3, 2).state_dict(), folder/'other.pt')
    create_body('mobilenet_v2', folder/'other.pt')

@training('a text in the place of saved weights', ValueError, 'notes.pt', 'not a file of PyTorch weights')
def text_for_weights(folder):
    (folder/'notes.pt').write_text('not weights')
    learner().load(folder/'notes.pt')

@training('a file that would run code when it is read', ValueError, 'code.pt', 'not a file of PyTorch weights')
def code_in_weights(folder):
    torch.save(nn.Linear(3, 2), folder/'code.pt')
    learner().load(folder/'code.pt')

@training('weights saved from another model', ValueError, 'wide.pt', 'weights of another model', 'size mismatch')
def other_model(folder):
    learner(wide=16).save(folder/'wide.pt')
    learner().load(folder/'wide.pt')

@training('a checkpoint of another training', ValueError, 'c.pt', 'epochs 1, now 2', 'remove it')
def other_training(folder):
    learner().fit_one_cycle(1, .01, checkpoint=folder/'c.pt')
    learner().fit_one_cycle(2, .01, checkpoint=folder/'c.pt')

@training('a checkpoint that is none', ValueError, 'w.pt', 'not a checkpoint')
def no_checkpoint(folder):
    learner().save(folder/'w.pt')
    learner().fit_one_cycle(1, .01, checkpoint=folder/'w.pt')

@training('a checkpoint that is cut off', ValueError, 'c.pt', 'not a file of PyTorch weights')
def cut_checkpoint(folder):
    learner().fit_one_cycle(1, .01, checkpoint=folder/'c.pt')
    cut(folder/'c.pt')
    learner().fit_one_cycle(1, .01, checkpoint=folder/'c.pt')


# detection

detection = functools.partial(bad, 'Detection')
@detection('a detector that is not there', FileNotFoundError, 'none.pt')
def no_detector(folder): detector.load_detector(folder/'none.pt')

@detection('a text with the name of a detector', ValueError, 'notes.pt', 'not a')
def text_for_detector(folder):
    (folder/'notes.pt').write_text('not a detector')
    detector.load_detector(folder/'notes.pt')

@detection('weights of a training in the place of a detector', ValueError, 'w.pt', 'not a detector', 'Detector.save')
def weights_for_detector(folder):
    learner().save(folder/'w.pt')
    detector.load_detector(folder/'w.pt')

@detection('a detector of a later format', ValueError, 'd.pt', 'format 9', 'reads format 1')
def later_detector(folder):
    small_detector().save(folder/'d.pt')
    torch.save(dict(read_weights(folder/'d.pt'), version=9), folder/'d.pt')
    detector.load_detector(folder/'d.pt')

@detection('a detector that is cut off', ValueError, 'd.pt', 'not a file of PyTorch weights')
def cut_detector(folder):
    small_detector().save(folder/'d.pt')
    detector.load_detector(cut(folder/'d.pt'))

@detection('a picture that is not there', FileNotFoundError, 'none.jpg')
def detect_nothing(folder): small_detector().predict(folder/'none.jpg')

@detection('a picture that is cut off', ValueError, '000001.jpg', 'cannot be read')
def detect_cut(folder): small_detector().predict(cut(devkit(folder)/'JPEGImages/000001.jpg', .8))

@detection('a picture of floats', (TypeError, ValueError), 'float', 'uint8')
def detect_floats(folder): small_detector().predict(torch.zeros(3, 8, 8))

@detection('an array of rows and columns only', ValueError, '(8, 8)', '3')
def detect_flat(folder): small_detector().predict(np.zeros((8, 8), np.uint8))

@detection('no picture, but its number', TypeError, '7', 'expected')
def detect_number(folder): small_detector().predict([7])

@detection('a least score above 1', ValueError, 'thresh', '30', '0 to 1')
def detect_thresh(folder): small_detector().predict(np.zeros((8, 8, 3), np.uint8), thresh=30)

@detection('activations for other anchors', ValueError, '24 guesses', '16 anchors')
def detect_other_anchors(folder): detect((torch.zeros(1, 24, 4), torch.zeros(1, 24, 4)), *create_anchors([4]), 100)

@detection('drawing a normalized picture', ValueError, '-2', 'expected 0..1', 'denormalize')
def draw_normalized(folder): show_img(torch.full((3, 8, 8), -2.))

@detection('drawing a batch', ValueError, '(2, 3, 8, 8)', 'show x[0]')
def draw_batch(folder): show_img(torch.zeros(2, 3, 8, 8))

@detection('drawing with a label too few', ValueError, '1 labels for 2 boxes')
def draw_labels(folder): show_boxes(np.zeros((8, 8, 3), np.uint8), [[0, 0, 1, 1], [1, 1, 4, 4]], labels=[0])

@detection('drawing boxes of three numbers', ValueError, '(1, 3)', 'x1, y1, x2, y2')
def draw_three(folder): show_boxes(np.zeros((8, 8, 3), np.uint8), [[0, 0, 1]])

@detection('drawing a box that is not finite', ValueError, 'nan', 'not finite')
def draw_nan(folder): show_boxes(np.zeros((8, 8, 3), np.uint8), [[0, 0, 1, float('nan')]])


# scoring

scoring = functools.partial(bad, 'Scoring')

def score(pred={}, target={}, n=1, **kw):
    "The score of two right detections, something changed"
    boxes = [[0., 0, 4, 4], [2., 2, 8, 8]]
    good = dict(boxes=boxes, scores=[.9, .8], labels=[0, 1]), dict(boxes=boxes, labels=[0, 1])
    p, t = ({k: v for k, v in dict(g, **o).items() if v is not None} for g, o in zip(good, (pred, target)))
    return mean_ap([p]*n, [t], **kw)

@scoring('more predictions than pictures', ValueError, '2 predictions for 1 pictures')
def other_length(folder): score(n=2)

@scoring('nothing to score', ValueError, 'no pictures')
def nothing_to_score(folder): mean_ap([], [])

@scoring('a tensor where a dict is meant', TypeError, 'preds[0]', 'Tensor', 'expected a dict')
def tensor_to_score(folder): mean_ap([torch.zeros(2, 6)], [dict(boxes=[], labels=[])])

@scoring('predictions without scores', ValueError, 'preds[0]', "no 'scores'", 'boxes')
def no_scores(folder): score(dict(scores=None))

@scoring('a score too few', ValueError, 'preds[0]', 'scores of shape (1,)', 'expected (2,)')
def few_scores(folder): score(dict(scores=[.9]))

@scoring('a score that is not a number', ValueError, 'preds[0]', 'scores nan', 'not a number')
def nan_score(folder): score(dict(scores=[.9, float('nan')]))

@scoring('a box that is not finite', ValueError, 'preds[0]', 'inf', 'not finite')
def infinite_box(folder): score(dict(boxes=[[0., 0, 4, 4], [2., 2, float('inf'), 8]]))

@scoring('boxes of five numbers', ValueError, 'preds[0]', '(2, 5)', 'expected (2, 4)')
def wide_box(folder): score(dict(boxes=[[0., 0, 4, 4, 1]]*2))

@scoring('corners of an object swapped', ValueError, 'targets[0]', '[8.0, 2.0, 2.0, 8.0]', 'corners swapped')
def swapped_truth(folder): score(target=dict(boxes=[[0., 0, 4, 4], [8., 2, 2, 8]]))

@scoring('padding left in the labels', ValueError, 'targets[0]', 'labels -1', 'leave padding')
def padding_to_score(folder): score(target=dict(labels=[0, -1]))

@scoring('a label that is no class', ValueError, 'preds[0]', 'labels 5', 'expected 0 to 1')
def label_to_score(folder): score(dict(labels=[0, 5]), n_classes=2)

@scoring('labels that are no whole numbers', ValueError, 'preds[0]', 'float', 'whole numbers')
def float_labels(folder): score(dict(labels=[0., 1.]))

@scoring('a way to average that nobody knows', ValueError, "'11 point'", "'11point'", "'area'")
def unknown_method(folder): score(method='11 point')

@scoring('an overlap of 0', ValueError, 'iou 0', 'above 0 and up to 1')
def zero_iou(folder): score(iou=0)

@scoring('an overlap in percent', ValueError, 'iou 50', 'above 0 and up to 1')
def percent_iou(folder): recall_at([], [], iou=50)

@scoring('names of other classes, for the table', ValueError, '3 names for 2 classes')
def other_names(folder): score().table(['cat', 'cow', 'dog'])
