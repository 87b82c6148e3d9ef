"The command `objdet`, in this process: what it prints, what it writes, how it ends"
import json, os, subprocess, sys
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from objdet import __version__, command
from objdet.command import main
from objdet.detector import Detector, load_detector
from objdet.learner import set_seed
from objdet.pascal_data import load_annotations, to_coco
from objdet.single_obj import create_body
from objdet.sources import get_data
from objdet.ssd_loss import SSDMultiHead

@pytest.fixture(scope='module')
def val(): return load_annotations(get_data('sample'), 'val')

@pytest.fixture(scope='module')
def model(tmp_path_factory, val):
    set_seed(0)
    body, args = create_body('symbols', 'DEFAULT'), dict(k=2, bias=-1., nf=16, n_grids=2)
    file = tmp_path_factory.mktemp('model')/'d.pt'
    Detector(body, SSDMultiHead(body.channels, len(val.classes), **args), val.classes, ([4, 2], [1.], [(1., 1.), (1., .5)]), 112, args).save(file)
    return str(file)

@pytest.fixture
def photos(tmp_path, val, monkeypatch):
    "A folder `photos` with three pictures of the sample, in the working folder"
    monkeypatch.chdir(tmp_path)
    Path('photos').mkdir()
    for r in val.records[:3]: Path('photos', r.file.name).write_bytes(r.file.read_bytes())
    return Path('photos')

def test_a_line_a_detection_is_what_predict_says(photos, model, capsys):
    assert main(['detect', 'photos', '--model', model, '--thresh', '.25']) == 0
    out, err = capsys.readouterr()
    want = load_detector(model).predict(photos, thresh=.25)
    files = sorted(photos.iterdir())
    assert out.splitlines() == ['\t'.join([str(f), n, f'{s:.3f}', *(f'{v:.1f}' for v in b)]) for f, d in zip(files, want)
                                for n, s, b in zip(d['names'], d['scores'].tolist(), d['boxes'].tolist())] != []
    assert err == ''

def test_out_json_is_coco_results(photos, model, val, capsys):
    assert main(['detect', 'photos', '--model', model, '--thresh', '.25', '--out', 'new/found.json']) == 0
    rows, want = json.loads(Path('new/found.json').read_text()), load_detector(model).predict(photos, thresh=.25)
    assert len(rows) == sum(len(d['scores']) for d in want) > 0 and sorted(o.name for o in Path('new').iterdir()) == ['found.json']
    d, r = want[0], rows[0]
    x1, y1, x2, y2 = d['boxes'][0].tolist()
    assert r['bbox'] == pytest.approx([x1, y1, x2 - x1, y2 - y1]) and r['score'] == pytest.approx(d['scores'][0].item(), abs=1e-3)
    assert (r['category_id'], r['category'], r['image_id'], r['file_name']) == (d['labels'][0] + 1, d['names'][0], val[0].id, str(Path('photos', val[0].file.name)))

def test_drawings_have_the_pictures_sizes_and_never_replace_them(photos, model, val, capsys):
    assert main(['detect', 'photos', '--model', model, '--out', 'drawn']) == 0
    for r in val.records[:3]: assert Image.open(f'drawn/{r.file.stem}.png').size == (r.width, r.height)
    before = Path('drawn', f'{val[0].file.stem}.png').read_bytes()
    assert main(['detect', f'drawn/{val[0].file.stem}.png', '--model', model, '--out', 'drawn']) == 2
    assert 'would overwrite a picture' in capsys.readouterr().err
    assert main(['detect', 'drawn', '--model', model, '--out', 'drawn']) == 2 and 'no picture in this folder but drawings' in capsys.readouterr().err
    assert Path('drawn', f'{val[0].file.stem}.png').read_bytes() == before

def test_draw_chooses_a_folder(photos, model, val):
    one = str(next(photos.iterdir()))
    assert main(['detect', one, '--model', model, '--draw']) == 0 and len(list(Path('detections').iterdir())) == 1
    assert main(['detect', one, '--model', model, '--draw', '--out', 'x.json']) == 0 and len(list(Path('x').iterdir())) == 1 and Path('x.json').is_file()

