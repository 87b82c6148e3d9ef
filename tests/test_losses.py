"The program that compares losses: probabilities, rows that are not made twice, a table by hand"
import json
from pathlib import Path
import losses, pytest, saved_rows, torch
from objdet.pascal_data import Annotations

def row(name, seed, settings, value=.5): return dict(name=name, seed=seed, settings=settings, map=value, seconds=2)

def test_a_softmax_becomes_yes_or_no():
    "The sigmoid of what comes out is the softmax's probability; other losses are left alone"
    preds = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    out = losses.as_yes_no(preds, 'softmax with background')
    torch.testing.assert_close(out[0].sigmoid(), preds[0].softmax(-1))
    assert out[1] is preds[1] and losses.as_yes_no(preds, 'binary cross entropy') is preds

def test_every_loss_can_be_made_and_is_finite():
    pred, targ = torch.randn(2, 30, 4), torch.full((2, 30), 3)
    targ[0, :2] = torch.tensor([0, 1]) # two positives: hard negatives leave most of the others out
    values = {name: make(3)(pred, targ).item() for name, make in losses.losses.items()}
    assert len(values) == 10 and all(0 < v < 1e4 for v in values.values()) and len({round(v, 4) for v in values.values()}) == 10

@pytest.fixture
def quick(monkeypatch):
    "The program without data and training; the trainings it asked for"
    ran, ann = [], Annotations([], ['a'], [])
    def train(name, seed, *_):
        ran.append((name, seed))
        if len(ran) == 4: raise KeyboardInterrupt
        return {k: v for k, v in row(name, seed, None).items() if k != 'settings'}
    for name, f in dict(train=train, get_data=lambda d: Path('data'), load_splits=lambda p: (ann, ann), kept_loaders=lambda *a: None).items():
        monkeypatch.setattr(losses, name, f)
    return ran

def test_an_interrupted_run_goes_on(quick, tmp_path, capsys):
    out = tmp_path/'t.json'
    with pytest.raises(KeyboardInterrupt): losses.main(['--seeds', '1', '--out', str(out)])
    assert len(json.loads(out.read_text())['rows']) == 3
    first = list(quick)
    losses.main(['--seeds', '1', '--out', str(out)])
    saved = json.loads(out.read_text())
    assert [r['name'] for r in saved['rows']] == list(losses.losses) and quick[4:] == [(n, 0) for n in list(losses.losses)[3:]]
    assert first[3] == quick[4] and sorted(p.name for p in tmp_path.iterdir()) == ['t.json']
    assert all(r['settings'] == saved['settings'] for r in saved['rows']) and 'binary cross entropy' in capsys.readouterr().out

def test_a_broken_table_is_refused(quick, tmp_path):
    out = tmp_path/'t.json'
    out.write_text(json.dumps(dict(rows=[row('hinge', 0, {})])))
    with pytest.raises(ValueError, match="t.json.*row 0.*'hinge'"): losses.main(['--out', str(out)])
    assert not quick

def test_a_table_by_hand():
    s = dict(epochs=5)
    lines = losses.table([row('binary cross entropy', 0, s, .25), row('binary cross entropy', 1, s, .35), row('binary cross entropy', 2, dict(epochs=1), 0)], s)
    assert len(lines) == 2 and lines[1].split()[3:] == ['2', '0.300', '0.071', '2', '0.250', '0.350']

def test_one_loss_alone_and_none(quick, tmp_path):
    losses.main(['--seeds', '2', '--only', 'hard', '--out', str(tmp_path/'t.json')])
    assert quick == [('hard negatives, 3 to 1', 0), ('hard negatives, 3 to 1', 1)]
    with pytest.raises(SystemExit): losses.main(['--only', 'hinge', '--out', str(tmp_path/'t.json')])

def test_other_weights_are_other_settings():
    "A table went stale when the weights behind a name were made anew: their numbers belong to the settings"
    a, ann, bodies = losses.options([]), Annotations([], ['a'], []), [losses.create_body('symbols', 'none') for _ in range(2)]
    one, two, again = (saved_rows.settings_of(a, Path('data'), ann, ann, b) for b in (*bodies, bodies[0]))
    assert one == again != two and {k for k in one if one[k] != two[k]} == {'weights'}
    with pytest.raises(SystemExit): losses.options(['--epochs', '0'])
