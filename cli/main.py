"""The `postback` command: a table of its commands, whose modules are imported when they are called."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.fleet.roles import ROLES, begin_logs
from cli.shared.errors import BAD_INPUT, ending, fail, quiet_clients, say
from cli.shared.listing import Listed, Listing
from cli.shared.variables import complaints
from workers.system.secrecy import harden_process

if TYPE_CHECKING:
    from typer._click import Context

# A process that multiprocessing spawned has this argument, and imports this module first.
if "--multiprocessing-fork" in sys.orig_argv:
    from workers.engines.vllm import process_log

    process_log.begin()

_SECTIONS = {
    "Run a fleet": ("fleet", "dev worker deliver gateway exporter topics models keys api-keys store tenants"),
    "Send work": ("send", "submit cancel batches files"),
    "Take results": ("take", "results status replay verify-answer"),
    "Operate a fleet": ("operate", "doctor top tail trace dead-letters endpoints rollout certs cache"),
    "Develop": ("develop", "broker receive"),
}
"""The sections of the help: the folder in `cli/` that has a module for each command, and the commands.

At most 30 names, so that the help is read in one look; a verb about one noun belongs into the noun's group."""

COMMANDS = {name: Listed(section, folder) for section, (folder, names) in _SECTIONS.items() for name in names.split()}

_NEED_GATEWAY = frozenset({"dev", "gateway", "store", "api-keys", "tenants", "trace"})
"""The commands that need the extra `gateway`, where a base install does not do; the others need `worker`."""
_OURS = frozenset({"cli", "gateway", "postback_client", "producers", "schemas", "telemetry", "workers"})


class _Commands(Listing):
    listed = COMMANDS

    def invoke(self, ctx: Context) -> Any:
        """Run the command. An error that its user can mend, or a missing package, ends the command with one line."""
        with ending():
            try:
                return super().invoke(ctx)
            except ModuleNotFoundError as error:
                if (name := error.name) is None or name.partition(".")[0] in _OURS:
                    raise
                extra = "gateway" if ctx.invoked_subcommand in _NEED_GATEWAY else "worker"
                raise fail(f"this command needs {name}: pip install 'postback[{extra}]'", BAD_INPUT) from None


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
    else:
        quiet_clients()
    for complaint in complaints(os.environ):
        say(complaint, action="setting-unread")


def run() -> None:
    """Run the command line. First protect the process's memory, which may hold keys, Kafka's password and prompts."""
    harden_process()
    # Before the first model, pydantic would read the metadata of all installed packages, in search of plugins.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    try:
        app()
    except OSError as error:
        from cli.shared.output import is_full

        if sys.argv[1:2] in [[role] for role in ROLES] or error.filename is not None or not is_full(error):
            raise
        fix = "free space where standard output goes, and run the command again"
        raise SystemExit(fail(f"standard output: {error.strerror}; {fix}").exit_code) from None
