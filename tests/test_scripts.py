"The commands behind the Makefile, each on a small project of its own."
import json, os, re, shutil, subprocess, sys
from pathlib import Path
import pytest
import check, ship_sample, site_test, versions
from docs import landed, mathml, page_name, prepare, sidebar
from notebooks import directives, dump, notebooks, read, root, skipped, to_run, write


def md(source): return dict(cell_type='markdown', metadata={}, source=source)
def code(source): return dict(cell_type='code', metadata={}, source=source, outputs=[], execution_count=None)


def notebook(path, *cells):
    "Write cells, Markdown or code, as the notebook file `path`."
    cells = [c | dict(id=f'cell{i}', source=c['source'].splitlines(True)) for i, c in enumerate(cells)]
    kernel = dict(display_name='python3', language='python', name='python3')
    path.write_text(dump(dict(cells=cells, metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)), encoding='utf-8')


definition = '''#| export
def area(
    w, # width, *px* | pt
    h=2 # height of `a|b`
): # their product
    "The area of a box. See eq. 1."
    return w * h'''
thing = '''#| export
class Thing:
    "A thing of size `n`."
    def __init__(self,
        n=1 # how many
    ): self.n = n
    def grow(self,
        by # how much
    ):
        "Grow by `by`. Raises nothing."
        self.n += by'''
leave = '''import json, os
if os.environ.get('OBJDET_RESULTS'):
    with open(os.environ['OBJDET_RESULTS'] + '/06_focal_nms.json', 'w') as f: json.dump(dict(map=0.4321, n=500, data='sample'), f)'''


@pytest.fixture
def project(tmp_path):
    "A project with four notebooks, our scripts and settings."
    shutil.copytree(root/'scripts', tmp_path/'scripts', ignore=shutil.ignore_patterns('__pycache__'))
    for name in 'settings.ini', '_quarto.yml': shutil.copy(root/name, tmp_path)
    for name in 'nbs', 'objdet': (tmp_path/name).mkdir()
    shutil.copy(root/'nbs/styles.css', tmp_path/'nbs')
    shutil.copy(root/'objdet/__init__.py', tmp_path/'objdet')
    nbs = tmp_path/'nbs'
    notebook(nbs/'index.ipynb', md('# objdet\n> The first page.'), md('Start with [boxes](00_boxes.ipynb).'), code('1 + 1'))
    notebook(nbs/'00_boxes.ipynb', md('# Boxes\n> What is a box?'), md(r'A box: $a_i = w \times h$, and [on](06_focal_nms.ipynb#thing).'), code('#| default_exp boxes'),
             code('#| export\nimport math'), code(definition), code('assert area(2) == 4'), code('#| hide\nwrong = 0'))
    notebook(nbs/'06_focal_nms.ipynb', md('# Loss\n> Which loss?'), code('#| default_exp focal_nms'), code(thing), code(leave))
    notebook(nbs/'95_pretrain.ipynb', md('# Weights\n> Made once.\n- skip_exec: true'), code('1 / 0'))
    return tmp_path


