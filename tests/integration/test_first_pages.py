"""Runs the code and the commands of README.md and docs/start.md as the pages have them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pytest

from cli.fleet.dev_start import Ports
from schemas.settings import KafkaSettings
from telemetry.clock import Deadline, SystemClock
from tests.integration.openai_server import echo_app, serving
from tests.postback_command import POSTBACK, environment_of, line_of, started
from workers.delivery.keyring import Keyring

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PRODUCER, CONSUMER = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
SHELL = re.findall(r"^```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
(BY_HAND,) = (block for block in SHELL if "keys init" in block)
(BATCH,) = (block for block in SHELL if "jobs.jsonl" in block)
MOST_WORDS = 900
"""Limit for the whole file, with code and tables: a newcomer should read it to the end."""
CLOCK = SystemClock()


def put(text: str, **changes: str) -> str:
    """Replace old values in the text with a test's own; assert that each old value occurs."""
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return text


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_listening(port: int) -> None:
    deadline = Deadline.after(CLOCK, 30)
    while not deadline.passed:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        CLOCK.sleep(0.05)
    pytest.fail("the consumer does not listen")


@contextmanager
def consuming(port: int, secret: str) -> Iterator[IO[str]]:
    code = put(CONSUMER, **{"8080": str(port)})
    env = environment_of(WEBHOOK_SECRET=secret)
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    with process:
        assert process.stdout is not None
        try:
            wait_until_listening(port)
            yield process.stdout
        finally:
            process.kill()


def produce(fleet: KafkaSettings, port: int) -> None:
    topic = f'"{fleet.topic_prefix}model_requests"'
    places = {"127.0.0.1:9092": fleet.bootstrap_servers, '"model_requests"': topic, "8401": str(port)}
    done = subprocess.run(
        [sys.executable, "-c", put(PRODUCER, **places)],
        env=environment_of(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.broker
@pytest.mark.usefixtures("clean_processes")
def test_the_plain_producers_job_comes_back_to_the_plain_consumer(fleet: KafkaSettings, tmp_path: Path) -> None:
    keyring = Keyring.create(tmp_path / "keyring.json", CLOCK)
    env = environment_of(
        fleet,
        POSTBACK_ENV="development",
        POSTBACK_KEYRING=tmp_path / "keyring.json",
        POSTBACK_EGRESS__ALLOW_CALLBACKS="127.0.0.0/8",
    )
    port = free_port()
    with (
        consuming(port, keyring.secrets("default", CLOCK.time())[0]) as printed,
        started("worker", "--engine", "echo", "--with-delivery", env=env) as worker,
    ):
        try:
            produce(fleet, port)
            kind, _, text = line_of(printed).split(" ", 2)
        finally:
            worker.kill()
    assert (kind, text) == ("inference.succeeded", "What is a webhook?")


@pytest.mark.broker
@pytest.mark.usefixtures("clean_processes")
def test_the_pieces_run_by_hand_as_written_and_take_a_whole_batch(fleet: KafkaSettings, tmp_path: Path) -> None:
    """Runs all commands except the broker's, which the tests provide."""
    places = {"scripts/bootstrap --light\n": "", "postback broker start ": ": ", "8080": str(free_port())}
    places |= {"$PWD": str(ROOT)}
    commands = put(f"{BY_HAND}{BATCH}", **places)
    with (tmp_path / "stderr").open("w") as stderr:
        process = subprocess.Popen(
            ["bash", "-e", "-c", f"{commands}\necho end; wait"],
            cwd=tmp_path,
            env=environment_of(fleet, HOME=tmp_path),
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )
    with process:
        assert process.stdout is not None
        try:
            received = objects_of(process.stdout)
        finally:
            end_group(process)
    assert received[0]["verified"] is True
    assert received[0]["event"]["data"]["text"] == "What is a webhook?"
    said = (tmp_path / "stderr").read_text()
    assert "1 of 1 jobs accepted, 1 succeeded" in said
    assert "2 of 2 jobs accepted" in said
    results = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert sorted(result["text"] for result in results) == ["Name a river.", "What is a webhook?"]
    lines = [json.loads(line) for line in (tmp_path / "output.jsonl").read_text().splitlines()]
    assert sorted(str(line["custom_id"]) for line in lines) == ["None", "row-2"]
    assert [line["response"]["status_code"] for line in lines] == [200, 200]


def end_group(leader: subprocess.Popen[str]) -> None:
    """Stop the whole process group, and wait: processes that settle need the topics, which end with the test."""
    os.killpg(leader.pid, signal.SIGTERM)
    leader.wait()
    deadline = Deadline.after(CLOCK, 30)
    with suppress(ProcessLookupError):
        while not deadline.passed:
            os.killpg(leader.pid, 0)
            CLOCK.sleep(0.05)


def objects_of(lines: IO[str]) -> list[dict[str, Any]]:
    """Read lines until `end`, which follows all commands, and until an object has come; return the JSON objects."""
    found, ended = [], False
    for line in lines:
        ended = ended or line == "end\n"
        if line.startswith("{"):
            found.append(json.loads(line))
        if ended and found:
            break
    return found


def test_every_link_inside_the_repository_leads_somewhere() -> None:
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_readme_is_short_enough_to_be_read_to_its_end() -> None:
    assert len(README.split()) <= MOST_WORDS


def test_the_two_commands_that_run_everything_stand_on_the_first_screen() -> None:
    first_block = "\n".join(README.splitlines()[:24]).split("```sh\n")[1].split("```")[0]
    assert [line.partition("#")[0].strip() for line in first_block.splitlines()] == [
        "scripts/bootstrap --light",
        ".venv/bin/postback dev --engine echo",
    ]


def test_a_newcomer_finds_each_way_to_start_in_order_and_the_job_suits_the_running_system() -> None:
    starts = ["postback dev --engine echo", "docker compose up", "```python", "postback broker start", "## Figures"]
    places = [README.index(start) for start in starts]
    assert places == sorted(places)
    assert f'"127.0.0.1:{Ports().kafka}"' in PRODUCER
    assert f'"http://127.0.0.1:{Ports().receiver}/"' in PRODUCER


def test_the_warning_about_trust_stands_in_bold() -> None:
    assert "**Anyone who may write to the topics is trusted.**" in README


# -- docs/start.md, with a model server of the tests ---------------------------------------------------------------
PAGE = (Path(__file__).parents[2] / "docs" / "start.md").read_text(encoding="utf-8")
ALL, OWN, JOB, COMPOSE = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.broker
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("clean_processes")
def test_the_first_and_the_last_command_are_those_of_the_readme() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    for command in [*ALL.splitlines(), *COMPOSE.splitlines()]:
        assert command in readme


@pytest.mark.broker
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("clean_processes")
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
