"""Pages and searches through the operator's proxy, a real one: the guard judges names, and the proxy gets addresses."""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path

import aiohttp
import pytest
import uvloop
from aiohttp import web
from aiohttp.abc import AbstractResolver
from yarl import URL

from schemas.job import Sources
from tests.integration.certificates import Authority
from tests.integration.name_server import name_server
from tests.integration.raw_server import CLOCK, FACT, HTML, LOOPBACK, enriching, page, saying, speaking
from tests.integration.test_egress_sockets import serving
from tests.proxy_server import ProxyServer
from workers.egress import EgressPolicy, EgressRefused, EgressSettings, Guard, Proxy
from workers.enrichment.fetching.fetch import NO_PUBLIC_NAME
from workers.enrichment.search.service import ServiceRequest, Web

REFUSES = "the operator's proxy refuses the worker's credentials"
AWAY = "the operator's proxy could not be reached"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ProxyServer]:
    with ProxyServer(tmp_path) as server:
        yield server


@pytest.fixture
def credentials(tmp_path: Path, server: ProxyServer) -> Path:
    file = tmp_path / "proxy.credentials"
    file.write_text(f"{server.user}:{server.password}\n")
    return file


@pytest.fixture
def proxy(server: ProxyServer, credentials: Path, monkeypatch: pytest.MonkeyPatch) -> Proxy:
    """The proxy, with the settings that an operator would make."""
    monkeypatch.setenv("POSTBACK_EGRESS__PROXY", f"http://127.0.0.1:{server.port}")
    monkeypatch.setenv("POSTBACK_EGRESS__PROXY_CREDENTIALS", str(credentials))
    found = EgressSettings().fetch_proxy()
    assert found is not None
    return found


def guard(proxy: Proxy, policy: EgressPolicy = LOOPBACK, resolver: AbstractResolver | None = None) -> Guard:
    return Guard(policy, resolver, proxy)


async def notes_on(url: str, guarded: Guard) -> tuple[str, ...]:
    """The notes of a job whose only source is this page."""
    async with enriching(guarded) as enricher:
        return (await enricher.enrich(Sources(urls=[url]), "When did the bridge open?")).notes


async def test_a_page_is_read_through_the_proxy_with_its_robots_txt(proxy: Proxy, server: ProxyServer) -> None:
    async with speaking(saying(page(), HTML), robots=b"") as origin, enriching(guard(proxy), robots=True) as enricher:
        evidence = await enricher.enrich(Sources(urls=[f"{origin}/bridge"]), "When did the bridge open?")
    assert FACT in evidence.sources[0].passages[0]
    assert set(server.asked) == {f"CONNECT {URL(origin).host}:{URL(origin).port}"}


async def test_the_proxy_gets_the_address_that_the_guard_has_checked_and_never_the_name(
    proxy: Proxy, server: ProxyServer
) -> None:
    """The name's second answer leads to another host. A proxy that resolved the name would connect to that host."""
    async with (
        name_server({"rebind.example": [["127.0.0.1"], ["127.0.0.2"]]}) as names,
        serving("127.0.0.1") as public,
        serving("127.0.0.2", public.port) as internal,
        guard(proxy, resolver=names.resolver()).session() as session,
        session.get(public.url("rebind.example")) as answer,
    ):
        assert await answer.text() == "127.0.0.1"
        assert not internal.connections
        assert server.asked == [f"CONNECT 127.0.0.1:{public.port}"]


@pytest.mark.parametrize("host", ["127.0.0.2", "internal.example", "mixed.example", "localhost"])
async def test_the_proxy_is_not_asked_for_an_address_that_the_guard_refuses(
    host: str, proxy: Proxy, server: ProxyServer
) -> None:
    policy = EgressPolicy(allow=(ip_network("127.0.0.9/32"),), development=True, ports=frozenset(range(65536)))
    answers = {"internal.example": [["127.0.0.2"]], "mixed.example": [["93.184.215.14", "127.0.0.9"]]}
    async with (
        name_server(answers) as names,
        serving("127.0.0.2") as internal,
        guard(proxy, policy, names.resolver()).session() as session,
    ):
        with pytest.raises(EgressRefused):
            await session.get(internal.url(host))
        assert (internal.connections, server.asked) == ([], [])


async def test_the_proxy_itself_may_have_an_address_that_no_page_may_have(proxy: Proxy, server: ProxyServer) -> None:
    policy = EgressPolicy(allow=(ip_network("127.0.0.2/32"),))
    async with (
        serving("127.0.0.2") as page_server,
        guard(proxy, policy).session() as session,
        session.get(page_server.url()) as answer,
    ):
        assert await answer.text() == "127.0.0.2"
        with pytest.raises(EgressRefused):
            await session.get(f"http://127.0.0.1:{server.port}/")


async def test_a_job_cannot_tell_a_refused_name_from_a_missing_one(proxy: Proxy, server: ProxyServer) -> None:
    async with name_server({"internal.example": [["10.1.2.3"]]}) as names:
        guarded = guard(proxy, resolver=names.resolver())
        for name in ("internal.example", "missing.example"):
            assert NO_PUBLIC_NAME in (await notes_on(f"http://{name}/", guarded))[0]
    assert server.asked == []


