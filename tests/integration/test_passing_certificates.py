"""Images and payloads of a server with an invalid certificate are tried again, since servers renew certificates."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from schemas.result import Result
from tests.images import PNG
from tests.integration.certificates import Authority
from tests.integration.raw_server import Script, saying, speaking
from tests.integration.test_job_images import looking
from tests.integration.test_job_payloads import loading, serving
from workers.enrichment.fetching import attached


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """An authority that the fetcher trusts like an authority of the system."""
    made = Authority.create(tmp_path)
    monkeypatch.setattr("aiohttp.connector._SSL_CONTEXT_VERIFIED", ssl.create_default_context(cafile=made.ca_file))
    monkeypatch.setattr(attached, "PAUSES", (0.0, 0.0))
    return made


class Renewing:
    """A server's TLS: the server shows an expired certificate in its first handshakes, and then a valid one."""

    def __init__(self, authority: Authority, expired: int) -> None:
        self.handshakes = 0
        self._expired = expired
        self._valid = authority.server()
        self.context = authority.server(authority.chain_file(expired=True))
        self.context.sni_callback = self._begun

    def _begun(self, connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _context: ssl.SSLContext) -> None:
        self.handshakes += 1
        if self.handshakes > self._expired:
            connection.context = self._valid


async def with_image(url: str) -> Result:
    async with looking() as worker:
        return await worker.answer(url)


async def with_payload(url: str) -> Result:
    async with loading() as worker:
        return await worker.answer(url)


KINDS: list[tuple[Callable[[str], Awaitable[Result]], Script, str]] = [
    (with_image, saying(PNG, "Content-Type: image/png"), "no_image"),
    (with_payload, serving(prompt="Why?"), "no_payload"),
]


@pytest.mark.parametrize(("answer", "script", "code"), KINDS, ids=["image", "payload"])
async def test_a_certificate_that_is_renewed_between_the_tries_lets_the_job_be_answered(
    authority: Authority, answer: Callable[[str], Awaitable[Result]], script: Script, code: str
) -> None:
    server = Renewing(authority, expired=2)
    async with speaking(script, tls=server.context) as origin:
        result = await answer(f"{origin}/a")
    assert (result.outcome, server.handshakes) == ("succeeded", 3)


@pytest.mark.parametrize(("answer", "script", "code"), KINDS, ids=["image", "payload"])
async def test_a_certificate_that_stays_expired_fails_the_job_and_is_named(
    authority: Authority, answer: Callable[[str], Awaitable[Result]], script: Script, code: str
) -> None:
    server = Renewing(authority, expired=9)
    async with speaking(script, tls=server.context) as origin:
        result = await answer(f"{origin}/a")
    assert (result.outcome, result.error and result.error.code) == ("failed", code)
    assert result.error is not None and result.error.message.endswith(": its certificate was not accepted")
    assert server.handshakes == len(attached.PAUSES) + 1