def test_a_broken_picture_costs_its_own_detections_only(photos, model, capsys):
    "Stopping at the first broken file of a large folder would lose the rest"
    main(['detect', 'photos', '--model', model])
    whole = capsys.readouterr().out
    (photos/'000000.jpg').write_text('no picture')
    assert main(['detect', 'photos', '--model', model, '--out', 'found.json']) == 2
    out, err = capsys.readouterr()
    assert out == whole and err.startswith('objdet: photos/000000.jpg: picture cannot be read') and err.count('\n') == 1
    assert len(json.loads(Path('found.json').read_text())) == len(whole.splitlines())

def test_score_of_detect_matches_mean_ap_and_follows_names(photos, model, val, capsys):
    "Truth with other numbers for pictures and classes: by number the score would be nonsense"
    truth = to_coco(val)
    ids = {o['id']: 1000 + i for i, o in enumerate(truth['images'][:3])}
    n = len(truth['categories'])
    for o in truth['categories']: o['id'] = 100 + n - o['id']
    truth.update(images=[dict(o, id=ids[o['id']]) for o in truth['images'][:3]],
                 annotations=[dict(o, image_id=ids[o['image_id']], category_id=100 + n - o['category_id']) for o in truth['annotations'] if o['image_id'] in ids])
    Path('truth.json').write_text(json.dumps(truth))
    assert main(['detect', 'photos', '--model', model, '--thresh', '.01', '--out', 'found.json']) == 0
    capsys.readouterr()
    assert main(['score', 'found.json', 'truth.json', '--method', 'area', '--coco']) == 0
    from objdet.score import mean_ap
    preds = load_detector(model).predict(photos, thresh=.01)
    want = mean_ap(preds, [dict(boxes=r.boxes, labels=r.labels, difficult=r.difficult) for r in val.records[:3]], method='area', n_classes=n)
    out = capsys.readouterr().out
    assert str(want) in out and out.count('\n') == n + 4 and 'ap50' in out

@pytest.fixture
def perfect(val, tmp_path, monkeypatch):
    "Plain COCO results: the truth itself"
    monkeypatch.chdir(tmp_path)
    rows = [dict(image_id=r.id, category_id=int(l) + 1, bbox=[*b[:2].tolist(), *(b[2:] - b[:2]).tolist()], score=.9) for r in val.records for b, l in zip(r.boxes, r.labels)]
    Path('perfect.json').write_text(json.dumps(rows))
    return rows

def test_score_against_a_voc_folder(perfect, val, capsys):
    "And detections of other pictures and classes are left out, aloud"
    rows = [dict(r, file_name=f'{r["image_id"]:06}.jpg', category=val.classes[r['category_id'] - 1]) for r in perfect]
    Path('more.json').write_text(json.dumps([*rows, dict(rows[0], file_name='other.jpg'), dict(rows[0], category='ghost')]))
    assert main(['score', 'more.json', str(get_data('sample')), '--split', 'val']) == 0
    out, err = capsys.readouterr()
    assert 'mAP 1.0000' in out and "no picture 'other.jpg'" in err and "no class 'ghost'" in err and 'cut off counts as not found' in err

def first(val, n):
    "The first `n` pictures as a COCO dictionary"
    d = to_coco(val)
    ids = {o['id'] for o in d['images'][:n]}
    return d | dict(images=d['images'][:n], annotations=[o for o in d['annotations'] if o['image_id'] in ids])

def small_coco(val, n=8, **kw):
    "A folder `mine` with `n` pictures of the sample and their COCO file; `kw` are for saving each picture anew"
    Path('mine').mkdir()
    for r in val.records[:n]: Image.open(r.file).save(f'mine/{r.file.name}', **dict(quality=95) | kw)
    Path('mine/annotations.json').write_text(json.dumps(first(val, n)))

@pytest.fixture
def truth(photos, val):
    "A COCO file of the pictures in `photos`, beside them"
    (photos/'truth.json').write_text(json.dumps(first(val, 3)))
    return str(photos/'truth.json')

