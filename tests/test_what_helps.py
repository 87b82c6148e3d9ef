"The program that measures what helps: heads that fit their anchors, one change a row, a table by hand, a run that goes on"
import json
import pytest, torch, what_helps
from objdet.anchors_matching import create_anchors
from objdet.sample import make_sample
from objdet.single_obj import create_body
from what_helps import base, changes, plan

def row(name, seed, settings, value=.5): return dict(name=name, seed=seed, settings=settings, map=value, seconds=2, anchors=10, reach=.5)

def test_every_row_changes_the_base_in_known_fields():
    "A misspelt field would make a row that is the base under another name"
    assert changes[base] == {} and len(changes) == 21
    for name, change in changes.items():
        assert change.keys() <= plan.keys() and (name == base or any(plan[k] != v for k, v in change.items())), name

def test_heads_give_one_guess_an_anchor():
    "A head of other grids or another number of shapes than its row's anchors"
    class Objects: trn_objects = torch.tensor([[.1, .1, .3, .2], [.2, .3, .4, .9], [.5, .5, .7, .8], [0, 0, 1., 1.]])
    x = torch.zeros(1, 32, 8, 8)
    for name, change in changes.items():
        p = plan | change
        grids, zooms, shapes = what_helps.make_anchors(p, Objects)
        head = what_helps.make_head(p, 32, 3, len(zooms)*len(shapes)).eval()
        with torch.no_grad(): assert head(x)[1].shape[1] == len(create_anchors(grids, zooms, shapes)[0]), name
    lecture = what_helps.make_anchors(plan | changes["the lecture's: grids 4, 2, 1, 3 zooms, 3 shapes"], Objects)
    assert len(create_anchors(*lecture)[0]) == 189

def test_what_learns():
    "A row called frozen whose body learns, or the other way round"
    body, head = create_body('symbols', 'none'), torch.nn.Identity()
    count = lambda learns: sum(t.numel() for g in what_helps.make_groups(plan | dict(learns=learns), body, head) for t in g.parameters())
    whole = sum(t.numel() for t in body.parameters())
    assert count('nothing') == 0 < count('late') < count('all') == whole

def test_views_of_other_sizes_make_one_batch():
    "Views that lost objects have shorter lists; batches of both need one length"
    def kept(value, m): return torch.utils.data.StackDataset(torch.full((1, 2, 2), value).half(), torch.utils.data.StackDataset(torch.zeros(1, m, 4), torch.zeros(1, m)))
    views = what_helps.AnyView([kept(1., 1), kept(2., 3)])
    seen = {}
    for seed in range(8):
        torch.manual_seed(seed)
        x, (boxes, labels) = views[0]
        seen[x.max().item()] = [*boxes.shape], labels.tolist()
        assert x.dtype == torch.float32
    assert seen == {1.: ([3, 4], [0, -1, -1]), 2.: ([3, 4], [0, 0, 0])}

def test_a_table_by_hand():
    "Differences go seed by seed; the rows of other settings stay out; best first, the base in its place"
    s, bce, hard = dict(epochs=3), 'binary cross entropy', 'hard negatives, 3 to 1'
    rows = [row(base, 0, s, .3), row(base, 1, s, .4), row(bce, 0, s, .2), row(bce, 1, s, .4), row(hard, 1, s, .5), row(bce, 2, dict(epochs=1), 1.)]
    lines = what_helps.table(rows, s)
    assert [l.split('  ')[0].strip() for l in lines[1:]] == ['loss', hard, base, bce] and 'difference' in lines[0]
    assert lines[2].split()[-7:] == ['0.500', '-', '+0.100', '-', '50%', '10', '2'] # seed 1 alone: .5 - .4
    assert lines[3].split()[-7:] == ['0.350', '0.071', '-', '-', '50%', '10', '2']
    assert lines[4].split()[-7:] == ['0.300', '0.141', '-0.050', '0.071', '50%', '10', '2'] # -.1 and 0
    assert [l.split('  ')[0] for l in what_helps.table(rows[:1], s)[1:]] == [base] and len(what_helps.table(rows, dict(epochs=9))) == 1

def test_a_run_that_goes_on(tmp_path, monkeypatch, capsys):
    "An interrupted run made rows anew, or left the table out of the file; another number of views is another setting"
    out, ran, train = tmp_path/'t.json', [], what_helps.train
    def watched(name, *args):
        ran.append(name)
        if len(ran) == 2: raise KeyboardInterrupt
        return train(name, *args)
    monkeypatch.setattr(what_helps, 'train', watched)
    data = make_sample(tmp_path/'pictures', 6, 4, workers=1)
    argv = ['--data', str(data), '--body', 'symbols', '--seeds', '1', '--epochs', '1', '--bs', '3', '--views', '2', '--only', 'SSD', '--out', str(out)]
    with pytest.raises(KeyboardInterrupt): what_helps.main(argv)
    assert [r['name'] for r in json.loads(out.read_text())['rows']] == [base]
    what_helps.main(argv); what_helps.main(argv)
    saved = json.loads(out.read_text())
    assert [r['name'] for r in saved['rows']] == [base, "SSD's crops and zoom-out"] and ran == [base] + 2*["SSD's crops and zoom-out"]
    assert saved['table'][1] == 'augmentation' and '\n'.join(saved['table']) in capsys.readouterr().out
    assert all(0 <= r['map'] <= 1 and r['settings'] == saved['settings'] for r in saved['rows']) and saved['settings']['views'] == 2

def test_what_is_asked_for():
    "A word that no row has would train the base alone"
    assert what_helps.options(['--only', 'loss']).names == [base, *what_helps.rows_of['loss']] and what_helps.options([]).names == list(changes)
    for bad in (['--only', 'transformer'], ['--views', '0'], ['--epochs', '0']):
        with pytest.raises(SystemExit): what_helps.options(bad)

def test_a_broken_table_is_refused(tmp_path):
    (tmp_path/'t.json').write_text(json.dumps(dict(rows=[row('hinge', 0, {})])))
    with pytest.raises(ValueError, match="t.json.*row 0.*'hinge'"): what_helps.main(['--out', str(tmp_path/'t.json')])
