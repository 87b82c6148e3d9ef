"Seventeen ways in which detectors go wrong, a test each: ours is free of it, and with the bug put back the same check fails"
import inspect, re, warnings
from pathlib import Path
import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt, numpy as np, pytest, torch, torchvision
from PIL import Image
from torch.nn import functional as F
from torchvision import tv_tensors
from objdet import focal_nms, pascal_data
from objdet.anchors_matching import (anchor_recall, create_anchors, default_grids, default_shapes, default_zooms, jaccard,
                                     map_to_ground_truth, match_anchors, suggest_anchors)
from objdet.bbox_aug import ssd_tfms, tidy_boxes, train_tfms
from objdet.focal_nms import FocalLoss, detect, nms
from objdet.one_bug import Edit, perfect_activations, unmatched
from objdet.pascal_data import (DetectionDataset, Annotations, Record, cxcywh_to_xyxy, pad_batch, read_voc_xml, squash,
                                voc_to_xyxy, xyxy_to_cxcywh, xyxy_to_voc)
from objdet.score import _match_voc, average_precision, mean_ap
from objdet.show import show_boxes
from objdet.ssd_loss import _Total, BCELoss, HardNegativeLoss, SSDLoss, SSDMultiHead, SoftmaxLoss, actn_to_bb, flatten_conv, set_background_bias

C, SIZE = 3, 100
anchors, grid_sizes = create_anchors(default_grids, default_zooms, default_shapes)
A = len(anchors)
nothing = torch.zeros(1, 0, 4), torch.zeros(1, 0, dtype=torch.int64)


def caught(check, *bugs, error=AssertionError):
    "`check` passes; with each of the bugs, (function, old text, new text), in the code it fails"
    check()
    for bug in bugs:
        with Edit(*bug), pytest.raises(error): check()


def silent(b=1, k=A, c=C): return torch.zeros(b, k, c + 1), torch.zeros(b, k, 4)
def ssd_loss(**kw): return SSDLoss(anchors, grid_sizes, SIZE, C, **kw)
def item(boxes, w=64, h=48):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return tv_tensors.Image(torch.zeros(3, h, w, dtype=torch.uint8)), dict(boxes=tv_tensors.BoundingBoxes(boxes, format='XYXY', canvas_size=(h, w)), labels=torch.arange(len(boxes)))


def test_pitfall_01_two_objects_share_their_best_anchor():
    boxes = torch.tensor([[.30, .30, .70, .70], [.28, .30, .70, .72], [.31, .31, .69, .69]])
    overlaps = jaccard(boxes, cxcywh_to_xyxy(anchors))
    assert len(overlaps.argmax(1).unique()) < 3 # they do share it
    def one_by_one():
        overlap, index = map_to_ground_truth(overlaps)
        assert sorted(index[overlap > 1].tolist()) == [0, 1, 2]
    def in_a_batch():
        labels = torch.tensor([[0, 1, 2]])
        m = match_anchors(anchors, boxes[None], labels)
        assert not unmatched(m, labels).any() and sorted(m.index[m.overlap > 1].tolist()) == [0, 1, 2]
    caught(one_by_one, (map_to_ground_truth, 'free[obj] = free[:, anchor] = -1', 'free[obj] = -1'))
    caught(in_a_batch, (match_anchors, '_own_anchors(overlaps, pic, b)', 'overlaps.argmax(1)'))


