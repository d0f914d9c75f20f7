"""Errors of the API in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`.

Source: OpenAI's API reference, "Error codes", and `openai-python`'s `_exceptions.py`.

The store's own errors, which every room may meet:

    StoreAway
    └── OutcomeUnknown
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

from schemas.operator_error import OperatorError

Model = TypeVar("Model", bound=BaseModel)

MOST_RETRY_SECONDS = 60


class ApiError(Exception):
    """A refusal of a request. The message is for people: it names the field, the kind of value and the fix."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        param: str | None = None,
        *,
        headers: Mapping[str, str] = MappingProxyType({}),
        problems: Sequence[Mapping[str, object]] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.headers = {name.lower(): _bounded(name, value) for name, value in headers.items()}
        self.problems = problems
        """A list of the problems, for programs; OpenAI's clients ignore this member."""

    @property
    def body(self) -> dict[str, Any]:
        """The error's JSON."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": {**error, "problems": list(self.problems)} if self.problems else error}


def _bounded(name: str, value: str) -> str:
    """Return a header's value; limit `Retry-After` to a minute, because OpenAI's Node SDK sleeps for the whole time."""
    return str(min(int(value), MOST_RETRY_SECONDS)) if name.lower() == "retry-after" else value


def conflict(code: str, message: str, param: str | None = None) -> ApiError:
    """Return a 409 that OpenAI's clients do not repeat by themselves."""
    return ApiError(409, code, message, param=param, headers=NO_RETRY)


def unavailable(code: str, message: str, seconds: int = 5) -> ApiError:
    """Return a 503 that clients repeat after this time."""
    return ApiError(503, code, message, headers={"retry-after": str(seconds)})


NO_RETRY = MappingProxyType({"x-should-retry": "false"})
"""OpenAI's clients repeat 408, 409, 429 and 5xx unless this header forbids it."""
RETRY_HEADER = "x-stainless-retry-count"
"""OpenAI's SDKs number the repeats of a request in this header; the first request has 0."""

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def not_found(kind: str, identifier: str) -> ApiError:
    """Return the 404 for an object that does not exist or is another tenant's: a client cannot tell which."""
    return ApiError(404, f"{kind}_not_found", f"No such {kind}: {identifier[:80]!r}.", param=f"{kind}_id")


def validated(model: type[Model], document: object, *, strict: bool = True) -> Model:
    """Return the document as this model. Raises ApiError (400), which names the field and repeats no input."""
    try:
        return model.model_validate_json(to_json(document), strict=strict)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        schema = model.model_json_schema()
        named = {name for each in (schema, *schema.get("$defs", {}).values()) for name in each.get("properties", ())}
        place = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part in named) or None
        if first["type"] == "extra_forbidden":
            name, known = str(first["loc"][-1])[:64], ", ".join(model.model_fields)
            raise ApiError(400, "unknown_parameter", f"A member is unknown; known here: {known}.", name) from None
        code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
        reason = first["msg"].removeprefix("Value error, ")
        raise ApiError(400, code, f"{place or 'The body'}: {reason}.", place) from None


class StoreAway(OperatorError):  # noqa: N818 - it names what happened
    """The database cannot be reached, or did not take the change; the request may be repeated."""


class OutcomeUnknown(StoreAway):
    """The database may have committed the change, and cannot be asked now; repeat with the same Idempotency-Key."""
