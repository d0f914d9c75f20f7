"""Notes that a route makes for the audit line of its request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from starlette.requests import Request

OBJECTS: Final = "audit_objects"
HASHES: Final = "audit_hashes"
ACTION: Final = "audit_action"
VERDICT: Final = "audit_verdict"
RULES: Final = "audit_rules"
REASON: Final = "audit_reason"
CREDENTIAL: Final = "audit_credential"
"""The notes have these keys in the ASGI scope's state."""
MOST_OBJECTS = 1_000
"""The maximum number of ids that one audit line has."""


def note_objects(request: Request, objects: Sequence[str], hashes: Sequence[str | None] = ()) -> None:
    """Add ids that the path does not have, such as those of created objects, to the request's audit line."""
    state = request.scope["state"]
    state[OBJECTS] = list(objects[:MOST_OBJECTS])
    state[HASHES] = [each for each in hashes[:MOST_OBJECTS] if each is not None]


def note_action(request: Request, action: str) -> None:
    """Name the request's action: the name of an endpoint of the API, also for a page that does the same."""
    request.scope["state"][ACTION] = action


def note_reason(request: Request, code: str) -> None:
    """Name the error by which the request was refused."""
    request.scope["state"][REASON] = code


def note_refused_key(request: Request, identifier: str | None) -> None:
    """Name the API key of a request whose credential was refused, if it has the form of a key."""
    if identifier is not None:
        request.scope["state"][CREDENTIAL] = f"key:{identifier}"


def note_screening(request: Request, verdict: str, rules: Iterable[str]) -> None:
    """Add the filter's strictest verdict, and the name of each matching rule once, to the request's audit line."""
    request.scope["state"][VERDICT] = verdict
    request.scope["state"][RULES] = list(dict.fromkeys(rules))