def run(project, script, **env):
    "Run one of the scripts in its project."
    env = {k: v for k, v in os.environ.items() if not k.startswith('OBJDET_') and k != 'NBS'} | env
    return subprocess.run([sys.executable, project/'scripts'/script], cwd=project, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_course(project):
    "The whole way: every notebook into a copy, the site from the copies, the score, the page to open."
    before = {p: p.read_bytes() for p in notebooks(project/'nbs')}
    done = run(project, 'course.py')
    assert done.returncode == 0, done.stdout
    assert [re.search(rf'{n}/4\] (\w+)', done.stdout)[1] for n in (1, 2, 3, 4)] == ['index', '00_boxes', '06_focal_nms', '95_pretrain']
    assert 'skipped: its front matter says skip_exec' in done.stdout
    assert '0.432 on 500 validation pictures of sample' in done.stdout
    assert done.stdout.rstrip().endswith(f'Open {project}/_docs/index.html')
    assert {p: p.read_bytes() for p in notebooks(project/'nbs')} == before
    assert read(project/'_course/sample/index.ipynb')['cells'][2]['outputs'][0]['data']['text/plain'] in ('2', ['2'])
    site = {p.stem: p.read_text(encoding='utf-8') for p in (project/'_docs').glob('*.html')}
    assert site.keys() == {'index', 'boxes', 'focal_nms', 'pretrain'}
    pages = re.findall(r'class="sidebar-item-text sidebar-link[^>]*href="\.?/?([\w.]+)"|href="\.?/?([\w.]+)"[^>]*class="[^"]*sidebar-link', site['boxes'])
    assert [a or b for a, b in pages] == ['index.html', 'boxes.html', 'focal_nms.html', 'pretrain.html']
    assert re.search(r'nav-page-previous.*index\.html.*nav-page-next.*focal_nms\.html', site['boxes'], re.S)
    assert 'href="boxes.html"' in site['index'] and 'href="focal_nms.html#thing"' in site['boxes'] and 'id="thing"' in site['focal_nms']
    boxes = re.sub(r'</?(span|code|a)[^>]*>', '', site['boxes'])
    assert 'area(w, h=2)' in boxes and 'The area of a box. See eq. 1.' in boxes
    assert '<td>w</td>\n<td>width, *px* | pt</td>' in boxes and '<td>height of a|b</td>' in boxes and '<td>returns</td>\n<td>their product</td>' in boxes
    assert 'import math' not in boxes and 'wrong = 0' not in boxes and 'return w * h' in boxes
    assert '.grow(by)' in site['focal_nms'] and 'Grow by' in site['focal_nms']
    assert '<math' in site['boxes'] and not any('katex' in s or 'src="http' in s for s in site.values())
    index = json.loads((project/'_docs/search.json').read_text(encoding='utf-8'))
    assert {'boxes.html#area', 'focal_nms.html#thing'} <= {e['href'] for e in index}


def test_course_fails_with_the_cell_and_keeps_the_copy(project):
    notebook(project/'nbs/00_boxes.ipynb', md('# Boxes\n> What is a box?'), code('6 * 7'), code('def f(d): return d["key"]\nf({})'), code('after = 1'))
    done = run(project, 'course.py', NBS='00 06')
    assert done.returncode == 1
    assert '00_boxes, cell 3: KeyError' in done.stdout and "return d[\"key\"]" in done.stdout and '06_focal_nms' not in done.stdout
    copy = project/'_course/sample/00_boxes.ipynb'
    assert str(copy) in done.stdout
    assert [len(c['outputs']) for c in read(copy)['cells'][1:]] == [1, 1, 0]


def test_course_wants_a_score(project):
    notebook(project/'nbs/06_focal_nms.ipynb', md('# Loss\n> Which loss?'), code('2'))
    done = run(project, 'course.py', NBS='06')
    assert done.returncode == 1 and 'the detector has no score' in done.stdout


@pytest.mark.parametrize('env, message', [
    (dict(NBS='00 77'), 'starts with 77; there are: index 00_boxes 06_focal_nms 95_pretrain'),
    (dict(OBJDET_DATA='../nowhere'), 'OBJDET_DATA=../nowhere: there is no such file or folder'),
    (dict(OBJDET_WEIGHTS='body.pth'), 'OBJDET_WEIGHTS=body.pth: there is no such file or folder')])
def test_course_refuses(project, env, message):
    done = run(project, 'course.py', **env)
    assert done.returncode == 1 and message in done.stdout


def test_other_data_runs_in_a_copy_of_its_own(project):
    (project/'my data').mkdir()
    notebook(project/'nbs/00_boxes.ipynb', md('# Boxes\n> What is a box?'), code('import os; print(os.environ["OBJDET_DATA"])'))
    done = run(project, 'course.py', NBS='00', OBJDET_DATA='my data')
    assert done.returncode == 0, done.stdout
    assert read(project/'_course/my-data/00_boxes.ipynb')['cells'][1]['outputs'][0]['text'] in (f'{project}/my data\n', [f'{project}/my data\n'])


# --- the test suite's own parts

def test_each_cell_is_counted(project, capfd):
    "1, 4 and 2 cells: not those that hold only directives, and none of the notebook with skip_exec."
    assert check.executed(project) == []
    assert 'nbdev_test: 3 notebooks, 7 cells executed' in capfd.readouterr().out


def test_a_failing_notebook_fails(project):
    notebook(project/'nbs/00_boxes.ipynb', md('# Boxes\n> What is a box?'), code('assert 1 == 2'))
    assert check.executed(project) == ['nbdev_test failed, with exit status 1']


def test_no_notebook_fails(project):
    for p in notebooks(project/'nbs'): p.unlink()
    assert check.executed(project) == ['nbdev_test executed nothing']


def test_a_cell_that_nbdev_passes_over_fails(project):
    notebook(project/'nbs/00_boxes.ipynb', md('# Boxes\n> What is a box?'), code('#| notest\n1'), code('2'))
    assert check.executed(project) == ['nbs/00_boxes.ipynb, cell cell1 was not executed']


def test_lessons_switch_nothing_off(project):
    assert check.unskipped(project) == []
    notebook(project/'nbs/00_boxes.ipynb', md('# Boxes\n> What is a box?'), code('#| hide\n#|eval: false\n1/0'), code('1'))
    notebook(project/'nbs/06_focal_nms.ipynb', md('# Loss\n> Which?\n- skip_exec: true'), code('1'))
    assert check.unskipped(project) == ['nbs/00_boxes.ipynb, cell cell1: eval: false without a reason in check.py',
                                        'nbs/06_focal_nms.ipynb says skip_exec: lessons run']


def test_modules_out_of_sync_are_named(project):
    check.nbdev(project, 'from nbdev.doclinks import nbdev_export; nbdev_export.__wrapped__()')
    assert check.exported(project) == []
    with open(project/'objdet/boxes.py', 'a') as f: f.write('# by hand\n')
    (project/'objdet/lost.py').write_text('')
    assert [c.split()[0] for c in check.exported(project)] == ['objdet/boxes.py', 'objdet/lost.py']


def test_notebooks_that_are_not_clean_are_named(project):
    assert check.cleaned(project) == []
    nb = read(project/'nbs/00_boxes.ipynb')
    nb['cells'][5]['execution_count'] = 3
    (project/'nbs/00_boxes.ipynb').write_text(dump(nb), encoding='utf-8')
    assert check.cleaned(project) == ['nbs/00_boxes.ipynb is not clean: run `make export`']


def test_readme(project, monkeypatch):
    assert run(project, 'readme.py').returncode == 0
    readme = (project/'README.md').read_text(encoding='utf-8')
    assert '# objdet\n\n> The first page.\n\nStart with [boxes](nbs/00_boxes.ipynb).\n\n```python\n1 + 1\n```\n' in readme
    part, made = check.parts['README.md is what index.ipynb gives'], check.readme.markdown(project)
    monkeypatch.setattr(check.readme, 'markdown', lambda project: made)
    assert part(project) == []
    (project/'README.md').write_text(readme + 'by hand\n')
    assert part(project) == ['README.md is out of date: run `make readme`']


def test_parts_stop_at_the_first_complaint(monkeypatch, capsys):
    "A suite that goes on, or ends well, after a part has complained."
    monkeypatch.setattr(check, 'parts', dict(good=lambda project: [], bad=lambda project: ['that is wrong'], after=lambda project: 1/0))
    assert check.check(names=['good', 'bad', 'after']) is False and check.check(names=['good']) is True
    assert re.fullmatch(r'ok: good \(0 s\)\nthat is wrong\nok: good \(0 s\)\n', capsys.readouterr().out)


def test_no_test_fails(tmp_path, monkeypatch):
    "A folder without tests would be a success; what the user has set for the course gets through, or a cache that is seen from another folder."
    monkeypatch.setattr(check, 'workers', 0)
    assert check.tested(tmp_path) == 5
    monkeypatch.chdir(tmp_path)
    for name, value in dict(OBJDET_BODY='nosuch', OBJDET_CACHE='mine').items(): monkeypatch.setenv(name, value)
    (tmp_path/'test_it.py').write_text(f"import os\ndef test_it(): assert 'OBJDET_BODY' not in os.environ and os.environ['OBJDET_CACHE'] == {str(tmp_path/'mine')!r}")
    assert check.tested(tmp_path) == 0


def test_weights_that_are_not_the_lessons_are_not_shipped(tmp_path, monkeypatch, capsys):
    "The shipped file was written over before anything was scored."
    class Made:
        plan = dict(notes=dict(map=.5))
        def save(self, path): path.write_text('saved')
    for name, value in dict(file=tmp_path/'d.pt', made=lambda folder: Made(), score=lambda det: .45, load_detector=lambda path: Made()).items():
        monkeypatch.setattr(ship_sample, name, value)
    monkeypatch.setattr(sys, 'argv', ['ship_sample.py'])
    with pytest.raises(SystemExit, match='the lesson scored 0.5000: d.pt stays'): ship_sample.main()
    assert not (tmp_path/'d.pt').exists()
    monkeypatch.setattr(ship_sample, 'score', lambda det: .503)
    ship_sample.main()
    assert (tmp_path/'d.pt').exists() and 'after half precision 0.5030' in capsys.readouterr().out


# --- small pieces

def test_what_is_written_is_whole_or_not_there(tmp_path):
    "A write that failed left its half in nbs/."
    write(tmp_path/'a.ipynb', 'old')
    with pytest.raises(UnicodeEncodeError): write(tmp_path/'a.ipynb', '\ud800')
    assert [p.name for p in tmp_path.iterdir()] == ['a.ipynb'] and (tmp_path/'a.ipynb').read_text() == 'old'


def test_which_pages_hold_formulas():
    def holds(source): return site_test.formulas(dict(cells=[md(source), code('$x$')]))
    assert holds('so $a_i$.') and holds('$$\na\n$$')
    assert not any(map(holds, ['it costs $5', '$5 and $6', '`$a$`', '```\n$a$ b\n```', r'\$a$']))


def test_links_that_lead_nowhere():
    own = 'http://127.0.0.1:1/'
    seen = {'index.html': dict(links=[own, f'{own}a.html#top', f'{own}a.html#gone', f'{own}b.html', 'https://b.org/'], ids=[]), 'a.html': dict(links=[], ids=['top'])}
    assert site_test.dead_links(seen, own) == ['index.html: links to a.html#gone, and the page has no such place', 'index.html: links to b.html, which is not there']


def test_a_row_of_versions(tmp_path, monkeypatch):
    "What pytest's last line says; a run in which nothing passed is a failure."
    said = []
    def call(*args, **kwargs): return said.pop(0)
    monkeypatch.setattr(versions, 'call', call)
    said[:] = ['', 'a warning\n["2.11", "0.26", "1.8"]\n', '...\n3 passed, 1 skipped in 2.00s\n']
    cells, failed = versions.row(tmp_path, 'x.whl', '1', tmp_path)
    assert cells[:4] == ['2.11', '0.26', '1.8', '3 passed, 1 skipped'] and failed is None
    said[:] = ['', '["2.11", "0.26", "1.8"]', '2 skipped in 2.00s\n']
    assert versions.row(tmp_path, 'x.whl', '1', tmp_path)[1] == 'no test passed'
    assert versions.table([['3.11', '2.11', '0.26', '1.8', '3 passed', '9 s']]).splitlines()[1] == '3.11    2.11   0.26         1.8       3 passed  9 s'
    assert all((root/f'tests/{t}.py').exists() for t in versions.tests)

def test_which_cells_run():
    nb = dict(cells=[md('# T\n> t'), code('#| default_exp a'), code('\n#| eval: false\n1'), code('# note'), code('%time 1'), code('x = 1 #| eval: false')])
    assert [i for i, _ in to_run(nb)] == [4, 5]
    assert not skipped(nb) and skipped(dict(cells=[dict(cell_type='raw', source='---\nskip_exec: true\n---'), *nb['cells']]))
    assert directives(code('#| hide\n#|export\n\nx = 1\n#| later')) == ['hide', 'export']


def test_pages():
    assert [page_name(n) for n in ('index', '00_pascal_data', '90_show')] == ['index', 'pascal_data', 'show']
    contents = json.loads(sidebar(['index', '00_a', '09_b', '89_c', '90_d']))['website']['sidebar']['contents']
    assert contents == ['index.ipynb', dict(section='Lessons', contents=['a.ipynb', 'b.ipynb']), dict(section='Toolbox', contents=['c.ipynb', 'd.ipynb'])]


def test_sources_are_shown_and_only_they_are_executed():
    cells = [code('#| export\ndef f(): pass'), code('#| export\nimport os\nfrom re import sub'), code('import os\nos.nothing'), code('%%time\n1'), md('# A')]
    for c in cells: prepare(c)
    assert [c['source'].splitlines()[0] for c in cells] == ['#| exports', '#| export', '#| eval: false', '#| eval: false', '# A']


def test_formulas_need_no_script():
    page = mathml('<link rel="stylesheet" href="https://cdn/katex@0.16/katex.css">\n<p><span class="math inline">\\(a &lt; \\gamma\\)</span></p>', 'a.html')
    assert 'katex' not in page and '<mi>&#x003B3;</mi>' in page and '\\(' not in page


def test_links_of_code_land(tmp_path):
    "A link to a method or a private name that has no place of its own on the page; links of the text are left alone."
    (tmp_path/'a.html').write_text('<h3 id="loss"></h3><a href="a.html#loss.get"><code>Loss.get</code></a><a href="./a.html#_field"><code>_field</code></a>'
                                   '<a href="a.html#loss"><code>Loss</code></a><a href="a.html#gone">text</a>')
    landed(tmp_path)
    assert re.findall('href="(.*?)"', (tmp_path/'a.html').read_text()) == ['a.html#loss', 'a.html', 'a.html#loss', 'a.html#gone']