def test_pitfall_02_a_picture_with_no_object():
    def all_background():
        for items in [item([])], [item([]), item([])]:
            x, targ = pad_batch(items)
            preds = [p.requires_grad_() for p in silent(len(items))]
            loss = ssd_loss()(preds, targ)
            loss.backward()
            assert torch.isclose(loss, torch.tensor(len(items)*A*C*np.log(2)).float()) # each of the answers is a no at one half
            assert (preds[0].grad[..., :-1] > 0).all() and not preds[1].grad.any()
    def among_others():
        x, (boxes, labels) = pad_batch([item([]), item([[4, 4, 40, 40]])])
        assert labels.tolist() == [[-1], [0]] and torch.isfinite(ssd_loss()(silent(2), (boxes, labels)))
        assert not match_anchors(anchors, boxes/SIZE, labels).positive[0].any()
    caught(all_background, (match_anchors, 'if not len(pic)', 'if False'), error=(AssertionError, IndexError, RuntimeError))
    caught(among_others, (match_anchors, 'overlap > thresh', 'overlap >= 0'), error=(AssertionError, RuntimeError))
    assert mean_ap([dict(boxes=[], scores=[], labels=[])]*2, [dict(boxes=[], labels=[]), dict(boxes=[[0, 0, 1, 1]], labels=[0])]).map == 0


def test_pitfall_03_nothing_matches():
    tiny = torch.tensor([[[50., 50, 51, 51]]]), torch.tensor([[1]])
    assert jaccard(tiny[0]/SIZE, cxcywh_to_xyxy(anchors)).max() < .4 # no anchor is above the threshold
    def finite():
        for kind in None, FocalLoss(C), HardNegativeLoss(C): assert torch.isfinite(ssd_loss(clas_loss=kind)(silent(), nothing))
    def learned():
        preds = [p.requires_grad_() for p in silent()]
        ssd_loss()(preds, tiny).backward()
        assert preds[1].grad.any() and (preds[0].grad[..., 1] < 0).sum() == 1 # one anchor learns its box and its class
    caught(finite, (SSDLoss.parts, 'max(len(tbox), 1)', 'len(tbox)'))
    caught(learned, (match_anchors, '= 1.99', '= 0.'))


def test_pitfall_04_nothing_is_detected():
    def one_value():
        for n in 0, 1, 3:
            keep = nms(torch.tensor([[0., 0, 1, 1]])*torch.arange(1, n + 1)[:, None], torch.rand(n))
            assert torch.is_tensor(keep) and keep.dtype == torch.int64 and keep.dim() == 1 and len(keep) >= min(n, 1)
    def empty_lists():
        d, = detect(silent(), anchors, grid_sizes, SIZE, thresh=.9)
        assert [tuple(d[k].shape) for k in ('boxes', 'scores', 'labels')] == [(0, 4), (0,), (0,)]
        ax = show_boxes(np.zeros((8, 8, 3), np.uint8), d['boxes'], d['labels'], d['scores'], ['a', 'b', 'c'])
        assert not ax.patches and not ax.texts
        plt.close(ax.figure)
    caught(one_value, (nms, 'order = scores', 'if not len(scores): return scores, 0\n    order = scores'))
    caught(empty_lists, (focal_nms._detect_1, 'labels=label[keep])', 'labels=label[keep]) if len(keep) else {}'), error=KeyError)


def test_pitfall_05_off_by_one(tmp_path):
    numbers = ''.join(f'<{k}>{v}</{k}>' for k, v in dict(xmin=156, ymin=97, xmax=351, ymax=270).items())
    file = tmp_path/'000012.xml'
    file.write_text(f'<annotation><size><width>500</width><height>333</height></size><object><name>car</name><bndbox>{numbers}</bndbox></object></annotation>')
    def columns_156_to_351():
        box = read_voc_xml(file, ['car']).boxes[0]
        assert (box[2:] - box[:2]).tolist() == [196, 174] # 156 … 351, both included
        assert box.tolist() == [155, 96, 351, 270] and xyxy_to_voc(box).tolist() == [156, 97, 351, 270]
    caught(columns_156_to_351, (voc_to_xyxy, '[1., 1, 0, 0]', '[1., 1, 1, 1]'), (voc_to_xyxy, '[1., 1, 0, 0]', '[0., 0, 0, 0]'))


def painted(box, w, h):
    im, target = item([box], w, h)
    x1, y1, x2, y2 = box
    im[0, y1:y2, x1:x2] = 255
    return im, target


