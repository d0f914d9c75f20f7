"""Warns of callback URLs that workers would refuse if they had the egress rules of the command's own environment."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from console.errors import say
from console.grouped import say_by_line
from console.settings import checked_settings

if TYPE_CHECKING:
    from schemas.job import Job
    from schemas.settings import FleetSettings

_LISTS = ("POSTBACK_EGRESS__ALLOW_CALLBACKS", "POSTBACK_EGRESS__ALLOW_CALLBACK_NAMES")
_UNREADABLE = "not a URL that can be read"
_FIXES = {
    _UNREADABLE: "correct its host, port or brackets",
    "https is required": "use https",
    "this port is not allowed": "use a port of POSTBACK_EGRESS__PORTS",
    "this spelling of an address is not allowed": "write four decimal numbers, or an IPv6 address in brackets",
    "the address is not public": f"use a public address, or list its network in {_LISTS[0]}",
    "the operator denies it": "take it out of POSTBACK_EGRESS__DENY",
}
"""Maps each reason for which the egress guard refuses a URL to the fix."""


def warn_of_refused(jobs: Iterable[tuple[int, Job]], fleet: FleetSettings) -> None:
    """Print the lines whose jobs would be rejected, for their callback URLs, by workers with this environment.

    `jobs` are pairs of line number and job. The command goes on, since the workers may have other settings.
    """
    lines: defaultdict[str, list[int]] = defaultdict(list)
    for number, job in jobs:
        if job.callback_url is not None:
            lines[job.callback_url].append(number)
    if not lines:
        return
    refusal = _judged_by(fleet)
    refused: defaultdict[str, list[int]] = defaultdict(list)
    for url, numbers in lines.items():
        if (reason := refusal(url)) is not None:
            refused[reason] += numbers
    say_by_line({f"callback_url: {reason}": sorted(numbers) for reason, numbers in refused.items()})
    if refused:
        count = sum(map(len, refused.values()))
        say(
            f"workers with the settings of this shell would reject {count} jobs; if the workers' settings differ, "
            f"give {', '.join(_LISTS)}, POSTBACK_EGRESS__PORTS and POSTBACK_ENV the same values here"
        )


def _judged_by(fleet: FleetSettings) -> Callable[[str], str | None]:
    """Return a function that says why workers would refuse a URL: origin, reason and fix; None for an allowed URL.

    In a base install, which lacks the workers' rules, the function refuses only unreadable URLs, and http URLs if this
    environment cannot allow http.
    """
    development = fleet.env == "development"
    try:
        from workers.egress import EgressRefused, EgressSettings, check_url
    except ModuleNotFoundError:
        return _unreadable if development or any(map(os.environ.get, _LISTS)) else _plain_http
    policy = checked_settings(EgressSettings).callback_policy(development=development)

    def refusal(url: str) -> str | None:
        try:
            check_url(url, policy)
        except EgressRefused as refused:
            return _told(refused.origin, str(refused.reason))
        return None

    return refusal


def _told(origin: str, reason: str) -> str:
    from telemetry.logs import NO_ORIGIN

    said = reason if origin == NO_ORIGIN else f"{origin}: {reason}"
    return f"{said}; {_FIXES[reason]}" if reason in _FIXES else said


def _unreadable(url: str) -> str | None:
    from telemetry.logs import NO_ORIGIN, origin_of

    return _told(NO_ORIGIN, _UNREADABLE) if origin_of(url) == NO_ORIGIN else None


def _plain_http(url: str) -> str | None:
    from telemetry.logs import origin_of

    if url.lower().startswith("https:"):
        return _unreadable(url)
    return _unreadable(url) or _told(origin_of(url), "https is required")
