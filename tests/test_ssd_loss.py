"Heads, decoding and the loss: shapes, inverses, the readable loop, gradients, and the batches that break others"
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F
from objdet.pascal_data import cxcywh_to_xyxy, pad_batch, xyxy_to_cxcywh, unpad
from objdet.anchors_matching import create_anchors, default_grids, default_shapes, default_zooms, jaccard, map_to_ground_truth, sort_objects
from objdet.ssd_loss import (BCELoss, HardNegativeLoss, OutConv, SSDHead, SSDLoss, SSDMultiHead, SoftmaxLoss, StdConv, actn_to_bb, bb_to_actn,
                             flatten_conv, keep_activations, set_background_bias)
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
    back = bb_to_actn(boxes, anchors, grid_sizes)
    assert torch.allclose(actn_to_bb(back, anchors, grid_sizes), boxes, rtol=0, atol=1e-5) and torch.allclose(back, a, atol=1e-3)
    double = [o.double() for o in (a, anchors, grid_sizes)]
    assert torch.allclose(bb_to_actn(actn_to_bb(*double), *double[1:]), double[0], rtol=0, atol=1e-5)
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

@given(st.integers(0, 10**6), st.sampled_from([None, 0., .5, 1., 2., 5.]), st.sampled_from([0., .25, 1.]), st.sampled_from([1., 10., 300.]), st.booleans())
@settings(deadline=None, max_examples=80)
def test_the_gradient_by_hand_is_autograd_s(seed, gamma, alpha, spread, single):
    "In several pieces, up to activations at which a sigmoid is exactly 0 or 1, times what comes from above, with rows that do not lie side by side"
    g = torch.Generator().manual_seed(seed)
    p = (torch.randn(4, 9000, 2, generator=g, dtype=torch.float32 if single else torch.float64)*spread).requires_grad_()
    t = torch.randint(0, 4, (2, 9000), generator=g)
    loss = BCELoss(3) if gamma is None else FocalLoss(3, alpha, gamma)
    grads = [torch.autograd.grad(3*o, p)[0] for o in (loss(p.permute(2, 1, 0), t), loss.each(p.permute(2, 1, 0), t).sum())]
    assert torch.isfinite(grads[0]).all() and torch.allclose(*grads, rtol=1e-4 if single else 1e-8, atol=1e-5 if single else 1e-8)
    assert torch.isclose(loss(p.permute(2, 1, 0), t), loss.each(p.permute(2, 1, 0), t).sum(), rtol=1e-4 if single else 1e-8)

class Doubled(BCELoss):
    def price(self, a, t): return 2*super().price(a, t)
class Squared(FocalLoss):
    def get_weight(self, a, t): return super().get_weight(a, t)**2
class Halved(BCELoss):
    def each(self, pred, targ): return super().each(pred, targ)/2
class Plain(FocalLoss): pass

@pytest.mark.parametrize('kind', [BCELoss, FocalLoss, Doubled, Squared, Halved, Plain])
def test_a_price_without_its_slope_gets_autograd_s(kind):
    "A subclass that changes what an answer costs and says nothing of the slope must not be trained with the old one"
    p, t, loss = torch.randn(5, 9, C+1, dtype=torch.float64, requires_grad=True), torch.randint(0, C+1, (5, 9)), kind(C)
    total, want = loss(p, t), loss.each(p, t).sum()
    assert torch.isclose(total, want) and torch.allclose(*(torch.autograd.grad(o, p)[0] for o in (total, want)))
    assert loss._has_slope() == (kind in (BCELoss, FocalLoss, Plain))

def test_an_alpha_to_learn_is_learned():
    loss = FocalLoss(C)
    loss.alpha = torch.nn.Parameter(torch.tensor(.25))
    loss(torch.randn(4, 9, C+1), torch.randint(0, C+1, (4, 9))).backward()
    assert loss.alpha.grad.abs() > 0

@pytest.mark.parametrize('kind', [BCELoss, FocalLoss])
def test_labels_of_other_classes_are_no_positives_of_another_column(kind):
    p, t = torch.zeros(3, C+2), torch.tensor([0, C, C+1])
    with pytest.raises(RuntimeError): kind(C)(torch.zeros(3, C+1), torch.tensor([0, -1, C]))
    with pytest.raises(RuntimeError): kind(C+2)(p, t) # C+1 columns of classes, and a loss that believes in one more

@pytest.mark.parametrize('kind', [BCELoss, FocalLoss])
def test_half_precision_is_summed_in_single(kind):
    p, t = torch.randn(2, 20_000, C+1)*4 - 3, torch.randint(0, C+1, (2, 20_000))
    for dtype in (torch.half, torch.bfloat16):
        half, single = (p.to(dtype).to(d).requires_grad_() for d in (dtype, torch.float32))
        losses = [kind(C)(o, t) for o in (half, single)]
        for l in losses: l.backward()
        assert torch.equal(*losses) and torch.equal(half.grad, single.grad.to(dtype))

def test_no_anchors_cost_nothing():
    p = torch.zeros(2, 0, C+1, requires_grad=True)
    total = BCELoss(C)(p, torch.zeros(2, 0, dtype=torch.int64))
    total.backward()
    assert total == 0 and p.grad.shape == p.shape

