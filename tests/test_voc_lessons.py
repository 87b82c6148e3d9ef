"The command behind the figures of lessons 02 and 03 on VOC: views, splits, targets, report. Run: pytest tests/test_voc_lessons.py"
import json
from pathlib import Path
import numpy as np, pytest, torch, torchvision
from PIL import Image
from objdet.pascal_data import Annotations, Record
import voc_lessons as vl

@pytest.fixture
def ann(tmp_path):
    "A gray picture of 200 by 100 with one red object, inclusive of x 40 to 119 and y 20 to 69"
    im = np.full((100, 200, 3), 90, np.uint8)
    im[20:70, 40:120] = [250, 0, 0]
    Image.fromarray(im).save(tmp_path/'1.png')
    r = Record(tmp_path/'1.png', 1, 200, 100, np.float32([[40, 20, 120, 70]]), np.array([0]), np.array([False]), None)
    return Annotations([r], ['red'], [])

def red_box(im):
    y, x = ((im[0].float() - im[1].float()) > 100).nonzero().T
    return torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]).float()

def test_the_first_view_is_the_picture_squashed(ann):
    im, boxes, seen = vl.Views(ann, 0)[0]
    assert im.shape == (3, 224, 224) and seen.tolist() == [1]
    assert torch.allclose(boxes[0], torch.tensor([40*1.12, 20*2.24, 120*1.12, 70*2.24]))

def test_view_minus_one_is_the_mirror_image(ann):
    (im, _, _), (back, boxes, _) = vl.Views(ann, 0)[0], vl.Views(ann, -1)[0]
    assert torch.equal(back, im.flip(-1)) and torch.allclose(boxes[0], torch.tensor([224 - 120*1.12, 20*2.24, 224 - 40*1.12, 70*2.24]))

def test_the_box_moves_with_every_view_and_a_view_is_the_same_twice(ann):
    for view in range(25):
        ds = vl.Views(ann, view)
        (im, boxes, seen), (again, _, _) = ds[0], ds[0]
        assert torch.equal(im, again) and 0 < seen[0] <= 1
        assert torch.allclose(red_box(im), boxes[0], atol=2.5), view

def test_a_fifth_is_held_out_and_choosing_never_sees_it():
    inner = set(vl.split_inside(500)[0]) | set(vl.split_inside(500)[1])
    for seed in range(3):
        trn, val = vl.split(500, seed)
        assert len(val) == 100 and not set(trn) & set(val) and sorted(trn + val) == list(range(500))
        assert not inner & set(val)

@pytest.fixture
def cache(tmp_path):
    "Two pictures: a large object that is difficult beside a small one; one that the second view cuts to a tenth"
    torch.save(dict(labels=[torch.tensor([2, 1]), torch.tensor([0])], difficult=[torch.tensor([True, False]), torch.tensor([False])],
                    ids=['a', 'b'], classes=['x', 'y', 'z']), tmp_path/'truth.pt')
    boxes = [torch.tensor([[0., 0, 200, 200], [10, 10, 50, 50]]), torch.tensor([[0., 0, 100, 100]])]
    for v, cut in ((-1, 1.), (0, 1.), (1, .1)):
        torch.save(dict(feats=torch.full((2, 3, 4, 4), float(v)).half(), boxes=boxes, seen=[torch.ones(2), torch.tensor([cut])]), tmp_path/f'view{v}.pt')
    return tmp_path

def test_targets_leave_out_what_is_difficult_or_cut_away(cache):
    joint, multi = vl.Kept(cache, 2, True), vl.Kept(cache, 2, False)
    box, label, boxes, names = joint.target(0, 0)
    assert box.tolist() == [10, 10, 50, 50] and label == 1
    assert boxes[0, 0].tolist() == [10, 10, 50, 50] and names[0, 0] == 1 and (names >= 0).sum() == 1 # the difficult one teaches no cell
    assert joint.target(1, 1) is None and joint.target(0, 1) is not None
    assert [multi.target(v, i)[0].tolist() for v, i in ((0, 0), (0, 1), (1, 1))] == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]

def test_a_view_without_the_object_gives_way_to_the_whole_picture(cache):
    x, (boxes, labels, *_) = vl.Kept(cache, 2, True).batch([(1, 0), (1, 1)])
    assert x[:, 0, 0, 0].tolist() == [1, 0] and labels.tolist() == [1, 0]

