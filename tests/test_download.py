"The download of VOC from a server on loopback that fails in every way: a clear error, nothing left, and a second try that works"
import errno, hashlib, http.server, os, random, socket, struct, tarfile, threading
import pytest
import torchvision.datasets.utils as tv
from torchvision.datasets.voc import DATASET_YEAR_DICT
from objdet import sources
from objdet.learner import part_folder
from objdet.sources import extract, get_data


def tar(file, members):
    "A tar archive of `members`: name -> bytes"
    with tarfile.open(file, 'w') as t:
        for name, data in members.items():
            (file.parent/'member').write_bytes(data)
            t.add(file.parent/'member', name)
    (file.parent/'member').unlink()
    return file.read_bytes()


class Handler(http.server.BaseHTTPRequestHandler):
    "Sends `server.data`; `server.fault` says how it fails"
    def log_message(self, *a): pass

    def do_GET(self):
        data, fault = self.server.data, self.server.fault
        if fault == 'absent': return self.send_error(404)
        self.send_response(200); self.send_header('Content-Length', len(data)); self.end_headers()
        self.wfile.write(data[:len(data)//2] if fault else data)
        self.wfile.flush()
        if fault == 'silent': self.connection.settimeout(None); self.connection.recv(1)  # until the other end gives up
        if fault == 'reset': self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))  # close with RST
        if fault: self.connection.close()


@pytest.fixture
def server(tmp_path, monkeypatch):
    "A server of a good archive, and torchvision's table pointing at it"
    (tmp_path/'made').mkdir()
    srv = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    srv.good = srv.data = tar(tmp_path/'made/voc.tar', {'VOCdevkit/VOC2007/a': random.Random(0).randbytes(300_000), 'VOCdevkit/VOC2007/b': b'b'})
    srv.fault, srv.handle_error = None, lambda *a: None
    srv.entry = dict(DATASET_YEAR_DICT['2007'], url=f'http://127.0.0.1:{srv.server_port}/voc.tar', filename='voc.tar', md5=hashlib.md5(srv.good).hexdigest())
    monkeypatch.setitem(DATASET_YEAR_DICT, '2007', srv.entry)
    monkeypatch.setenv('OBJDET_CACHE', str(tmp_path/'cache'))
    threading.Thread(target=srv.serve_forever, args=[.02], daemon=True).start()
    yield srv
    srv.shutdown(); srv.server_close()


def names(cache): return sorted(str(f.relative_to(cache)) for f in cache.rglob('*') if 'VOCdevkit/' not in str(f))


def second_try_works(server, cache):
    server.fault, server.data = None, server.good
    server.entry['md5'] = hashlib.md5(server.good).hexdigest()
    data = get_data('voc2007')
    assert len((data/'VOCdevkit/VOC2007/a').read_bytes()) == 300_000 and (data/'VOCdevkit/VOC2007/b').read_bytes() == b'b'
    assert names(cache) == ['downloads', 'downloads/voc.tar', 'voc2007', 'voc2007/VOCdevkit']


def cut_off(s): s.fault = 'cut'
def reset(s): s.fault = 'reset'
def silent(s): s.fault = 'silent'
def absent(s): s.fault = 'absent'
def other_file(s): s.entry['md5'] = '0'*32
def truncated(s): s.data = s.good[:100_000]; s.entry['md5'] = hashlib.md5(s.data).hexdigest()
def no_archive(s): s.data = b'<html>moved</html>'; s.entry['md5'] = hashlib.md5(s.data).hexdigest()

@pytest.mark.parametrize('spoil, error, words', [
    (cut_off, (RuntimeError, ConnectionError), ['/voc.tar', 'try again']),  # newer Pythons notice before the checksum does
    (reset, ConnectionError, ['/voc.tar: the download failed', 'try again']),
    (silent, ConnectionError, ['/voc.tar: the download failed', 'timed out', 'try again']),  # without a limit this would never end
    (absent, ConnectionError, ['/voc.tar: the download failed', '404', 'the archive (.tar)']),
    (other_file, RuntimeError, ['/voc.tar', 'bytes that came', f'checksum is not {"0"*32}', 'try again']),
    (truncated, ValueError, ['voc.tar: not a whole tar archive', 'nothing was unpacked', 'Get the file again']),
    (no_archive, ValueError, ['voc.tar: not a whole tar archive', 'Get the file again']),
])
def test_a_server_that_fails(server, tmp_path, monkeypatch, spoil, error, words):
    spoil(server)
    if spoil is silent: monkeypatch.setattr(sources, '_patience', .5)
    with pytest.raises(error) as e: get_data('voc2007')
    assert all(w in str(e.value) for w in words), e.value
    assert names(tmp_path/'cache') in (['downloads'], ['downloads', 'downloads/voc.tar'])
    assert (tmp_path/'cache/downloads/voc.tar').exists() == (error is ValueError)  # its checksum was right
    second_try_works(server, tmp_path/'cache')


