"The package's metadata, the rule that ties notebooks to modules, and what every public definition says about itself."
import ast, io, re, subprocess, sys, tokenize
from configparser import ConfigParser
from pathlib import Path
import pytest
from notebooks import notebooks, read, root, skipped, text, toolbox

config = ConfigParser(delimiters=['='])
config.read(root/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
modules = sorted(p for p in (root/'objdet').glob('*.py') if p.name[0] != '_')
numbers = {p.stem.partition('_')[2]: int(p.stem[:2]) for p in notebooks() if p.stem != 'index'}


# --- metadata

def test_version():
    import objdet
    assert objdet.__version__ == cfg['version']
    assert re.fullmatch(r'\d+\.\d+\.\d+', cfg['version'])


def test_import_is_light():
    "`import objdet` brings in none of what the package depends on."
    heavy = [re.match(r'[\w-]+', r)[0] for r in cfg['requirements'].split()] + ['PIL', 'nbdev', 'IPython']
    code = f'import sys; before = set(sys.modules); import objdet; print(objdet.__version__, [m for m in {heavy} if m in set(sys.modules) - before])'
    out = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True, check=True).stdout
    assert out.split(None, 1) == [cfg['version'], '[]\n']


# --- notebooks and modules

@pytest.mark.parametrize('path', notebooks(), ids=lambda p: p.stem)
def test_notebook(path):
    "Its name, its title cell, its size, and the module that it exports."
    nb = read(path)
    assert re.fullmatch(r'index|\d\d_[a-z0-9_]+', path.stem)
    assert path.stat().st_size < 1.5e6, f'{path.name} has {path.stat().st_size / 1e6:.1f} MB: fewer or smaller pictures'
    first = next(text(c) for c in nb['cells'] if c['cell_type'] == 'markdown')
    assert re.fullmatch(r'# \S.*\n+> \S.*(\n+- \w+: .*)*\s*', first), f'{path.name}: the first cell is a title and one line, for nbdev drops the rest:\n{first}'
    code = '\n'.join(text(c) for c in nb['cells'] if c['cell_type'] == 'code')
    exports = re.findall(r'^#\|\s*default_exp\s+(\S+)', code, re.M)
    assert exports == ([path.stem.partition('_')[2]] if exporting(nb) else [])


def exporting(nb):
    "Does it write a module, or is it a page?"
    return not skipped(nb) and any(re.search(r'^#\|\s*export', text(c), re.M) for c in nb['cells'] if c['cell_type'] == 'code')


def test_every_module_has_its_notebook():
    assert {p.stem for p in modules} == {p.stem.partition('_')[2] for p in notebooks() if exporting(read(p))}


def imported(source):
    "The modules of objdet that a source imports."
    found = set()
    for node in ast.walk(ast.parse(source)):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):  # nbdev turns `from objdet.show import …` into `from .show import …`
            module = '.'.join(filter(None, ['objdet' if node.level else '', node.module]))
            names = [f'objdet.{a.name}' for a in node.names] if module == 'objdet' else [module]
        found |= {n.split('.')[1] for n in names if n.startswith('objdet.')}
    return found & numbers.keys()


uses = {94, 97}  # the detector and its command: of the toolbox by their numbers, but made of the lessons

def may_import(number):
    "The numbers of the notebooks that notebook `number` may import: lessons the ones before, and the toolbox; the toolbox no lesson, but for `uses`."
    lessons = {n for n in numbers.values() if n < (toolbox if number in uses else number if number < toolbox else 0)}
    tools = {n for n in numbers.values() if n >= toolbox and (n not in uses or number in uses or 7 <= number < toolbox)}
    return lessons | tools - {number}


@pytest.mark.parametrize('path', modules, ids=lambda p: p.stem)
def test_imports_go_one_way(path):
    mine = numbers[path.stem]
    wrong = [m for m in imported(path.read_text(encoding='utf-8')) if numbers[m] not in may_import(mine)]
    assert not wrong, f'{path.name} ({mine:02d}) imports {wrong}'