async def test_a_redirect_through_the_proxy_is_judged_too(proxy: Proxy, server: ProxyServer) -> None:
    moved = saying(b"", "Location: http://169.254.169.254/latest", status="302 Found")
    async with speaking(moved) as origin:
        [note] = await notes_on(f"{origin}/", guard(proxy))
    assert "http://169.254.169.254: the address is not public" in note
    assert len(server.asked) == 1


async def test_a_wrong_credential_is_reported_and_a_corrected_file_counts_at_once(
    proxy: Proxy, server: ProxyServer, credentials: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    right = credentials.read_text()
    async with speaking(saying(page(), HTML)) as origin:
        for wrong, reason in [
            (f"{server.user}:Wr0ng-s3cret", REFUSES),
            ("Wr0ng-s3cret", "the file with the credentials of the operator's proxy is not one line user:password"),
            (None, "the file with the credentials of the operator's proxy cannot be read"),
        ]:
            credentials.write_text(wrong) if wrong is not None else credentials.unlink()
            [note] = await notes_on(f"{origin}/", guard(proxy))
            assert reason in note
        credentials.write_text(right)
        assert await notes_on(f"{origin}/", guard(proxy)) == ()
    lines = [record.getMessage() for record in caplog.records]
    assert sum("egress-proxy-failed" in line and REFUSES in line for line in lines) == 1
    assert not any(secret in line for line in lines for secret in ("s3cret", "Basic", "Authorization"))


async def test_a_proxy_that_is_away_is_reported_and_used_again_when_it_is_back(
    proxy: Proxy, server: ProxyServer
) -> None:
    async with speaking(saying(page(), HTML)) as origin:
        server.kill()
        [note] = await notes_on(f"{origin}/", guard(proxy))
        assert AWAY in note
        server.start()
        assert await notes_on(f"{origin}/", guard(proxy)) == ()


async def test_a_server_that_the_proxy_cannot_reach_is_reported_as_a_server_that_is_away(proxy: Proxy) -> None:
    async with serving("127.0.0.1") as gone:
        pass
    [note] = await notes_on(gone.url(), guard(proxy))
    assert "its server could not be reached" in note


async def test_the_proxy_is_asked_once_for_each_address_of_a_name_that_it_cannot_reach(
    proxy: Proxy, server: ProxyServer
) -> None:
    addresses = [f"127.0.0.{number}" for number in range(2, 6)]
    async with serving("127.0.0.2") as gone:
        pass
    async with (
        name_server({"several.example": [addresses]}) as names,
        guard(proxy, resolver=names.resolver()).session() as session,
    ):
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.get(gone.url("several.example"))
    assert sorted(server.asked) == [f"CONNECT {address}:{gone.port}" for address in addresses]


async def test_hosts_of_the_direct_list_are_connected_to_without_the_proxy(
    proxy: Proxy, server: ProxyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSTBACK_EGRESS__PROXY_DIRECT", "127.0.0.2/32, *.inside.example")
    found = EgressSettings().fetch_proxy()
    assert found is not None
    async with (
        name_server({"wiki.inside.example": [["127.0.0.1"]]}) as names,
        serving("127.0.0.1") as first,
        serving("127.0.0.2") as second,
        guard(found, resolver=names.resolver()).session() as session,
    ):
        for url in (first.url("wiki.inside.example"), second.url()):
            async with session.get(url) as answer:
                assert answer.status == 200
        assert server.asked == []
        async with session.get(first.url()) as answer:
            assert answer.status == 200
        assert len(server.asked) == 1


async def test_a_search_goes_through_the_proxy(proxy: Proxy, server: ProxyServer) -> None:
    async with serving("127.0.0.1") as service:
        searching = Web("tests", CLOCK, proxy=proxy)
        await searching.start()
        answer = await searching.send(ServiceRequest(service.url()))
        await searching.close()
    assert (answer.body, server.asked) == (b"127.0.0.1", [f"CONNECT 127.0.0.1:{service.port}"])


@asynccontextmanager
async def serving_tls(context: ssl.SSLContext) -> AsyncIterator[int]:
    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text="over TLS")

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def test_tls_reaches_through_the_proxy_and_checks_the_server_s_certificate(
    proxy: Proxy, server: ProxyServer, tmp_path: Path
) -> None:
    authority = Authority.create(tmp_path)
    trusting = ssl.create_default_context(cafile=authority.ca_file)
    async with serving_tls(authority.server()) as port, guard(proxy).session() as session:
        for _ in range(2):  # the second request has to use the tunnel of the first
            async with session.get(f"https://127.0.0.1:{port}/", ssl=trusting) as answer:
                assert await answer.text() == "over TLS"
        assert len(server.asked) == 1
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await session.get(f"https://127.0.0.1:{port}/")


def test_the_proxy_gets_the_address_also_on_the_event_loop_of_workers(proxy: Proxy, server: ProxyServer) -> None:
    """uvloop has its own implementation of sockets."""
    uvloop.run(test_the_proxy_gets_the_address_that_the_guard_has_checked_and_never_the_name(proxy, server))
