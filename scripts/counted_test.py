"""nbdev's own `nbdev_test`, with proof of what it executed: each cell that ran to its end adds a line [notebook, cell id] to a file.

Alone, nbdev_test prints no count, and exits 0 when it finds no notebook."""
import json, multiprocessing, os, sys
from pathlib import Path
from execnb.shell import CaptureShell
from nbdev.test import nbdev_test
from notebooks import holds_code


def record(log):
    "Have every `CaptureShell` add its cells to the file `log`; workers that are forked later do the same."
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    start, run = CaptureShell.__init__, CaptureShell.cell
    def init(self, path=None, *args, **kwargs):
        start(self, path, *args, **kwargs)
        self.notebook = Path(path).name if path else ''
    def cell(self, cell, *args, **kwargs):
        run(self, cell, *args, **kwargs)
        if cell.cell_type == 'code' and self.exc is None and holds_code(cell.source):
            os.write(fd, (json.dumps([self.notebook, cell.id]) + '\n').encode())
    CaptureShell.__init__, CaptureShell.cell = init, cell


if __name__ == '__main__':
    multiprocessing.set_start_method('fork', force=True)
    record(sys.argv[1])
    nbdev_test.__wrapped__(n_workers=int(sys.argv[2]), timing=True)