def test_the_loss_asks_the_cell_over_the_center_to_be_heard():
    none = torch.zeros(1, 7, 7, 4), torch.full((1, 7, 7), -1)
    loss, y = vl.JointLoss(70, 1.), (torch.tensor([[0., 30, 40, 50]]), torch.tensor([0]), *none) # center 20, 40: column 2, row 4 of 7
    preds, shares = (torch.zeros(1, 6), torch.zeros(1, 6, 7, 7)), torch.full((1, 1, 7, 7), .25/48)
    here, there = shares.clone(), shares.clone()
    here[0, 0, 4, 2], there[0, 0, 2, 4] = .75, .75
    gap = loss(preds, y, there) - loss(preds, y, here)
    assert torch.allclose(gap, 5*torch.tensor(.75/(.25/48)).log(), atol=1e-4)

def test_the_names_loss_asks_the_cells_in_objects_for_their_own_name():
    "Cells in no object that cost something, or none in the batch giving nan"
    torch.manual_seed(0)
    preds, said, row = torch.randn(2, 3), torch.randn(2, 3, 2, 2), torch.tensor([[1., 0, 1], [0, 0, 0]])
    names = torch.tensor([[[2, -1], [0, -1]], [[-1, -1], [-1, -1]]])
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    by_hand = (bce(said[0, :, 0, 0], torch.tensor([0., 0, 1])) + bce(said[0, :, 1, 0], torch.tensor([1., 0, 0])))/2
    assert torch.allclose(vl.names_loss(preds, (row, names), said, 3.), bce(preds, row) + 3*by_hand)
    assert vl.names_loss(preds, (row, names*0 - 1), said, 3.) == bce(preds, row)

def test_the_answer_to_the_mirror_image_is_mirrored_back(cache):
    "Boxes averaged without turning one back would all be symmetric"
    class Left(torch.nn.Module): # sees which of the two it is from the activations, and answers right for both
        def forward(self, x):
            box = torch.tensor([[10., 10, 50, 50]]).repeat(len(x), 1)
            box = torch.where(x[:, :1, 0, 0] < 0, torch.stack([224 - box[:, 2], box[:, 1], 224 - box[:, 0], box[:, 3]], 1), box)
            return torch.cat([(box/224).logit(), torch.tensor([[0., 9, 0]]).repeat(len(x), 1)], 1), x
    row = vl.score(Left(), vl.Kept(cache, 2, True), [0], False)
    assert row['l1'] < 1e-3 and row['l1_both'] < 1e-3 and row['accuracy'] == row['accuracy_both'] == 1

@pytest.mark.parametrize('option', ['--every=-1', '--every=nan', '--ema=1.5', '--epochs=0'])
def test_a_setting_that_makes_no_sense_is_refused_before_anything_is_read(tmp_path, capsys, option):
    with pytest.raises(SystemExit): vl.main(['train', 'joint', '--weights', 'no.pth', '--cache', str(tmp_path/'no'), option])
    assert option.replace('=', ' ') in capsys.readouterr().err

def test_a_training_without_the_cells_has_a_name_of_its_own(weights, capsys):
    "It would go on from the state of the one with them, or overwrite its row"
    args = ['train', 'multi', '--epochs', '1', '--ema', '.9', '--views', '1', '--weights', str(weights/'w.pth'), '--cache', str(weights), '--threads', '1']
    for extra in [], ['--every', '0']: vl.main(args + extra)
    rows = [json.loads((weights/f'{k}_seed0.json').read_text()) for k in ('multi', 'multi_alone')]
    assert [(r['task'], r['every'], r['ema']) for r in rows] == [('multi', 2., .9), ('multi_alone', 0., .9)]
    assert rows[0]['accuracy'] != rows[1]['accuracy'] or rows[0]['macro_f1'] != rows[1]['macro_f1'] or \
        not all(torch.equal(*v) for v in zip(*(torch.load(weights/f'{k}_seed0.pt', weights_only=True)['model'].values() for k in ('multi', 'multi_alone'))))

def test_report_by_hand(tmp_path, capsys):
    for seed, acc in enumerate((.7, .8, .9)): (tmp_path/f'joint_seed{seed}.json').write_text(json.dumps(dict(task='joint', seed=seed, accuracy=acc, l1=18., accuracy_both=.5, l1_both=17.)))
    (tmp_path/'joint_choose9.json').write_text(json.dumps(dict(task='joint', seed=9, accuracy=0, l1=0)))
    vl.main(['report', '--cache', str(tmp_path)])
    out = capsys.readouterr().out
    assert '0.8000 ± 0.1000' in out and '18.0000 ± 0.0000' in out and 'multi' not in out
    for seed in (1, 2): (tmp_path/f'joint_seed{seed}.json').unlink()
    vl.main(['report', '--cache', str(tmp_path)])
    assert '0.7000 ± -' in capsys.readouterr().out

