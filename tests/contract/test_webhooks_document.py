"""The programs of docs/WEBHOOKS.md accept real signed callbacks of a real delivery, and refuse everything else."""

from __future__ import annotations

import base64
import json
import re
import runpy
import socket
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from openai import InvalidWebhookSignatureError
from standardwebhooks import Webhook, WebhookVerificationError

from cli.devkit.receiver import Behaviour, Keys, Received
from schemas.event import event_body
from schemas.outcome import Outcome
from schemas.result import Result
from schemas.settings import KafkaSettings
from schemas.signature import Signer, VerificationError, generate_secret, generate_signing_key, verify
from telemetry.health import READY, HealthServer
from telemetry.metrics import Metrics
from tests.contract.consumers import PROGRAMS, Consumer, consuming
from tests.fleet_here import FleetHere, running_here
from tests.node_tools import STANDARDWEBHOOKS, modules, node
from tests.postback_command import environment_of, postback_here
from tests.product import CLOCK, Callbacks, Role, eventually
from workers.delivery.keyring import JWKS_FOLDER, OVERLAP_SECONDS, Keyring, tenant_jwks_page

PROMPT = "Was ist ein “Webhook”? Ω </script> 🪝"
"""Prompt that the echo engine returns: letters of one to four bytes, and characters that JSON writers escape."""
BY_SECRET = ("consumer.py", "consumer.mjs", "consumer.go", "Consumer.java", "consumer.php", "consumer.rb")
BY_PUBLIC_KEY = ("consumer_by_public_key.py", "consumer_by_public_key.mjs", "consumer_by_public_key.go")
WEBHOOK_HEADERS = ("webhook-id", "webhook-timestamp", "webhook-signature")


class Fleet:
    """A fleet with an echo worker that also delivers, for all tests of this module."""

    def __init__(self, fleet_here: FleetHere) -> None:
        self.fleet_here = fleet_here
        self.role: Role = fleet_here.worker("w1", "--engine", "echo", "--with-delivery")

    @property
    def jwks_url(self) -> str:
        return f"http://127.0.0.1:{self.role.port}/.well-known/jwks/default.json"

    def call_back(self, url: str, prompt: str = PROMPT) -> None:
        self.fleet_here.submit([{"prompt": prompt, "callback_url": url}])

    def callback(self, behaviour: Behaviour | None = None, attempts: int = 1, prompt: str = PROMPT) -> list[Received]:
        """All attempts of a real callback, as a receiver gets them; `attempts` is their number."""
        callbacks = Callbacks(self.fleet_here.keyring)
        try:
            self.fleet_here.keyring.follow(CLOCK.time())
            callbacks.up(behaviour)
            self.call_back(callbacks.url, prompt)
            eventually(lambda: len(callbacks.received) >= attempts, 60, "no callback comes")
            return callbacks.received
        finally:
            callbacks.end()

    @property
    def signer(self) -> Signer:
        """A signer with the fleet's keyring."""
        return Keyring.load(self.fleet_here.keyring.path).signer("default", CLOCK.time())

    @property
    def secret(self) -> str:
        """The tenant's secret in the form in which a consumer gets it."""
        return Keyring.load(self.fleet_here.keyring.path).secrets("default", CLOCK.time())[0]


