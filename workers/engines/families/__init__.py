"""Model families as data: the formats that the models of a family read and write. `families.toml` is the table.

Each table of the file has these fields, all optional but `ids`:

    ids             a regular expression, searched in a model's name in lower case and without its folder
    architectures   names under `architectures` in config.json; absent for models that vLLM does not load. A model of
                    an architecture that no family lists is found by its name alone
    reasoning       marks around the model's reasoning: `opening`, `closing`, vLLM's `parser`, `trailer` (text between
                    the reasoning and the closing mark), and `opened_by`: `template` if every prompt ends with the
                    opening mark, `template_if_asked` if only prompts that ask for thinking do, else `model`
    tools           name of vLLM's tool parser
    fences          true if the model puts JSON into a Markdown fence where no grammar prevents it; `quirks` removes the
                    fence
    system          false if the chat template refuses system messages; `quirks` puts them into the user's message
    images          a regular expression, searched as `ids` is, that finds the models that read images; empty if all
                    models of the family do, absent if none does
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

FILE: Final = Path(__file__).with_name("families.toml")


class _FamilyPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())


class ReasoningMarks(_FamilyPart):
    """The texts around a model's reasoning, and the name of vLLM's parser for them."""

    opening: str
    closing: str
    parser: str
    opened_by: Literal["template", "template_if_asked", "model"]
    trailer: str = ""
    """Fixed text that the format has between the reasoning and the closing mark."""


class Family(_FamilyPart):
    """One family; the package's docstring explains the fields."""

    name: str
    ids: str
    architectures: tuple[str, ...] = ()
    reasoning: ReasoningMarks | None = None
    tools: str | None = None
    fences: bool = False
    system: bool = True
    images: str | None = None


_USUAL_MARKS: Final = ReasoningMarks(opening="<think>", closing="</think>", parser="deepseek_r1", opened_by="model")


@lru_cache
def families() -> Mapping[str, Family]:
    """Return all families by name, in the order of the file."""
    return {name: _family(name, table) for name, table in tomllib.loads(FILE.read_text(encoding="utf-8")).items()}


def family_of(model: str, architectures: Iterable[str] = ()) -> Family | None:
    """Return the family of a model; None if no family fits, or if architectures alone decide and several fit.

    The name decides, because families share architectures. Architectures, if given, choose between several families
    that fit the name, and find the family of a model of another name. The architectures overrule the name only if the
    table lists them for other families alone. An example is a merged model whose name contains another family's name.
    """
    given = frozenset(architectures)
    name = _folded(model)
    named = [each for each in families().values() if _pattern(each.ids).search(name)]
    built = [each for each in families().values() if given & {*each.architectures}]
    both = [each for each in named if each in built]
    if both or (named and not built):
        return (both or named)[0]
    return built[0] if len(built) == 1 else None


def known_family(family: str | None) -> str | None:
    """Return the name unchanged. Raises ValueError if no family has this name."""
    if family is not None and family not in families():
        raise ValueError(f"is no family that Postback knows; there are: {', '.join(families())}")
    return family


def marks_in(chat_template: str | None) -> ReasoningMarks | None:
    """Return `<think>` and `</think>` if the chat template has one of them; None otherwise.

    A template writes the opening mark before an answer, or removes earlier reasoning at the closing mark. Both show
    that the model reasons, even if the model's family is unknown.
    """
    template = chat_template or ""
    return _USUAL_MARKS if _USUAL_MARKS.opening in template or _USUAL_MARKS.closing in template else None


def are_read_by(family: Family | None, model: str) -> bool:
    """True if this model of the family reads images. False for a model of no known family."""
    return family is not None and family.images is not None and bool(_pattern(family.images).search(_folded(model)))


def _folded(model: str) -> str:
    """Return a model's name in lower case, without its folder."""
    return model.rstrip("/").rpartition("/")[2].lower()


def _family(name: str, table: dict[str, object]) -> Family:
    values = {field: tuple(value) if isinstance(value, list) else value for field, value in table.items()}
    return Family.model_validate({"name": name, **values})


@lru_cache
def _pattern(ids: str) -> re.Pattern[str]:
    return re.compile(ids)
