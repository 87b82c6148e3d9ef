"""Try the package's wheel with other versions: the oldest PyTorch that settings.ini allows and the newest, fastcore 1 and 2, each Python that is here.

Each Python and PyTorch gets a scratch environment without development tools, a fast part of the tests runs there from a copy, and
the environment is removed: PyTorch takes about 5 GB. Choose with --python, --torch and --fastcore."""
import argparse, json, os, re, shutil, signal, subprocess, sys, tempfile, time
from configparser import ConfigParser
from pathlib import Path
from check import environment
from notebooks import root

tests = 'test_anchors_matching test_focal_nms test_ssd_loss test_learner test_score test_detector'.split()
tools = 'pytest', 'hypothesis', 'pycocotools'
fastcores = {'1': 'fastcore<2', '2': 'fastcore>=2'}
candidates = range(11, 15)  # Python 3.11 to 3.14
sources = 'setup.py', 'settings.ini', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE'  # what a wheel is built from, beside objdet/
probe = '''
import importlib, json, pathlib, sys
import objdet, torch, torchvision, fastcore
folder = pathlib.Path(objdet.__file__).parent
assert pathlib.Path(sys.prefix).resolve() in folder.resolve().parents, f'{folder} is not in {sys.prefix}'
for p in sorted(folder.glob('*.py')): importlib.import_module(f'objdet.{p.stem}' if p.stem[0] != '_' else 'objdet')
print(json.dumps([m.__version__ for m in (torch, torchvision, fastcore)]))
'''


def build_wheel(folder, stray=()):
    "Build the package's wheel in `folder`, from a copy of what setuptools reads with empty files `stray` beside: the file."
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        for name in sources: shutil.copy(root/name, tmp)
        shutil.copytree(root/'objdet', tmp/'objdet', ignore=shutil.ignore_patterns('__pycache__'))
        for name in stray: (tmp/name).touch()
        call(sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation', '--wheel-dir', folder, tmp)
    return next(Path(folder).glob('objdet-*.whl'))


def call(*args, **kwargs):
    "What a command prints; RuntimeError with the end of it if the command fails."
    env = dict(environment(), PYTHONNOUSERSITE='1', PIP_DISABLE_PIP_VERSION_CHECK='1')
    env.pop('PYTHONPATH', None)
    done = subprocess.run([str(a) for a in args], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **kwargs)
    if done.returncode: raise RuntimeError(f"{' '.join(map(str, args[:4]))} …: exit status {done.returncode}\n{done.stdout[-2000:].rstrip()}")
    return done.stdout


def oldest():
    "The oldest PyTorch that settings.ini allows, as requirements of pip."
    cfg = ConfigParser(delimiters=['='])
    cfg.read(root/'settings.ini', encoding='utf-8')
    return [f'{name}=={version}.*' for name, version in re.findall(r'\b(torch|torchvision)>=([\d.]+)', cfg['DEFAULT']['requirements'])]


def pythons():
    "The interpreters on this machine that can make an environment, by version."
    found = {}
    for minor in candidates:
        name = f'python3.{minor}'
        pyenv = Path(os.environ.get('PYENV_ROOT', Path.home()/'.pyenv'))/'versions'
        for exe in [sys.executable, shutil.which(name), *sorted(pyenv.glob(f'3.{minor}.*/bin/python3'), reverse=True)]:
            try: version = call(exe, '-c', 'import ensurepip, sys, venv; print(*sys.version_info[:2], sep=".")').strip() if exe else None
            except (OSError, RuntimeError): continue
            if version == f'3.{minor}': found[version] = exe; break
    return found


def row(env, wheel, fastcore, work):
    "Install one fastcore into the environment and run the tests: versions, counts, and the output of a run that failed."
    python, start = env/'bin/python', time.time()
    call(python, '-m', 'pip', 'install', '--quiet', '--no-compile', wheel, fastcores[fastcore])
    versions = json.loads(call(python, '-c', probe, cwd=work).splitlines()[-1])
    try: out, failed = call(python, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', *(f'tests/{t}.py' for t in tests), cwd=work), None
    except RuntimeError as e: out = failed = str(e)
    counts = {word: int(n) for n, word in re.findall(r'(\d+) (passed|failed|error|skipped)', out.splitlines()[-1])}
    if not counts.get('passed'): failed = failed or 'no test passed'
    return [*versions, ', '.join(f'{n} {w}' for w, n in counts.items()) or 'did not run', f'{time.time() - start:.0f} s'], failed


def table(rows):
    "The rows in columns."
    head = 'Python', 'torch', 'torchvision', 'fastcore', 'tests', 'time'
    wide = [max(len(r[i]) for r in [head, *rows]) for i in range(len(head))]
    return '\n'.join('  '.join(f'{c:<{w}}' for c, w in zip(r, wide)).rstrip() for r in [head, *rows])


def main(folder, chosen):
    "Make each environment in turn under `folder`; the exit status."
    here, rows, troubles = pythons(), [], []
    if absent := [f'3.{m}' for m in candidates if f'3.{m}' not in here]: print(f"not on this machine: Python {', '.join(absent)}")
    if wrong := set(chosen.python or []) - here.keys(): raise SystemExit(f"there is no Python {', '.join(sorted(wrong))} here; there are: {', '.join(here)}")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix='versions-') as tmp:
        tmp = Path(tmp)
        wheel, work, env = build_wheel(tmp), tmp/'work', tmp/'env'
        for name in 'tests', 'bench', 'scripts': shutil.copytree(root/name, work/name, ignore=shutil.ignore_patterns('__pycache__'))
        shutil.copy(root/'settings.ini', work)
        for python in chosen.python or here:
            for torch in chosen.torch or ['oldest', 'newest']:
                needs = oldest() if torch == 'oldest' else ['torch', 'torchvision']
                print(f"Python {python}, {' '.join(needs)}: installing", flush=True)
                try:
                    call(here[python], '-m', 'venv', env)
                    call(env/'bin/python', '-m', 'pip', 'install', '--quiet', '--no-compile', *needs, *tools)
                    for fastcore in chosen.fastcore or fastcores:
                        cells, failed = row(env, wheel, fastcore, work)
                        rows.append([python, *cells])
                        print(table(rows[-1:]).splitlines()[1], flush=True)
                        if failed: troubles.append(f'--- {" ".join(rows[-1])}\n{failed}')
                except RuntimeError as e:
                    rows.append([python, ' '.join(needs), '', '', 'not installed or not importable', ''])
                    troubles.append(str(e))
                finally: shutil.rmtree(env, ignore_errors=True)
    print('\n'.join(['', *troubles, table(rows)]))
    return 1 if troubles else 0


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--folder', type=Path, required=True, help='where the scratch environments are made, one at a time: 6 GB')
    parser.add_argument('--python', action='append', choices=[f'3.{m}' for m in candidates], help='only this one (may be given again)')
    parser.add_argument('--torch', action='append', choices=['oldest', 'newest'], help='only this one')
    parser.add_argument('--fastcore', action='append', choices=list(fastcores), help='only this one')
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *args: sys.exit(143))  # so that the environment goes too
    sys.exit(main(args.folder.expanduser().resolve(), args))
