"SIGKILL at random moments: nothing is half there, and what is started again ends as if nothing had happened"
import os, re, subprocess, sys
from pathlib import Path
import pytest

root = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')


@pytest.fixture(scope='module')
def report(tmp_path_factory):
    "What scripts/kill.py prints of four kills each, in a process of its own: it forks, and must have no threads"
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(root), os.environ.get('PYTHONPATH', '')]), TMPDIR=str(tmp_path_factory.mktemp('killed')))
    done = subprocess.run([sys.executable, root/'scripts/kill.py', '4', '--seed', '1'], env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(line.split(': ', 1) for line in done.stdout.splitlines())


@pytest.mark.parametrize('what', ['training', 'sample', 'download'])
def test_killed_and_started_again(report, what):
    "Fails if a file is half written, a state of chance is not restored, or the half-done folders of killed processes stay"
    kills, resumed, finished, equal = map(int, re.findall(r'(\d+) (?:kills|left|finished|equal)', report[what]))
    assert kills == 4 and finished == equal >= 1
    if what == 'training': assert resumed >= 1  # the moments of this seed are not all before the first epoch's end


def test_the_server_ends_with_its_parent(tmp_path):
    "The forked server of a killed parent served for good, and kept its folder"
    code = f'import kill, os; from pathlib import Path; kill.Download(Path({str(tmp_path)!r})); print(*kill.running, flush=True); os.kill(os.getpid(), 9)'
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(root/'scripts'), str(root), os.environ.get('PYTHONPATH', '')]))
    done = subprocess.run([sys.executable, '-c', code], env=env, stdout=subprocess.PIPE, text=True, timeout=300)  # ends when the server does, too: it holds the pipe
    assert done.returncode == -9 and done.stdout.split()[0].isdigit()
