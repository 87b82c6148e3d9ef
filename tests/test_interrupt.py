"SIGKILL at random moments: nothing is half there, and what is started again ends as if nothing had happened"
import os, re, subprocess, sys
from pathlib import Path
import pytest

root = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')


@pytest.fixture(scope='module')
def report():
    "What scripts/kill.py prints of four kills each, in a process of its own: it forks, and must have no threads"
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(root), os.environ.get('PYTHONPATH', '')]))
    done = subprocess.run([sys.executable, root/'scripts/kill.py', '4', '--seed', '1'], env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(line.split(': ', 1) for line in done.stdout.splitlines())


@pytest.mark.parametrize('what', ['training', 'sample', 'download'])
def test_killed_and_started_again(report, what):
    "Fails if a file is half written, a state of chance is not restored, or the half-done folders of killed processes stay"
    kills, _, finished, equal = map(int, re.findall(r'(\d+) (?:kills|left|finished|equal)', report[what]))
    assert kills == 4 and finished == equal >= 1
