"""The figures of lessons 02 and 03 on real VOC 2007: the largest object (class and box), and all classes of a picture.

    python scripts/voc_lessons.py prepare --data VOC --weights FILE       what the frozen early layers say, 14 views a picture; once
    python scripts/voc_lessons.py train joint --seed 0 --weights FILE     class and box of the largest object, one seed
    python scripts/voc_lessons.py train multi --seed 0 --weights FILE     all classes of a picture, one seed
    python scripts/voc_lessons.py report                                  mean and spread over the seeds

The lecture's protocol: the train split, a fifth of it held out by the seed, squares of 224 pixels, the largest object that is not difficult;
the body is `mobilenet_v2`, and FILE its weights. The early layers stay frozen, so every view of a picture goes through them once, for all
trainings; the late ones learn, from the picture's own answer and from every cell in an object (`--every 0`: from the picture's answer alone).
`--choose` trains and scores among pictures that seeds 0 to 2 all train on: settings are chosen there.
Everything can be interrupted: a view that is finished is kept, and a training goes on after its last finished epoch.
"""
import argparse, hashlib, json, time
from pathlib import Path
import numpy as np, torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.transforms import v2
from tqdm import tqdm
from objdet.learner import read_weights, set_seed, write_whole
from objdet.multilabel import CellNames, f1_score, multi_accuracy
from objdet.pascal_data import DetectionDataset, load_annotations
from objdet.show import normalize
from objdet.single_obj import CellHead, CellLoss, EveryCell, accuracy, cell_targets, create_body
from notebooks import write

SIZE, EARLY, HELD = 224, 7, 4 # layers before EARLY are asked once; the next HELD stay as they are, too
# `body`: the late layers' rate, a share of the head's; `ema`: how slowly the mean of the weights, which is scored, follows them;
# `every`: weight of the cells in objects
RECIPE = dict(joint=dict(epochs=16, lr=2e-3, body=.06, ema=.99, every=2.), multi=dict(epochs=6, lr=2e-3, body=.06, ema=.97, every=2.))


def mirror(boxes): # (n, 4) in pixels of the square, to those of its mirror image
    return torch.stack([SIZE - boxes[:, 2], boxes[:, 1], SIZE - boxes[:, 0], boxes[:, 3]], 1)


class Views(torch.utils.data.Dataset):
    "Pictures as they are (view 0), mirrored (view -1), or cropped, flipped and lit by chance; boxes in the square's pixels, and the share of each that is still seen"
    def __init__(self, annotations, view):
        self.ds, self.view, self.light = DetectionDataset(annotations, difficult=True), view, v2.ColorJitter(.3, .3, .3, .02)

    def __len__(self): return len(self.ds)

    def window(self, h, w, rand):
        "Left, top, width, height of the part that is shown: 55 to 100% of the area"
        if self.view < 1: return 0, 0, w, h
        scale, shape = rand(.55, 1), rand(.85, 1.18)
        sw, sh = min(1, (scale*shape)**.5), min(1, (scale/shape)**.5)
        x, y = rand(0, 1 - sw), rand(0, 1 - sh)
        return round(x*w), round(y*h), max(8, round(sw*w)), max(8, round(sh*h))

    def __getitem__(self, i):
        im, target = self.ds[i]
        gen = torch.Generator().manual_seed(self.view*100_003 + i)
        def rand(low, high): return low + (high - low)*torch.rand((), generator=gen).item()
        left, top, w, h = self.window(*im.shape[1:], rand)
        boxes = target['boxes'].as_subclass(torch.Tensor)
        area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        boxes = boxes - torch.tensor([left, top]*2)
        boxes[:, 0::2].clamp_(0, w); boxes[:, 1::2].clamp_(0, h)
        seen = (boxes[:, 2:] - boxes[:, :2]).prod(1)/area
        boxes = boxes*torch.tensor([SIZE/w, SIZE/h]*2)
        im = v2.functional.resized_crop(im, top, left, h, w, [SIZE, SIZE], antialias=True)
        if self.view < 0 or self.view and rand(0, 1) < .5: im, boxes = im.flip(-1), mirror(boxes)
        if self.view > 0:
            torch.manual_seed(self.view*100_003 + i)
            im = self.light(im)
        return im.as_subclass(torch.Tensor), boxes, seen


def checksum(layers):
    "Of the layers' numbers, for a file of weights may change and keep its name"
    return hashlib.sha1(b''.join(t.numpy().tobytes() for t in layers.state_dict().values())).hexdigest()[:8]


