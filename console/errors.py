"""How a command ends when something is not as it should be: one clear line with the fix, and the right exit status.

0 is success, 1 that what was asked could not be done, 2 that it was asked wrongly (and nothing was done).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import typer

from console.terminal import harmless

FAILED = 1
BAD_INPUT = 2
_NAMED = 10
_OF_LOGS = "\n\t"
"""Stands in a text that ends with the last lines of a log."""


def fail(message: str, code: int = FAILED) -> typer.Exit:
    """Say what is wrong, and give the exception to raise."""
    say(message)
    return typer.Exit(code)


def say(message: str) -> None:
    """A line for the person at the terminal; standard output is for data. What it quotes of strangers is harmless."""
    print(f"postback: {harmless(message, kept=_OF_LOGS)}", file=sys.stderr)  # noqa: T201 - this is the command's voice


def named(names: Sequence[str]) -> str:
    """The first of many, for a line."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


@contextmanager
def telling(*errors: type[Exception], code: int = FAILED) -> Iterator[None]:
    """End the command with the text of one of these errors, which its package wrote for people to read."""
    try:
        yield
    except errors as error:
        raise fail(str(error), code) from None


@contextmanager
def needing(extra: str) -> Iterator[None]:
    """Around imports of what the base install does not have."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise fail(f"this command needs {error.name}: pip install 'postback[{extra}]'", BAD_INPUT) from None


def quiet_clients() -> None:
    """Kafka clients log every refused connection; a command says it once, in its own words."""
    for name in ("kafka", "confluent_kafka"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