wrong = {'no verb': ([], 'required'), 'another verb': (['delect'], "'delect'"), 'no picture': (['detect'], 'PICTURE'), 'missing': (['detect', 'x.jpg'], 'x.jpg: no such picture'),
         'empty folder': (['detect', 'empty'], 'empty: no picture in this folder'), 'threshold': (['detect', 'photos', '--thresh', '30'], '30 is not a number from 0 to 1'),
         'threshold nan': (['detect', 'photos', '--thresh', 'nan'], 'nan is not'), 'no model': (['detect', 'photos', '--model', 'no.pt'], 'no.pt: no such'), 'other model': (['detect', 'photos', '--model', 'text.txt'], 'text.txt: not a file'),
         'a picture to write to': (['detect', 'photos', '--out', 'text.txt'], 'text.txt: a file; expected a folder'), 'device': (['detect', 'photos', '--model', 'MODEL', '--device', 'abacus'], "device 'abacus' cannot be used"),
         'no data': (['train', 'nowhere'], 'nowhere'), 'epochs': (['train', 'sample', '--epochs', '0'], '0 is not a whole number'), 'no digit': (['train', 'sample', '--size', '²'], '² is not a whole number'), 'nothing to resume': (['train', 'sample', '--resume'], 'detector.checkpoint.pt: no interrupted training'),
         'both': (['train', 'sample', '--resume', '--fresh'], 'not allowed with'), 'there already': (['train', 'sample', '--out', 'text.txt'], 'text.txt: already there'),
         'no detections': (['score', 'no.json', 'DATA'], 'no.json: no such file'), 'no truth': (['score', 'list.json', 'nowhere'], 'nowhere'), 'no json': (['score', 'text.txt', 'DATA'], 'text.txt: malformed JSON'),
         'no list': (['score', 'dict.json', 'DATA'], 'dict.json'), 'no entry': (['score', 'list.json', 'DATA'], 'list.json, entry 0'), 'overlap text': (['score', 'list.json', 'DATA', '--iou', 'x'], 'x is not'),
         'overlap': (['score', 'list.json', 'DATA', '--iou', '50'], '50 is not'), 'method': (['score', 'list.json', 'DATA', '--method', '12point'], '12point')}

@pytest.mark.parametrize('what', wrong)
def test_bad_input_is_one_line_and_2(what, truth, model, capsys):
    argv, words = wrong[what]
    Path('empty').mkdir(); Path('text.txt').write_text('hello'); Path('dict.json').write_text('{}'); Path('list.json').write_text('[{"image_id": 1}]')
    assert main([{'MODEL': model, 'DATA': truth}.get(o, o) for o in argv]) == 2
    out, err = capsys.readouterr()
    assert words in err and err.startswith('objdet: ') and err.count('\n') == 1 and 'Traceback' not in err

def test_version_and_help(capsys):
    assert main(['--version']) == 0 and capsys.readouterr().out == f'objdet {__version__}\n'
    for verb in 'detect', 'train', 'score':
        assert main([verb, '--help']) == 0
        assert f'objdet {verb} ' in capsys.readouterr().out.split('usage', 1)[1].split('\n\n', 1)[1]  # an example below the usage

def test_interruption_is_130_and_a_bug_keeps_its_traceback(monkeypatch, photos, capsys):
    def stop(*a): raise KeyboardInterrupt
    def bug(*a): raise ZeroDivisionError
    monkeypatch.setattr(command, 'detect_command', stop)
    assert main(['detect', 'photos']) == 130 and capsys.readouterr().err == 'objdet: interrupted\n'
    monkeypatch.setattr(command, 'detect_command', bug)
    with pytest.raises(ZeroDivisionError): main(['detect', 'photos'])

def test_data_that_cannot_be_had_is_one_line_and_2(monkeypatch, capsys, tmp_path):
    "A download whose checksum is wrong ended in a traceback; a bug of PyTorch's still should"
    monkeypatch.chdir(tmp_path)
    def fail(*a): raise RuntimeError('the 9 bytes that came are not the archive')
    monkeypatch.setattr('objdet.sources.get_data', fail)
    for argv in (['train', 'voc2007'], ['score', __file__, 'sample']):
        assert main(argv) == 2 and capsys.readouterr().err == 'objdet: the 9 bytes that came are not the archive\n'
    monkeypatch.setattr(command, 'train_command', fail)
    with pytest.raises(RuntimeError): main(['train', 'voc2007'])