def red(im):
    "The box of the pixels that are mostly red"
    amount = im[0].float() - im[2].float()
    y, x = (amount > amount.max()/2).nonzero().T
    return torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]).float()


def test_pitfall_06_augmentation_moves_the_box_with_the_picture(tmp_path):
    def follows():
        for make in train_tfms, ssd_tfms:
            for seed in range(25):
                torch.manual_seed(seed)
                im, t = make(96)(*painted([6, 60, 90, 138], 200, 150))
                boxes = t['boxes'].as_subclass(torch.Tensor)
                assert (boxes >= 0).all() and (boxes <= 96).all() and (boxes[:, 2:] - boxes[:, :2] > 0).all()
                if len(boxes): torch.testing.assert_close(red(im), boxes[0], atol=3, rtol=0)
    caught(follows, (train_tfms, 'squash(size), R', 'squash(size), (lambda im, t: (im.flip(-1), t)), R'), # the picture alone is mirrored
           (ssd_tfms, 'squash(size), v2', 'squash(size), (lambda im, t: (im.flip(-1), t)), v2'))
    def tidy():
        im, t = item([[-9, 5, 30, 20], [70, 5, 90, 20], [10, 10, 10.5, 30]])
        assert tidy_boxes()(im, t)[1]['boxes'].tolist() == [[0, 5, 30, 20]] # cut; outside; without area
    caught(tidy, (tidy_boxes, 'v2.ClampBoundingBoxes(), ', ''), (tidy_boxes, ', v2.SanitizeBoundingBoxes(min_size=min_size)', ''))
    Image.new('RGB', (200, 150)).save(tmp_path/'a.png')
    r = Record(tmp_path/'a.png', 0, 200, 150, np.array([[20, 30, 70, 90]], np.float32), np.array([0]), np.array([False]))
    def typed(): assert DetectionDataset(Annotations([r], ['a'], []), squash(100))[0][1]['boxes'].tolist() == [[10, 20, 35, 60]]
    caught(typed, (DetectionDataset.__getitem__, "tv_tensors.BoundingBoxes(torch.as_tensor(r.boxes[keep]), format='XYXY', canvas_size=(r.height, r.width))",
                   'torch.as_tensor(r.boxes[keep])')) # a plain tensor stays where it was


def test_pitfall_07_swapped_corners_and_boxes_without_area_are_named():
    def refused():
        for box in [9, 2, 5, 8], [2, 8, 9, 5], [5, 2, 5, 8], [2, 2, float('nan'), 8]:
            try: pascal_data.check_boxes([[0, 0, 1, 1], box], 20, 20, 'VOC/000007.xml')
            except ValueError as e: assert 'VOC/000007.xml: object 2' in str(e) and f'x1={box[0]:g}' in str(e)
            else: raise AssertionError(f'{box} was accepted')
    caught(refused, (pascal_data._box_problem, 'if not (x1 < x2 and y1 < y2)', 'if False'))
    with pytest.raises(ValueError, match=r'targets\[0\].*corners swapped'): mean_ap([dict(boxes=[], scores=[], labels=[])], [dict(boxes=[[9, 2, 5, 8]], labels=[0])])


def test_pitfall_08_sizes_are_decoded_from_the_last_two_activations():
    def centers_leave_sizes_alone():
        actn = torch.zeros(A, 4)
        actn[:, :2] = 1.
        got = xyxy_to_cxcywh(actn_to_bb(actn, anchors, grid_sizes))
        assert torch.allclose(got[:, 2:], anchors[:, 2:], atol=1e-6) and (got[:, :2] > anchors[:, :2]).all()
    def sizes_leave_centers_alone():
        actn = torch.zeros(A, 4)
        actn[:, 2:] = 1.
        got = xyxy_to_cxcywh(actn_to_bb(actn, anchors, grid_sizes))
        assert torch.allclose(got[:, :2], anchors[:, :2], atol=1e-6) and (got[:, 2:] > anchors[:, 2:]).all()
    for check in centers_leave_sizes_alone, sizes_leave_centers_alone: caught(check, (actn_to_bb, 't[..., 2:]', 't[..., :2]'))


