"""Render the site from a folder of notebooks as they are saved, into `_docs/`. Only imports and definitions are executed, for the API entries.

nbdev stages the notebooks: front matter from the title, signatures and docments after each definition.
smalldocs renders what it staged. Between the two, names and links lose their numbers: `04_anchors_matching` is `anchors_matching.html`."""
import argparse, ast, html, json, os, re, shutil, subprocess, sys, tempfile
from configparser import ConfigParser
from pathlib import Path
from notebooks import directives, dump, notebooks, read, root, text, toolbox, write

run_nbdev = '''
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs
refresh_quarto_yml()
proc_nbs(n_workers=%d)
'''


def page_name(name):
    "The page of a notebook: its name without the number."
    return re.sub(r'^\d+[a-zA-Z0-9]*_', '', name)


def prepare(cell):
    "Ready a cell for nbdev: it shows the source of what is exported, which the course explains, but for imports, and executes nothing else."
    if cell['cell_type'] != 'code': return
    source, found = text(cell), {d.split()[0] for d in directives(cell)}
    if found & {'export', 'exports', 'exporti'}:
        try: imports = all(isinstance(o, (ast.Import, ast.ImportFrom)) for o in ast.parse(source).body)
        except SyntaxError: imports = False
        if not imports: cell['source'] = re.sub(r'^\s*#\s*\|\s*export\s*$', '#| exports', source, count=1, flags=re.M)
    elif not source.startswith('show_doc('): cell['source'] = f'#| eval: false\n{source}'


def local_links(src, base):
    "Links to notebooks, and those that nbdev makes to the published pages under `base`, as links between staged pages."
    src = re.sub(r'\]\((?!\w+:)[./\w-]*?([\w-]+)\.ipynb', lambda m: f'](./{page_name(m[1])}.ipynb', src)
    return re.sub(rf'\]\({re.escape(base)}/([\w-]+)\.html', r'](./\1.ipynb', src)


def tidy(nb, base):
    "Front matter, links and API entries of a staged notebook, as smalldocs wants them."
    for c in nb['cells']:
        if c['cell_type'] == 'raw': c['source'] = re.sub(r'^(output-file|skip_exec|skip_showdoc):.*\n', '', text(c), flags=re.M)
        if c['cell_type'] == 'markdown': c['source'] = local_links(text(c), base)
        for data in (o['data'] for o in c.get('outputs', []) if 'text/markdown' in o.get('data', {})):
            data['text/markdown'] = local_links(''.join(data['text/markdown']), base)
    return nb


def sidebar(names):
    "The order of the pages as YAML: index, the lessons, the toolbox."
    groups = {}
    for n in names:
        group = None if not n[0].isdigit() else 'Lessons' if int(n[:2]) < toolbox else 'Toolbox'
        groups.setdefault(group, []).append(f'{page_name(n)}.ipynb')
    contents = groups.pop(None, []) + [dict(section=k, contents=v) for k, v in groups.items()]
    return json.dumps(dict(website=dict(sidebar=dict(contents=contents))))


