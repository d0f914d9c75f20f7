"""`postback trigger`: a test event that a consumer accepts like a callback, sent under the guard's rules."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from pydantic import TypeAdapter

from cli.devkit.receiver import Behaviour, Keys, Received, Receiver
from schemas.event import Event
from schemas.outcome import Outcome
from schemas.signature import generate_secret
from telemetry.clock import SystemClock
from tests.postback_command import environment_of, postback_here
from workers.delivery.keyring import Keyring
from workers.delivery.post import USER_AGENT

SECRET = generate_secret()
KEYS = Keys([SECRET], [], "acme")
FRIENDLY = Behaviour()
LOOPBACK = {"POSTBACK_EGRESS__ALLOW_CALLBACKS": "127.0.0.0/8", "POSTBACK_ENV": "development"}


async def triggered(
    *options: str, keys: Keys = KEYS, behaviour: Behaviour = FRIENDLY, **env: str | Path
) -> tuple[subprocess.CompletedProcess[str], list[Received]]:
    received: list[Received] = []
    async with Receiver(lambda: keys, received.append, behaviour=behaviour) as receiver:
        arguments = ("trigger", "--url", f"{receiver.url}hook?token=t0ken", "--tenant", "acme", *options)
        done = await asyncio.to_thread(postback_here, *arguments, env=environment_of(**{**LOOPBACK, **env}))
    return done, received


@pytest.mark.parametrize("outcome", list(Outcome))
async def test_each_outcome_arrives_as_a_marked_event_of_the_schema(outcome: Outcome) -> None:
    done, [one] = await triggered("--outcome", outcome.value, "--secret", SECRET, "--json")
    said = json.loads(done.stdout)
    assert (done.returncode, done.stderr, said["status"], said["error"]) == (0, "", 200, None)
    assert (one.verified, one.problem) == (True, None)
    event = TypeAdapter(Event).validate_json(one.body)
    assert (event.type, event.tenant, event.id) == (f"inference.{outcome}", "acme", said["webhook_id"])
    assert event.data.metadata == {"postback-test": "true"}
    assert (event.data.text is None, event.data.error is None) == (
        outcome is not Outcome.SUCCEEDED,
        outcome is Outcome.SUCCEEDED,
    )
    assert {name for name in one.headers if name != "content-length"} == {
        *("host", "user-agent", "content-type", "webhook-id", "webhook-timestamp", "webhook-signature"),
    }
    assert one.headers["user-agent"] == USER_AGENT


async def test_the_keyring_signs_with_the_tenants_keys_of_both_kinds(tmp_path: Path) -> None:
    clock = SystemClock()
    keyring, now = Keyring.create(tmp_path / "keyring.json", clock), clock.time()
    done, [one] = await triggered(
        keys=Keys([], keyring.public_keys("acme", now), "acme"), POSTBACK_KEYRING=tmp_path / "keyring.json"
    )
    assert (done.returncode, one.verified) == (0, True)
    assert [entry.partition(",")[0] for entry in one.headers["webhook-signature"].split()] == ["v1", "v1a"]
    assert " delivered: status 200, " in done.stdout


async def test_another_answer_than_2xx_ends_with_status_1_and_shows_no_path() -> None:
    behaviour = Behaviour(status=429, retry_after_seconds=7)
    done, [one] = await triggered("--secret", SECRET, behaviour=behaviour)
    assert (done.returncode, one.status) == (1, 429)
    assert " failed: throttled, status 429, " in done.stdout
    assert done.stdout.endswith("ms, Retry-After 7 s\n")
    assert "t0ken" not in done.stdout + done.stderr


async def test_the_beginning_of_the_answer_is_shown_with_its_control_characters_escaped() -> None:
    async def answer(_: web.BaseRequest) -> web.Response:
        return web.Response(status=422, text="no such column \x1b[31m\n" + "x" * 2000)

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    arguments = ("trigger", "--url", url, "--secret", SECRET)
    done = await asyncio.to_thread(postback_here, *arguments, env=environment_of(**LOOPBACK))
    await runner.cleanup()
    assert done.returncode == 1
    assert " failed: client_error, status 422, " in done.stdout
    assert "; the answer begins: no such column \\u001b[31m\\nxxx" in done.stdout
    assert done.stdout.count("x") < 1024


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({"POSTBACK_EGRESS__ALLOW_CALLBACKS": ""}, "refused, no status (the address is not public)"),
        ({"POSTBACK_EGRESS__DENY": "127.0.0.1/32"}, "refused, no status (the operator denies it)"),
    ],
)
async def test_an_address_that_callbacks_may_not_reach_gets_no_event(env: dict[str, Any], told: str) -> None:
    done, received = await triggered("--secret", SECRET, **env)
    assert (done.returncode, received) == (1, [])
    assert told in done.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--url", "ftp://example.com/"], "--url: is not an http or https URL without credentials"),
        (["--url", "https://me:pw@example.com/"], "--url: is not an http or https URL without credentials"),
        (["--url", "https://example.com/", "--secret", "swordfish"], "--secret: a key of this kind starts with whsec_"),
        (["--url", "https://example.com/"], "set POSTBACK_KEYRING"),
        (["--url", "https://example.com/", "--tenant", "a b"], "--tenant: "),
    ],
)
def test_a_wrong_question_sends_nothing(arguments: list[str], told: str) -> None:
    done = postback_here("trigger", *arguments, env=environment_of())
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"postback: {told}")
    assert "swordfish" not in done.stderr