@pytest.fixture(scope="module")
def fleet(module_fleet: KafkaSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with running_here(module_fleet, tmp_path_factory.mktemp("fleet")) as fleet_here:
        yield Fleet(fleet_here)


@pytest.fixture(scope="module")
def genuine(fleet: Fleet) -> Received:
    [received] = fleet.callback()
    assert received.verified
    return received


def webhook_headers(received: Received) -> dict[str, str]:
    return {name: received.headers[name] for name in WEBHOOK_HEADERS}


def signatures_of(received: Received, version: str) -> str:
    entries = received.headers["webhook-signature"].split(" ")
    return " ".join(entry for entry in entries if entry.startswith(f"{version},"))


def in_title_case(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.title(): value for name, value in headers.items()}


@pytest.fixture
def consumer(request: pytest.FixtureRequest, fleet: Fleet, tmp_path: Path) -> Iterator[Consumer]:
    secret = fleet.secret
    where = {"WEBHOOK_SECRET": secret, "JWKS_URL": fleet.jwks_url, "TENANT": "default"}
    with consuming(request.param, tmp_path, **where) as started:
        yield started


@pytest.mark.broker
@pytest.mark.parametrize("consumer", [*BY_SECRET, *BY_PUBLIC_KEY], indirect=True)
def test_a_program_of_the_page_takes_real_callbacks_and_refuses_everything_else(
    consumer: Consumer, fleet: Fleet, genuine: Received, request: pytest.FixtureRequest
) -> None:
    fleet.call_back(consumer.url)
    kind, webhook_id, text = consumer.line().split(" ", 2)
    assert (kind, text) == ("inference.succeeded", PROMPT)
    assert webhook_id.startswith("msg_")
    fleet.call_back(consumer.url, prompt="")
    assert consumer.line().startswith("inference.rejected msg_"), "a rejected job's event is an event, too"

    headers, body = webhook_headers(genuine), genuine.body
    known, other = ("v1", "v1a") if request.node.callspec.params["consumer"] in BY_SECRET else ("v1a", "v1")
    for same in (
        headers,
        in_title_case(headers),
        {name.upper(): value for name, value in headers.items()},
        headers | {"webhook-signature": signatures_of(genuine, known)},
        headers | {"webhook-signature": f"v9,AAAA {headers['webhook-signature']}"},
        fleet.signer.headers(genuine.webhook_id or "", int(CLOCK.time()) - 240, body),
    ):
        assert consumer.answer(same, body) == 204, same
        assert consumer.line() == f"inference.succeeded {genuine.webhook_id} {PROMPT}"
    for reason, (changed, sent) in forged(fleet, genuine, other).items():
        assert consumer.answer(changed, sent) == 401, reason


def forged(fleet: Fleet, genuine: Received, other_version: str) -> dict[str, tuple[dict[str, str], bytes]]:
    """Return forged and stale requests; the key of a request is the name of its fault."""
    headers, body, webhook_id = webhook_headers(genuine), genuine.body, genuine.webhook_id or ""
    now = int(CLOCK.time())
    nobody = Signer([generate_secret()], [generate_signing_key()])
    stranger = Keyring.load(fleet.fleet_here.keyring.path).signer("stranger", CLOCK.time())
    strange = body.replace(b'"tenant":"default"', b'"tenant":"stranger"')
    changed = {
        "another body": (headers, body.replace(b"succeeded", b"cancelled")),
        "the same JSON, serialized again": (headers, json.dumps(json.loads(body)).encode()),
        "another id": (headers | {"webhook-id": "msg_2"}, body),
        "another timestamp": (headers | {"webhook-timestamp": str(now + 1)}, body),
        "no timestamp": (headers | {"webhook-timestamp": "soon"}, body),
        "signed ten minutes ago": (fleet.signer.headers(webhook_id, now - 600, body), body),
        "signed ten minutes ahead": (fleet.signer.headers(webhook_id, now + 600, body), body),
        "keys of no one": (nobody.headers(webhook_id, now, body), body),
        "another tenant's event": (stranger.headers(webhook_id, now, strange), strange),
        "another tenant's keys": (stranger.headers(webhook_id, now, body), body),
        "a signature of another kind": (
            headers | {"webhook-signature": signatures_of(genuine, other_version)},
            body,
        ),
        "no base64": (headers | {"webhook-signature": "v1,! v1a,!"}, body),
    }
    for name in WEBHOOK_HEADERS:
        changed[f"no {name}"] = ({kept: value for kept, value in headers.items() if kept != name}, body)
    return changed


@pytest.mark.broker
def test_openais_client_unwraps_a_real_callback_whatever_the_case_of_its_headers(
    genuine: Received, fleet: Fleet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WEBHOOK_SECRET", fleet.secret)
    (tmp_path / "with_openai.py").write_text(PROGRAMS["with_openai.py"])
    program = runpy.run_path(str(tmp_path / "with_openai.py"))
    with program["client"]:
        for headers in (genuine.headers, in_title_case(genuine.headers)):
            assert program["unwrap"](genuine.body, headers) == ("inference.succeeded", genuine.webhook_id, PROMPT)
        [rejected] = fleet.callback(prompt="")
        event = program["unwrap"](rejected.body, rejected.headers)
        assert event == ("inference.rejected", rejected.webhook_id, None)
        for changed, body in forged(fleet, genuine, "v1a").values():
            with pytest.raises((InvalidWebhookSignatureError, ValueError)):
                program["unwrap"](body, changed)


@pytest.mark.broker
def test_a_repeat_is_the_same_event_and_is_taken_once(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = fleet.callback(Behaviour(fail_first=1), attempts=2)[:2]
    assert [first.status, second.status] == [503, 200]
    assert (first.webhook_id, first.body) == (second.webhook_id, second.body)
    assert int(first.headers["webhook-timestamp"]) <= int(second.headers["webhook-timestamp"])
    assert first.event["id"] == first.webhook_id

    monkeypatch.chdir(tmp_path)
    (tmp_path / "once.py").write_text(PROGRAMS["once.py"])
    program = runpy.run_path("once.py")
    assert [program["take"](attempt.event) for attempt in (first, second)] == [True, False]
    rows = program["database"].execute("SELECT * FROM answers").fetchall()
    program["database"].close()
    assert rows == [(first.webhook_id, first.event["data"]["id"], PROMPT)]


@pytest.mark.broker
def test_the_page_states_the_bytes_on_the_wire(fleet: Fleet) -> None:
    head, body = raw_request(fleet)
    request_line, *lines = head.decode("ascii").split("\r\n")
    fields = dict(line.split(": ", 1) for line in lines)
    assert request_line == "POST /hook HTTP/1.1"
    assert set(WEBHOOK_HEADERS) < set(fields)
    assert fields["Content-Type"] == "application/json"
    assert fields["Content-Length"] == str(len(body))
    assert fields["User-Agent"].startswith("Postback/")
    assert not {"Transfer-Encoding", "Content-Encoding", "Expect", "Accept-Encoding"} & set(fields)
    assert re.fullmatch(r"[0-9]{10}", fields["webhook-timestamp"])
    assert re.fullmatch(r"v1,[A-Za-z0-9+/]{43}= v1a,[A-Za-z0-9+/]{86}==", fields["webhook-signature"])
    event = json.loads(body.decode("utf-8"))
    assert body.startswith(b'{"id":"msg_')
    assert PROMPT.encode() in body
    assert (event["id"], event["object"], event["data"]["text"]) == (fields["webhook-id"], "event", PROMPT)
    assert event["data"]["id"] == event["data"]["job_id"]
    assert event["tenant"] == "default"


def raw_request(fleet: Fleet) -> tuple[bytes, bytes]:
    """Return the exact bytes of the head and of the body of the first request to a socket."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        port = server.getsockname()[1]
        fleet.call_back(f"http://127.0.0.1:{port}/hook")
        connection, _ = server.accept()
        with connection:
            connection.settimeout(30)
            read = b""
            while not (match := re.search(rb"content-length: (\d+).*?\r\n\r\n", read, re.IGNORECASE | re.DOTALL)) or (
                len(read) < match.end() + int(match[1])
            ):
                received = connection.recv(65536)
                assert received, read
                read += received
            connection.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
    head, _, body = read.partition(b"\r\n\r\n")
    return head, body


@pytest.mark.broker
def test_headers_of_fetch_and_of_wsgi_have_to_be_translated_as_the_page_says(
    genuine: Received, fleet: Fleet, tmp_path: Path
) -> None:
    secret = fleet.secret
    wsgi = {f"HTTP_{name.replace('-', '_').upper()}": value for name, value in webhook_headers(genuine).items()}
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(genuine.body, wsgi)
    translated = {name.removeprefix("HTTP_").replace("_", "-"): value for name, value in wsgi.items()}
    assert Webhook(secret).verify(genuine.body, translated)["id"] == genuine.webhook_id

    (tmp_path / "node_modules").symlink_to(modules(STANDARDWEBHOOKS))
    (tmp_path / "fetch.mjs").write_text(
        """
        import { Webhook } from "standardwebhooks";
        const { secret, headers, body } = JSON.parse(process.argv[2]);
        const request = new Request("http://127.0.0.1/", { method: "POST", headers, body });
        const webhook = new Webhook(secret);
        const text = await request.text();
        try {
          webhook.verify(text, request.headers);
        } catch (error) {
          console.log(error.message);
        }
        console.log(webhook.verify(text, Object.fromEntries(request.headers)).id);
        """
    )
    given = json.dumps({"secret": secret, "headers": webhook_headers(genuine), "body": genuine.body.decode()})
    done = subprocess.run([node(), "fetch.mjs", given], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["Missing required headers", genuine.webhook_id], done.stderr


@pytest.mark.broker
def test_while_keys_rotate_old_and_new_keys_verify_and_a_leaked_key_ends_without_a_restart(fleet: Fleet) -> None:
    before = keys_of(fleet)
    assert postback_here("keys", "rotate", env=environment(fleet)).returncode == 0
    rotated = keys_of(fleet)
    assert (rotated.secrets[1:], rotated.public_keys[1:]) == (before.secrets, before.public_keys)
    callback = callback_signed_with(fleet, rotated)
    for secret in rotated.secrets:
        assert Webhook(secret).verify(callback.body, callback.headers)["id"] == callback.webhook_id
    for key in rotated.public_keys:
        verify(callback.headers, callback.body, [], [key], CLOCK.time())
    assert published(fleet) == rotated.public_keys

    rotate(fleet, overlap_seconds=0)
    ended = keys_of(fleet)
    callback = callback_signed_with(fleet, ended)
    with pytest.raises(WebhookVerificationError):
        Webhook(rotated.secrets[0]).verify(callback.body, callback.headers)
    assert rotated.public_keys[0] not in published(fleet)
    assert_no_key_is_told(fleet, [*rotated.secrets, *ended.secrets])


@pytest.mark.broker
@pytest.mark.usefixtures("genuine")  # the JWKS page shows a tenant's keys only after a callback
def test_a_broken_keyring_stops_no_callback_and_is_logged(fleet: Fleet) -> None:
    path = fleet.fleet_here.keyring.path
    whole = path.read_text()
    before = published(fleet)
    fleet.fleet_here.keyring.refresh()  # the receiver reads the keyring now, since it cannot read the broken file later
    path.write_text('{"format": 1, "master": "hush')
    try:
        eventually(lambda: "keyring-reload-failed" in said(fleet), 60, "the log does not say it")
        [received] = fleet.callback()
        assert received.verified
        assert published(fleet) == before
        assert "hush" not in fleet.role.said()
    finally:
        path.write_text(whole)
    rotate(fleet)
    callback_signed_with(fleet, keys_of(fleet))


def said(fleet: Fleet) -> str:
    """Let delivery read the keyring again, and return its log."""
    published(fleet)
    return fleet.role.said()


def keys_of(fleet: Fleet) -> Keys:
    """The tenant's current signing secrets, newest first."""
    keyring, now = Keyring.load(fleet.fleet_here.keyring.path), CLOCK.time()
    return Keys(keyring.secrets("default", now), keyring.public_keys("default", now))


def rotate(fleet: Fleet, overlap_seconds: float = OVERLAP_SECONDS) -> None:
    """Rotate the tenant's keys from outside the signing process."""
    Keyring.load(fleet.fleet_here.keyring.path).rotate("default", CLOCK.time(), overlap_seconds)


def environment(fleet: Fleet) -> dict[str, str]:
    return environment_of(POSTBACK_KEYRING=fleet.fleet_here.keyring.path)


def published(fleet: Fleet) -> list[str]:
    """Return the keys of the JWK set in our notation, `whpk_…`."""
    with urllib.request.urlopen(fleet.jwks_url, timeout=30) as answer:
        assert answer.headers["Content-Type"] == "application/jwk-set+json"
        assert answer.headers["Cache-Control"] == "public, max-age=300"
        keys = json.load(answer)["keys"]
    raw = [base64.urlsafe_b64decode(f"{key['x']}==") for key in keys]
    return [f"whpk_{base64.b64encode(key).decode()}" for key in raw]


def callback_signed_with(fleet: Fleet, keys: Keys) -> Received:
    """Wait until delivery has read the file; return the first callback that is signed by exactly these keys."""
    found: list[Received] = []

    def comes() -> bool:
        received = fleet.callback()[0]
        if signed_with(received, keys):
            found.append(received)
        return bool(found)

    eventually(comes, 60, "delivery goes on signing with other keys")
    return found[0]


def signed_with(received: Received, keys: Keys) -> bool:
    entries = received.headers["webhook-signature"].split(" ")
    if len(entries) != len(keys.secrets) + len(keys.public_keys):
        return False
    try:
        Webhook(keys.secrets[0]).verify(received.body, received.headers)
        verify(received.headers, received.body, [], keys.public_keys[:1], CLOCK.time())
    except (WebhookVerificationError, VerificationError):
        return False
    return True


def assert_no_key_is_told(fleet: Fleet, secrets: list[str]) -> None:
    """Assert that neither the log nor a page of the process shows a secret or a master."""
    content = json.loads(fleet.fleet_here.keyring.path.read_text())
    hidden = [secret.removeprefix("whsec_") for secret in secrets]
    hidden += [master["secret"] for master in content["masters"]]
    told = fleet.role.said()
    for path in ("/metrics", "/healthz", "/readyz", "/.well-known/jwks/default.json"):
        with urllib.request.urlopen(f"http://127.0.0.1:{fleet.role.port}{path}", timeout=30) as answer:
            told += answer.read().decode()
    assert "keyring-reloaded" in told
    assert [one for one in hidden if one in told] == []


# -- events of a stranger: another tenant, which gets genuine signatures of its own events -------------------------

RESULT = Result(job_id="job_1", outcome=Outcome.SUCCEEDED, text="yours", created_at=1_700_000_000)


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    return Keyring.create(tmp_path / "keyring.json", CLOCK)


@contextmanager
def jwks_url(keyring: Keyring) -> Iterator[str]:
    pages = {JWKS_FOLDER: partial(tenant_jwks_page, keyring, CLOCK)}
    with HealthServer(Metrics(), lambda: READY, pages=pages) as server:
        yield f"http://127.0.0.1:{server.port}{JWKS_FOLDER}victim.json"


def request(signer: Signer, tenant: str) -> tuple[dict[str, str], bytes]:
    body = event_body(RESULT, "msg_1", tenant)
    return signer.headers("msg_1", int(CLOCK.time()), body), body


def strangers_requests(keyring: Keyring) -> list[tuple[dict[str, str], bytes]]:
    """Return the signed requests that a stranger can get: those of its own events.

    A stranger can also sign forged bodies with its own keys.
    """
    stranger = keyring.signer("stranger", CLOCK.time())
    return [request(stranger, "stranger"), request(stranger, "victim")]


@pytest.mark.parametrize("program", [*BY_SECRET, *BY_PUBLIC_KEY])
def test_a_strangers_event_is_refused_by_each_program_of_the_page(
    program: str, keyring: Keyring, tmp_path: Path
) -> None:
    victim, secret = keyring.signer("victim", CLOCK.time()), keyring.secrets("victim", CLOCK.time())[0]
    with (
        jwks_url(keyring) as url,
        consuming(program, tmp_path, WEBHOOK_SECRET=secret, JWKS_URL=url, TENANT="victim") as consumer,
    ):
        assert consumer.answer(*request(victim, "victim")) == 204
        for headers, body in strangers_requests(keyring):
            assert consumer.answer(headers, body) == 401, body
        assert consumer.answer(*request(victim, "victim")) == 204
        assert [consumer.line() for _ in range(2)] == ["inference.succeeded msg_1 yours"] * 2


def test_a_strangers_event_is_refused_by_openais_client(
    keyring: Keyring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEBHOOK_SECRET", keyring.secrets("victim", CLOCK.time())[0])
    (tmp_path / "with_openai.py").write_text(PROGRAMS["with_openai.py"])
    program = runpy.run_path(str(tmp_path / "with_openai.py"))
    with program["client"]:
        headers, body = request(keyring.signer("victim", CLOCK.time()), "victim")
        assert program["unwrap"](body, headers) == ("inference.succeeded", "msg_1", "yours")
        for headers, body in strangers_requests(keyring):
            with pytest.raises(InvalidWebhookSignatureError):
                program["unwrap"](body, headers)
