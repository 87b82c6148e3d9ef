"Reading annotations: facts of the real files, both formats, and each kind of bad input by name"
import functools, hashlib, http.server, json, shutil, tarfile, threading, warnings
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from objdet import pascal_data as pd
from objdet.pascal_data import (Annotations, Record, DetectionDataset, dataloaders,
    largest_object, load_annotations, load_splits, open_image, pad_batch, read_coco, read_voc_xml, rows_to_xyxy, squash, to_coco, unpad, voc_to_xyxy,
    xyxy_to_rows, xyxy_to_voc)
from objdet.sources import download_voc2007, extract, get_data, is_sample
from conftest import needs_voc, voc

OBJECT = '<object><name>{name}</name><difficult>{hard}</difficult><bndbox><xmin>{b[0]}</xmin><ymin>{b[1]}</ymin><xmax>{b[2]}</xmax><ymax>{b[3]}</ymax></bndbox></object>'

def write_voc(root, objects, splits=dict(train=['000001'], val=['000002']), size=(40, 30)):
    "A VOC devkit of gray pictures; `objects`: stem -> list of (name, voc box, difficult)"
    d = root/'VOCdevkit/VOC2007'
    for o in ('Annotations', 'JPEGImages', 'ImageSets/Main'): (d/o).mkdir(parents=True)
    for s, stems in splits.items(): (d/f'ImageSets/Main/{s}.txt').write_text('\n'.join(stems) + '\n')
    for stem, objs in objects.items():
        Image.new('RGB', size, 'gray').save(d/f'JPEGImages/{stem}.jpg')
        body = ''.join(OBJECT.format(name=n, b=b, hard=int(h)) for n, b, h in objs)
        (d/f'Annotations/{stem}.xml').write_text(f'<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>{body}</annotation>')
    return d

@pytest.fixture
def kit(tmp_path):
    write_voc(tmp_path, {'000001': [('cat', (1, 1, 10, 20), False), ('dog', (5, 6, 40, 30), True)], '000002': [('dog', (2, 2, 8, 8), False)]})
    return tmp_path

def edit(kit, stem, old, new):
    f = kit/f'VOCdevkit/VOC2007/Annotations/{stem}.xml'
    assert old in f.read_text()
    f.write_text(f.read_text().replace(old, new, 1))

# what is read

def test_voc_boxes_become_half_open_from_zero(kit):
    trn, val = load_splits(kit)
    assert trn.classes == val.classes == ['cat', 'dog']
    assert trn[0].boxes.tolist() == [[0, 0, 10, 20], [4, 5, 40, 30]] and trn[0].boxes.dtype == np.float32
    assert trn[0].labels.tolist() == [0, 1] and trn[0].difficult.tolist() == [False, True]
    assert val[0].labels.tolist() == [1] and (val[0].width, val[0].height, val[0].id) == (40, 30, 2)

def test_coco_gives_the_same_records(kit):
    trn = load_annotations(kit)
    (kit/'t.json').write_text(json.dumps(to_coco(trn)))
    again = read_coco(kit/'t.json', images=kit/'VOCdevkit/VOC2007/JPEGImages')
    for a, b in zip(trn, again):
        assert a.file == b.file and a.id == b.id
        for k in ('boxes', 'labels', 'difficult'): assert (getattr(a, k) == getattr(b, k)).all()

def test_coco_category_ids_with_gaps(tmp_path):
    d = dict(images=[dict(id=7, file_name='a.jpg', width=9, height=9)], categories=[dict(id=90, name='z'), dict(id=4, name='b')],
             annotations=[dict(id=1, image_id=7, category_id=90, bbox=[1, 2, 3, 4])])
    (tmp_path/'c.json').write_text(json.dumps(d))
    a = read_coco(tmp_path/'c.json')
    assert a.classes == ['b', 'z'] and a[0].labels.tolist() == [1] and a[0].boxes.tolist() == [[1, 2, 4, 6]]
    assert a.category_ids == [[4], [90]] and read_coco(tmp_path/'c.json', classes=['z', 'x', 'b']).category_ids == [[90], [92], [4]]
    Image.new('RGB', (9, 9)).save(tmp_path/'a.jpg')
    for split in 'trainval', 'train': assert load_annotations(tmp_path/'c.json', split).category_ids == [[4], [90]]
    with pytest.warns(UserWarning): # the picture, lost
        (tmp_path/'a.jpg').unlink()
        assert load_annotations(tmp_path/'c.json', 'trainval', missing='skip').category_ids == [[4], [90]]
    out = to_coco(a)
    assert [o['id'] for o in out['categories']] == [4, 90] and out['annotations'][0]['category_id'] == 90

