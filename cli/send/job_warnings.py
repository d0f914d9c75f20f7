"""Warns of jobs that workers would reject: for their callback URLs, models or adapters.

Callback URLs are judged by the egress rules of the command's own environment, models and adapters by the workers'
announcements. The command goes on, since the workers may have other settings, or a worker with the model may start.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from cli.shared.errors import say
from cli.shared.failures import say_by_line
from cli.shared.settings import checked_settings

if TYPE_CHECKING:
    from producers.workers import Announced
    from schemas.job import Job
    from schemas.settings import FleetSettings, KafkaSettings

_ALLOWED = "POSTBACK_EGRESS__ALLOW_CALLBACKS"
_UNREADABLE = "not a URL that can be read"
FIXES = {
    _UNREADABLE: "correct its host, port or brackets",
    "https is required": "use https",
    "this port is not allowed": "use a port of POSTBACK_EGRESS__PORTS",
    "this spelling of an address is not allowed": "write four decimal numbers, or an IPv6 address in brackets",
    "the address is not public": f"use a public address, or list its network in {_ALLOWED}",
    "the operator denies it": "take it out of POSTBACK_EGRESS__DENY",
}
"""Maps each reason for which the egress guard refuses a URL to the fix."""
_ADDED = {
    "model": "send with --model any or one of these, or have the operator add an alias to POSTBACK_WORKER__MODELS or "
    "the registry",
    "adapter": "name one of these or leave it out, or have the operator add the adapter to the model registry",
}
"""The fix for a model and for an adapter that no worker announces."""
Lines = defaultdict[str, list[int]]
"""Maps each name of a model or adapter to the numbers of the lines that use it."""


def warn_of_refused(jobs: Iterable[tuple[int, Job]], fleet: FleetSettings) -> None:
    """Print the lines whose jobs would be rejected, for their callback URLs, by workers with this environment.

    `jobs` are pairs of line number and job.
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
            f"give {_ALLOWED}, POSTBACK_EGRESS__PORTS and POSTBACK_ENV the same values here"
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
        return _unreadable if development or os.environ.get(_ALLOWED) else _plain_http
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
    return f"{said}; {FIXES[reason]}" if reason in FIXES else said


def _unreadable(url: str) -> str | None:
    from telemetry.logs import NO_ORIGIN, origin_of

    return _told(NO_ORIGIN, _UNREADABLE) if origin_of(url) == NO_ORIGIN else None


def _plain_http(url: str) -> str | None:
    from telemetry.logs import origin_of

    if url.lower().startswith("https:"):
        return _unreadable(url)
    return _unreadable(url) or _told(origin_of(url), "https is required")


# -- models and adapters ---------------------------------------------------------------------------------------------


def warn_of_unserved(jobs: Iterable[tuple[int, Job]], kafka: KafkaSettings, *, checking: bool) -> None:
    """Print the lines whose model or adapter no worker announces. `jobs` are pairs of line number and job.

    With `checking`, print the reason if models could not be checked. Kafka is asked only if a job names a model or an
    adapter.
    """
    models: Lines = defaultdict(list)
    adapters: Lines = defaultdict(list)
    for number, job in jobs:
        if job.model_id is not None:
            models[job.model_id].append(number)
        if job.adapter is not None:
            adapters[job.adapter].append(number)
    if not models and not adapters:
        return
    announced = _announced(kafka)
    if isinstance(announced, str):
        if checking:
            say(f"models were not checked: {announced}")
        return
    _warn("model", models, announced.models)
    _warn("adapter", adapters, announced.adapters)


def _announced(kafka: KafkaSettings) -> Announced | str:
    """Return the names that workers announce, or the reason why the names cannot be read."""
    from producers.errors import ProducerError
    from producers.workers import announced_models

    try:
        announced = announced_models(kafka)
    except ProducerError as error:
        return str(error)
    if announced is None:
        return "no worker of the shared lanes has announced itself within three minutes"
    return announced if not announced.more else "a worker has more models or adapters than it announces"


def _warn(field: str, lines: Lines, announced: Sequence[str]) -> None:
    from workers.engines.models.mistakes import listed, quoted

    advice = f"those that run now announce {listed(announced)}: {_ADDED[field]}"
    say_by_line(
        {
            f"{field}: no worker announces {quoted(name)}; {advice}": numbers
            for name, numbers in lines.items()
            if name not in announced
        }
    )
