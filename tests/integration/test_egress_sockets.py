"""The guard on real sockets, directly and through the operator's proxy: its connections, and what servers see."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvloop
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from schemas.job import Sources
from tests.debian_package import unpacked
from tests.integration.certificates import Authority
from tests.integration.name_server import name_server
from tests.integration.raw_server import CLOCK, FACT, HTML, LOOPBACK, enriching, page, saying, speaking
from tests.loopback_server import LoopbackServer
from workers.egress import EgressPolicy, EgressRefused, EgressSettings, Guard, GuardedConnector, Proxy, Refusal
from workers.enrichment.fetching.fetch import NO_PUBLIC_NAME
from workers.enrichment.search.service import ServiceRequest, Web


class ProxyServer(LoopbackServer):
    """A context manager of a proxy. `user:password` are its credentials."""

    user, password = "fleet", "Pr0xy-s3cret"

    @property
    def asked(self) -> list[str]:
        """The request lines that the proxy has read, in order."""
        return re.findall(r"Request \(file descriptor \d+\): (.*) HTTP/1", self._log.read_text())

    def command(self) -> Sequence[str | Path]:
        """The command line, with a new configuration file."""
        lines = [
            f"Port {self.port}", "Listen 127.0.0.1", "Timeout 60", "Allow 127.0.0.1", "LogLevel Connect",
            f'LogFile "{self._log}"', f"BasicAuth {self.user} {self.password}",
        ]  # fmt: skip
        (self._folder / "tinyproxy.conf").write_text("\n".join(lines) + "\n")
        program = shutil.which("tinyproxy") or unpacked("tinyproxy-bin") / "usr" / "bin" / "tinyproxy"
        return [program, "-d", "-c", self._folder / "tinyproxy.conf"]

    @property
    def _log(self) -> Path:
        return self._folder / "tinyproxy.log"


DATA = Path(__file__).parents[1] / "unit" / "data"
VECTORS: dict[str, Any] = json.loads((DATA / "ssrf_vectors.json").read_text())
SPELLINGS: list[str] = json.loads((DATA / "url_spellings.json").read_text())["loopback"]

FIRST = EgressPolicy(allow=(ip_network("127.0.0.1/32"),))
"""A policy that allows 127.0.0.1 and no other loopback address; 127.0.0.2 plays the internal host."""


@dataclass
class Server:
    """A real HTTP server that counts connections and requests."""

    host: str
    port: int
    connections: list[Any] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    def url(self, host: str | None = None) -> str:
        return f"http://{host or self.host}:{self.port}/"


@asynccontextmanager
async def serving(host: str, port: int = 0, location: str | None = None) -> AsyncIterator[Server]:
    server = Server(host, port)

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        server.paths.append(request.path)
        if location is not None:
            return web.Response(status=302, headers={"Location": location})
        return web.Response(text=host)

    class Counting(web.Server):
        def __call__(self) -> Any:
            server.connections.append(1)
            return super().__call__()

    runner = web.ServerRunner(Counting(answer))
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    server.port = runner.addresses[0][1]
    try:
        yield server
    finally:
        await runner.cleanup()


class Names(AbstractResolver):
    """A resolver with given answers: each call takes the next list of addresses; the last one repeats."""

    def __init__(self, *answers: list[str]) -> None:
        self._answers = list(answers)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        addresses = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        kinds = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in addresses]
        return [
            ResolveResult(hostname=host, host=address, port=port, family=kind, proto=0, flags=socket.AI_NUMERICHOST)
            for address, kind in zip(addresses, kinds, strict=True)
        ]

    async def close(self) -> None:
        """Close nothing."""


async def refusal(guard: Guard, url: str) -> EgressRefused:
    async with guard.session() as session:
        with pytest.raises(EgressRefused) as refused:
            await session.get(url)
    return refused.value


async def test_an_allowed_literal_is_reached() -> None:
    async with serving("127.0.0.1") as server, Guard(FIRST).session() as session, session.get(server.url()) as answer:
        assert await answer.text() == "127.0.0.1"


async def test_no_spelling_of_a_loopback_address_reaches_a_server() -> None:
    """The resolver answers every name with the internal address, so only the guard stops the client."""
    async with serving("127.0.0.2") as server:
        policy = EgressPolicy(development=True, ports=frozenset({server.port}))
        async with Guard(policy, Names(["127.0.0.2"])).session() as session:
            for spelling in SPELLINGS:
                with pytest.raises((EgressRefused, aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError)):
                    await session.get(spelling.replace("{port}", str(server.port)))
        assert not server.connections


on_both_loops = pytest.mark.parametrize(
    "loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)
"""The test runs on both loops, because workers run uvloop, which has its own code to connect and to name peers."""
LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def run(scenario: Coroutine[Any, Any, None], loop_factory: LoopFactory) -> None:
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(scenario)


def literal(address: str) -> str:
    return f"[{address}]" if ":" in address else address


@pytest.mark.parametrize("address", VECTORS["allow"])
@on_both_loops
def test_an_address_of_the_allow_list_is_connected_to(
    loop_factory: LoopFactory, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call reaches the socket's connect with that address; a stub keeps packets on this machine."""
    asked = []

    async def connect(_: object, opened: socket.socket, target: tuple[Any, ...]) -> None:
        asked.append(target[0])
        raise ConnectionRefusedError

    async def scenario() -> None:
        monkeypatch.setattr(type(asyncio.get_running_loop()), "sock_connect", connect)
        async with Guard(EgressPolicy()).session() as session:
            with pytest.raises(aiohttp.ClientConnectorError):
                await session.get(f"https://{literal(address)}/")

    run(scenario(), loop_factory)
    assert [ip_address(target) for target in asked] == [ip_address(address)]


