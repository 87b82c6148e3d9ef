"Heads, decoding and the loss: shapes, inverses, the readable loop, gradients, and the batches that break others"
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F
from objdet.pascal_data import cxcywh_to_xyxy, xyxy_to_cxcywh, unpad
from objdet.anchors_matching import create_anchors, default_grids, default_shapes, default_zooms, jaccard, map_to_ground_truth, sort_objects
from objdet.ssd_loss import BCELoss, OutConv, SSDHead, SSDLoss, SSDMultiHead, StdConv, actn_to_bb, bb_to_actn, flatten_conv
from objdet.focal_nms import FocalLoss

C, SIZE = 5, 112
anchors, grid_sizes = create_anchors(default_grids, default_zooms, default_shapes)

def batch(sizes, seed=0, pad=0, dtype=torch.float32):
    "Random activations and padded targets for pictures with so many objects"
    g = torch.Generator().manual_seed(seed)
    b, m = len(sizes), max([*sizes, 0]) + pad
    boxes, labels = torch.zeros(b, m, 4, dtype=dtype), torch.full((b, m), -1)
    for i, n in enumerate(sizes):
        p = torch.rand(n, 2, 2, generator=g, dtype=dtype).sort(1).values
        boxes[i, :n], labels[i, :n] = torch.cat([p[:, 0], p[:, 1] + .02], 1).clamp(0, 1)*SIZE, torch.randint(0, C, (n,), generator=g)
    preds = torch.randn(b, 189, C+1, generator=g, dtype=dtype), torch.randn(b, 189, 4, generator=g, dtype=dtype)
    return preds, (boxes, labels)

def loop_loss(preds, targ, clas_loss, thresh=.4):
    "Picture by picture, with the readable matching"
    loc = cla = n = 0
    for c, b, boxes, labels in zip(*preds, *targ):
        boxes, labels = unpad(boxes/SIZE, labels)
        order = sort_objects(boxes[None], labels[None])[0]
        boxes, labels = boxes[order], labels[order]
        overlap, index = map_to_ground_truth(jaccard(boxes, cxcywh_to_xyxy(anchors.to(boxes))))
        want = torch.full((189,), C)
        for a in range(189):
            if overlap[a] > thresh:
                want[a] = labels[index[a]]
                loc = loc + (actn_to_bb(b[a], anchors[a].to(b), grid_sizes[a].to(b)) - boxes[index[a]]).abs().mean()
                n += 1
        cla = cla + clas_loss(c, want)
    return (loc + cla)/max(n, 1)

@given(st.lists(st.integers(0, 8), min_size=1, max_size=4), st.integers(0, 10**6), st.booleans())
@settings(deadline=None, max_examples=25)
def test_the_batch_loss_is_the_loop_s(sizes, seed, focal):
    preds, targ = batch(sizes, seed)
    clas = (FocalLoss if focal else BCELoss)(C)
    want = loop_loss(preds, targ, clas)
    assert torch.isclose(SSDLoss(anchors, grid_sizes, SIZE, C, clas)(preds, targ), want, rtol=1e-5)

@pytest.mark.parametrize('sizes, pad', [([0], 0), ([0, 0], 3), ([0, 2], 0), ([1], 7), ([40, 0, 3], 0)])
def test_loss_and_gradient_are_finite(sizes, pad):
    preds, targ = batch(sizes, pad=pad)
    preds = [p.requires_grad_() for p in preds]
    loss = SSDLoss(anchors, grid_sizes, SIZE, C)(preds, targ)
    loss.backward()
    assert torch.isfinite(loss) and all(p.grad is not None and torch.isfinite(p.grad).all() for p in preds)

def test_no_anchor_above_the_threshold_is_finite_and_still_learns_the_object():
    a, g = create_anchors([1])
    preds = torch.zeros(1, 1, C+1), torch.zeros(1, 1, 4, requires_grad=True)
    tiny = torch.tensor([[[1., 1, 2, 2]]]), torch.tensor([[3]])
    loss = SSDLoss(a, g, SIZE, C)(preds, tiny)
    loss.backward()
    assert torch.isfinite(loss) and preds[1].grad.abs().sum() > 0

