"""Build the site from the outputs saved in the notebooks, and go through it in a real browser: headless Chromium, driven over its DevTools protocol.

Every page: no console error, no failed request, none that leaves this machine, no broken picture, formulas as MathML, links that lead somewhere, a telephone's width.
Then the site: search, and next and previous from the first page to the last and back. Exit status 2 if there is no Chromium."""
import argparse, contextlib, functools, http.server, json, os, re, shutil, signal, subprocess, sys, tempfile, threading, time
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin
from urllib.request import urlopen
import docs
from notebooks import nbs, notebooks, read, text

os.environ['no_proxy'] = '127.0.0.1,localhost'  # the way to our own server leads through no proxy
flags = '''--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync
--disable-dev-shm-usage --hide-scrollbars --remote-debugging-port=0 --remote-allow-origins=*'''.split()
patience = 120  # seconds for one answer of the browser: a starved machine is slow
width, height, least = 390, 844, 14  # a telephone's window, and the smallest text on it, in pixels
wanted, found_at = 'map_to_ground_truth', 'anchors_matching.html#map_to_ground_truth'

# what a page says about itself, once its pictures are there
look = '''(async () => {
  document.querySelectorAll('details').forEach(d => d.open = true);
  const pictures = [...document.images];
  for (const p of pictures) { p.loading = 'eager'; await p.decode().catch(() => null); }
  await document.fonts.ready;
  const math = [...document.querySelectorAll('math')], main = document.querySelector('main').innerText;
  return {
    broken: pictures.filter(p => !p.naturalWidth).map(p => p.currentSrc.slice(0, 80) || p.alt),
    pictures: pictures.length,
    math: math.length,
    flat: math.filter(m => m.getBoundingClientRect().width < 1 || m.getBoundingClientRect().height < 1).map(m => m.outerHTML.slice(0, 80)),
    raw: [...(main.match(/\\\\\\(.{0,40}|\\\\\\[.{0,40}|\\$\\$.{0,40}/g) || []), ...[...document.querySelectorAll('.math')].map(m => m.outerHTML.slice(0, 80))],
    ids: [...document.querySelectorAll('[id]')].map(e => e.id),
    links: [...document.querySelectorAll('a[href]')].map(a => a.href),
  };
})()'''

# what sticks out of a narrow window and what is small in it: raised and lowered letters and formulas set their own sizes
narrow = '''(() => {
  document.querySelectorAll('details').forEach(d => d.open = true);
  const body = document.documentElement, small = {}, wide = [];
  const clipped = e => { for (let p = e.parentElement; p && p !== document.body; p = p.parentElement)
    if (['auto', 'scroll', 'hidden'].includes(getComputedStyle(p).overflowX)) return true; return false; };
  if (body.scrollWidth > WIDTH) for (const e of document.body.querySelectorAll('*'))
    if (e.getBoundingClientRect().right > WIDTH + 1 && !clipped(e) && e.checkVisibility())
      wide.push(`${e.tagName.toLowerCase()}.${e.className} ends at ${Math.round(e.getBoundingClientRect().right)}: ${e.textContent.trim().slice(0, 40)}`);
  const walker = document.createTreeWalker(document.querySelector('main'), NodeFilter.SHOW_TEXT);
  for (let n; n = walker.nextNode();) {
    const e = n.parentElement, size = parseFloat(getComputedStyle(e).fontSize);
    const place = (e.closest('pre, td, th, h3, li, p, summary, figcaption') || e).tagName.toLowerCase();
    if (n.data.trim() && size < LEAST && e.checkVisibility() && !e.closest('sup, sub, math, script, style'))
      small[`${size} px in ${place}${e.closest('code') ? ', code' : ''}`] ??= n.data.trim().slice(0, 30);
  }
  return { width: Math.max(body.scrollWidth, innerWidth), wide: wide.slice(0, 4), small: Object.entries(small).map(([k, v]) => `${k}: ${v}`) };
})()'''.replace('WIDTH', str(width)).replace('LEAST', str(least))

