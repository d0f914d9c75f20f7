"""Loads the wording of a grounded prompt from a file in `templates/`, or from a file of the operator's own."""

from __future__ import annotations

import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

_FOLDER: Final = Path(__file__).with_name("templates")
_VALUES: Final = {"mark": "", "number": 1, "title": "", "text": "", "question": ""}


class TemplateRefused(Exception):  # noqa: N818 - named after the event
    """A template could not be read. The text names the file and the field."""


class Template(BaseModel):
    """The parts of a prompt; `templates/plain.toml` explains the fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    before: str
    source: str
    title: str
    steering: str
    after: str
    without_sources: str
    question: str
    question_in_chat: str

    @model_validator(mode="after")
    def _can_be_filled(self) -> Template:
        for name, value in self:
            try:
                value.format(**_VALUES)
            except (KeyError, IndexError, ValueError, AttributeError):
                raise ValueError(f"{name}: write a literal brace twice") from None
        if "{text}" not in self.source or "{mark}" not in self.source or "{number}" not in self.source:
            raise ValueError("source: must hold {number}, {mark} and {text}")
        if not self.question.partition("{question}")[1]:
            raise ValueError("question: must hold {question}")
        return self


@lru_cache(maxsize=64)
def load_template(name: str) -> Template:
    """Load the file `name` if it ends in `.toml`, else the template `name` in `templates/`. Raises TemplateRefused."""
    path = Path(name) if name.endswith(".toml") else _FOLDER / f"{name}.toml"
    try:
        return Template.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        raise TemplateRefused(f"{path.name} cannot be read as a prompt template") from None
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, one['loc']))} {one['msg']}".strip() for one in error.errors())
        raise TemplateRefused(f"{path.name}: {problems}") from None
