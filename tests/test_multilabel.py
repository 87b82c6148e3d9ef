"Multi-label: losses against torch.nn.functional and by hand, F1 by hand and against a plain count, thresholds, batches"
import json, math, pickle
from pathlib import Path
import numpy as np, pytest, torch, tricks
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F
from torchvision import tv_tensors
from objdet.multilabel import (CellNames, ConcatPool, FlipTTA, MultiLabelBatch, binary_cross_entropy, choose_threshold, class_sets, cross_entropy,
                               f1_score, mean_squared_error, mixup, multi_accuracy, multi_hot, multilabel_head, smooth_targets)
from objdet.pascal_data import Annotations, DataLoaders, Record

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

def test_mean_squared_error_equals_pytorch():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(4, 5, generator=g), torch.randn(4, 5, generator=g)
    torch.testing.assert_close(mean_squared_error(a, b), F.mse_loss(a, b))
    assert mean_squared_error(torch.tensor([1., 5.]), torch.tensor([2., 2.])).item() == 5

# --- the tricks and the program that tries them

@settings(max_examples=40, deadline=None)
@given(st.floats(0, 1), st.integers(1, 8), st.integers(0, 10**6))
def test_mixup_keeps_sums(share, b, seed):
    "Every picture gives away as much as it keeps for itself: over the batch pixels and targets sum to what they did"
    g = torch.Generator().manual_seed(seed)
    x, y, order = torch.rand(b, 3, 4, 4, generator=g), (torch.rand(b, 5, generator=g) < .4).float(), torch.randperm(b, generator=g)
    mx, my = mixup(x, y, share, order)
    torch.testing.assert_close(mx.sum(0), x.sum(0)); torch.testing.assert_close(my.sum(0), y.sum(0))
    assert mx.shape == x.shape and 0 <= my.min() and my.max() <= 1

def test_mixup_by_hand():
    x, y = mixup(torch.tensor([[8.], [0.]]), torch.tensor([[1., 0], [0, 1]]), .75, torch.tensor([1, 0]))
    assert x.tolist() == [[6], [2]] and y.tolist() == [[.75, .25], [.25, .75]]

def test_mixed_loader_leaves_the_loader_alone():
    batch = torch.rand(4, 3, 2, 2), torch.eye(4)
    mixed = tricks.Mixed([batch, batch, batch])
    got = list(mixed)
    assert len(mixed) == len(got) == 3 and torch.equal(batch[1], torch.eye(4))
    for x, y in got: torch.testing.assert_close(x.sum(0), batch[0].sum(0)); torch.testing.assert_close(y.sum(), torch.tensor(4.))

def test_smoothing_by_hand():
    torch.testing.assert_close(smooth_targets(torch.tensor([0., 1, .5])), torch.tensor([.025, .975, .5]))
    torch.testing.assert_close(smooth_targets(torch.tensor([0., 1]), .2), torch.tensor([.1, .9]))
    two, one = torch.tensor([[0., 1.5]]), torch.tensor([1]) # for two classes it is PyTorch's
    torch.testing.assert_close(tricks.smooth_loss(two[0, 1], torch.tensor(1.)), F.cross_entropy(two, one, label_smoothing=.05))

def test_tta_is_blind_to_mirroring():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.Flatten(), torch.nn.Linear(2*4*4, 3))
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(FlipTTA(model)(x), FlipTTA(model)(x.flip(-1)))
    torch.testing.assert_close(FlipTTA(lambda x: x[..., 0])(torch.tensor([[math.log(3), 0.]])), torch.tensor([5/8]))

def test_parts_of_a_training():
    assert tricks.parts('mixup', 224, 32, 4) == [(224, 4)] and tricks.parts('progressive resizing', 224, 32, 1) == [(224, 1)]
    assert tricks.parts('progressive resizing', 224, 32, 5) == [(160, 2), (224, 3)]
    assert tricks.parts('progressive resizing', 112, 16, 4) == [(80, 2), (112, 2)]

def test_score_of_a_trick():
    row = tricks.scores_row(said, true)
    assert row['accuracy'] == .5 and row['f1'] == pytest.approx(1/3, abs=1e-5)
    assert tricks.scores_row(.4*true.repeat(5, 1), true.repeat(5, 1)) == dict(accuracy=.5, f1=0, f1_chosen=1)

def row(trick, seed, settings, value=.5): return dict(trick=trick, seed=seed, settings=settings, accuracy=value, f1=value, f1_chosen=value, seconds=1)

