"""How a callback looks on a terminal: what it is, whether it is genuine, which attempt, and the event itself.

Whatever comes in is a stranger's. Control characters, which a terminal would obey, are shown as JSON escapes.
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

from console.terminal import harmless
from schemas.signature import SIGNATURE_HEADER, TIMESTAMP_HEADER

if TYPE_CHECKING:
    from devkit.receiver import Received

MAX_SHOWN_CHARACTERS = 8_000
"""Of one event: the rest is a matter for `--out`."""


class View:
    """Shows callbacks one after another, and counts the attempts of each event."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._attempts: Counter[str] = Counter()

    def show(self, received: Received) -> None:
        """Raises OSError where the terminal is gone."""
        self._console.print(self._head(received))
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


def _kind(event: Any) -> str:
    kind = event.get("type") if isinstance(event, dict) else None
    return _harmless(kind) if isinstance(kind, str) else "no event"


def _facts(received: Received) -> Table:
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in _named(received).items():
        facts.add_row(f"  {name}", Text(_harmless(value)))
    return facts


def _named(received: Received) -> dict[str, str]:
    """What people look at first. The signature's digits tell nobody anything: its kinds do."""
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
    return f"{seconds} s before it came" if seconds >= 0 else f"{-seconds} s in the future: whose clock is wrong?"


def _event(received: Received) -> Text:
    """The event as JSON; the body as it came where it is none, or nested deeper than JSON can be indented."""
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
