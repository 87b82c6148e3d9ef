"Multi-label: losses against torch.nn.functional and by hand, F1 by hand and against a plain count, thresholds, batches"
import math, pickle
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F
from torchvision import tv_tensors
from objdet.multilabel import (ConcatPool, MultiLabelBatch, binary_cross_entropy, choose_threshold, class_sets, cross_entropy, f1_score,
                               multi_accuracy, multi_hot, multilabel_head)
from objdet.pascal_data import Annotations, Record

said = torch.tensor([[.9, .1], [.8, .2], [.7, .6], [.3, .4]])
true = torch.tensor([[1., 0], [1, 1], [0, 0], [1, 0]])

@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 6), max_size=5), min_size=1, max_size=5))
def test_multi_hot_is_the_set(pictures):
    m = max(map(len, pictures))
    labels = torch.tensor([p + [-1]*(m - len(p)) for p in pictures], dtype=torch.int64).reshape(len(pictures), m)
    rows = multi_hot(labels, 7)
    assert rows.shape == (len(pictures), 7) and rows.dtype == torch.float32
    assert [set(r.nonzero().flatten().tolist()) for r in rows] == [set(p) for p in pictures]
    assert set(rows.unique().tolist()) <= {0., 1.}

@pytest.mark.parametrize('label', [-2, 3, 99])
def test_multi_hot_refuses_other_labels(label):
    with pytest.raises(ValueError, match=f'{label}'): multi_hot(torch.tensor([[0, label]]), 3)

@pytest.mark.parametrize('scale', [.1, 1, 10, 100, 1000])
def test_losses_and_gradients_equal_pytorch(scale):
    g = torch.Generator().manual_seed(0)
    actns = (scale*torch.randn(16, 9, generator=g)).requires_grad_()
    targets, labels = (torch.rand(16, 9, generator=g) < .3).float(), torch.randint(0, 9, (16,), generator=g)
    for ours, theirs, y in ((binary_cross_entropy, F.binary_cross_entropy_with_logits, targets), (cross_entropy, F.cross_entropy, labels)):
        a, b = ours(actns, y), theirs(actns, y)
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(torch.autograd.grad(a, actns)[0], torch.autograd.grad(b, actns)[0], atol=1e-6, rtol=1e-4)

def test_losses_by_hand():
    "A lead of log 3 gives the truth three quarters; equal scores give it a half"
    lead = torch.tensor([[math.log(3), 0.], [0., 0.]])
    assert cross_entropy(lead, torch.tensor([0, 1])).item() == pytest.approx((math.log(4/3) + math.log(2))/2)
    assert binary_cross_entropy(torch.tensor([math.log(3), math.log(3)]), torch.tensor([1., 0.])).item() == pytest.approx((math.log(4/3) + math.log(4))/2)

@pytest.mark.parametrize('x', [-1e4, -500., -100., -20., 20., 100., 500., 1e4])
def test_losses_stay_finite_and_exact(x):
    a = torch.tensor([x], requires_grad=True)
    for t in (0., 1.):
        loss = binary_cross_entropy(a, torch.tensor([t]))
        assert loss.item() == pytest.approx(max(x, 0) - x*t, abs=1e-6)
        assert torch.isfinite(torch.autograd.grad(loss, a)[0]).all()
    assert cross_entropy(torch.tensor([[x, 0.]]), torch.tensor([1])).item() == pytest.approx(max(x, 0), abs=1e-6)

def test_scores_by_hand():
    "First class: two hits, one alarm, one miss; second: none, one, one"
    torch.testing.assert_close(f1_score(said, true, average=None), torch.tensor([2/3, 0.]))
    assert f1_score(said, true).item() == pytest.approx(1/3)
    assert f1_score(said, true, average='micro').item() == .5 and multi_accuracy(said, true).item() == .5
    assert f1_score(true, true).item() == 1 and f1_score(1 - true, true).item() == 0

