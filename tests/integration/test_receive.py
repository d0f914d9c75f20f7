"""The receiver over real HTTP, and the commands `postback receive` and `postback keys`."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from devkit.receiver import Behaviour, Keys, Received, Receiver
from schemas.signature import Signer, generate_secret, generate_signing_key, public_key_of
from telemetry.clock import SystemClock
from tests.postback_command import POSTBACK, environment_of, line_of, postback, started

SECRET = generate_secret()
SIGNING_KEY = generate_signing_key()
KEYS = Keys([SECRET], [public_key_of(SIGNING_KEY)])
BODY = b'{"id":"msg_1","type":"inference.succeeded","tenant":"acme","data":{"text":"\\u00fc"}}'


def signed(webhook_id: str = "msg_1", body: bytes = BODY, secret: str = SECRET) -> dict[str, str]:
    return Signer([secret]).headers(webhook_id, int(SystemClock().time()), body)


async def post(url: str, headers: dict[str, str], body: bytes = BODY) -> int:
    async with aiohttp.ClientSession() as session, session.post(url, data=body, headers=headers) as response:
        return response.status


@pytest.fixture
def received() -> list[Received]:
    return []


async def test_a_callback_with_either_signature_is_verified(received: list[Received]) -> None:
    async with Receiver(lambda: KEYS, received.append) as receiver:
        assert await post(receiver.url + "any/path", signed()) == 200
        asymmetric = Signer([], [SIGNING_KEY]).headers("msg_2", int(SystemClock().time()), BODY)
        assert await post(receiver.url, asymmetric) == 200
    assert [(one.webhook_id, one.verified, one.status) for one in received] == [
        ("msg_1", True, 200),
        ("msg_2", True, 200),
    ]
    line = json.loads(received[0].line())
    assert set(line) == {"webhook_id", "verified", "problem", "headers", "event", "received_at", "status"}
    assert line["event"] == json.loads(BODY)
    assert line["headers"]["webhook-signature"].startswith("v1,")


@pytest.mark.parametrize("case", ["none", "another key", "another body", "not json"])
async def test_an_unverified_callback_is_refused_and_still_written(received: list[Received], case: str) -> None:
    headers = {
        "none": {},
        "another key": signed(secret=generate_secret()),
        "another body": signed(body=b"{}"),
        "not json": {},
    }[case]
    body = b"\xff[NaN" if case == "not json" else BODY
    async with Receiver(lambda: KEYS, received.append) as receiver:
        assert await post(receiver.url, headers, body) == 401
    [one] = received
    assert (one.verified, one.status) == (False, 401)
    assert one.problem
    assert json.loads(one.line())["event"] == (None if case == "not json" else json.loads(BODY))


async def test_the_first_attempts_of_each_event_can_be_failed(received: list[Received]) -> None:
    async with Receiver(lambda: KEYS, received.append, behaviour=Behaviour(fail_first=2)) as receiver:
        first = [await post(receiver.url, signed("msg_1")) for _ in range(3)]
        second = [await post(receiver.url, signed("msg_2")) for _ in range(3)]
    assert first == second == [503, 503, 200]
    assert len(received) == 6


async def test_another_status_is_answered_after_the_delay(received: list[Received]) -> None:
    behaviour = Behaviour(status=410, delay_seconds=0.05)
    async with Receiver(lambda: KEYS, received.append, behaviour=behaviour) as receiver:
        assert await post(receiver.url, signed()) == 410
    assert received[0].status == 410


async def test_a_failing_receiver_can_send_a_retry_after_and_a_succeeding_one_does_not(
    received: list[Received],
) -> None:
    behaviour = Behaviour(status=204, fail_first=1, fail_status=429, retry_after_seconds=7)
    answers = []
    receiver = Receiver(lambda: KEYS, received.append, behaviour=behaviour)
    async with receiver, aiohttp.ClientSession() as session:
        for headers in (signed(), signed(), {}):
            async with session.post(receiver.url, data=BODY, headers=headers) as response:
                answers.append((response.status, response.headers.get("Retry-After")))
    assert answers == [(429, "7"), (204, None), (401, None)]


async def test_only_posts_of_a_bounded_size_are_read(received: list[Received]) -> None:
    async with Receiver(lambda: KEYS, received.append) as receiver, aiohttp.ClientSession() as session:
        async with session.get(receiver.url) as response:
            assert response.status == 405
        async with session.post(receiver.url, data=io.BytesIO(b"x" * (5 * 1024 * 1024))) as response:
            assert response.status == 413
    assert received == []


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return environment_of(POSTBACK_KEYRING=tmp_path / "keyring.json")


def keys_of(env: dict[str, str], tenant: str) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(
        postback("keys", "show", "--tenant", tenant, "--reveal", "--json", env=env).stdout
    )
    return shown


@pytest.fixture
def receiving(env: dict[str, str], tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    assert postback("keys", "init", env=env).returncode == 0
    arguments = ("receive", "--port", "0", "--tenant", "acme", "--out", tmp_path / "out.jsonl")
    with started(*arguments, env=env) as process:
        try:
            yield process, line_of(process.stderr).removeprefix("postback: receiving at ")
        finally:
            process.kill()


async def test_the_command_writes_each_callback_at_once_and_ends_in_order(
    receiving: tuple[subprocess.Popen[str], str], env: dict[str, str], tmp_path: Path
) -> None:
    process, url = receiving
    secret = keys_of(env, "acme")["secrets"][0]
    assert await post(url, signed("msg_1", secret=secret)) == 200
    [line] = (tmp_path / "out.jsonl").read_text().splitlines()
    assert (json.loads(line)["webhook_id"], json.loads(line)["verified"]) == ("msg_1", True)
    assert await post(url, signed("msg_2", secret=keys_of(env, "default")["secrets"][0])) == 401
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0


async def test_on_a_terminal_callbacks_are_shown_for_people_and_the_file_still_has_the_lines(
    env: dict[str, str], tmp_path: Path
) -> None:
    assert postback("keys", "init", env=env).returncode == 0
    secret = keys_of(env, "acme")["secrets"][0]
    screen, terminal = os.openpty()
    command: list[str | Path] = [
        POSTBACK,
        "receive",
        "--port",
        "0",
        "--out",
        tmp_path / "out.jsonl",
        "--fail-first",
        "1",
        "--tenant",
        "acme",
        "-v",
    ]
    with subprocess.Popen(command, env=env, stdout=terminal, stderr=subprocess.PIPE, text=True) as process:
        try:
            url = line_of(process.stderr).removeprefix("postback: receiving at ")
            assert [await post(url, signed(secret=secret)) for _ in range(2)] == [503, 200]
        finally:
            process.terminate()
    os.close(terminal)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", os.read(screen, 65536).decode())
    os.close(screen)
    assert "inference.succeeded  verified  answered 503" in shown
    assert "answered 200  attempt 2 of this event" in shown
    assert '"text": "ü"' in shown
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line)["status"] for line in lines] == [503, 200]


async def test_a_callback_is_written_before_the_delay_so_that_an_impatient_sender_is_seen_too(
    received: list[Received],
) -> None:
    async with Receiver(lambda: KEYS, received.append, behaviour=Behaviour(delay_seconds=5)) as receiver:
        impatient = asyncio.create_task(post(receiver.url, signed()))
        async with asyncio.timeout(30):
            while not received:
                await asyncio.sleep(0.01)
        assert [one.webhook_id for one in received] == ["msg_1"]
        await asyncio.sleep(0.5)  # an answer without a delay comes far sooner
        assert not impatient.done()
        impatient.cancel()
        await asyncio.gather(impatient, return_exceptions=True)


async def test_the_command_knows_a_rotated_key_at_once(
    receiving: tuple[subprocess.Popen[str], str], env: dict[str, str]
) -> None:
    _, url = receiving
    old = keys_of(env, "acme")["secrets"]
    assert postback("keys", "rotate", "--tenant", "acme", env=env).returncode == 0
    both = keys_of(env, "acme")["secrets"]
    assert (len(both), both[1:]) == (2, old)
    assert [await post(url, signed(secret=secret)) for secret in both] == [200, 200]


def test_keys_are_shown_only_when_that_is_asked(env: dict[str, str], tmp_path: Path) -> None:
    assert postback("keys", "init", env=env).returncode == 0
    assert stat.S_IMODE((tmp_path / "keyring.json").stat().st_mode) == 0o600
    revealed = keys_of(env, "acme")
    assert set(revealed) == {"tenant", "secrets", "public_keys"}
    assert revealed["tenant"] == "acme"
    secret = revealed["secrets"][0]
    assert secret.startswith("whsec_")
    assert revealed["public_keys"][0].startswith("whpk_")
    for arguments in (["--json"], [], ["--jwks"]):
        shown = postback("keys", "show", "--tenant", "acme", *arguments, env=env)
        assert shown.returncode == 0
        assert secret.removeprefix("whsec_") not in shown.stdout
    hidden = json.loads(postback("keys", "show", "--tenant", "acme", "--json", env=env).stdout)
    # The command prints no placeholder, since a script would mistake it for the secret.
    assert hidden == {**revealed, "secrets": []}
    jwks = json.loads(postback("keys", "show", "--jwks", env=env).stdout)
    assert jwks["keys"][0]["crv"] == "Ed25519"


def test_a_keyring_that_is_there_is_left_as_it_is(env: dict[str, str], tmp_path: Path) -> None:
    postback("keys", "init", env=env)
    before = (tmp_path / "keyring.json").read_bytes()
    again = postback("keys", "init", env=env)
    assert again.returncode == 0
    assert "is left as it is" in again.stderr
    assert (tmp_path / "keyring.json").read_bytes() == before


@pytest.mark.parametrize("command", [["keys", "show"], ["keys", "rotate"], ["receive", "--port", "0"]])
def test_a_missing_keyring_is_one_line_with_the_fix(command: list[str], env: dict[str, str]) -> None:
    missing, unset = postback(*command, env=env), postback(*command, env=environment_of())
    assert (missing.returncode, missing.stderr.count("\n")) == (1, 1)
    assert "postback keys init" in missing.stderr
    assert (unset.returncode, unset.stderr.count("\n")) == (2, 1)
    assert "set POSTBACK_KEYRING" in unset.stderr


async def test_a_busy_port_is_one_line_with_the_fix(env: dict[str, str], received: list[Received]) -> None:
    postback("keys", "init", env=env)
    async with Receiver(lambda: KEYS, received.append) as receiver:
        done = postback("receive", "--port", str(receiver.port), env=env)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "choose another --port" in done.stderr
