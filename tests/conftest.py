import os, sys
from pathlib import Path

for folder in ('bench', 'scripts'): sys.path.insert(0, str(Path(__file__).resolve().parents[1]/folder))
os.environ.setdefault('TQDM_DISABLE', '1')
