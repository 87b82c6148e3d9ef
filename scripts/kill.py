"""Kill a training, the making of the sample and a download at random moments, start each again until it finishes, and see that nothing is lost.

`python scripts/kill.py 20` kills each twenty times; exit status 1 if a result differs from an undisturbed one, or half of anything was found."""
import argparse, functools, hashlib, http.server, os, random, shutil, signal, sys, tarfile, tempfile, time, traceback
from pathlib import Path
os.environ.update(OMP_NUM_THREADS='1', TQDM_DISABLE='1')  # processes are forked from this one, so it must have no threads
os.environ['no_proxy'] = '127.0.0.1,localhost'  # the way to our own server leads through no proxy
import numpy as np, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, default_collate
from torchvision.datasets.voc import DATASET_YEAR_DICT
from objdet.learner import Learner, read_weights, set_seed
from objdet.pascal_data import DataLoaders
from objdet.sample import make_sample
from objdet.sources import get_data


def digests(folder):
    "The checksum of every file below a folder."
    return {str(f.relative_to(folder)): hashlib.md5(f.read_bytes()).hexdigest() for f in sorted(folder.rglob('*')) if f.is_file()}


def same(a, b):
    "Are two values of plain things and tensors equal to the last bit?"
    if torch.is_tensor(a): return torch.is_tensor(b) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict): return a.keys() == b.keys() and all(same(v, b[k]) for k, v in a.items())
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))
    return a == b


# --- what is killed: what it does in a folder, what must hold there at any moment, and what it leaves when it is through

class Noise:
    "A batch with noise from each source of chance, for a resumed training must have them all back"
    def __call__(self, items):
        x, y = default_collate(items)
        return x + .1*random.random() + .1*float(np.random.randn()) + .1*torch.randn_like(x), y


class Training:
    "Two stages of a training, each with its checkpoint"
    files = ['all.ckpt', 'head.ckpt', 'result.pt']
    def work(self, folder):
        set_seed(0)
        x = torch.rand(256, 16)
        ds = TensorDataset(x, x.sum(1, keepdim=True))
        train = DataLoader(ds, 16, shuffle=True, generator=torch.Generator().manual_seed(1), collate_fn=Noise())
        parts = [nn.Sequential(nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU()), nn.Sequential(nn.Dropout(.2), nn.Linear(64, 1))]
        learn = Learner(nn.Sequential(*parts), DataLoaders(train, DataLoader(ds, 64)), nn.functional.mse_loss, groups=parts, device='cpu')
        learn.freeze(); learn.fit_one_cycle(3, 1e-2, checkpoint=folder/'head.ckpt')
        learn.unfreeze(); learn.fit_one_cycle(5, [1e-3, 1e-2], checkpoint=folder/'all.ckpt')
        learn.save(folder/'result.pt')

    def check(self, folder):
        "Every file has its whole content; the number of files found"
        found = [f for f in folder.iterdir() if f.suffix != '.part']
        for f in found: read_weights(f)
        return len(found)

    def result(self, folder):
        assert sorted(f.name for f in folder.iterdir()) == self.files, f'left behind: {sorted(f.name for f in folder.iterdir())}'
        out = {f: read_weights(folder/f) for f in self.files}
        for row in (o for d in out.values() for o in d['history']): del row['seconds']
        return out


class Sample:
    "The making of a small sample"
    def work(self, folder): make_sample(folder/'set', 12, 3, workers=1)

    def check(self, folder):
        assert not (folder/'set').exists() or len(digests(folder/'set')) == self.n_files, 'half a set'
        return (folder/'set').exists()

    def result(self, folder):
        assert [f.name for f in folder.iterdir()] == ['set'], f'left behind: {sorted(f.name for f in folder.iterdir())}'
        out = digests(folder)
        self.n_files = len(out)
        return out


class Handler(http.server.SimpleHTTPRequestHandler):
    "Files of a folder, quietly"
    def log_message(self, *a): pass


def serve(server, parent):
    "Answer requests for as long as the process `parent` lives"
    server.timeout = .2
    while os.getppid() == parent: server.handle_request()