def test_pitfall_09_alpha_is_the_weight_of_a_yes_and_the_loss_does_not_grow_with_the_batch():
    def torchvision_s():
        p, t = torch.linspace(-3, 3, 24).view(6, 4), torch.tensor([0, 1, 2, 3, 3, 3])
        want = torchvision.ops.sigmoid_focal_loss(p[:, :-1], F.one_hot(t, 4)[:, :-1].float(), .25, 2., 'sum')
        assert torch.isclose(FocalLoss(C)(p, t), want)
    caught(torchvision_s, (FocalLoss.get_weight, 'self.alpha*t + (1 - self.alpha)*(1 - t)', 'self.alpha*(1 - t) + (1 - self.alpha)*t'))
    targ = torch.tensor([[[10., 10, 60, 60], [30, 50, 90, 90]]]), torch.tensor([[0, 2]])
    def per_positive():
        one, two = (ssd_loss(clas_loss=FocalLoss(C))(silent(n), [torch.cat([o]*n) for o in targ]) for n in (1, 2))
        assert torch.isclose(one, two)
    caught(per_positive, (SSDLoss.parts, 'self.clas_loss(clas, tclas)/n', 'self.clas_loss(clas, tclas)'), (SSDLoss.parts, 'self.box_loss(guess, tbox).sum()/n', 'self.box_loss(guess, tbox).sum()'))


def test_pitfall_10_suppression_is_within_a_class_and_each_class_has_its_own_threshold():
    at = create_anchors([1])
    clas = torch.tensor([[[.9, .6, .2, .99]]]).logit() # one anchor, three classes, background
    def both_classes():
        d, = detect((clas, torch.zeros(1, 1, 4)), *at, SIZE, thresh=.5)
        assert d['labels'].tolist() == [0, 1] and torch.allclose(d['scores'], torch.tensor([.9, .6]))
    caught(both_classes, (focal_nms._detect_1, 'batched_nms(boxes, score, label, overlap)', 'nms(boxes, score, overlap)'),
           (detect, '(scores > thresh).nonzero', '((scores > thresh) & (scores == scores.amax(-1, keepdim=True))).nonzero'))


def test_pitfall_11_difficult_objects_formulas_and_thresholds():
    boxes = [[0., 0, 4, 4], [10., 10, 18, 18], [30., 30, 39, 39]]
    def neither_hit_nor_miss():
        pred = dict(boxes=boxes[:2], scores=[.9, .8], labels=[0, 0])
        for difficult, want in ([True, False, False], 6/11), ([False, False, True], 1.), ([True, True, True], None):
            got = mean_ap([pred], [dict(boxes=boxes, labels=[0]*3, difficult=difficult)])
            assert got.n_positives.sum() == 3 - sum(difficult)
            assert np.isnan(got.map) if want is None else got.map == pytest.approx(want)
    caught(neither_hit_nor_miss, (_match_voc, 'struck[d[hard]] = True', 'pass'))
    def formulas():
        curve = [.5], [1.]
        assert [round(average_precision(*curve, m), 4) for m in ('11point', 'area', '101point')] == [.5455, .5, .505]
    caught(formulas, (average_precision, "if method == 'area'", "if method != '101point'"))
    def curve_is_whole():
        assert inspect.signature(detect).parameters['thresh'].default <= .01
        clas = torch.full((1, A, C + 1), -9.)
        clas[0, 0, 0], clas[0, -1, 0] = 2., -3. # the second scores 0.05
        assert detect((clas, torch.zeros(1, A, 4)), anchors, grid_sizes, SIZE)[0]['labels'].tolist() == [0, 0]
    caught(curve_is_whole, (detect, 'scores > thresh', 'scores > .5'))