def test_a_crowd_is_left_out_of_training_and_kept_apart(tmp_path):
    "`iscrowd` and `ignore` were one mark, and both came back as `ignore`"
    Image.new('RGB', (9, 9)).save(tmp_path/'a.jpg')
    objs = [dict(id=i, image_id=7, category_id=1, bbox=[1, 2, 3, 4], **o) for i, o in enumerate([{}, dict(iscrowd=1), dict(ignore=1), dict(iscrowd=0)])]
    d = dict(images=[dict(id=7, file_name='a.jpg', width=9, height=9)], categories=[dict(id=1, name='b')], annotations=objs)
    (tmp_path/'c.json').write_text(json.dumps(d))
    a = read_coco(tmp_path/'c.json')
    assert a[0].difficult.tolist() == [False, True, True, False] and a[0].crowd.tolist() == [False, True, False, False]
    assert len(DetectionDataset(a)[0][1]['labels']) == 2
    t = DetectionDataset(a).targets(9)[0]
    assert t['difficult'].tolist() == a[0].difficult.tolist() and t['crowd'].tolist() == a[0].crowd.tolist()
    assert [(o['iscrowd'], o['ignore']) for o in to_coco(a)['annotations']] == [(0, 0), (1, 1), (0, 1), (0, 0)]
    (tmp_path/'c.json').write_text(json.dumps(dict(d, annotations=objs[:1])))
    a = read_coco(tmp_path/'c.json')
    assert a[0].crowd is None and 'crowd' not in DetectionDataset(a).targets(9)[0]

def test_coco_folder_with_split_files_and_without(kit, tmp_path):
    trn = load_annotations(kit)
    whole = Annotations([trn[0]]*10, trn.classes, [])
    d = to_coco(whole)
    d['images'] = [dict(o, id=i+1) for i, o in enumerate(d['images'])]
    mine = tmp_path/'mine'; mine.mkdir()
    (kit/'VOCdevkit/VOC2007/JPEGImages').rename(mine/'images')
    (mine/'annotations.json').write_text(json.dumps(d))
    a, b = load_splits(mine)
    assert (len(a), len(b)) == (8, 2) and not {r.id for r in a} & {r.id for r in b}
    assert [r.id for r in load_annotations(mine, 'train')] == [r.id for r in a]
    (mine/'val.json').write_text(json.dumps(dict(d, images=d['images'][:1], annotations=[])))
    assert len(load_annotations(mine, 'val')) == 1

def layout(root, file_name, file, picture='images/train/p.jpg', **changes):
    "A COCO folder of one picture, as `load_annotations` finds it"
    for o in (picture, file): (root/o).parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (9, 9)).save(root/picture)
    d = dict(images=[dict(id=1, file_name=file_name, width=9, height=9)], categories=[dict(id=0, name='pill')], annotations=[])
    (root/file).write_text(json.dumps(dict(d, **changes)))
    return load_annotations(root)

@pytest.mark.parametrize('name, file, picture', [('p.jpg', 'train.json', 'images/train/p.jpg'), ('train/p.jpg', 'train.json', 'images/train/p.jpg'),
                                                 ('p.jpg', 'annotations/instances_train2017.json', 'train2017/p.jpg'),
                                                 ('p.jpg', 'train.json', 'p.jpg')])
def test_coco_pictures_are_found_where_they_are(tmp_path, name, file, picture):
    "A folder of the split in `images` was not looked at; a folder that is there and holds none of the pictures was taken"
    (tmp_path/'images').mkdir()
    assert layout(tmp_path, name, file, picture)[0].file == tmp_path/picture

def test_coco_categories_of_one_name_are_one_class(tmp_path):
    "Some tools write the group of the classes as category 0, with the name of the only class"
    box = dict(id=1, image_id=1, category_id=1, bbox=[1, 1, 3, 3])
    a = layout(tmp_path, 'p.jpg', 'train.json', categories=[dict(id=0, name='pill'), dict(id=1, name='pill')], annotations=[box])
    assert a.classes == ['pill'] and a[0].labels.tolist() == [0]
    assert a.category_ids == [[1, 0]], 'the id that objects have is the one to write'