def test_a_sum_can_be_asked_twice_for_its_gradient_and_not_for_a_second_one():
    p, t = torch.randn(4, 9, C+1, requires_grad=True), torch.randint(0, C+1, (4, 9))
    total = BCELoss(C)(p, t)
    first, second = (torch.autograd.grad(total, p, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match='automatic differentiation'): torch.autograd.grad(torch.autograd.grad(total, p, create_graph=True)[0].sum(), p)

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

def slow_hard(each, pos, ratio):
    "Picture by picture, one negative at a time: always the worst that is left"
    total = 0.
    for e, p in zip(each, pos):
        total += sum(v for v, yes in zip(e.tolist(), p.tolist()) if yes)
        left = [v for v, yes in zip(e.tolist(), p.tolist()) if not yes]
        for _ in range(min(ratio*int(p.sum()), len(left))): total += left.pop(left.index(max(left)))
    return total

@given(st.lists(st.integers(0, 12), min_size=1, max_size=4), st.integers(0, 5), st.integers(0, 10**6), st.booleans())
@settings(deadline=None, max_examples=50)
def test_hard_negatives_are_the_slow_loop_s(positives, ratio, seed, softmax):
    g = torch.Generator().manual_seed(seed)
    pred, targ = torch.randn(len(positives), 12, C+1, generator=g), torch.full((len(positives), 12), C)
    for t, n in zip(targ, positives): t[torch.randperm(12, generator=g)[:n]] = torch.randint(0, C, (n,), generator=g)
    kind = (SoftmaxLoss if softmax else BCELoss)(C)
    want = slow_hard(kind.each(pred, targ), targ < C, ratio)
    assert HardNegativeLoss(C, ratio, kind)(pred, targ).item() == pytest.approx(want, rel=1e-4, abs=1e-4)

def test_hard_negatives_with_ties_keep_the_count():
    pred, targ = torch.zeros(2, 10, C+1), torch.full((2, 10), C)
    targ[0, 4] = 1
    each = C*torch.log(torch.tensor(2.))
    assert torch.isclose(HardNegativeLoss(C)(pred, targ), 4*each)      # one positive, three of nine equal negatives, none of the empty picture

def test_only_kept_anchors_get_a_gradient():
    pred, targ = torch.randn(3, 20, C+1, requires_grad=True), torch.full((3, 20), C)
    targ[0, :2], targ[1, 5] = 0, 2
    HardNegativeLoss(C)(pred, targ).backward()
    assert (pred.grad.abs().sum(-1) > 0).sum(1).tolist() == [8, 4, 0]

@pytest.mark.parametrize('kind', [HardNegativeLoss, SoftmaxLoss])
@pytest.mark.parametrize('sizes, pad', [([0, 0], 3), ([0, 2], 0), ([40, 0, 3], 0)])
def test_other_class_losses_are_finite_in_ssd_loss(kind, sizes, pad):
    preds, targ = batch(sizes, pad=pad)
    preds = [p.requires_grad_() for p in preds]
    loss = SSDLoss(anchors, grid_sizes, SIZE, C, kind(C))(preds, targ)
    loss.backward()
    assert torch.isfinite(loss) and all(p.grad is not None and torch.isfinite(p.grad).all() for p in preds)

def test_the_loop_and_the_batch_agree_for_all_class_losses():
    preds, targ = batch([3, 0, 6], seed=5)
    for clas in (HardNegativeLoss(C), HardNegativeLoss(C, clas_loss=SoftmaxLoss(C)), SoftmaxLoss(C)):
        assert torch.isclose(SSDLoss(anchors, grid_sizes, SIZE, C, clas)(preds, targ), loop_loss(preds, targ, clas), rtol=1e-5)

def test_softmax_is_torch_s_with_background_last():
    p, t = torch.randn(4, 9, C+1), torch.randint(0, C+1, (4, 9))
    assert torch.isclose(SoftmaxLoss(C)(p, t), F.cross_entropy(p.view(-1, C+1), t.view(-1), reduction='sum'))
    assert torch.allclose(SoftmaxLoss(C).each(p, t), -p.log_softmax(-1).gather(-1, t[..., None])[..., 0], atol=1e-6)

def test_each_sums_to_the_loss():
    p, t = torch.randn(4, 9, C+1), torch.randint(0, C+1, (4, 9))
    for loss in (BCELoss(C), SoftmaxLoss(C), FocalLoss(C)):
        assert loss.each(p, t).shape == (4, 9) and torch.isclose(loss.each(p, t).sum(), loss(p, t))

def test_background_bias_of_every_output():
    head = set_background_bias(SSDMultiHead(8, C, nf=16, bias=-4.), 1.5).eval()
    for m in head.outs: torch.nn.init.zeros_(m.clas.weight)
    clas, _ = head(torch.randn(2, 8, 7, 7))
    assert (clas[..., -1] == 1.5).all() and (clas[..., :-1] == -4).all()

def test_kept_activations_are_the_body_s_with_their_boxes():
    body = torch.nn.Conv2d(3, 4, 2, 2)
    g = torch.Generator().manual_seed(0)
    items = [(torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8, generator=g),
              dict(boxes=torch.rand(n, 4, generator=g), labels=torch.arange(n))) for n in (2, 0, 5)]
    kept = keep_activations(body, items, bs=2, dtype=torch.float32)
    x, (boxes, labels) = pad_batch(items)
    assert torch.allclose(torch.stack([k[0] for k in kept]), body(x), atol=1e-5)
    assert torch.equal(torch.stack([k[1][0] for k in kept]), boxes) and torch.equal(torch.stack([k[1][1] for k in kept]), labels)
