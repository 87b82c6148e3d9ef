"Make README.md from nbs/index.ipynb with its saved outputs. With --check, only say whether README.md is what it would make."
import argparse, base64, re, shutil, sys, tempfile
from pathlib import Path
import yaml
from docs import page_name, stage
from notebooks import notebooks, read, root, text, write

files = 'README_files'  # the folder beside README.md for pictures


def shown(out, name, pictures):
    "The Markdown of one output of a code cell; a picture goes into the dict `pictures` under `name`."
    data = out.get('data', {})
    if 'image/png' in data:
        pictures[name] = base64.b64decode(''.join(data['image/png']))
        return f'![]({files}/{name})'
    if 'text/markdown' in data: return ''.join(data['text/markdown'])
    return '\n'.join(['```text', ''.join(out.get('text', data.get('text/plain', ''))).rstrip('\n'), '```'])


def markdown(project=root):
    "The README's text, and its pictures as a dict of name and bytes."
    with tempfile.TemporaryDirectory() as tmp:
        stage(project/'nbs', Path(tmp)/'proc', project, only=['index'])
        cells = read(Path(tmp)/'proc/index.ipynb')['cells']
    parts, pictures = ['<!-- made from nbs/index.ipynb by `make readme`: change that one -->'], {}
    for i, c in enumerate(cells):
        src = re.sub(r'^#\|.*\n', '', text(c), flags=re.M).strip('\n')
        if c['cell_type'] == 'raw':
            front = yaml.safe_load(src.strip('-\n'))
            src = f"# {front['title']}\n\n> {front['description']}"
        if c['cell_type'] == 'code': src = f'```python\n{src}\n```'
        if not src.startswith('<!-- WARNING'): parts.append(src)
        parts += [shown(o, f'{i}_{j}.png', pictures) for j, o in enumerate(c.get('outputs', []))]
    source = {page_name(p.stem): p.name for p in notebooks(project/'nbs')}
    return re.sub(r'\]\(\./([\w-]+)\.ipynb(#[^)]*)?\)', lambda m: f'](nbs/{source[m[1]]})', '\n\n'.join(parts)) + '\n', pictures


def differs(project=root):
    "Is README.md, or one of its pictures, not what nbs/index.ipynb gives?"
    made, pictures = markdown(project)
    readme = project/'README.md'
    if not readme.exists() or readme.read_text(encoding='utf-8') != made: return True
    return {p.name: p.read_bytes() for p in (project/files).glob('*')} != pictures


def make(project=root):
    "Write README.md and its pictures."
    made, pictures = markdown(project)
    shutil.rmtree(project/files, ignore_errors=True)
    for name, data in pictures.items():
        (project/files).mkdir(exist_ok=True)
        (project/files/name).write_bytes(data)
    write(project/'README.md', made)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--check', action='store_true', help='change nothing; exit 1 if README.md is out of date')
    if not parser.parse_args().check: make()
    elif differs(): sys.exit('README.md is out of date: run `make readme`')