def test_coco_category_ids_may_be_numbers_and_texts(tmp_path):
    "Sorting them was a TypeError that named no file"
    a = layout(tmp_path, 'p.jpg', 'train.json', categories=[dict(id='x', name='owl'), dict(id=10, name='dog'), dict(id=9, name='cat')], annotations=[])
    assert a.classes == ['cat', 'dog', 'owl']

def test_a_single_coco_file_has_three_splits(tmp_path):
    "A mistyped split meant all pictures"
    ims = [dict(id=i, file_name=f'{i}.jpg', width=9, height=9) for i in range(10)]
    (tmp_path/'c.json').write_text(json.dumps(dict(images=ims, annotations=[], categories=[])))
    for i in range(10): Image.new('RGB', (9, 9)).save(tmp_path/f'{i}.jpg')
    assert [len(load_annotations(tmp_path/'c.json', o)) for o in ('train', 'val', 'trainval')] == [8, 2, 10]
    with pytest.raises(ValueError, match="c.json: no split 'test'"): load_annotations(tmp_path/'c.json', 'test')

def test_voc_pictures_may_be_of_another_kind(kit):
    "A .png was 'listed and missing', and dropped without `missing='error'`"
    d = kit/'VOCdevkit/VOC2007/JPEGImages'
    Image.open(d/'000001.jpg').save(d/'000001.png'); (d/'000001.jpg').unlink()
    a = load_annotations(kit)
    assert a[0].file == d/'000001.png' and DetectionDataset(a)[0][0].shape == (3, 30, 40)

def test_an_id_is_a_number_that_int_can_read(kit):
    "'²'.isdigit() is True, and int('²') an error that named no file"
    d = kit/'VOCdevkit/VOC2007/Annotations'
    assert read_voc_xml((d/'000002.xml').rename(d/'².xml'), ['cat', 'dog']).id == 0

@pytest.mark.parametrize('convert', [voc_to_xyxy, xyxy_to_voc, rows_to_xyxy, xyxy_to_rows])
def test_boxes_are_converted_where_they_are(convert):
    "A constant on the CPU met boxes on another device"
    assert convert(torch.zeros(2, 4, device='meta')).device.type == 'meta'

def test_text_is_read_as_utf8_everywhere():
    "Without `encoding`, Windows reads its own"
    assert 'read_text()' not in Path(pd.__file__).read_text(encoding='utf-8')

@pytest.mark.parametrize('above', ['VOCdevkit/VOC2012', 'VOC2012', 'VOC2012_train_val', '.'])
def test_a_devkit_of_any_year_is_found(kit, above):
    "`VOCdevkit/VOC2012/`, the layout of the official archive, was 'neither a VOC devkit nor a COCO folder': only 2007 was looked for"
    data = kit/'elsewhere'
    (data/above).parent.mkdir(parents=True, exist_ok=True)
    (kit/'VOCdevkit/VOC2007').rename(data/above)
    assert load_annotations(data)[0].boxes.tolist() == [[0, 0, 10, 20], [4, 5, 40, 30]]

def test_of_two_years_one_must_be_chosen(kit):
    "The first that was found would be taken without a word; a folder that is a devkit itself is no choice"
    shutil.copytree(kit/'VOCdevkit/VOC2007', kit/'VOCdevkit/VOC2012')
    shutil.copytree(kit/'VOCdevkit/VOC2007', kit/'VOCdevkit/VOC2012/VOC2007')
    with pytest.raises(ValueError, match='2 VOC devkits, VOCdevkit/VOC2007, VOCdevkit/VOC2012; give the path of one'): load_annotations(kit)
    assert len(load_annotations(kit/'VOCdevkit/VOC2012')) == 1

def listed(kit, lines, **kw):
    "What is read of a list of pictures, text or bytes"
    (kit/'VOCdevkit/VOC2007/ImageSets/Main/mine.txt').write_bytes(lines if isinstance(lines, bytes) else lines.encode())
    return [r.file.name for r in load_annotations(kit, 'mine', **kw)]

def rename(kit, old, new):
    for o in 'Annotations', 'JPEGImages':
        for f in (kit/'VOCdevkit/VOC2007'/o).glob(f'{old}.*'): f.rename(f.with_name(new + f.suffix))

