"""The bases of models that are read from a topic, a socket or a file of another party."""

from __future__ import annotations

from typing import Any, Final

from pydantic import AliasChoices, BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from schemas.docstrings import descriptions

FEW: Final = 64
"""A list whose `max_length` is at most this number reports each of its wrong items."""
_COLLECTIONS: Final = ("list", "set", "frozenset", "tuple", "dict")


def _fail_fast(part: Any) -> None:
    """Make this core schema's collections stop at their first error, except lists with a small `max_length`.

    Pydantic checks a dict's length only after its last item, so a small `max_length` would not limit a dict's errors.
    """
    if isinstance(part, dict):
        kind = part.get("type")
        if kind == "dict" or (kind in _COLLECTIONS and part.get("max_length", FEW + 1) > FEW):
            part["fail_fast"] = True
        part = list(part.values())
    if isinstance(part, list | tuple):
        for inner in part:
            _fail_fast(inner)


def _name_in_json(name: str, field: FieldInfo) -> str:
    """Return the name that pydantic gives a field in a schema: its alias, or the first of several that is a word."""
    given = field.validation_alias
    choices = given.choices if isinstance(given, AliasChoices) else [given]
    return next((each for each in choices if isinstance(each, str)), name)


class BoundedModel(BaseModel):
    """A model whose ValidationError stays small: a collection without a small `max_length` stops at its first error.

    Pydantic otherwise collects an error for each wrong item. A record of 900 kB may have 300,000 wrong items, whose
    errors need more than a gigabyte.
    """

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        _fail_fast(schema)
        return schema

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Describe each field by its docstring."""
        made = handler(schema)
        fields = handler.resolve_ref_schema(made).get("properties", {})
        for name, text in descriptions(cls).items():
            fields[_name_in_json(name, cls.model_fields[name])].setdefault("description", text)
        return made


class WireModel(BoundedModel):
    """A frozen model that ignores unknown fields, so that an older reader can read a newer writer's records."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        protected_namespaces=(),
        allow_inf_nan=False,
        hide_input_in_errors=True,
    )
