"""Ends a command that cannot do its work, with one line that names the fix, and with an exit status.

Status 0 is success. Status 1 means that the work could not be done, 2 that options or settings are wrong and nothing
was done.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import typer

from cli.shared.terminal import harmless
from schemas.operator_error import OperatorError

FAILED = 1
BAD_INPUT = 2
_NAMED = 10
_OF_LOGS = "\n\t"
"""Control characters that `say` does not escape, because some texts end with the last lines of a log."""

_logs: list[Callable[[str, str | None], None]] = []
"""The writer of a role's log lines, from `say_in_log`; empty in every other command."""


def fail(message: str, code: int = FAILED) -> typer.Exit:
    """Print the problem, and return the exception to raise."""
    say(message, action="command-failed")
    return typer.Exit(code)


def say_in_log(write: Callable[[str, str | None], None] | None) -> None:
    """Make `say` pass messages and their log actions to `write`.

    A role whose output is a pipe writes nothing but log lines. If `write` is None, `say` prints messages again.
    """
    _logs[:] = [] if write is None else [write]


def say(message: str, *, action: str | None = None) -> None:
    """Print a line on standard error; standard output is for data. Control characters are escaped.

    If a role writes to a pipe, the message becomes a log line with `action` instead.
    """
    if _logs:
        _logs[0](message, action)
        return
    print(f"postback: {harmless(message, kept=_OF_LOGS)}", file=sys.stderr)  # noqa: T201 - all commands print here


def named(names: Sequence[str]) -> str:
    """Return the first ten names, and the number of the others, as text."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


@contextmanager
def telling(*errors: type[Exception], code: int = FAILED) -> Iterator[None]:
    """End the command if the block raises one of these errors, and print the error's text, which is for people."""
    try:
        yield
    except errors as error:
        raise fail(str(error), code) from None


@contextmanager
def ending() -> Iterator[None]:
    """End the command if the block raises an OperatorError, and print the error's text."""
    try:
        yield
    except OperatorError as error:
        raise fail(str(error), error.exit_status) from None


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """End the command if the block cannot use the file that `what` names."""
    try:
        yield
    except OSError as error:
        raise fail(f"{what}: {error.strerror}", BAD_INPUT) from None
    except UnicodeDecodeError:
        raise fail(f"{what}: it is not text", BAD_INPUT) from None


def quiet_clients() -> None:
    """Silence the logs of the Kafka clients: they log every refused connection, which a command reports only once."""
    for name in ("kafka", "confluent_kafka", "librdkafka"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
