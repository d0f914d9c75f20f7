"""`postback receive`: a webhook consumer that verifies, for development."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from console.errors import BAD_INPUT, fail, needing, say, telling
from console.settings import checked_tenant, fleet_settings, keyring_path

if TYPE_CHECKING:
    from devkit.receiver import Behaviour, Keys, Received, Receiver


def receive(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 is any free one.")] = 8080,
    out: Annotated[Path | None, typer.Option(help="Append to this file instead of standard output.")] = None,
    tenant: Annotated[str, typer.Option(help="Whose secret the callbacks are signed with.")] = "default",
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    status: Annotated[int, typer.Option(min=200, max=599, help="What verified callbacks are answered with.")] = 200,
    delay: Annotated[float, typer.Option(min=0, help="Seconds before a verified callback is answered.")] = 0.0,
    fail_first: Annotated[int, typer.Option(min=0, help="Answer 503 to the first N attempts of each event.")] = 0,
) -> None:
    """Take callbacks, verify them with the keys at POSTBACK_KEYRING, and write one JSON object a line.

    Its fields are webhook_id, verified, problem, headers, event, received_at and status. What is not verified is
    answered with 401. Ctrl-C or SIGTERM ends it.
    """
    with needing("worker"):
        import asyncio

        from devkit.receiver import Behaviour

    keys = _keys(checked_tenant(tenant))
    with _opened(out) as file:
        asyncio.run(_serve(keys, file, host, port, Behaviour(status, delay, fail_first)))


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
        return Keys(keyring.secrets(tenant, now), keyring.public_keys(now))

    return current


def _opened(out: Path | None) -> AbstractContextManager[TextIO]:
    if out is None:
        return nullcontext(sys.stdout)
    try:
        return out.open("a", encoding="utf-8")
    except OSError as error:
        raise fail(f"--out {out}: {error.strerror}", BAD_INPUT) from None


async def _serve(keys: Callable[[], Keys], file: TextIO, host: str, port: int, behaviour: Behaviour) -> None:
    from devkit.receiver import Receiver

    lines = _Lines(file)
    receiver = await _started(Receiver(keys, lines.write, host=host, port=port, behaviour=behaviour))
    say(f"receiving at {receiver.url}")
    try:
        await lines.until_ended()
    finally:
        await receiver.stop()


async def _started(receiver: Receiver) -> Receiver:
    try:
        return await receiver.start()
    except OSError as error:
        raise fail(f"cannot listen there ({error.strerror or error}): choose another --port or --host") from None


class _Lines:
    """Writes what was received, each line at once, until a signal or until nobody reads any more."""

    def __init__(self, file: TextIO) -> None:
        import asyncio
        import signal

        self._file = file
        self._ended = asyncio.Event()
        self._problem: OSError | None = None
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._ended.set)

    def write(self, received: Received) -> None:
        try:
            self._file.write(received.line() + "\n")
            self._file.flush()
        except OSError as error:
            # The sender must not take it for delivered: the exception becomes a 500, and this command ends.
            self._problem = error
            self._ended.set()
            raise

    async def until_ended(self) -> None:
        """Raises typer.Exit with 1 where a line could not be written."""
        await self._ended.wait()
        if self._problem is not None:
            raise fail(f"a line could not be written: {self._problem.strerror}")
