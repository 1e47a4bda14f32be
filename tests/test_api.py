"What a user meets: every public name says what it is, every parameter what it takes, and no name of fastai changes its meaning."
import importlib, inspect
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
from fastcore.docments import docments

LIB     = Path(__file__).parents[1]/'enas_nb'
MODULES = sorted(p.stem for p in LIB.glob('*.py') if p.stem != 'all' and p.name[0] != '_')

def public(name):
    "(name, object) of each function and class of a module's `__all__`; a constant shows itself."
    mod = importlib.import_module(f'enas_nb.{name}')
    return [(k, o) for k in mod.__all__ if inspect.isclass(o := getattr(mod, k)) or inspect.isroutine(o)]

def documented(o):
    "Does `o` have a docstring of its own, not its base's and not the signature that `dataclass` writes?"
    doc = vars(o).get('__doc__') if inspect.isclass(o) else inspect.unwrap(o).__doc__
    return bool((doc or '').strip()) and not doc.startswith(f'{o.__name__}(')

def params(o):
    "Parameters that the source of `o` names itself: neither `self` nor what `delegates` adds."
    if is_dataclass(o): return [f.name for f in fields(o) if f.init and f.name in vars(o).get('__annotations__', {})]
    f = vars(o).get('__init__') if inspect.isclass(o) else inspect.unwrap(o)
    if not inspect.isfunction(f): return []
    c = f.__code__
    return [n for n in c.co_varnames[:c.co_argcount+c.co_kwonlyargcount] if n not in ('self', 'cls')]

def undocumented(k, o):
    "Names of the parameters of `o` that no comment explains."
    names = params(o)
    if not names: return []
    docs = docments(o if inspect.isclass(o) else inspect.unwrap(o), returns=False)
    return [f'{k}({n})' for n in names if not docs.get(n)]

@pytest.mark.parametrize('name', MODULES)
def test_public_names_are_documented(name):
    mod = importlib.import_module(f'enas_nb.{name}')
    missing  = [] if mod.__doc__ else ['the module itself']
    missing += [k for k,o in public(name) if not documented(o)]
    missing += [n for k,o in public(name) for n in undocumented(k, o)]
    assert not missing, f'enas_nb.{name}, without a docstring or a comment at the parameter: {missing}'

@pytest.mark.parametrize('name', MODULES)
def test_public_names_exist(name):
    mod = importlib.import_module(f'enas_nb.{name}')
    assert mod.__all__ and not [k for k in mod.__all__ if not hasattr(mod, k)]

def star(module):
    "What `from module import *` brings."
    ns = {}
    exec(f'from {module} import *', ns)
    ns.pop('__builtins__')
    return ns

def test_all_keeps_the_names_of_fastai():
    theirs, ours = star('fastai.vision.all'), star('enas_nb.all')
    changed = sorted(k for k in theirs.keys() & ours.keys() if theirs[k] is not ours[k])
    assert not changed, f'`from enas_nb.all import *` gives these names of fastai another meaning: {changed}'

def test_no_name_is_taken_twice():
    seen = {}
    for m in MODULES:
        for k,o in public(m): seen.setdefault(k, set()).add(id(o))
    assert not [k for k,v in seen.items() if len(v) > 1], 'two modules export different things under one name'