def stage(folder, dest, project=root, only=()):
    "Stage the notebooks of `folder` with nbdev and the settings of `project` into the new folder `dest`."
    cfg = ConfigParser(delimiters=['='])
    cfg.read(project/'settings.ini', encoding='utf-8')
    cfg['DEFAULT'].update(nbs_path='nbs', skip_procs='add_fold,mv_exports', renderer='api_entry.Entry')
    base = cfg['DEFAULT']['doc_host'] + cfg['DEFAULT']['doc_baseurl']
    paths = notebooks(folder, only)
    if not paths: raise SystemExit(f'{folder} holds no notebook')
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        (tmp/'nbs').mkdir()
        with open(tmp/'settings.ini', 'w', encoding='utf-8') as f: cfg.write(f)
        shutil.copy(project/'_quarto.yml', tmp/'nbs')
        for p in paths:
            nb = read(p)
            for c in nb['cells']: prepare(c)
            write(tmp/'nbs'/p.name, dump(nb))
        env = dict(os.environ, OMP_NUM_THREADS='1', TQDM_DISABLE='1', XDG_CONFIG_HOME=str(tmp), PYTHONPATH=str(root/'scripts'))
        env.pop('IN_TEST', None)
        done = subprocess.run([sys.executable, '-c', run_nbdev % (2 if len(paths) > 1 else 0)], cwd=tmp, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        staged = tmp/'_proc'
        absent = [p.name for p in paths if not (staged/p.name).exists()]
        if done.returncode or absent: raise SystemExit(f"{done.stdout[-2500:]}\nnbdev could not stage {' '.join(absent) or folder}")
        print(done.stdout, end='')
        for p in paths:
            write(staged/f'{page_name(p.stem)}.ipynb', dump(tidy(read(staged/p.name), base)))
            if page_name(p.stem) != p.stem: (staged/p.name).unlink()
        for f in [*(project/'nbs').glob('*.css'), tmp/'nbs/nbdev.yml']: shutil.copy(f, staged)
        write(staged/'sidebar.yml', sidebar([p.stem for p in paths]))
        if dest.exists(): shutil.rmtree(dest)
        shutil.move(staged, dest)


def mathml(page, name):
    "Formulas of the HTML text `page` as MathML, which browsers show without a script; `name` is for the message."
    from latex2mathml.converter import convert
    def formula(m):
        tex = html.unescape(m[2]).strip()
        try: made = convert(tex[2:-2], display='block' if m[1] == 'display' else 'inline')
        except Exception as e: raise SystemExit(f'{name}: cannot typeset {tex}: {type(e).__name__} {e}')
        return re.sub('<mi>(?=[a-z]{2,}<)', '<mi class="function">', made)
    page = re.sub(r'<span class="math (inline|display)">(.*?)</span>', formula, page, flags=re.S)
    return re.sub(r'<(link|script)[^>]*/katex@[^>]*>(</script>)?\n?', '', page)


# a page opened from the disk may not fetch search.json: it takes the index from a script instead
search_script = '''if (location.protocol === 'file:') {
  const fetch_url = window.fetch;
  window.fetch = (url, ...args) => !String(url).endsWith('search.json') ? fetch_url(url, ...args) : new Promise((resolve, reject) => {
    const script = document.createElement('script');
    script.src = String(url).replace('search.json', 'site_libs/search-index.js');
    script.onload = () => resolve({ json: () => window.searchIndex });
    script.onerror = reject;
    document.head.append(script);
  });
}
'''


def landed(site):
    "Let the links that nbdev makes of names in code end where the page has a place: a method's at its class, a private name's at the top."
    pages = {p.name: p.read_text(encoding='utf-8') for p in site.glob('*.html')}
    places = {n: set(re.findall(r'\bid="([^"]+)"', page)) for n, page in pages.items()}
    def land(m):
        name, mark = m[1], html.unescape(m[2])
        mark = next((f'#{o}' for o in (mark, mark.split('.')[0]) if o in places.get(name, ())), '')
        return f'<a href="{name}{mark}"><code>'
    for n, page in pages.items(): write(site/n, re.sub(r'<a href="(?:\./)?([\w-]+\.html)#([^"]+)"><code>', land, page))


def offline(site):
    "Make the pages in folder `site` whole without a network: formulas, search and fonts."
    write(site/'site_libs/search-offline.js', search_script)
    write(site/'site_libs/search-index.js', f"window.searchIndex = {(site/'search.json').read_text(encoding='utf-8')};\n")
    for p in site.rglob('*.css'):  # themes fetch fonts: the reader's own will do
        style = re.sub(r'@import\s+url\([^)]*//[^)]*\)\s*;', '', p.read_text(encoding='utf-8'))
        if re.search(r'(@import|url\()\s*["\'(]*(https?:)?//', style): raise SystemExit(f'{p.name} wants something from the network')
        write(p, style)
    for p in site.glob('*.html'):
        page = mathml(p.read_text(encoding='utf-8'), p.name)
        page = page.replace('<script src="site_libs/smalldocs.js"', '<script src="site_libs/search-offline.js"></script>\n<script src="site_libs/smalldocs.js"')
        page = page.replace('</head>', '<link rel="icon" href="data:,">\n</head>', 1)  # else a browser asks for favicon.ico
        if p.name != '404.html' and 'search-offline.js' not in page: raise SystemExit(f'{p.name}: no place for the search script')
        write(p, page)


def render(proc, dest):
    "Check the staged pages in `proc` and render them into folder `dest`, in the place of what was there."
    smalldocs = [sys.executable, '-m', 'smalldocs.cli']
    if subprocess.run([*smalldocs, 'check', proc]).returncode: raise SystemExit('smalldocs found fault with the pages; the site is not built')
    if subprocess.run([*smalldocs, 'render', '--quiet', '--strict', proc]).returncode: raise SystemExit('smalldocs could not render the pages')
    landed(proc/'_docs')
    offline(proc/'_docs')
    if dest.exists(): shutil.rmtree(dest)
    shutil.move(proc/'_docs', dest)


def build(folder, project=root):
    "Stage and render the notebooks of `folder` into `_docs/` of `project`; the site's first page."
    stage(Path(folder), project/'_proc', project)
    render(project/'_proc', project/'_docs')
    return project/'_docs/index.html'


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder', nargs='?', default=root/'nbs', help='folder of notebooks (nbs/)')
    print(f'Open {build(parser.parse_args().folder)}')
