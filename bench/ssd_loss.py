"""`SSDLoss` against the readable loop and torchvision's SSD: python bench/ssd_loss.py [--pairs 20] [--batch 32] [--threads 2] [--device cpu]

One batch, one picture of 40 objects and the rest with one to a few, three on average as in PASCAL VOC; 189 anchors and
SSD300's 8,732. Each figure is the median of forward and backward, in turn with its one rival, so that a busy machine slows both.
Prints the ratios, the peak memory above the inputs (a fresh process: its largest resident size less that before the step)
and what the loss adds to a training step. Fails where the loop and the batch disagree.

On Linux the C library may give back what a step has freed and ask for it anew in the next, page by page, which costs a fifth of a step with 8,732
anchors in some runs and nothing in others. With MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_MMAP_THRESHOLD_=8589934592 before the command it keeps it."""
import argparse, resource, subprocess, sys, time
import numpy as np, torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.detection import ssd, _utils as det_utils
from torchvision.ops import box_iou
from objdet.anchors_matching import create_anchors, default_grids, default_shapes, default_zooms, jaccard, map_to_ground_truth, sort_objects
from objdet.focal_nms import FocalLoss
from objdet.pascal_data import cxcywh_to_xyxy, unpad
from objdet.single_obj import create_body
from objdet.ssd_loss import SSDLoss, SSDMultiHead, actn_to_bb

size = 112
ssd300 = [(38, 4), (19, 6), (10, 6), (5, 6), (3, 4), (1, 4)] # grids and anchors a cell
slim = [(1., 1.), (1.2, 1.2), (2., 1.), (1., 2.), (3., 1.), (1., 3.)]

def make_anchors(n):
    "The course's 189 or SSD300's 8,732"
    if n == 189: return create_anchors(default_grids, default_zooms, default_shapes)
    parts = [create_anchors([g], (2.,), slim[:k]) for g, k in ssd300]
    return tuple(torch.cat(o) for o in zip(*parts))

def make_targets(counts, classes, seed=0):
    "Boxes in pixels and labels, padded to the most crowded picture"
    rng, m = np.random.default_rng(seed), max(counts)
    boxes, labels = torch.zeros(len(counts), m, 4), torch.full((len(counts), m), -1)
    for i, n in enumerate(counts):
        wh = np.exp(rng.uniform(np.log(.08), 0, (n, 2)))
        xy = rng.random((n, 2))*(1 - wh)
        boxes[i, :n] = torch.tensor(np.concatenate([xy, xy + wh], 1)*size)
        labels[i, :n] = torch.tensor(rng.integers(0, classes, n))
    return boxes, labels

def voc_counts(batch, crowded=40, seed=0):
    "Objects of each picture: one crowded picture, and the others so that three is the mean"
    few = np.random.default_rng(seed).geometric(.6, batch - 1).clip(1, crowded)
    return [*few.tolist(), crowded]

def make_preds(batch, k, classes, device, seed=0):
    "Activations as a network that has learned a little gives them: most classes say no"
    g = torch.Generator().manual_seed(seed)
    clas, bbox = torch.randn(batch, k, classes + 1, generator=g) - 3, torch.randn(batch, k, 4, generator=g)
    return [o.to(device).requires_grad_() for o in (clas, bbox)]

def loss_1(clas, bbox, boxes, labels, anchors, grid_sizes, n_classes, thresh=.4):
    "One picture, readable: sums of the box and class losses, number of positives"
    boxes, labels = unpad(boxes, labels)
    order = sort_objects(boxes[None], labels[None])[0]
    boxes, labels = boxes[order], labels[order]
    overlap, index = map_to_ground_truth(jaccard(boxes, cxcywh_to_xyxy(anchors)))
    pos = overlap > thresh
    targ = torch.full_like(index, n_classes)
    targ[pos] = labels[index[pos]]
    loc = (actn_to_bb(bbox, anchors, grid_sizes)[pos] - boxes[index[pos]]).abs().mean(1).sum()
    hot = F.one_hot(targ, n_classes + 1)[:, :-1].float()
    return loc, F.binary_cross_entropy_with_logits(clas[:, :-1], hot, reduction='sum'), pos.sum()