def test_f1_of_classes_that_are_not_there():
    "Neither there nor named: left out; named and not there: zero"
    s, t = torch.tensor([[.9, .1, .9], [.9, .1, .1]]), torch.tensor([[1., 0, 0], [1, 0, 0]])
    each = f1_score(s, t, average=None)
    assert each[0] == 1 and each[1].isnan() and each[2] == 0
    assert f1_score(s, t).item() == .5 and f1_score(s, t, average='micro').item() == pytest.approx(.8)
    assert f1_score(torch.zeros(2, 1), torch.zeros(2, 1)).isnan()
    with pytest.raises(ValueError, match="'weighted'"): f1_score(s, t, average='weighted')

@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 10**6))
def test_f1_equals_a_plain_count(n, c, seed):
    rng = np.random.default_rng(seed)
    s, t, th = rng.random((n, c)), rng.random((n, c)) < .4, rng.random(c)
    counts = [[sum((s[i, j] > th[j]) == p and t[i, j] == q for i in range(n)) for p, q in ((True, True), (True, False), (False, True))] for j in range(c)]
    def f1(h, a, m): return 2*h/(2*h + a + m) if h + a + m else math.nan
    args = torch.tensor(s), torch.tensor(t).float(), torch.tensor(th)
    np.testing.assert_allclose(f1_score(*args, average=None), [f1(*o) for o in counts], rtol=1e-6)
    np.testing.assert_allclose(f1_score(*args, average='micro'), f1(*np.sum(counts, 0)), rtol=1e-6)

@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 4), st.integers(0, 10**6))
def test_chosen_threshold_is_the_best_of_the_nineteen(n, c, seed):
    g = torch.Generator().manual_seed(seed)
    s, t = torch.rand(n, c, generator=g), (torch.rand(n, c, generator=g) < .5).float()
    steps = torch.linspace(.05, .95, 19)
    one, each = choose_threshold(s, t), choose_threshold(s, t, per_class=True)
    assert one.shape == () and each.shape == (c,) and torch.isin(each, steps).all()
    best = max(v for v in (f1_score(s, t, o).nan_to_num(-1).item() for o in steps))
    assert f1_score(s, t, one).nan_to_num(-1).item() == best
    got = f1_score(s, t, each, None)
    for j in range(c):
        if t[:, j].any(): assert got[j] >= max(f1_score(s, t, o, None)[j].nan_to_num(-1) for o in steps)
        else: assert each[j] == one

def test_class_sets_leave_difficult_objects_out():
    box = np.zeros((2, 4), np.float32)
    r = Record('a.jpg', 1, 9, 9, box, np.array([0, 2]), np.array([False, True]))
    e = Record('b.jpg', 2, 9, 9, box[:0], np.zeros(0, np.int64), np.zeros(0, bool))
    assert class_sets(Annotations([r, e], ['a', 'b', 'c'], [])).tolist() == [[1, 0, 0], [0, 0, 0]]

def test_batch_with_an_empty_picture():
    im = tv_tensors.Image(torch.zeros(3, 8, 8, dtype=torch.uint8))
    items = [(im, dict(boxes=torch.zeros(n, 4), labels=torch.tensor(l, dtype=torch.int64))) for n, l in ((3, [1, 1, 4]), (0, []))]
    x, y = pickle.loads(pickle.dumps(MultiLabelBatch(5)))(items)
    assert x.shape == (2, 3, 8, 8) and y.tolist() == [[0, 1, 0, 0, 1], [0]*5]
    assert MultiLabelBatch(5)(items[1:])[1].tolist() == [[0]*5]

def test_head_takes_any_grid():
    head = multilabel_head(6, 4).eval()
    for rows, cols in ((7, 7), (1, 1), (3, 10)): assert head(torch.randn(2, 6, rows, cols)).shape == (2, 4)
    x = torch.randn(2, 6, 7, 5)
    torch.testing.assert_close(ConcatPool()(x), torch.cat([F.adaptive_max_pool2d(x, 1), F.adaptive_avg_pool2d(x, 1)], 1).flatten(1))
