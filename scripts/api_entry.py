"How the site shows a definition below its source: the call, what it does, and its docments as a table."
import inspect, re
from fastcore.docments import docments
from nbdev.showdoc import BasicMarkdownRenderer


def plain(s):
    "Text `s` for a cell of a Markdown table: what is not in backticks keeps its stars, bars and brackets."
    parts = re.split(r'(`[^`]*`)', ' '.join(str(s).split()))
    return ''.join(p.replace('|', r'\|') if p.startswith('`') else re.sub(r'([|*_<>\[\]$])', r'\\\1', p) for p in parts)


def call(name, fn):
    "How `fn` is called: its name and parameters without types."
    try: params = list(inspect.signature(fn).parameters.values())
    except (ValueError, TypeError): return name
    params = [p.replace(annotation=p.empty) for p in params if p.name != 'self']
    return f"{name}({', '.join(map(str, params))})"


def returned(fn):
    "The comment on what `fn` returns, which stands behind the bracket that closes its parameters."
    try: src = inspect.getsource(fn)
    except (OSError, TypeError): return None
    found = re.search(r'^\s*\)(?:\s*->[^#\n]*)?:\s*#\s*(.*)$', src, re.M)
    return found and found[1]


def table(rows, *head):
    "A Markdown table of `rows` under the column names `head`."
    return '\n'.join('| ' + ' | '.join(r) + ' |' for r in [head, ['---'] * len(head), *rows]) if rows else ''


class Entry(BasicMarkdownRenderer):
    "An entry of the API, given to nbdev's `show_doc` as its renderer."

    def parameters(self):
        "A row for each parameter or field that has a comment, and one for what is returned."
        found = {k: v for k, v in docments(self.sym, returns=False).items() if k != 'self' and v}
        rows = [(f'`{k}`', plain(v)) for k, v in found.items()]
        result = None if inspect.isclass(self.sym) else returned(self.sym)
        return rows + ([('returns', plain(result))] if result else [])

    def methods(self):
        "A row for each public method of a class that has a docstring of its own."
        if not inspect.isclass(self.sym): return []
        found = {k: getattr(v, '__func__', None) or getattr(v, 'fget', v) for k, v in vars(self.sym).items() if k[0] != '_'}
        return [(f"`.{k if isinstance(vars(self.sym)[k], property) else call(k, v)}`", plain(v.__doc__.splitlines()[0]))
                for k, v in found.items() if inspect.isfunction(v) and v.__doc__]

    def _repr_markdown_(self):
        "The entry as Markdown."
        does = plain(re.sub(r'\s*\n\s*', ' ', self.docs))
        parts = [f'### {self.nm} {{#{self.nm.lower()}}}', f'`{call(self.nm, self.sym)}`', does,
                 table(self.parameters(), 'parameter', 'what it is'), table(self.methods(), 'method', 'what it does')]
        return '\n\n'.join([':::: {.api-entry}', *filter(None, parts), '::::', ''])