class Download:
    "Download and extraction of an archive in VOC's place"
    def __init__(self, folder):
        "Make an archive of 100 files in `folder`, and serve it on loopback from a process of its own"
        data = folder/'VOCdevkit/VOC2007/JPEGImages'
        data.mkdir(parents=True)
        for i in range(100): (data/f'{i:06d}.jpg').write_bytes(random.Random(i).randbytes(100_000))
        with tarfile.open(folder/'voc.tar', 'w') as t: t.add(folder/'VOCdevkit', 'VOCdevkit')
        self.whole = digests(folder/'VOCdevkit')
        self.md5 = hashlib.md5((folder/'voc.tar').read_bytes()).hexdigest()
        server = http.server.HTTPServer(('127.0.0.1', 0), functools.partial(Handler, directory=folder))
        server.handle_error = lambda *a: None  # a client that was killed is no error
        start(serve, server, os.getpid())
        DATASET_YEAR_DICT['2007'] = dict(url=f'http://127.0.0.1:{server.server_port}/voc.tar', filename='voc.tar', md5=self.md5, base_dir='')

    def work(self, folder):
        os.environ['OBJDET_CACHE'] = str(folder)
        get_data('voc2007')

    def check(self, folder):
        archive, data = folder/'downloads/voc.tar', folder/'voc2007'
        assert not archive.exists() or hashlib.md5(archive.read_bytes()).hexdigest() == self.md5, 'half an archive'
        assert not data.exists() or digests(data/'VOCdevkit') == self.whole, 'half a folder'
        return archive.exists() + data.exists()

    def result(self, folder):
        names = sorted(str(f.relative_to(folder)) for f in [*folder.iterdir(), *(folder/'downloads').iterdir()])
        assert names == ['downloads', 'downloads/voc.tar', 'voc2007'], f'left behind: {names}'
        return digests(folder/'voc2007')


# --- killing

running = set()  # ids of our processes that have not been seen to end


def start(work, *args):
    "Run `work(*args)` in a forked process; its id"
    if pid := os.fork():
        running.add(pid)
        return pid
    status = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sys.stdout = open(os.devnull, 'w')
        work(*args)
        status = 0
    except BaseException: traceback.print_exc()
    finally: os._exit(status)


def kill(pid):
    "SIGKILL, and wait for the end: did it come before the process's own?"
    os.kill(pid, signal.SIGKILL)
    running.discard(pid)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def ended(pid, seconds=float('inf')):
    "Wait for a process, at most so long: did it end? Raises if it failed"
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        running.discard(done)
        if done and status: raise AssertionError('the work failed: see above')
        if done or time.monotonic() >= end: return bool(done)
        time.sleep(.001)


def torment(job, tmp, n, chance):
    "Kill `job` `n` times; counts of what happened"
    whole = tmp/'undisturbed'; whole.mkdir()
    begin = time.monotonic()
    ended(start(job.work, whole))
    duration, expected = time.monotonic() - begin, job.result(whole)
    counts = dict(kills=0, resumed=0, finished=0, equal=0)
    while counts['kills'] < n:
        folder = tmp/f'{counts["finished"]}'; folder.mkdir()
        while True:
            pid = start(job.work, folder)
            last = counts['kills'] == n  # enough: let it finish
            if ended(pid, float('inf') if last else chance.uniform(0, duration)): break
            if not kill(pid): break
            counts['kills'] += 1
            counts['resumed'] += bool(job.check(folder))  # something to go on from, and whole
        counts['finished'] += 1
        counts['equal'] += same(job.result(folder), expected)
        shutil.rmtree(folder)
    return counts | dict(seconds=round(duration, 2))


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('kills', type=int, nargs='?', default=20, help='of each; default: %(default)s')
    p.add_argument('--seed', type=int, default=0, help='of the moments; default: %(default)s')
    a = p.parse_args()
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, lambda *args: sys.exit(143))  # so that processes and folders go too
    chance, bad = random.Random(a.seed), False
    with tempfile.TemporaryDirectory() as tmp:
        try:
            for name in 'training', 'sample', 'download':
                folder = Path(tmp)/name
                (folder/'served').mkdir(parents=True)
                job = dict(training=Training, sample=Sample, download=lambda: Download(folder/'served'))[name]()
                c = torment(job, folder, a.kills, chance)
                print(f'{name}: {c["kills"]} kills while it ran ({c["seconds"]} s undisturbed), {c["resumed"]} left something to go on from, '
                      f'{c["finished"]} finished, {c["equal"]} equal', flush=True)
                bad |= c['equal'] != c['finished']
        finally:
            for pid in [*running]: kill(pid)
    return int(bad)


if __name__ == '__main__': sys.exit(main())
