"""Each program in docs/WEBHOOKS.md refuses a stranger's event.

A stranger is another tenant of the same fleet: it gets genuine signatures of its own events, and may send them to any
URL. Delivery's own code signs the events and serves the keys.
"""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from openai import InvalidWebhookSignatureError

from schemas.event import event_body
from schemas.outcome import Outcome
from schemas.result import Result
from schemas.signature import Signer
from telemetry.clock import SystemClock
from telemetry.health import READY, HealthServer
from telemetry.metrics import Metrics
from tests.contract.consumers import PROGRAMS, consuming
from workers.delivery.keyring import JWKS_FOLDER, Keyring, tenant_jwks_page

CLOCK = SystemClock()
RESULT = Result(job_id="job_1", outcome=Outcome.SUCCEEDED, text="yours", created_at=1_700_000_000)
BY_SECRET = ("consumer.py", "consumer.mjs", "consumer.go", "Consumer.java", "consumer.php", "consumer.rb")
BY_PUBLIC_KEY = ("consumer_by_public_key.py", "consumer_by_public_key.mjs", "consumer_by_public_key.go")


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
