"Augmentation: boxes follow their pixels, stay inside, keep their labels; on painted rectangles, against hand-worked cases, and on random ones"
import math, pickle
import pytest, torch
from hypothesis import given, settings, strategies as st
from torchvision import tv_tensors
from torchvision.ops import box_iou
from torchvision.transforms import v2
from objdet.bbox_aug import CropNearObjects, RandomLighting, enclose, rotate_corners, ssd_tfms, tidy_boxes, train_tfms, turn_points, valid_tfms
from objdet.show import normalize

both = pytest.mark.parametrize('tfms', [train_tfms, ssd_tfms, valid_tfms])

def sample(boxes, h=150, w=200, labels=None):
    "A black picture in which `boxes` are painted red"
    im = torch.zeros(3, h, w, dtype=torch.uint8)
    for x1, y1, x2, y2 in boxes: im[0, y1:y2, x1:x2] = 255
    t = tv_tensors.BoundingBoxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), format='XYXY', canvas_size=(h, w))
    return tv_tensors.Image(im), dict(boxes=t, labels=torch.arange(len(boxes)) if labels is None else labels)

def found(im):
    "The box of the red pixels: those with at least half of the most red there is"
    red = im[0].float() - im[2].float()
    y, x = (red > red.max()/2).nonzero().T
    return torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]).float()

@st.composite
def targets(draw):
    "Up to six boxes of whole pixels, one pixel to the whole picture, touching edges now and then"
    h, w = draw(st.integers(40, 260)), draw(st.integers(40, 260))
    boxes = []
    for _ in range(draw(st.integers(0, 6))):
        x1, y1 = draw(st.integers(0, w-1)), draw(st.integers(0, h-1))
        boxes.append([x1, y1, draw(st.integers(x1+1, w)), draw(st.integers(y1+1, h))])
    return boxes, h, w

def check(im, t, size):
    b = t['boxes']
    assert im.shape == (3, size, size) and im.dtype == torch.uint8
    assert isinstance(b, tv_tensors.BoundingBoxes) and b.canvas_size == (size, size) and b.shape == (len(t['labels']), 4)
    assert torch.isfinite(b).all() and (b >= 0).all() and (b <= size).all()
    assert (b[:, 2:] - b[:, :2] > 0).all()

@settings(max_examples=80, deadline=None)
@given(targets(), st.integers(0, 2**31), st.sampled_from([train_tfms, ssd_tfms, valid_tfms]))
def test_boxes_stay_inside_and_have_an_area(target, seed, tfms):
    boxes, h, w = target
    torch.manual_seed(seed)
    im, t = tfms(112)(*sample(boxes, h, w))
    check(im, t, 112)
    if tfms is not valid_tfms: assert (t['boxes'][:, 2:] - t['boxes'][:, :2] >= 2).all()
    assert set(t['labels'].tolist()) <= set(range(len(boxes))) and t['labels'].dtype == torch.int64
    assert t['labels'].tolist() == sorted(t['labels'].tolist())

@settings(max_examples=60, deadline=None)
@given(st.integers(20, 150), st.integers(20, 100), st.integers(20, 49), st.integers(20, 49), st.integers(0, 2**31), st.sampled_from([train_tfms, ssd_tfms, valid_tfms]))
def test_painted_rectangle_is_where_its_box_says(x, y, w, h, seed, tfms):
    torch.manual_seed(seed)
    im, t = tfms(112)(*sample([[x, y, x+w, y+h]]))
    if len(t['boxes']): torch.testing.assert_close(found(im), t['boxes'][0].as_subclass(torch.Tensor), atol=2, rtol=0)

