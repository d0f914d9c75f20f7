"""The `postback` command. Each command imports what it needs when it runs, so that `--help` is quick everywhere."""

from __future__ import annotations

import os

import typer

from console import (
    backlog,
    broker,
    cache,
    cancel,
    dead_letters,
    deliver,
    deliveries,
    endpoints,
    keys,
    receive,
    replay,
    results,
    submit,
    topics,
    worker,
)
from console.demo import command as demo
from console.errors import say
from console.variables import complaints
from workers.system.secrecy import keep_secrets

app = typer.Typer(
    name="postback",
    no_args_is_help=True,
    # A defect's traceback is for its author; typer's own would show local variables, prompts and keys among them.
    pretty_exceptions_enable=False,
    help="Asynchronous LLM inference over Kafka: a prompt goes in, a signed, sourced answer comes out, exactly once.",
)
app.add_typer(broker.app, name="broker")
app.add_typer(topics.app, name="topics")
app.add_typer(keys.app, name="keys")
app.add_typer(cache.app, name="cache")
app.add_typer(dead_letters.app, name="dead-letters")
app.add_typer(endpoints.app, name="endpoints")
app.command()(submit.submit)
app.command()(results.results)
app.command()(cancel.cancel)
app.command()(replay.replay)
app.command()(deliveries.deliveries)
app.command()(backlog.backlog)
app.command()(receive.receive)
app.command()(worker.worker)
app.command()(deliver.deliver)
app.command()(demo.demo)


@app.callback()
def begin() -> None:
    """Before every command: tell of settings that nobody reads, since they were meant to change something."""
    for complaint in complaints(os.environ):
        say(complaint)


def run() -> None:
    """The entry point. Every command may hold secrets: keys, passwords of Kafka, prompts."""
    keep_secrets()
    app()