def test_names_with_blanks(kit):
    "'skipped 3 missing: my, my, my', and on with the rest: the first word was taken for the name"
    rename(kit, '000001', 'my photo 0')
    assert listed(kit, 'my photo 0\n000002\n') == ['my photo 0.jpg', '000002.jpg']
    assert listed(kit, ' 000002  1\r\n\r\nmy photo 0 -1\r\n') == ['000002.jpg', 'my photo 0.jpg'] # VOC's list of a class
    with pytest.raises(FileNotFoundError, match='my photo 9.jpg: listed'): listed(kit, 'my photo 9\n')
    with pytest.raises(FileNotFoundError, match='other photo.jpg: listed'): listed(kit, 'other photo\n')
    with pytest.raises(FileNotFoundError, match='000009.jpg: listed'): listed(kit, '000009 -1\n')
    with pytest.raises(FileNotFoundError, match='000002 000002 000002.jpg: listed'): listed(kit, '000002 '*3) # the first alone would do, and two would be lost

def test_a_byte_order_mark_is_no_part_of_a_name(kit):
    "The first picture of the list was lost, and a COCO file refused"
    assert listed(kit, b'\xef\xbb\xbf000002\n000001\n') == ['000002.jpg', '000001.jpg']
    (kit/'c.json').write_bytes(b'\xef\xbb\xbf' + json.dumps(GOOD).encode())
    assert read_coco(kit/'c.json').classes == ['cat']

def test_a_list_of_files_is_told_from_pictures_that_are_missing(kit):
    "Every picture was lost, and nothing said why"
    lines = '000007\n000001.jpg\n000002.JPG\n'
    with pytest.raises(FileNotFoundError, match=r'000007.jpg: listed in mine.txt and missing \(3 in all\); 000001 is there: list names without'): listed(kit, lines)
    with pytest.warns(UserWarning, match='skipped 3 missing: 000007, 000001.jpg, 000002.JPG; 000001 is there: list names without'): listed(kit, lines, missing='skip')
    rename(kit, '000001', 'a.b')
    with pytest.warns(UserWarning, match='missing: a.c$'): assert listed(kit, 'a.b\na.c\n', missing='skip') == ['a.b.jpg']

@needs_voc
def test_facts_of_the_real_file():
    with pytest.warns(UserWarning, match='009623'): trn = load_annotations(voc, missing='skip')
    assert (len(trn), trn.skipped) == (2500, ['009623'])
    d = to_coco(trn)
    of = lambda i: [o for o in d['annotations'] if o['image_id'] == i]
    assert (of(12)[0]['bbox'], of(12)[0]['area'], of(12)[0]['category_id'], of(12)[0]['ignore']) == ([155, 96, 196, 174], 34104, 7, 0)
    assert [184, 61, 95, 138] in [o['bbox'] for o in of(17)]
    assert [c['name'] for c in d['categories'] if c['id'] == 7] == ['car']
    assert set(d) >= {'images', 'annotations', 'categories'}

@needs_voc
def test_counts_of_the_real_annotations():
    root, n = voc/'VOCdevkit/VOC2007', {}
    classes = load_annotations(voc, missing='skip').classes
    for s in ('train', 'trainval'):
        rs = [read_voc_xml(root/f'Annotations/{l}.xml', classes) for l in (root/f'ImageSets/Main/{s}.txt').read_text().split()]
        n[s] = sum(len(r.labels) for r in rs), sum((~r.difficult).sum() for r in rs)
    assert n == dict(train=(7844, 6301), trainval=(15662, 12608))

@needs_voc
def test_a_listed_picture_that_is_missing_is_an_error_by_default():
    with pytest.raises(FileNotFoundError, match=r"009623.jpg.*train.txt.*missing='skip'"): load_annotations(voc)

# bad input, each by name

def bad_xml(old, new): return lambda kit: edit(kit, '000001', old, new)
def cut_picture(kit):
    f = kit/'VOCdevkit/VOC2007/JPEGImages/000001.jpg'; f.write_bytes(f.read_bytes()[:300])
def other_size(kit): Image.new('RGB', (30, 40)).save(kit/'VOCdevkit/VOC2007/JPEGImages/000001.jpg')
def no_picture(kit): (kit/'VOCdevkit/VOC2007/JPEGImages/000001.jpg').unlink()
def no_xml(kit): (kit/'VOCdevkit/VOC2007/Annotations/000001.xml').unlink()
def no_split(kit): (kit/'VOCdevkit/VOC2007/ImageSets/Main/train.txt').unlink()

