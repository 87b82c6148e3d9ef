"Own data: training in one call, interrupted and not; what is refused before any work; the split by group"
import warnings
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
import numpy as np, pytest, torch
from objdet.detector import Detector, load_detector
from objdet.learner import Learner
from objdet.pascal_data import Annotations, load_splits
from objdet.sample import make_sample
from objdet.single_obj import create_body
from objdet.your_data import split_by_group, train_detector

own = dict(body='symbols', weights='DEFAULT', size=64, bs=8)


@pytest.fixture(scope='module')
def splits(tmp_path_factory):
    return load_splits(make_sample(tmp_path_factory.mktemp('data')/'small', 24, 8, workers=1))


def train(trn, val, **kw):
    with redirect_stdout(StringIO()), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return train_detector(trn, val, **{**own, 'epochs': 3, **kw})


@pytest.fixture(scope='module')
def trained(splits, tmp_path_factory):
    return train(*splits, checkpoint=tmp_path_factory.mktemp('whole')/'c.pt')


def same(a, b): return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_the_detector_says_where_it_comes_from(splits, trained):
    "Notes that name the wrong data, or a detector left in training mode, would be found here."
    import objdet
    det, learn = trained
    notes = det.plan['notes']
    assert isinstance(det, Detector) and not det.training and det.classes == splits[0].classes and det.size == 64
    assert {k: notes[k] for k in ('objdet', 'data', 'pictures', 'validation', 'epochs', 'seed')} == dict(
        objdet=objdet.__version__, data='VOC2007', pictures=24, validation=8, epochs=3, seed=42)
    assert 0 <= notes['map'] <= 1 and 0 < notes['recall'] <= 1 and list(notes['ap']) == det.classes
    there = {det.classes[l] for r in splits[1] for l in r.labels[~r.difficult]}
    assert {c for c, o in notes['ap'].items() if o is not None} == there
    assert [h['epoch'] for h in learn.history] == [1, 2, 3] and len(learn.losses) == 9


def test_detector_and_learner_are_one_network(splits, trained):
    "A head that was trained and another that was packed would differ; so would body layers out of order."
    det, learn = trained
    early = create_body('symbols', 'DEFAULT').groups()[0].eval().to(learn.device)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(learn.device)
    with torch.no_grad(): whole, halves = det(x), learn.model.eval()(early(x))
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(whole, halves))


def test_interrupted_after_one_epoch_it_ends_with_the_very_same_weights(splits, trained, tmp_path, monkeypatch):
    "Any state of chance, of the optimizer or of the schedule that the checkpoint lacks would move the weights."
    file, epochs, log = tmp_path/'c.pt', [], Learner._log
    def stop(self, *args):
        epochs.append(1)
        if len(epochs) == 2: raise KeyboardInterrupt
        return log(self, *args)
    monkeypatch.setattr(Learner, '_log', stop)
    with pytest.raises(KeyboardInterrupt): train(*splits, checkpoint=file)
    monkeypatch.undo()
    torch.rand(3); np.random.rand(3)
    det, learn = train(*splits, checkpoint=file)
    assert same(det, trained[0]) and learn.losses == trained[1].losses and det.plan == trained[0].plan
    with pytest.raises(ValueError, match='c.pt: a checkpoint of a training with other pictures'): train(*splits, checkpoint=file, seed=1)
    other = Annotations(splits[0].records[1:], splits[0].classes, [])
    with pytest.raises(ValueError, match='c.pt: a checkpoint of a training with other pictures'): train(other, splits[1], checkpoint=file)
    with pytest.raises(ValueError, match='c.pt: a checkpoint of another training .epochs 3, now 2'): train(*splits, checkpoint=file, epochs=2)


def test_the_same_seed_gives_the_same_detector_and_another_another(splits):
    "Unseeded weights, order or mirroring; a seed that is not used."
    a, b, c = (train(*splits, epochs=1, seed=s)[0] for s in (7, 7, 8))
    assert same(a, b) and not same(a, c)


