"What the scripts share: the notebooks in their order, and which of their cells run."
import json, os, re, tempfile
from pathlib import Path

root = Path(__file__).resolve().parents[1]
nbs = root/'nbs'
toolbox = 89  # the number of its first notebook: lessons have smaller ones


def text(cell):
    "The source of `cell` as one string."
    src = cell.get('source', '')
    return src if isinstance(src, str) else ''.join(src)


def read(path):
    "The notebook in file `path` as a dict."
    nb = json.loads(Path(path).read_text(encoding='utf-8'))
    if not isinstance(nb, dict) or 'cells' not in nb: raise ValueError(f'{path} is not a notebook: it has no cells')
    return nb


def write(path, content):
    "Write text `content` into file `path`, whole or not at all."
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, tmp = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.')
    try:
        with os.fdopen(fd, 'w', encoding='utf-8') as f: f.write(content)
        os.chmod(tmp, 0o644)
        os.replace(tmp, path)
    except BaseException:
        os.unlink(tmp)
        raise


def dump(nb):
    "A notebook as nbdev writes it, so that a cleaned one keeps its bytes."
    return json.dumps(nb, sort_keys=True, indent=1, ensure_ascii=False) + '\n'


def notebooks(folder=nbs, only=()):
    "The notebooks of `folder` in the course's order, index first; `only` keeps those whose names start with one of its words."
    found = sorted((p for p in Path(folder).glob('*.ipynb') if p.name[0] not in '_.'), key=lambda p: (p.stem != 'index', p.name))
    missing = [o for o in only if not any(p.stem.startswith(o) for p in found)]
    if missing: raise SystemExit(f"no notebook in {folder} starts with {' or '.join(missing)}; there are: {' '.join(p.stem for p in found)}")
    return [p for p in found if not only or p.stem.startswith(tuple(only))]


def skipped(nb):
    "Does the front matter of notebook `nb` say `skip_exec: true`?"
    front = [text(c) for c in nb['cells'] if c['cell_type'] != 'code'][:2]
    return any(re.search(r'^(- )?skip_exec: *true *$', s, re.M | re.I) for s in front)


def directives(cell):
    "The lines `#| …` at the top of a code cell, without their marks."
    found = re.match(r'(\s*#\s*\|.*(\n|$)|\s*\n)*', text(cell)).group()
    return [re.sub(r'^#\s*\|\s*', '', line.strip()) for line in found.splitlines() if line.strip()]


def evaluated(cell):
    "Is this a code cell without `#| eval: false`?"
    return cell['cell_type'] == 'code' and not any(re.fullmatch(r'eval:\s*false', d, re.I) for d in directives(cell))


def holds_code(source):
    "Is there a line in `source` that is neither blank nor a comment?"
    return any(line.strip() and not line.strip().startswith('#') for line in source.splitlines())


def to_run(nb):
    "The cells of notebook `nb` that hold code and are to run, as pairs of position and cell."
    if skipped(nb): return []
    return [(i, c) for i, c in enumerate(nb['cells']) if evaluated(c) and holds_code(text(c))]
