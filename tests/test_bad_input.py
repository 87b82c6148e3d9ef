"Every kind of bad input is an error that names the file, the value and what was expected; what is sound passes"
import math
import pytest, torch
from torchvision import tv_tensors
import bad_input as bad
from bad_input import provoke, rows


@pytest.mark.parametrize('row', rows, ids=lambda r: r.name)
def test_bad_input(row):
    "An error of another type (KeyError, torch's own), silence, or a message without the file or the value fails"
    error, said = provoke(row)
    assert isinstance(error, row.error), f'{type(error).__name__}: {said}'
    assert not (missing := [p for p in row.parts if p not in said]), f'{missing} not in: {said}'


def test_the_table():
    "Five areas, names that occur once, a part to look for in each row: an empty table or an empty row would pass everything"
    assert len(rows) >= 60 and len({r.name for r in rows}) == len(rows)
    assert {r.area for r in rows} == {'Data', 'Anchors', 'Training', 'Detection', 'Scoring'}
    assert all(r.parts and all(r.parts) and r.wrong for r in rows)


def test_what_is_not_spoiled_is_accepted(tmp_path):
    "Were the sound input refused, every row would pass for the wrong reason"
    kit = bad.devkit(tmp_path/'kit')
    a = bad.load_annotations(kit)
    im, target = bad.DetectionDataset(a)[0]
    assert im.shape == (3, 30, 40) and target['labels'].tolist() == [0, 1]
    assert bad.dataloaders(a, a, 64, workers=0).train and len(bad.SingleObjectDataset(a)) == 1
    (tmp_path/'coco').mkdir()
    assert bad.read_coco(bad.coco(tmp_path/'coco'))[0].boxes.tolist() == [[1, 1, 4, 4]]
    for mode, name in ('w', 'a.tar'), ('w:gz', 'b.tar.gz'):
        folder = bad.extract(bad.archive(tmp_path, name, mode=mode), tmp_path/f'out/{name}')
        assert (folder/'VOCdevkit/a.txt').read_text() == 'text '*4000
    assert bad.ssd_loss() > 0 and bad.score().map == 1
    bad.RandomLighting()(tv_tensors.Image(torch.zeros(3, 8, 8, dtype=torch.uint8)))
    l = bad.learner(2)
    l.fit_one_cycle(1, [.1, .1], checkpoint=tmp_path/'c.pt')
    bad.learner(2).fit_one_cycle(1, [.1, .1], checkpoint=tmp_path/'c.pt')
    l.save(tmp_path/'w.pt'); bad.learner().load(tmp_path/'w.pt')
    assert math.isfinite(l.history[-1]['valid'])


def test_a_sound_picture_is_accepted_by_a_sound_detector(tmp_path):
    "As above"
    bad.small_detector().save(tmp_path/'d.pt')
    found, = bad.detector.load_detector(tmp_path/'d.pt').predict(bad.devkit(tmp_path/'kit')/'JPEGImages/000001.jpg')
    assert found['boxes'].shape == (len(found['scores']), 4)
