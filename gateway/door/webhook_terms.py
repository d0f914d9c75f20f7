"""The body of a request to create or change a webhook endpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gateway.errors import ApiError
from gateway.webhooks.endpoints import EVENT_TYPES, EndpointTerms
from workers.delivery.endpoint_events import MOST_A_SECOND, MOST_HEADERS, is_reserved
from workers.egress import EgressPolicy, EgressRefused, check_url

_MEMBERS = ("name", "url", "event_types", "headers", "enabled", "rate_limit")
_LONGEST_NAME, _LONGEST_URL = 256, 2048
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")
_HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,1022}[\x21-\x7e])?")


def new_terms(body: Any, policy: EgressPolicy) -> EndpointTerms:
    """Return the terms of a new endpoint. Raises ApiError (400)."""
    said = _members(body)
    for name in ("name", "url", "event_types"):
        if name not in said:
            raise _refused(name, "is required")
    return _checked(said, policy)


def changed_terms(body: Any, before: EndpointTerms, policy: EgressPolicy) -> EndpointTerms:
    """Return an endpoint's terms, after replacing the members that the body sets. Raises ApiError (400)."""
    said = _members(body)
    kept = {
        "name": before.name,
        "url": before.url,
        "event_types": list(before.events),
        "headers": dict(before.headers),
        "enabled": before.enabled,
        "rate_limit": before.rate_limit,
    }
    return _checked(kept | said, policy)


def event_type_of(body: Any) -> str:
    """Return the type of event that a test asks for. Raises ApiError (400)."""
    wanted = body.get("event_type") if isinstance(body, dict) else None
    if wanted not in EVENT_TYPES:
        raise _refused("event_type", f"is none of {', '.join(EVENT_TYPES)}")
    return str(wanted)


def keeps_old_secret(body: Any) -> bool:
    """True if the old secret signs for one more day after a rotation. Raises ApiError (400)."""
    name = "keep_old_secret_active_for_24_hours"
    if not isinstance(body, dict) or not isinstance(keeps := body.get(name, False), bool):
        raise _refused(name, "is neither true nor false")
    return keeps


def _members(body: Any) -> dict[str, Any]:
    """Return the members that are set; null removes a rate limit, and sets no other member. Raises ApiError (400)."""
    if not isinstance(body, dict):
        raise ApiError(400, "invalid_webhook_endpoint", "The body is not a JSON object.")
    unknown = next((name for name in body if name not in _MEMBERS), None)
    if unknown is not None:
        raise _refused(unknown[:64], f"is unknown; known here: {', '.join(_MEMBERS)}")
    return {name: value for name, value in body.items() if value is not None or name == "rate_limit"}


def _checked(said: Mapping[str, Any], policy: EgressPolicy) -> EndpointTerms:
    name, enabled = said["name"], said.get("enabled", True)
    if not isinstance(name, str) or not 1 <= len(name) <= _LONGEST_NAME:
        raise _refused("name", f"is not a text of 1 to {_LONGEST_NAME} characters")
    if not isinstance(enabled, bool):
        raise _refused("enabled", "is neither true nor false")
    events, headers = _events(said["event_types"]), _headers(said.get("headers", {}))
    return EndpointTerms(name, _url(said["url"], policy), events, headers, enabled, _rate_limit(said.get("rate_limit")))


def _rate_limit(limit: Any) -> int | None:
    if limit is None:
        return None
    if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= MOST_A_SECOND:
        raise _refused("rate_limit", f"is neither null nor a whole number of callbacks a second, 1 to {MOST_A_SECOND}")
    return limit


def _url(url: Any, policy: EgressPolicy) -> str:
    if not isinstance(url, str) or not 1 <= len(url) <= _LONGEST_URL:
        raise _refused("url", f"is not a text of 1 to {_LONGEST_URL} characters")
    try:
        # The normalised URL is ASCII, as the header of the record needs.
        return str(check_url(url, policy))
    except EgressRefused as refused:
        raise _refused("url", f"must not be called: {refused}") from None


def _events(events: Any) -> list[str]:
    if not isinstance(events, list) or not events:
        raise _refused("event_types", "is not a list of at least one type")
    unknown = next((each for each in events if each not in EVENT_TYPES), None)
    if unknown is not None:
        raise _refused("event_types", f"has a type that is none of {', '.join(EVENT_TYPES)}")
    return list(dict.fromkeys(events))


def _headers(headers: Any) -> dict[str, str]:
    if not isinstance(headers, dict) or len(headers) > MOST_HEADERS:
        raise _refused("headers", f"is not an object of at most {MOST_HEADERS} names and values")
    found: dict[str, str] = {}
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name) or not isinstance(value, str) or not _HEADER_VALUE.fullmatch(value):
            raise _refused("headers", "has a name or value that no HTTP header can have")
        if is_reserved(name) or name.lower() in found:
            raise _refused("headers", f"has a header twice, or a header that the sender sets: {name.lower()}")
        found[name.lower()] = value
    return found


def _refused(name: str, reason: str) -> ApiError:
    return ApiError(400, "invalid_webhook_endpoint", f"{name}: {reason}.", param=name)
