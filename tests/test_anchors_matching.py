"Anchors, overlap and matching, against the lecture's printed example, torchvision and the readable loop"
from itertools import combinations
import numpy as np, pytest, torch, torchvision
from hypothesis import given, settings, strategies as st
from objdet.pascal_data import cxcywh_to_xyxy, load_annotations, read_voc_xml
from objdet.anchors_matching import (anchor_recall, best_overlap, conv_size, create_anchors, default_grids, default_shapes, default_zooms,
    gradient_field, greedy_cover, jaccard, map_to_ground_truth, match_anchors, receptive_field, shape_lattice, sort_objects, suggest_anchors)
from conftest import needs_voc, voc

all_anchors = create_anchors(default_grids, default_zooms, default_shapes)[0]

def random_boxes(n, seed, grid=None):
    "n boxes in the unit square; with `grid`, corners on a coarse grid, so that ties abound"
    g = torch.Generator().manual_seed(seed)
    a, b = torch.rand(n, 2, generator=g), torch.rand(n, 2, generator=g)
    if grid: a, b = (a*grid).floor()/grid, (b*grid).floor()/grid
    return torch.cat([torch.minimum(a, b), torch.maximum(a, b) + (1/grid if grid else .01)], 1).clamp(0, 1)

@pytest.fixture
def lecture():
    rows_first = torch.tensor([[.6786, .4866, .9911, .6250], [.7098, .0848, .9911, .5491], [.5134, .8304, .6696, .9063]])
    return rows_first[:, [1, 0, 3, 2]], torch.tensor([8, 10, 17])

def test_the_lecture_s_table(lecture):
    boxes, labels = lecture
    anchors, _ = create_anchors([4])
    overlaps = jaccard(boxes, cxcywh_to_xyxy(anchors))
    printed = torch.zeros(3, 16)
    printed[0, [9, 10, 13, 14]] = torch.tensor([.0091, .0922, .0315, .3985])
    printed[1, [8, 9, 10, 12, 13, 14]] = torch.tensor([.0356, .0549, .0103, .2598, .4538, .0653])
    printed[2, 11] = .1897
    assert (overlaps - printed).abs().max() < 2e-4
    overlap, index = map_to_ground_truth(overlaps)
    assert (overlap > 1).nonzero().flatten().tolist() == [11, 13, 14]
    assert labels[index][[11, 13, 14]].tolist() == [17, 10, 8]
    for thresh in (.4, .5): assert ((overlap > thresh).sum(), (overlap <= thresh).sum()) == (3, 13)
    m = match_anchors(anchors, boxes[None], labels[None])
    assert torch.equal(m.overlap[0], overlap) and torch.equal(m.positive[0], overlap > .4)

def test_anchor_order_is_row_major_on_a_grid_that_is_not_square():
    anchors, sizes = create_anchors([(2, 3)], zooms=(1., .5), shapes=((1., 1.), (1., .5)))
    assert len(anchors) == 24
    assert torch.allclose(anchors[4], torch.tensor([.5, .25, 1/3, .5]))        # second cell: to the right
    assert torch.allclose(anchors[1], torch.tensor([1/6, .25, 1/3, .25]))      # shapes fastest
    assert torch.allclose(anchors[2], torch.tensor([1/6, .25, 1/6, .25]))      # then zooms
    assert torch.allclose(anchors[12], torch.tensor([1/6, .75, 1/3, .5]))      # second row
    assert torch.allclose(sizes, torch.tensor([1/3, .5]))

@given(st.integers(0, 10**6), st.integers(0, 9), st.integers(0, 9))
@settings(deadline=None, max_examples=40)
def test_jaccard_is_torchvision_s(seed, m, k):
    a, b = random_boxes(m, seed), random_boxes(k, seed+1)
    assert torch.allclose(jaccard(a, b), torchvision.ops.box_iou(a, b), atol=1e-6)

def test_jaccard_of_boxes_without_area_is_zero():
    assert jaccard(torch.zeros(2, 4), torch.zeros(1, 4)).tolist() == [[0], [0]]

