"""A detector on real VOC 2007, train to val: the one that `load_detector('voc')` gives, and its figures.

    python scripts/voc_detector.py prepare --data VOC --weights FILE      what the frozen early layers say of 14 views a picture; once
    python scripts/voc_detector.py train --data VOC --weights FILE        train on the views, score on val
    python scripts/voc_detector.py train … --choose                       train on four fifths of train, score on the fifth; to choose settings
    python scripts/voc_detector.py lesson --data VOC --weights FILE       lesson 06's finished detector as it stands, trained and scored alike
    python scripts/voc_detector.py score --data VOC --weights FILE        score the trained detector once more
    python scripts/voc_detector.py ship                                   copy the trained detector into the package

The body is `mobilenet_v2`, FILE its weights; pictures are squares of 288 pixels. The early layers stay frozen, so every view of a picture
(lesson 01's `ssd_tfms`, seeded by view and picture) goes through them once, for all trainings.
Everything can be interrupted: a view that is finished is kept, and a training goes on after its last finished epoch.
"""
import argparse, json, os
from pathlib import Path
import torch
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import generalized_box_iou_loss
from tqdm import tqdm
from objdet import __version__
from objdet.anchors_matching import anchor_recall, create_anchors, suggest_anchors
from objdet.bbox_aug import ssd_tfms, valid_tfms
from objdet.detector import Detector, TopDownHead, load_detector
from objdet.focal_nms import FocalLoss, detect
from objdet.learner import Learner, read_weights, set_seed, write_whole
from objdet.mean_ap import ap_by_size, families, mended_ap
from objdet.pascal_data import DataLoaders, DetectionDataset, load_annotations, pad_batch
from objdet.score import mean_ap
from objdet.single_obj import create_body
from objdet.ssd_loss import SSDLoss
from objdet.your_data import _check_checkpoint, _fingerprint, train_detector
from notebooks import root, write

SIZE, EARLY, ZOOM = 288, 7, 2. # side of the squares; layers before EARLY are asked once; widest zoom-out
TAPS, GRIDS = (14, 19), (18, 9, 5, 3, 2)
SIDES = 16, 32, 64, 128 # ends of the sizes of objects, scored apart
MACHINE = f'{os.cpu_count()} CPU cores'
CARD = dict(data='PASCAL VOC 2007 train, 2,500 pictures without difficult objects', body="torchvision's mobilenet_v2, ImageNet weights; early layers as they were",
            license='MIT (weights of the body); the pictures belong to their photographers')
# `body`: the late layers' rate, a share of the head's; `shared`: one `OutConv` for all grids; `loc`: factor of the box loss;
# `thresh`: overlap of a positive anchor; `rare`: pictures of classes that fewer than this share of the pictures hold are shown more often;
# `amp`: 1 trains in bfloat16, quicker on processors that have it and far slower on others; 0 as `Learner` does by itself, on CUDA only
RECIPE = dict(epochs=20, lr=1.2e-3, body=.4, wd=.01, bs=32, k=9, nf=176, shared=1, drop=0., loc=1., thresh=.4, alpha=.25, gamma=2., rare=0., amp=0)


class Views(torch.utils.data.Dataset):
    "One random view of each picture, the same whenever it is asked for; view 0 is the picture as it is"
    def __init__(self, annotations, view):
        tfms = ssd_tfms(SIZE, ZOOM) if view else valid_tfms(SIZE)
        self.ds, self.view = DetectionDataset(annotations, tfms), view

    def __len__(self): return len(self.ds)

    def __getitem__(self, i):
        torch.manual_seed(self.view*100_003 + i)
        return self.ds[i]


def ask(early, ds, name):
    "The early layers' activations of each picture, and its boxes and labels"
    actns, boxes, labels = [], [], []
    for x, (b, l) in tqdm(torch.utils.data.DataLoader(ds, 32, collate_fn=pad_batch), desc=name):
        with torch.no_grad(): actns.append(early(x.contiguous(memory_format=torch.channels_last)).half().contiguous())
        boxes += [o[k >= 0] for o, k in zip(b, l)]
        labels += [k[k >= 0] for k in l]
    return dict(actns=torch.cat(actns), boxes=boxes, labels=labels)