def loop_loss(preds, targ, *args):
    "The batch picture by picture, as the lecture does it, divided once"
    ones = [loss_1(c, b, boxes/size, labels, *args) for c, b, boxes, labels in zip(*preds, *targ)]
    loc, cla, n = (sum(o) for o in zip(*ones))
    return (loc + cla)/n.clamp(min=1)

class TorchvisionLoss:
    "torchvision's matching and `SSD.compute_loss`, on its own form of the same input: background first, a dict a picture"
    def __init__(self, anchors, targ):
        self.anchors = cxcywh_to_xyxy(anchors)*size
        self.matcher = det_utils.SSDMatcher(.4)
        self.ssd = type('SSD', (), dict(box_coder=det_utils.BoxCoder((10., 10., 5., 5.)), neg_to_pos_ratio=3))()
        self.targets = [dict(zip(('boxes', 'labels'), unpad(b, l))) for b, l in zip(*targ)]
        for t in self.targets: t['labels'] = t['labels'] + 1
    def __call__(self, preds):
        matched = [self.matcher(box_iou(t['boxes'], self.anchors)) for t in self.targets]
        outs = dict(cls_logits=preds[0], bbox_regression=preds[1])
        return sum(ssd.SSD.compute_loss(self.ssd, self.targets, outs, [self.anchors]*len(matched), matched).values())

def step(loss, preds):
    "Forward and backward"
    for p in preds: p.grad = None
    loss(preds).backward()

def in_turn(a, *fs):
    "Median milliseconds of each function, called in turn"
    wait = torch.cuda.synchronize if a.device != 'cpu' else lambda: None
    clock = dict(wall=time.perf_counter, cpu=time.process_time)[a.clock]
    times = np.zeros((a.pairs + 2, len(fs)))
    for row in times:
        for j, f in enumerate(fs):
            wait(); t = clock()
            f()
            wait(); row[j] = 1e3*(clock() - t)
    return np.median(times[2:], axis=0) # the first two warm up

def case(k, a):
    "Loss and inputs of one bench"
    anchors, grid_sizes = (o.to(a.device) for o in make_anchors(k))
    targ = [o.to(a.device) for o in make_targets(voc_counts(a.batch), a.classes)]
    return anchors, grid_sizes, make_preds(a.batch, k, a.classes, a.device), targ

def speed(k, a):
    anchors, grid_sizes, preds, targ = case(k, a)
    ours = SSDLoss(anchors, grid_sizes, size, a.classes).to(a.device)
    loop = lambda p: loop_loss(p, targ, anchors, grid_sizes, a.classes)
    theirs = TorchvisionLoss(anchors, targ)
    slow, fast = loop(preds).item(), ours(preds, targ).item()
    assert abs(slow - fast) <= 1e-5*abs(slow), f'{k} anchors: the loop gives {slow}, the batch {fast}'
    n = int((targ[1] >= 0).sum())
    print(f'{k:,} anchors, batch {a.batch}, {n} objects, {targ[1].shape[1]} at most in a picture; loss {fast:.5f}')
    for name, rival in dict(loop=loop, torchvision=theirs).items(): # in pairs: a third would leave its traces in memory
        mine, other = in_turn(a, *(lambda f=f: step(f, preds) for f in (lambda p: ours(p, targ), rival)))
        print(f'  {name:12s}{other:9.2f} ms   {other/mine:6.2f} times SSDLoss, {mine:.2f} ms')
    focal = SSDLoss(anchors, grid_sizes, size, a.classes, FocalLoss(a.classes)).to(a.device)
    own = min(targ[1].shape[1], int((targ[1][:-1] >= 0).sum(1).max()))
    bare = [o[:-1, :own] for o in targ] # all but the crowded picture: padded as far as they need
    wide = [o[:-1] for o in targ]       # the same pictures, padded to the crowded one
    less = [p[:-1].detach().requires_grad_() for p in preds]
    tight, padded = in_turn(a, *(lambda t=t: step(lambda p: ours(p, t), less) for t in (bare, wide)))
    plain, weighed = in_turn(a, *(lambda f=f: step(lambda p: f(p, targ), preds) for f in (ours, focal)))
    print(f'  padded to {targ[1].shape[1]} instead of {own}: {padded/tight:.2f} times; FocalLoss in BCELoss\'s place: {weighed/plain:.2f} times', flush=True)

