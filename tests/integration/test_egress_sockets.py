"""The guard on real sockets: its connections, and the requests that servers see."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
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

from workers.egress import EgressPolicy, EgressRefused, Guard, GuardedConnector, Refusal

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


@pytest.mark.parametrize("host", ["127.0.0.2", "[::ffff:127.0.0.2]", "localhost.", "2130706434", "0x7f000002", "127.2"])
async def test_a_refused_host_sees_no_connection(host: str) -> None:
    policy = EgressPolicy(development=True, ports=frozenset(range(65536)))
    async with serving("127.0.0.2") as server:
        await refusal(Guard(policy), server.url(host))
        assert not server.connections


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


@pytest.mark.parametrize("address", VECTORS["deny"])
@on_both_loops
def test_an_address_of_the_deny_list_opens_no_socket(
    loop_factory: LoopFactory, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each address is tried as a literal, and as a name's answer."""

    async def connect(*_: object) -> None:
        raise AssertionError("it was connected to")

    async def scenario() -> None:
        monkeypatch.setattr(type(asyncio.get_running_loop()), "sock_connect", connect)
        guard = Guard(EgressPolicy(), Names([address]))
        for url in (f"https://{literal(address)}/", "https://name.example/"):
            assert (await refusal(guard, url)).reason is Refusal.ADDRESS

    run(scenario(), loop_factory)


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


async def test_a_name_of_a_refused_address_sees_no_connection() -> None:
    async with serving("127.0.0.2") as server:
        refused = await refusal(Guard(FIRST, Names(["127.0.0.2"])), server.url("internal.example"))
        assert refused.reason is Refusal.ADDRESS
        assert str(refused) == f"http://internal.example:{server.port}: {Refusal.ADDRESS}"
        assert not server.connections


@pytest.mark.parametrize("addresses", [["127.0.0.1", "127.0.0.2"], ["127.0.0.2", "127.0.0.1"], ["127.0.0.1", "::1"]])
async def test_a_name_that_mixes_allowed_and_refused_addresses_is_refused_wholly(addresses: list[str]) -> None:
    async with serving("127.0.0.1") as server:
        await refusal(Guard(FIRST, Names(addresses)), server.url("mixed.example"))
        assert not server.connections


async def test_a_name_that_resolves_differently_the_second_time_is_refused_then() -> None:
    """DNS rebinding: the second connection resolves the name again, and the guard judges that answer."""
    guard = Guard(FIRST, Names(["127.0.0.1"], ["127.0.0.2"]))
    connector = GuardedConnector(guard.policy, guard.resolver, force_close=True, use_dns_cache=False)
    async with serving("127.0.0.1") as allowed, serving("127.0.0.2", allowed.port) as internal:
        url = allowed.url("rebind.example")
        async with aiohttp.ClientSession(connector=connector) as session:
            async with session.get(url) as answer:
                assert await answer.text() == "127.0.0.1"
            with pytest.raises(EgressRefused):
                await session.get(url)
        assert not internal.connections


@pytest.mark.parametrize("eyeballs", [None, 0.25])
async def test_the_socket_itself_is_checked_when_the_resolver_is_not_asked(
    eyeballs: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second line of defence alone: the guard judges each address that aiohttp connects to, from any source."""
    monkeypatch.setattr("workers.egress.connector.GuardedResolver.resolve", Names(["127.0.0.2"]).resolve)
    async with serving("127.0.0.2") as server:
        connector = GuardedConnector(FIRST, None, happy_eyeballs_delay=eyeballs)
        async with aiohttp.ClientSession(connector=connector) as session:
            with pytest.raises(EgressRefused):
                await session.get(server.url("name.example"))
        assert not server.connections


async def test_the_peer_is_checked_after_connecting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The third line of defence alone: a connection to a forbidden peer is closed before anything is sent."""
    monkeypatch.setattr("workers.egress.connector.GuardedResolver.resolve", Names(["127.0.0.2"]).resolve)
    monkeypatch.setattr(GuardedConnector, "open_socket", lambda _, info: socket.socket(*info[:3]))
    async with serving("127.0.0.2") as server:
        await refusal(Guard(FIRST), server.url("name.example"))
        assert server.connections
        assert not server.paths


async def test_a_redirect_followed_by_aiohttp_itself_is_checked_as_well() -> None:
    async with serving("127.0.0.2") as internal, serving("127.0.0.1", location=internal.url()) as server:
        refused = await refusal(Guard(FIRST), server.url())
        assert refused.origin == internal.url().rstrip("/")
        assert not internal.connections


DENYING = EgressPolicy(
    allow=(ip_network("127.0.0.0/8"),), names=frozenset({"vouched.example"}), deny=(ip_network("127.0.0.2/32"),)
)


@pytest.mark.parametrize("host", ["127.0.0.2", "[::ffff:127.0.0.2]", "name.example", "vouched.example"])
async def test_a_denied_address_is_never_connected_to_however_it_is_named_or_allowed(host: str) -> None:
    async with serving("127.0.0.2") as server:
        assert (await refusal(Guard(DENYING, Names(["127.0.0.2"])), server.url(host))).reason is Refusal.DENIED
        assert not server.connections


@pytest.mark.parametrize("host", ["name.example", "vouched.example"])
async def test_a_denied_address_is_seen_on_the_socket_and_at_the_peer(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second and the third line of defence, each alone."""
    monkeypatch.setattr("workers.egress.connector.GuardedResolver.resolve", Names(["127.0.0.2"]).resolve)
    async with serving("127.0.0.2") as server:
        assert (await refusal(Guard(DENYING), server.url(host))).reason is Refusal.DENIED
        assert not server.connections
        monkeypatch.setattr(GuardedConnector, "open_socket", lambda _, info: socket.socket(*info[:3]))
        assert (await refusal(Guard(DENYING), server.url(host))).reason is Refusal.DENIED
        assert server.connections
        assert not server.paths


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
        test_a_name_of_a_refused_address_sees_no_connection,
        test_a_name_that_resolves_differently_the_second_time_is_refused_then,
        test_a_redirect_followed_by_aiohttp_itself_is_checked_as_well,
    ],
)
def test_the_guard_holds_on_the_loop_that_workers_run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    run(scenario(), uvloop.new_event_loop)