def test_import_rule():
    assert imported('from .show import grid\nimport objdet.score, torch\nfrom objdet import sample\nfrom .learner import *') == {'show', 'score', 'sample', 'learner'}
    assert {4, 89, 90} <= may_import(5) and not {5, 6} & may_import(5)
    assert min(may_import(89) | may_import(91)) == 89 and not (may_import(91) | may_import(6)) & uses
    assert 94 in may_import(7) and 6 in may_import(94)


def test_the_toolbox_has_no_cycle():
    deps = {p.stem: imported(p.read_text(encoding='utf-8')) for p in modules}
    while free := [m for m, d in deps.items() if not d & deps.keys()]: deps = {m: d for m, d in deps.items() if m not in free}
    assert not deps, f'these import each other: {deps}'


# --- what public definitions say

hooks = {'check_inputs', 'make_params', 'transform'}


def comment_lines(source):
    "The numbers of the lines of `source` that end in a comment."
    return {t.start[0] for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT}


def undocumented(source, public):
    """What is missing in `source`: docstrings, and a comment for each parameter on a line of its own, of the names in `public`.

    A module's `forward` needs no docstring beside its class's, and the hooks that torchvision calls need nothing."""
    comments, out = comment_lines(source), []
    def parameters(fn, name):
        a = fn.args
        args = [o for o in [*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg] if o and o.arg not in ('self', 'cls')]
        lines = [o.lineno for o in args]
        out.extend(f'{name}: no comment for {o.arg}' for o in args if o.lineno not in comments)
        out.extend(f'{name}: {o.arg} shares its line' for o in args if lines.count(o.lineno) > 1)
    for node in ast.parse(source).body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name not in public: continue
        if not ast.get_docstring(node): out.append(f'{node.name}: no docstring')
        if isinstance(node, ast.FunctionDef): parameters(node, node.name)
        else:
            for member in node.body:
                if isinstance(member, ast.FunctionDef) and member.name == '__init__': parameters(member, node.name)
                if isinstance(member, ast.AnnAssign) and member.lineno not in comments: out.append(f'{node.name}: no comment for {member.target.id}')
                if isinstance(member, ast.FunctionDef) and member.name[0] != '_' and member.name not in hooks:
                    if member.name != 'forward' and not ast.get_docstring(member): out.append(f'{node.name}.{member.name}: no docstring')
                    parameters(member, f'{node.name}.{member.name}')
    return out


def public(source):
    "The names in `__all__` of a module's source."
    return next(set(ast.literal_eval(n.value)) for n in ast.parse(source).body if isinstance(n, ast.Assign) and n.targets[0].id == '__all__')


def test_undocumented():
    good = 'def f(\n    x, # a\n    y=1 # b\n): # c\n    "Does."\n'
    assert undocumented(good, {'f'}) == []
    assert undocumented('def f(x, y=1): # both\n    "Does."\n', {'f'}) == ['f: x shares its line', 'f: y shares its line']
    assert undocumented('def f(\n    x\n): return x\n', {'f'}) == ['f: no docstring', 'f: no comment for x']
    assert undocumented('class A:\n    "It."\n    def __init__(self,\n        n\n    ): pass\n    def go(self): pass\n', {'A'}) == ['A: no comment for n', 'A.go: no docstring']
    assert undocumented('def g(x): pass', {'f'}) == []


@pytest.mark.parametrize('path', modules, ids=lambda p: p.stem)
def test_public_definitions_explain_themselves(path):
    source = path.read_text(encoding='utf-8')
    assert not (missing := undocumented(source, public(source))), '\n'.join(missing)


# --- files

def test_no_large_file_is_tracked():
    done = subprocess.run(['git', 'ls-files', '-z'], cwd=root, capture_output=True, text=True) if (root/'.git').exists() else None
    if done is None or done.returncode: pytest.skip('not a git repository')
    large = {f: (root/f).stat().st_size for f in done.stdout.split('\0') if f and (root/f).is_file() and (root/f).stat().st_size > 25e6}
    assert not large


def test_quarto_project_is_shared():
    assert (root/'nbs/_quarto.yml').is_symlink() and (root/'nbs/_quarto.yml').readlink() == Path('../_quarto.yml')
