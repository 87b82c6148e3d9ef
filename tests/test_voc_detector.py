"The command behind the detector on VOC: views, training, score, on a handful of the embedded pictures. Run: pytest tests/test_voc_detector.py"
import json
import pytest, torch, torchvision
from objdet.detector import load_detector
from objdet.mean_ap import error_kinds
from objdet.pascal_data import load_annotations
from objdet.sample import make_sample
import voc_detector as vd

few = ['--epochs', '2', '--views', '2', '--bs', '4', '--k', '2', '--nf', '8', '--threads', '1']

@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "Six pictures to train on and three to score, random weights, and the early layers' answers"
    d = tmp_path_factory.mktemp('voc')
    make_sample(d/'set', 6, 3, workers=1)
    torch.manual_seed(0)
    body = torchvision.models.mobilenet_v2(weights=None).features
    for m in body.modules():
        if isinstance(m, torch.nn.BatchNorm2d): m.momentum = None # the mean of all batches: random layers that tell pictures apart
    with torch.no_grad(): body(torch.randn(16, 3, 96, 96))
    torch.save(body.state_dict(), d/'body.pth')
    run(d, 'prepare')
    return d

def run(d, what, *more, out='table.json'):
    vd.main([what, '--data', str(d/'set'), '--weights', str(d/'body.pth'), '--cache', str(d/'cache'), '--out', str(d/out), *few, *more])

def test_a_view_is_the_same_twice_and_view_0_is_the_picture(place):
    ds = vd.Views(load_annotations(place/'set', 'train'), 1)
    (a, x), (b, y) = ds[2], ds[2]
    assert torch.equal(a, b) and torch.equal(x['boxes'], y['boxes']) and a.shape == (3, vd.SIZE, vd.SIZE)
    plain = vd.Views(ds.ds.annotations, 0)
    assert torch.allclose(plain[2][1]['boxes'].as_subclass(torch.Tensor), plain.ds.targets(vd.SIZE)[2]['boxes'][~plain.ds.targets(vd.SIZE)[2]['difficult']])

def test_views_are_kept_not_made_again(place):
    before = {f.name: f.stat().st_mtime_ns for f in (place/'cache').glob('*.pt')}
    assert {'val.pt', 'view0.pt', 'view1.pt', 'view2.pt'} <= before.keys()
    run(place, 'prepare')
    assert all((place/'cache'/k).stat().st_mtime_ns == v for k, v in before.items())

def test_another_view_each_epoch(place):
    t = vd.Trained(place/'cache', 2, list(range(6)), 3)
    first = torch.cat([x for x, _ in t])
    t.epochs_done = lambda: 1
    again = torch.cat([x for x, _ in t])
    assert first.shape == again.shape and not torch.equal(first.sort(0).values, again.sort(0).values)

def test_rare_classes_are_due_more_often_and_none_less_than_once():
    labels = [torch.tensor(o, dtype=torch.int64) for o in [[0]]*8 + [[0, 1, 1]] + [[]]] # class 1 on a tenth of the pictures, class 2 nowhere
    assert vd.repeats(labels, 3, .4).tolist() == pytest.approx([1]*8 + [2, 1])
    assert vd.repeats(labels, 3, .95).tolist() == pytest.approx([(.95/.9)**.5]*8 + [9.5**.5, 1])

def test_pictures_are_drawn_as_often_as_they_are_due_in_batches_as_many(place, monkeypatch):
    monkeypatch.setattr(vd, 'batch', lambda kept, ids: ids)
    plain, due = (vd.Trained(place/'cache', 2, list(range(6)), 3, due) for due in (None, torch.tensor([1., 1, 1, 1, 1, 1.5])))
    assert [sorted(sum(t, [])) for t in map(list, (plain, plain))] == [list(range(6))]*2
    torch.manual_seed(0)
    drawn = [sum(due, []) for _ in range(600)]
    assert {len(o) for o in drawn} == {6} and {max(map(o.count, o)) for o in drawn} == {1, 2}
    count = torch.bincount(torch.tensor(drawn).flatten(), minlength=6)/600
    assert (count[:5] - .5*(1 + 6/7)).abs().max() < .05 and count[5] > 1.25 # half of the epochs hold seven and leave one out

@pytest.mark.parametrize('share', ['-.1', '1.5', 'nan'])
def test_a_share_of_rare_pictures_that_is_none_is_refused(place, capsys, share):
    with pytest.raises(SystemExit): run(place, 'train', f'--rare={share}', '--name', 'none')
    assert 'expected a share of the pictures, 0 to 1' in capsys.readouterr().err and not (place/'cache'/'none.ckpt').exists()

@pytest.fixture
def scored(monkeypatch):
    "What is handed to the score: (found, truth) of each time"
    seen, report = [], vd.report
    monkeypatch.setattr(vd, 'report', lambda a, found, truth, *more: (seen.append((found, truth)), report(a, found, truth, *more))[1])
    return seen

