"""`postback broker`: an Apache Kafka of one's own, for development."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from console.errors import quiet_clients, say, telling

app = typer.Typer(no_args_is_help=True, help="Run an Apache Kafka on this machine, for development.")

Data = Annotated[Path | None, typer.Option(help="Where its records are kept; a folder of this user's by default.")]


@app.command()
def start(
    port: Annotated[int, typer.Option(min=0, max=65535, help="The first broker's port; 0 is any free one.")] = 9092,
    data: Data = None,
    brokers: Annotated[int | None, typer.Option(min=1, max=3, help="1 or 3; by default what the data is for.")] = None,
) -> None:
    """Start brokers that stay, and return when they serve."""
    quiet_clients()
    from devkit.broker import start_detached
    from devkit.kafka.errors import BrokerError

    with telling(BrokerError):
        running = start_detached(data, port, brokers)
    state = "was running already" if running.was_running else "is running"
    say(f"Kafka {state}; its data is in {running.data}; `postback broker stop` ends it")
    typer.echo(running.bootstrap_servers)


@app.command()
def stop(data: Data = None) -> None:
    """Stop the brokers and keep their data."""
    from devkit.broker import stop_detached
    from devkit.kafka.errors import BrokerError

    with telling(BrokerError):
        stopped = stop_detached(data)
    say("Kafka has stopped" if stopped else "no Kafka of ours was running")
