"Scoring: cases worked out by hand, COCO's code as the oracle, the readable loop against the fast version"
import contextlib, io, json, os
from pathlib import Path
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from torchvision import tv_tensors
from objdet.pascal_data import Annotations, DetectionDataset, Record, read_coco, to_coco
from objdet.score import (MeanAP, _loop_hits, _pairs, _read, _by_group, average_precision, coco_ap, coco_areas, coco_results, matches, mean_ap,
                          read_coco_results, recall_at, write_coco_results)
from random_sets import sets

pycocotools = pytest.importorskip('pycocotools')
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

none = dict(boxes=torch.zeros(0, 4), scores=torch.zeros(0), labels=torch.zeros(0, dtype=torch.int64))

def box(x, y=0, w=10, h=10): return [x, y, x + w, y + h]

def preds(*rows):
    "(box, score) or (box, score, label) each"
    return dict(boxes=[r[0] for r in rows], scores=[r[1] for r in rows],
                labels=[r[2] if len(r) > 2 else 0 for r in rows])

def truth(*boxes, labels=None, difficult=None):
    t = dict(boxes=list(boxes), labels=[0] * len(boxes) if labels is None else labels)
    return t if difficult is None else dict(t, difficult=difficult)

# By hand

def test_ten_detections_of_five_objects():
    "Hits at ranks 1, 2, 4, 7; the fifth object is never found (fractions in the notebook)"
    found = [box(0), box(20), box(500), box(40), box(520), box(540), box(60), box(560), box(580), box(600)]
    p, t = [preds(*[(b, 1 - i / 10) for i, b in enumerate(found)])], [truth(*[box(x) for x in (0, 20, 40, 60, 80)])]
    assert mean_ap(p, t).map == pytest.approx(107/154)
    assert mean_ap(p, t, method='area').map == pytest.approx(93/140)
    assert mean_ap(p, t, method='101point').map == pytest.approx(472/707)
    cut = {k: v[:3] for k, v in p[0].items()}
    assert mean_ap([cut], t).map == pytest.approx(5/11), 'a cut curve counts 0 beyond its end'