@pytest.mark.parametrize('more', [['nowhere'], ['mine', '--body', 'mobilnet'], ['mine', '--size', '100'], ['mine', '--weights', 'nowhere.pth']])
def test_fresh_keeps_the_old_state_until_an_epoch_is_done(tmp_path, val, more, monkeypatch, capsys):
    "A mistyped name, body or size cost the state of an interrupted training"
    monkeypatch.chdir(tmp_path)
    small_coco(val)
    Path('m.checkpoint.pt').write_text('state')
    assert main(['train', *more, '--fresh', '--out', 'm.pt']) == 2
    assert Path('m.checkpoint.pt').read_text() == 'state' and not Path('m.checkpoint.pt.old').exists() and 'Traceback' not in capsys.readouterr().err

def test_fresh_leaves_the_new_state_of_an_interrupted_training(tmp_path, val, monkeypatch):
    "The state that was set aside must not come back over a newer one, nor stay beside it"
    from objdet import your_data
    monkeypatch.chdir(tmp_path)
    small_coco(val)
    Path('m.checkpoint.pt').write_text('old')
    def one_epoch(trn, val, checkpoint, **kw):
        assert not checkpoint.exists()
        torch.save(dict(done=1), checkpoint)
        raise KeyboardInterrupt
    monkeypatch.setattr(your_data, 'train_detector', one_epoch)
    assert main(['train', 'mine', '--fresh', '--out', 'm.pt']) == 130
    assert torch.load('m.checkpoint.pt', weights_only=True) == dict(done=1) and not Path('m.checkpoint.pt.old').exists()

def test_fresh_gives_the_old_state_back_after_less_than_an_epoch(tmp_path, val, monkeypatch, capsys):
    "The learner writes a state of no epochs before it begins; that took the place of hours of work"
    from objdet.learner import Learner
    monkeypatch.chdir(tmp_path)
    small_coco(val)
    Path('m.checkpoint.pt').write_text('hours of work')
    def stop(*a): raise KeyboardInterrupt
    monkeypatch.setattr(Learner, '_step', stop)
    argv = ['train', 'mine', '--out', 'm.pt', '--size', '64', '--bs', '4', '--fresh']
    assert main(argv) == 130 and Path('m.checkpoint.pt').read_text() == 'hours of work' and not Path('m.checkpoint.pt.old').exists()
    Path('m.checkpoint.pt').rename('m.checkpoint.pt.old') # as a kill leaves it
    assert main(argv[:-1]) == 2 and 'm.checkpoint.pt' in capsys.readouterr().err and Path('m.checkpoint.pt').read_text() == 'hours of work'

def test_two_files_of_one_name_are_not_one_picture(truth, val, capsys):
    "Detections of a/1.jpg and of b/1.jpg both counted for the truth's 1.jpg"
    row = dict(image_id=1, category_id=1, bbox=[1, 1, 5, 5], score=.9, category=val.classes[0])
    Path('two.json').write_text(json.dumps([dict(row, file_name=f'{o}/{val[0].file.name}') for o in 'ab']))
    assert main(['score', 'two.json', truth]) == 2 and 'two files of one name' in capsys.readouterr().err

def test_train_hands_on_what_was_typed(truth, model, monkeypatch, capsys):
    "Its own training has tests of its own; here the state beside --out, and that it goes when the file is there"
    from objdet import your_data
    calls, d = [], json.loads(Path(truth).read_text())
    d['images'] += [dict(d['images'][0], id=10**6 + i) for i in range(2)]  # five pictures: a fifth is for validation
    Path(truth).write_text(json.dumps(d))
    def train_detector(trn, val, **kw):
        calls.append(kw)
        Path(kw['checkpoint']).write_text('state')
        if len(calls) == 1: raise KeyboardInterrupt
        return load_detector(model), None
    monkeypatch.setattr(your_data, 'train_detector', train_detector)
    monkeypatch.setattr(Detector, 'predict', lambda self, files, *a: [dict(boxes=torch.zeros(0, 4), scores=torch.zeros(0), labels=torch.zeros(0, dtype=torch.int64))]*len(files))
    argv = ['train', truth, '--out', 'new/mine.pt', '--epochs', '3', '--body', 'symbols', '--weights', 'none', '--size', '128', '--seed', '7', '--bs', '8']
    assert main(argv) == 130 and Path('new/mine.checkpoint.pt').is_file() and not Path('new/mine.pt').exists()
    assert main([*argv, '--resume']) == 0 and not Path('new/mine.checkpoint.pt').exists()
    assert calls[0] == calls[1] == dict(epochs=3, size=128, body='symbols', weights='none', checkpoint=Path('new/mine.checkpoint.pt'), seed=7, bs=8)
    assert load_detector('new/mine.pt').size == 112 and 'going on from new/mine.checkpoint.pt' in capsys.readouterr().out
    assert main(argv) == 2 and main([*argv, '--fresh']) == 0

