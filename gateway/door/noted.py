"""Facts that a route notes for the audit line of its request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from starlette.requests import Request

AUDIT: Final = "audit"
"""The key of the facts in the ASGI scope's state: a dict with members of `AuditEvent`."""
MOST_OBJECTS = 1_000
"""The maximum number of ids that one audit line has."""


def note_objects(request: Request, objects: Sequence[str], hashes: Sequence[str | None] = ()) -> None:
    """Add ids that the path does not have, such as those of created objects, to the request's audit line."""
    known = [each for each in hashes[:MOST_OBJECTS] if each is not None]
    _note(request, objects=list(objects[:MOST_OBJECTS]), hashes=known)


def note_action(request: Request, action: str) -> None:
    """Name the request's action: the name of an endpoint of the API, also for a page that does the same."""
    _note(request, action=action)


def note_reason(request: Request, code: str) -> None:
    """Name the error by which the request was refused."""
    _note(request, reason=code)


def note_refused_key(request: Request, identifier: str | None) -> None:
    """Name the API key of a request whose credential was refused, if it has the form of a key."""
    if identifier is not None:
        _note(request, user=f"key:{identifier}")


def note_screening(request: Request, verdict: str, rules: Iterable[str]) -> None:
    """Add the filter's strictest verdict, and the name of each matching rule once, to the request's audit line."""
    _note(request, verdict=verdict, rules=list(dict.fromkeys(rules)))


def _note(request: Request, **facts: object) -> None:
    request.scope["state"].setdefault(AUDIT, {}).update(facts)
