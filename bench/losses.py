"""What each loss of the classes gives, everything else the same: python bench/losses.py --seeds 3 --epochs 5 --out nbs/05_losses.json

Lesson 05's network with 189 anchors: the body is frozen and asked once about every picture and its mirror image; the head is trained anew for
each loss and seed, with the same first weights, order of pictures, anchors, epochs and rates. A row that the file has, made with the
same settings, is not made again, so that an interrupted run goes on where it stopped. Prints the mAP (11 points, IoU 0.5, score 0.01 or more,
suppression at 0.45) of each seed, their mean and standard deviation, and the seconds of one training."""
import statistics as st, sys, time
import torch
from objdet.anchors_matching import create_anchors, default_grids, default_shapes, default_zooms
from objdet.focal_nms import FocalLoss, detect
from objdet.learner import Learner, set_seed
from objdet.pascal_data import Annotations, DetectionDataset, load_splits
from objdet.score import mean_ap
from objdet.single_obj import create_body
from objdet.sources import get_data
from objdet.ssd_loss import BCELoss, HardNegativeLoss, SoftmaxLoss, SSDLoss, SSDMultiHead, kept_loaders, set_background_bias
from saved_rows import done, parse, parser, read_rows, settings_of, write_rows

losses = {'softmax with background': SoftmaxLoss, 'binary cross entropy': BCELoss, 'hard negatives, 3 to 1': HardNegativeLoss}
def focal(alpha, gamma): losses[f'focal, α = {alpha}, γ = {gamma}'] = lambda c: FocalLoss(c, alpha, gamma)
for g in (0, 1, 2, 3): focal(.25, g)
for a in (.1, .5, .75): focal(a, 2)

def as_yes_no(preds, name):
    "Class activations whose sigmoid is the probability; a softmax's are turned into such"
    return (torch.logit(preds[0].softmax(-1), 1e-6), preds[1]) if name.startswith('softmax') else preds

def train(name, seed, channels, dls, val, size, a):
    "One training; its row, without settings"
    set_seed(seed)
    dls.train.generator.manual_seed(seed)
    c, anchors = len(val.classes), create_anchors(default_grids, default_zooms, default_shapes)
    head = SSDMultiHead(channels, c)
    if name.startswith('softmax'): set_background_bias(head, 0.) # a bias that all classes share says nothing to a softmax; zero is its plain start
    learn = Learner(head, dls, SSDLoss(*anchors, size, c, losses[name](c)))
    start = time.perf_counter()
    learn.fit_one_cycle(a.epochs, a.lr)
    seconds, preds = time.perf_counter() - start, as_yes_no(learn.predict(), name)
    score = mean_ap(detect(preds, *anchors, size), DetectionDataset(val).targets(size), n_classes=c).map
    return dict(name=name, seed=seed, map=round(score, 5), seconds=round(seconds, 1))

def table(rows, settings):
    "The lines of the table, one a loss"
    out = [f'{"loss":26} seeds    mAP  spread  seconds  each']
    for name in losses:
        mine = [r for r in rows if r['name'] == name and r['settings'] == settings]
        if not mine: continue
        maps = [r['map'] for r in mine]
        spread = f'{st.stdev(maps):6.3f}' if len(maps) > 1 else '     -'
        out.append(f'{name:26} {len(maps):5}  {st.mean(maps):5.3f}  {spread}  {st.mean(r["seconds"] for r in mine):7.0f}  {" ".join(f"{m:.3f}" for m in maps)}')
    return out

def options(argv=None):
    p = parser(__doc__, 'nbs/05_losses.json', seeds=3, epochs=5, lr=5e-3)
    p.add_argument('--only', default='', help='losses whose name contains this; all by default')
    a = parse(p, argv)
    a.names = [n for n in losses if a.only in n]
    if not a.names: p.error(f'no loss has {a.only!r} in its name; there are: {", ".join(losses)}')
    return a

def main(argv=None):
    a = options(argv)
    if a.threads: torch.set_num_threads(a.threads)
    rows, path = read_rows(a.out, 'name', losses, ('map', 'seconds')), get_data(a.data) # a broken table is told before anything is trained
    trn, val = [Annotations(s.records[:a.limit or None], s.classes, s.skipped) for s in load_splits(path)]
    set_seed(0) # a random body must be the same again when the run goes on
    body = create_body(a.body, a.weights)
    settings = settings_of(a, path, trn, val, body)
    todo = [(n, s) for s in range(a.seeds) for n in a.names if (n, s) not in done(rows, 'name', settings)]
    print(f'{len(trn)} + {len(val)} pictures; {len(todo)} of {a.seeds*len(a.names)} trainings to do, rows go to {a.out}', flush=True)
    dls = kept_loaders(body, trn, val, body.size, a.bs) if todo else None
    for i, (name, seed) in enumerate(todo, 1):
        print(f'\n[{i}/{len(todo)}] {name}, seed {seed}', flush=True)
        new = dict(train(name, seed, body.channels, dls, val, body.size, a), settings=settings)
        rows = [r for r in rows if (r['name'], r['seed'], r['settings']) != (name, seed, settings)] + [new]
        rows.sort(key=lambda r: (list(losses).index(r['name']), r['seed']))
        write_rows(rows, settings, a.out)
    if not todo: write_rows(rows, settings, a.out) # the lessons show the settings asked for last
    print('', *table(rows, settings), sep='\n')

if __name__ == '__main__':
    try: main()
    except (ValueError, FileNotFoundError) as e: sys.exit(f'losses.py: {e}')
