"""Runs the commands of docs/start.md as the page has them, with a model server of the tests."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.integration.openai_server import echo_app, serving
from tests.postback_command import POSTBACK, environment_of, started

pytestmark = [pytest.mark.broker, pytest.mark.timeout(900), pytest.mark.usefixtures("clean_processes")]
PAGE = (Path(__file__).parents[2] / "docs" / "start.md").read_text(encoding="utf-8")
ALL, OWN, JOB, COMPOSE = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_first_and_the_last_command_are_those_of_the_readme() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    for command in [*ALL.splitlines(), *COMPOSE.splitlines()]:
        assert command in readme


async def test_an_own_model_server_answers_and_the_callback_is_shown(tmp_path: Path) -> None:
    async with serving(echo_app()) as url:
        await asyncio.to_thread(answered, url, tmp_path)


def answered(url: str, folder: Path) -> None:
    """Start everything with the server at this URL, as the page says, and send the page's job."""
    program, *arguments = shlex.split(OWN.replace("http://127.0.0.1:11434/v1", url))
    assert program == ".venv/bin/postback"
    arguments[arguments.index("--data") + 1] = str(folder / "postback-data")
    with started(*arguments, "--json", env=environment_of(TMPDIR=folder)) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            at = json.loads(process.stdout.readline())
            command = JOB.replace("http://127.0.0.1:8400", at["gateway_url"])
            command = command.replace("http://127.0.0.1:8401/", at["receiver_url"])
            done = subprocess.run(
                ["bash", "-e", "-c", command],
                cwd=folder,
                env={"PATH": f"{POSTBACK.parent}:{os.environ['PATH']}"},
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert done.returncode == 0, done.stderr
            result = json.loads(done.stdout.replace("}{", "}\n{").splitlines()[-1])["result"]
            assert (result["outcome"], result["text"]) == ("succeeded", "Why is the sky blue?")
            shown = next(line for line in process.stderr if "sky-1" in line)
            assert "inference.succeeded  verified  answered 200" in shown
        finally:
            process.kill()
