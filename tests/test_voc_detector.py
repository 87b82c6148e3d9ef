"The command behind the detector on VOC: views, training, score, on a handful of the embedded pictures. Run: pytest tests/test_voc_detector.py"
import json
import pytest, torch, torchvision
from objdet.detector import load_detector
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
    torch.save(torchvision.models.mobilenet_v2(weights=None).features.state_dict(), d/'body.pth')
    run(d, 'prepare')
    return d

def run(d, what, *more, out='table.json'):
    vd.main([what, '--data', str(d/'set'), '--weights', str(d/'body.pth'), '--cache', str(d/'cache'), '--out', str(d/out), *few, *more])

def test_a_view_is_the_same_twice_and_view_0_is_the_picture(place):
    ds = vd.Views(load_annotations(place/'set', 'train'), 1)
    (a, x), (b, y) = ds[2], ds[2]
    assert torch.equal(a, b) and torch.equal(x['boxes'], y['boxes']) and a.shape == (3, vd.SIZE, vd.SIZE)
    plain = vd.Views(ds.ds.annotations, 0)
    assert torch.allclose(plain[2][1]['boxes'].as_subclass(torch.Tensor), ds.ds.annotations and plain.ds.targets(vd.SIZE)[2]['boxes'][~plain.ds.targets(vd.SIZE)[2]['difficult']])

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

def test_train_scores_what_the_file_gives_and_keeps_a_row(place):
    run(place, 'train')
    det, row = load_detector(place/'cache'/'detector.pt'), json.loads((place/'table.json').read_text())[0]
    assert row['pictures'] == [6, 3] and row['epochs'] == 2 and row['map'] == det.plan['notes']['map'] and row['recipe']['k'] == 2
    run(place, 'score') # the same again, in place of the row
    rows = json.loads((place/'table.json').read_text())
    assert len(rows) == 1 and rows[0]['map'] == row['map'] and rows[0]['ap'] == row['ap']
