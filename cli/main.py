"""The `postback` command: a table of its commands, whose modules are imported when they are called."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from cli.fleet.roles import ROLES, begin_logs
from cli.shared.errors import say
from cli.shared.listing import Listed, Listing
from cli.shared.variables import complaints
from workers.system.secrecy import harden_process

# A process that multiprocessing spawned has this argument, and imports this module first.
if "--multiprocessing-fork" in sys.orig_argv:
    from workers.engines.vllm import process_log

    process_log.begin()

_SECTIONS = {
    "Run a fleet": {
        "dev": "Run Kafka, a worker, delivery, the gateway with its console, and a receiver of callbacks, until "
        "Ctrl-C.",
        "worker": "Answer jobs from model_requests until SIGTERM; then drain and exit with status 0.",
        "deliver": "Sign results and POST them to their callbacks until SIGTERM; then drain and exit with status 0.",
        "gateway": "Serve the HTTP API until SIGTERM; then answer the running requests and exit with status 0.",
        "exporter": "Serve the fleet's figures at /metrics and /backlog until SIGTERM, also while no worker runs.",
        "topics": "Create and configure the fleet's topics.",
        "models": "Check the model registry, and show its models.",
        "keys": "Make, show and rotate the keys that callbacks are signed with.",
        "api-keys": "Create, list and revoke the API keys of tenants.",
        "store": "Upgrade the gateway's database, and rebuild its rows from Kafka.",
        "tenants": "Set the allowed models and callbacks, rates and quotas of tenants.",
    },
    "Send work": {
        "submit": "Submit jobs from a file: each line is a job, or a line of an OpenAI Batch.",
        "cancel": "Cancel jobs: waiting jobs are not begun, running jobs are aborted, and each ends as `cancelled`.",
        "batches": "Upload files of requests to a gateway, and download their answers.",
        "files": "Upload files to a gateway, and list, download and delete them.",
    },
    "Take results": {
        "results": "Collect the results that Kafka keeps for seven days, one line for each job.",
        "status": "Show the state of jobs, one a line: `queued`, `cancelling`, or the outcome of a job that has ended.",
        "deliveries": "Show the timeline of a job's callback: each attempt and its answer, each wait and its reason, "
        "and the end.",
        "replay": "Send results to their callbacks again.",
        "verify-answer": "Judge whether the sources of an answer support its sentences.",
    },
    "Operate a fleet": {
        "doctor": "Examine Kafka, the fleet, the settings and this machine.",
        "top": "Watch lanes, workers, jobs per second, disabled endpoints, and outcomes and failures of the last "
        "minute.",
        "tail": "Follow results, callback attempts and dead letters as they are written, until Ctrl-C.",
        "backlog": "Show the backlog: jobs in the lanes, and results and callbacks for delivery.",
        "bench-fleet": "Measure a running fleet: jobs a second, and the time from a job's submission to its callback.",
        "trace": "Show one job from its submission to its callbacks: submitter, hash of the prompt, model, sources, "
        "attempts.",
        "dead-letters": "Look at jobs and callbacks that were given up, and put them back.",
        "endpoints": "List disabled and failing endpoints; enable or disable one.",
        "rollout": "Try a candidate model, and promote or abort it.",
        "certs": "Make a private authority; issue, renew, revoke and list its certificates.",
        "cache": "Invalidate pages that workers have cached.",
    },
    "Develop": {
        "broker": "Run an Apache Kafka on this machine, for development.",
        "receive": "Take callbacks, verify them, and show them.",
        "trigger": "Send one signed test event to a URL, and show the answer's status, time and first 1,024 bytes.",
    },
}
"""The commands of each section of the help, with the first sentence of their help."""

COMMANDS = {name: Listed(section, summary) for section, listed in _SECTIONS.items() for name, summary in listed.items()}


class _Commands(Listing):
    listed = COMMANDS


app = typer.Typer(
    name="postback",
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode=None,  # rich takes longer to import than everything else that the help needs
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 1_000},  # every command inherits them
    # Typer's tracebacks would show local variables, such as prompts and keys. Python's plain tracebacks do not.
    pretty_exceptions_enable=False,
    help="Asynchronous LLM inference over Kafka: a prompt goes in, a signed, sourced answer comes out, exactly once.",
)


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
    harden_process()
    # Before the first model, pydantic would read the metadata of all installed packages, in search of plugins.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    app()
