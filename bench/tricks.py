"""Five tricks of training, each tried once: python bench/tricks.py --seeds 2 --epochs 3 --out nbs/03_tricks.json

Lesson 03's network, which names all classes of a picture, is trained again for every trick and seed: same data, same recipe, same first
weights, one thing changed. The base has crops and flips and no trick. A row that the file has, made with the same settings, is not made
again, so that an interrupted run goes on where it stopped. Prints accuracy, macro-F1 at 0.5 and macro-F1 at thresholds chosen on the other
half of the validation pictures, as means over the seeds with the spread (largest less smallest), and the seconds of one training."""
import sys, time
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import v2
from objdet.bbox_aug import CropNearObjects, tidy_boxes
from objdet.learner import Learner, set_seed
from objdet.multilabel import (CellNames, FlipTTA, class_sets, choose_threshold, f1_score, mixup, multi_accuracy, multilabel_dataloaders,
                               smooth_targets)
from objdet.pascal_data import Annotations, DataLoaders, load_splits, squash
from objdet.show import denormalize
from objdet.single_obj import create_body
from objdet.sources import get_data
from saved_rows import done, parse, parser, read_rows as read_table, settings_of, write_rows

base, tta = 'base: crop and flip', 'test-time augmentation'
jobs = [base, 'no crop, no flip', 'no normalization', 'mixup', 'label smoothing', 'progressive resizing'] # each is one training a seed
tricks = [*jobs, tta] # the last one needs no training of its own: the base's network, asked twice

# --- the table

def read_rows(path):
    "The rows in the file `path`; see `saved_rows.read_rows`"
    return read_table(path, 'trick', tricks, ('accuracy', 'f1', 'f1_chosen', 'seconds'))

def missing(rows, settings, seeds):
    "The (job, seed) still to be trained; the base is trained again where only its test-time augmentation is missing"
    have = done(rows, 'trick', settings)
    return [(j, s) for s in range(seeds) for j in jobs if (j, s) not in have or j == base and (tta, s) not in have]

def table(rows, settings):
    "The lines of the table: for each trick mean and spread over the seeds"
    out = [f'{"trick":24} seeds  accuracy  spread     F1  spread  F1, chosen  spread  seconds']
    for t in tricks:
        mine = [r for r in rows if r['trick'] == t and r['settings'] == settings]
        if not mine: continue
        cols = [[r[k] for r in mine] for k in ('accuracy', 'f1', 'f1_chosen', 'seconds')]
        (a, f, c, s), spread = [sum(v)/len(v) for v in cols], [max(v) - min(v) for v in cols]
        out.append(f'{t:24} {len(mine):5}  {a:8.4f}  {spread[0]:6.4f}  {f:5.3f}  {spread[1]:6.3f}  {c:10.3f}  {spread[2]:6.3f}  {s:7.0f}')
    return out

# --- the tricks

class Mixed:
    "A loader whose batches are mixed with themselves, in an order and by a share drawn anew each time"
    def __init__(self, dl, alpha=.4): self.dl, self.draw = dl, torch.distributions.Beta(alpha, alpha)
    def __len__(self): return len(self.dl)
    def __iter__(self):
        for x, y in self.dl: yield mixup(x, y, self.draw.sample(), torch.randperm(len(x)))

class Plain(nn.Module):
    "Take the normalization back: the body gets pictures from 0 to 1"
    def forward(self, x): return denormalize(x)

def smooth_loss(preds, targets): return F.binary_cross_entropy_with_logits(preds, smooth_targets(targets))

def loaders(trn, val, size, bs, seed, trick):
    "The pictures of one training, or of one part of it"
    tfms = v2.Compose([CropNearObjects(), squash(size), v2.RandomHorizontalFlip(), tidy_boxes()])
    dls = multilabel_dataloaders(trn, val, size, bs, squash(size) if trick == 'no crop, no flip' else tfms)
    dls.train.generator.manual_seed(seed)
    return DataLoaders(Mixed(dls.train), dls.valid) if trick == 'mixup' else dls