def test_nothing_of_it_in_the_truth_is_an_error(truth, perfect, val, capsys):
    "A score of 0 for detections of another data set would hide the mistake"
    Path('none.json').write_text(json.dumps([dict(perfect[0], file_name='other.jpg', category='cat')]))
    assert main(['score', 'none.json', truth]) == 2 and "'other.jpg' is not in the truth" in capsys.readouterr().err
    assert main(['score', 'perfect.json', truth]) == 2 and 'which is not among the pictures' in capsys.readouterr().err

def test_nothing_that_is_no_detection_is_replaced(photos, model, truth, capsys):
    "`detect --out annotations.json` cost the labels, and a drawing replaced a photograph that happened to be beside"
    before = Path(truth).read_bytes()
    assert main(['detect', 'photos', '--model', model, '--out', truth]) == 2 and 'no list of detections' in capsys.readouterr().err
    assert Path(truth).read_bytes() == before
    one = sorted(photos.glob('*.jpg'))[0]
    Image.new('RGB', (5, 5)).save(one.with_suffix('.png'))
    before = one.with_suffix('.png').read_bytes()
    assert main(['detect', str(one), '--model', model, '--out', 'photos']) == 2 and 'no drawing of objdet' in capsys.readouterr().err
    assert one.with_suffix('.png').read_bytes() == before
    for _ in range(2): assert main(['detect', 'photos', '--model', model, '--out', 'drawn', '--thresh', '.5']) == 0 # our own drawings may be drawn again
    assert {f'{one.name}.png', f'{one.stem}.png.png'} <= {o.name for o in Path('drawn').iterdir()} # two of one stem

@pytest.mark.parametrize('argv', [['detect', 'photos', '--out', 'x.json'], ['train', 'sample', '--out', 'x.json', '--fresh'], ['train', 'sample', '--out', 'x.json']])
def test_a_folder_in_the_place_of_the_result_is_told_before_the_work(photos, argv, monkeypatch, capsys):
    Path('x.json').mkdir()
    for o in ('_load', '_data'): monkeypatch.setattr(command, o, lambda *a: pytest.fail('worked for nothing'))
    assert main(argv) == 2 and 'x.json: a folder' in capsys.readouterr().err

def test_pictures_turned_by_a_note_are_scored_as_they_were_trained(tmp_path, val, monkeypatch, capsys):
    "The command scored them turned, against boxes of pictures as stored: near 0 where the detector was good"
    from objdet import your_data
    monkeypatch.chdir(tmp_path)
    exif = Image.Exif()
    exif[274] = 6
    small_coco(val, exif=exif)
    monkeypatch.setattr(your_data, 'train_detector', lambda *a, **kw: (load_detector('sample'), None))
    assert main(['train', 'mine', '--out', 'm.pt']) == 0
    out = capsys.readouterr().out
    assert float(out.split('mAP ')[-1].split()[0]) > .3
    assert main(['detect', 'mine', '--model', 'm.pt', '--thresh', '.01', '--out', 'found.json']) == 0
    assert main(['score', 'found.json', 'mine/annotations.json']) == 0 and 'boxes reach beyond the width and height' in capsys.readouterr().err