def test_random_weights_are_of_the_seed_too(splits, monkeypatch):
    "They were drawn before the seed was set: another body in each process, which could not go on from its own checkpoint"
    marks = []
    def stop(file, mark): marks.append(mark); raise KeyboardInterrupt
    monkeypatch.setattr('objdet.your_data._check_checkpoint', stop)
    for other, seed in ((1, 42), (2, 42), (2, 43)):
        torch.manual_seed(other)
        with pytest.raises(KeyboardInterrupt): train(*splits, weights='none', seed=seed)
    assert torch.equal(marks[0], marks[1]) and not torch.equal(marks[0], marks[2])


def test_it_fits_in_a_file(trained, tmp_path):
    "Notes with NumPy numbers could be saved and not read back with `weights_only`."
    trained[0].save(tmp_path/'d.pt')
    again = load_detector(tmp_path/'d.pt')
    assert again.plan == trained[0].plan
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(): assert torch.allclose(again(x)[0].sigmoid(), trained[0](x.to(trained[1].device))[0].sigmoid().cpu(), atol=1e-2)


def without_objects(a): return Annotations([replace(r, boxes=np.zeros((0, 4), np.float32), labels=np.zeros(0, np.int64), difficult=np.zeros(0, bool)) for r in a], a.classes, [])
def all_difficult(a): return Annotations([replace(r, difficult=np.ones(len(r.labels), bool)) for r in a], a.classes, [])
def specks(a): return Annotations([replace(r, boxes=np.concatenate([r.boxes[:, :2], r.boxes[:, :2] + .5], 1)) for r in a], a.classes, [])
def none(a): return Annotations([], a.classes, [])
def renamed(a): return Annotations(a.records, [*a.classes[:-1], 'zebra'], [])
def reordered(a): return Annotations(a.records, a.classes[::-1], [])
def high_label(a): return Annotations([replace(a[0], boxes=np.array([[0, 0, 9, 9]], np.float32), labels=np.array([99]), difficult=np.zeros(1, bool)), *a.records[1:]], a.classes, [])
def as_they_are(a): return a


@pytest.mark.parametrize('kind, change_trn, change_val, more, words', [
    (ValueError, without_objects, as_they_are, {}, r'no objects to learn in the 24 pictures of trn \(0 marked difficult\)'),
    (ValueError, all_difficult, as_they_are, {}, r'no objects to learn in the 24 pictures of trn \([1-9]\d* marked difficult\)'),
    (ValueError, none, as_they_are, {}, 'trn has 0 pictures; expected two at least'),
    (ValueError, as_they_are, none, {}, 'val has 0 pictures; expected one at least'),
    (ValueError, as_they_are, renamed, {}, "val has the class 'zebra'; expected one of trn: anchor"),
    (ValueError, as_they_are, reordered, {}, 'expected those of trn in the same order'),
    (ValueError, high_label, as_they_are, {}, r'000001.jpg: labels \[99\]; expected 0 to \d+'),
    (ValueError, specks, as_they_are, {}, r'no anchor reaches any object.*pixels of a square of 64.*try a larger size'),
    (TypeError, list, as_they_are, {}, 'trn is a list; expected Annotations'),
    (ValueError, as_they_are, as_they_are, dict(size=100), 'size is 100; expected a multiple of 16.*such as 96'),
    (ValueError, as_they_are, as_they_are, dict(size=0), 'size is 0; expected a multiple of 16'),
    (ValueError, as_they_are, as_they_are, dict(epochs=0), 'epochs is 0; expected a whole number from 1 up'),
    (ValueError, as_they_are, as_they_are, dict(bs=1), 'bs is 1; expected a whole number from 2 up'),
    (ValueError, as_they_are, as_they_are, dict(epochs=2.), 'epochs is 2.0; expected a whole number from 1 up'),
    (ValueError, as_they_are, as_they_are, dict(epochs='3'), "epochs is '3'; expected a whole number from 1 up"),
    (ValueError, as_they_are, as_they_are, dict(bs=8.), 'bs is 8.0; expected a whole number from 2 up'),
    (ValueError, as_they_are, as_they_are, dict(size=64.), 'size is 64.0; expected a whole number'),
    (ValueError, as_they_are, as_they_are, dict(seed=1.5), 'seed is 1.5; expected a whole number'),
    (ValueError, as_they_are, as_they_are, dict(lr=(1e-3,)), r'lr is \(0.001,\); expected a rate above 0'),
    (ValueError, as_they_are, as_they_are, dict(lr=0), 'lr is 0; expected a rate above 0'),
    (ValueError, as_they_are, as_they_are, dict(lr=(1e-3, '1e-2')), 'lr is .*; expected a rate above 0'),
    (ValueError, as_they_are, as_they_are, dict(body='resnet0'), "unknown body 'resnet0'"),
])
def test_refused_before_any_work(splits, monkeypatch, kind, change_trn, change_val, more, words):
    "Pitfall 15 and its kin: without the refusal, hours of training for nothing. No picture may be opened before it."
    def work(*args, **kw): raise AssertionError('pictures are read')
    monkeypatch.setattr('objdet.your_data.kept_loaders', work)
    with pytest.raises(kind, match=words): train(change_trn(splits[0]), change_val(splits[1]), **more)


