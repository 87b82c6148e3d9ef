"""Run the course: execute every notebook in order into a copy, render the site from the copies, and say how it went.

Variables: NBS="05 06" runs only these; OBJDET_DATA is other data (a path, or a name that `get_data` knows); OBJDET_BODY and
OBJDET_WEIGHTS choose another body. The notebooks in nbs/ stay as they are, unless --save puts the outputs of a run on the sample there."""
import argparse, asyncio, json, os, re, signal, subprocess, sys, time
from pathlib import Path
import docs
from notebooks import dump, nbs, notebooks, read, root, skipped, text, to_run, write

scored = '06_focal_nms'  # the lesson whose detector is scored; it writes {scored}.json into the folder OBJDET_RESULTS


def absolute(name, value):
    "Variable `name`'s `value` with a path in it made absolute; a path that is not there ends the run."
    path = Path(value).expanduser()
    if path.exists(): return str(path.resolve())
    if path.suffix or len(path.parts) > 1: raise SystemExit(f'{name}={value}: there is no such file or folder (seen from {Path.cwd()})')
    return value


def environment():
    "Set the variables that the notebooks see; the name of the data, and the folder for the copies."
    for name in 'OBJDET_DATA', 'OBJDET_WEIGHTS':
        if os.environ.get(name): os.environ[name] = absolute(name, os.environ[name])
    if os.environ.get('OBJDET_CACHE'): os.environ['OBJDET_CACHE'] = str(Path(os.environ['OBJDET_CACHE']).expanduser().resolve())
    os.environ.update(TQDM_DISABLE='1', JUPYTER_PREFER_ENV_PATH='1')
    os.environ.pop('MPLBACKEND', None)
    data = Path(os.environ.get('OBJDET_DATA') or 'sample').name
    folder = root/'_course'/re.sub(r'[^\w.-]+', '-', data)
    os.environ['OBJDET_RESULTS'] = str(folder/'results')
    return data, folder


def copies(folder, chosen):
    "Fill `folder` with copies of all notebooks: those not `chosen` keep the outputs of an earlier run, if their cells are the same."
    for src in notebooks():
        dst, nb = folder/src.name, read(src)
        same = dst.exists() and [text(c) for c in read(dst)['cells']] == [text(c) for c in nb['cells']]
        if src in chosen or not same: write(dst, dump(nb))
    for old in set(folder.glob('*.ipynb')) - {folder/p.name for p in notebooks()}: old.unlink()


class Line:
    "One line on the terminal for each notebook, kept up to date while it runs."
    def __init__(self, name, nth, count):
        self.head, self.start, self.live = f'[{nth:2d}/{count}] {name:<22}', time.time(), sys.stdout.isatty()
        if not self.live: print(self.head, end='', flush=True)

    def seconds(self): return time.time() - self.start

    def show(self, what):
        "Replace the line, where it can be replaced."
        if self.live: print(f'\r\x1b[K{self.head}{what}', end='', flush=True)

    def done(self, what):
        "Close the line."
        print(f'\r\x1b[K{self.head}{what}' if self.live else what, flush=True)


async def execute(nb, folder, line):
    "Execute the cells of notebook `nb` in `folder`: their number, (position, message) of the one that failed, or None if the user stopped it."
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError
    cells, at, stops = to_run(nb), None, []
    client = NotebookClient(nb, timeout=None, startup_timeout=120, kernel_name='python3', record_timing=False,
                            coalesce_streams=True, extra_arguments=['--IPKernelApp.log_level=ERROR'], resources=dict(metadata=dict(path=str(folder))))
    kernel, loop = client.create_kernel_manager(), asyncio.get_running_loop()
    def stop():  # the first signal ends the cell, as in Jupyter; the second one, or one before the first cell, the kernel
        gentle = at is not None and not stops
        stops.append(loop.create_task(kernel.interrupt_kernel() if gentle else kernel.shutdown_kernel(now=True)))
    async def tick():
        while True:
            line.show(f'cell {(at or 0) + 1} of {len(nb.cells)}, {line.seconds():.0f} s')
            await asyncio.sleep(1)
    for s in signal.SIGINT, signal.SIGTERM: loop.add_signal_handler(s, stop)
    ticker = loop.create_task(tick())
    try:
        await client.async_start_new_kernel()
        await client.async_start_new_kernel_client()
        for at, cell in cells:
            if stops: break
            await client.async_execute_cell(cell, at)
    except (CellExecutionError, DeadKernelError, RuntimeError) as e:
        why = f'{e.ename}: {e.evalue}' if isinstance(e, CellExecutionError) else f'{e}. The kernel is gone: was there not enough memory?'
        return None if stops else (at or 0, why)
    finally:
        ticker.cancel()
        if client.kc: client.kc.stop_channels()
        await kernel.shutdown_kernel(now=True)
    return None if stops else len(cells)


