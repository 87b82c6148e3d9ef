"""The project's whole test suite: exported code and README in sync with the notebooks, notebooks clean, the site without faults,
nbdev_test over all notebooks with proof of how many cells it executed, then pytest in several processes. It stops at the first part that fails."""
import json, os, shutil, subprocess, sys, tempfile, time
from pathlib import Path
import docs, readme
from notebooks import evaluated, notebooks, read, root, skipped, to_run

workers, threads = 3, 1  # processes for nbdev_test and for pytest, one more than the cores since they wait at times; and torch threads in each
may_skip = {}  # cells of lessons 00 to 07 that may hold `#| eval: false`: {(notebook, cell id): the reason}


def environment():
    "The variables for notebooks under test: always the sample, no progress bars."
    env = {k: v for k, v in os.environ.items() if not k.startswith('OBJDET_')}
    for name in 'OBJDET_CACHE', 'OBJDET_VOC':  # what is tested runs in other folders
        if os.environ.get(name): env[name] = str(Path(os.environ[name]).expanduser().resolve())
    for name in 'IN_TEST', 'MPLBACKEND': env.pop(name, None)
    return dict(env, TQDM_DISABLE='1')


def nbdev(project, code):
    "Run nbdev `code` in the folder `project`."
    env = dict(environment(), XDG_CONFIG_HOME=str(project))  # the user's own nbdev settings have no say here
    done = subprocess.run([sys.executable, '-c', code], cwd=project, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode: raise SystemExit(f'{done.stdout}\nnbdev failed: {code}')


def copy(project, to):
    "A copy of what nbdev reads and writes of `project`."
    shutil.copy(project/'settings.ini', to)
    shutil.copytree(project/'nbs', to/'nbs', ignore=lambda folder, names: [n for n in names if not n.endswith('.ipynb')])
    shutil.copytree(project/'objdet', to/'objdet', ignore=lambda folder, names: [n for n in names if n != '__init__.py'])


def compare(folder, other, glob):
    "Names of the files that are not the same in both folders."
    a, b = ({p.name: p.read_bytes() for p in f.glob(glob)} for f in (folder, other))
    return sorted(n for n in a.keys() | b.keys() if a.get(n) != b.get(n))


def exported(project):
    "Complaints about modules that are not what the notebooks export."
    with tempfile.TemporaryDirectory() as tmp:
        copy(project, Path(tmp))
        nbdev(tmp, 'from nbdev.doclinks import nbdev_export; nbdev_export.__wrapped__()')
        return [f'objdet/{n} is not what the notebooks export: run `make export`' for n in compare(project/'objdet', Path(tmp)/'objdet', '*.py')]


def cleaned(project):
    "Complaints about notebooks that nbdev_clean would change."
    with tempfile.TemporaryDirectory() as tmp:
        copy(project, Path(tmp))
        nbdev(tmp, 'from nbdev.clean import nbdev_clean; nbdev_clean.__wrapped__()')
        return [f'nbs/{n} is not clean: run `make export`' for n in compare(project/'nbs', Path(tmp)/'nbs', '*.ipynb')]


def unskipped(project):
    "Complaints about cells of lessons 00 to 07 that would not be executed."
    out = []
    for p in (p for p in notebooks(project/'nbs') if '00' <= p.stem[:2] <= '07'):
        nb = read(p)
        if skipped(nb): out.append(f'nbs/{p.name} says skip_exec: lessons run')
        out += [f"nbs/{p.name}, cell {c.get('id')}: eval: false without a reason in {Path(__file__).name}" for c in nb['cells']
                if c['cell_type'] == 'code' and not evaluated(c) and (p.stem, c.get('id')) not in may_skip]
    return out


def executed(project):
    "Run nbdev_test in `project`; complaints if it failed, or did not execute each cell that holds code."
    expected = {(p.name, c['id']) for p in notebooks(project/'nbs') for _, c in to_run(read(p))}
    with tempfile.TemporaryDirectory() as tmp:
        log = Path(tmp)/'cells'
        env = dict(environment(), OMP_NUM_THREADS=str(threads))
        done = subprocess.run([sys.executable, Path(__file__).with_name('counted_test.py'), log, str(workers)], cwd=project, env=env)
        ran = {tuple(json.loads(line)) for line in log.read_text().splitlines()} if log.exists() else set()
    print(f'nbdev_test: {len({n for n, _ in ran})} notebooks, {len(ran)} cells executed')
    if done.returncode: return [f'nbdev_test failed, with exit status {done.returncode}']
    if not ran: return ['nbdev_test executed nothing']
    return [f'nbs/{n}, cell {c} was not executed' for n, c in sorted(expected - ran)] + [f'nbs/{n}, cell {c} was executed, unexpectedly' for n, c in sorted(ran - expected)]


def rendered(project):
    "Render the site somewhere else; smalldocs's complaints end the suite."
    with tempfile.TemporaryDirectory() as tmp:
        docs.stage(project/'nbs', Path(tmp)/'_proc', project)
        docs.render(Path(tmp)/'_proc', Path(tmp)/'_docs')
    return []


parts = {
    'modules are what the notebooks export': exported,
    'notebooks are clean': cleaned,
    'README.md is what index.ipynb gives': lambda project: ['README.md is out of date: run `make readme`'] if readme.differs(project) else [],
    'no cell of the lessons is switched off': unskipped,
    'the site renders': rendered,
    'nbdev_test executed every cell': executed,
}


def check(project=root, names=parts):
    "Run the parts over `project`; True if no part complains."
    for name in names:
        start = time.time()
        found = parts[name](project)
        print('\n'.join(found) or f'ok: {name} ({time.time() - start:.0f} s)', flush=True)
        if found: return False
    return True


def tested(folder='tests'):
    "Run pytest over `folder`, a file of tests in one process, for what they share is made once; its exit status, 5 if there was no test."
    command = [sys.executable, '-m', 'pytest', '-q', '-n', str(workers), '--dist', 'loadfile', folder]
    return subprocess.run(command, cwd=root, env=dict(environment(), OMP_NUM_THREADS=str(threads))).returncode


if __name__ == '__main__':
    if not check(): sys.exit(1)
    sys.exit(tested())
