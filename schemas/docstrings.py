"""The descriptions of models' fields: the docstrings below them, read from the source when they are asked for.

Pydantic's `use_attribute_docstrings` reads and parses the source of every model at its import, a tenth of the time that
a worker's start takes. No process needs the descriptions to do its work.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Mapping
from functools import cache
from itertools import pairwise

from pydantic import BaseModel


@cache
def descriptions(model: type[BaseModel]) -> Mapping[str, str]:
    """Return the description of each field that has one, also of inherited fields."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if issubclass(base, BaseModel) and base.model_fields:
            found |= _docstrings(base)
    return {name: found[name] for name in model.model_fields if name in found}


def _docstrings(model: type[BaseModel]) -> dict[str, str]:
    """Return the docstrings below the fields in the model's own source; none if the source is not there."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(model)))
    except OSError:
        return {}
    body = [
        statement for definition in tree.body if isinstance(definition, ast.ClassDef) for statement in definition.body
    ]
    found = {}
    for field, below in pairwise(body):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = inspect.cleandoc(text)
    return found