def test_a_server_that_is_gone(server, tmp_path):
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    good, server.entry['url'] = server.entry['url'], f'http://127.0.0.1:{port}/voc.tar'
    with pytest.raises(ConnectionError, match='download failed.*try again'): get_data('voc2007')
    server.entry['url'] = good
    second_try_works(server, tmp_path/'cache')


def test_a_member_that_climbs_out(server, tmp_path):
    server.data = tar(tmp_path/'made/evil.tar', {'VOCdevkit/a': b'a', '../../climbed': b'x'})
    server.entry['md5'] = hashlib.md5(server.data).hexdigest()
    with pytest.raises(ValueError, match='not a safe one.*climbed.*nothing was unpacked'): get_data('voc2007')
    assert not list(tmp_path.rglob('climbed')) and names(tmp_path/'cache') == ['downloads', 'downloads/voc.tar']
    second_try_works(server, tmp_path/'cache')


def full(module, name, monkeypatch, room=50_000):
    "Let files that `module` opens for writing have so much room on the disk"
    def opened(file, mode='r', *args, **kw):
        f = open(file, mode, *args, **kw)
        if 'w' not in mode: return f
        class Full:
            def __enter__(self): return self
            def __exit__(self, *a): f.close()
            def __getattr__(self, k): return getattr(f, k)
            def write(self, data):
                if f.tell() + len(data) > room: raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return f.write(data)
        return Full()
    monkeypatch.setattr(module, name, opened, raising=False)


@pytest.mark.parametrize('module, name, kept', [(tv, 'open', ['downloads']), (tarfile, 'bltn_open', ['downloads', 'downloads/voc.tar'])],
                         ids=['downloading', 'unpacking'])
def test_no_space_left(server, tmp_path, module, name, kept):
    with pytest.MonkeyPatch.context() as m:
        full(module, name, m)
        with pytest.raises(OSError, match='no space left for .*Make room, or set OBJDET_CACHE.*try again') as e: get_data('voc2007')
    assert e.value.errno == errno.ENOSPC and names(tmp_path/'cache') == kept
    second_try_works(server, tmp_path/'cache')


def test_the_archive_is_not_fetched_twice(server, tmp_path):
    "A stop between download and unpacking costs no second download"
    with pytest.MonkeyPatch.context() as m:
        full(tarfile, 'bltn_open', m)
        with pytest.raises(OSError): get_data('voc2007')
    server.fault = 'absent'
    assert (get_data('voc2007')/'VOCdevkit').exists()


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    tar(tmp_path/'a.tar', {'note': b'new'})
    (tmp_path/'mine').mkdir(); (tmp_path/'mine/note').write_text('old')
    with pytest.raises(FileExistsError, match='mine is there already'): extract(tmp_path/'a.tar', tmp_path/'mine')
    assert (tmp_path/'mine/note').read_text() == 'old'
    assert (extract(tmp_path/'a.tar', tmp_path/'new')/'note').read_text() == 'new'
    assert (tmp_path/'new').stat().st_mode & 0o777 == 0o755  # others of the machine may read it


@pytest.mark.parametrize('end', ['.tar.gz', '.tar.bz2', '.tar.xz'])
def test_a_compressed_archive_that_is_cut(tmp_path, end):
    (tmp_path/'a').write_bytes(random.Random(0).randbytes(50_000))
    with tarfile.open(tmp_path/f'x{end}', f'w:{end.split(".")[-1]}') as t: t.add(tmp_path/'a', 'a')
    (tmp_path/f'half{end}').write_bytes((tmp_path/f'x{end}').read_bytes()[:30_000])
    with pytest.raises(ValueError, match=f'half{end}: not a whole tar'): extract(tmp_path/f'half{end}', tmp_path/'out/half')
    assert list((tmp_path/'out').iterdir()) == []
    assert (extract(tmp_path/f'x{end}', tmp_path/'out/x')/'a').stat().st_size == 50_000


def test_what_the_dead_left_is_swept_and_the_living_are_not(tmp_path):
    "Half-done folders of a killed process stayed for good when the next try came within the hour"
    pytest.importorskip('fcntl')
    (tmp_path/'.set-dead.part').mkdir(); (tmp_path/'.set-dead.part/x').write_text('x')
    with part_folder(tmp_path/'set') as a:
        with part_folder(tmp_path/'set') as b: assert sorted(tmp_path.iterdir()) == sorted([a, b])
        assert list(tmp_path.iterdir()) == [a]
    assert list(tmp_path.iterdir()) == []