def test_a_cut_off_picture_is_named_in_one_short_line(tmp_path, val, monkeypatch, capsys):
    "A loading process gave its traceback for a message, 1,900 characters of it"
    monkeypatch.chdir(tmp_path)
    small_coco(val)
    file = Path('mine', val[2].file.name)
    file.write_bytes(file.read_bytes()[:700])
    assert main(['train', 'mine', '--body', 'symbols', '--size', '64', '--epochs', '1', '--bs', '4']) == 2
    err = capsys.readouterr().err
    assert file.name in err and 'Traceback' not in err and len(err) < 300 and err.count('\n') == 1

def test_two_pictures_of_one_name_in_two_folders_are_told_apart(tmp_path, val, monkeypatch, capsys):
    "They could be trained on and not scored, and the advice that was given scored other pictures"
    monkeypatch.chdir(tmp_path)
    small_coco(val, 4)
    d = json.loads(Path('mine/annotations.json').read_text())
    for i, o in enumerate(d['images']):
        new = Path('mine', 'ab'[i % 2], f'{i//2}.jpg')
        new.parent.mkdir(exist_ok=True)
        Path('mine', o['file_name']).rename(new)
        o['file_name'] = str(new.relative_to('mine'))
    Path('mine/annotations.json').write_text(json.dumps(d))
    assert main(['detect', 'mine/b', 'mine/a', '--model', 'sample', '--thresh', '.01', '--out', 'found.json']) == 0
    assert main(['score', 'found.json', 'mine/annotations.json']) == 0
    first = capsys.readouterr().out.splitlines()[-1]
    small = load_detector('sample').predict(['mine/a/0.jpg', 'mine/b/0.jpg', 'mine/a/1.jpg', 'mine/b/1.jpg'], .01)
    from objdet.score import mean_ap
    assert first == str(mean_ap(small, [dict(boxes=r.boxes, labels=r.labels, difficult=r.difficult) for r in val.records[:4]], n_classes=len(val.classes)))

def test_a_name_that_the_terminal_cannot_show(photos, model, val):
    "It ended the run, and no JSON was written"
    next(photos.iterdir()).rename(photos/'日本.jpg')
    run = [sys.executable, '-c', 'import sys; from objdet.command import main; sys.exit(main())', 'detect', 'photos', '--model', model, '--thresh', '.01', '--out', 'j.json']
    done = subprocess.run(run, capture_output=True, text=True, env=os.environ | dict(PYTHONIOENCODING='cp1252'))
    assert done.returncode == 0 and done.stderr == '' and len(json.loads(Path('j.json').read_text())) > 0

