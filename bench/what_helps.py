"""What helps a detector, and how much: python bench/what_helps.py --seeds 2 --epochs 3 --out nbs/07_helps.json

The base is lesson 06's finished detector, trained for fewer epochs, an anchor positive above 0.4: grids 8, 4, 2, 1 with suggested shapes, focal
loss, overlap as box loss, mirror images, the early half of the pretrained body frozen. Each other row changes one thing and keeps the rest: data,
first weights of a seed, order of pictures, epochs, rates. What frozen layers say is kept, of every view of a picture that a row needs. A row that
the file has, made with the same settings, is not made again, so that an interrupted run goes on where it stopped. Prints, best first in each group:
mAP (11 points, IoU 0.5), the difference to the base, seed by seed, both as means with their standard deviation; the share of the validation objects
that overlap an anchor by half; the number of anchors; the seconds of one training. With CUDA these are seconds of the clock, else of the
processors, all together, which other programs lengthen less. Only the body rows whose layers all learn look at the pictures anew in each epoch:
that is part of their seconds.
"""
import functools, os, statistics as st, sys, time
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.ops import generalized_box_iou_loss
from torchvision.transforms import v2
from objdet.anchors_matching import anchor_recall, create_anchors, default_grids, default_shapes, default_zooms, suggest_anchors
from objdet.bbox_aug import ssd_tfms, tidy_boxes
from objdet.focal_nms import FocalLoss, detect
from objdet.learner import Learner, set_seed
from objdet.pascal_data import Annotations, DataLoaders, DetectionDataset, dataloaders, load_splits, squash
from objdet.score import mean_ap
from objdet.single_obj import create_body
from objdet.sources import get_data
from objdet.ssd_loss import BCELoss, HardNegativeLoss, SSDLoss, SSDMultiHead, corner_l1, keep_activations
from saved_rows import done, parse, parser, read_rows, settings_of, write_rows

CELLS, BODY_RATE, ZOOM_OUT = 8, .6, 2. # the square in cells of the body's grid; the body's rate, a share of the head's; widest zoom-out of SSD's set
losses = dict(focal=FocalLoss, bce=BCELoss, hard=HardNegativeLoss)
# `shapes` is a number of suggested ones, or (zooms, shapes); `learns`: which layers beside the head; `nf`: the head's width, as a share of the default's
plan = dict(grids=(8, 4, 2, 1), shapes=9, loss='focal', thresh=.4, loc=1., box='overlap', views='flip', learns='late', weights=None, nf=1.)
box_losses = dict(overlap=generalized_box_iou_loss, corners=corner_l1)
base, square = "base: lesson 06's detector", ((1., 1.),)
rows_of = {
    'anchors': {"the lecture's: grids 4, 2, 1, 3 zooms, 3 shapes": dict(grids=default_grids, shapes=(default_zooms, default_shapes)),
                'grids 4, 2, 1, 9 suggested shapes': dict(grids=default_grids),
                '3 zooms, 3 shapes': dict(shapes=(default_zooms, default_shapes)),
                '1 zoom, 3 shapes': dict(shapes=((1.,), default_shapes)),
                '3 zooms, squares alone': dict(shapes=(default_zooms, square)),
                '1 zoom, squares alone': dict(shapes=((1.,), square)),
                '4 suggested shapes': dict(shapes=4)},
    'loss': {'binary cross entropy': dict(loss='bce'), 'hard negatives, 3 to 1': dict(loss='hard'),
             'positive above 0.5, not 0.4': dict(thresh=.5), 'positive above 0.3, not 0.4': dict(thresh=.3), 'box loss of corners, not of overlap': dict(box='corners'), 'box loss twice': dict(loc=2.)},
    'head': {'half as wide': dict(nf=.5), 'twice as wide': dict(nf=2.)},
    'body': {'frozen': dict(learns='nothing'), 'all of it learns': dict(learns='all'),
             'all of it learns, from random weights': dict(learns='all', weights='none')},
    'augmentation': {'none': dict(views='plain'), "SSD's crops and zoom-out": dict(views='crops')}}
changes = {base: {}} | {name: change for group in rows_of.values() for name, change in group.items()}

# --- pictures, and what frozen layers say of them

class View(Dataset):
    "One random view of each picture, the same whenever it is asked for"
    def __init__(self, annotations, tfms, view): self.ds, self.view = DetectionDataset(annotations, tfms), view
    def __len__(self): return len(self.ds)
    def __getitem__(self, i):
        torch.manual_seed(self.view*100_003 + i)
        return self.ds[i]

