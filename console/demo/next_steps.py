"""The end of the demo: three commands that set up a lasting fleet and ask it a question."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path


def commands(postback: Path, *, own_kafka: bool) -> list[str]:
    """Return the commands, quoted for a shell. With `own_kafka` the first command also starts a Kafka."""
    name = _typed(postback)
    start = f"{name} broker start && " if own_kafka else ""
    return [
        f"{start}{name} topics create",
        f"{name} worker --engine echo &",
        f"""echo '{{"prompt": "What is a webhook?"}}' | {name} submit - --wait""",
    ]


def next_steps(postback: Path, *, own_kafka: bool) -> list[str]:
    """Return the lines to print."""
    name = _typed(postback)
    end = f"`kill %1; {name} broker stop` ends it" if own_kafka else "`kill %1` ends the worker"
    return [
        f"Next: keep a fleet running on this machine, and ask it something. {end}.",
        *(f"    {command}" for command in commands(postback, own_kafka=own_kafka)),
        f"`{name} --help` shows every command, and README.md how to use a model and take callbacks.",
    ]


def _typed(postback: Path) -> str:
    """Return `postback` if a shell finds this file by that name, else the file's whole path."""
    found = shutil.which("postback")
    if found is not None and Path(found).resolve() == postback.resolve():
        return "postback"
    return shlex.quote(str(postback))