def prepare(a):
    "Run all views through the early layers, and write each view to a file"
    ann = load_annotations(a.data, 'train', missing='skip')
    early = create_body('mobilenet_v2', a.weights).layers[:EARLY].eval()
    made_of, truth = dict(ids=[str(r.id) for r in ann], early=checksum(early)), a.cache/'truth.pt'
    there = read_weights(truth) if truth.exists() else {}
    for k, what in dict(ids=f'pictures than {a.data}', early=f'weights than {a.weights}').items():
        if there.get(k, made_of[k]) != made_of[k]: raise SystemExit(f'{a.cache}: holds views of other {what}; remove it, or give another --cache')
    write_whole(dict(labels=[torch.as_tensor(r.labels) for r in ann], difficult=[torch.as_tensor(r.difficult) for r in ann],
                     classes=list(ann.classes), **made_of), truth)
    for view in range(-1, a.views):
        if (a.cache/f'view{view}.pt').exists(): continue
        actns, boxes, seen = [], [], []
        with torch.no_grad():
            for x, b, s in tqdm(torch.utils.data.DataLoader(Views(ann, view), 32, collate_fn=lambda items: list(zip(*items))), desc=f'view {view}'):
                x = normalize(torch.stack(x).float()/255).contiguous(memory_format=torch.channels_last)
                actns.append(early(x).half().contiguous()); boxes += b; seen += s
        write_whole(dict(feats=torch.cat(actns), boxes=boxes, seen=seen), a.cache/f'view{view}.pt')