@pytest.mark.parametrize('spoil, error, words', [
    (bad_xml('</annotation>', ''), ValueError, ['000001.xml', 'malformed XML']),
    (bad_xml('<xmin>1</xmin>', '<xmin>15</xmin>'), ValueError, ['000001.xml', 'object 1', 'x1=14', 'x2=10']),
    (bad_xml('<ymax>20</ymax>', '<ymax>99</ymax>'), ValueError, ['000001.xml', 'object 1', 'y2=99', '40 x 30']),
    (bad_xml('<xmin>1</xmin>', '<xmin>-7</xmin>'), ValueError, ['000001.xml', 'x1=-8']),
    (bad_xml('<xmin>1</xmin>', '<xmin>one</xmin>'), ValueError, ['000001.xml: object 1', "'one'", 'number']),
    (bad_xml('<xmin>1</xmin>', ''), ValueError, ['000001.xml: object 1', '<object>', '<xmin>']),
    (bad_xml('<name>cat</name>', ''), ValueError, ['000001.xml: object 1', '<name>']),
    (bad_xml('<name>dog</name>', ''), ValueError, ['000001.xml: object 2', '<name>']),
    (bad_xml('<ymin>6</ymin>', '<ymin>six</ymin>'), ValueError, ['000001.xml: object 2', "'six'"]),
    (bad_xml('<width>40</width>', ''), ValueError, ['000001.xml', '<width>']),
    (cut_picture, ValueError, ['000001.jpg', 'cannot be read']),
    (other_size, ValueError, ['000001.jpg', '30 x 40', '40 x 30']),
    (no_picture, FileNotFoundError, ['000001.jpg', 'missing']),
    (no_xml, FileNotFoundError, ['000001.xml', 'missing']),
    (no_split, FileNotFoundError, ['train.txt', "['val']"]),
])
def test_bad_voc(kit, spoil, error, words):
    spoil(kit)
    with pytest.raises(error) as e: DetectionDataset(load_annotations(kit))[0]
    assert all(w in str(e.value) for w in words), e.value

def test_unknown_class_is_named(kit):
    with pytest.raises(ValueError, match=r"000001.xml: object 2: unknown class 'dog'.*cat, cow"): load_annotations(kit, classes=['cat', 'cow'])

def test_a_pixel_outside_is_clipped(kit):
    edit(kit, '000001', '<xmax>10</xmax>', '<xmax>41</xmax>')
    assert load_annotations(kit)[0].boxes[0].tolist() == [0, 0, 40, 20]

def test_a_box_has_an_area_in_the_picture():
    "Boxes in the pixel of slack were clipped to nothing, and accepted"
    for b in [40, 1, 41, 9], [-1, 1, 0, 9], [1, 30, 9, 31], [1, -1, 9, 0]:
        with pytest.raises(ValueError, match='a.xml: object 2 .*outside its picture of 40 x 30'): pd.check_boxes([[0, 0, 5, 5], b], 40, 30, 'a.xml')
    assert pd.check_boxes([[39, -1, 41, 31]], 40, 30, 'a.xml').tolist() == [[39, 0, 40, 30]]

@pytest.mark.parametrize('width', [0, -4, float('nan')])
def test_a_picture_has_an_area(width):
    "Without objects it was accepted, and divided by in `targets`"
    with pytest.raises(ValueError, match='a.xml: a picture of .* x 30 pixels'): pd.check_boxes([], width, 30, 'a.xml')

def test_a_spoiled_note_on_how_to_turn_a_picture(tmp_path):
    "It was PIL's SyntaxError, without the file"
    Image.new('RGB', (8, 8)).save(tmp_path/'a.jpg', exif=b'Exif\0\0garbagegarbage')
    r = Record(tmp_path/'a.jpg', 1, 8, 8, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool))
    with pytest.raises(ValueError, match='a.jpg: picture cannot be read'): open_image(r)

def test_a_coco_file_of_another_kind_of_json(tmp_path):
    for text in '3', 'null', '[]':
        (tmp_path/'c.json').write_text(text)
        with pytest.raises(ValueError, match="c.json: no 'images'"): read_coco(tmp_path/'c.json')