def test_train_scores_what_the_file_gives_and_keeps_a_row(place, scored):
    run(place, 'train')
    det, row = load_detector(place/'cache'/'detector.pt'), json.loads((place/'table.json').read_text())[0]
    assert row['pictures'] == [6, 3] and row['epochs'] == 2 and row['map'] == det.plan['notes']['map'] and row['recipe']['k'] == 2
    assert row['mended'].keys() == set(error_kinds) and row['mended']['localization'] >= row['map'] - 1e-4
    run(place, 'score') # the same again, in place of the row
    assert len(json.loads((place/'table.json').read_text())) == 1
    val = load_annotations(place/'set', 'val')
    whole = det.predict([r.file for r in val], thresh=.01) # through the whole detector; the kept views are in half precision
    def off(i, j): return (scored[-1][0][i]['scores'][:20] - whole[j]['scores'][:20]).abs().max()
    assert max(off(i, i) for i in range(3)) < .002 < min(off(i, (i + 1) % 3) for i in range(3))
    for r, w, found, truth in zip(val, whole, *scored[-1]):
        edge = torch.tensor([r.width, r.height]*2)/vd.SIZE
        assert len(truth['labels']) == len(r.labels) and (w['boxes'] - found['boxes'][0]*edge).abs().max(1).values.min() < 1.5

def test_without_amp_the_learner_decides(place, monkeypatch):
    "`False` instead would turn bfloat16 off on CUDA"
    asked, learner = [], vd.Learner
    monkeypatch.setattr(vd, 'Learner', lambda *args, **kw: (asked.append(kw.get('amp')), learner(*args, **kw))[1])
    for i in 0, 1: run(place, 'train', '--name', f'asked{i}', '--epochs', '1', '--amp', str(i), out='asked.json')
    assert asked == [None, None, True, None] # of each training and its score

def test_amp_trains_in_half_the_digits_and_is_another_training(place):
    run(place, 'train', '--name', 'digits', '--epochs', '1', out='amp.json')
    with pytest.raises(ValueError, match='digits.ckpt: a checkpoint of a training with other'): run(place, 'train', '--name', 'digits', '--epochs', '1', '--amp', '1', out='amp.json')
    run(place, 'train', '--name', 'fewer', '--epochs', '1', '--amp', '1', out='amp.json')
    whole, half = (load_detector(place/'cache'/f'{o}.pt') for o in ('digits', 'fewer'))
    assert [r['recipe']['amp'] for r in json.loads((place/'amp.json').read_text())] == [0, 1]
    assert any(not a.equal(b) for a, b in zip(whole.head.parameters(), half.head.parameters())) # asked for, and not done, they would be the same

def test_choose_trains_and_scores_parts_of_train(place, scored):
    run(place, 'train', '--choose', '--name', 'chosen', '--bs', '2', out='chosen.json')
    row = json.loads((place/'chosen.json').read_text())[0]
    assert row['choose'] and row['pictures'] == [4, 2]
    trn = load_annotations(place/'set', 'train')
    assert [len(t['labels']) for _, truth in scored for t in truth] == [len(trn[i].labels) for i in (0, 5)]
    with pytest.raises(SystemExit, match='trained with --choose'): run(place, 'score', '--name', 'chosen')

def test_lesson_06s_detector(place, scored, monkeypatch):
    trained = vd.train_detector
    monkeypatch.setattr(vd, 'train_detector', lambda *args, **kw: trained(*args, **kw, epochs=1, size=64, bs=2))
    run(place, 'lesson', out='lesson.json')
    row = json.loads((place/'lesson.json').read_text())[0]
    assert row['name'] == 'lesson' and row['pictures'] == [6, 3] and len(scored[0][0]) == 3

def test_a_training_of_other_settings_is_refused_not_continued(place):
    run(place, 'train', '--name', 'kept')
    before = (place/'table.json').read_bytes()
    for other in ('--seed', '5'), ('--loc', '9'), ('--choose', '--bs', '2'):
        with pytest.raises(ValueError, match='kept.ckpt: a checkpoint of a training with other'): run(place, 'train', '--name', 'kept', *other)
    assert (place/'table.json').read_bytes() == before

def test_views_of_other_pictures_or_weights_are_refused(place, tmp_path):
    make_sample(tmp_path/'set', 4, 2, workers=1)
    with pytest.raises(SystemExit, match='holds views of other'):
        vd.main(['prepare', '--data', str(tmp_path/'set'), '--weights', str(place/'body.pth'), '--cache', str(place/'cache'), *few])
    torch.manual_seed(1)
    torch.save(torchvision.models.mobilenet_v2(weights=None).features.state_dict(), tmp_path/'body.pth')
    with pytest.raises(SystemExit, match='holds views of other'):
        vd.main(['train', '--data', str(place/'set'), '--weights', str(tmp_path/'body.pth'), '--cache', str(place/'cache'), '--name', 'other', *few])

def test_a_broken_table_is_told_before_the_training(place):
    (place/'broken.json').write_text('{"rows": 3}')
    with pytest.raises(SystemExit, match='broken.json: not a table of results'): run(place, 'train', '--name', 'never', out='broken.json')
    assert not list((place/'cache').glob('never*'))

def test_what_was_trained_to_choose_does_not_ship(place, tmp_path, monkeypatch):
    monkeypatch.setattr(vd, 'root', tmp_path)
    run(place, 'train', '--name', 'whole', '--epochs', '1')
    run(place, 'ship', '--name', 'whole')
    shipped = tmp_path/'objdet/weights/detector_voc.pt'
    same = [json.dumps(load_detector(f).plan) for f in (shipped, place/'cache'/'whole.pt')] # text, since nan is not nan
    assert same[0] == same[1]
    shipped.unlink()
    run(place, 'train', '--name', 'part', '--choose', '--bs', '2', '--epochs', '1')
    with pytest.raises(SystemExit, match='trained on a part'): run(place, 'ship', '--name', 'part')
    assert not shipped.exists()
