"""The wheel in an environment of its own that holds what the package requires and nothing else: it imports, and a detector detects.

PyTorch takes minutes to install, so the requirements, and what they require, are linked from the environment that runs the tests."""
import email, json, sys, zipfile
from configparser import ConfigParser
from importlib.metadata import distribution
from pathlib import Path
import pytest
from packaging.requirements import Requirement
from notebooks import root
from versions import build_wheel, call

config = ConfigParser(delimiters=['='])
config.read(root/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
script = '''
import importlib.util, json, pathlib, pkgutil, sys
import objdet
folder = pathlib.Path(objdet.__file__).parent
modules = [m.name for m in pkgutil.iter_modules([str(folder)])]
for m in modules: importlib.import_module(f'objdet.{m}')
tools = 'nbdev execnb IPython ipykernel jupyter_core jupyterlab nbformat smalldocs pytest hypothesis pycocotools latex2mathml'.split()
out = dict(folder=str(folder), modules=modules, tools=[t for t in tools if importlib.util.find_spec(t)])

import torch
from torchvision.ops import box_iou
from objdet.anchors_matching import default_grids, default_shapes, default_zooms
from objdet.detector import Detector, load_detector
from objdet.sample import draw_picture, sample_classes
from objdet.single_obj import create_body
from objdet.ssd_loss import SSDMultiHead
body = create_body('symbols', 'DEFAULT')
head = SSDMultiHead(body.channels, len(sample_classes), nf=16)
Detector(body, head, sample_classes, (default_grids, default_zooms, default_shapes), 128, dict(nf=16)).save('made.pt')
drawn = [draw_picture('val', i)[:3:2] for i in range(3)]
out['made'] = [dict(n=len(d['names']), inside=bool((d['boxes'] >= 0).all() and (d['boxes'] <= torch.tensor([*p.size]*2)).all()))
               for p, d in ((p, load_detector('made.pt').predict(p, thresh=0.)[0]) for p, _ in drawn)]
if (folder/'weights/detector_sample.pt').exists():
    hits, found = 0, load_detector().predict([p for p, _ in drawn])
    for (_, objects), d in zip(drawn, found):
        for o in objects:
            overlaps = box_iou(torch.tensor([o['box']], dtype=torch.float32), d['boxes'])[0].tolist()
            hits += any(v > .5 and name == o['name'] for v, name in zip(overlaps, d['names']))
    out['shipped'] = dict(objects=sum(len(o) for _, o in drawn), hits=hits)
print(json.dumps(out))
'''


def required(names):
    "The distributions that pip would install for requirements `names`, theirs included."
    found, left = {}, [Requirement(n) for n in names]
    while left:
        r = left.pop()
        if (r.name, *r.extras) in found: continue
        found[r.name, *r.extras] = d = distribution(r.name)
        needs = map(Requirement, d.requires or [])
        left += [n for n in needs if not n.marker or any(n.marker.evaluate(dict(extra=e)) for e in ['', *r.extras])]
    return list(found.values())


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "The package's wheel, built beside a file that is none of its business."
    return build_wheel(tmp_path_factory.mktemp('wheel'), stray=['objdet/weights/stray.txt'])


@pytest.fixture(scope='module')
def python(wheel, tmp_path_factory):
    "The interpreter of an environment with the wheel, and links to what it requires."
    env = tmp_path_factory.mktemp('env')
    call(sys.executable, '-m', 'venv', '--without-pip', env)
    exe = env/'bin/python'
    site = Path(call(exe, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))').strip())
    for d in required(cfg['requirements'].split()):
        for top in {f.parts[0] for f in d.files} - {'..', '__pycache__'}:
            if not (site/top).exists(): (site/top).symlink_to(d.locate_file(top))
    call(sys.executable, '-m', 'pip', '--python', exe, 'install', '--quiet', '--no-deps', '--no-index', '--no-compile', wheel)
    return exe


def test_wheel_holds_the_package_and_nothing_else(wheel):
    "Weights forgotten in package_data, or tests, notebooks and strays packed too."
    assert wheel.name == f"{cfg['lib_name']}-{cfg['version']}-py3-none-any.whl"
    files, info = zipfile.ZipFile(wheel).namelist(), f"{cfg['lib_name']}-{cfg['version']}.dist-info/"
    expected = {p.relative_to(root).as_posix() for p in [*(root/'objdet').glob('*.py'), *(root/'objdet/weights').glob('*.pt')]}
    assert {n for n in files if not n.startswith(info)} == expected and 'objdet/weights/symbols.pt' in expected
    assert {Path(n).name for n in files if n.startswith(info)} == {'METADATA', 'WHEEL', 'RECORD', 'LICENSE', 'entry_points.txt', 'top_level.txt'}


def test_wheel_says_what_settings_say(wheel):
    with zipfile.ZipFile(wheel) as z: meta = email.message_from_bytes(next(z.read(n) for n in z.namelist() if n.endswith('/METADATA')))
    for field, key in dict(Name='lib_name', Version='version', Summary='description', Author='author').items(): assert meta[field] == cfg[key]
    assert meta['Requires-Python'] == f">={cfg['min_python']}"
    needs = [Requirement(r) for r in meta.get_all('Requires-Dist')]
    plain = {(r.name, str(r.specifier)) for r in needs if r.marker is None}
    extra = {(r.name, str(r.specifier)) for r in needs if r.marker is not None and r.marker.evaluate(dict(extra='dev'))}
    for found, key in (plain, 'requirements'), (extra, 'dev_requirements'):
        assert found == {(r.name, str(r.specifier)) for r in map(Requirement, cfg[key].split())}


def test_wheel_detects_without_development_tools(python, tmp_path):
    "A module that imports nbdev or IPython, a requirement that is not in settings.ini, a file that only the repository has."
    out = json.loads(call(python, '-c', script, cwd=tmp_path).splitlines()[-1])
    assert Path(out['folder']).is_relative_to(python.parents[1]) and not out['tools']
    assert {*out['modules']} | {'__init__'} == {p.stem for p in (root/'objdet').glob('*.py')}
    assert all(o['n'] > 0 and o['inside'] for o in out['made'])
    if 'shipped' in out: assert 0 < out['shipped']['hits'] <= out['shipped']['objects']


def test_wheel_has_the_command(python, tmp_path):
    "An entry point that is missing or names another function."
    assert call(python.parent/'objdet', '--version', cwd=tmp_path).strip().startswith('objdet ')