def test_skip_names_what_it_drops(kit):
    no_picture(kit)
    with pytest.warns(UserWarning, match='000001'): a = load_annotations(kit, missing='skip')
    assert (len(a), a.skipped) == (0, ['000001'])

GOOD = dict(images=[dict(id=1, file_name='a.jpg', width=9, height=9)], categories=[dict(id=1, name='cat')],
            annotations=[dict(id=5, image_id=1, category_id=1, bbox=[1, 1, 3, 3])])
@pytest.mark.parametrize('change, words', [
    (lambda d: d.pop('categories'), ["no 'categories'"]),
    (lambda d: d.pop('images'), ["no 'images'"]),
    (lambda d: d['annotations'][0].update(image_id=2), ['annotation 5', 'image 2']),
    (lambda d: d['annotations'][0].update(category_id=3), ['annotation 5', 'category 3']),
    (lambda d: d['annotations'][0].update(bbox=[1, 1, -3, 3]), ['a.jpg', 'object 1', 'x1 < x2']),
    (lambda d: d['annotations'][0].update(bbox=[1, 1, 30, 3]), ['a.jpg', '9 x 9']),
])
def test_bad_coco(tmp_path, change, words):
    d = json.loads(json.dumps(GOOD)); change(d)
    (tmp_path/'c.json').write_text(json.dumps(d))
    with pytest.raises(ValueError) as e: read_coco(tmp_path/'c.json')
    assert all(w in str(e.value) for w in [*words, 'c.json'])

def flat_coco(folder, *boxes):
    "A COCO folder of one picture with these boxes"
    folder.mkdir(exist_ok=True)
    Image.new('RGB', (9, 9)).save(folder/'a.jpg')
    d = dict(GOOD, annotations=[dict(id=5+i, image_id=1, category_id=1, bbox=b) for i, b in enumerate(boxes)])
    (folder/'annotations.json').write_text(json.dumps(d))
    return folder

def test_boxes_without_area_are_counted_and_can_be_left_out(tmp_path):
    "COCO's own train2017 could not be read: one error a run, and no way to go on"
    data = flat_coco(tmp_path/'c', [1, 1, 3, 3], [1, 1, 3, 0], [8, 8, 0, 0], [4, 4, 2, 2], [8.5, 1, 1e-9, 3], [50, 50, 0, 2])
    for read in (load_annotations, load_splits, lambda o, **kw: read_coco(o/'annotations.json', **kw)):
        with pytest.raises(ValueError, match=r"a.jpg: object 2 \(annotation 6\) has the box \[1, 1, 3, 0\]; .*\(4 such in the file; bad_boxes='skip' or --skip-bad-boxes"): read(data)
        with pytest.warns(UserWarning, match=r'boxes without area left out: 4 \(a.jpg object 2, a.jpg object 3, a.jpg object 5, a.jpg object 6\)'):
            a = read(data, bad_boxes='skip')
    assert a[0].boxes.tolist() == [[1, 1, 4, 4], [4, 4, 6, 6]] and len(a[0].labels) == len(a[0].difficult) == 2

@pytest.mark.parametrize('box', [[1, 1, 0, -3], [1, 1, -3, 3], [float('nan'), 1, 3, 0], [1, 1, float('inf'), 0], [20, 1, 3, 3]])
def test_other_faults_are_never_left_out(tmp_path, box):
    "And each is named by its number in the file, of which the flat box before it is a part"
    data = flat_coco(tmp_path/'c', [1, 1, 3, 0], box)
    for bad_boxes in 'error', 'skip':
        with pytest.raises(ValueError, match='a.jpg: object 2 has the box'): load_annotations(data, 'trainval', bad_boxes=bad_boxes)

def test_a_mistyped_option_is_no_permission(tmp_path):
    "Another word than 'error' would have left boxes out"
    data = flat_coco(tmp_path/'c', [1, 1, 3, 0])
    with pytest.raises(ValueError, match="bad_boxes is 'drop'; expected 'error' or 'skip'"): load_annotations(data, bad_boxes='drop')
    with pytest.raises(ValueError, match='object 1'): read_coco(data/'annotations.json', bad_boxes='drop')

def test_malformed_json(tmp_path):
    (tmp_path/'c.json').write_text('{"images": [')
    with pytest.raises(ValueError, match='c.json: malformed JSON'): read_coco(tmp_path/'c.json')

