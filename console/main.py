"""The `postback` command. Each command imports its packages when it runs, so that `--help` is quick everywhere."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from console import (
    api_keys,
    backlog,
    batches,
    bench_fleet,
    broker,
    cache,
    cancel,
    certs,
    dead_letters,
    deliver,
    deliveries,
    endpoints,
    exporter,
    files,
    gateway,
    keys,
    model_registry,
    receive,
    replay,
    results,
    rollout,
    status,
    store,
    submit,
    tail,
    tenants,
    top,
    topics,
    trace,
    trigger,
    verify_answer,
    worker,
)
from console.demo import command as demo
from console.doctor import command as doctor
from console.errors import say
from console.help import complete_help
from console.roles import ROLES, begin_logs
from console.variables import complaints
from workers.system.secrecy import keep_secrets

# A process that multiprocessing spawned has this argument, and imports this module first.
if "--multiprocessing-fork" in sys.orig_argv:
    from workers.engines.vllm import process_log

    process_log.begin()

RUN, SEND, TAKE = "Run a fleet", "Send work", "Take results"
OPERATE, DEVELOP = "Operate a fleet", "Develop"
"""Groups of commands in the help, which lists the groups in the order in which their first commands are registered."""

app = typer.Typer(
    name="postback",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},  # every command inherits this
    # Typer's tracebacks would show local variables, such as prompts and keys. Python's plain tracebacks do not.
    pretty_exceptions_enable=False,
    help="Asynchronous LLM inference over Kafka: a prompt goes in, a signed, sourced answer comes out, exactly once.",
)
app.command(rich_help_panel=RUN)(worker.worker)
app.command(rich_help_panel=RUN)(deliver.deliver)
app.command(rich_help_panel=RUN)(gateway.gateway)
app.command(rich_help_panel=RUN)(exporter.exporter)
app.add_typer(topics.app, name="topics", rich_help_panel=RUN)
app.add_typer(model_registry.app, name="models", rich_help_panel=RUN)
app.add_typer(keys.app, name="keys", rich_help_panel=RUN)
app.add_typer(api_keys.app, name="api-keys", rich_help_panel=RUN)
app.add_typer(store.app, name="store", rich_help_panel=RUN)
app.add_typer(tenants.app, name="tenants", rich_help_panel=RUN)
app.command(rich_help_panel=SEND)(submit.submit)
app.command(rich_help_panel=SEND)(cancel.cancel)
app.add_typer(batches.app, name="batches", rich_help_panel=SEND)
app.add_typer(files.app, name="files", rich_help_panel=SEND)
app.command(rich_help_panel=TAKE)(results.results)
app.command(rich_help_panel=TAKE)(status.status)
app.command(rich_help_panel=TAKE)(deliveries.deliveries)
app.command(rich_help_panel=TAKE)(replay.replay)
app.command(rich_help_panel=TAKE)(verify_answer.verify_answer)
app.command(rich_help_panel=OPERATE)(doctor.doctor)
app.command(rich_help_panel=OPERATE)(top.top)
app.command(rich_help_panel=OPERATE)(tail.tail)
app.command(rich_help_panel=OPERATE)(backlog.backlog)
app.command("bench-fleet", rich_help_panel=OPERATE)(bench_fleet.bench_fleet)
app.command(rich_help_panel=OPERATE)(trace.trace)
app.add_typer(dead_letters.app, name="dead-letters", rich_help_panel=OPERATE)
app.add_typer(endpoints.app, name="endpoints", rich_help_panel=OPERATE)
app.add_typer(rollout.app, name="rollout", rich_help_panel=OPERATE)
app.add_typer(certs.app, name="certs", rich_help_panel=OPERATE)
app.add_typer(cache.app, name="cache", rich_help_panel=OPERATE)
app.command(rich_help_panel=DEVELOP)(demo.demo)
app.add_typer(broker.app, name="broker", rich_help_panel=DEVELOP)
app.command(rich_help_panel=DEVELOP)(receive.receive)
app.command(rich_help_panel=DEVELOP)(trigger.trigger)
complete_help(app)


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"postback {version('postback')}")
        raise typer.Exit


@app.callback()
def begin(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Warn, before every command, of environment variables that look like settings but are read by no process."""
    if context.invoked_subcommand in ROLES:
        begin_logs(context.invoked_subcommand)
    for complaint in complaints(os.environ):
        say(complaint, action="setting-unread")


def run() -> None:
    """Run the command line. First protect the process's memory, which may hold keys, Kafka's password and prompts."""
    keep_secrets()
    app()