def test_a_report_of_nothing_leaves_the_table_alone(tmp_path):
    "A mistyped --cache emptied the table of the results"
    (tmp_path/'table.json').write_text('[1]')
    with pytest.raises(SystemExit, match='nowhere: no result'): vl.main(['report', '--cache', str(tmp_path/'nowhere'), '--out', str(tmp_path/'table.json')])
    assert (tmp_path/'table.json').read_text() == '[1]'

@pytest.fixture
def weights(tmp_path):
    "Random weights of `mobilenet_v2`, and kept views of 40 pictures"
    torch.manual_seed(0)
    torch.save(torchvision.models.mobilenet_v2(weights=None).features.state_dict(), tmp_path/'w.pth')
    n = 40
    torch.save(dict(labels=[torch.tensor([k % 3]) for k in range(n)], difficult=[torch.tensor([False])]*n, ids=[str(k) for k in range(n)], classes=list('abc')),
               tmp_path/'truth.pt')
    for v in (-1, 0):
        torch.save(dict(feats=torch.rand(n, 32, 28, 28).half(), boxes=[torch.tensor([[9., 9, 99, 150]])]*n, seen=[torch.ones(1)]*n), tmp_path/f'view{v}.pt')
    return tmp_path

def test_an_interrupted_training_ends_as_an_uninterrupted_one(weights, monkeypatch, capsys):
    "A forgotten random state or schedule changes the figures"
    args = ['train', 'joint', '--seed', '0', '--epochs', '2', '--views', '1', '--weights', str(weights/'w.pth'), '--cache', str(weights), '--threads', '1']
    def result(): return {k: v for k, v in json.loads((weights/'joint_seed0.json').read_text()).items() if k != 'seconds'}
    vl.main(args)
    want, kept = result(), torch.load(weights/'joint_seed0.pt', weights_only=True)['model']
    for f in ('joint_seed0.json', 'joint_seed0.pt'): (weights/f).unlink()
    with monkeypatch.context() as m:
        def stop(*_): raise KeyboardInterrupt
        m.setattr(vl, 'score', stop) # called when the first epoch has been saved
        with pytest.raises(KeyboardInterrupt): vl.main(args)
    assert not (weights/'joint_seed0.json').exists()
    vl.main(args)
    again = torch.load(weights/'joint_seed0.pt', weights_only=True)['model']
    assert result() == want and all(torch.equal(kept[k], again[k]) for k in kept)
    with pytest.raises(SystemExit, match="joint_seed0.pt: begun with .*'epochs': 2.*'epochs': 3"): vl.main([*args[:5], '3', *args[6:]])

def test_each_seed_of_choosing_is_a_training_of_its_own(weights, monkeypatch):
    "The second seed took the first one's figures, fewer views went on with more, other weights than the views' went unnoticed"
    monkeypatch.setattr(vl, 'split_inside', lambda n: (list(range(32)), [32]))
    def train(seed): vl.main(['train', 'joint', '--choose', '--seed', seed, '--views', '1', '--weights', str(weights/'w.pth'), '--cache', str(weights), '--threads', '1'])
    for seed in '01':
        torch.save(dict(recipe=dict(vl.RECIPE['joint'], views=14)), weights/f'joint_choose{seed}.pt')
        with pytest.raises(SystemExit, match=f"joint_choose{seed}.pt: begun with .*'views': 14.*'views': 1"): train(seed)
    torch.save(torch.load(weights/'truth.pt') | dict(early='another'), weights/'truth.pt')
    with pytest.raises(SystemExit, match='views of other weights than'): train('2')

def test_views_of_other_pictures_are_not_mixed(weights, ann, monkeypatch):
    monkeypatch.setattr(vl, 'load_annotations', lambda *a, **k: ann)
    with pytest.raises(SystemExit, match='holds views of other pictures'):
        vl.main(['prepare', '--data', 'x', '--weights', str(weights/'w.pth'), '--cache', str(weights), '--threads', '1'])
    torch.save(torch.load(weights/'truth.pt') | dict(ids=['1'], early='another'), weights/'truth.pt')
    with pytest.raises(SystemExit, match='holds views of other weights'):
        vl.main(['prepare', '--data', 'x', '--weights', str(weights/'w.pth'), '--cache', str(weights), '--threads', '1'])