def load(a):
    "Annotations of train and of val"
    trn = load_annotations(a.data, 'train', missing='skip')
    return trn, load_annotations(a.data, 'val', classes=trn.classes, missing='skip')


def check_views(a, trn, val, early):
    "Stop where the views in `a.cache` are of other pictures, boxes or weights"
    file, mark = a.cache/'views.txt', ' '.join(str(int(_fingerprint(ann, early, SIZE))) for ann in (trn, val))
    if not file.exists(): write(file, mark)
    if file.read_text() != mark: raise SystemExit(f'{a.cache}: holds views of other pictures, boxes or weights than {a.data}, {a.weights}; remove it, or give another --cache')


def prepare(a):
    "Ask the early layers about all views, one file a view"
    trn, val = load(a)
    early = create_body('mobilenet_v2', a.weights).layers[:EARLY].eval()
    check_views(a, trn, val, early)
    todo = [('val', val, 0)] + [(f'view{v}', trn, v) for v in range(a.views + 1)]
    for name, ann, view in todo[a.part::a.parts]:
        file = a.cache/f'{name}.pt'
        if not file.exists(): write_whole(ask(early, Views(ann, view), name), file)


def repeats(labels, n_classes, rare):
    "How often each picture is due: the square root of `rare` over the share of pictures that hold its rarest class, at least once (Gupta and others, *LVIS*, repeat factor sampling)"
    has = torch.stack([torch.bincount(l, minlength=n_classes) > 0 for l in labels])
    often = (rare/has.float().mean(0).clamp(min=1e-9)).sqrt()
    return (has*often).amax(1).clamp(min=1)


class Trained:
    "Batches of one view of the pictures `ids`, another each epoch, as many pictures as there are; half precision on disk"
    def __init__(self, cache, views, ids, bs, due=None):
        self.cache, self.views, self.ids, self.bs, self.due, self.epochs_done = cache, views, ids, bs, due, lambda: 0

    def __len__(self): return len(self.ids)//self.bs

    def __iter__(self):
        kept, pool = read_weights(self.cache/f'view{self.epochs_done() % self.views + 1}.pt'), torch.tensor(self.ids)
        if self.due is not None: pool = pool.repeat_interleave((self.due + torch.rand(len(pool))).long())
        order = pool[torch.randperm(len(pool))].tolist()
        for k in range(len(self)): yield batch(kept, order[k*self.bs:(k + 1)*self.bs])