def test_finished_rows_are_not_run_again():
    now, before = dict(epochs=4), dict(epochs=1)
    rows = [row('mixup', 0, now), row('mixup', 1, before), row(tricks.base, 0, now), row(tricks.tta, 0, now), row(tricks.base, 1, now)]
    todo = tricks.missing(rows, now, 2)
    assert len(todo) == 2*len(tricks.jobs) - 2 and ('mixup', 0) not in todo and (tricks.base, 0) not in todo
    assert {('mixup', 1), (tricks.base, 1)} <= set(todo) # other settings; and the base whose test-time augmentation is missing
    assert tricks.missing([row(t, 0, now) for t in tricks.tricks], now, 1) == []

@pytest.fixture
def quick(monkeypatch):
    "The program without data and training; the trainings it asked for"
    ran, ann = [], Annotations([], ['a'], [])
    def train(job, seed, *_):
        ran.append((job, seed))
        if ran[-1] == ('mixup', 1): raise KeyboardInterrupt
        rows = [row(t, seed, None) for t in [job, tricks.tta][:1 + (job == tricks.base)]]
        return [{k: v for k, v in r.items() if k != 'settings'} for r in rows]
    for name, f in dict(train=train, get_data=lambda d: Path('data'), load_splits=lambda p: (ann, ann)).items(): monkeypatch.setattr(tricks, name, f)
    return ran

def test_an_interrupted_run_goes_on(quick, tmp_path, monkeypatch, capsys):
    out = tmp_path/'t.json'
    with pytest.raises(KeyboardInterrupt): tricks.main(['--seeds', '2', '--out', str(out)])
    first = list(quick)
    assert len(tricks.read_rows(out)) == len(first) + 1 and first[-1] == ('mixup', 1) # it was interrupted; the base made two rows for each seed
    quick.clear()
    monkeypatch.setattr(tricks, 'train', lambda job, seed, *a: [{k: v for k, v in row(job, seed, 0, .9).items() if k != 'settings'}])
    tricks.main(['--seeds', '2', '--out', str(out)])
    saved = json.loads(out.read_text())
    assert len(saved['rows']) == 2*len(tricks.tricks) and sorted(p.name for p in tmp_path.iterdir()) == ['t.json']
    assert [r['trick'] for r in saved['rows']][::2] == tricks.tricks
    kept = {(r['trick'], r['seed']) for r in saved['rows'] if r['accuracy'] == .5}
    assert kept == set(first[:-1]) | {(tricks.tta, 0), (tricks.tta, 1)} and all(r['settings'] == saved['settings'] for r in saved['rows'])
    assert str(tmp_path) not in json.dumps(saved['settings']) and 'mixup                        2    0.' in capsys.readouterr().out

@pytest.mark.parametrize('text, why', [('{"rows": [', 'JSONDecodeError'), ('[]', 'TypeError'), ('{}', "'rows'"), ('{"rows": [{"trick": "mixup"}]}', 'row 0'),
                                       (json.dumps(dict(rows=[row('cutout', 0, {})])), "row 0.*'cutout'")])
def test_a_broken_table_is_refused(quick, tmp_path, text, why):
    out = tmp_path/'t.json'
    out.write_text(text)
    with pytest.raises(ValueError, match=rf't\.json.*{why}'): tricks.main(['--out', str(out)])
    assert out.read_text() == text and not quick

def test_a_table_by_hand():
    s = dict(epochs=4)
    lines = tricks.table([row('mixup', 0, s, .5), row('mixup', 1, s, .7), row('mixup', 2, dict(epochs=1), 0)], s)
    assert len(lines) == 2 and lines[1].split() == ['mixup', '2', '0.6000', '0.2000', '0.600', '0.200', '0.600', '0.200', '1']


# --- a head of cells

@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_one_sure_cell_is_enough_wherever_it_is(rows, columns, seed):
    head = CellNames(3, 2, width=4).eval()
    head.layers = torch.nn.Identity()
    gen = torch.Generator().manual_seed(seed)
    x, i, j = -torch.rand(1, 2, rows, columns, generator=gen), *(torch.randint(k, (), generator=gen) for k in (rows, columns))
    x[0, 1, i, j] = 5
    out = head(x)
    assert out[0, 1] == 5 and out[0, 0] == x[0, 0].max()

def test_at_first_every_cell_says_no():
    with torch.no_grad(): p = CellNames(16, 20)(torch.randn(8, 16, 7, 7)).sigmoid()
    assert p.mean() < .2

def test_no_pictures_have_no_classes():
    with pytest.raises(ValueError, match='no pictures'): class_sets(Annotations([], ['a'], []))