@given(st.integers(0, 10**6), st.lists(st.integers(0, 30), min_size=1, max_size=4), st.sampled_from([None, 2, 4]))
@settings(deadline=None, max_examples=60)
def test_every_object_keeps_an_anchor_of_its_own(seed, sizes, grid):
    b, m = len(sizes), max(sizes)
    boxes, labels = torch.zeros(b, m, 4), torch.full((b, m), -1)
    for i, n in enumerate(sizes): boxes[i, :n], labels[i, :n] = random_boxes(n, seed+i, grid), 0
    match = match_anchors(all_anchors, boxes, labels)
    for i, n in enumerate(sizes):
        own = match.index[i][match.overlap[i] > 1]
        assert sorted(own.tolist()) == list(range(n))   # the lecture's assignment fails here as soon as two objects share a best anchor

def test_more_objects_than_anchors():
    anchors, _ = create_anchors([2])
    boxes = random_boxes(9, 0)
    m = match_anchors(anchors, boxes[None], torch.zeros(1, 9, dtype=torch.int64))
    assert (m.overlap > 1).sum() == 4 and len(m.index[m.overlap > 1].unique()) == 4

def test_more_objects_than_anchors_in_a_batch():
    "The crowded picture fills its four anchors, the best pairs first; its neighbors keep theirs"
    anchors, _ = create_anchors([2])
    boxes, labels = torch.zeros(3, 9, 4), torch.full((3, 9), -1)
    for i, n in enumerate([2, 9, 0]): boxes[i, :n], labels[i, :n] = random_boxes(n, i), 0
    m = match_anchors(anchors, boxes, labels)
    assert (m.overlap > 1).sum(1).tolist() == [2, 4, 0]
    for i, n in enumerate([2, 9]):
        own = m.index[i][m.overlap[i] > 1]
        assert len(own.unique()) == len(own) == min(n, 4) and own.max() < n

@given(st.integers(0, 10**6), st.permutations(range(4)), st.integers(0, 5))
@settings(deadline=None, max_examples=20)
def test_the_order_of_pictures_and_padding_do_not_matter(seed, perm, pad):
    boxes, labels = torch.zeros(4, 8, 4), torch.full((4, 8), -1)
    for i, n in enumerate([3, 0, 8, 1]): boxes[i, :n], labels[i, :n] = random_boxes(n, seed+i, 4), torch.arange(n) % 3
    a = match_anchors(all_anchors, boxes, labels)
    wide = torch.cat([boxes, torch.rand(4, pad, 4)], 1), torch.cat([labels, torch.full((4, pad), -1)], 1)  # padding may hold anything
    b = match_anchors(all_anchors, *(o[perm] for o in wide))
    assert torch.equal(a.overlap[perm], b.overlap) and torch.equal(a.index[perm][b.positive], b.index[b.positive])

@given(st.integers(0, 10**6), st.lists(st.integers(0, 12), min_size=1, max_size=5), st.sampled_from([None, 2, 4]), st.sampled_from([0., .25, .4, 1.]))
@settings(deadline=None, max_examples=80)
def test_the_batch_agrees_with_the_loop(seed, sizes, grid, thresh):
    b, m = len(sizes), max(sizes)
    boxes, labels = torch.zeros(b, m, 4), torch.full((b, m), -1)
    for i, n in enumerate(sizes): boxes[i, :n], labels[i, :n] = random_boxes(n, seed+i, grid), torch.arange(n) % 3
    match = match_anchors(all_anchors, boxes, labels, thresh)
    for i, n in enumerate(sizes):
        order = sort_objects(boxes[i:i+1, :n], labels[i:i+1, :n])[0]
        overlap, index = map_to_ground_truth(jaccard(boxes[i, :n][order], cxcywh_to_xyxy(all_anchors)))
        assert torch.equal(match.overlap[i], overlap)
        if n: assert torch.equal(match.index[i][match.positive[i]], order[index][match.positive[i]])
        else: assert not match.positive[i].any()