def test_pitfall_12_sizes_go_from_half_to_one_and_a_half():
    def bounds():
        for actn, want in (20., 1.5), (-20., .5), (0., 1.):
            got = xyxy_to_cxcywh(actn_to_bb(torch.full((A, 4), actn), anchors, grid_sizes))
            assert torch.allclose(got[:, 2:]/anchors[:, 2:], torch.tensor(want), atol=1e-4)
            assert torch.allclose((got[:, :2] - anchors[:, :2]).abs(), grid_sizes/2*(actn != 0), atol=1e-4)
    caught(bounds, (actn_to_bb, 't[..., 2:]/2 + 1', 't[..., 2:] + 1'))
    assert '0.5 to 1.5' in actn_to_bb.__doc__ and 'half a cell' in actn_to_bb.__doc__


def test_pitfall_13_targets_are_scaled_once():
    def twice_the_same():
        loss, targ = ssd_loss(), (torch.tensor([[[10., 10, 60, 60]]]), torch.tensor([[0]]))
        perfect = perfect_activations(loss, targ, 30.)
        assert loss(perfect, targ) < .01 and loss(perfect, targ) < .01 and targ[0].tolist() == [[[10, 10, 60, 60]]]
    caught(twice_the_same, (SSDLoss.parts, 'boxes/self.size', 'boxes.div_(self.size)'), (SSDLoss.parts, 'boxes/self.size', 'boxes/self.size/self.size'))
    r = Record(Path('a.jpg'), 0, 200, 100, np.array([[20, 10, 60, 50]], np.float32), np.array([0]), np.array([False]))
    ds = DetectionDataset(Annotations([r], ['a'], []))
    def truth():
        for _ in range(2): assert ds.targets(50)[0]['boxes'].tolist() == [[5, 5, 15, 25]]
    caught(truth, (DetectionDataset.targets, 'boxes=torch.as_tensor(r.boxes)*s', 'boxes=torch.as_tensor(r.boxes).mul_(s)'))


def test_pitfall_14_background_is_the_last_index():
    def never_reported():
        clas = torch.full((1, A, C + 1), -9.)
        clas[..., -1], clas[0, 0, 0] = 9., 3.
        d, = detect((clas, torch.zeros(1, A, 4)), anchors, grid_sizes, SIZE, thresh=.5)
        assert d['labels'].tolist() == [0]
    caught(never_reported, (detect, 'preds[0][..., :-1]', 'preds[0][..., 1:]'), (detect, 'preds[0][..., :-1]', 'preds[0]'))
    def never_learned():
        p = torch.zeros(5, C + 1, requires_grad=True)
        BCELoss(C)(p, torch.tensor([0, 1, 2, C, C])).backward()
        assert not p.grad[:, -1].any() and (p.grad[:, :-1] < 0).nonzero().tolist() == [[0, 0], [1, 1], [2, 2]]
    caught(never_learned, (_Total.forward, 'real[-1] = 0', 'real[0] = 0'))
    def never_billed():
        p = torch.tensor([[0.]*C + [9.]]*2, dtype=torch.float64)
        assert abs(BCELoss(C)(p, torch.tensor([1, C])) - 2*C*np.log(2)) < 1e-9 and (BCELoss(C).each(p, torch.tensor([1, C])) - C*np.log(2)).abs().max() < 1e-9
    caught(never_billed, (_Total.forward, 'real[-1] = 0', 'real[0] = 0'), (BCELoss.each, 'pred[..., :-1]', 'pred[..., 1:]'))
    head = set_background_bias(SSDMultiHead(4, C, k=2, nf=4), 7.)
    assert all(o.clas.bias.view(2, C + 1)[:, -1].tolist() == [7, 7] and (o.clas.bias == 7).sum() == 2 for o in head.outs)
    assert SSDMultiHead(4, C, k=2, nf=4).eval()(torch.zeros(1, 4, 7, 7))[0].shape[-1] == C + 1


