"""`postback top`: the fleet in the terminal, redrawn every few seconds."""

from __future__ import annotations

import urllib.request
from contextlib import suppress
from http.client import HTTPException
from typing import Annotated

import typer

from cli.shared.settings import checked_settings, fleet_settings
from workers.stage.progress import done_offsets

_ANSWER_SECONDS = 3.0
_LARGEST_PAGE = 8 * 1024 * 1024


def top(
    once: Annotated[bool, typer.Option("--once", help="Print one frame and exit, for pipes.")] = False,
    interval: Annotated[float, typer.Option(min=0.5, max=60, help="Seconds between two frames.")] = 2.0,
    metrics: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="The /metrics URL of a role whose tokens to show; may be repeated."),
    ] = None,
) -> None:
    """Watch lanes, workers, jobs per second, disabled endpoints, and outcomes and failures of the last minute.

    The command reads Kafka and joins no group. Ctrl-C ends it.
    """
    from rich.console import Console
    from rich.live import Live

    from cli.operate.top_view import view
    from cli.operations.exporter.replicas import ExporterSettings
    from cli.operations.top import watching
    from telemetry.clock import SystemClock

    kafka, clock, tokens = fleet_settings().kafka, SystemClock(), TokenRates()
    urls = metrics or []
    settings = checked_settings(ExporterSettings)
    with suppress(KeyboardInterrupt), watching(kafka, settings, done_offsets, clock) as watch:
        if once:
            Console().print(view(watch.frame(), tokens.lines(urls, clock.monotonic())))
            return
        with Live(screen=True, auto_refresh=False) as live:
            while True:
                live.update(view(watch.frame(), tokens.lines(urls, clock.monotonic())), refresh=True)
                clock.sleep(interval)


class TokenRates:
    """Computes the tokens per second of roles from two readings of the roles' metrics."""

    def __init__(self) -> None:
        self._before: dict[str, tuple[float, float]] = {}

    def lines(self, urls: list[str], now: float) -> dict[str, str]:
        """Return a line for each URL: tokens in all and, from the second reading on, per second."""
        from telemetry.logs import origin_of

        return {origin_of(url): self._line(url, now) for url in urls}

    def _line(self, url: str, now: float) -> str:
        total = _tokens_at(url)
        if total is None:
            return "does not answer with metrics"
        before = self._before.get(url)
        self._before[url] = (now, total)
        if before is None or now <= before[0] or total < before[1]:
            return f"{total:.0f} tokens"
        return f"{total:.0f} tokens, {(total - before[1]) / (now - before[0]):.0f} tokens/s"


def _tokens_at(url: str) -> float | None:
    """Return the number of tokens in a role's metrics, without wasted tokens; None if the role returns no metrics."""
    from prometheus_client.parser import text_string_to_metric_families

    if not url.startswith(("http://", "https://")):
        return None
    try:
        with urllib.request.urlopen(url, timeout=_ANSWER_SECONDS) as answer:  # noqa: S310 - http and https only
            page = answer.read(_LARGEST_PAGE).decode()
        return sum(
            sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
            if sample.name == "postback_tokens_total" and sample.labels.get("kind") != "wasted"
        )
    except (OSError, ValueError, HTTPException):
        return None