def test_coco_picture_missing(tmp_path):
    (tmp_path/'train.json').write_text(json.dumps(GOOD))
    with pytest.raises(FileNotFoundError, match='a.jpg'): load_annotations(tmp_path)

def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere'): get_data(tmp_path/'nowhere')
    with pytest.raises(FileNotFoundError, match='nowhere'): load_annotations(tmp_path/'nowhere')
    with pytest.raises(FileNotFoundError, match='neither a VOC devkit.*nor a COCO'): load_annotations(tmp_path)

# sources

def test_source_from_the_environment(kit, monkeypatch):
    monkeypatch.setenv('OBJDET_DATA', str(kit))
    assert get_data() == kit.resolve() and not is_sample(get_data())

@pytest.fixture
def archive(kit, tmp_path):
    f = tmp_path/'VOCtrainval_06-Nov-2007.tar'
    with tarfile.open(f, 'w') as t: t.add(kit/'VOCdevkit', 'VOCdevkit')
    return f

def test_a_tar_is_unpacked_once(archive, tmp_path, monkeypatch):
    monkeypatch.setenv('OBJDET_CACHE', str(tmp_path/'cache'))
    assert len(load_annotations(get_data(archive))) == 1
    assert get_data(archive).parent == tmp_path/'cache'

def test_a_tar_of_another_year(kit, tmp_path, monkeypatch):
    "It was unpacked and then refused"
    monkeypatch.setenv('OBJDET_CACHE', str(tmp_path/'cache'))
    with tarfile.open(tmp_path/'VOCtrainval_11-May-2012.tar', 'w') as t: t.add(kit/'VOCdevkit/VOC2007', 'VOCdevkit/VOC2012')
    assert len(load_annotations(get_data(tmp_path/'VOCtrainval_11-May-2012.tar'), 'val')) == 1

def test_archives_of_one_name_and_a_replaced_one(tmp_path, monkeypatch):
    "The second gave the data of the first"
    monkeypatch.setenv('OBJDET_CACHE', str(tmp_path/'cache'))
    def pack(file, text, mode='w'):
        (tmp_path/text).write_text(text); file.parent.mkdir(exist_ok=True)
        with tarfile.open(file, mode) as t: t.add(tmp_path/text, text)
        return [o.name for o in get_data(file).iterdir()]
    assert [pack(tmp_path/f, f'{f[0]}.txt') for f in ('a/data.tar', 'b/data.tar')] == [['a.txt'], ['b.txt']]
    assert pack(tmp_path/'a/data.tar', 'later.txt') == ['later.txt']
    assert pack(tmp_path/'c/sample_mine.tgz', 'c.txt', 'w:gz') == ['c.txt'] and not is_sample(get_data(tmp_path/'c/sample_mine.tgz'))

def test_half_a_tar_leaves_nothing(archive, tmp_path):
    archive.write_bytes(archive.read_bytes()[:5000])
    with pytest.raises(ValueError, match='not a whole tar'): extract(archive, tmp_path/'out/voc')
    assert list((tmp_path/'out').iterdir()) == []

@pytest.fixture(params=[False, True], ids=['filter', 'python before 3.11.4'])
def old_python(request, monkeypatch):
    "With tarfile's `data` filter and without it: Debian 12 has Python 3.11.2"
    if not request.param: return
    monkeypatch.delattr(tarfile, 'data_filter', raising=False)
    whole = tarfile.TarFile.extractall
    monkeypatch.setattr(tarfile.TarFile, 'extractall', lambda self, path: whole(self, path)) # knows no `filter`

def test_an_archive_is_unpacked(tmp_path, old_python):
    (tmp_path/'a').mkdir(); (tmp_path/'a/x').write_text('x')
    with tarfile.open(tmp_path/'good.tar', 'w') as t: t.add(tmp_path/'a', 'a')
    assert (extract(tmp_path/'good.tar', tmp_path/'out/voc')/'a/x').read_text() == 'x'

def test_a_member_cannot_climb_out(tmp_path, old_python):
    (tmp_path/'x').write_text('x')
    with tarfile.open(tmp_path/'evil.tar', 'w') as t: t.add(tmp_path/'x', '../../climbed')
    with pytest.raises(ValueError, match='climbed'): extract(tmp_path/'evil.tar', tmp_path/'out/voc')
    assert not (tmp_path/'climbed').exists() and list((tmp_path/'out').iterdir()) == []