def test_warnings_are_one_line_without_source(tmp_path, val, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small_coco(val)
    Path('mine', val[1].file.name).unlink()
    main(['train', 'mine', '--size', '100'])
    err = capsys.readouterr().err
    assert all(o.startswith('objdet: ') for o in err.splitlines()) and 'UserWarning' not in err and val[1].file.stem in err

def test_a_score_needs_no_pictures(tmp_path, val, monkeypatch, capsys):
    "Pictures that had been deleted took their objects out of the truth, and the score rose"
    monkeypatch.chdir(tmp_path)
    small_coco(val, 10)
    rows = [dict(image_id=1, category_id=1, bbox=[*b[:2].tolist(), *(b[2:] - b[:2]).tolist()], score=.05, file_name=r.file.name, category=val.classes[l])
            for r in val.records[:10] for b, l in zip(r.boxes[:1], r.labels[:1])] # one object of each picture: a score below 1
    Path('found.json').write_text(json.dumps(rows))
    seen = []
    for gone in [], list(Path('mine').glob('*.jpg'))[::2], list(Path('mine').glob('*.jpg')):
        for o in gone: o.unlink(missing_ok=True)
        assert main(['score', 'found.json', 'mine/annotations.json', '--split', 'val']) == 0
        seen.append(capsys.readouterr().out)
    assert seen[0] == seen[1] == seen[2] and 'mAP' in seen[0]

@pytest.mark.parametrize('gone', [0, 1, 2])
def test_a_score_needs_no_pictures_of_voc_of_any_kind(tmp_path, monkeypatch, gone, capsys):
    "A picture that is gone was taken for a .jpg, and detections in a .png were left out"
    monkeypatch.chdir(tmp_path)
    for o in 'JPEGImages', 'Annotations', 'ImageSets/Main': Path('voc', o).mkdir(parents=True)
    Path('voc/ImageSets/Main/val.txt').write_text('a\nb\n')
    for o in 'ab':
        Image.new('RGB', (50, 40)).save(f'voc/JPEGImages/{o}.png')
        box = '<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>20</xmax><ymax>20</ymax></bndbox>'
        Path(f'voc/Annotations/{o}.xml').write_text(f'<annotation><filename>{o}.png</filename><size><width>50</width><height>40</height><depth>3</depth></size>'
                                                    f'<object><name>cat</name>{box}</object></annotation>')
    row = dict(category_id=1, category='cat', bbox=[0, 0, 20, 20], score=.05)
    Path('found.json').write_text(json.dumps([dict(row, image_id=i, file_name=f'voc/JPEGImages/{o}.png') for i, o in enumerate('ab')]))
    for o in list(Path('voc/JPEGImages').iterdir())[:gone]: o.unlink()
    assert main(['score', 'found.json', 'voc']) == 0
    out, err = capsys.readouterr()
    assert 'mAP 1.0000' in out and 'left out' not in err

def test_a_split_without_pictures_is_said_so(tmp_path, val, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small_coco(val, 4)
    Path('found.json').write_text(json.dumps([dict(image_id=1, category_id=1, bbox=[1, 1, 5, 5], score=.9, file_name='a.jpg', category='cat')]))
    assert main(['score', 'found.json', 'mine']) == 2 and 'mine: no pictures in the split val' in capsys.readouterr().err

@pytest.mark.parametrize('names', [{}, dict(file_name='000005.jpg', category='plane')])
def test_a_byte_order_mark_is_no_fault(truth, val, names, capsys):
    row = dict(image_id=val[0].id, category_id=1, bbox=[1, 1, 5, 5], score=.05, **names)
    Path('bom.json').write_text(json.dumps([row]), encoding='utf-8-sig')
    assert main(['score', 'bom.json', truth]) == 0
    assert command._check_result(Path('bom.json')) is None

def test_drawings_in_the_folder_are_no_pictures(photos, model, capsys):
    "With --out photos, each run drew the drawings of the one before"
    seen = []
    for _ in range(3):
        assert main(['detect', 'photos', '--model', model, '--thresh', '.2', '--out', 'photos']) == 0
        seen.append((capsys.readouterr().out, sorted(o.name for o in photos.iterdir())))
    assert seen[0] == seen[1] == seen[2] and len(seen[0][1]) == 6

def test_boxes_without_area_stop_a_training_unless_told_so(tmp_path, val, monkeypatch, capsys):
    "train2017 has one such box, and could not be loaded at all"
    monkeypatch.chdir(tmp_path)
    small_coco(val)
    d = json.loads(Path('mine/annotations.json').read_text())
    d['annotations'][0]['bbox'][3] = 0.
    Path('mine/annotations.json').write_text(json.dumps(d))
    assert main(['train', 'mine', '--size', '100']) == 2 and '--skip-bad-boxes' in capsys.readouterr().err
    assert main(['train', 'mine', '--size', '100', '--skip-bad-boxes']) == 2
    err = capsys.readouterr().err
    assert 'without area left out: 1' in err and 'size is 100' in err

def test_in_a_process_of_its_own_and_with_a_reader_that_leaves(photos, model):
    "As the shell runs it: the entry point, the status, no traceback when `head` closes the pipe"
    run = [sys.executable, '-c', 'import sys; from objdet.command import main; sys.exit(main())', 'detect', str(photos), '--model', model, '--thresh', '.1']
    done = subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    done.stdout.close()
    err = done.stderr.read()
    assert done.wait() == 141 and err == ''
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONUNBUFFERED'} # a few bytes wait until the process ends: that was 120 and a message
    done = subprocess.Popen([*run[:3], '--version'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    done.stdout.close()
    assert done.stderr.read() == '' and done.wait() == 141
    import re
    assert re.search(r"console_scripts=\['objdet=objdet.command:main'\]", Path(__file__).parents[1].joinpath('setup.py').read_text())
