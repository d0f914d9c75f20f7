"""`postback dev`: the whole system on this machine by one command, for development."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cli.shared.errors import BAD_INPUT, fail, say

if TYPE_CHECKING:
    from cli.fleet.dev_start import Wanted


def dev(
    engine: Annotated[
        Literal["echo", "openai", "vllm"] | None,
        typer.Option(help="The engine: by default openai with --base-url, else echo, which repeats the prompt."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The model's name or folder; by default the first that the server lists.")
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option("--base-url", help="A server that speaks OpenAI's protocol, such as http://127.0.0.1:11434/v1."),
    ] = None,
    kafka: Annotated[
        str | None, typer.Option("--kafka", metavar="HOST:PORT", help="A Kafka to use; by default one is started.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", help="A folder that keeps records, keys and ports; by default all end with the command."
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            help="The API's port. 0 takes a free port. By default 8400 or, if it is taken, a free port.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON when everything serves, for programs.")
    ] = False,
) -> None:
    """Run Kafka, a worker, delivery, the gateway with its console, and a receiver of callbacks, until Ctrl-C.

    The screen then shows the addresses, an API key, and a first job for curl, OpenAI's SDK and a Kafka client. Each
    callback that the receiver verifies is shown as a line. `POSTBACK_` variables work as with the single commands.

    With --data, a second start has the same addresses, keys, jobs and results.

    Exit status: 0 stopped by Ctrl-C or SIGTERM, 1 something could not start or ended, 2 bad options.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _interrupt)
    if engine in ("echo", "vllm") and base_url is not None:
        raise fail(f"--base-url goes with --engine openai, not with {engine}; leave one of the two out", BAD_INPUT)
    if engine == "vllm" and model is None:
        raise fail("--engine vllm needs a model: name it, or its folder, with --model", BAD_INPUT)
    chosen = engine or ("openai" if base_url is not None else "echo")
    if chosen == "openai" and not (base_url or os.environ.get("POSTBACK_ENGINE__OPENAI__BASE_URL")):
        raise fail("--engine openai needs the server's address: give --base-url", BAD_INPUT)
    if chosen == "echo" and model is not None:
        raise fail("--model needs an engine: give --base-url, or --engine vllm", BAD_INPUT)
    from cli.fleet.dev_start import Wanted

    # A signal before everything serves, or while it ends, raises KeyboardInterrupt.
    with suppress(KeyboardInterrupt):
        _serve(Wanted(chosen, model, base_url, kafka, data, port, as_json))
    kept = "run with --data DIR to keep jobs, keys and addresses" if data is None else f"everything is kept in {data}"
    say(f"stopped; {kept}")


def _serve(wanted: Wanted) -> None:
    """Start everything and serve until a signal. Ends the command if something cannot start."""
    from cli.fleet import dev_start
    from telemetry import logs

    with ThreadPoolExecutor(1) as beside:
        # A line for each step of the roles would push the addresses off the screen.
        logs.configure("dev", level=os.environ.get("POSTBACK_LOG_LEVEL", "WARNING"))
        say("starting everything, which takes up to a minute")
        roles = beside.submit(import_module, "cli.fleet.dev_system")  # beside the start of Kafka, which takes as long
        with dev_start.data_folder(wanted.data) as folder, dev_start.reserved_ports(folder, wanted) as ports:
            served = dev_start.served_model(wanted)
            with dev_start.kafka(wanted, folder, ports) as address:
                roles.result().serve(wanted, folder, ports, address, served)


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.raise_signal(signal.SIGINT)
