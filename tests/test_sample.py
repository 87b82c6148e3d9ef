"The embedded data set and its body: same bytes, tight boxes, declared difficulty, whole or not at all"
import hashlib, os, signal, subprocess, sys, time
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import numpy as np, pytest, torch
from PIL import Image

from objdet import sample
from objdet.sample import (SymbolBody, alphabet, declared, make_sample, picture_id, sample_classes, sample_path, set_statistics, super_categories,
                           symbol_batch, symbol_body, symbol_classifier)
from objdet.show import normalize

N_TRAIN, N_VALID = 240, 60


@pytest.fixture(scope='module')
def made(tmp_path_factory): return make_sample(tmp_path_factory.mktemp('sample')/'set', N_TRAIN, N_VALID)


@pytest.fixture(scope='module')
def root(made): return made/'VOCdevkit'/'VOC2007'


def digests(path): return {str(f.relative_to(path)): hashlib.sha256(f.read_bytes()).hexdigest() for f in Path(path).rglob('*') if f.is_file()}


def xml_objects(file):
    return [(o.findtext('name'), [int(o.findtext(f'bndbox/{k}')) for k in ('xmin', 'ymin', 'xmax', 'ymax')], int(o.findtext('difficult')),
             int(o.findtext('truncated'))) for o in ET.parse(file).iter('object')]


def start(path, n_train, n_valid, workers=1):
    code = f'from objdet.sample import make_sample; make_sample({str(path)!r}, {n_train}, {n_valid}, workers={workers})'
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join(p or os.getcwd() for p in sys.path)}
    return subprocess.Popen([sys.executable, '-c', code], env=env, stderr=subprocess.PIPE)


def test_same_bytes_for_any_workers_and_any_count(tmp_path, made):
    one, three = (make_sample(tmp_path/str(k), 20, 5, workers=k) for k in (1, 2))
    assert digests(one) == digests(three)
    small, large = digests(one), digests(made)
    pictures = [f for f in small if f.endswith(('.jpg', '.xml', '.png'))]
    assert len(pictures) == 3*25
    assert all(small[f] == large[f] for f in pictures)


def test_another_seed_gives_other_pictures(tmp_path):
    other = make_sample(tmp_path/'other', 2, 1, seed=1)
    name = f'{picture_id("train", 0)}.jpg'
    pic, _, _, _ = sample.draw_picture('train', 0)
    pic.save(tmp_path/name, quality=85)
    assert next(other.rglob(name)).read_bytes() != (tmp_path/name).read_bytes()


def test_layout_is_a_voc_devkit(root):
    ids = {s: (root/'ImageSets'/'Main'/f'{s}.txt').read_text().split() for s in ('train', 'val', 'trainval')}
    assert (len(ids['train']), len(ids['val'])) == (N_TRAIN, N_VALID)
    assert not set(ids['train']) & set(ids['val']) and ids['trainval'] == sorted(ids['train'] + ids['val'])
    for folder, end in (('JPEGImages', 'jpg'), ('Annotations', 'xml'), ('SegmentationObject', 'png')):
        assert sorted(f.name for f in (root/folder).iterdir()) == [f'{i}.{end}' for i in ids['trainval']]
    assert set(sample_classes) == set(super_categories) and 15 <= len(sample_classes) <= 20


def test_lists_by_class_agree_with_the_annotations(root):
    for c in sample_classes:
        for line in (root/'ImageSets'/'Main'/f'{c}_val.txt').read_text().splitlines():
            name, flag = line.split()
            hard = [d for n, _, d, _ in xml_objects(root/'Annotations'/f'{name}.xml') if n == c]
            assert int(flag) == (-1 if not hard else 0 if all(hard) else 1)


def test_boxes_are_tight_to_the_visible_masks(root):
    n = 0
    for file in sorted((root/'Annotations').iterdir()):
        mask, objects = np.asarray(Image.open(root/'SegmentationObject'/f'{file.stem}.png')), xml_objects(file)
        assert sorted(set(np.unique(mask)) - {0}) == list(range(1, len(objects) + 1))
        for k, (_, box, _, _) in enumerate(objects, 1):
            y, x = np.nonzero(mask == k)
            assert box == [x.min() + 1, y.min() + 1, x.max() + 1, y.max() + 1], (file.name, k)
            n += 1
    assert n > 700


def test_annotations_hold_what_voc_holds(root):
    groups = {}
    for file in (root/'Annotations').iterdir():
        t = ET.parse(file).getroot()
        size = Image.open(root/'JPEGImages'/t.findtext('filename')).size
        assert size == (int(t.findtext('size/width')), int(t.findtext('size/height'))) and t.findtext('folder') == 'VOC2007'
        groups[file.stem] = t.findtext('source/group')
        for name, (x1, y1, x2, y2), hard, cut in xml_objects(file):
            assert name in sample_classes and {hard, cut} <= {0, 1}
            assert 1 <= x1 <= x2 <= size[0] and 1 <= y1 <= y2 <= size[1]
        assert all(o.findtext('pose') for o in t.iter('object'))
    train, val = (set((root/'ImageSets'/'Main'/f'{s}.txt').read_text().split()) for s in ('train', 'val'))
    assert not {groups[i] for i in train} & {groups[i] for i in val}


def test_shapes_vary_so_that_squashing_matters(root):
    ratio = np.array([w/h for w, h in (Image.open(f).size for f in (root/'JPEGImages').iterdir())])
    assert (ratio > 1.2).mean() > 0.5 and (ratio < 0.85).mean() > 0.08 and (abs(ratio - 1) < 0.05).mean() > 0.03


