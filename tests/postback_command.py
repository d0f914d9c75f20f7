"""The `postback` command as its users run it: the real entry point in its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO
from unittest.mock import patch

from typer.testing import CliRunner

from cli.main import app
from schemas.settings import KafkaSettings
from tests.process_state import state_kept

POSTBACK = Path(sys.executable).with_name("postback")


def environment_of(fleet: KafkaSettings | None = None, /, **more: str | Path) -> dict[str, str]:
    """This process's environment, with this fleet's settings and without all other `POSTBACK_` variables."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("POSTBACK_")}
    kept |= {name: str(value) for name, value in more.items()}
    if fleet is None:
        return kept
    return kept | {
        "POSTBACK_KAFKA__BOOTSTRAP_SERVERS": fleet.bootstrap_servers,
        "POSTBACK_KAFKA__TOPIC_PREFIX": fleet.topic_prefix,
        "POSTBACK_KAFKA__PARTITIONS": str(fleet.partitions),
        "POSTBACK_KAFKA__TIER_DELAYS_SECONDS": json.dumps(fleet.tier_delays_seconds),
    }


def postback(
    *arguments: str | Path, env: Mapping[str, str], given: bytes = b"", seconds: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, for at most `seconds`."""
    done = subprocess.run(
        [POSTBACK, *arguments], env=env, input=given, capture_output=True, timeout=seconds, check=False
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def postback_here(
    *arguments: str | Path, env: Mapping[str, str], given: bytes | str = b""
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end in this process: a process start takes one to three seconds of processor time.

    The command has exactly these `POSTBACK_` variables, which set constants too, and these others besides this
    process's own.
    """
    without = {name: None for name in os.environ if name.startswith("POSTBACK_")}
    with state_kept(), patch("schemas.settings.constants_of", return_value=frozenset()):
        done = CliRunner().invoke(app, list(map(str, arguments)), env={**without, **env}, input=given)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


def started(*arguments: str | Path, env: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start the command in the background; the test has to end it."""
    return subprocess.Popen(
        [POSTBACK, *arguments], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )


def line_of(stream: IO[str] | None) -> str:
    """The next line, without its line end."""
    assert stream is not None
    return stream.readline().rstrip("\n")
