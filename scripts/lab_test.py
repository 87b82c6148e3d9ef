"""Start JupyterLab's server on this machine's loopback, and run notebook 00 through it from top to bottom, as the browser does.

The page /lab answers; the contents API hands out the notebook; a session starts its kernel; the cells go over the kernel's
websocket, those that the course runs, in order. Any error fails. The server and its kernels end with the test, however it ends."""
import argparse, contextlib, json, os, re, secrets, shutil, signal, subprocess, sys, tempfile, time, uuid
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen
from check import environment
from notebooks import nbs, notebooks, text, to_run

os.environ['no_proxy'] = '127.0.0.1,localhost'  # the way to our own server leads through no proxy
patience = 180  # seconds for an answer of the server or a kernel's start
longest = 900  # seconds for one cell


def free_port():
    "A port of the loopback that nobody listens on."
    import socket
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


class Lab:
    "JupyterLab's server over the folder `root`, with nothing of the user's own settings."
    def __init__(self, root, scratch):
        self.port, self.token, self.log = free_port(), secrets.token_hex(16), Path(scratch)/'server.log'
        own = {f'JUPYTER_{n}_DIR': str(Path(scratch)/n.lower()) for n in ('CONFIG', 'DATA', 'RUNTIME')} | dict(IPYTHONDIR=str(Path(scratch)/'ipython'), JUPYTER_PREFER_ENV_PATH='1')
        command = [sys.executable, '-m', 'jupyterlab', '--no-browser', '--ServerApp.ip=127.0.0.1', f'--ServerApp.port={self.port}', '--ServerApp.port_retries=0',
                   f'--IdentityProvider.token={self.token}', f'--ServerApp.root_dir={root}', '--LabApp.news_url=None', '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate']
        if hasattr(os, 'geteuid') and os.geteuid() == 0: command.append('--allow-root')
        with open(self.log, 'w') as log:
            self.process = subprocess.Popen(command, env=environment() | own, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    def ask(self, path, method='GET', body=None):
        "What the server answers to a request: JSON as a value, else the text."
        request = Request(f'http://127.0.0.1:{self.port}{path}', method=method, data=None if body is None else json.dumps(body).encode(),
                          headers={'Authorization': f'token {self.token}', 'Content-Type': 'application/json'})
        with urlopen(request, timeout=patience) as answer:
            raw = answer.read().decode()
            return answer.status, json.loads(raw) if 'json' in (answer.headers.get('Content-Type') or '') and raw else raw

    def ready(self):
        "Wait until the server answers."
        end = time.monotonic() + patience
        while True:
            if self.process.poll() is not None: raise RuntimeError(f'JupyterLab ended with status {self.process.returncode}')
            try: return self.ask('/api/status')
            except (URLError, OSError):
                if time.monotonic() > end: raise RuntimeError(f'JupyterLab did not answer within {patience} s')
                time.sleep(.1)

    def close(self):
        "End the server, which ends its kernels; what is left of its process group is killed."
        if self.process.poll() is None:
            with contextlib.suppress(Exception): self.ask('/api/shutdown', 'POST')
            with contextlib.suppress(subprocess.TimeoutExpired): self.process.wait(20)
        with contextlib.suppress(ProcessLookupError): os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Kernel:
    "The kernel of a session, over the server's websocket."
    def __init__(self, lab, session):
        import websocket
        self.session = uuid.uuid4().hex
        self.socket = websocket.create_connection(f"ws://127.0.0.1:{lab.port}/api/kernels/{session['kernel']['id']}/channels?session_id={self.session}",
                                                  header=[f'Authorization: token {lab.token}'], timeout=longest)

    def send(self, kind, **content):
        "Send a message on the shell channel: its id."
        ident = uuid.uuid4().hex
        header = dict(msg_id=ident, msg_type=kind, username='', session=self.session, version='5.3', date='')
        self.socket.send(json.dumps(dict(header=header, parent_header={}, metadata={}, content=content, channel='shell', buffers=[])))
        return ident

    def run(self, source):
        "Execute `source` and wait for the end: the outputs' types, and the error or None."
        ident, outputs, error, ends = self.send('execute_request', code=source, silent=False, store_history=True, user_expressions={}, allow_stdin=False, stop_on_error=True), [], None, set()
        while ends != {'reply', 'idle'}:
            raw = self.socket.recv()
            if not isinstance(raw, str): continue  # a widget's bytes
            message = json.loads(raw)
            if message['msg_type'] == 'status' and message['content'].get('execution_state') in ('restarting', 'dead'): raise RuntimeError('the kernel died')
            if message['parent_header'].get('msg_id') != ident: continue
            kind, content = message['msg_type'], message['content']
            if kind == 'status' and content['execution_state'] == 'idle': ends.add('idle')
            if kind in ('stream', 'display_data', 'execute_result'): outputs.append(kind)
            if kind == 'execute_reply':
                ends.add('reply')
                if content['status'] != 'ok': error = error or f"{content.get('ename', content['status'])}: {content.get('evalue', '')}"
            if kind == 'error': error = '\n'.join([f"{content['ename']}: {content['evalue']}", *re.sub(r'\x1b\[[0-9;]*m', '', '\n'.join(content['traceback'])).splitlines()[-12:]])
        return outputs, error


def check(name):
    "Run the notebook whose name starts with `name` through a JupyterLab of our own; complaints."
    path, = notebooks(only=[name])
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as tmp:
        folder = Path(tmp)/'nbs'
        folder.mkdir()
        shutil.copy(path, folder)  # a copy: the test changes no notebook
        lab = Lab(folder, tmp)
        try:
            lab.ready()
            status, page = lab.ask('/lab')
            if status != 200 or 'jupyter-config-data' not in page: return [f'/lab answers {status}, without JupyterLab in it']
            nb = lab.ask(f'/api/contents/{path.name}?type=notebook')[1]['content']
            cells = to_run(nb)
            session = lab.ask('/api/sessions', 'POST', dict(path=path.name, name=path.name, type='notebook', kernel=dict(name='python3')))[1]
            kernel, shown, start = Kernel(lab, session), 0, time.time()
            for i, cell in cells:
                outputs, error = kernel.run(text(cell))
                if error: return [f'{path.name}, cell {i}: {error}']
                shown += len(outputs)
            kernel.socket.close()
            lab.ask(f"/api/sessions/{session['id']}", 'DELETE')
            if not cells or not shown: return [f'{path.name}: {len(cells)} cells ran and {shown} outputs came back']
            print(f'{path.name}: {len(cells)} cells executed through JupyterLab, {shown} outputs, in {time.time() - start:.0f} s; /lab answers {status}')
            return []
        except (RuntimeError, OSError) as e:
            return [f'{type(e).__name__}: {e}', *(line[:200] for line in lab.log.read_text().splitlines()[-8:])]
        finally: lab.close()


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('notebook', nargs='?', default='00', help='start of the name of the notebook (00)')
    signal.signal(signal.SIGTERM, lambda *args: sys.exit(143))  # so that the server ends too
    found = check(parser.parse_args().notebook)
    print('\n'.join(found), end='\n' if found else '')
    sys.exit(bool(found))
