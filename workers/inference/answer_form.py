"""The form that a job asks of its answer: JSON, a JSON Schema, and calls of the job's tools.

If `max_tokens` cuts an answer off, even a constrained answer is not JSON.

A schema comes from a producer, so its check has bounds: no reference leaves the schema, regular expressions are left
out, because Python's may take for ever, and the check ends after MOST_STEPS steps. An answer that cannot be checked
within the bounds is taken with a note.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from schemas.job import Job
from schemas.tools import NamedTool, ToolCall
from workers.engines.base import Completion

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

MOST_STEPS: Final = 20_000
"""Limit on the steps of one check, each of a few microseconds."""
UNCHECKED: Final = "the answer could not be checked against its JSON Schema"
_LEFT_OUT: Final = ("pattern", "patternProperties", "unevaluatedProperties")
"""The keywords that read regular expressions."""


class BadForm(Exception):  # noqa: N818 - named after the event
    """The answer has not the form that the job asks for. The error's text quotes no part of the answer."""

    code: str


class NotJson(BadForm):
    """The job asked for JSON, and the answer is not JSON."""

    code = "not_json"


class InvalidOutput(BadForm):
    """The answer breaks the job's JSON Schema, or the calls are not those of the job's tools."""

    code = "invalid_output"


def require_form(completion: Completion, job: Job) -> list[str]:
    """Return notes on an answer that has the form that the job asks for. Raises BadForm.

    Calls that are cut off, and JSON of a profile's own schema, are not checked against a schema.
    """
    if completion.finish_reason == "length" and (completion.tool_calls or job.tools):
        return []
    if completion.tool_calls:
        return _notes_on_calls(completion.tool_calls, job)
    if job.tools and (job.tool_choice == "required" or isinstance(job.tool_choice, NamedTool)):
        raise InvalidOutput("tool_choice: the model called none of the job's tools")
    form = job.response_format
    if form is None or form.json_schema is None:
        return []
    try:
        answer = parsed(completion.text)
    except ValueError:
        return []  # `require_json` has judged the text
    return _notes_on(answer, form.json_schema.schema_, "response_format")


def require_json(completion: Completion, job: Job) -> None:
    """Raise BadForm if the completion's text is not one JSON value (RFC 8259)."""
    try:
        parsed(completion.text)
    except ValueError:
        if completion.finish_reason == "length":
            cut = f"max_tokens: the answer's JSON was not whole after {job.max_tokens} tokens; raise it"
            raise NotJson(cut) from None
        if job.response_format is not None and job.response_format.json_schema is not None:
            raise InvalidOutput("response_format: the engine's answer is not JSON") from None
        raise NotJson("response_format: the engine's answer is not JSON") from None


def parsed(text: str) -> object:
    """Return the text's JSON value. Raises ValueError."""
    try:
        return json.loads(text, parse_int=_integer, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) < _LONG else float(digits)  # `int` refuses long numbers


_LONG: Final = 300


def _refuse(name: str) -> None:
    """Refuse NaN and Infinity, which Python's parser would accept."""
    raise ValueError(f"{name} is no JSON")


def _notes_on_calls(calls: tuple[ToolCall, ...], job: Job) -> list[str]:
    """Return notes on calls that follow the job's tools. Raises InvalidOutput."""
    schemas = {tool.function.name: tool.function.parameters for tool in job.tools or ()}
    chosen = job.tool_choice.function.name if isinstance(job.tool_choice, NamedTool) else None
    if job.tool_choice == "none":
        raise InvalidOutput("tool_choice: the model called a tool, and the job allows none")
    if job.parallel_tool_calls is False and len(calls) > 1:
        raise InvalidOutput("parallel_tool_calls: the model made several calls")
    notes: list[str] = []
    for number, call in enumerate(calls):
        name, place = call.function.name, f"tool_calls.{number}"
        if name not in schemas or chosen not in (None, name):
            raise InvalidOutput(f"{place}: the model called another function than the job's")
        try:
            arguments = parsed(call.function.arguments or "{}")
        except ValueError:
            arguments = None
        if not isinstance(arguments, dict):
            raise InvalidOutput(f"{place}: the arguments are not a JSON object")
        notes += _notes_on(arguments, schemas[name], place)
    return notes


def _notes_on(answer: object, schema: Mapping[str, Any], place: str) -> list[str]:
    """Return a note if the answer could not be checked. Raises InvalidOutput for an answer that breaks the schema."""
    errors = _errors()
    _steps.left = MOST_STEPS
    try:
        found = next(errors(answer, schema), None)
    except Exception:  # the producer's schema may break the validator in any way
        return [f"{place}: {UNCHECKED}"]
    if found is not None:
        raise InvalidOutput(f"{place}: the answer breaks the JSON Schema by `{found.validator}`")
    return []


class _TooManySteps(Exception):  # noqa: N818 - ends a check
    """The check has used its steps."""


class _Steps(threading.local):
    left = 0


_steps = _Steps()
"""The steps that the check of this thread has left."""

_Keyword = Callable[[Any, Any, Any, Any], "Iterator[ValidationError] | None"]


@cache
def _errors() -> Callable[[object, Mapping[str, Any]], Iterator[ValidationError]]:
    """Return the function that yields the errors of an answer against a schema.

    The library is loaded at the first answer with a schema: with its optional grammars it takes more than a second.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend
    from referencing import Registry

    keywords: dict[str, _Keyword] = dict(Draft202012Validator.VALIDATORS)

    def unique(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError] | None:
        """Check `uniqueItems`, whose time grows with the square of the items."""
        if isinstance(instance, list):
            _use_steps(len(instance) ** 2)
        return keywords["uniqueItems"](validator, value, instance, schema)

    def additional(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError] | None:
        """Check `additionalProperties`, except beside patterns of names."""
        if "patternProperties" in schema:
            return None
        return keywords["additionalProperties"](validator, value, instance, schema)

    bounded = {
        **keywords,
        "uniqueItems": unique,
        "additionalProperties": additional,
        **dict.fromkeys(_LEFT_OUT, lambda *_: None),
    }
    validator = extend(Draft202012Validator, {name: _counted(keyword) for name, keyword in bounded.items()})
    return lambda answer, schema: validator(schema, registry=Registry()).iter_errors(answer)


def _counted(keyword: _Keyword) -> _Keyword:
    """Return the keyword's check, which first uses up steps for the work that it does."""

    def check(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError] | None:
        _use_steps(1 + sum(len(each) for each in (value, instance) if isinstance(each, list | dict)))
        return keyword(validator, value, instance, schema)

    return check


def _use_steps(count: int) -> None:
    _steps.left -= count
    if _steps.left <= 0:
        raise _TooManySteps
