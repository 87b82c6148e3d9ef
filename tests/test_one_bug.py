"Edits that come and go, and the checks for a detector on random batches"
import pytest, torch
from torch import nn
from hypothesis import given, settings, strategies as st
from objdet import focal_nms, pascal_data
from objdet.anchors_matching import create_anchors, default_grids, default_shapes, default_zooms, match_anchors
from objdet.focal_nms import FocalLoss, detect
from objdet.ssd_loss import BCELoss, OutConv, SSDLoss, SSDMultiHead
from objdet.one_bug import Edit, first_loss, outcome, overfit, perfect_activations, unmatched

C, SIZE = 5, 112
anchors, grid_sizes = create_anchors(default_grids, default_zooms, default_shapes)

def targets(sizes, seed=0):
    "Random boxes and labels for pictures with so many objects"
    g = torch.Generator().manual_seed(seed)
    boxes, labels = torch.zeros(len(sizes), max(sizes), 4), torch.full((len(sizes), max(sizes)), -1)
    for i, n in enumerate(sizes):
        p = torch.rand(n, 2, 2, generator=g).sort(1).values
        boxes[i, :n], labels[i, :n] = torch.cat([p[:, 0], p[:, 1] + .02], 1).clamp(0, 1)*SIZE, torch.randint(0, C, (n,), generator=g)
    return boxes, labels

def test_an_edit_ends_with_its_block_even_after_an_error():
    code = pascal_data.voc_to_xyxy.__code__
    with pytest.raises(ZeroDivisionError):
        with Edit(pascal_data.voc_to_xyxy, '[1., 1, 0, 0]', '[1/0, 1, 0, 0]'): pascal_data.voc_to_xyxy([1, 1, 2, 2])
    assert pascal_data.voc_to_xyxy.__code__ is code

def test_edits_nest_and_can_be_used_again():
    one, two = (Edit(pascal_data.voc_to_xyxy, '[1., 1, 0, 0]', f'[{n}., 1, 0, 0]') for n in (2, 3))
    left = lambda: pascal_data.voc_to_xyxy([9, 9, 9, 9])[0].item()
    for _ in range(2):
        with one:
            with two: assert left() == 6
            assert left() == 7
        assert left() == 8

def test_an_edit_reaches_methods_decorated_functions_and_those_who_imported_the_name():
    with Edit(OutConv.forward, 'flatten_conv(self.bbox(x), self.k)', 'None'): assert OutConv(1, 3, C, 0.)(torch.zeros(1, 3, 2, 2))[1] is None
    with Edit(SSDLoss.parts, 'n = max', 'return 1., 2.; n = max'): assert SSDLoss(anchors, grid_sizes, SIZE, C)(perfect_activations(SSDLoss(anchors, grid_sizes, SIZE, C), targets([2])), targets([2])) == 3
    with Edit(focal_nms.detect, 'return [', 'return 7, ['): assert detect((torch.zeros(1, 189, C+1), torch.zeros(1, 189, 4)), anchors, grid_sizes, SIZE)[0] == 7

@pytest.mark.parametrize('old, n', [('nowhere', 0), ('1', 4)])
def test_a_text_that_is_not_there_once_is_refused(old, n):
    with pytest.raises(ValueError, match=f'voc_to_xyxy: .{old}. occurs {n} times'): Edit(pascal_data.voc_to_xyxy, old, '')

def plain(x, low=0, *, high=1): return min(max(x, low), high)
def around(step):
    def up(x): return x + step
    return up

@pytest.mark.parametrize('old, new', [('low=0', 'low=2'), ('high=1', 'high=2'), ('high=1', 'high')])
def test_an_edit_of_a_default_is_refused(old, new):
    with pytest.raises(ValueError, match=f"plain: '{old}' is in a default"): Edit(plain, old, new)
    with Edit(plain, 'max(x, low)', 'x'): assert plain(-3) == -3
    assert plain(-3) == 0

@pytest.mark.parametrize('func, old, name', [(SSDLoss.__init__, 'clas_loss or', '__class__'), (around(1), 'x + step', 'step')])
def test_a_function_that_takes_names_from_around_it_is_refused(func, old, name):
    with pytest.raises(ValueError, match=f'takes {name} from around it'): Edit(func, old, '')