def resident():
    "Bytes of this process in memory now"
    with open('/proc/self/statm') as f: return int(f.read().split()[1])*resource.getpagesize()

def peak(a):
    "Megabytes that one step takes above its inputs, in this fresh process (or on the GPU)"
    k = a.memory
    anchors, grid_sizes, preds, targ = case(k, a)
    clas = FocalLoss(a.classes) if a.focal else None
    loss = SSDLoss(anchors, grid_sizes, size, a.classes, clas).to(a.device)
    tiny = [p[:1, :].detach().clone().requires_grad_() for p in preds]
    step(lambda p: loss(p, [o[:1] for o in targ]), tiny) # what is loaded once is no part of the step
    if a.device != 'cpu':
        torch.cuda.synchronize(); torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(lambda p: loss(p, targ), preds)
        return (torch.cuda.max_memory_allocated() - before)/1e6
    before = resident()
    step(lambda p: loss(p, targ), preds)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024 - before)/1e6

def memory(k, a):
    "`peak` in a process of its own, for both class losses"
    def run(*extra):
        args = [sys.executable, __file__, f'--memory={k}', f'--batch={a.batch}', f'--classes={a.classes}', f'--threads={a.threads}', f'--device={a.device}']
        return float(subprocess.run([*args, *extra], capture_output=True, text=True, check=True).stdout)
    print(f'  peak above the inputs, forward and backward: {run():.0f} MB with BCELoss, {run("--focal"):.0f} MB with FocalLoss', flush=True)

def training(a):
    "The step of a whole network against the same step with a trivial loss"
    torch.manual_seed(0)
    body = create_body()
    net = nn.Sequential(body, SSDMultiHead(body.channels, a.classes)).to(a.device).train()
    loss = SSDLoss(*make_anchors(189), size, a.classes).to(a.device)
    x = torch.randn(a.batch, 3, size, size, device=a.device)
    targ = [o.to(a.device) for o in make_targets(voc_counts(a.batch), a.classes)]
    def run(f):
        net.zero_grad(set_to_none=True)
        f(net(x)).backward()
    whole, bare = in_turn(a, lambda: run(lambda p: loss(p, targ)), lambda: run(lambda p: p[0].sum() + p[1].sum()))
    print(f'{body.name} and SSDMultiHead, {size} px, batch {a.batch}: {whole:.1f} ms a step, {bare:.1f} ms with a trivial loss; ratio {whole/bare:.2f}')

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, n in dict(pairs=20, batch=32, classes=20, threads=torch.get_num_threads(), memory=0).items(): parser.add_argument(f'--{name}', type=int, default=n)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--clock', choices=('wall', 'cpu'), default='wall') # cpu: the process's own time, for one thread on a busy core
    parser.add_argument('--focal', action='store_true')
    parser.add_argument('--only', choices=('189', '8732', 'training'))
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    if a.memory: return print(peak(a))
    print(f'torch {torch.__version__}, {a.device}, {a.threads} threads; medians of {a.pairs}, in turn, {a.clock} time')
    for k in (189, 8732):
        if a.only in (None, str(k)): speed(k, a); memory(k, a)
    if a.only in (None, 'training'): training(a)

if __name__ == '__main__': main()
