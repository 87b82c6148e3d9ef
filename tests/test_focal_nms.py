"Focal loss, suppression and detection against torchvision and the readable versions"
import pytest, torch, torchvision
from torch.nn import functional as F
from objdet.anchors_matching import create_anchors, jaccard
from objdet.ssd_loss import BCELoss, actn_to_bb
from objdet.focal_nms import FocalLoss, detect, nms

@pytest.mark.parametrize('alpha, gamma', [(.25, 2.), (.75, 2.), (.5, 0.), (.25, .5)])
def test_focal_loss_is_torchvision_s_with_its_gradient(alpha, gamma):
    p, t = torch.randn(3, 50, 8, dtype=torch.float64), torch.randint(0, 8, (3, 50))
    a, b = p.clone().requires_grad_(), p.clone().requires_grad_()
    hot = F.one_hot(t, 8)[..., :-1].double()
    ours, theirs = FocalLoss(7, alpha, gamma)(a, t), torchvision.ops.sigmoid_focal_loss(b[..., :-1], hot, alpha, gamma, 'sum')
    ours.backward(); theirs.backward()
    assert torch.allclose(ours, theirs) and torch.allclose(a.grad, b.grad)

def test_alpha_is_the_weight_of_a_yes():
    yes, no = (FocalLoss(1, alpha=.25, gamma=0)(torch.zeros(1, 2), torch.tensor([t])) for t in (0, 1))
    assert torch.isclose(no/yes, torch.tensor(3.))

def slow_nms(boxes, scores, overlap, top_k):
    left, keep = scores.argsort(descending=True, stable=True)[:top_k].tolist(), []
    while left:
        best, *left = left
        keep.append(best)
        left = [i for i in left if jaccard(boxes[best:best+1], boxes[i:i+1]).item() <= overlap]
    return keep

def test_nms_on_a_thousand_random_cases():
    g, held = torch.Generator().manual_seed(1), {True: 0, False: 0} # against torchvision, with ties and without
    for case in range(1000):
        n = int(torch.randint(0, 25, (1,), generator=g))
        xy = torch.randint(0, 12, (n, 2), generator=g).float()
        boxes = torch.cat([xy, xy + torch.randint(1, 9, (n, 2), generator=g)], 1)
        scores = torch.randint(0, 6, (n,), generator=g)/6 if case % 2 else torch.rand(n, generator=g)
        overlap, top_k = [.3, .45, .7][case % 3] + .001, [5, 100][case//2 % 2]
        keep = nms(boxes, scores, overlap, top_k)
        assert keep.tolist() == slow_nms(boxes, scores, overlap, top_k)
        if top_k < 100: continue
        assert keep.tolist() == torchvision.ops.nms(boxes, scores, overlap).tolist()
        held[len(scores.unique()) < n] += 1
    assert min(held.values()) > 200, held

def test_nms_of_nothing_is_one_empty_list_of_indices():
    keep = nms(torch.zeros(0, 4), torch.zeros(0))
    assert keep.shape == (0,) and keep.dtype == torch.int64

def slow_detect(clas, bbox, anchors, grid_sizes, size, thresh, overlap):
    "Class by class with `nms`; (label, score, box) sorted by score"
    boxes, out = actn_to_bb(bbox, anchors, grid_sizes).clamp(0, 1)*size, []
    for c in range(clas.shape[1] - 1):
        s = clas[:, c].sigmoid()
        ok = s > thresh
        keep = nms(boxes[ok], s[ok], overlap, 1000)
        out += [(c, s[ok][i].item(), boxes[ok][i].tolist()) for i in keep]
    return sorted(out, key=lambda o: -o[1])

def test_detect_is_class_by_class():
    torch.manual_seed(0)
    anchors, sizes = create_anchors([4, 2], (1., 1.3))
    clas, bbox = torch.randn(3, len(anchors), 6) - 1, torch.randn(3, len(anchors), 4)
    for i, d in enumerate(detect((clas, bbox), anchors, sizes, 100, thresh=.2, overlap=.4, top_k=1000)):
        want = slow_detect(clas[i], bbox[i], anchors, sizes, 100, .2, .4)
        assert d['labels'].tolist() == [o[0] for o in want]
        assert torch.allclose(d['boxes'], torch.tensor([o[2] for o in want]))
        assert (d['scores'].diff() <= 0).all()

def test_background_is_never_detected():
    anchors, sizes = create_anchors([2])
    clas = torch.full((1, 4, 4), -9.); clas[..., -1] = 9
    d, = detect((clas, torch.zeros(1, 4, 4)), anchors, sizes, 100)
    assert [len(v) for v in d.values()] == [0, 0, 0] and d['boxes'].shape == (0, 4)

def test_detections_stay_in_the_picture_and_top_k_holds():
    anchors, sizes = create_anchors([4], (3.,))
    d, = detect((torch.zeros(1, 16, 3), torch.randn(1, 16, 4)*5), anchors, sizes, 50, overlap=1., top_k=7)
    assert len(d['scores']) == 7 and d['boxes'].min() >= 0 and d['boxes'].max() <= 50

@pytest.mark.parametrize('gamma', [0, .2, .5, 1, 2, 5])
def test_a_sure_answer_has_a_finite_slope(gamma):
    "The slope of x**.5 at 0 is infinite, and infinite times 0 is nan"
    for actn in -200., -20., -18., 18., 20., 200.:
        for label in 0, 1:
            p = torch.full((1, 2), actn, requires_grad=True)
            loss = FocalLoss(1, gamma=gamma)(p, torch.tensor([label]))
            loss.backward()
            assert torch.isfinite(loss) and torch.isfinite(p.grad).all()

@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16])
def test_activations_in_half_precision_are_decoded_in_full(dtype):
    "The suppression of torchvision knows no half precision on the CPU"
    torch.manual_seed(0)
    anchors, sizes = create_anchors([4])
    preds = [torch.randn(1, 16, n).to(dtype) for n in (4, 4)]
    short, full = detect(preds, anchors, sizes, 300)[0], detect([o.float() for o in preds], anchors, sizes, 300)[0]
    assert len(full['scores']) and all(torch.equal(short[k], full[k]) for k in full)
