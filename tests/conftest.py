import os, sys
from pathlib import Path
import pytest
from hypothesis import HealthCheck, settings

root = Path(__file__).resolve().parents[1]
for folder in ('bench', 'scripts'): sys.path.insert(0, str(root/folder))

# PASCAL VOC 2007, for the tests that want the real thing: the variable OBJDET_VOC, or beside the repository
voc = Path(os.environ.get('OBJDET_VOC') or root.parent/'shared/voc2007').resolve()
needs_voc = pytest.mark.skipif(not voc.exists(), reason='needs PASCAL VOC 2007: OBJDET_VOC, or beside the repository')

for name in [*os.environ]: # what the user has set for the course has no say here
    if name.startswith('OBJDET_') and name != 'OBJDET_CACHE': del os.environ[name]
os.environ.setdefault('TQDM_DISABLE', '1')
os.environ['no_proxy'] = '127.0.0.1,localhost' # the way to our own servers leads through no proxy
settings.register_profile('suite', deadline=None, suppress_health_check=[HealthCheck.too_slow]) # a starved machine is no failure
settings.load_profile('suite')

@pytest.fixture(autouse=True)
def seeded():
    "Numbers drawn without a generator are the same whichever tests ran before"
    import torch # here, for what only collects tests needs none
    torch.manual_seed(0)
