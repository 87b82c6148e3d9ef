"""`mean_ap` against pycocotools, side by side: python bench/score.py [--pictures 5000] [--dets 100] [--classes 20] [--six]

Both score the same detections at IoU 0.5 (pycocotools with iouThrs=[0.5], areaRng all, maxDets=[dets]). Both start from
their own ready input: lists of dicts of tensors here, indexed COCO objects there, whose making is timed beside.
Prints medians and ratios, their time to ours: 1 or more is no slower. Fails where the two numbers differ. `--six` compares
`coco_ap` with pycocotools' whole summary too, ten overlaps and four ranges of areas, once: minutes at full size."""
import argparse, contextlib, io, statistics as st, time
import numpy as np, torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from objdet.score import coco_ap, mean_ap

def make_set(pictures, dets, classes, objects, seed=0):
    "Detections and objects of each picture: a third of the detections near an object of their class, the rest anywhere"
    rng, preds, targets = np.random.default_rng(seed), [], []
    def boxes(n):
        xy, wh = rng.random((2, n, 2))
        return (np.concatenate([xy, xy + 0.1 + 0.5 * wh], 1) * 300).astype(np.float32)
    for _ in range(pictures):
        m = rng.integers(0, 2 * objects + 1)
        objs, found, truth, labels = boxes(m), boxes(dets), rng.integers(0, classes, m), rng.integers(0, classes, dets)
        if m:
            near = rng.integers(0, m, dets // 3)
            found[:dets // 3] = objs[near] + rng.normal(0, 12, (dets // 3, 4))
            labels[:dets // 3] = truth[near]
            found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        scores = torch.tensor(rng.random(dets, dtype=np.float32))
        preds.append(dict(boxes=torch.tensor(found), scores=scores, labels=torch.tensor(labels)))
        targets.append(dict(boxes=torch.tensor(objs), labels=torch.tensor(truth)))
    return preds, targets

def coco(items, classes):
    "The same as an indexed COCO object"
    rows = [dict(image_id=i, category_id=int(l), bbox=[b[0], b[1], b[2] - b[0], b[3] - b[1]], score=s, iscrowd=0)
            for i, d in enumerate(items)
            for b, l, s in zip(*(x.double().tolist() for x in (d['boxes'], d['labels'], d.get('scores', d['labels']))))]
    c = COCO()
    c.dataset = dict(images=[dict(id=i) for i in range(len(items))], categories=[dict(id=k) for k in range(classes)],
                     annotations=[dict(r, id=i, area=r['bbox'][2] * r['bbox'][3]) for i, r in enumerate(rows, 1)])
    c.createIndex()
    return c

def coco_map(truth, found, max_dets):
    "pycocotools' AP50: mean over classes with objects"
    e = COCOeval(truth, found, 'bbox')
    e.params.iouThrs, e.params.maxDets = np.array([0.5]), [max_dets]
    e.params.areaRng, e.params.areaRngLbl = [[0, 1e10]], ['all']
    e.evaluate(), e.accumulate()
    p = e.eval['precision']
    return p[p > -1].mean()

def coco_six(truth, found, max_dets):
    "pycocotools' AP, AP50, AP75 and AP by size"
    e = COCOeval(truth, found, 'bbox')
    e.params.maxDets = [1, 10, max_dets]
    e.evaluate(), e.accumulate()
    p = e.eval['precision'][..., 2] # overlap, recall, class, area, for the most detections
    mean = lambda x: x[x > -1].mean() if (x > -1).any() else np.nan
    return np.array([mean(p[..., 0]), mean(p[0, ..., 0]), mean(p[5, ..., 0]), *(mean(p[..., a]) for a in (1, 2, 3))])

def timed(f, *args, **kwargs):
    t = time.perf_counter()
    return f(*args, **kwargs), time.perf_counter() - t

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = dict(pictures=5000, dets=100, classes=20, objects=3, repeats=3)
    for name, n in sizes.items(): parser.add_argument(f'--{name}', type=int, default=n)
    parser.add_argument('--six', action='store_true')
    a = parser.parse_args()
    preds, targets = make_set(a.pictures, a.dets, a.classes, a.objects)
    ours, theirs, voc = [], [], []
    with contextlib.redirect_stdout(io.StringIO()):
        (truth, found), making = timed(lambda: (coco(targets, a.classes), coco(preds, a.classes)))
        for _ in range(a.repeats): # in turn, so that a busy machine slows both
            theirs.append(timed(coco_map, truth, found, a.dets))
            ours.append(timed(mean_ap, preds, targets, method='101point', n_classes=a.classes, max_dets=a.dets))
            voc.append(timed(mean_ap, preds, targets, n_classes=a.classes))
        if a.six: (six, t_six), (their_six, their_t) = timed(coco_ap, preds, targets, a.classes, a.dets), timed(coco_six, truth, found, a.dets)
    median = lambda runs: st.median(t for _, t in runs)
    n = sum(len(t['boxes']) for t in targets)
    print(f'{a.pictures:,} pictures x {a.dets} detections x {a.classes} classes, {n:,} objects; medians of {a.repeats}')
    print(f'pycocotools  {median(theirs):7.2f} s   AP50 {theirs[0][0]:.6f}   (its index, not counted: {making:.2f} s)')
    print(f'mean_ap      {median(ours):7.2f} s   AP50 {ours[0][0].map:.6f}   ratio {median(theirs) / median(ours):.2f}')
    print(f'... 11point  {median(voc):7.2f} s   mAP  {voc[0][0].map:.6f}   ratio {median(theirs) / median(voc):.2f}')
    if a.six: print(f'coco_ap      {t_six:7.2f} s   AP   {six.ap:.6f}   ratio {their_t / t_six:.2f} (pycocotools: {their_t:.2f} s)')
    assert abs(ours[0][0].map - theirs[0][0]) < 1e-6, 'the two disagree'
    if a.six: np.testing.assert_allclose(six, their_six, atol=1e-6)

if __name__ == '__main__': main()