def run(path, line):
    "Execute the notebook file `path` in place; as `execute`."
    import nbformat  # slow to import: not before the first line is out
    nb = nbformat.read(path, as_version=4)
    for c in nb.cells:
        if c.cell_type == 'code': c.update(outputs=[], execution_count=None)
    try: return asyncio.run(execute(nb, path.parent, line))
    finally: write(path, nbformat.writes(nb) + '\n')


def trouble(path, at):
    "The source of cell `at` in the notebook file `path`, and the end of its traceback."
    cell = read(path)['cells'][at]
    tb = next((o['traceback'] for o in cell.get('outputs', []) if o['output_type'] == 'error'), [])
    lines = re.sub(r'\x1b\[[0-9;]*m', '', '\n'.join(tb)).splitlines()
    return '\n'.join(['', *('    ' + s for s in text(cell).splitlines()[:8]), '', *lines[-12:]])


def score(folder, data):
    "The line on the detector's mAP, from what the lesson left in the results folder."
    file = folder/'results'/f'{scored}.json'
    if not file.exists(): raise SystemExit(f'{scored} ran but left no {file}: the detector has no score')
    r = json.loads(file.read_text())
    body = f", with the body {r['body']}" if 'body' in r else ''
    return f"The detector's mAP at IoU 0.5: {r['map']:.3f} on {r['n']} validation pictures of {r.get('data', data)}{body}"


def save(folder, chosen):
    "Put the executed copies of the `chosen` notebooks into nbs/, cleaned."
    for p in chosen: write(nbs/p.name, (folder/p.name).read_text(encoding='utf-8'))
    subprocess.run([sys.executable, '-c', 'from nbdev.clean import nbdev_clean; nbdev_clean.__wrapped__()'], cwd=root, check=True)
    print(f'{len(chosen)} notebooks with their new outputs are in {nbs}')


def main(only=(), keep=False):
    "Run the notebooks whose names start with a word of `only` (all by default); the exit status."
    own = [v for v in ('OBJDET_DATA', 'OBJDET_BODY', 'OBJDET_WEIGHTS') if os.environ.get(v)]
    if keep and own: raise SystemExit(f"the notebooks in nbs/ show the sample: unset {' '.join(own)} to save outputs there")
    data, folder = environment()
    chosen, rows, began = notebooks(only=only), [], time.time()
    if not chosen: raise SystemExit(f'{nbs} holds no notebook')
    copies(folder, chosen)
    (folder/'results').mkdir(exist_ok=True)
    if any(p.stem == scored for p in chosen): (folder/'results'/f'{scored}.json').unlink(missing_ok=True)
    print(f'Running {len(chosen)} notebooks on {data}, in {folder}')
    for i, src in enumerate(chosen, 1):
        path, line = folder/src.name, Line(src.stem, i, len(chosen))
        if skipped(read(path)):
            line.done('skipped: its front matter says skip_exec')
            continue
        result = run(path, line)
        if result is None:
            line.done(f'stopped after {line.seconds():.0f} s')
            return 130
        if isinstance(result, tuple):
            at, why = result
            line.done(f'failed in cell {at + 1} after {line.seconds():.0f} s')
            print(f'{trouble(path, at)}\n\n{src.stem}, cell {at + 1}: {why}\nThe copy with the outputs so far: {path}')
            return 1
        rows.append((src.stem, result, line.seconds()))
        line.done(f'{result:3d} cells {line.seconds():5.0f} s')
    found = score(folder, data) if any(r[0] == scored for r in rows) else None
    start = time.time()
    print('Rendering the site', flush=True)
    page = docs.build(folder)
    if keep: save(folder, [nbs/f'{r[0]}.ipynb' for r in rows])
    print(f"\n{'notebook':<24}{'cells':>6}{'seconds':>9}")
    for name, cells, seconds in rows: print(f'{name:<24}{cells:>6}{seconds:>9.0f}')
    print(f"{'the site':<24}{'':>6}{time.time() - start:>9.0f}\n{'in all':<24}{sum(r[1] for r in rows):>6}{time.time() - began:>9.0f}\n")
    if found: print(found)
    print(f'Open {page}')
    return 0


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--save', action='store_true', help='put the outputs into nbs/, cleaned; only with the sample and its body')
    try: sys.exit(main(os.environ.get('NBS', '').split(), parser.parse_args().save))
    except KeyboardInterrupt: sys.exit('stopped')