def crops(size):
    "Lesson 01's `ssd_tfms`, with less zoom-out"
    return ssd_tfms(size, ZOOM_OUT)

class AnyView(Dataset):
    "Kept activations of several views of each picture; `[i]` takes one of them by chance"
    def __init__(self, views): self.views, self.m = views, max(v[0][1][1].numel() for v in views)
    def __len__(self): return len(self.views[0])
    def __getitem__(self, i):
        x, (boxes, labels) = self.views[torch.randint(len(self.views), ())][i]
        more = self.m - len(labels) # views have lost different numbers of objects
        return x.float(), (F.pad(boxes, (0, 0, 0, more)), F.pad(labels, (0, more), value=-1))

def views_of(name, ann, size, n):
    "The data sets to keep activations of"
    plain, mirror = squash(size), v2.Compose([squash(size), v2.RandomHorizontalFlip(1.)])
    tfms = dict(plain=[plain], flip=[plain, mirror], crops=[crops(size)]*n)[name]
    return [View(ann, t, v) for v, t in enumerate(tfms)]

class Data:
    "Loaders for a training; of kept activations the two sets asked for last are held"
    def __init__(self, trn, val, size, a):
        self.trn, self.val, self.size, self.a = trn, val, size, a
        self.kept = functools.lru_cache(2)(self._kept)
    def _body(self, weights): return create_body(self.a.body, weights or self.a.weights)
    def _frozen(self, learns):
        early, late = self._body(None).groups()
        return early if learns == 'late' else nn.Sequential(early, late)
    def _kept(self, views, learns):
        "Kept activations of the training pictures' views"
        frozen = self._frozen(learns)
        return AnyView([keep_activations(frozen, ds) for ds in views_of(views, self.trn, self.size, self.a.views)])
    @functools.cached_property
    def kept_val(self): return {learns: keep_activations(self._frozen(learns), DetectionDataset(self.val, squash(self.size)), dtype=torch.float32)
                                for learns in ('late', 'nothing')}
    def loaders(self, views, learns):
        "The loaders of one row; those whose layers all learn read the pictures, without helpers, whose seconds nobody would count"
        if learns == 'all':
            tfms = dict(plain=squash(self.size), flip=v2.Compose([squash(self.size), v2.RandomHorizontalFlip(), tidy_boxes()]), crops=crops(self.size))
            return dataloaders(self.trn, self.val, self.size, self.a.bs, tfms[views], workers=0)
        gen, trn = torch.Generator(), self.kept(views, learns)
        return DataLoaders(DataLoader(trn, self.a.bs, shuffle=True, drop_last=len(trn) >= self.a.bs, generator=gen), DataLoader(self.kept_val[learns], 100))
    def objects(self, ann):
        "All objects that are not difficult, in units of the square"
        return torch.cat([t['boxes'][~t['difficult']] for t in DetectionDataset(ann).targets(self.size)])/self.size
    @functools.cached_property
    def trn_objects(self): return self.objects(self.trn)
    @functools.cached_property
    def val_objects(self): return self.objects(self.val)

# --- one training

def make_anchors(p, data):
    "Grids, zooms and shapes of a row"
    return suggest_anchors(data.trn_objects, p['grids'], p['shapes']) if isinstance(p['shapes'], int) else (p['grids'], *p['shapes'])