@both
def test_same_label_follows_its_object(tfms):
    "Two objects of different colors keep their names, whichever of them is dropped"
    seen = set()
    for seed in range(60):
        im, t = sample([[20, 30, 70, 90], [120, 40, 180, 110]], labels=torch.tensor([5, 8]))
        im[:, 40:110, 120:180] = torch.tensor([0, 0, 255], dtype=torch.uint8)[:, None, None]
        torch.manual_seed(seed)
        im, t = tfms(112)(im, t)
        for (x1, y1, x2, y2), l in zip(t['boxes'].int().tolist(), t['labels'].tolist()):
            inner = im[:, y1+(y2-y1)//3:y2-(y2-y1)//3, x1+(x2-x1)//3:x2-(x2-x1)//3].float().mean((1, 2))
            if x2 - x1 > 5 and y2 - y1 > 5: assert inner.argmax() == {5: 0, 8: 2}[l]
        seen.add(len(t['labels']))
    assert seen == ({1, 2} if tfms is ssd_tfms else {2})

@both
def test_seeds_repeat_and_differ(tfms):
    outs = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        outs.append(tfms(64)(*sample([[20, 20, 90, 90], [100, 10, 190, 140]])))
    assert torch.equal(outs[0][0], outs[1][0]) and torch.equal(outs[0][1]['boxes'], outs[1][1]['boxes'])
    assert tfms is valid_tfms or not torch.equal(outs[0][0], outs[2][0])

@both
def test_empty_target_survives(tfms):
    for seed in range(20):
        torch.manual_seed(seed)
        im, t = tfms(48)(*sample([]))
        check(im, t, 48)
        assert len(t['labels']) == 0 and t['labels'].dtype == torch.int64

@both
def test_input_is_left_as_it_was(tfms):
    im, t = sample([[20, 20, 90, 90]])
    before = im.clone(), t['boxes'].clone()
    for seed in range(8): torch.manual_seed(seed); tfms(64)(im, t)
    assert torch.equal(im, before[0]) and torch.equal(t['boxes'], before[1]) and len(t['labels']) == 1

@both
def test_transforms_can_be_sent_to_a_worker(tfms):
    f, g = tfms(64), pickle.loads(pickle.dumps(tfms(64)))
    torch.manual_seed(1); a = f(*sample([[20, 20, 90, 90]]))
    torch.manual_seed(1); b = g(*sample([[20, 20, 90, 90]]))
    assert torch.equal(a[0], b[0]) and torch.equal(a[1]['boxes'], b[1]['boxes'])

def test_flip_by_hand_and_twice():
    "In a picture 200 wide, columns 20 to 70 are columns 130 to 180 of its mirror image"
    flip = v2.RandomHorizontalFlip(p=1.)
    im, t = sample([[20, 30, 70, 90]])
    im1, t1 = flip(im, t)
    assert t1['boxes'].tolist() == [[130, 30, 180, 90]] == [found(im1).tolist()]
    im2, t2 = flip(im1, t1)
    assert torch.equal(im2, im) and torch.equal(t2['boxes'], t['boxes'])

def test_squash_by_hand():
    im, t = valid_tfms(100)(*sample([[20, 30, 70, 90]], 150, 200))
    torch.testing.assert_close(t['boxes'][0].as_subclass(torch.Tensor), torch.tensor([10., 20, 35, 60]))
    assert found(im).tolist() == [10, 20, 35, 60]

def test_right_angle_by_hand():
    "A quarter turn counterclockwise of a square of 100: x becomes y, and the distance from the right edge becomes y"
    im, t = sample([[10, 20, 40, 30]], 100, 100)
    im, t = v2.RandomRotation((90, 90))(im, t)
    torch.testing.assert_close(t['boxes'][0].as_subclass(torch.Tensor), torch.tensor([20., 60, 30, 90]), atol=1e-3, rtol=0)
    assert found(im).tolist() == [20, 60, 30, 90]

@pytest.mark.parametrize('degrees', [-45, -3, 0, 1, 3, 30, 90])
def test_grown_box_matches_v2_and_pixels(degrees):
    box = [80, 90, 150, 120]
    im, t = sample([box], 224, 224)
    im, t = v2.RandomRotation((degrees, degrees), interpolation=v2.InterpolationMode.BILINEAR)(im, t)
    ours = enclose(rotate_corners([box], degrees, 224, 224))
    torch.testing.assert_close(ours, t['boxes'].as_subclass(torch.Tensor), atol=1e-3, rtol=0)
    torch.testing.assert_close(found(im), ours[0], atol=1., rtol=0)
    a = math.radians(abs(degrees))
    torch.testing.assert_close(ours[0, 2:] - ours[0, :2], torch.tensor([70*math.cos(a) + 30*math.sin(a), 70*math.sin(a) + 30*math.cos(a)]))

def test_points_turn_in_any_precision_and_place():
    "The matrix was float32 on the CPU, whatever the points were; made like whole numbers, it would be rounded to 0 and 1"
    right = [math.cos(.1), -math.sin(.1)]
    for dtype, eps in (torch.float64, 1e-14), (torch.float32, 1e-6), (torch.int64, 1e-6):
        assert turn_points(torch.tensor([1, 0], dtype=dtype), math.degrees(.1)).tolist() == pytest.approx(right, abs=eps)
    assert rotate_corners(torch.zeros(2, 4, device='meta'), 3, 9, 9).device.type == 'meta'

def test_rotation_fraction_and_limit():
    "About half of the pictures are rotated, none by more than three degrees"
    tfms, n = train_tfms(112), 0
    for seed in range(200):
        torch.manual_seed(seed)
        _, t = tfms(*sample([[80, 55, 120, 95]], 150, 200))
        w, h = (t['boxes'][0, 2:] - t['boxes'][0, :2]).tolist()
        w0, h0, a = 40*.56, 40*112/150, math.radians(3)
        n += w > w0 + 1e-3
        assert w <= w0*math.cos(a) + h0*math.sin(a) + 1e-3 and h <= h0*math.cos(a) + w0*math.sin(a) + 1e-3
    assert 70 < n < 130

def test_the_corners_of_a_turned_picture_are_zero_after_normalization():
    "The light changed the fill as well, up to .11"
    n = 0
    for seed in range(60):
        torch.manual_seed(seed)
        im, t = train_tfms(112)(*sample([[80, 55, 120, 95]], 150, 200))
        if t['boxes'][0, 2] - t['boxes'][0, 0] < 40*.56 + .6: continue # not turned, or by less than about a degree
        n += 1
        assert normalize(im[:, [0, 0, -1, -1], [0, -1, 0, -1]][:, None]/255).abs().max() < .01
    assert n > 15

def test_tidy_cuts_drops_and_keeps_labels():
    im, t = sample([], 100, 100)
    t = dict(boxes=tv_tensors.BoundingBoxes(torch.tensor([[-20., 10, 30, 40], [99, 10, 130, 40], [50, 50, 60, 60], [5, 5, 5, 9], [120, 5, 130, 9], [0, 0, 100.0001, 100]]),
             format='XYXY', canvas_size=(100, 100)), labels=torch.arange(6))
    _, t = tidy_boxes()(im, t)
    assert t['boxes'].tolist() == [[0, 10, 30, 40], [50, 50, 60, 60], [0, 0, 100, 100]] and t['labels'].tolist() == [0, 2, 5]

def test_object_pushed_out_is_dropped_with_its_label():
    "A crop that holds one of two objects keeps its label only"
    im, t = sample([[10, 10, 40, 40], [150, 100, 190, 140]], labels=torch.tensor([3, 4]))
    seen = set()
    for seed in range(40):
        torch.manual_seed(seed)
        _, o = v2.Compose([CropNearObjects(), tidy_boxes()])(im, t)
        seen.add(tuple(o['labels'].tolist()))
    assert seen == {(3,), (4,), (3, 4)}

@settings(max_examples=80, deadline=None)
@given(targets(), st.integers(0, 2**31))
def test_crop_keeps_its_promises(target, seed):
    boxes, h, w = target
    im, t = sample(boxes, h, w)
    torch.manual_seed(seed)
    crop = CropNearObjects(sampler_options=[.3])
    if not boxes: assert crop.make_params([im, t['boxes']]) == {}; return
    d = CropNearObjects(sampler_options=[.3, 1.]).make_params([im, t['boxes']])
    if not d: return
    c = torch.tensor([[d['left'], d['top'], d['left'] + d['width'], d['top'] + d['height']]]).float()
    b = t['boxes'].as_subclass(torch.Tensor)
    center = (b[:, :2] + b[:, 2:])/2
    inside = ((c[:, :2] < center) & (center < c[:, 2:])).all(1)
    assert torch.equal(inside, d['is_within_crop_area']) and box_iou(c, b)[0, inside].max() >= .3
    assert .5 <= d['width']/d['height'] <= 2 and 0 <= d['left'] and d['left'] + d['width'] <= w and d['top'] + d['height'] <= h
    assert d['width'] >= int(.3*w) and d['height'] >= int(.3*h)

def test_crop_draws_like_torchvision():
    "Same rules, same spread: the means of three hundred crops of each agree"
    im, t = sample([[30, 30, 90, 110], [120, 60, 170, 140]])
    def mean(crop):
        torch.manual_seed(0)
        p = [crop.make_params([im, t["boxes"]]) for _ in range(300)]
        return torch.tensor([[d.get('left', 0)/200, d.get('top', 0)/150, d.get('width', 200)/200, d.get('height', 150)/150] for d in p]).mean(0)
    torch.testing.assert_close(mean(CropNearObjects()), mean(v2.RandomIoUCrop()), atol=.05, rtol=0)

def test_lighting_by_hand_and_its_limits():
    two = tv_tensors.Image(torch.tensor([40, 160], dtype=torch.uint8).expand(3, 1, 2))
    assert RandomLighting().transform(two, dict(add=26., stretch=1.5))[0].tolist() == [[36, 216]]
    for seed in range(30):
        torch.manual_seed(seed)
        p = RandomLighting(.1, .2).make_params([])
        assert abs(p['add']) <= 25.5 and .8 <= p['stretch'] <= 1.2
    im, t = RandomLighting()(*sample([[5, 5, 9, 9]]))
    assert t['boxes'].tolist() == [[5, 5, 9, 9]]
    with pytest.raises(TypeError, match='expected uint8'): RandomLighting()(tv_tensors.Image(torch.zeros(3, 4, 4)))
