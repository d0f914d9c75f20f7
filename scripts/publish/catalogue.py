"""Lists every environment variable of Postback from the settings classes; `scripts.publish` writes the page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from cli.shared.variables import ROOMS, settings_class
from schemas.bounded import BoundedModel
from schemas.docstrings import descriptions
from schemas.settings import constants_of
from scripts.publish.markdown import one_line


@dataclass(frozen=True, slots=True)
class Variable:
    """An environment variable that Postback reads."""

    name: str
    """The variable's name; it ends in `__*` where any name may follow."""
    meaning: str
    default: str = ""
    allowed: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """The variables of one settings class, or of a part of it."""

    prefix: str
    """The prefix with which all names of the section's variables begin."""
    about: str
    variables: tuple[Variable, ...]
    is_part: bool
    """True for a settings class nested in another. A nested class may also be given as JSON, in the environment
    variable that its prefix names."""


LOG_LEVEL = Variable(
    "POSTBACK_LOG_LEVEL",
    "The lowest level of log lines that are written.",
    "INFO",
    "`DEBUG`, `INFO`, `WARNING`, `ERROR`, `CRITICAL`",
)
"""The only variable that no settings class reads, because logs begin before settings are read."""


def sections() -> list[Section]:
    """Return all sections; the fleet's section is the first."""
    found: list[Section] = []
    for name, readers in ROOMS.items():
        room = settings_class(name)
        nested = room.model_config.get("env_nested_delimiter") is not None
        found += _sections(room, str(room.model_config.get("env_prefix")), f"Read by {readers}.", nested=nested)
    own, *others = found
    return [replace(own, variables=(*own.variables, LOG_LEVEL)), *others]


def names() -> list[str]:
    """The names of all variables, sorted."""
    variables = {variable.name for section in sections() for variable in section.variables}
    return sorted(variables | {section.prefix.removesuffix("__") for section in sections() if section.is_part})


def _sections(model: type[BaseModel], prefix: str, readers: str, *, nested: bool) -> Iterator[Section]:
    variables: list[Variable] = []
    parts: list[Section] = []
    described = descriptions(model)
    for name, field in model.model_fields.items():
        if name in constants_of(model):
            continue
        variable = prefix + name.upper()
        kind = field.annotation if isinstance(field.annotation, type) else type(None)
        if issubclass(kind, BaseModel) and not issubclass(kind, BoundedModel):
            parts += _sections(kind, f"{variable}__", readers, nested=nested)
            continue
        default = _shown(field.get_default(call_default_factory=True))
        variables.append(Variable(variable, one_line(described.get(name)), default, _allowed(field)))
        if nested and (issubclass(kind, BoundedModel) or get_origin(field.annotation) is dict):
            variables.append(Variable(f"{variable}__*", f"One entry of `{variable}`, by its name."))
    about = f"{one_line(model.__doc__)} {readers}"
    if variables:
        yield Section(prefix, about, tuple(variables), is_part=not issubclass(model, BaseSettings))
    yield from parts


def _shown(default: Any) -> str:
    """Return the default as the text of an environment variable, or an empty text if the default is None or empty."""
    match default:
        case None | () | "" | BaseModel():
            return ""
        case bool():
            return str(default).lower()
        case int():
            return str(default)
        case float():
            return f"{default:g}" if default < 1_000_000 else f"{default:.0f}"
        case frozenset():
            return ",".join(map(str, sorted(default)))
        case tuple():
            return json.dumps(default, separators=(",", ":"))
        case dict():
            return json.dumps(default) if default else ""
    return str(default)


def _allowed(field: FieldInfo) -> str:
    """Return the choices of a field, or the bounds of a number, as text."""
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(field.annotation))
    bounds = {
        name: getattr(each, name) for each in field.metadata for name in ("ge", "gt", "le", "lt") if hasattr(each, name)
    }
    words = {"ge": "from", "gt": "above", "le": "to", "lt": "below"}
    return " ".join(f"{words[name]} {_shown(bounds[name]) or 0}" for name in words if name in bounds)
