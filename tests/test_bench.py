"The programs that measure, at tiny sizes: they run to their end, and the answers that they compare are equal"
import re, sys
from types import SimpleNamespace
import detect, detect_file, pytest, score, ssd_loss
from objdet.sample import draw_picture

@pytest.fixture
def run(monkeypatch, capsys):
    "Run a program with arguments: what it prints"
    def run(program, args):
        monkeypatch.setattr(sys, 'argv', ['bench', *args.split()])
        program.main()
        return capsys.readouterr().out
    return run

def test_score(run):
    out = run(score, '--pictures 12 --dets 9 --classes 3 --repeats 1 --six')
    theirs, ours = re.findall(r'AP50 ([\d.]+)', out)
    assert theirs == ours and 'coco_ap' in out

def test_detect(run):
    "Both sets of anchors, and the loop that is to find the same"
    out = run(detect, '--pairs 1 --batch 1 --classes 2')
    assert re.findall(r'([\d,]+) anchors, batch 1, \d+ candidates a picture, \d+ kept', out) == ['189', '8,732'] and out.count('times detect') == 2

def test_ssd_loss(run, monkeypatch):
    "Speed, memory, in this process, and a training step"
    def peak(k, a): print(f'peak {ssd_loss.peak(SimpleNamespace(**vars(a) | dict(memory=k))):.1f} MB')
    monkeypatch.setattr(ssd_loss, 'memory', peak)
    out = run(ssd_loss, '--pairs 1 --batch 2 --classes 3 --only 189')
    assert '189 anchors, batch 2' in out and all(f'  {name} ' in out for name in ('loop', 'torchvision')) and 'peak' in out
    assert 'a step' in run(ssd_loss, '--pairs 1 --batch 2 --classes 3 --only training')

def test_detect_file(run, tmp_path):
    draw_picture('val', 0)[0].save(tmp_path/'a.png')
    out = run(detect_file, f'--pairs 1 {tmp_path}/a.png')
    assert re.findall(r'^(\w+).*: squares of (\d+)', out, re.M) == [('sample', '128'), ('mobilenet_v2', '288')] and out.count('of which open and decode') == 2
