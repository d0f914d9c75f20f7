"""The receiver over real HTTP with each kind of keys; `postback receive`, `keys` and `trigger`."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import socket
import stat
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from pydantic import TypeAdapter

from cli.devkit.receiver import Behaviour, Keys, Received, Receiver
from cli.shared.verifying import GivenKeys, HeldKeys, KeyringKeys
from schemas.event import Event, event_body
from schemas.outcome import Outcome
from schemas.result import Result
from schemas.signature import Signer, generate_secret, generate_signing_key, public_key_of
from telemetry.clock import SystemClock
from tests.http_handler import handling
from tests.postback_command import POSTBACK, environment_of, line_of, postback_here, started
from workers.delivery.keyring import Keyring
from workers.delivery.post import USER_AGENT

CLOCK = SystemClock()
SECRET = generate_secret()
SIGNING_KEY = generate_signing_key()
KEYS = Keys([SECRET], [public_key_of(SIGNING_KEY)])
BODY = b'{"id":"msg_1","type":"inference.succeeded","tenant":"acme","data":{"text":"\\u00fc"}}'
RESULT = Result(job_id="job_1", outcome=Outcome.SUCCEEDED, text="x", created_at=1)


def signed(webhook_id: str = "msg_1", body: bytes = BODY, secret: str = SECRET) -> dict[str, str]:
    return Signer([secret]).headers(webhook_id, int(CLOCK.time()), body)


async def post(url: str, headers: dict[str, str], body: bytes = BODY) -> int:
    async with aiohttp.ClientSession() as session, session.post(url, data=body, headers=headers) as response:
        return response.status


async def send(url: str, signer: Signer, body: bytes = BODY) -> int:
    return await post(url, signer.headers("msg_1", int(CLOCK.time()), body), body)


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


@pytest.mark.parametrize(
    ("behaviour", "events", "answers"),
    [
        (Behaviour(fail_first=2), ["msg_1"] * 3 + ["msg_2"] * 3, [(503, None), (503, None), (200, None)] * 2),
        (Behaviour(status=410, delay_seconds=0.05), ["msg_1"], [(410, None)]),
        (
            Behaviour(status=204, fail_first=1, fail_status=429, retry_after_seconds=7),
            ["msg_1", "msg_1", None],  # None: not signed
            [(429, "7"), (204, None), (401, None)],
        ),
    ],
)
async def test_a_receiver_answers_each_attempt_as_it_is_told(
    received: list[Received], behaviour: Behaviour, events: list[str | None], answers: list[tuple[int, str | None]]
) -> None:
    found = []
    receiver = Receiver(lambda: KEYS, received.append, behaviour=behaviour)
    async with receiver, aiohttp.ClientSession() as session:
        for event in events:
            headers = {} if event is None else signed(event)
            async with session.post(receiver.url, data=BODY, headers=headers) as response:
                found.append((response.status, response.headers.get("Retry-After")))
    assert found == answers
    assert [one.status for one in received] == [status for status, _ in answers]


async def test_only_posts_of_a_bounded_size_are_read(received: list[Received]) -> None:
    async with Receiver(lambda: KEYS, received.append) as receiver, aiohttp.ClientSession() as session:
        async with session.get(receiver.url) as response:
            assert response.status == 405
        async with session.post(receiver.url, data=io.BytesIO(b"x" * (5 * 1024 * 1024))) as response:
            assert response.status == 413
    assert received == []


async def test_a_callback_is_written_before_the_delay_so_that_an_impatient_sender_is_seen_too(
    received: list[Received],
) -> None:
    async with Receiver(lambda: KEYS, received.append, behaviour=Behaviour(delay_seconds=5)) as receiver:
        impatient = asyncio.create_task(post(receiver.url, signed()))
        async with asyncio.timeout(30):
            while not received:
                await asyncio.sleep(0.01)
        assert [one.webhook_id for one in received] == ["msg_1"]
        await asyncio.sleep(0.2)  # an answer without a delay comes far sooner
        assert not impatient.done()
        impatient.cancel()
        await asyncio.gather(impatient, return_exceptions=True)


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return environment_of(POSTBACK_KEYRING=tmp_path / "keyring.json")


def keys_of(env: dict[str, str], tenant: str) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(
        postback_here("keys", "show", "--tenant", tenant, "--reveal", "--json", env=env).stdout
    )
    return shown


# -- keys that may change ----------------------------------------------------------------------------------------------


@asynccontextmanager
async def receiving(keys: HeldKeys, received: list[Received]) -> AsyncIterator[str]:
    """Yield the URL of a receiver with keys that are read as the command reads them."""
    await keys.load()
    async with Receiver(keys.current, received.append) as receiver:
        yield receiver.url


async def test_a_rotated_key_of_a_keyring_is_known_at_once(
    env: dict[str, str], received: list[Received], tmp_path: Path
) -> None:
    assert postback_here("keys", "init", env=env).returncode == 0
    async with receiving(KeyringKeys(tmp_path / "keyring.json", "acme"), received) as url:
        old = keys_of(env, "acme")["secrets"]
        assert postback_here("keys", "rotate", "--tenant", "acme", env=env).returncode == 0
        both = keys_of(env, "acme")["secrets"]
        assert (len(both), both[1:]) == (2, old)
        assert [await post(url, signed(secret=secret)) for secret in both] == [200, 200]


@pytest.mark.parametrize("where", ["file", "url"])
async def test_a_jwk_set_verifies_without_a_keyring(tmp_path: Path, received: list[Received], where: str) -> None:
    keyring, now = Keyring.create(tmp_path / "keyring.json", CLOCK), CLOCK.time()
    foreign = {"kty": "RSA", "n": "AQAB", "e": "AQAB"}
    file = tmp_path / "acme.json"
    file.write_text(json.dumps({"keys": [foreign, *keyring.jwks("acme", now)["keys"]]}))
    with handling(partial(SimpleHTTPRequestHandler, directory=str(tmp_path))) as page:
        source = str(file) if where == "file" else f"{page}/acme.json"
        async with receiving(GivenKeys([], source, None), received) as url:
            assert await send(url, Signer([], keyring.signing_keys("acme", now))) == 200
            assert await send(url, Signer([], [generate_signing_key()])) == 401


async def test_an_event_for_another_tenant_is_refused_by_its_signature_and_by_its_body(
    tmp_path: Path, received: list[Received]
) -> None:
    keyring, now = Keyring.create(tmp_path / "keyring.json", CLOCK), CLOCK.time()
    attacker, victim = (keyring.signer(tenant, now) for tenant in ("attacker", "victim"))
    attackers, victims = (Signer([], keyring.signing_keys(tenant, now)) for tenant in ("attacker", "victim"))
    theirs, ours = (event_body(RESULT, "msg_1", tenant) for tenant in ("attacker", "victim"))
    tries = [
        (victim, ours, 200),
        (victims, ours, 200),
        (attacker, theirs, 401),
        (attacker, ours, 401),
        (attackers, ours, 401),
        (victim, theirs, 401),
        *((victim, no_event, 401) for no_event in (b"[]", b"null", b"\xff", b'{"tenant":["victim"]}', b'"victim"')),
        (victim, ours.replace(b'"tenant":"victim",', b""), 401),
    ]
    async with receiving(KeyringKeys(tmp_path / "keyring.json", "victim"), received) as url:
        answers = [await send(url, signer, body) for signer, body, _ in tries]
    assert answers == [status for *_, status in tries]
    problems = [one.problem for one in received]
    assert problems[:2] == [None, None]
    assert problems[5] == "the event is for another tenant than victim"
    assert problems[-1] == "the event names no tenant"


# -- the commands ------------------------------------------------------------------------------------------------------


async def test_a_pipe_gets_a_line_for_each_callback_and_ctrl_c_ends_the_command_with_a_summary(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{generate_secret()}\n")
    options = ("--secret", SECRET, "--secret", f"@{file}", "--tenant", "acme")
    with started("receive", "--port", "0", *options, env=environment_of()) as process:
        try:
            url = line_of(process.stderr).removeprefix("postback: receiving at ")
            assert await post(url, signed()) == 200
            assert json.loads(line_of(process.stdout))["webhook_id"] == "msg_1"
            assert await post(url, signed("msg_2", secret=file.read_text().strip())) == 200
            assert await send(url, Signer([generate_secret()])) == 401
            assert await send(url, Signer([SECRET]), BODY.replace(b"acme", b"other")) == 401
            process.send_signal(signal.SIGINT)
            shown, told = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 0
    assert [json.loads(line)["verified"] for line in shown.splitlines()] == [True, False, False]
    assert told == (
        "postback: events: 2 (2 inference.succeeded); requests: 4 (2 answered 200, 2 answered 401); "
        "refused signatures: 2\n"
    )


async def test_on_a_terminal_callbacks_are_shown_for_people_and_the_file_still_has_the_lines(
    env: dict[str, str], tmp_path: Path
) -> None:
    assert postback_here("keys", "init", env=env).returncode == 0
    secret = keys_of(env, "acme")["secrets"][0]
    screen, terminal = os.openpty()
    options = ("--port", "0", "--out", tmp_path / "out.jsonl", "--fail-first", "1", "--tenant", "acme", "-v")
    command = (POSTBACK, "receive", *options)
    with subprocess.Popen(command, env=env, stdout=terminal, stderr=subprocess.PIPE, text=True) as process:
        try:
            url = line_of(process.stderr).removeprefix("postback: receiving at ")
            assert [await post(url, signed(secret=secret)) for _ in range(2)] == [503, 200]
            lines = (tmp_path / "out.jsonl").read_text().splitlines()  # before the command's end
            assert await post(url, signed(secret=keys_of(env, "default")["secrets"][0])) == 401
        finally:
            process.terminate()
            process.communicate(timeout=30)
    os.close(terminal)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", os.read(screen, 65536).decode())
    os.close(screen)
    assert process.returncode == 0
    assert "inference.succeeded  verified  answered 503" in shown
    assert "answered 200  attempt 2 of this event" in shown
    assert '"text": "ü"' in shown
    assert [(json.loads(line)["verified"], json.loads(line)["status"]) for line in lines] == [(True, 503), (True, 200)]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--secret", "swordfish"], "--secret: a key of this kind starts with whsec_"),
        (["--secret", "@/nowhere/secret"], "--secret @/nowhere/secret: No such file or directory"),
        (["--jwks", "/nowhere/keys.json"], "--jwks /nowhere/keys.json: No such file or directory"),
        (["--jwks", "/dev/null"], "--jwks /dev/null: it holds no JWK set: it is not JSON"),
        (["--jwks", "http://127.0.0.1:1/keys"], "--jwks http://127.0.0.1:1/keys: "),
    ],
)
def test_unusable_keys_end_the_command_with_one_line(options: list[str], told: str) -> None:
    done = postback_here("receive", "--port", "0", *options, env=environment_of())
    assert done.returncode in (1, 2)
    assert done.stderr.startswith(f"postback: {told}")
    assert done.stderr.count("\n") == 1
    assert "swordfish" not in done.stderr


def test_a_busy_port_is_one_line_with_the_fix() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = postback_here("receive", "--port", port, "--secret", SECRET, env=environment_of())
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "choose another --port" in done.stderr


def test_keys_are_shown_only_when_that_is_asked(env: dict[str, str], tmp_path: Path) -> None:
    assert postback_here("keys", "init", env=env).returncode == 0
    assert stat.S_IMODE((tmp_path / "keyring.json").stat().st_mode) == 0o600
    revealed = keys_of(env, "acme")
    assert set(revealed) == {"tenant", "secrets", "public_keys"}
    assert revealed["tenant"] == "acme"
    secret = revealed["secrets"][0]
    assert secret.startswith("whsec_")
    assert revealed["public_keys"][0].startswith("whpk_")
    for arguments in (["--json"], [], ["--jwks"]):
        shown = postback_here("keys", "show", "--tenant", "acme", *arguments, env=env)
        assert shown.returncode == 0
        assert secret.removeprefix("whsec_") not in shown.stdout
    hidden = json.loads(postback_here("keys", "show", "--tenant", "acme", "--json", env=env).stdout)
    # The command prints no placeholder, since a script would mistake it for the secret.
    assert hidden == {**revealed, "secrets": []}
    jwks = json.loads(postback_here("keys", "show", "--jwks", env=env).stdout)
    assert jwks["keys"][0]["crv"] == "Ed25519"


def test_a_keyring_that_is_there_is_left_as_it_is(env: dict[str, str], tmp_path: Path) -> None:
    postback_here("keys", "init", env=env)
    before = (tmp_path / "keyring.json").read_bytes()
    again = postback_here("keys", "init", env=env)
    assert again.returncode == 0
    assert "is left as it is" in again.stderr
    assert (tmp_path / "keyring.json").read_bytes() == before


@pytest.mark.parametrize("command", [["keys", "show"], ["keys", "rotate"], ["receive", "--port", "0"]])
def test_a_missing_keyring_is_one_line_with_the_fix(command: list[str], env: dict[str, str]) -> None:
    missing, unset = postback_here(*command, env=env), postback_here(*command, env=environment_of())
    assert (missing.returncode, missing.stderr.count("\n")) == (1, 1)
    assert "postback keys init" in missing.stderr
    assert (unset.returncode, unset.stderr.count("\n")) == (2, 1)
    assert "set POSTBACK_KEYRING" in unset.stderr


# -- `postback endpoints test`: a test event, accepted like a callback and sent under the guard's rules -----------
TRIGGERED_KEYS = Keys([SECRET], [], "acme")
FRIENDLY = Behaviour()
LOOPBACK = {"POSTBACK_EGRESS__ALLOW_CALLBACKS": "127.0.0.0/8", "POSTBACK_ENV": "development"}


async def triggered(
    *options: str, keys: Keys = TRIGGERED_KEYS, behaviour: Behaviour = FRIENDLY, **env: str | Path
) -> tuple[subprocess.CompletedProcess[str], list[Received]]:
    received: list[Received] = []
    async with Receiver(lambda: keys, received.append, behaviour=behaviour) as receiver:
        arguments = ("endpoints", "test", f"{receiver.url}hook?token=t0ken", "--tenant", "acme", *options)
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
    arguments = ("endpoints", "test", url, "--secret", SECRET)
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
        (["ftp://example.com/"], "URL: is not an http or https URL without credentials"),
        (["https://me:pw@example.com/"], "URL: is not an http or https URL without credentials"),
        (["https://example.com/", "--secret", "swordfish"], "--secret: a key of this kind starts with whsec_"),
        (["https://example.com/"], "set POSTBACK_KEYRING"),
        (["https://example.com/", "--tenant", "a b"], "--tenant: "),
    ],
)
def test_a_wrong_question_sends_nothing(arguments: list[str], told: str) -> None:
    done = postback_here("endpoints", "test", *arguments, env=environment_of())
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"postback: {told}")
    assert "swordfish" not in done.stderr