@given(st.integers(0, 10**6), st.integers(2, 12), st.sampled_from([None, 2, 4]))
@settings(deadline=None, max_examples=40)
def test_the_order_of_objects_does_not_matter(seed, m, grid):
    boxes, labels = random_boxes(m, seed, grid)[None], (torch.arange(m) % 3)[None]
    perm = torch.randperm(m, generator=torch.Generator().manual_seed(seed))
    a, b = match_anchors(all_anchors, boxes, labels), match_anchors(all_anchors, boxes[:, perm], labels[:, perm])
    assert torch.equal(a.overlap, b.overlap)
    assert torch.equal(boxes[0][a.index[0]][a.positive[0]], boxes[0, perm][b.index[0]][a.positive[0]])
    assert torch.equal(labels[0][a.index[0]][a.positive[0]], labels[0, perm][b.index[0]][a.positive[0]])

def test_pictures_without_objects():
    for boxes, labels in [(torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.int64)), (torch.zeros(2, 3, 4), torch.full((2, 3), -1))]:
        m = match_anchors(all_anchors, boxes, labels)
        assert not m.positive.any() and (m.overlap == 0).all() and m.overlap.shape == (2, 189)
    assert map_to_ground_truth(torch.zeros(0, 16))[1].tolist() == [0]*16

@pytest.mark.parametrize('layers, want', [([], (1, 1)), ([(3, 1), (3, 1), (2, 2)], (6, 2)), ([(7, 2), (3, 2), (3, 1), (3, 1)], (27, 4))])
def test_receptive_field(layers, want): assert receptive_field(layers) == want

@given(st.integers(1, 40), st.integers(1, 7), st.integers(1, 3), st.integers(0, 3))
@settings(deadline=None, max_examples=40)
def test_conv_size_is_torch_s(n, k, s, p):
    if n + 2*p < k: return
    assert conv_size(n, k, s, p) == torch.nn.Conv2d(1, 1, k, s, p)(torch.zeros(1, 1, n, n)).shape[-1]

def test_anchor_recall_by_hand():
    anchors, _ = create_anchors([2])
    boxes = torch.tensor([[0, 0, .5, .5], [0, 0, .5, .25], [0, 0, .5, .2]])   # overlaps 1, .5, .4
    assert anchor_recall(anchors, boxes) == pytest.approx(2/3)

@pytest.mark.parametrize('layers', [[(3, 1), (2, 2)], [(5, 2), (3, 1)], [(3, 2), (3, 1), (3, 2), (3, 1)]])
def test_the_gradient_sees_what_the_layers_say(layers):
    torch.manual_seed(0)
    size, _ = receptive_field(layers)
    field = gradient_field(torch.nn.Sequential(*(torch.nn.Conv2d(1, 1, k, s) for k, s in layers)), (1, 41, 43))
    assert field.shape == (41, 43) and field.requires_grad is False
    assert [int((field.sum(d) > 0).sum()) for d in (0, 1)] == [size, size]

def test_the_gradient_field_leaves_no_gradients_behind():
    net = torch.nn.Conv2d(3, 2, 3)
    gradient_field(net, (3, 9, 9))
    assert all(p.grad is None for p in net.parameters())

def test_best_overlap_in_parts():
    boxes = random_boxes(1500, 0)
    assert torch.equal(best_overlap(all_anchors, boxes), jaccard(boxes, cxcywh_to_xyxy(all_anchors)).amax(1))
    assert best_overlap(all_anchors, torch.zeros(0, 4)).shape == (0,)

def test_shape_lattice_by_hand():
    assert shape_lattice((1., .5), (4.,)) == [(2., .5), (1., .25)]
    assert len(set(shape_lattice())) == 84

