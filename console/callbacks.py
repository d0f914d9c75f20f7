"""Callbacks that workers would refuse, as far as the environment of a command knows what they may call."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from console.answers import SHOWN, say_more
from console.errors import say
from console.settings import checked_settings

if TYPE_CHECKING:
    from schemas.job import Job
    from schemas.settings import FleetSettings

_LISTS = ("POSTBACK_EGRESS__ALLOW_CALLBACKS", "POSTBACK_EGRESS__ALLOW_CALLBACK_NAMES")


def warn_of_refused(jobs: Sequence[Job], fleet: FleetSettings) -> None:
    """Say which callbacks a worker of this environment would refuse: such a job ends as `rejected`, and calls nobody.

    It is no more than a warning, since the workers may have other settings than whoever submits.
    """
    urls = Counter(job.callback_url for job in jobs if job.callback_url is not None)
    if not urls:
        return
    refusal = _judged_by(fleet)
    refused: Counter[str] = Counter()
    for url, count in urls.items():
        if (reason := refusal(url)) is not None:
            refused[reason] += count
    for reason, count in refused.most_common(SHOWN):
        say(f"{count} jobs will be rejected, and nobody called back, where workers have these settings: {reason}")
    say_more(len(refused))
    if refused:
        say(f"where theirs differ, let {', '.join(_LISTS)}, POSTBACK_EGRESS__PORTS and POSTBACK_ENV say so here too")


def _judged_by(fleet: FleetSettings) -> Callable[[str], str | None]:
    """Why a URL would be refused, its origin first.

    A base install lacks what a worker judges with, and knows only the rule that is broken most: no plain http.
    """
    development = fleet.env == "development"
    try:
        from workers.egress import EgressRefused, EgressSettings, check_url
    except ModuleNotFoundError:
        return _allow_all if development or any(map(os.environ.get, _LISTS)) else _plain_http
    policy = checked_settings(EgressSettings).callback_policy(development=development)

    def refusal(url: str) -> str | None:
        try:
            check_url(url, policy)
        except EgressRefused as refused:
            return str(refused)
        return None

    return refusal


def _allow_all(url: str) -> str | None:
    return None


def _plain_http(url: str) -> str | None:
    from telemetry.logs import origin_of

    return None if url.lower().startswith("https:") else f"{origin_of(url)}: https is required"