def parts(trick, size, stride, epochs):
    "The (size, epochs) to train one after the other; small pictures are two thirds as wide, in whole cells of the grid"
    if trick != 'progressive resizing' or epochs < 2: return [(size, epochs)]
    return [(round(size*2/3/stride)*stride, epochs//2), (size, epochs - epochs//2)]

def scores_row(scores, targets):
    "Accuracy and macro-F1 at 0.5, and macro-F1 where each half of the pictures is read at the threshold that suits the other"
    halves = [slice(0, None, 2), slice(1, None, 2)]
    chosen = [f1_score(scores[b], targets[b], choose_threshold(scores[a], targets[a])) for a, b in (halves, halves[::-1])]
    values = dict(accuracy=multi_accuracy(scores, targets), f1=f1_score(scores, targets), f1_chosen=torch.stack(chosen).nanmean())
    return {k: round(v.item(), 5) for k, v in values.items()}

def train(job, seed, trn, val, a):
    "One training; its rows, without settings: one, and for the base one more, its test-time augmentation"
    set_seed(seed)
    body = create_body(a.body, a.weights)
    head = CellNames(body.channels, len(trn.classes))
    model = nn.Sequential(*[Plain()]*(job == 'no normalization'), body, head)
    loss = smooth_loss if job == 'label smoothing' else F.binary_cross_entropy_with_logits
    learn = Learner(model, None, loss, dict(accuracy=lambda p, y: multi_accuracy(p.sigmoid(), y)), groups=[*body.groups(), head])
    learn.freeze_to(-2)
    start = time.perf_counter()
    for size, epochs in parts(job, body.size, body.stride, a.epochs):
        learn.dls = loaders(trn, val, size, a.bs, seed, job)
        learn.fit_one_cycle(epochs, [a.lr/100, a.lr, a.lr])
    seconds, targets = time.perf_counter() - start, class_sets(val)
    rows = [dict(trick=job, seed=seed, seconds=round(seconds, 1), **scores_row(learn.predict().sigmoid(), targets))]
    if job == base:
        twice = Learner(FlipTTA(model), learn.dls, None).predict()
        rows.append(dict(trick=tta, seed=seed, seconds=round(seconds, 1), **scores_row(twice, targets)))
    return rows

# --- the command

def main(argv=None):
    a = parse(parser(__doc__, 'nbs/03_tricks.json', seeds=2, epochs=3, lr=5e-3), argv)
    if a.threads: torch.set_num_threads(a.threads)
    rows, path = read_rows(a.out), get_data(a.data) # a broken table is told before anything is trained
    trn, val = [Annotations(s.records[:a.limit or None], s.classes, s.skipped) for s in load_splits(path)]
    set_seed(0) # a random body must be the same again when the run goes on
    settings = settings_of(a, path, trn, val, create_body(a.body, a.weights))
    todo = missing(rows, settings, a.seeds)
    print(f'{len(trn)} + {len(val)} pictures; {len(todo)} of {a.seeds*len(jobs)} trainings to do, rows go to {a.out}', flush=True)
    for i, (job, seed) in enumerate(todo, 1):
        print(f'\n[{i}/{len(todo)}] {job}, seed {seed}', flush=True)
        new = [dict(r, settings=settings) for r in train(job, seed, trn, val, a)]
        names = {r['trick'] for r in new}
        rows = [r for r in rows if r['settings'] != settings or r['seed'] != seed or r['trick'] not in names] + new
        rows.sort(key=lambda r: (tricks.index(r['trick']), r['seed'])) # the base first, as in the table
        write_rows(rows, settings, a.out)
    if not todo: write_rows(rows, settings, a.out) # the lesson shows the settings asked for last
    print('', *table(rows, settings), sep='\n')

if __name__ == '__main__':
    try: main()
    except (ValueError, FileNotFoundError) as e: sys.exit(f'tricks.py: {e}')