@given(st.integers(0, 10**6), st.integers(1, 7), st.integers(1, 20), st.integers(1, 4))
@settings(deadline=None, max_examples=40)
def test_the_greedy_choice_is_near_the_best_one(seed, s, n, k):
    reach = torch.rand(s, n, generator=torch.Generator().manual_seed(seed)) > .7
    chosen = greedy_cover(reach, k)
    best = max(reach[list(c)].any(0).sum().item() for c in combinations(range(s), min(k, s)))
    assert len(chosen) == len(set(chosen)) <= k
    assert reach[chosen].any(0).sum().item() >= (1 - 1/2.718281828)*best

def test_suggested_anchors_by_hand():
    boxes = torch.tensor([[.25, 0, .75, 1], [.25, 0, .75, 1], [0, 0, 1, 1]])   # two narrow objects, one that fills the picture
    shapes = [(1., 1.), (.5, 1.)]
    assert suggest_anchors(boxes, (1,), 1, .9, shapes) == ((1,), (1.,), ((.5, 1.),))
    assert suggest_anchors(boxes, (1,), 2, .9, shapes) == ((1,), (1.,), ((.5, 1.), (1., 1.)))
    with pytest.raises(ValueError, match='none of 2 shapes'): suggest_anchors(boxes/100, (1,), candidates=shapes)

def test_suggested_anchors_on_a_grid_that_is_not_square():
    boxes = cxcywh_to_xyxy(create_anchors([(2, 4)], shapes=((.5, 1.4),))[0])
    args = suggest_anchors(boxes, ((2, 4),), 1, .99, [(1., 1.), (1.4, .5), (.5, 1.4)])
    assert args == (((2, 4),), (1.,), ((.5, 1.4),))
    assert anchor_recall(create_anchors(*args)[0], boxes, .99) == 1

@needs_voc
@pytest.mark.filterwarnings('ignore:train')
def test_how_many_objects_lose_their_best_anchor_to_another_in_voc():
    "Known counts of objects, and of pictures, for the whole train split: what the lecture's matching overwrites"
    root, classes = voc/'VOCdevkit/VOC2007', load_annotations(voc, missing='skip').classes
    records = [read_voc_xml(root/f'Annotations/{s}.xml', classes) for s in (root/'ImageSets/Main/train.txt').read_text().split()]
    units = [torch.as_tensor(r.boxes[~r.difficult])/torch.tensor([r.width, r.height]*2) for r in records]
    counts = []
    for anchors in (create_anchors([4])[0], all_anchors):
        best = [jaccard(u, cxcywh_to_xyxy(anchors)).argmax(1) for u in units if len(u)]
        lost = [len(b) - len(b.unique()) for b in best]
        counts.append((sum(lost), sum(n > 0 for n in lost)))
    assert counts == [(953, 511), (233, 190)]
    assert anchor_recall(all_anchors, torch.cat(units)) == pytest.approx(.444, abs=5e-4)
    assert anchor_recall(create_anchors(*suggest_anchors(torch.cat(units)))[0], torch.cat(units)) > .5

@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16, torch.float32, torch.int64])
def test_jaccard_in_every_precision(dtype):
    "1e-12 is 0 in half precision, and 0/0 is nan"
    boxes = torch.tensor([[0, 0, 0, 0], [1, 1, 3, 3], [2, 1, 4, 3]]).to(dtype)
    torch.testing.assert_close(jaccard(boxes, boxes).float(), torch.tensor([[0, 0, 0], [0, 1, 1/3], [0, 1/3, 1]]), atol=1e-2, rtol=0)

def test_grids_may_be_numpy_s_integers():
    for a, b in zip(create_anchors([np.int64(4), (np.int64(2), np.int64(1))]), create_anchors([4, (2, 1)])):
        assert a.dtype == torch.float32 and torch.equal(a, b)
    with pytest.raises(TypeError): create_anchors([4.5])

def test_jaccard_of_stacked_sets_is_that_of_each():
    a, b = torch.stack([random_boxes(5, s) for s in (1, 2)]), random_boxes(7, 3)
    assert torch.equal(jaccard(a, b), torch.stack([jaccard(o, b) for o in a])) and jaccard(a[:, :0], b).shape == (2, 0, 7)
