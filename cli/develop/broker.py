"""`postback broker`: an Apache Kafka on this machine, for development."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from cli.shared.errors import fail, say
from cli.shared.settings import fleet_settings

app = typer.Typer(no_args_is_help=True, help="Run an Apache Kafka on this machine, for development.")

Data = Annotated[
    Path | None, typer.Option(help="The folder for Kafka's data; by default a folder in this user's home.")
]


@app.command()
def start(
    port: Annotated[int, typer.Option(min=0, max=65535, help="The first broker's port; 0 takes a free port.")] = 9092,
    data: Data = None,
    brokers: Annotated[
        int | None,
        typer.Option(
            min=1, max=3, help="The number of brokers, 1 or 3; by default as many as have data in the folder, else 1."
        ),
    ] = None,
) -> None:
    """Start brokers that keep running in the background, and return when they are ready."""
    from cli.devkit.broker import start_detached
    from cli.devkit.kafka.errors import PortInUse

    try:
        running = start_detached(data, port, brokers)
    except PortInUse as error:
        free = _command("start", data, "--port", "0")
        raise fail(f"port {error.port} on 127.0.0.1 is in use; stop its listener, or run: {free}") from None
    state = "was running already" if running.was_running else "is running"
    say(f"Kafka {state}; its data is in {running.data}")
    if running.bootstrap_servers != fleet_settings().kafka.bootstrap_servers:
        say(f"let this shell use it: export POSTBACK_KAFKA__BOOTSTRAP_SERVERS={shlex.quote(running.bootstrap_servers)}")
    say(f"stop it: {_command('stop', data)}")
    typer.echo(running.bootstrap_servers)


@app.command()
def stop(data: Data = None) -> None:
    """Stop the brokers and keep their data."""
    from cli.devkit.broker import default_data, stop_detached

    if stop_detached(data):
        say(f"Kafka has stopped; start it again with its data: {_command('start', data)}")
    else:
        say(f"no Kafka was running on the data in {(data or default_data()).resolve()}")


def _command(name: str, data: Path | None, *options: str) -> str:
    """Return a command of this group, quoted for a shell. The command works in any folder."""
    chosen = ("--data", str(data.resolve())) if data is not None else ()
    return shlex.join(["postback", "broker", name, *chosen, *options])