def test_padding_and_order_do_not_matter():
    preds, (boxes, labels) = batch([3, 0, 5])
    loss = SSDLoss(anchors, grid_sizes, SIZE, C)
    want = loss(preds, (boxes, labels))
    assert torch.isclose(loss(preds, (F.pad(boxes, (0, 0, 0, 9)), F.pad(labels, (0, 9), value=-1))), want)
    perm = torch.tensor([3, 1, 4, 0, 2])
    assert torch.isclose(loss(preds, (boxes[:, perm], labels[:, perm])), want)
    pics = [2, 0, 1]
    assert torch.isclose(loss([p[pics] for p in preds], (boxes[pics], labels[pics])), want)

def test_the_loss_does_not_grow_with_the_batch():
    preds, targ = batch([3, 2])
    twice = [torch.cat([o, o]) for o in preds], [torch.cat([o, o]) for o in targ]
    loss = SSDLoss(anchors, grid_sizes, SIZE, C)
    assert torch.isclose(loss(*twice), loss(preds, targ))

def test_gradcheck():
    preds, targ = batch([2, 0], dtype=torch.float64)
    loss = SSDLoss(anchors.double(), grid_sizes.double(), SIZE, C, FocalLoss(C))
    small = [p[:, :].clone().requires_grad_() for p in preds]
    assert torch.autograd.gradcheck(lambda *p: loss(p, targ), small, fast_mode=True)

def test_a_loss_for_other_anchors_is_refused():
    preds, targ = batch([1])
    with pytest.raises(ValueError, match='189 guesses a picture for 16 anchors'): SSDLoss(*create_anchors([4]), SIZE, C)(preds, targ)

def test_decoding_has_an_inverse_and_bounds():
    a = torch.randn(7, 189, 4).clamp(-2, 2)
    boxes = actn_to_bb(a, anchors, grid_sizes)
    assert torch.allclose(bb_to_actn(boxes, anchors, grid_sizes), a, atol=1e-3)
    c = xyxy_to_cxcywh(actn_to_bb(a*100, anchors, grid_sizes))
    ratio = c[..., 2:]/anchors[:, 2:]
    assert ratio.min() > .5 - 1e-5 and ratio.max() < 1.5 + 1e-5
    assert ((c[..., :2] - anchors[:, :2]).abs() <= grid_sizes/2 + 1e-6).all()

def test_sizes_come_from_the_last_two_activations():
    a = torch.zeros(189, 4); a[:, :2] = 1.
    c = xyxy_to_cxcywh(actn_to_bb(a, anchors, grid_sizes))
    assert torch.allclose(c[:, 2:], anchors[:, 2:], atol=1e-6)

def test_bce_is_torch_s_without_the_last_column():
    p, t = torch.randn(4, 9, C+1), torch.randint(0, C+1, (4, 9))
    hot = F.one_hot(t, C+1)[..., :-1].float()
    assert torch.allclose(BCELoss(C)(p, t), F.binary_cross_entropy_with_logits(p[..., :-1], hot, reduction='sum'))
    q = p.clone(); q[..., -1] += 7
    assert BCELoss(C)(q, t) == BCELoss(C)(p, t)

def test_rows_of_the_head_are_in_the_order_of_the_anchors():
    "A convolution that copies its input's coordinates must put them where the anchors' centers are"
    ys, xs = torch.meshgrid((torch.arange(3) + .5)/3, (torch.arange(5) + .5)/5, indexing='ij')
    grid = torch.stack([xs, ys, xs, ys])[None]      # two anchors a cell, two numbers each
    want = create_anchors([(3, 5)], zooms=(1., 2.))[0][:, :2]
    assert torch.allclose(flatten_conv(grid, 2)[0], want)

@pytest.mark.parametrize('head, n', [(SSDHead(8, C, nf=16), 16), (SSDHead(8, C, k=3, nf=16), 48), (SSDMultiHead(8, C, nf=16), 189), (SSDMultiHead(8, C, k=2, nf=16, n_grids=2), 40)])
def test_head_shapes_and_bias(head, n):
    clas, bbox = head.eval()(torch.randn(2, 8, 7, 7))
    assert clas.shape == (2, n, C+1) and bbox.shape == (2, n, 4)
    assert clas.mean() < -1