def test_anchors_that_reach_little_are_a_warning(splits, monkeypatch):
    "Pitfall 15: zero loss, zero mAP, and no message why."
    class Stop(Exception): pass
    def work(*args, **kw): raise Stop
    monkeypatch.setattr('objdet.your_data.kept_loaders', work)
    small = Annotations([replace(r, boxes=np.concatenate([r.boxes[:, :2], r.boxes[:, :2] + 12], 1)) for r in splits[0]], splits[0].classes, [])
    with pytest.warns(UserWarning, match=r'only \d+% of the objects by half: the middle object is .* larger size'), pytest.raises(Stop):
        train_detector(small, splits[1], **own)


def test_whole_numbers_of_numpy_and_one_rate_for_both_are_taken(splits, monkeypatch):
    "They reach the training as Python's numbers: a checkpoint with others could not be read again"
    class Stop(Exception): pass
    def fit(self, *args, **kw): raise Stop(args)
    monkeypatch.setattr(Learner, 'fit_one_cycle', fit)
    with pytest.raises(Stop) as e: train(*splits, epochs=np.int64(2), size=np.int32(64), bs=np.int64(8), seed=np.int64(3), lr=np.float32(.5))
    assert repr(e.value.args[0]) == '(2, [0.5, 0.5])'


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA')
def test_a_second_training_with_the_body_that_the_first_left_on_the_gpu(splits):
    "Its early half was asked about pictures on the CPU"
    body = create_body('symbols', 'DEFAULT')
    for _ in range(2):
        det, _ = train(*splits, body=body, epochs=1)
        assert {p.device.type for p in det.parameters()} == {'cuda'} and len(det.predict(splits[1][0].file)) == 1


def test_what_is_no_checkpoint_is_refused(splits, tmp_path):
    "A training must not go on from, or write over, a file that is something else."
    torch.save({'x': torch.ones(1)}, tmp_path/'x.pt')
    with pytest.raises(ValueError, match='x.pt: not a checkpoint'): train(*splits, checkpoint=tmp_path/'x.pt')
    assert list(torch.load(tmp_path/'x.pt', weights_only=True)) == ['x']


def test_split_by_group_keeps_scenes_together(splits):
    "A picture on both sides or on none, a scene torn apart, two splits of one seed that differ."
    a = splits[0]
    trn, val = split_by_group(a)
    names = [[r.file.name for r in o] for o in (trn, val)]
    assert sorted(sum(names, [])) == sorted(r.file.name for r in a) and all(names)
    assert not {r.group for r in trn} & {r.group for r in val} and trn.classes == val.classes == a.classes
    assert names == [[r.file.name for r in o] for o in split_by_group(a)] != [[r.file.name for r in o] for o in split_by_group(a, seed=1)]
    plain = Annotations([replace(r, group='') for r in a], a.classes, [])
    assert [len(o) for o in split_by_group(plain, held_out=.25)] == [18, 6]
    assert [len(o) for o in split_by_group(plain, held_out=.99)] == [1, 23]
    with pytest.raises(ValueError, match='1 group of 24 pictures'): split_by_group(a, lambda r: 'one')