def test_outcome_says_what_the_error_says_and_takes_the_edit_back():
    def width(): assert pascal_data.voc_to_xyxy([1, 1, 4, 4])[2] == 4, 'too\n narrow'
    assert outcome(width) == 'passes' and outcome(width, Edit(pascal_data.voc_to_xyxy, '[1., 1, 0, 0]', '[1., 1, 1, 1]')).startswith('too narrow')
    assert outcome(width) == 'passes'

@given(st.lists(st.integers(0, 12), min_size=1, max_size=4), st.integers(0, 10**6))
@settings(deadline=None, max_examples=25)
def test_every_object_is_answered_for(sizes, seed):
    boxes, labels = targets(sizes, seed)
    assert not unmatched(match_anchors(anchors, boxes/SIZE, labels), labels).any()

def test_as_many_are_lost_as_anchors_are_missing():
    boxes, labels = targets([7, 2, 0])
    lost = unmatched(match_anchors(create_anchors([2])[0], boxes/SIZE, labels), labels)
    assert lost.sum(1).tolist() == [3, 0, 0] and not lost[labels < 0].any()

@given(st.lists(st.integers(0, 8), min_size=1, max_size=4), st.integers(0, 10**6))
@settings(deadline=None, max_examples=15)
def test_a_perfect_answer_costs_no_more_than_the_anchors_reach(sizes, seed):
    "The class loss is zero; the box loss is zero for every anchor that can reach its object, as an inverse by hand finds it"
    targ, loss = targets(sizes, seed), SSDLoss(anchors, grid_sizes, SIZE, C)
    box, clas = loss.parts(perfect_activations(loss, targ, actn=30.), targ)
    m = match_anchors(anchors, targ[0]/SIZE, targ[1]) if max(sizes) else None
    assert clas < 1e-6
    if m is None: assert box == 0; return
    pic, a = m.positive.nonzero(as_tuple=True)
    b = targ[0][pic, m.index[pic, a]]/SIZE
    cut = lambda x, low, high: x.clamp(low, high)
    half = grid_sizes[a]/2
    centers = cut((b[:, :2] + b[:, 2:])/2 - anchors[a, :2], -half, half) + anchors[a, :2]
    wh = (b[:, 2:] - b[:, :2]).minimum(1.5*anchors[a, 2:]).maximum(.5*anchors[a, 2:])
    want = (torch.cat([centers - wh/2, centers + wh/2], 1) - b).abs().mean(1).sum()/max(len(b), 1)
    assert torch.isclose(box, want, atol=1e-4)

def test_a_perfect_answer_about_nothing():
    loss = SSDLoss(anchors, grid_sizes, SIZE, C)
    for targ in [(torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.int64)), (torch.zeros(2, 3, 4), torch.full((2, 3), -1))]:
        preds = perfect_activations(loss, targ)
        assert all(p.isfinite().all() for p in preds) and all(len(d['boxes']) == 0 for d in detect(preds, anchors, grid_sizes, SIZE))

@pytest.mark.parametrize('bias, alpha, gamma', [(-4., None, 0.), (-3., .25, 2.), (0., .75, .5)])
def test_the_first_loss_is_that_of_activations_at_the_bias(bias, alpha, gamma):
    targ = targets([3, 1])
    loss = SSDLoss(anchors, grid_sizes, SIZE, C, BCELoss(C) if alpha is None else FocalLoss(C, alpha, gamma))
    n = match_anchors(anchors, targ[0]/SIZE, targ[1]).positive.sum().item()
    got = loss.parts((torch.full((2, 189, C+1), bias), torch.zeros(2, 189, 4)), targ)[1].item()
    assert got == pytest.approx(first_loss(bias, n, 2*189*C - n, alpha, gamma), rel=1e-4)

def test_overfit_learns_a_copy_and_leaves_the_model_alone():
    torch.manual_seed(0)
    head = SSDMultiHead(8, C, nf=8)
    before = {k: v.clone() for k, v in head.state_dict().items()}
    learned, losses = overfit(head, (torch.randn(4, 8, 7, 7), targets([2, 1, 3, 1])), SSDLoss(anchors, grid_sizes, SIZE, C), steps=30, lr=1e-2)
    assert all(torch.equal(v, before[k]) for k, v in head.state_dict().items()) and head.training
    assert losses[-1] < losses[0]/2 and len(losses) == 30 and not learned.training
    assert not any(m.training for m in learned.modules() if isinstance(m, nn.Dropout))