def make_head(p, channels, c, k):
    "A head for the grids of a row"
    nf = max(8, round(min(channels//2, 256)*p['nf']))
    return SSDMultiHead(channels, c, k=k, nf=nf, n_grids=len(p['grids']), full=p['grids'][0] == CELLS)

def make_groups(p, body, head):
    "The parts that learn, from input to output"
    late = dict(late=[body.groups()[1]], nothing=[], all=[body])[p['learns']]
    return [*late, head]

def clock():
    "Seconds that other programs lengthen least"
    return time.perf_counter() if torch.cuda.is_available() else sum(os.times()[:4])

def train(name, seed, data, a):
    "One training; its row, without settings"
    p, c = plan | changes[name], len(data.val.classes)
    grids, zooms, shapes = make_anchors(p, data)
    anchors, dls = create_anchors(grids, zooms, shapes), data.loaders(p['views'], p['learns'])
    set_seed(seed)
    body = data._body(p['weights'])
    dls.train.generator.manual_seed(seed)
    set_seed(seed) # the head's first weights must not depend on how the body was made
    groups = make_groups(p, body, make_head(p, body.channels, c, len(zooms)*len(shapes)))
    loss = SSDLoss(*anchors, data.size, c, losses[p['loss']](c), p['thresh'], p['loc'], box_losses[p['box']])
    learn, start = Learner(nn.Sequential(*groups), dls, loss, groups=groups), clock()
    learn.fit_one_cycle(a.epochs, [a.lr*BODY_RATE]*(len(groups) - 1) + [a.lr])
    seconds = clock() - start
    found = detect(learn.predict(), *anchors, data.size)
    score = mean_ap(found, DetectionDataset(data.val).targets(data.size), n_classes=c).map
    return dict(name=name, seed=seed, map=round(score, 5), seconds=round(seconds, 1), anchors=len(anchors[0]),
                reach=round(anchor_recall(anchors[0], data.val_objects), 4))

# --- the table

def line(name, mine, ref):
    "One line: `mine` are the rows of a name, `ref` the base's mAP by seed"
    maps, more = [r['map'] for r in mine], [r['map'] - ref[r['seed']] for r in mine if r['seed'] in ref]
    def spread(v): return f'{st.stdev(v):6.3f}' if len(v) > 1 else '     -'
    diff = f'{st.mean(more):+10.3f}  {spread(more)}' if more and name != base else f'{"-":>10}       -'
    return (f'{name:48} {len(mine):5}  {st.mean(maps):5.3f}  {spread(maps)}  {diff}  {mine[0]["reach"]:5.0%}  {mine[0]["anchors"]:7}  '
            f'{st.mean(r["seconds"] for r in mine):7.0f}')

def table(rows, settings):
    "The lines of the table, best first in each group"
    by_name = {}
    for r in rows:
        if r['settings'] == settings: by_name.setdefault(r['name'], []).append(r)
    ref = {r['seed']: r['map'] for r in by_name.get(base, [])}
    out = [f'{"":48} seeds    mAP  spread  difference  spread  reach  anchors  seconds']
    for group, names in rows_of.items():
        there = [n for n in names if n in by_name]
        best_first = sorted(there + [base]*(bool(there) and bool(ref)), key=lambda n: -st.mean(r['map'] for r in by_name[n]))
        if there: out += [group, *(line(n, by_name[n], ref) for n in best_first)]
    if ref and len(out) == 1: out.append(line(base, by_name[base], ref))
    return out

# --- the command

def options(argv=None):
    p = parser(__doc__, 'nbs/07_helps.json', seeds=2, epochs=3, lr=1e-2)
    p.add_argument('--views', type=int, default=4, help="random views of each picture in the row with SSD's crops (default 4)")
    p.add_argument('--only', default='', help='rows whose name, or group, contains this, and the base; all by default')
    a = parse(p, argv)
    if a.views < 1: p.error('views is at least 1')
    group = {n: g for g, names in rows_of.items() for n in names}
    chosen = [n for n in changes if n != base and (a.only in n or a.only in group[n])]
    if not chosen and a.only not in base: p.error(f'no row has {a.only!r} in its name or group; groups: {", ".join(rows_of)}; rows: {"; ".join(changes)}')
    a.names = [base, *chosen]
    return a

def main(argv=None):
    a = options(argv)
    if a.threads: torch.set_num_threads(a.threads)
    rows, path = read_rows(a.out, 'name', changes, ('map', 'seconds', 'anchors', 'reach')), get_data(a.data) # a broken table is told before anything is trained
    trn, val = [Annotations(s.records[:a.limit or None], s.classes, s.skipped) for s in load_splits(path)]
    set_seed(0) # a random body must be the same again when the run goes on
    body = create_body(a.body, a.weights)
    settings = dict(settings_of(a, path, trn, val, body), views=a.views)
    todo = [(n, s) for s in range(a.seeds) for n in a.names if (n, s) not in done(rows, 'name', settings)]
    print(f'{len(trn)} + {len(val)} pictures; {len(todo)} of {a.seeds*len(a.names)} trainings to do, rows go to {a.out}', flush=True)
    data = Data(trn, val, CELLS*body.stride, a)
    for i, (name, seed) in enumerate(todo, 1):
        print(f'\n[{i}/{len(todo)}] {name}, seed {seed}', flush=True)
        new = dict(train(name, seed, data, a), settings=settings)
        rows = [r for r in rows if (r['name'], r['seed'], r['settings']) != (name, seed, settings)] + [new]
        rows.sort(key=lambda r: (list(changes).index(r['name']), r['seed']))
        write_rows(rows, settings, a.out, table=table(rows, settings))
    if not todo: write_rows(rows, settings, a.out, table=table(rows, settings)) # the lesson shows the settings asked for last
    print('', *table(rows, settings), sep='\n')

if __name__ == '__main__':
    try: main()
    except (ValueError, FileNotFoundError) as e: sys.exit(f'what_helps.py: {e}')
