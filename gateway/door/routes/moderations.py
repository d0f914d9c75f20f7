"""`/v1/moderations`: the operator's input filter, asked about texts without a job.

A rule of the filter names the categories of OpenAI that it measures. A category that no rule measures is null, which is
not `false`. Source: OpenAI's API reference, "Create moderation".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, StringConstraints

from gateway.door.endpoint import Answer, Call
from gateway.door.noted import note_screening
from gateway.errors import ApiError, conflict
from producers.identity import new_hex
from schemas.bounded import BoundedModel
from schemas.screening import CATEGORIES, Verdict

if TYPE_CHECKING:
    from workers.screening.screen import Moderated

MODEL = "postback-input-filter"
MOST_INPUTS = 1000

Text = Annotated[str, StringConstraints(min_length=1)]
T = TypeVar("T")
Several = Annotated[list[T], Field(min_length=1, max_length=MOST_INPUTS)]


class Part(BoundedModel):
    """A part of an input with several parts. The filter reads texts only, so an image is refused."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    type: Literal["text", "image_url"]
    """The kind of part."""
    text: Text | None = None
    """The text."""
    image_url: dict[str, str] | None = None
    """The image."""


class ModerationRequest(BoundedModel):
    """The body of a moderation."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    input: Text | Several[Text] | Several[Part]
    """One text, texts that are judged one by one, or the parts of one input."""
    model: str | None = None
    """A model's name, as OpenAI's clients send it. It changes nothing: the operator's rules judge."""


async def create(call: Call) -> Answer:
    """Judge texts by the operator's input filter.

    A category that no rule measures is null. `flagged` is true if any rule matches, also one without a category.
    """
    asked: ModerationRequest = await call.body()
    screen = call.door.screen
    if screen is None:
        message = "The operator of this gateway has set no rules of the input filter, POSTBACK_SCREENING__RULES."
        raise conflict("moderations_unavailable", message)
    found = await call.door.screening.run(screen.moderate, call.tenant, _texts(asked))
    rules = [rule for one in found for rule in one.rules]
    strictest = max((one.verdict for one in found), key=lambda verdict: verdict.strictness)
    note_screening(call.request, strictest, rules)
    results = [_result(one) for one in found]
    return {"id": f"modr-{new_hex(call.door.clock)}", "model": MODEL, "results": results}


def _texts(asked: ModerationRequest) -> list[str]:
    """Return the texts to judge, one for each result. Raises ApiError (400) for an image."""
    if isinstance(asked.input, str):
        return [asked.input]
    texts: list[str] = []
    parts: list[str] = []
    for index, each in enumerate(asked.input):
        if isinstance(each, str):
            texts.append(each)
        elif isinstance(each, Part) and each.type == "text" and each.text is not None:
            parts.append(each.text)
        else:
            place = f"input.{index}"
            message = f"{place}: is no text, and the rules of the input filter read texts only; leave it out."
            raise ApiError(400, "unsupported_input", message, param=place)
    return texts or ["\n".join(parts)]


def _result(one: Moderated) -> dict[str, Any]:
    """Return a Moderation object. A rule without a score counts as 1 where it matches, and as 0 elsewhere."""
    return {
        "flagged": one.verdict is not Verdict.PASS,
        "categories": {name: one.matches.get(name) for name in CATEGORIES},
        "category_scores": {name: one.scores.get(name) for name in CATEGORIES},
        "category_applied_input_types": {name: ["text"] if name in one.matches else [] for name in CATEGORIES},
        "postback": {"verdict": one.verdict, "rules": list(one.rules)},
    }