def split(n, seed):
    "Which of n pictures are trained on and which, a fifth, are held out"
    order = np.random.default_rng(seed).permutation(n)
    return np.sort(order[n//5:]).tolist(), np.sort(order[:n//5]).tolist()


def split_inside(n):
    "The same, among the pictures that none of seeds 0 to 2 holds out"
    inside = sorted(set.intersection(*(set(split(n, s)[0]) for s in range(3))))
    return [i for k, i in enumerate(inside) if k % 5], inside[::5]


class Kept:
    "The views on disk, and what is to be said of each picture in each of them"
    def __init__(self, cache, views, joint):
        self.truth = read_weights(cache/'truth.pt')
        self.views, self.mirror = [read_weights(cache/f'view{v}.pt') for v in range(views)], read_weights(cache/'view-1.pt')
        self.joint, self.c = joint, len(self.truth['classes'])

    def target(self, view, i):
        "Box and label of the largest object, or a row of ones and zeros; then of what the 7x7 cells lie in. `None` where no largest object is left. Below 30% in view, an object is gone"
        boxes, label = self.views[view]['boxes'][i], self.truth['labels'][i]
        there = ~self.truth['difficult'][i] & (self.views[view]['seen'][i] > .3)
        cells = cell_targets(boxes[there], label[there], SIZE, 7)
        if not self.joint: return torch.zeros(self.c).index_fill_(0, label[there], 1.), cells[1]
        if not there.any(): return None
        k = torch.where(there, (boxes[:, 2:] - boxes[:, :2]).prod(1), -1.).argmax()
        return boxes[k], label[k], *cells

    def batch(self, pairs):
        "Activations and targets of pairs (view, picture); view 0 where the object is not in the view"
        pairs = [(v, i) if self.target(v, i) is not None else (0, i) for v, i in pairs]
        x = torch.stack([self.views[v]['feats'][i] for v, i in pairs]).float().contiguous(memory_format=torch.channels_last)
        y = [self.target(v, i) for v, i in pairs]
        return x, tuple(torch.stack(o) for o in zip(*y))


class JointLoss(CellLoss):
    "Lesson 02's loss of the picture's answer and of all cells in objects, and the cell over the largest object's center is to be heard"
    def __call__(self, preds, y, shares):
        n = shares.shape[-1]
        cell = ((y[0][:, :2] + y[0][:, 2:])/2*n/self.size).long().clamp(0, n - 1)
        look = -shares.flatten(1).gather(1, (cell[:, 1]*n + cell[:, 0])[:, None]).clamp(min=1e-9).log().mean()
        return super().__call__(preds, y) + 5*look


def names_loss(preds, y, said, every):
    "Lesson 03's loss of the picture's names, and of the name that each cell in an object gives; `said` is (b, c, rows, columns)"
    there = y[1] >= 0
    picture, own = F.binary_cross_entropy_with_logits(preds, y[0]), said.movedim(1, -1)[there]
    if not len(own): return picture
    return picture + every*F.binary_cross_entropy_with_logits(own, F.one_hot(y[1][there], own.shape[1]).float())


def ask(model, x, amp):
    "The model's answers as full numbers"
    with torch.autocast('cpu', torch.bfloat16, enabled=amp): out = model(x)
    return tuple(o.float() for o in out) if isinstance(out, tuple) else out.float()


def score(model, kept, ids, amp):
    "Figures of the held-out pictures as they are, and (`_both`) of the mean of two answers, the other to the mirror image"
    model.eval()
    there, back, truth = [], [], []
    with torch.no_grad():
        for k in range(0, len(ids), 100):
            x, y = kept.batch([(0, i) for i in ids[k:k + 100]])
            mirrored = kept.mirror['feats'][ids[k:k + 100]].float().contiguous(memory_format=torch.channels_last)
            for o, outs in ((x, there), (mirrored, back)): outs.append(ask(model, o, amp))
            truth.append(y)
    there, back = (torch.cat([o[0] if kept.joint else o for o in outs]) for outs in (there, back)) # the picture's answer
    if not kept.joint:
        y, p = torch.cat([o[0] for o in truth]), there.sigmoid()
        rows = {'': p, '_both': (p + back.sigmoid())/2}
        return {k + name: v for name, p in rows.items() for k, v in dict(accuracy=multi_accuracy(p, y).item(), macro_f1=f1_score(p, y).item(),
                                                                         micro_f1=f1_score(p, y, average='micro').item()).items()}
    boxes, labels = (torch.cat(o) for o in list(zip(*truth))[:2])
    box, mirrored = there[:, :4].sigmoid()*SIZE, mirror(back[:, :4].sigmoid()*SIZE)
    both = there[:, 4:].softmax(1) + back[:, 4:].softmax(1)
    return dict(accuracy=accuracy(there[:, 4:], labels).item(), l1=(box - boxes).abs().mean().item(),
                accuracy_both=accuracy(both, labels).item(), l1_both=((box + mirrored)/2 - boxes).abs().mean().item())


def train(a):
    "One training; its row goes into a file of its own"
    joint, r = a.task == 'joint', dict(RECIPE[a.task])
    r |= {k: v for k in ('epochs', 'ema', 'every') if (v := getattr(a, k)) is not None}
    task = a.task if r['every'] else f'{a.task}_alone' # only the picture's own answer is taught
    name = f'{task}_{"choose" if a.choose else "seed"}{a.seed}'
    kept = Kept(a.cache, a.views, joint)
    n = len(kept.truth['labels'])
    trn, val = ([i for i in part if kept.target(0, i) is not None] for part in (split_inside(n) if a.choose else split(n, a.seed)))
    set_seed(a.seed)
    body = create_body('mobilenet_v2', a.weights)
    early = checksum(body.layers[:EARLY])
    if kept.truth.get('early', early) != early: raise SystemExit(f'{a.cache}: holds views of other weights than {a.weights}')
    late, c = body.layers[EARLY:].requires_grad_(True), kept.c
    late[:HELD].requires_grad_(False)
    head = CellHead(body.channels, c, width=256) if joint else CellNames(body.channels, c, width=256)
    model = nn.Sequential(late, EveryCell(head) if joint else head).to(memory_format=torch.channels_last)
    steps = r['epochs']*(len(trn)//32)
    opt = torch.optim.AdamW([dict(params=[p for p in late.parameters() if p.requires_grad]), dict(params=head.parameters())], weight_decay=.05)
    sched = torch.optim.lr_scheduler.OneCycleLR(opt, [r['lr']*r['body'], r['lr']], steps, pct_start=.2)
    mean = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(r['ema']), use_buffers=True)
    gen, loss_func, done, start, spent = torch.Generator().manual_seed(a.seed), JointLoss(SIZE, 10., .1, r['every']), 0, time.time(), 0.
    parts, state, asked = dict(model=model, mean=mean, opt=opt, sched=sched), a.cache/f'{name}.pt', dict(r, views=a.views, amp=a.amp)
    if state.exists():
        d = read_weights(state)
        if d.get('recipe', asked) != asked: raise SystemExit(f"{state}: begun with {d['recipe']}, asked for is {asked}; remove it to start again")
        for k, o in parts.items(): o.load_state_dict(d[k])
        gen.set_state(d['gen']); torch.set_rng_state(d['rng']); done, spent = d['done'], d['spent']
    said = [] # by the cells
    head.layers.register_forward_hook(lambda m, x, out: said.append(out))
    for e in range(done, r['epochs']):
        model.train(); late.eval() # the body's batch norm keeps its statistics
        order = torch.tensor(trn)[torch.randperm(len(trn), generator=gen)]
        views = torch.randint(len(kept.views), (len(trn),), generator=gen)
        bar, total = tqdm(range(0, len(trn) - 31, 32), desc=f'{name} {e + 1}/{r["epochs"]}', leave=False), 0.
        for j in bar:
            x, y = kept.batch(list(zip(views[j:j + 32].tolist(), order[j:j + 32].tolist())))
            said.clear()
            preds = ask(model, x, a.amp)
            heard = said[0].float()
            loss = loss_func(preds, y, heard[:, :1].flatten(1).softmax(1).view_as(heard[:, :1])) if joint else names_loss(preds, y, heard, r['every'])
            loss.backward()
            opt.step(); opt.zero_grad(); sched.step(); mean.update_parameters(model)
            total += loss.item()
        write_whole({k: o.state_dict() for k, o in parts.items()} |
                    dict(recipe=asked, gen=gen.get_state(), rng=torch.get_rng_state(), done=e + 1, spent=spent + time.time() - start), state)
        print(f'{name} epoch {e + 1}: loss {total/len(bar):.3f}', *[f'{k} {v:.4f}' for k, v in score(mean, kept, val, a.amp).items()], flush=True)
    row = dict(task=task, seed=a.seed, train=len(trn), held_out=len(val), **r, amp=a.amp, threads=a.threads,
               seconds=round(spent + time.time() - start), **score(mean, kept, val, a.amp))
    write(a.cache/f'{name}.json', json.dumps(row))
    print(json.dumps(row))


def report(a):
    "Mean and spread (standard deviation over the seeds, n - 1) of every figure; with --out, all rows go to a file"
    found = [json.loads(f.read_text()) for f in sorted(a.cache.glob('*_seed*.json'))]
    if not found: raise SystemExit(f'{a.cache}: no result')
    if a.out: write(a.out, json.dumps(found, indent=1) + '\n')
    names = dict(joint=('accuracy', 'l1', 'accuracy_both', 'l1_both'), multi=('accuracy', 'macro_f1', 'micro_f1', 'accuracy_both', 'macro_f1_both'))
    for task in sorted({r['task'] for r in found}):
        rows = [r for r in found if r['task'] == task]
        for k in names[task.removesuffix('_alone')]:
            v = np.array([r[k] for r in rows])
            print(f'{task:11} {k:13} {v.mean():.4f} ± {f"{v.std(ddof=1):.4f}" if len(v) > 1 else "-"}  seeds {[r["seed"] for r in rows]}: {", ".join(f"{o:.4f}" for o in v)}')


def main(args=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = p.add_subparsers(required=True)
    for f in (prepare, train, report):
        q = sub.add_parser(f.__name__, help=f.__doc__); q.set_defaults(run=f)
        q.add_argument('--cache', type=Path, default=Path('_data/voc_lessons'), help='folder of views, states and results')
        if f is report: q.add_argument('--out', type=Path, help='a file for all rows, JSON'); continue
        q.add_argument('--weights', required=True, help="a file with torchvision's weights of mobilenet_v2")
        q.add_argument('--views', type=int, default=14); q.add_argument('--threads', type=int, default=2)
        if f is prepare: q.add_argument('--data', required=True, help='a VOC devkit')
        if f is not train: continue
        q.add_argument('task', choices=list(RECIPE)); q.add_argument('--seed', type=int, default=0); q.add_argument('--choose', action='store_true')
        q.add_argument('--amp', action='store_true', help='in bfloat16: quicker on processors that have it, far slower on others')
        q.add_argument('--epochs', type=int, help='instead of those of the recipe')
        q.add_argument('--ema', type=float, help="how slowly the mean of the weights follows, instead of the recipe's")
        q.add_argument('--every', type=float, help="weight of the cells in objects, instead of the recipe's; 0: only the picture's own answer is taught")
    a = p.parse_args(args)
    for k, low, high in ('epochs', 1, float('inf')), ('ema', 0, 1), ('every', 0, float('inf')):
        v = getattr(a, k, None)
        if v is not None and not low <= v <= high: p.error(f'--{k} {v:g}: expected {low} {"or more" if high > 1 else "to 1"}')
    if hasattr(a, 'threads'): torch.set_num_threads(a.threads)
    a.run(a)


if __name__ == '__main__': main()
