"""`postback receive` with `--secret` or `--jwks` alone: no keyring, and a summary at the end."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import aiohttp
import pytest

from schemas.signature import Signer, generate_secret, generate_signing_key
from telemetry.clock import SystemClock
from tests.http_handler import handling
from tests.postback_command import environment_of, line_of, postback_here, started
from workers.delivery.keyring import Keyring

CLOCK = SystemClock()
SECRET = generate_secret()
BODY = b'{"id":"msg_1","type":"inference.succeeded","tenant":"acme","data":{"job_id":"job_1"}}'


@contextmanager
def receiving(*options: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    with started("receive", "--port", "0", *map(str, options), env=environment_of()) as process:
        try:
            yield process, line_of(process.stderr).removeprefix("postback: receiving at ")
        finally:
            process.kill()


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve a folder's files on a thread, since the test's own thread waits for the command."""
    with handling(partial(SimpleHTTPRequestHandler, directory=str(folder))) as url:
        yield url


async def post(url: str, signer: Signer, body: bytes = BODY, webhook_id: str = "msg_1") -> int:
    headers = signer.headers(webhook_id, int(CLOCK.time()), body)
    async with aiohttp.ClientSession() as session, session.post(url, data=body, headers=headers) as response:
        return response.status


async def test_a_secret_verifies_without_a_keyring_and_the_command_ends_with_a_summary(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{generate_secret()}\n")
    with receiving("--secret", SECRET, "--secret", f"@{file}") as (process, url):
        assert await post(url, Signer([SECRET])) == 200
        assert await post(url, Signer([file.read_text().strip()]), webhook_id="msg_2") == 200
        assert await post(url, Signer([generate_secret()])) == 401
        process.send_signal(signal.SIGINT)
        shown, told = process.communicate(timeout=30)
    assert process.returncode == 0
    assert [json.loads(line)["verified"] for line in shown.splitlines()] == [True, True, False]
    assert told == (
        "postback: events: 2 (2 inference.succeeded); requests: 3 (2 answered 200, 1 answered 401); "
        "refused signatures: 1\n"
    )


async def test_with_a_named_tenant_events_of_other_tenants_are_refused(tmp_path: Path) -> None:
    with receiving("--secret", SECRET, "--tenant", "other") as (_, url):
        assert await post(url, Signer([SECRET])) == 401
        assert await post(url, Signer([SECRET]), BODY.replace(b"acme", b"other")) == 200


@pytest.mark.parametrize("where", ["file", "url"])
async def test_a_jwk_set_verifies_without_a_keyring(tmp_path: Path, where: str) -> None:
    keyring, now = Keyring.create(tmp_path / "keyring.json", CLOCK), CLOCK.time()
    foreign = {"kty": "RSA", "n": "AQAB", "e": "AQAB"}
    file = tmp_path / "acme.json"
    file.write_text(json.dumps({"keys": [foreign, *keyring.jwks("acme", now)["keys"]]}))
    with serving(tmp_path) as page:
        source = file if where == "file" else f"{page}/acme.json"
        with receiving("--jwks", source) as (_, url):
            assert await post(url, Signer([], keyring.signing_keys("acme", now))) == 200
            assert await post(url, Signer([], [generate_signing_key()])) == 401


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
