"""`postback receive`: a webhook consumer for development, which verifies callbacks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from cli.shared.errors import fail, refusing, say
from cli.shared.given_secrets import SECRET_HELP, checked_secrets
from cli.shared.output import refuse_one_file
from cli.shared.settings import checked_tenant, fleet_settings, keyring_path

if TYPE_CHECKING:
    from cli.devkit.receiver import Behaviour, Received, Receiver
    from cli.shared.verifying import HeldKeys


def receive(
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on; 0 takes a free port.")] = 8080,
    out: Annotated[Path | None, typer.Option(help="Append each callback as a line of JSON to this file.")] = None,
    secrets: Annotated[list[str] | None, typer.Option("--secret", help=f"{SECRET_HELP} May be repeated.")] = None,
    jwks: Annotated[
        str | None, typer.Option(metavar="FILE|URL", help="A JWK set with the public keys that verify callbacks.")
    ] = None,
    tenant: Annotated[
        str | None,
        typer.Option(
            help="Accept only the callbacks of this tenant. "
            "By default, accept any tenant if --secret or --jwks is given, else only the tenant `default`."
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    status: Annotated[int, typer.Option(min=200, max=599, help="Answer verified callbacks with this status.")] = 200,
    delay: Annotated[float, typer.Option(min=0, help="Seconds before a verified callback is answered.")] = 0.0,
    fail_first: Annotated[int, typer.Option(min=0, help="Answer 503 to the first N attempts of each event.")] = 0,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show headers and the event's JSON on a terminal.")
    ] = False,
) -> None:
    """Take callbacks, verify them, and show them.

    Keys come from --secret, from --jwks, or else from the keyring at POSTBACK_KEYRING. A terminal shows one line per
    callback. A pipe, and the file of --out, get one JSON object per line, with the fields webhook_id, verified,
    problem, headers, event, received_at and status. Callbacks that do not verify are answered with 401. Ctrl-C or
    SIGTERM ends the command with a summary.
    """
    import asyncio

    from cli.devkit.receiver import Behaviour
    from cli.shared.verifying import GivenKeys, KeyringKeys

    given, checked = checked_secrets(secrets or []), checked_tenant(tenant) if tenant is not None else None
    if given or jwks is not None:
        held: HeldKeys = GivenKeys(given, jwks, checked)
    else:
        held = KeyringKeys(keyring_path(fleet_settings()), checked or "default")
    refuse_one_file({"--out": out}, {"--jwks": jwks})
    with _writers(out, verbose=verbose) as writers:
        asyncio.run(_serve(held, writers, host, port, Behaviour(status, delay, fail_first)))


Writer = Callable[["Received"], None]


@contextmanager
def _writers(out: Path | None, *, verbose: bool) -> Iterator[list[Writer]]:
    """Yield functions that write a callback: a line to the terminal, if there is one, and JSON to the file or pipe."""
    terminal = [_terminal(verbose=verbose)] if sys.stdout.isatty() else []
    if out is None:
        yield terminal or [_lines(sys.stdout)]
        return
    with refusing(f"--out {out}"):
        file = out.open("a", encoding="utf-8")
    with file:
        yield [_lines(file), *terminal]


def _lines(file: TextIO) -> Writer:
    """Return a writer of JSON lines.

    The writer flushes each line, so that readers have the line before the sender has its answer.
    """

    def write(received: Received) -> None:
        file.write(received.line() + "\n")
        file.flush()

    return write


def _terminal(*, verbose: bool) -> Writer:
    from rich.console import Console

    from cli.develop.received import View

    if isinstance(sys.stdout, TextIOWrapper):
        # Characters that the terminal's encoding lacks are escaped, so that they do not end the command with an error.
        sys.stdout.reconfigure(errors="backslashreplace")
    return View(Console(), verbose=verbose).show


async def _serve(keys: HeldKeys, writers: list[Writer], host: str, port: int, behaviour: Behaviour) -> None:
    import asyncio

    from cli.develop.received import Summary
    from cli.devkit.receiver import Receiver

    await keys.load()
    summary = Summary()
    writing = _Writing([*writers, summary.add])
    receiver = await _started(Receiver(keys.current, writing.write, host=host, port=port, behaviour=behaviour))
    say(f"receiving at {receiver.url}")
    following = asyncio.create_task(keys.follow())
    try:
        await writing.until_ended()
    finally:
        following.cancel()
        await receiver.stop()
        say(str(summary))


async def _started(receiver: Receiver) -> Receiver:
    try:
        return await receiver.start()
    except OSError as error:
        raise fail(f"cannot listen there ({error.strerror or error}): choose another --port or --host") from None


class _Writing:
    """Writes callbacks until a signal comes, or until a writer fails."""

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
            # The receiver answers the exception with 500, so that the sender tries again later. Then this command ends.
            self._problem = error
            self._ended.set()
            raise

    async def until_ended(self) -> None:
        """Wait for the end. Raise typer.Exit with status 1 if a callback could not be written."""
        await self._ended.wait()
        if self._problem is not None:
            raise fail(f"a callback could not be written: {self._problem.strerror}")