@pytest.mark.parametrize('n', [1, 2, 3, 5, 7, 10, 20, 30, 60, 100])
def test_eleven_points_are_reached_exactly(n):
    "k hits of n objects, no miss: recall k/n reaches the points up to it, whatever 0.1 * 3 is on this machine"
    for k in range(n + 1):
        recall = np.arange(1, k + 1) / n
        assert average_precision(recall, np.ones(k)) == pytest.approx((10 * k // n + 1) / 11 if k else 0)

def test_difficult_objects_are_neither_hit_nor_miss():
    "Pitfall 11. Four detections, the first on a difficult object, the last a duplicate there"
    t = truth(box(0), box(20), box(40), difficult=[True, False, False])
    p = preds((box(0), .9), (box(20), .8), (box(500), .7), (box(1), .6))
    r = mean_ap([p], [t], method='area')
    assert r.map == pytest.approx(1/2) and r.n_positives.tolist() == [2] and r.n_dets.tolist() == [4]
    np.testing.assert_allclose(r.recall[0], [1/2, 1/2])
    np.testing.assert_allclose(r.precision[0], [1, 1/2])
    np.testing.assert_allclose(r.scores[0], [.8, .7])
    assert mean_ap([p], [t]).map == pytest.approx(6/11)
    easy = truth(*t['boxes'])
    assert mean_ap([p], [easy], method='area').map == pytest.approx(2/3), 'three to find, two found first'
    only = mean_ap([p], [truth(box(0), difficult=[True])])
    assert np.isnan(only.map) and np.isnan(only.ap).all(), 'a class with difficult objects only has nothing to find'

def test_a_difficult_object_that_overlaps_most_strikes_the_detection():
    "VOC: the nearest object decides, even if another would do. COCO: an object to find comes first"
    t, p = truth(box(0), box(2), difficult=[True, False]), preds((box(0), .9))
    assert mean_ap([p], [t]).map == 0
    assert len(mean_ap([p], [t]).scores[0]) == 0
    assert mean_ap([p], [t], method='101point').map == 1

def test_methods_are_not_mixed():
    "Pitfall 11: one curve, three numbers"
    p, t = preds((box(0), .9), (box(500), .8)), truth(box(0), box(20), box(40))
    maps = [mean_ap([p], [t], method=m).map for m in ('11point', 'area', '101point')]
    assert maps == pytest.approx([4/11, 1/3, 34/101])

def test_duplicates_are_misses():
    p, t = preds((box(0), .9), (box(1), .8), (box(20), .7)), truth(box(0), box(20))
    assert mean_ap([p], [t], method='area').map == pytest.approx((1 + 2/3) / 2)

def test_voc_and_coco_match_differently():
    t, p = truth(box(0), box(3)), preds((box(0), .9), (box(1), .8))
    assert mean_ap([p], [t], method='area').map == 1/2
    assert mean_ap([p], [t], method='101point').map == 1

def test_of_two_objects_equally_near_the_first_is_taken():
    "As the VOC kit does: here a difficult object and one to find have the same box"
    p = preds((box(0), .9))
    assert mean_ap([p], [truth(box(0), box(0), difficult=[False, True])]).map == 1
    assert mean_ap([p], [truth(box(0), box(0), difficult=[True, False])]).map == 0
    assert _loop_hits([p], [truth(box(0), box(0), difficult=[True, False])], 0) == ([], 1)

def test_an_overlap_of_exactly_the_threshold_is_a_hit():
    p, t = preds((box(0, h=5), .9)), truth(box(0))
    for m in '11point', 'area', '101point':
        assert mean_ap([p], [t], iou=0.5, method=m).map == 1 and mean_ap([p], [t], iou=0.51, method=m).map == 0
    assert mean_ap([preds((box(0), 1.))], [t], iou=1).map == 1

def test_ties_keep_the_given_order():
    hit, miss, t = (box(0), .5), (box(500), .5), truth(box(0))
    assert mean_ap([preds(hit, miss)], [t], method='area').map == 1
    assert mean_ap([preds(miss, hit)], [t], method='area').map == 1/2
    assert mean_ap([preds(miss), preds(hit)], [truth(), t], method='area').map == 1/2

def test_ranking_is_over_all_pictures_and_boxes_meet_in_their_own_only():
    p, t = [preds((box(0), .3)), preds((box(0), .9))], [truth(box(0)), truth(box(50))]
    assert mean_ap(p, t, method='area').map == pytest.approx(1/2 * 1/2)

def test_classes_do_not_meet():
    "A box of the wrong class is a miss of its own class and no find of the other"
    r = mean_ap([preds((box(0), .9, 1), (box(20), .8, 1))], [truth(box(0), box(20), labels=[0, 1])], method='area')
    assert r.ap.tolist() == [0, 1/2]

def test_classes_without_objects_are_left_out_of_the_mean():
    r = mean_ap([preds((box(0), .9, 0), (box(0), .8, 2))], [truth(box(0))], n_classes=4)
    assert r.map == 1 and np.isnan(r.ap).tolist() == [False, True, True, True]
    assert r.n_dets.tolist() == [1, 0, 1, 0] and len(r.recall) == len(r.precision) == len(r.scores) == 4

def test_nothing_there():
    "Pitfalls 2 and 4, for scoring"
    t = truth(box(0))
    for m in '11point', 'area', '101point':
        assert mean_ap([none], [t], method=m).map == 0
        assert np.isnan(mean_ap([preds((box(0), .9))], [none], method=m).map)
        assert np.isnan(mean_ap([none], [none], method=m, n_classes=3).ap).all()
        assert mean_ap([none], [none], method=m).ap.shape == (0,)
        assert mean_ap([none, preds((box(0), .9))], [none, t], method=m).map == 1
    assert mean_ap([dict(boxes=[], scores=[], labels=[])], [t]).map == 0
    assert recall_at([none], [t]) == 0 and np.isnan(recall_at([none], [none]))
    str(mean_ap([none], [none])), mean_ap([none], [none]).table()

def test_objects_without_area_and_turned_detections_are_never_found():
    assert mean_ap([preds((box(0, w=0), .9))], [truth(box(0, w=0))]).map == 0
    assert mean_ap([preds(([10, 10, 0, 0], .9))], [truth(box(0))]).map == 0

def test_recall_at():
    t = [truth(box(0), box(20), box(40), difficult=[False, False, True]), truth(box(0), labels=[1])]
    p = [preds((box(1), .01), (box(2), .9), (box(40), .9)), preds((box(0), .9, 0))]
    assert recall_at(p, t) == pytest.approx(1/3) and recall_at(p, t, iou=0.95) == 0
    assert recall_at([preds((box(1), .9))], [truth(box(0), box(2))]) == 1, 'one detection may find two objects'

def test_max_dets_keeps_the_best_of_each_class_and_picture():
    p, t = [preds((box(0), .1), (box(500), .9), (box(20), .2, 1))], [truth(box(0), box(20), labels=[0, 1])]
    assert mean_ap(p, t).ap.tolist() == pytest.approx([1/2, 1])
    assert mean_ap(p, t, max_dets=1).ap.tolist() == pytest.approx([0, 1])
    assert mean_ap(p * 2, t * 2, max_dets=1).n_dets.tolist() == [2, 2]

def test_what_it_takes():
    "Lists, arrays, tensors of any float type, tv_tensors, tensors that want a gradient: one result"
    p, t = preds((box(0), .5), (box(500), .25)), truth(box(0), box(20))
    as_type = lambda d, f: {k: f(v) for k, v in d.items()}
    tensors = as_type(p, torch.tensor)
    short = dict(tensors, boxes=tensors['boxes'].bfloat16(), scores=tensors['scores'].half().requires_grad_())
    boxes = tv_tensors.BoundingBoxes(t['boxes'], format='XYXY', canvas_size=(50, 600))
    forms = [(p, t), (as_type(p, np.array), as_type(t, np.array)), (tensors, as_type(t, torch.tensor)), (short, t),
             (p, dict(t, boxes=boxes, difficult=None))]
    assert [mean_ap([p], [t], method='area').map for p, t in forms] == [1/2] * len(forms)

def test_input_is_left_alone():
    p, t = {k: torch.tensor(v) for k, v in preds((box(0), .5), (box(9), .8)).items()}, truth(box(0))
    before = {k: v.clone() for k, v in p.items()}
    mean_ap([p], [t]), recall_at([p], [t])
    assert all(torch.equal(p[k], before[k]) for k in p) and set(t) == {'boxes', 'labels'}

def test_result_reads_well():
    r = mean_ap([preds((box(0), .9), (box(0), .8, 1))], [truth(box(0), box(20))], n_classes=2)
    assert isinstance(r, MeanAP)
    assert str(r) == 'mAP 0.5455 (11point at IoU 0.5; 1 of 2 classes, 2 objects, 2 detections)'
    lines = r.table(['cat', 'armadillo']).splitlines()
    assert len(lines) == 4 and len({len(l) for l in lines}) == 1, 'columns do not line up'
    assert lines[1].split() == ['cat', '0.545', '0.500', '2', '1']
    assert lines[2].split() == ['armadillo', 'nan', 'nan', '0', '1']
    assert lines[3].split() == ['mean', '0.545', '0.500', '2', '2']
    with pytest.raises(ValueError, match='1 names for 2 classes'): r.table(['cat'])

@pytest.mark.parametrize('p, t, kwargs, text', [
    ([none], [none, none], {}, '1 predictions for 2 pictures'), ([], [], {}, 'no pictures'),
    ([none], [none], dict(method='coco'), "'coco', expected one of"),
    ([none], [none], dict(iou=0), 'iou 0'), ([none], [none], dict(iou=50), 'iou 50'),
    ([dict(boxes=[], labels=[])], [none], {}, r"preds\[0\] has no 'scores', only \['boxes', 'labels'\]"),
    ([none, none], [none, dict(boxes=[])], {}, r"targets\[1\] has no 'labels'"),
    ([none, dict(boxes=torch.zeros(2, 5), scores=[1, 1], labels=[0, 0])], [none, none], {},
     r'preds\[1\]: boxes of shape \(2, 5\)'),
    ([dict(boxes=torch.zeros(4, 2), scores=[1, 1], labels=[0, 0])], [none], {}, r'boxes of shape \(4, 2\)'),
    ([dict(boxes=torch.zeros(2, 4), scores=[1], labels=[0, 0])], [none], {},
     r'scores of shape \(1,\), expected \(2,\)'),
    ([dict(boxes=torch.zeros(2, 4), scores=[1, 1], labels=[[0, 0]])], [none], {}, r'labels of shape \(1, 2\)'),
    ([none], [truth(box(0), difficult=[])], {}, r'difficult of shape \(0,\)'),
    ([preds((box(0), float('nan')))], [none], {}, r'preds\[0\]: scores nan'),
    ([none, preds((box(float('inf')), .5))], [none, none], {}, r'preds\[1\]: boxes .*not finite'),
    ([none], [truth([10, 0, 0, 10])], {}, 'corners swapped'),
    ([none], [truth(box(0), labels=[-1])], {}, r'targets\[0\]: labels -1'),
    ([preds((box(0), .5, 20))], [none], dict(n_classes=20),
     'labels 20: expected 0 to 19; leave padding and background out'),
    ([none], [truth(box(0), labels=[0.])], {}, 'whole numbers')])
def test_bad_input_says_what_and_where(p, t, kwargs, text):
    with pytest.raises(ValueError, match=text): mean_ap(p, t, **kwargs)

def test_bad_types():
    with pytest.raises(TypeError, match=r'preds\[0\] is a Tensor'): mean_ap([torch.zeros(1, 6)], [none])

# COCO's own code

def random_set(rng, classes=4, difficult=0., crowds=0.):
    "Crowded pictures: detections near objects and on coarse grids, equal scores, empty pictures, absent classes; large crowd regions with small detections in them"
    def boxes(n):
        xy, wh = rng.integers(0, 8, (2, n, 2))
        return np.concatenate([xy, xy + wh + 1], 1).astype(float)
    present, coarse, p, t = rng.choice(classes, rng.integers(1, classes + 1), replace=False), rng.random() < 0.5, [], []
    for _ in range(rng.integers(1, 12)):
        m, n = rng.choice([0, 1, 3, 12]), rng.choice([0, 2, 10, 40])
        objs, dets = boxes(m), boxes(n)
        if m: dets[::2] = objs[rng.integers(0, m, len(dets[::2]))]
        if not coarse: dets, objs = [np.float32(b + rng.normal(0, 0.3, b.shape)) for b in (dets, objs)]
        for b in dets, objs: b[:, 2:] = np.maximum(b[:, 2:], b[:, :2] + 0.5)
        scores = rng.integers(0, 6, n) / 5 if rng.random() < 0.5 else rng.random(n)
        p.append(dict(boxes=dets, scores=scores, labels=rng.integers(0, classes, n)))
        t.append(dict(boxes=objs, labels=rng.choice(present, m).astype(int), difficult=rng.random(m) < difficult))
        if crowds: add_crowds(rng, p[-1], t[-1], crowds)
    return p, t

def add_crowds(rng, p, t, share):
    "Make a share of the objects large crowd regions, and every third detection a small one within such a region or over its edge, of its class"
    t['crowd'] = rng.random(len(t['labels'])) < share
    where, some = np.flatnonzero(t['crowd']), slice(1, None, 3)
    size = lambda n, a, b: rng.integers(a, b, (n, 2)) + (rng.random((n, 2)) if t['boxes'].dtype == np.float32 else 0)
    t['boxes'][where, 2:] = t['boxes'][where, :2] + size(len(where), 6, 20)
    n = len(p['labels'][some])
    if not len(where) or not n: return
    o = rng.choice(where, n)
    b = t['boxes'][o]
    xy = np.floor(b[:, :2] + rng.random((n, 2)) * (b[:, 2:] - b[:, :2]))
    p['boxes'][some], p['labels'][some] = np.hstack([xy, xy + size(n, 1, 4)]), t['labels'][o]

class CrowdByBox(COCOeval):
    "COCOeval with plain IoU for crowd regions that are marked `difficult`: crowd then means what difficult means to us"
    def computeIoU(self, image, category):
        crowd = [g.pop('iscrowd') for g in self._gts[image, category]]
        for g, c in zip(self._gts[image, category], crowd): g['iscrowd'] = int(c and not g.get('difficult'))
        try: return super().computeIoU(image, category)
        finally:
            for g, c in zip(self._gts[image, category], crowd): g['iscrowd'] = c

def as_coco(items, classes):
    "Detections, or objects with both marks as crowd regions, as an indexed COCO object"
    mark = lambda d, k, j: int(k in d and d[k][j])
    rows = [dict(image_id=i, bbox=[*b[:2], *(b[2:] - b[:2])], area=np.prod(b[2:] - b[:2]),
                 category_id=int(d['labels'][k]), score=float(d['scores'][k]) if 'scores' in d else 1.,
                 iscrowd=mark(d, 'difficult', k) | mark(d, 'crowd', k), difficult=mark(d, 'difficult', k) & ~mark(d, 'crowd', k))
            for i, d in enumerate(items) for k, b in enumerate(np.asarray(d['boxes'], dtype=float))]
    c = COCO()
    c.dataset = dict(images=[dict(id=i) for i in range(len(items))], categories=[dict(id=k) for k in range(classes)],
                     annotations=[dict(r, id=i) for i, r in enumerate(rows, 1)])
    c.createIndex()
    return c

def their_ap(p, t, classes, max_dets=100, iou=0.5):
    "AP of each class by pycocotools"
    with contextlib.redirect_stdout(io.StringIO()):
        e = CrowdByBox(as_coco(t, classes), as_coco(p, classes), 'bbox')
        e.params.iouThrs, e.params.maxDets = np.array([iou]), [max_dets]
        e.params.areaRng, e.params.areaRngLbl = [[0, 1e10]], ['all']
        e.evaluate(), e.accumulate()
    ap = e.eval['precision'][0, :, :, 0, 0].mean(0)
    return np.where(ap < 0, np.nan, ap)

@pytest.mark.parametrize('max_dets', [100, 3])
@pytest.mark.parametrize('difficult, crowds', [(0., 0.), (.3, 0.), (0., .3), (.2, .2)])
def test_equal_to_pycocotools_on_random_sets(max_dets, difficult, crowds):
    "200 sets of each kind; with difficult marks as crowd regions too, and with real ones"
    rng, seen = np.random.default_rng(7), []
    for _ in range(200):
        p, t = random_set(rng, difficult=difficult, crowds=crowds)
        ours, theirs = mean_ap(p, t, method='101point', n_classes=4, max_dets=max_dets), their_ap(p, t, 4, max_dets)
        np.testing.assert_allclose(ours.ap, theirs, atol=1e-6)
        if not np.isnan(theirs).all(): assert ours.map == pytest.approx(np.nanmean(theirs), abs=1e-6)
        seen.append(theirs)
    seen = np.concatenate(seen)
    assert np.isnan(seen).sum() > 50 and (seen == 0).sum() > 20, 'no hard cases in the sets'
    assert ((seen > 0) & (seen < 1)).sum() > 200, 'the sets are too easy to tell'

@pytest.mark.parametrize('iou', [0.3, 0.75])
def test_equal_to_pycocotools_at_other_thresholds(iou):
    rng = np.random.default_rng(8)
    for i in range(30):
        p, t = random_set(rng, crowds=.3 * (i % 2))
        np.testing.assert_allclose(mean_ap(p, t, iou, '101point', 4).ap, their_ap(p, t, 4, 40, iou), atol=1e-6)

def their_six(truth, found):
    "pycocotools' AP, AP50, AP75 and AP of small, medium and large objects, as it prints them"
    with contextlib.redirect_stdout(io.StringIO()):
        e = CrowdByBox(truth, found, 'bbox')
        e.evaluate(), e.accumulate(), e.summarize()
    return np.where(e.stats[:6] < 0, np.nan, e.stats[:6])

@pytest.mark.parametrize('difficult, crowds', [(0., 0.), (.3, 0.), (0., .3), (.2, .2)])
def test_six_figures_equal_to_pycocotools(difficult, crowds):
    "100 sets of each kind, boxes enlarged so that all three sizes occur, with areas exactly on the borders"
    rng, seen = np.random.default_rng(11), []
    for _ in range(100):
        p, t = random_set(rng, difficult=difficult, crowds=crowds)
        for d in (*p, *t): d['boxes'] = d['boxes'] * 16
        seen.append(their_six(as_coco(t, 4), as_coco(p, 4)))
        np.testing.assert_allclose(coco_ap(p, t, 4), seen[-1], atol=1e-6)
    seen = np.array(seen)
    assert (np.isnan(seen).sum(0) > 0).all() and ((seen > 0) & (seen < 1)).sum(0).min() > 20, 'the sets are too easy to tell'

def test_coco_takes_an_object_out_of_range_once():
    "Two detections on one large object: the first is struck for the small ones, the second is a miss unless large itself"
    t = truth(box(0, w=40, h=40), box(100, w=20, h=20))
    p = preds((box(0, w=40, h=40), .9), (box(0, w=31, h=31), .8), (box(100, w=20, h=20), .7))
    assert mean_ap([p], [t], method='101point', area=coco_areas['small']).precision[0].tolist() == [0, 1/2]
    assert mean_ap([p], [t], method='area', area=coco_areas['small']).precision[0].tolist() == [1], 'VOC strikes both'
    assert mean_ap([p], [t], area=coco_areas['medium']).n_positives.tolist() == [1]

def test_a_crowd_takes_any_number_by_the_share_of_the_detection():
    "A crowd region of 300 x 300: five detections of 30 x 30 in it were false alarms, for their IoU with it is 0.01"
    t = dict(boxes=[box(300, 300, 300, 300), box(50, 50, 50, 50)], labels=[0, 0], crowd=[True, False])
    p = preds(*[(box(310 + 40*i, 320, 30, 30), .9 - i/10) for i in range(5)], (box(50, 50, 50, 50), .1))
    for m in '11point', 'area', '101point': assert mean_ap([p], [t], method=m).map == 1
    assert coco_ap([p], [t])[:3] == pytest.approx([1, 1, 1])
    assert matches([p], [t]).struck.tolist() == [True]*5 + [False] and recall_at([p], [t]) == 1
    assert mean_ap([p], [dict(t, crowd=[False]*2, difficult=t['crowd'])], method='area').map == pytest.approx(1/6), 'difficult: by IoU'

def test_an_object_in_a_crowd_comes_first():
    "The region's share of the detection is 1, the object's IoU less; a second detection is a duplicate for VOC, and the crowd's for COCO"
    t = dict(boxes=[box(0, 0, 100, 100), box(20, 20, 10, 10)], labels=[0, 0], crowd=[True, False])
    p = preds((box(20, 20, 10, 9), .9), (box(20, 20, 10, 8), .8))
    assert matches([p], [t]).object.tolist() == matches([p], [t], method='101point').object.tolist() == [1, -1]
    assert [matches([p], [t], method=m).struck.tolist() for m in ('area', '101point')] == [[False, False], [False, True]]

def test_matches_say_what_the_curve_says():
    rng = np.random.default_rng(5)
    for method in ('area', '101point'):
        for _ in range(20):
            p, t = random_set(rng, difficult=.3, crowds=.2)
            m, r = matches(p, t, method=method, n_classes=4), mean_ap(p, t, method=method, n_classes=4)
            for c in range(4):
                hit = m.object[(m.label == c) & ~m.struck] >= 0
                np.testing.assert_allclose(np.cumsum(hit) / np.arange(1, len(hit) + 1), r.precision[c])
            for i, place, label, score, obj, struck in zip(*m):
                assert p[i]['labels'][place] == label and p[i]['scores'][place] == pytest.approx(score)
                if obj >= 0: assert t[i]['labels'][obj] == label and not (t[i]['difficult'] | t[i].get('crowd', False))[obj] and not struck
            pairs = [(i, o) for i, o in zip(m.picture, m.object) if o >= 0]
            assert len(set(pairs)) == len(pairs), 'an object was hit twice'

# Files

def some_split(rng, ids, classes=4):
    "Annotations with random objects in pictures of 300 x 200, and detections of them"
    p, records = [], []
    for i in ids:
        m, n = rng.integers(0, 5), rng.integers(0, 12)
        boxes, dets = [np.float32(np.hstack([xy, xy + wh])) for k in (m, n) for xy, wh in [(rng.uniform(0, 90, (k, 2)), rng.uniform(2, 110, (k, 2)))]]
        if m: dets[::2] = boxes[rng.integers(0, m, len(dets[::2]))] + rng.uniform(0, 2, (len(dets[::2]), 4)).astype('f4')
        records.append(Record(Path(f'{i}.jpg'), i, 300, 200, boxes, rng.integers(0, classes, m), np.zeros(m, bool)))
        p.append(dict(boxes=torch.tensor(dets), scores=torch.tensor(rng.random(n)), labels=torch.tensor(rng.integers(0, classes, n))))
    return Annotations(records, list('abcd')[:classes], []), p

@pytest.mark.parametrize('ids', [range(1, 30), [900 - 7*i for i in range(29)], [3]*29], ids=['in order', 'any ids', 'repeated ids'])
def test_files_score_the_same_with_pycocotools(ids, tmp_path):
    "Catches category or image ids that differ from `to_coco`'s, corners for sizes, lost or reordered entries"
    ann, p = some_split(np.random.default_rng(2), ids)
    (tmp_path/'truth.json').write_text(json.dumps(to_coco(ann)))
    found = write_coco_results(p, ann, tmp_path/'found.json')
    again = read_coco_results(found, ann)
    for a, b in zip(p, again): assert all(torch.equal(a[k], b[k]) for k in a)
    t = [dict(boxes=r.boxes, labels=r.labels) for r in ann.records]
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = COCO(str(tmp_path/'truth.json'))
        six = their_six(theirs, theirs.loadRes(str(found)))
    np.testing.assert_allclose(coco_ap(again, t, 4), six, atol=1e-6)
    assert mean_ap(again, t, method='101point', n_classes=4).map == pytest.approx(six[1], abs=1e-6)

def category_truth(ids, folder):
    "A COCO file of 12 pictures with these category ids, the second class in each picture"
    objs = [dict(image_id=100 - 7*i, category_id=ids[1], bbox=[5, 5 + i, 30, 20]) for i in range(12)]
    objs += [dict(image_id=100, category_id=ids[0], bbox=[50, 9, 20, 20]), dict(image_id=51, category_id=ids[-1], bbox=[1, 40, 30, 20])]
    d = dict(images=[dict(id=100 - 7*i, file_name=f'{i}.jpg', width=90, height=70) for i in range(12)], categories=[dict(id=k, name=f'c{k}') for k in ids],
             annotations=[dict(o, id=i, area=o['bbox'][2] * o['bbox'][3], iscrowd=0) for i, o in enumerate(objs, 1)])
    (folder/'truth.json').write_text(json.dumps(d))
    return folder/'truth.json'

@pytest.mark.parametrize('ids', [[1, 3, 4], [0, 1, 2], [90, 2, 17], [0, 5]], ids=str)
def test_category_ids_are_the_file_s_own(ids, tmp_path):
    "Results were read and written as if ids were 1 to c: 0.5 where pycocotools has 1.0, without a word"
    file = category_truth(ids, tmp_path)
    with contextlib.redirect_stdout(io.StringIO()): theirs = COCO(str(file))
    t, rng = theirs.dataset, np.random.default_rng(3)
    rows = [dict({k: o[k] for k in ('image_id', 'category_id')}, bbox=(np.array(o['bbox']) + rng.integers(0, 5, 4)).tolist(), score=s)
            for o, s in zip(t['annotations'], rng.random(len(t['annotations'])))]
    perfect = [dict({k: o[k] for k in ('image_id', 'category_id', 'bbox')}, score=.5) for o in t['annotations']]
    ann = read_coco(file)
    targets = [dict(boxes=r.boxes, labels=r.labels) for r in ann]
    for name, o in ('perfect', perfect), ('found', rows):
        (tmp_path/f'{name}.json').write_text(json.dumps(o))
        p = read_coco_results(tmp_path/f'{name}.json', ann)
        again = write_coco_results(p, ann, tmp_path/'again.json')
        with contextlib.redirect_stdout(io.StringIO()): six = [their_six(theirs, theirs.loadRes(str(f))) for f in (tmp_path/f'{name}.json', again)]
        np.testing.assert_allclose(six, [coco_ap(p, targets, len(ids))]*2, atol=1e-6)
        assert six[0][0] == pytest.approx(1) if name == 'perfect' else .1 < six[0][0] < .9
    back = to_coco(ann)
    assert [(o['id'], o['name']) for o in back['categories']] == [(k, f'c{k}') for k in sorted(ids)]
    assert sorted((o['image_id'], o['category_id'], o['bbox']) for o in back['annotations']) == sorted((o['image_id'], o['category_id'], o['bbox']) for o in t['annotations'])
    (tmp_path/'odd.json').write_text(json.dumps([dict(perfect[0], category_id=max(ids) + 1)]))
    with pytest.raises(ValueError, match=f'entry 0: category_id {max(ids) + 1}, .*its ids are {", ".join(map(str, sorted(ids)))}$'): read_coco_results(tmp_path/'odd.json', ann)

def test_category_ids_stay_with_classes_in_another_order(tmp_path):
    "`classes` reorders the labels and may have a class that the file lacks: its detections get an id that nothing else has"
    ann = read_coco(category_truth([1, 3, 4], tmp_path), classes=['c4', 'zebra', 'c1', 'c3'])
    p = [dict(boxes=[[0, 0, 9, 9]]*4, scores=[.9, .8, .7, .6], labels=[0, 1, 2, 3])] + [none]*11
    rows = json.loads(write_coco_results(p, ann, tmp_path/'f.json').read_text())
    ids = [r['category_id'] for r in rows]
    assert ids[::2] + ids[3:] == [4, 1, 3] and ids[1] not in (1, 3, 4)
    assert read_coco_results(tmp_path/'f.json', ann)[0]['labels'].tolist() == [0, 1, 2, 3]

def test_crowds_in_files_score_the_same_with_pycocotools(tmp_path):
    "`to_coco` wrote them as objects to find"
    d = dict(images=[dict(id=3, file_name='a.jpg', width=640, height=640)], categories=[dict(id=2, name='person')],
             annotations=[dict(id=i, image_id=3, category_id=2, bbox=b, area=b[2]*b[3], iscrowd=c) for i, b, c in ((1, [50, 50, 50, 50], 0), (2, [300, 300, 300, 300], 1))])
    found = [dict(image_id=3, category_id=2, bbox=[310 + 40*i, 320, 30, 30], score=.9 - i/10) for i in range(5)] + [dict(image_id=3, category_id=2, bbox=[50, 50, 50, 50], score=.1)]
    for name, o in ('truth', d), ('found', found): (tmp_path/f'{name}.json').write_text(json.dumps(o))
    ann = read_coco(tmp_path/'truth.json')
    (tmp_path/'again.json').write_text(json.dumps(to_coco(ann)))
    p = read_coco_results(tmp_path/'found.json', ann)
    for t in [dict(boxes=r.boxes, labels=r.labels, difficult=r.difficult, crowd=r.crowd) for r in ann], DetectionDataset(ann).targets(640): assert coco_ap(p, t).ap == 1
    for f in 'truth', 'again':
        with contextlib.redirect_stdout(io.StringIO()): theirs = COCO(str(tmp_path/f'{f}.json'))
        with contextlib.redirect_stdout(io.StringIO()): assert their_six(theirs, theirs.loadRes(str(tmp_path/'found.json')))[0] == pytest.approx(1)

def test_results_of_squares_come_out_in_the_picture_s_own_pixels(tmp_path):
    ann, _ = some_split(np.random.default_rng(2), [1])
    p = [dict(boxes=torch.tensor([[0., 64, 32, 128]]), scores=torch.tensor([.5]), labels=torch.tensor([3]))]
    row, = json.loads(write_coco_results(p, ann, tmp_path/'f.json', size=128).read_text())
    assert row == dict(image_id=1, category_id=4, bbox=[0, 100, 75, 100], score=.5)
    assert p[0]['boxes'].tolist() == [[0, 64, 32, 128]], 'the input was changed'

def test_no_detections_at_all(tmp_path):
    ann, _ = some_split(np.random.default_rng(2), [1, 2])
    for size in (None, 100):
        file = write_coco_results([none, dict(boxes=[], scores=[], labels=[])], ann, tmp_path/'f.json', size)
        assert [len(p['boxes']) for p in read_coco_results(file, ann)] == [0, 0]
    assert coco_results([], []) == []

def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    ann, p = some_split(np.random.default_rng(2), [1, 2])
    file = write_coco_results(p, ann, tmp_path/'f.json')
    before = file.read_bytes()
    with pytest.raises(ValueError, match=r'preds\[1\]: labels 9: expected 0 to 3'): write_coco_results([none, preds((box(0), .5, 9))], ann, file)
    def full(fd): raise OSError('no space left')
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError): write_coco_results(p, ann, file)
    assert file.read_bytes() == before and [f.name for f in tmp_path.iterdir()] == ['f.json']

@pytest.mark.parametrize('p, text', [
    ([none], '1 predictions for 2 pictures'), ([none, preds((box(0), float('inf')))], r'preds\[1\]: scores inf: not finite'),
    ([preds((box(0), .5, -1)), none], r'preds\[0\]: labels -1'), ([preds(([9, 0, 5, 5], .5)), none], 'corners swapped')])
def test_what_cannot_be_written(p, text):
    with pytest.raises(ValueError, match=text): coco_results(p, [1, 2])

row = dict(image_id=1, category_id=1, bbox=[0, 0, 5, 5], score=.5)
@pytest.mark.parametrize('text, says', [
    ('[{', 'malformed JSON'), ('{"annotations": []}', 'holds a dict, expected the list'), ([3], 'entry 0: a int'),
    ([row, {k: v for k, v in row.items() if k != 'score'}], "entry 1: no 'score', only"),
    ([dict(row, image_id=9)], 'entry 0: image_id 9, which is not among'), ([dict(row, image_id=[1])], r'image_id \[1\]'),
    ([dict(row, category_id=0)], 'category_id 0, which the truth does not have; its ids are 1, 2, 3, 4'), ([dict(row, category_id=5)], 'category_id 5'),
    ([dict(row, category_id='a')], "category_id 'a'"), ([dict(row, bbox=[1, 2, 3])], r'bbox \[1, 2, 3\]'), ([dict(row, bbox=7)], 'bbox 7'),
    ([dict(row, bbox=[0, 0, -1, 5])], 'no negative size'), ([dict(row, score=None)], 'score None'), ([dict(row, score=float('nan'))], 'finite')])
def test_files_that_cannot_be_read_say_what_and_where(text, says, tmp_path):
    ann, _ = some_split(np.random.default_rng(2), [1, 2])
    file = tmp_path/'found.json'
    file.write_text(text if isinstance(text, str) else json.dumps(text))
    with pytest.raises(ValueError, match=says) as e: read_coco_results(file, ann)
    assert str(file) in str(e.value)

# The readable loop

@settings(max_examples=150, deadline=None)
@given(sets(), st.sampled_from([0.3, 0.5, 0.7]), st.booleans(), st.sampled_from([None, (0, 4), (4, 9)]))
def test_loop_and_fast_version_agree(set_, iou, coco, area):
    p, t = set_
    fast = mean_ap(p, t, iou, '101point' if coco else 'area', n_classes=2, area=area)
    for c in range(2):
        hits, n = _loop_hits(p, t, c, iou, coco, area)
        assert fast.n_positives[c] == n and len(fast.scores[c]) == len(hits)
        if n: np.testing.assert_allclose(fast.recall[c] * n, np.cumsum(hits))
        else: assert np.isnan(fast.ap[c]) and np.isnan(fast.recall[c]).all()
        np.testing.assert_allclose(fast.precision[c], np.cumsum(hits) / np.arange(1, len(hits) + 1))

@settings(max_examples=50, deadline=None)
@given(sets())
def test_recall_bounds_what_mean_ap_finds(set_):
    p, t = set_
    r, most = mean_ap(p, t, n_classes=2), recall_at(p, t)
    hits = sum(x[-1] * n for x, n in zip(r.recall, r.n_positives) if len(x) and n)
    if r.n_positives.sum(): assert hits <= most * r.n_positives.sum() + 1e-9

def test_pairs_in_pieces_are_the_same_pairs():
    p, t = random_set(np.random.default_rng(3))
    dets, objs, _ = _read(p, t)
    objs = _by_group(objs)
    for a, b in zip(_pairs(dets, objs, 0.1), _pairs(dets, objs, 0.1, size=3)): np.testing.assert_array_equal(a, b)
