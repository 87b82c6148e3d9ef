import os, sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'scripts'))
os.environ.setdefault('TQDM_DISABLE', '1')
