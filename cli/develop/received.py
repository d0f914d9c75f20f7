"""Shows callbacks on a terminal: type, verification, answer and attempt, and on request the event itself.

Callbacks are untrusted text. A terminal would obey control characters, so they are shown as JSON escapes.
"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.highlighter import JSONHighlighter
from rich.table import Table
from rich.text import Text

from cli.shared.terminal import harmless
from schemas.signature import SIGNATURE_HEADER, TIMESTAMP_HEADER

if TYPE_CHECKING:
    from cli.devkit.receiver import Received

MAX_SHOWN_CHARACTERS = 8_000
"""The largest number of characters shown of one event; the file of `--out` has the whole event."""
MAX_SHOWN_IN_LINE = 200
"""The largest number of characters that a line shows of one untrusted text."""


class View:
    """Shows callbacks as they come, one line each, and counts the attempts of each event.

    `verbose` adds the headers and the event's JSON.
    """

    def __init__(self, console: Console, *, verbose: bool = False) -> None:
        self._console = console
        self._verbose = verbose
        self._attempts: Counter[str] = Counter()

    def show(self, received: Received) -> None:
        """Show one callback. Raises OSError if the terminal is gone."""
        head = self._head(received)
        if not self._verbose:
            self._console.print(_with_reference(head, received), soft_wrap=True)
            return
        self._console.print(head)
        self._console.print(_facts(received))
        self._console.print(_event(received))
        self._console.print()

    def _head(self, received: Received) -> Text:
        at = datetime.fromtimestamp(received.received_at).strftime("%H:%M:%S")
        head = Text.assemble((at, "dim"), "  ", (_kind(received.event), "bold"), "  ")
        head.append("verified", "green") if received.verified else head.append("not verified", "bold red")
        head.append(f"  answered {received.status}", "green" if 200 <= received.status < 300 else "yellow")
        if received.verified and received.webhook_id is not None:
            self._attempts[received.webhook_id] += 1
            if (attempt := self._attempts[received.webhook_id]) > 1:
                head.append(f"  attempt {attempt} of this event", "magenta")
        return head


class Summary:
    """Counts events by type, answers by status, and refused signatures, for the line at the end."""

    def __init__(self) -> None:
        self._types: dict[str, str] = {}
        """The type of each verified event, by webhook id."""
        self._statuses: Counter[int] = Counter()
        self._refused = 0

    def add(self, received: Received) -> None:
        """Count one callback. A repeated event is counted once."""
        self._statuses[received.status] += 1
        if not received.verified:
            self._refused += 1
        elif received.webhook_id is not None:
            self._types[received.webhook_id] = _kind(received.event)

    def __str__(self) -> str:
        types = ", ".join(f"{count} {name}" for name, count in sorted(Counter(self._types.values()).items()))
        statuses = ", ".join(f"{count} answered {status}" for status, count in sorted(self._statuses.items()))
        return (
            f"events: {len(self._types)}{f' ({types})' if types else ''}; "
            f"requests: {self._statuses.total()}{f' ({statuses})' if statuses else ''}; "
            f"refused signatures: {self._refused}"
        )


def _with_reference(head: Text, received: Received) -> Text:
    """Append the job's id to the line, or the reason for refusing the callback."""
    if received.problem is not None:
        return head.append(f"  {_short(received.problem)}")
    data = received.event.get("data") if isinstance(received.event, dict) else None
    job_id = data.get("job_id") if isinstance(data, dict) else None
    return head.append(f"  {_short(job_id)}") if isinstance(job_id, str) else head


def _short(text: str) -> str:
    """Cut and escape untrusted text for use in a line."""
    shown = harmless(text[:MAX_SHOWN_IN_LINE])
    return shown if len(text) <= MAX_SHOWN_IN_LINE else f"{shown}…"


def _kind(event: Any) -> str:
    kind = event.get("type") if isinstance(event, dict) else None
    return _short(kind) if isinstance(kind, str) else "no event"


def _facts(received: Received) -> Table:
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in _named(received).items():
        facts.add_row(f"  {name}", Text(_harmless(value)))
    return facts


def _named(received: Received) -> dict[str, str]:
    """Return the facts of a callback by name; a signature is shown only by its version, such as `v1`."""
    named = {} if received.problem is None else {"problem": received.problem}
    if received.webhook_id is not None:
        named["webhook-id"] = received.webhook_id
    if (timestamp := received.headers.get(TIMESTAMP_HEADER)) is not None:
        named["signed"] = _signed_at(timestamp, received.received_at)
    if (signatures := received.headers.get(SIGNATURE_HEADER)) is not None:
        named["signatures"] = " ".join(entry.partition(",")[0] for entry in signatures.split(" "))
    return named


def _signed_at(timestamp: str, received_at: float) -> str:
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= 15):
        return f"at {timestamp}, which is no Unix second"
    seconds = int(received_at) - int(timestamp)
    return f"{seconds} s before it came" if seconds >= 0 else f"{-seconds} s in the future; check both clocks"


def _event(received: Received) -> Text:
    """Return the event as JSON, or the raw body if it is not JSON or is nested too deep to be indented."""
    if received.event is not None:
        with suppress(RecursionError):
            return JSONHighlighter()(_cut(json.dumps(received.event, indent=2, ensure_ascii=False)))
    return _cut(received.body.decode("utf-8", "replace"))


def _cut(text: str) -> Text:
    if len(text) <= MAX_SHOWN_CHARACTERS:
        return Text(_harmless(text))
    return Text(f"{_harmless(text[:MAX_SHOWN_CHARACTERS])}\n… {len(text):,} characters in all; `--out FILE` keeps them")


def _harmless(text: str) -> str:
    return harmless(text, kept="\n")