def test_difficulty_is_as_declared(made):
    found = set_statistics(made)
    for k, (low, high) in declared.items():
        slack = {'reach': 0, 'rarest': 0.015}.get(k, 0.25*(high - low))
        assert low - slack <= found[k] <= high + slack, (k, found[k])


def test_every_kind_of_object_occurs(root):
    found = [o for f in (root/'Annotations').iterdir() for o in xml_objects(f)]
    assert set(Counter(n for n, *_ in found)) == set(sample_classes)
    counts = Counter(len(xml_objects(f)) for f in (root/'Annotations').iterdir())
    assert counts[0] and counts[1] > counts[4] and max(counts) >= 7


def test_two_processes_at_once(tmp_path):
    both = [start(tmp_path/'set', 25, 5) for _ in range(2)]
    errors = [p.communicate(timeout=120)[1] for p in both]
    assert [p.returncode for p in both] == [0, 0], errors
    assert [f.name for f in tmp_path.iterdir()] == ['set']
    assert len(list((tmp_path/'set').rglob('*.jpg'))) == 30


def test_a_killed_make_leaves_no_half_set(tmp_path):
    p = start(tmp_path/'set', 3000, 0, workers=2)
    while not list(tmp_path.rglob('*.jpg')) and p.poll() is None: time.sleep(0.05)
    p.send_signal(signal.SIGKILL)
    p.communicate()
    assert not (tmp_path/'set').exists()
    left, count = list(tmp_path.iterdir()), lambda: len(list(tmp_path.rglob('*.jpg')))
    n, seen = -1, count()
    while seen != n:                # a worker may finish the picture it is at; all 3,000 would take much longer
        n = seen
        time.sleep(2)
        seen = count()
    assert seen < 3000, 'the workers go on without their parent'
    for f in left: os.utime(f, (0, 0))
    make_sample(tmp_path/'set', 2, 1, workers=1)
    assert [f.name for f in tmp_path.iterdir()] == ['set']


def test_an_error_in_a_worker_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path/'broken'/'objdet').mkdir(parents=True)
    (tmp_path/'broken'/'objdet'/'__init__.py').write_text('raise RuntimeError("no room")')
    monkeypatch.syspath_prepend(str(tmp_path/'broken'))
    with pytest.raises(RuntimeError, match='no room'): make_sample(tmp_path/'set', 2, 1, workers=2)
    assert [f.name for f in tmp_path.iterdir()] == ['broken']


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/'thesis.txt').write_text('dear')
    with pytest.raises(FileExistsError, match='mine'): make_sample(tmp_path/'mine', 2, 1)
    assert (tmp_path/'mine'/'thesis.txt').read_text() == 'dear'
    with pytest.raises(ValueError, match='-2'): make_sample(tmp_path/'new', -2, 1)


def test_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('OBJDET_CACHE', str(tmp_path/'deep'/'cache'))
    path = sample_path(3, 1)
    stamp = path.stat().st_mtime_ns
    assert path.parent == tmp_path/'deep'/'cache' and sample_path(3, 1) == path and path.stat().st_mtime_ns == stamp


def test_every_symbol_exists_in_the_font():
    for char in ''.join(alphabet): assert sample.symbol_art(char).width > 10
    with pytest.raises(ValueError, match='U\\+4E2D'): sample.symbol_art('中')


def test_body_shape_and_size():
    body = symbol_body()
    assert body(torch.zeros(2, 3, 112, 112)).shape == (2, 256, 7, 7)
    assert body(torch.zeros(1, 3, 64, 96)).shape == (1, 256, 4, 6)
    assert 1_000_000 <= sum(p.numel() for p in body.parameters()) <= 2_000_000
    assert isinstance(body, SymbolBody) and isinstance(body, torch.nn.Sequential)


def test_shipped_weights_name_unseen_pictures():
    x, y = symbol_batch(alphabet, 90_000, 312, 'symbol_test')
    with torch.no_grad(): guess = torch.cat([symbol_classifier()(normalize(p/255)).argmax(1) for p in x.split(78)])
    assert (guess == y).float().mean() >= 0.93
    assert all(t.dtype == torch.float32 and t.isfinite().all() for t in symbol_body('DEFAULT').parameters())
    assert (Path(sample.__file__).parent/'weights'/'symbols.pt').stat().st_size <= 4*2**20


def test_a_failed_save_leaves_the_old_weights_and_nothing_else(tmp_path, monkeypatch):
    model = sample.SymbolClassifier(sample.SymbolBody(), 2)
    sample.save_symbol_weights(model, tmp_path/'w.pt')
    before = (tmp_path/'w.pt').read_bytes()
    def full(*args): raise OSError('no space left')
    monkeypatch.setattr(torch, 'save', full)
    with pytest.raises(OSError): sample.save_symbol_weights(model, tmp_path/'w.pt')
    assert (tmp_path/'w.pt').read_bytes() == before and [o.name for o in tmp_path.iterdir()] == ['w.pt']


def test_wrong_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='none.pt'): symbol_body(tmp_path/'none.pt')
    (tmp_path/'text.pt').write_text('hello')
    torch.save({'layer.weight': torch.zeros(3)}, tmp_path/'other.pt')
    torch.save({'body': {'0.0.weight': torch.zeros(3)}, 'head': {}}, tmp_path/'part.pt')
    for name in ('text.pt', 'other.pt', 'part.pt'):
        with pytest.raises(ValueError, match=name): symbol_body(tmp_path/name)