OURS = ["127.0.0.1", "127.0.0.2", "127.255.255.254", "::1"]
WAYS_TO_US = [*OURS, "::ffff:127.0.0.1", "::ffff:127.0.0.2", "0.0.0.0", "::", "::ffff:0.0.0.0"]
"""Addresses that lead to this machine; on Linux the unspecified addresses do too."""
EVERYTHING = EgressPolicy(allow=(ip_network("0.0.0.0/0"), ip_network("::/0")))


@on_both_loops
def test_no_address_of_this_machine_lets_a_connection_arrive(loop_factory: LoopFactory) -> None:
    """A listener on each address would see a connection that passes the guard."""

    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            servers = [await stack.enter_async_context(serving(OURS[0]))]
            port = servers[0].port
            servers += [await stack.enter_async_context(serving(address, port)) for address in OURS[1:]]
            policy = EgressPolicy(development=True, ports=frozenset({port}))
            for address in WAYS_TO_US:
                for host in (literal(address), "name.example"):
                    refused = await refusal(Guard(policy, Names([address])), f"http://{host}:{port}/")
                    assert refused.reason is Refusal.ADDRESS
            assert [server.connections for server in servers] == [[]] * len(OURS)
            for address in WAYS_TO_US:
                for host in (literal(address), "name.example"):
                    async with Guard(EVERYTHING, Names([address])).session() as session:
                        assert (await session.get(f"http://{host}:{port}/")).status == 200
            assert sum(len(server.connections) for server in servers) == 2 * len(WAYS_TO_US)
            assert all(server.connections for server in servers)

    run(scenario(), loop_factory)


DENYING = EgressPolicy(
    allow=(ip_network("127.0.0.0/8"),), names=frozenset({"vouched.example"}), deny=(ip_network("127.0.0.2/32"),)
)