def test_pitfall_15_no_anchor_fits_and_someone_says_so():
    tiny = torch.tensor([[.50, .50, .502, .503], [.1, .1, .102, .101]])
    assert anchor_recall(anchors, tiny) == 0 # seen before any training
    def said():
        with pytest.raises(ValueError, match=r'none of 84 shapes on grids \(4,\).*2 boxes'): suggest_anchors(tiny, (4,))
    caught(said, (suggest_anchors, 'if not shapes', 'if False'), error=pytest.fail.Exception)
    def finds_better_ones():
        small = torch.tensor([[i/20, j/20, i/20 + .05, j/20 + .05] for i in range(4) for j in range(5)])
        assert anchor_recall(anchors, small) == 0 and anchor_recall(create_anchors(*suggest_anchors(small, (20,), 1))[0], small) == 1
    finds_better_ones()
    lesson = (Path(__file__).parents[1]/'nbs/04_anchors_matching.ipynb').read_text(encoding='utf-8')
    assert lesson.count('anchor_recall(') > 2 # the reader measures it in the lesson before the training


def test_pitfall_16_rows_and_columns():
    def anchors_run_as_the_head_s_output():
        rows, cols = 2, 4
        at, cells = create_anchors([(rows, cols)], zooms=(1., 2.))
        y, x = torch.meshgrid((torch.arange(rows) + .5)/rows, (torch.arange(cols) + .5)/cols, indexing='ij')
        grid = torch.stack([x, y, x, y])[None] # two anchors a cell, each told where its cell is
        assert torch.allclose(flatten_conv(grid, 2)[0], at[:, :2]) and cells.tolist() == [[.25, .5]]*16
        assert torch.allclose(cxcywh_to_xyxy(at[0]), torch.tensor([0, 0, .25, .5]))
    caught(anchors_run_as_the_head_s_output, (create_anchors, '[cx, cy], -1', '[cy, cx], -1'), (create_anchors, '[1/cols, 1/rows]', '[1/rows, 1/cols]'),
           (flatten_conv, 'permute(0, 2, 3, 1)', 'permute(0, 3, 2, 1)'))
    def a_wide_picture():
        r = Record(Path('a.jpg'), 0, 200, 100, np.array([[20, 10, 60, 50]], np.float32), np.array([0]), np.array([False]))
        assert DetectionDataset(Annotations([r], ['a'], [])).targets(100)[0]['boxes'].tolist() == [[10, 10, 30, 50]]
    caught(a_wide_picture, (DetectionDataset.targets, '[size/r.width, size/r.height]', '[size/r.height, size/r.width]'))


gone = re.compile(r'F\.(sigmoid|tanh)\(|size_average|\breduce=|1 - \w*mask\b|\bVariable\(|torch\.load\((?!.*weights_only)|pretrained=|antialias=None')


def test_pitfall_17_nothing_that_pytorch_has_taken_back():
    def without_a_warning():
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            torch.manual_seed(0)
            x, targ = pad_batch([ssd_tfms(64)(*item([[4, 4, 40, 40]])), train_tfms(64)(*item([[9, 9, 30, 40]]))])
            head = SSDMultiHead(3, C, nf=4)
            preds = head(F.adaptive_avg_pool2d(x, 7))
            for kind in BCELoss(C), FocalLoss(C), HardNegativeLoss(C), HardNegativeLoss(C, clas_loss=SoftmaxLoss(C)):
                SSDLoss(anchors, grid_sizes, 64, C, kind)(preds, targ).backward(retain_graph=True)
            found = detect(preds, anchors, grid_sizes, 64)
            assert len(found) == 2 and all(p.grad is not None for p in head.parameters())
    caught(without_a_warning, (SoftmaxLoss.each, "reduction='none'", 'size_average=False, reduce=False'), error=UserWarning)
    for line in 'F.sigmoid(x)', 'size_average=False', 'loss*(1 - mask)', 'torch.load(file)', 'resnet34(pretrained=True)': assert gone.search(line)
    found = [f'{p.name}: {line.strip()}' for p in (Path(__file__).parents[1]/'objdet').glob('*.py') for line in p.read_text(encoding='utf-8').splitlines()
             if gone.search(line.partition('#')[0])]
    assert not found