# the search box: its results, once there are some
results = '''(() => {
  const found = [...document.querySelectorAll('.search-result')].filter(e => e.checkVisibility());
  return found.length ? found.map(e => e.href) : document.querySelector('.search-none') ? [] : null;
})()'''


def chromium():
    "The browser's path: the variable CHROMIUM, or the first of its usual names; None without one."
    names = [os.environ['CHROMIUM']] if os.environ.get('CHROMIUM') else ['chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable']
    return next(filter(None, map(shutil.which, names)), None)


@contextlib.contextmanager
def served(folder):
    "Serve `folder` on this machine's loopback: its address."
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try: yield f'http://127.0.0.1:{server.server_address[1]}/'
    finally: server.shutdown(); server.server_close()


class Page:
    "One page of a Chromium of our own, over the DevTools protocol."
    def __init__(self, program, folder):
        import websocket
        self.process = subprocess.Popen([program, *flags, f'--user-data-dir={folder}', 'about:blank'], stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.count, self.events, self.socket = 0, [], None
        try:
            port = self.wait(lambda: self.port(Path(folder)/'DevToolsActivePort'), 'to start')
            pages = self.wait(lambda: [t for t in json.load(urlopen(f'http://127.0.0.1:{port}/json/list', timeout=patience)) if t['type'] == 'page'], 'to open a page')
            self.socket = websocket.create_connection(pages[0]['webSocketDebuggerUrl'], timeout=patience, suppress_origin=True)
            for domain in 'Page', 'Runtime', 'Log', 'Network': self.call(f'{domain}.enable')
        except BaseException:
            self.close()
            raise

    def port(self, file):
        "The port that the browser has written down, once it has."
        if self.process.poll() is not None: raise RuntimeError(f'Chromium ended with status {self.process.returncode}')
        return file.read_text().split()[0] if file.exists() and file.read_text().strip() else None

    def wait(self, ready, what):
        "Ask `ready` until it answers with something."
        end = time.monotonic() + patience
        while True:
            answer = ready()
            if answer is not None and answer != []: return answer
            if time.monotonic() > end: raise RuntimeError(f'Chromium took more than {patience} s {what}')
            time.sleep(.05)

    def receive(self, mark):
        "The next message for which `mark` holds; events on the way are kept."
        while True:
            message = json.loads(self.socket.recv())
            if 'method' in message: self.events.append(message)
            if mark(message): return message

    def call(self, method, **params):
        "Call a method of the protocol: its result."
        self.count += 1
        self.socket.send(json.dumps(dict(id=self.count, method=method, params=params)))
        answer = self.receive(lambda m: m.get('id') == self.count)
        if 'error' in answer: raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer['result']

    def ask(self, expression):
        "The value of a JavaScript expression; promises are awaited."
        answer = self.call('Runtime.evaluate', expression=expression, awaitPromise=True, returnByValue=True)
        if 'exceptionDetails' in answer: raise RuntimeError(f"{expression[:60]}…: {answer['exceptionDetails'].get('exception', {}).get('description', answer['exceptionDetails']['text'])}")
        return answer['result'].get('value')

    def go(self, url):
        "Load a page, from the network every time."
        self.events.clear()
        answer = self.call('Page.navigate', url=url)
        if answer.get('errorText'): raise RuntimeError(f"{url}: {answer['errorText']}")
        self.loaded()

    def loaded(self):
        "Wait for the page's load event."
        if not any(e['method'] == 'Page.loadEventFired' for e in self.events): self.receive(lambda m: m.get('method') == 'Page.loadEventFired')

    def click(self, selector):
        "Click on what `selector` finds, and wait for the page that it leads to: its address."
        self.events.clear()
        self.ask(f'document.querySelector({json.dumps(selector)}).click()')
        self.loaded()
        return self.ask('location.href')

    def narrow(self):
        "Make the window a telephone's."
        self.call('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=2, mobile=True)

    def wide(self):
        "Make the window a desk's."
        self.call('Emulation.setDeviceMetricsOverride', width=1280, height=900, deviceScaleFactor=1, mobile=False)

    def faults(self, own):
        "What went wrong since the page was opened: errors in the console, requests that failed or left `own` address."
        out, asked = [], {}
        for e in self.events:
            name, p = e['method'], e['params']
            if name == 'Network.requestWillBeSent':
                asked[p['requestId']] = url = p['request']['url']
                if not url.startswith((own, 'data:', 'blob:')): out.append(f'asks for {url[:120]}')
            if name == 'Network.responseReceived' and p['response']['status'] >= 400: out.append(f"{p['response']['status']} for {p['response']['url'][:120]}")
            if name == 'Network.loadingFailed' and not p.get('canceled'): out.append(f"{p['errorText']} for {asked.get(p['requestId'], '?')[:120]}")
            if name == 'Runtime.exceptionThrown': out.append(f"exception: {p['exceptionDetails'].get('exception', {}).get('description', p['exceptionDetails']['text'])[:300]}")
            if name == 'Runtime.consoleAPICalled' and p['type'] in ('error', 'assert'): out.append(f"console: {' '.join(str(a.get('value', a.get('description'))) for a in p['args'])[:300]}")
            if name == 'Log.entryAdded' and p['entry']['level'] == 'error': out.append(f"log: {p['entry']['text'][:200]} {p['entry'].get('url', '')[:120]}")
        return list(dict.fromkeys(out))

    def close(self):
        "End the browser."
        with contextlib.suppress(Exception):
            if self.socket: self.call('Browser.close')
        with contextlib.suppress(Exception): self.socket.close()
        try: self.process.wait(5)
        except subprocess.TimeoutExpired: self.process.kill(); self.process.wait()


def formulas(nb):
    "Does the text of a notebook hold a formula?"
    prose = '\n'.join(re.sub(r'```.*?```|`[^`]*`', '', text(c), flags=re.S) for c in nb['cells'] if c['cell_type'] == 'markdown')
    return bool(re.search(r'\$\$.+?\$\$|(?<![\w$\\])\$(?!\s)[^$\n]+?(?<!\s)\$(?![\w$])', prose, re.S))


def page_of(address, own):
    "The name of a page from its address."
    return urldefrag(address)[0].removeprefix(own) or 'index.html'


def visit(page, own, name, has_formulas):
    "Complaints about one page in a telephone's window, and what it says about itself."
    page.narrow()
    page.go(own + name)
    seen, thin = page.ask(look), page.ask(narrow)
    out = page.faults(own)
    out += [f'broken picture: {p}' for p in seen['broken']] + [f'a formula without size: {m}' for m in seen['flat']] + [f'TeX in the text: {m}' for m in seen['raw']]
    if bool(seen['math']) != has_formulas: out.append(f"{seen['math']} formulas in MathML, and the notebook has {'some' if has_formulas else 'none'}")
    if thin['width'] > width: out.append(f"{thin['width']} px wide in a window of {width} px: {'; '.join(thin['wide']) or 'nothing visible sticks out'}")
    return out + [f'small on a telephone: {s}' for s in thin['small']], seen


def dead_links(seen, own):
    "Complaints about links within the site that lead nowhere."
    out = []
    for name, page in seen.items():
        for link in dict.fromkeys(page['links']):
            if not link.startswith(own): continue
            target, mark = page_of(link, own), unquote(urldefrag(link)[1])
            if target not in seen: out.append(f'{name}: links to {target}, which is not there')
            elif mark and mark not in seen[target]['ids']: out.append(f'{name}: links to {target}#{mark}, and the page has no such place')
    return out


def walk(page, own, order):
    "Complaints about the way by next from the first page to the last, and by previous back, in a wide window."
    out = []
    page.wide()
    for what, way in (('next', order), ('previous', order[::-1])):
        page.go(own + way[0])
        been = [way[0]]
        while len(been) <= len(way) and page.ask(f"!!document.querySelector('.nav-page-{what} a')"):
            been.append(page_of(page.click(f'.nav-page-{what} a'), own))
            if what == 'next': out += [f'{been[-1]}, in a wide window: {f}' for f in page.faults(own)]
        if been != way: out.append(f"{what} leads {' → '.join(been)}, not {' → '.join(way)}")
    return out


def search(page, address, own, on_phone=False):
    "Complaints about typing into the search box of the page at `address`."
    page.narrow() if on_phone else page.wide()
    page.go(address)
    if on_phone:  # the box is behind the button
        page.ask("document.querySelector('.navbar-toggler').click()")
        page.wait(lambda: page.ask("document.querySelector('.smalldocs-search input').checkVisibility() || null"), 'to open the menu')
    page.ask("document.querySelector('.smalldocs-search input').focus()")
    page.call('Input.insertText', text=wanted)
    found = page.wait(lambda: [page.ask(results)] if page.ask(results) is not None else None, 'to search')[0]
    if (at := urljoin(own, found_at)) not in found: return [f'search for {wanted} at {address} finds {found[:3]}, not {at}', *page.faults(own)]
    out = page.faults(own)
    page.events.clear()
    page.ask(f'[...document.querySelectorAll(".search-result")].find(e => e.href == {json.dumps(at)}).click()')
    page.loaded()
    top = f'document.getElementById({json.dumps(wanted)})?.getBoundingClientRect().top ?? -1e6'
    try: page.wait(lambda: -5 < page.ask(top) < 900 or None, f'to scroll to {wanted}')  # after the load event, some time later
    except RuntimeError: out.append(f'the search result at {address} leads to {page.ask("location.href")}, where {wanted} is at {page.ask(top):.0f} px')
    return out


def check(site, program, folder=nbs):
    "Go through the rendered `site` of the notebooks in `folder`: complaints."
    paths = notebooks(folder)
    order = [f'{docs.page_name(p.stem)}.html' for p in paths]
    there = sorted(p.name for p in site.glob('*.html'))
    out = [f'{n} was not rendered' for n in order if n not in there] + [f'{n} has no notebook' for n in there if n not in order]
    if out: return out
    with served(site) as own, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, contextlib.closing(Page(program, profile)) as page:
        seen = {}
        for path, name in zip(paths, order):
            found, seen[name] = visit(page, own, name, formulas(read(path)))
            if re.match(r'0\d_', path.stem) and not seen[name]['pictures']: found.append('a lesson without a picture: were its outputs saved?')
            print(f"{name:<24} {seen[name]['pictures']:3d} pictures {seen[name]['math']:3d} formulas  {f'{len(found)} faults' if found else 'ok'}", flush=True)
            out += [f'{name}: {f}' for f in found]
        parts = {'links within the site': lambda: dead_links(seen, own), f'next and previous over {len(order)} pages': lambda: walk(page, own, order),
                 'search': lambda: search(page, own + 'index.html', own), 'search on a telephone': lambda: search(page, own + 'pascal_data.html', own, on_phone=True),
                 'search from the disk': lambda: search(page, (site/'index.html').as_uri(), site.as_uri() + '/')}
        for part, run in parts.items():
            found = run()
            print(f"{part}: {f'{len(found)} faults' if found else 'ok'}", flush=True)
            out += found
    return out


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--site', type=Path, help='a rendered site to go through; by default it is built first')
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *args: sys.exit(143))  # so that the browser ends too
    if not (program := chromium()):
        print('There is no Chromium here. Install it (Debian: apt-get install chromium), or name one: make site-test CHROMIUM=/path/to/chromium', file=sys.stderr)
        sys.exit(2)
    found = check((args.site or docs.build(nbs).parent).resolve(), program)
    print('\n'.join(found) or 'the site is whole')
    sys.exit(bool(found))