def test_a_link_cannot_lead_out(tmp_path, old_python):
    "A link to a folder outside, then a file through the link"
    link = tarfile.TarInfo('door'); link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
    (tmp_path/'x').write_text('x')
    with tarfile.open(tmp_path/'evil.tar', 'w') as t: t.addfile(link); t.add(tmp_path/'x', 'door/climbed')
    with pytest.raises(ValueError, match='door'): extract(tmp_path/'evil.tar', tmp_path/'out/voc')
    assert not (tmp_path/'climbed').exists() and list((tmp_path/'out').iterdir()) == []

@pytest.fixture
def served(archive, monkeypatch, tmp_path):
    "The archive on loopback, and torchvision's table pointing at it"
    from torchvision.datasets.voc import DATASET_YEAR_DICT
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=archive.parent)
    handler.log_message = lambda *a: None
    srv = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=srv.serve_forever, daemon=True).start()
    entry = dict(DATASET_YEAR_DICT['2007'], url=f'http://127.0.0.1:{srv.server_port}/{archive.name}', md5=hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setitem(DATASET_YEAR_DICT, '2007', entry)
    monkeypatch.setenv('OBJDET_CACHE', str(tmp_path/'cache'))
    yield entry
    srv.shutdown(); srv.server_close()

def test_download_from_a_server(served):
    assert len(load_annotations(get_data('voc2007'))) == 1
    assert download_voc2007() == get_data('voc2007')

def test_download_with_a_wrong_checksum_leaves_no_data(served, tmp_path):
    served['md5'] = '0'*32
    with pytest.raises(RuntimeError): get_data('voc2007')
    assert not (tmp_path/'cache/voc2007').exists()

# data set and batches

def test_difficult_objects_are_left_out_of_training_and_kept_for_scoring(kit):
    ds = DetectionDataset(load_annotations(kit))
    assert ds[0][1]['labels'].tolist() == [0]
    t = ds.targets(80)[0]
    assert t['difficult'].tolist() == [False, True]
    assert torch.allclose(t['boxes'][0], torch.tensor([0, 0, 10*80/40, 20*80/30]))

def test_squash_moves_boxes_with_the_picture(kit):
    im, t = DetectionDataset(load_annotations(kit), squash(80), difficult=True)[0]
    assert im.shape == (3, 80, 80) and torch.allclose(t['boxes'], DetectionDataset(load_annotations(kit)).targets(80)[0]['boxes'])

def test_padding_and_back():
    item = lambda n: (torch.zeros(3, 8, 8, dtype=torch.uint8), dict(boxes=torch.ones(n, 4), labels=torch.arange(n)))
    x, (boxes, labels) = pad_batch([item(0), item(3), item(1)])
    assert x.shape == (3, 3, 8, 8) and boxes.shape == (3, 3, 4) and labels.tolist() == [[-1]*3, [0, 1, 2], [0, -1, -1]]
    assert [len(unpad(b, l)[1]) for b, l in zip(boxes, labels)] == [0, 3, 1]

@pytest.mark.parametrize('workers', [0, 2])
def test_the_same_seed_gives_the_same_batches(kit, workers):
    a = Annotations([load_annotations(kit)[0]]*8, ['cat', 'dog'], [])
    flip = lambda: __import__('torchvision').transforms.v2.Compose([__import__('torchvision').transforms.v2.RandomHorizontalFlip(), squash(16)])
    def epoch():
        torch.manual_seed(3)
        return torch.cat([y[0] for _, y in dataloaders(a, a, 16, bs=4, tfms=flip(), workers=workers).train])
    assert torch.equal(epoch(), epoch())

def test_largest_object_ignores_difficult_ones(kit):
    box, label = largest_object(load_annotations(kit)[0])
    assert label == 0 and box.tolist() == [0, 0, 10, 20]


def test_ids_of_a_coco_file_are_never_shared():
    "Id 0 became 1 and met the picture that was 1 already: two pictures shared their objects"
    def ids(*given): return [o['id'] for o in to_coco(Annotations([Record(Path(f'{k}.jpg'), i, 9, 9, np.zeros((0, 4), np.float32), np.zeros(0, np.int64),
                                                                       np.zeros(0, bool)) for k, i in enumerate(given)], ['a'], []))['images']]
    assert ids(0, 1, 2) == [0, 1, 2] and ids(0, 0) == [1, 2] and ids(7, 12) == [7, 12]
