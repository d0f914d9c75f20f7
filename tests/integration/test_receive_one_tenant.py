"""`postback receive --tenant` accepts only that tenant's events, by signature and body."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp

from schemas.event import event_body
from schemas.outcome import Outcome
from schemas.result import Result
from schemas.signature import Signer
from telemetry.clock import SystemClock
from tests.postback_command import environment_of, line_of, postback_here, started
from workers.delivery.keyring import Keyring

RESULT = Result(job_id="job_1", outcome=Outcome.SUCCEEDED, text="x", created_at=1)
OLD_FILE = Path(__file__).parents[1] / "unit" / "data" / "keyring_format_1.json"
CLOCK = SystemClock()


@contextmanager
def receiving(env: dict[str, str], out: Path) -> Iterator[str]:
    with started("receive", "--port", "0", "--tenant", "victim", "--out", out, env=env) as process:
        try:
            yield line_of(process.stderr).removeprefix("postback: receiving at ")
        finally:
            process.kill()


async def post(url: str, signer: Signer, body: bytes) -> int:
    headers = signer.headers("msg_1", int(CLOCK.time()), body)
    async with aiohttp.ClientSession() as session, session.post(url, data=body, headers=headers) as response:
        return response.status


def body_for(tenant: str) -> bytes:
    return event_body(RESULT, "msg_1", tenant)


async def test_an_event_for_another_tenant_is_refused_by_its_signature_and_by_its_body(tmp_path: Path) -> None:
    path, out = tmp_path / "keyring.json", tmp_path / "out.jsonl"
    keyring, now = Keyring.create(path, CLOCK), CLOCK.time()
    attacker, victim = (keyring.signer(tenant, now) for tenant in ("attacker", "victim"))
    with receiving(environment_of(POSTBACK_KEYRING=path), out) as url:
        assert await post(url, victim, body_for("victim")) == 200
        assert await post(url, Signer([], keyring.signing_keys("victim", now)), body_for("victim")) == 200
        assert await post(url, attacker, body_for("attacker")) == 401
        assert await post(url, attacker, body_for("victim")) == 401
        assert await post(url, Signer([], keyring.signing_keys("attacker", now)), body_for("victim")) == 401
        assert await post(url, victim, body_for("attacker")) == 401
        for no_event in (b"[]", b"null", b"\xff", b'{"tenant":["victim"]}', b'"victim"'):
            assert await post(url, victim, no_event) == 401, no_event
        assert await post(url, victim, body_for("victim").replace(b'"tenant":"victim",', b"")) == 401
    problems = [json.loads(line)["problem"] for line in out.read_text().splitlines()]
    assert problems[:2] == [None, None]
    assert problems[5] == "the event is for another tenant than victim"
    assert problems[-1] == "the event names no tenant"


async def test_with_a_keyring_of_format_1_only_the_body_says_which_tenant_an_event_is_for(tmp_path: Path) -> None:
    path = Path(shutil.copy(OLD_FILE, tmp_path / "keyring.json"))
    path.chmod(0o600)
    keyring, now = Keyring.load(path), CLOCK.time()
    of_all = Signer([], keyring.signing_keys("attacker", now))
    env = environment_of(POSTBACK_KEYRING=path)
    with receiving(env, tmp_path / "out.jsonl") as url:
        assert await post(url, of_all, body_for("victim")) == 200
        assert await post(url, of_all, body_for("attacker")) == 401
        assert postback_here("keys", "migrate", env=env).returncode == 0
        assert await post(url, of_all, body_for("victim")) == 401, "each tenant has a key of its own now"
        own = Signer([], Keyring.load(path).signing_keys("victim", now))
        assert await post(url, own, body_for("victim")) == 200
