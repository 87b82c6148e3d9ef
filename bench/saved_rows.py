"Saved tables of the programs beside this file: rows of JSON, one a training, each with the settings that it was made with"
import json, os
from pathlib import Path

def read_rows(path, key, names, need):
    "The rows in the file `path`, none if there is no file; `ValueError` if it is of another kind. `key` is the field that names what was tried, one of `names`"
    path, need = Path(path), {key, 'seed', 'settings', *need}
    if not path.exists(): return []
    try: rows = json.loads(path.read_text(encoding='utf-8'))['rows']
    except (ValueError, KeyError, TypeError) as e:
        why = f'{type(e).__name__}: {e}'
        raise ValueError(f'{path}: not a table of such rows ({why}); expected JSON with "rows": remove it or choose another --out') from e
    for i, r in enumerate(rows):
        if not isinstance(r, dict) or need - r.keys():
            raise ValueError(f'{path}: row {i} is {str(r)[:80]}; expected the fields {", ".join(sorted(need))}')
        if r[key] not in names: raise ValueError(f'{path}: row {i} is of the {key} {r[key]!r}; expected one of {", ".join(names)}')
    return rows

def write_rows(rows, settings, path):
    "Write all rows and the settings of this run to a temporary file, then rename: the file is whole or not there"
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f'{path.name}.{os.getpid()}.tmp')
    try:
        tmp.write_text(json.dumps(dict(settings=settings, rows=rows), indent=1) + '\n', encoding='utf-8')
        os.replace(tmp, path)
    finally: tmp.unlink(missing_ok=True)

def done(rows, key, settings):
    "The (name, seed) that `rows` have with the same settings"
    return {(r[key], r['seed']) for r in rows if r['settings'] == settings}
