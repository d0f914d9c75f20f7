"""`postback receive`: a webhook consumer that verifies, for development."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from console.errors import BAD_INPUT, fail, needing, say, telling
from console.settings import checked_tenant, fleet_settings, keyring_path

if TYPE_CHECKING:
    from devkit.receiver import Behaviour, Keys, Received, Receiver


def receive(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 is any free one.")] = 8080,
    out: Annotated[Path | None, typer.Option(help="Append the lines to this file.")] = None,
    tenant: Annotated[str, typer.Option(help="Whose callbacks are taken; other tenants' are refused.")] = "default",
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    status: Annotated[int, typer.Option(min=200, max=599, help="What verified callbacks are answered with.")] = 200,
    delay: Annotated[float, typer.Option(min=0, help="Seconds before a verified callback is answered.")] = 0.0,
    fail_first: Annotated[int, typer.Option(min=0, help="Answer 503 to the first N attempts of each event.")] = 0,
) -> None:
    """Take callbacks, verify them with the keys at POSTBACK_KEYRING, and show them.

    A terminal shows them for people. Elsewhere, and in the file of --out, each is one JSON object a line, with the
    fields webhook_id, verified, problem, headers, event, received_at and status. What is not verified is answered with
    401. Ctrl-C or SIGTERM ends it.
    """
    with needing("worker"):
        import asyncio

        from devkit.receiver import Behaviour

    keys = _keys(checked_tenant(tenant))
    with _writers(out) as writers:
        asyncio.run(_serve(keys, writers, host, port, Behaviour(status, delay, fail_first)))


def _keys(tenant: str) -> Callable[[], Keys]:
    """The tenant's keys as they are now: a rotation is noticed while this runs."""
    from devkit.receiver import Keys
    from telemetry.clock import SystemClock
    from workers.delivery.keyring import Keyring, KeyringError

    clock = SystemClock()
    path = keyring_path(fleet_settings())
    with telling(KeyringError):
        keyring = Keyring.load(path)

    def current() -> Keys:
        try:
            keyring.refresh()
        except KeyringError as error:
            say(f"{error}; the keys that were read before stay in use")
        now = clock.time()
        return Keys(keyring.secrets(tenant, now), keyring.public_keys(tenant, now), tenant)

    return current


Writer = Callable[["Received"], None]


@contextmanager
def _writers(out: Path | None) -> Iterator[list[Writer]]:
    """Where callbacks go: for people to the terminal, if there is one, and as lines to the file, or to a pipe."""
    terminal = [_terminal()] if sys.stdout.isatty() else []
    if out is None:
        yield terminal or [_lines(sys.stdout)]
        return
    try:
        file = out.open("a", encoding="utf-8")
    except OSError as error:
        raise fail(f"--out {out}: {error.strerror}", BAD_INPUT) from None
    with file:
        yield [_lines(file), *terminal]


def _lines(file: TextIO) -> Writer:
    """Each line at once: whoever reads sees it before the sender has its answer."""

    def write(received: Received) -> None:
        file.write(received.line() + "\n")
        file.flush()

    return write


def _terminal() -> Writer:
    from rich.console import Console

    from console.received import View

    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(
            errors="backslashreplace"
        )  # a terminal whose encoding lacks a letter is no reason to end
    return View(Console()).show


async def _serve(keys: Callable[[], Keys], writers: list[Writer], host: str, port: int, behaviour: Behaviour) -> None:
    from devkit.receiver import Receiver

    writing = _Writing(writers)
    receiver = await _started(Receiver(keys, writing.write, host=host, port=port, behaviour=behaviour))
    say(f"receiving at {receiver.url}")
    try:
        await writing.until_ended()
    finally:
        await receiver.stop()


async def _started(receiver: Receiver) -> Receiver:
    try:
        return await receiver.start()
    except OSError as error:
        raise fail(f"cannot listen there ({error.strerror or error}): choose another --port or --host") from None


class _Writing:
    """Writes what was received until a signal, or until nobody reads any more."""

    def __init__(self, writers: list[Writer]) -> None:
        import asyncio
        import signal

        self._writers = writers
        self._ended = asyncio.Event()
        self._problem: OSError | None = None
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._ended.set)

    def write(self, received: Received) -> None:
        try:
            for write in self._writers:
                write(received)
        except OSError as error:
            # The sender must not take it for delivered: the exception becomes a 500, and this command ends.
            self._problem = error
            self._ended.set()
            raise

    async def until_ended(self) -> None:
        """Raises typer.Exit with 1 where something could not be written."""
        await self._ended.wait()
        if self._problem is not None:
            raise fail(f"a callback could not be written: {self._problem.strerror}")
