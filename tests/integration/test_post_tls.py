"""One attempt over TLS: authorities, versions, and client certificates."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from telemetry.clock import SystemClock
from tests.integration.certificates import Authority
from tests.integration.one_attempt import (
    HEADERS,
    LOOPBACK,
    OK,
    TENANT,
    Peer,
    Start,
    always,
    failure,
    on_both_loops,
    post,
    status,
)
from workers.delivery.post import Delivered, FailureReason, Poster, PostOutcome
from workers.delivery.settings import DeliverySettings


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("tls"))


async def post_tls(url: str, ca_file: Path | None, certificate: Path | None = None) -> PostOutcome:
    certificates = {} if certificate is None else {TENANT: certificate}
    settings = DeliverySettings(ca_file=ca_file, client_certificates=certificates)
    poster = Poster(settings, LOOPBACK, SystemClock())
    try:
        return await post(poster, url)
    finally:
        await poster.close()


@on_both_loops
async def test_a_private_authority_is_trusted_where_the_settings_name_it(start: Start, authority: Authority) -> None:
    server = await start(always(OK), authority.server())
    assert isinstance(await post_tls(server.url, authority.ca_file), Delivered)
    assert len(server.requests) == 1


@on_both_loops
async def test_an_unknown_authority_is_a_failure_and_nothing_is_sent(start: Start, authority: Authority) -> None:
    server = await start(always(OK), authority.server())
    assert failure(await post_tls(server.url, None)) == (FailureReason.TLS_FAILED, None)
    assert server.requests == []


def speaking_old_tls(context: ssl.SSLContext) -> ssl.SSLContext:
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    return context


@pytest.mark.parametrize("tenant", ["without-certificate", TENANT])
@pytest.mark.parametrize("lowered", [False, True], ids=["ours", "lowered"])
@on_both_loops
async def test_a_server_without_tls_1_2_is_refused_only_because_of_our_minimum_version(
    start: Start, authority: Authority, tenant: str, lowered: bool
) -> None:
    """Both sides use OpenSSL's security level 0, since the usual level excludes TLS 1.1 anyway."""
    server = await start(always(OK), speaking_old_tls(authority.server()))
    settings = DeliverySettings(ca_file=authority.ca_file, client_certificates={TENANT: authority.client_file("acme")})
    poster = Poster(settings, LOOPBACK, SystemClock())
    context = poster.tls.of(tenant)
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ALL:@SECLEVEL=0")
    if lowered:
        with pytest.warns(DeprecationWarning):
            context.minimum_version = ssl.TLSVersion.TLSv1
    outcome = await poster.post(server.url, b"{}", HEADERS, tenant)
    await poster.close()
    if lowered:
        assert isinstance(outcome, Delivered)
    else:
        # The server may refuse with an alert or by hanging up.
        assert failure(outcome)[0] in (FailureReason.TLS_FAILED, FailureReason.CONNECT_FAILED)
        assert server.requests == []


@on_both_loops
async def test_a_server_that_speaks_no_tls_at_all_is_refused(start: Start, authority: Authority) -> None:
    async def script(peer: Peer) -> None:
        await peer.reader.read(1)
        await peer.send(status(400))

    server = await start(script)
    outcome = await post_tls(server.url.replace("http:", "https:"), authority.ca_file)
    assert failure(outcome) == (FailureReason.TLS_FAILED, None)


@pytest.mark.parametrize("wrong", ["name", "date"])
@on_both_loops
async def test_a_certificate_for_another_name_or_time_is_refused(
    start: Start, authority: Authority, wrong: str
) -> None:
    chain = authority.chain_file("127.0.0.9") if wrong == "name" else authority.chain_file(expired=True)
    server = await start(always(OK), authority.server(chain))
    assert failure(await post_tls(server.url, authority.ca_file)) == (FailureReason.TLS_FAILED, None)
    assert server.requests == []


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@on_both_loops
async def test_the_newest_tls_that_both_know_is_spoken(
    start: Start, authority: Authority, newest: ssl.TLSVersion
) -> None:
    versions = []

    async def script(peer: Peer) -> None:
        versions.append(peer.writer.get_extra_info("ssl_object").version())
        await always(OK)(peer)

    context = authority.server()
    context.maximum_version = newest
    assert isinstance(await post_tls((await start(script, context)).url, authority.ca_file), Delivered)
    assert versions == ["TLSv1.2" if newest is ssl.TLSVersion.TLSv1_2 else "TLSv1.3"]


@on_both_loops
async def test_a_tls_handshake_that_never_ends_is_cut_off_at_the_deadline(start: Start, hasty: Poster) -> None:
    async def script(peer: Peer) -> None:
        await peer.reader.read(1)
        await asyncio.Event().wait()

    server = await start(script)
    outcome = await post(hasty, server.url.replace("http:", "https:"))
    assert failure(outcome) == (FailureReason.TIMEOUT, None)


@on_both_loops
async def test_an_endpoint_that_asks_for_a_client_certificate_gets_the_tenants(
    start: Start, authority: Authority
) -> None:
    subjects = []

    async def script(peer: Peer) -> None:
        subjects.append(peer.writer.get_extra_info("peercert")["subject"])
        await always(OK)(peer)

    server = await start(script, authority.server(asks_for_client=True))
    assert isinstance(await post_tls(server.url, authority.ca_file, authority.client_file("acme")), Delivered)
    assert subjects == [((("commonName", "acme"),),)]


@on_both_loops
async def test_without_a_client_certificate_such_an_endpoint_gets_nothing(start: Start, authority: Authority) -> None:
    server = await start(always(OK), authority.server(asks_for_client=True))
    reason, seen = failure(await post_tls(server.url, authority.ca_file))
    # In TLS 1.3 the server may refuse after the request was sent.
    assert (reason in (FailureReason.TLS_FAILED, FailureReason.CONNECTION_CLOSED), seen) == (True, None)
    assert server.requests == []


@on_both_loops
async def test_tenants_never_share_a_connection(start: Start, authority: Authority) -> None:
    subjects = []

    async def script(peer: Peer) -> None:
        certificate = peer.writer.get_extra_info("peercert")
        while await peer.request() is not None:
            subjects.append(certificate["subject"][0][0][1])
            await peer.send(OK)

    server = await start(script, authority.server(asks_for_client=True))
    tenants = {name: authority.client_file(name) for name in ("acme", "globex")}
    settings = DeliverySettings(ca_file=authority.ca_file, client_certificates=tenants)
    poster = Poster(settings, LOOPBACK, SystemClock())
    for tenant in ("acme", "globex", "acme", "globex"):
        assert isinstance(await poster.post(server.url, b"{}", HEADERS, tenant), Delivered)
    await poster.close()
    assert (subjects, server.connections) == (["acme", "globex", "acme", "globex"], 2)