@pytest.mark.parametrize("eyeballs", [None, 0.25])
@pytest.mark.parametrize(
    ("policy", "host", "reason"),
    [
        (FIRST, "name.example", Refusal.ADDRESS),
        (DENYING, "name.example", Refusal.DENIED),
        (DENYING, "vouched.example", Refusal.DENIED),
    ],
)
async def test_an_address_is_judged_on_the_socket_and_at_the_peer_too(
    policy: EgressPolicy, host: str, reason: Refusal, eyeballs: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second and the third line of defence, each alone: the resolver is not asked, and then the socket neither."""
    monkeypatch.setattr("workers.egress.connector.GuardedResolver.resolve", Names(["127.0.0.2"]).resolve)

    async def refused(url: str) -> Refusal:
        connector = GuardedConnector(policy, None, happy_eyeballs_delay=eyeballs)
        async with aiohttp.ClientSession(connector=connector) as session:
            with pytest.raises(EgressRefused) as caught:
                await session.get(url)
        return caught.value.reason

    async with serving("127.0.0.2") as server:
        assert (await refused(server.url(host)), server.connections) == (reason, [])
        monkeypatch.setattr(GuardedConnector, "open_socket", lambda _, info: socket.socket(*info[:3]))
        assert (await refused(server.url(host)), bool(server.connections), server.paths) == (reason, True, [])


async def test_a_redirect_followed_by_aiohttp_itself_is_checked_as_well() -> None:
    async with serving("127.0.0.2") as internal, serving("127.0.0.1", location=internal.url()) as server:
        refused = await refusal(Guard(FIRST), server.url())
        assert refused.origin == internal.url().rstrip("/")
        assert not internal.connections


@pytest.mark.parametrize("host", ["127.0.0.2", "[::ffff:127.0.0.2]", "name.example", "vouched.example"])
async def test_a_denied_address_is_never_connected_to_however_it_is_named_or_allowed(host: str) -> None:
    async with serving("127.0.0.2") as server:
        assert (await refusal(Guard(DENYING, Names(["127.0.0.2"])), server.url(host))).reason is Refusal.DENIED
        assert not server.connections


async def test_a_denied_name_is_not_even_resolved() -> None:
    names = Names([])
    policy = EgressPolicy(allow=(ip_network("127.0.0.0/8"),), denied_names=frozenset({"*.corp.example"}))
    async with serving("127.0.0.1") as server:
        assert (await refusal(Guard(policy, names), server.url("a.corp.example"))).reason is Refusal.DENIED
        assert not server.connections


async def test_an_address_beside_a_denied_one_is_reached() -> None:
    guard = Guard(DENYING, Names(["127.0.0.3"]))
    async with serving("127.0.0.3") as server, guard.session() as session:
        answer = await session.get(server.url("vouched.example"))
        assert await answer.text() == "127.0.0.3"


async def test_a_port_outside_the_list_is_refused_unless_the_address_is_allowed() -> None:
    async with serving("127.0.0.1") as server:
        open_to_all = EgressPolicy(development=True, ports=frozenset({80}))
        assert (await refusal(Guard(open_to_all), f"http://8.8.8.8:{server.port}/")).reason is Refusal.PORT
        elsewhere = EgressPolicy(allow=(ip_network("10.0.0.0/8"),), development=True)
        guard = Guard(elsewhere, Names(["8.8.8.8", "2001:4860:4860::8888"]))
        assert (await refusal(guard, server.url("name.example"))).reason is Refusal.PORT


async def test_proxies_are_not_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving("127.0.0.1") as proxy, serving("127.0.0.1") as server:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url())
        async with Guard(FIRST).session() as session, session.get(server.url()) as answer:
            assert answer.status == 200
        assert not proxy.connections


async def test_a_proxy_that_is_passed_in_is_refused() -> None:
    async with serving("127.0.0.1") as server, Guard(FIRST).session() as session:
        with pytest.raises(EgressRefused) as refused:
            await session.get(server.url(), proxy=server.url())
        assert refused.value.reason is Refusal.PROXY
        assert not server.connections


async def test_many_requests_share_checked_connections() -> None:
    async with serving("127.0.0.1") as server, Guard(FIRST).session() as session:
        for _ in range(5):
            async with session.get(server.url()) as answer:
                await answer.read()
        assert len(server.connections) == 1
        assert len(server.paths) == 5


@pytest.mark.parametrize(
    "scenario",
    [
        test_an_allowed_literal_is_reached,
        test_a_redirect_followed_by_aiohttp_itself_is_checked_as_well,
    ],
)
def test_the_guard_holds_on_the_loop_that_workers_run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    run(scenario(), uvloop.new_event_loop)


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
