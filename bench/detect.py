"""`detect` against decoding plus bare `batched_nms`, and against the loop over classes: python bench/detect.py [--pairs 20] [--batch 32]

One batch of 32, 189 anchors and SSD300's 8,732, each class above the threshold for a few anchors of each object, as a trained
network answers. Medians, the rivals in turn, so that a busy machine slows all. Fails where the loop finds something else."""
import argparse
import numpy as np, torch, torchvision
from objdet.focal_nms import detect
from objdet.ssd_loss import actn_to_bb
from objdet.anchors_matching import jaccard
from ssd_loss import in_turn, make_anchors, size

thresh, overlap, top_k = .01, .45, 200

def make_preds(batch, anchors, classes, objects=3, seed=0):
    "Activations like a trained network's: nearly all below the threshold, some anchors near each object above it"
    rng, k = np.random.default_rng(seed), len(anchors)
    clas = torch.tensor(rng.normal(-8, 1, (batch, k, classes + 1)), dtype=torch.float32)
    centers = anchors[:, :2]
    for i in range(batch):
        for _ in range(objects):
            near = (centers - torch.tensor(rng.random(2), dtype=torch.float32)).norm(dim=1) < .15
            clas[i, near, rng.integers(0, classes)] += torch.tensor(rng.normal(6, 2, int(near.sum())), dtype=torch.float32)
    return clas, torch.tensor(rng.normal(0, .5, (batch, k, 4)), dtype=torch.float32)

def readable_nms(boxes, scores):
    "The surest box, then those that it does not cover, and again"
    left, keep = scores.argsort(descending=True, stable=True), []
    while len(left):
        best, left = left[0], left[1:]
        keep.append(best.item())
        if len(left): left = left[jaccard(boxes[best][None], boxes[left])[0] <= overlap]
    return keep

def loop(preds, anchors, grid_sizes):
    "Picture by picture and class by class, as the lecture does it"
    found = []
    for clas, bbox in zip(*preds):
        boxes, scores, out = actn_to_bb(bbox, anchors, grid_sizes).clamp(0, 1)*size, clas.sigmoid(), []
        for label in range(clas.shape[1] - 1):
            ok = scores[:, label] > thresh
            if not ok.any(): continue
            s, b = scores[ok, label], boxes[ok]
            out += [(s[j].item(), label, b[j]) for j in readable_nms(b, s)]
        found.append(sorted(out, key=lambda o: -o[0])[:top_k])
    return found

def candidates(preds, anchors, grid_sizes):
    "What `batched_nms` gets, for each picture, made beforehand"
    boxes, scores = actn_to_bb(preds[1], anchors, grid_sizes).clamp(0, 1)*size, preds[0][..., :-1].sigmoid()
    ready = []
    for s, b in zip(scores, boxes):
        anchor, label = (s > thresh).nonzero(as_tuple=True)
        ready.append((b[anchor], s[anchor, label], label))
    return ready

@torch.no_grad()
def bench(k, a):
    anchors, grid_sizes = (o.to(a.device) for o in make_anchors(k))
    preds = [o.to(a.device) for o in make_preds(a.batch, anchors.cpu(), a.classes)]
    ready = candidates(preds, anchors, grid_sizes)
    def decode(): return actn_to_bb(preds[1], anchors, grid_sizes).clamp(0, 1)*size, preds[0][..., :-1].sigmoid()
    def bare(): return decode(), [torchvision.ops.batched_nms(*r, overlap)[:top_k] for r in ready]
    ours, by_hand = (lambda: detect(preds, anchors, grid_sizes, size, thresh, overlap, top_k)), (lambda: loop(preds, anchors, grid_sizes))
    for d, h in zip(ours(), by_hand()):
        assert len(h) == len(d['scores']) and np.allclose([s for s, _, _ in h], d['scores'].tolist(), atol=1e-6), 'the loop finds something else'
    fast, least, slow = in_turn(a, ours, bare, by_hand)
    n = sum(len(r[1]) for r in ready)/a.batch
    print(f'{k:,} anchors, batch {a.batch}, {n:.0f} candidates a picture, {np.mean([len(d["scores"]) for d in ours()]):.0f} kept')
    print(f'  detect {fast:8.2f} ms; decoding and bare batched_nms {least:8.2f} ms, ratio {fast/least:.2f}; loop over classes {slow:8.2f} ms, {slow/fast:.1f} times detect', flush=True)

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, n in dict(pairs=20, batch=32, classes=20, threads=torch.get_num_threads()).items(): parser.add_argument(f'--{name}', type=int, default=n)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--clock', choices=('wall', 'cpu'), default='wall') # cpu: the process's own time, for one thread on a busy core
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    print(f'torch {torch.__version__}, {a.device}, {a.threads} threads; medians of {a.pairs}, in turn, {a.clock} time')
    for k in (189, 8732): bench(k, a)

if __name__ == '__main__': main()