class Plain:
    "Batches of pictures as they are"
    def __init__(self, file, ids, bs=50): self.kept, self.ids, self.bs = read_weights(file), ids, bs

    def __len__(self): return -(-len(self.ids)//self.bs)

    def __iter__(self):
        for k in range(len(self)): yield batch(self.kept, self.ids[k*self.bs:(k + 1)*self.bs])


def batch(kept, ids):
    "Activations, and boxes and labels padded"
    boxes, labels = ([kept[n][i] for i in ids] for n in ('boxes', 'labels'))
    x = kept['actns'][ids].float().contiguous(memory_format=torch.channels_last)
    return x, (pad_sequence(boxes, batch_first=True), pad_sequence(labels, batch_first=True, padding_value=-1))


class Late(torch.nn.Module):
    "What is left of a detector behind the early layers"
    def __init__(self, det): super().__init__(); self.det = det
    def forward(self, x): return self.det.head(self.det.grids(x, EARLY))


def new_detector(a, classes, objects):
    "A detector whose anchors fit `objects`"
    body = create_body('mobilenet_v2', a.weights)
    anchors = suggest_anchors(objects, GRIDS, a.k)
    print(f'{anchor_recall(create_anchors(*anchors)[0], objects):.3f} of the objects have an anchor; shapes {[tuple(round(v, 2) for v in s) for s in anchors[2]]}')
    args = dict(k=len(anchors[2]), nf=a.nf, drop=a.drop, shared=bool(a.shared))
    return Detector(body, TopDownHead((96, 1280), len(classes), **args), classes, anchors, SIZE, args, taps=TAPS)


def train(a):
    "Train on the views, print the score"
    trn, val = load(a)
    ids = list(range(len(trn)))
    file, held = ('view0', ids[::5]) if a.choose else ('val', list(range(len(val))))
    if a.choose: ids = [i for i in ids if i % 5]
    set_seed(a.seed)
    truth = DetectionDataset(trn).targets(SIZE)
    det = new_detector(a, trn.classes, torch.cat([truth[i]['boxes'][~truth[i]['difficult']] for i in ids])/SIZE)
    check_views(a, trn, val, det.body[:EARLY])
    ckpt, late = a.cache/f'{a.name}.ckpt', Late(det)
    late.register_buffer('mark', _check_checkpoint(ckpt, _fingerprint(trn, det.body, *(getattr(a, k) for k in (*RECIPE, 'seed', 'views', 'choose')))))
    loss = SSDLoss(det.anchors, det.grid_sizes, SIZE, len(trn.classes), FocalLoss(len(trn.classes), a.alpha, a.gamma), a.thresh, a.loc, generalized_box_iou_loss)
    due = repeats([truth[i]['labels'][~truth[i]['difficult']] for i in ids], len(trn.classes), a.rare) if a.rare else None
    trained, few = Trained(a.cache, a.views, ids, a.bs, due), Plain(a.cache/f'{file}.pt', held[:100]) # the few only show the loss
    learn = Learner(late, DataLoaders(trained, few), loss, groups=[det.body[EARLY:], det.head], wd=a.wd, amp=bool(a.amp) or None)
    trained.epochs_done = lambda: len(learn.history)
    learn.fit_one_cycle(a.epochs, [a.lr*a.body, a.lr], checkpoint=ckpt)
    det.plan['notes'].update(CARD, recipe={k: getattr(a, k) for k in RECIPE}, pictures=len(ids), seed=a.seed, choose=a.choose, epochs=a.epochs, objdet=__version__,
                             seconds=round(sum(h['seconds'] for h in learn.history)))
    det.save(a.cache/f'{a.name}.pt')
    score(a)


def score(a):
    "Score a trained detector, as its file gives it; its figures go into its notes"
    file = a.cache/f'{a.name}.pt'
    det = load_detector(file)
    notes = det.plan['notes']
    if notes['choose'] != a.choose: raise SystemExit(f'{file}: trained {"with" if notes["choose"] else "without"} --choose; score it so too')
    ann = load_annotations(a.data, 'train' if a.choose else 'val', classes=det.classes, missing='skip')
    held = list(range(len(ann)))[::5 if a.choose else 1]
    preds = Learner(Late(det), DataLoaders(None, Plain(a.cache/f'{"view0" if a.choose else "val"}.pt', held)), None).predict()
    found = detect(preds, det.anchors, det.grid_sizes, SIZE)
    truth = DetectionDataset(ann).targets(SIZE)
    row = report(a, found, [truth[i] for i in held], det.classes, notes)
    notes.update(map=row['map'], ap=row['ap'])
    det.save(file)


def report(a, found, truth, classes, notes):
    "Print the scores; keep them as a row of the table `--out`, in place of an earlier one of that name"
    score, more = mean_ap(found, truth, n_classes=len(classes)), {}
    print(score); print(score.table(classes))
    for name, kw in dict(area=dict(method='area'), coco50=dict(method='101point')).items():
        more[name] = round(mean_ap(found, truth, n_classes=len(classes), **kw).map, 4)
    sizes = ap_by_size(found, truth, SIDES, n_classes=len(classes))
    print('sides in pixels of the square:', *(f'{k} {v}' for k, v in sizes.items()), sep='\n')
    mended = {k: round(v, 4) for k, v in mended_ap(found, truth, families(classes), n_classes=len(classes)).items()}
    print('with one kind of error mended:', ', '.join(f'{k} {v}' for k, v in mended.items()))
    row = dict(name=a.name, map=round(score.map, 4), **more, sizes={k: round(v.map, 4) for k, v in sizes.items()}, mended=mended, pictures=[notes['pictures'], len(found)], choose=a.choose, seed=notes['seed'], recipe=notes.get('recipe', {}),
               epochs=notes['epochs'], seconds=notes['seconds'], threads=torch.get_num_threads(), machine=MACHINE, torch=torch.__version__,
               ap={c: round(float(v), 4) for c, v in zip(classes, score.ap)})
    write(a.out, json.dumps([r for r in read_rows(a.out) if r['name'] != a.name] + [row], indent=1) + '\n')
    return row


def read_rows(file):
    "The rows of the table; none if there is no file yet"
    if not file.exists(): return []
    try: return [dict(r, name=r['name']) for r in json.loads(file.read_text(encoding='utf-8'))]
    except (ValueError, KeyError, TypeError) as e: raise SystemExit(f'{file}: not a table of results ({type(e).__name__}: {e}); choose another --out') from e


def ship(a):
    "Into the package, as `load_detector('voc')` gives it"
    det, target = load_detector(a.cache/f'{a.name}.pt'), root/'objdet'/'weights'/'detector_voc.pt'
    if det.plan['notes']['choose']: raise SystemExit(f'{a.name}: trained on a part of train, to choose; nothing was shipped')
    det.save(target)
    print(f'{target.name}: {target.stat().st_size/2**20:.2f} MiB, mAP {det.plan["notes"]["map"]}')


def lesson(a):
    "The detector that lesson 06 finishes, on VOC"
    trn, val = load(a)
    det, learn = train_detector(trn, val, body='mobilenet_v2', weights=a.weights, seed=a.seed, checkpoint=a.cache/'lesson.ckpt')
    found = detect(learn.predict(), det.anchors.cpu(), det.grid_sizes.cpu(), det.size)
    a.name = 'lesson'
    report(a, found, DetectionDataset(val).targets(det.size), trn.classes,
           dict(pictures=len(trn), seed=a.seed, epochs=len(learn.history), seconds=round(sum(h['seconds'] for h in learn.history))))


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', choices=['prepare', 'train', 'score', 'lesson', 'ship'])
    p.add_argument('--data', help='a VOC devkit'); p.add_argument('--weights', help="the body's weights, a file")
    p.add_argument('--out', type=Path, default=root/'nbs'/'99_voc.json', help='the table of results (default %(default)s)')
    p.add_argument('--cache', type=Path, default=root/'_data'/'voc_detector', help='where views and trainings are kept (default %(default)s)')
    p.add_argument('--views', type=int, default=14, help='random views of each picture (default %(default)s)')
    p.add_argument('--parts', type=int, default=1, help='prepare: make only every so manieth view …'); p.add_argument('--part', type=int, default=0, help='… from this one on')
    p.add_argument('--threads', type=int, default=0, help="of torch; 0: torch's own choice")
    p.add_argument('--choose', action='store_true', help='train on four fifths of train, score on the fifth')
    p.add_argument('--name', default='detector', help='of the training: its files in --cache (default %(default)s)')
    p.add_argument('--seed', type=int, default=0)
    for k, v in RECIPE.items(): p.add_argument(f'--{k}', type=type(v), default=v, help='(default %(default)s)')
    a = p.parse_args(argv)
    if a.what != 'ship' and not (a.data and a.weights): p.error(f'{a.what} needs --data and --weights')
    if not 0 <= a.rare <= 1: p.error(f'--rare {a.rare:g}: expected a share of the pictures, 0 to 1')
    if a.threads: torch.set_num_threads(a.threads)
    read_rows(a.out) # a broken table ends it now, not after the training
    a.cache.mkdir(parents=True, exist_ok=True)
    dict(prepare=prepare, train=train, score=score, lesson=lesson, ship=ship)[a.what](a)

if __name__ == '__main__': main()
