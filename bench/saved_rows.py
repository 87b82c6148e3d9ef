"What the programs beside this file that save a table have in common: their options, and rows of JSON, one a training, each with its settings"
import argparse, hashlib, json
from pathlib import Path
from objdet.learner import whole_file

def parser(doc, out, seeds, epochs, lr):
    "Options that every such program has; `out` is its table, the others are defaults"
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, n, what in (('seeds', seeds, 'trainings of each row'), ('bs', 32, 'pictures a batch'), ('epochs', epochs, 'of each training'),
                          ('limit', 0, 'use only so many pictures of each split; 0: all'), ('threads', 0, "of torch; 0: torch's own choice")):
        p.add_argument(f'--{name}', type=int, default=n, help=f'{what} (default {n})')
    p.add_argument('--lr', type=float, default=lr, help=f'highest rate (default {lr})')
    p.add_argument('--data', help='as in lesson 00: sample, voc2007, a folder, a .json or a .tar (default: OBJDET_DATA, else sample)')
    p.add_argument('--body', help='as in lesson 02: symbols, mobilenet_v2, … (default: OBJDET_BODY, else symbols)')
    p.add_argument('--weights', help='as in lesson 02: a file, DEFAULT or none (default: OBJDET_WEIGHTS, else DEFAULT)')
    p.add_argument('--out', type=Path, default=Path(out), help=f'the table (default {out})')
    return p

def parse(p, argv):
    "What was asked for; ends the program where a number makes no sense"
    a = p.parse_args(argv)
    if min(a.seeds, a.epochs, a.bs) < 1 or min(a.limit, a.threads) < 0:
        p.error('seeds, epochs and bs are at least 1; limit and threads at least 0')
    return a

def settings_of(a, path, trn, val, body):
    "All that a row depends on but its name and seed; the body's numbers too, since a file of weights may change and keep its name"
    numbers = hashlib.sha1(b''.join(t.detach().cpu().contiguous().numpy().tobytes() for t in body.state_dict().values())).hexdigest()[:8]
    return dict(data=path.name, pictures=[len(trn), len(val)], body=body.name, weights=numbers, epochs=a.epochs, bs=a.bs, lr=a.lr)

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

def write_rows(rows, settings, path, **more):
    "Write all rows, the settings of this run and what else is named; whole or not at all"
    with whole_file(path) as f: f.write((json.dumps(dict(settings=settings, **more, rows=rows), indent=1) + '\n').encode())

def done(rows, key, settings):
    "The (name, seed) that `rows` have with the same settings"
    return {(r[key], r['seed']) for r in rows if r['settings'] == settings}
