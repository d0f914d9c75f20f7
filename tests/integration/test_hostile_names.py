"""Names under a hostile name server: the guard judges its last answer, and its silence delays no other lookup."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_network
from time import monotonic

import aiohttp
import pytest
import uvloop
from aiohttp.resolver import AsyncResolver, DefaultResolver
from yarl import URL

from schemas.job import Sources
from telemetry.clock import Clock, SystemClock
from tests.integration.name_server import NameServer, name_server
from tests.integration.raw_server import HTML, page, reading_here, saying, speaking
from tests.integration.test_egress_sockets import FIRST, VECTORS, Server, serving
from workers.delivery.post import Delivered, FailedDelivery, FailureReason, Poster, PostOutcome
from workers.delivery.settings import DeliverySettings
from workers.egress import EgressPolicy, EgressRefused, Guard, GuardedConnector, Refusal, check_url
from workers.enrichment.fetching.fetch import NO_PUBLIC_NAME

PUBLIC = "93.184.215.14"
NAME = "rebind.example"


@asynccontextmanager
async def poster(
    policy: EgressPolicy, names: NameServer, deadline_seconds: float = 20.0, clock: Clock | None = None
) -> AsyncIterator[Poster]:
    resolver, settings = names.resolver(), DeliverySettings(deadline_seconds=deadline_seconds)
    poster = Poster(settings, policy, clock or SystemClock(), resolver=resolver)
    try:
        yield poster
    finally:
        await poster.close()
        await resolver.close()


async def post(poster: Poster, url: str) -> PostOutcome:
    return await poster.post(url, b"{}", {}, "acme")


async def refused(names: NameServer, policy: EgressPolicy, url: str) -> Refusal:
    """The guard's reason for refusing the URL, with a session that has no DNS cache."""
    resolver = names.resolver()
    connector = GuardedConnector(policy, resolver, use_dns_cache=False)
    async with aiohttp.ClientSession(connector=connector) as session:
        with pytest.raises(EgressRefused) as refusal:
            await session.get(url)
    await resolver.close()
    return refusal.value.reason


def open_port(server: Server) -> EgressPolicy:
    """A policy that allows only public addresses, on the port of a server that plays an internal one."""
    return EgressPolicy(development=True, ports=frozenset({server.port}))


async def test_a_name_that_is_public_at_first_and_loopback_then_is_refused_on_the_socket() -> None:
    """127.0.0.1 is allowed here and plays the public address; 127.0.0.2 plays the attacked internal host."""
    async with (
        name_server({NAME: [["127.0.0.1"], ["127.0.0.2"]]}) as names,
        serving("127.0.0.1") as public,
        serving("127.0.0.2", public.port) as internal,
    ):
        resolver = names.resolver()
        connector = GuardedConnector(FIRST, resolver, force_close=True, use_dns_cache=False)
        async with aiohttp.ClientSession(connector=connector) as session:
            async with session.get(public.url(NAME)) as answer:
                assert await answer.text() == "127.0.0.1"
            with pytest.raises(EgressRefused) as refusal:
                await session.get(public.url(NAME))
        await resolver.close()
        assert refusal.value.reason is Refusal.ADDRESS
        assert (names.asked[NAME], internal.connections) == (2, [])


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_callback_to_a_name_that_turns_private_is_refused_once_its_old_address_is_forgotten(
    loop_factory: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Delivery caches names for a while: it calls the old address until the cache ends, and then judges the new one."""
    passed = 0.0

    class Later(SystemClock):
        """The clock of the connections; aiohttp's own clock is that of the cached names."""

        monotonic = staticmethod(lambda: monotonic() + passed)

    monkeypatch.setattr("aiohttp.connector.monotonic", Later.monotonic)

    async def scenario() -> None:
        nonlocal passed
        async with (
            name_server({NAME: [["127.0.0.1"], ["127.0.0.2"]]}) as names,
            serving("127.0.0.1") as public,
            serving("127.0.0.2", public.port) as internal,
            poster(FIRST, names, clock=Later()) as sender,
        ):
            keep_alive = DeliverySettings().keep_alive_seconds
            assert isinstance(await post(sender, public.url(NAME)), Delivered)
            passed += keep_alive + 1
            assert isinstance(await post(sender, public.url(NAME)), Delivered)
            assert (names.asked[NAME], len(public.connections)) == (1, 2)
            for asked in (2, 3):
                passed += 60
                outcome = await post(sender, public.url(NAME))
                assert isinstance(outcome, FailedDelivery)
                assert (outcome.reason, names.asked[NAME]) == (FailureReason.ADDRESS_REFUSED, asked)
            assert (len(public.connections), internal.connections) == (2, [])

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(scenario())


async def test_a_callback_to_a_name_with_a_forbidden_address_fails_unconnected_until_the_address_is_right_again() -> (
    None
):
    answers = {NAME: [["127.0.0.2"], ["127.0.0.2", "127.0.0.1"], ["127.0.0.1"]]}
    async with (
        name_server(answers) as names,
        serving("127.0.0.1") as consumer,
        serving("127.0.0.2", consumer.port) as internal,
        poster(FIRST, names) as sender,
    ):
        for _ in range(2):
            outcome = await post(sender, consumer.url(NAME))
            assert isinstance(outcome, FailedDelivery)
            assert (outcome.reason, outcome.detail) == (FailureReason.ADDRESS_REFUSED, str(Refusal.ADDRESS))
            assert consumer.connections == []
        assert isinstance(await post(sender, consumer.url(NAME)), Delivered)
        assert internal.connections == []


[NAME_OF_AN_ADDRESS] = [url.split()[0] for url in VECTORS["urls_deny"] if ".nip.io/" in url]
"""A public name that resolves to the address that the name contains."""


@pytest.mark.parametrize("seen", ["in the answer", "on the socket"])
@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("url", [NAME_OF_AN_ADDRESS, "http://127.0.0.2.nip.io/"])
async def test_a_name_made_of_a_private_address_is_refused_for_where_it_leads(
    url: str, scheme: str, seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guard refuses the name server's answer; if that answer is let through, the guard refuses at the socket."""
    name = URL(url).host or ""
    async with name_server({name: [[name.removesuffix(".nip.io")]]}) as names, serving("127.0.0.2") as internal:
        policy = open_port(internal)
        called = URL(url).with_scheme(scheme).with_port(internal.port)
        assert check_url(called, policy)  # a check of the URL's text alone allows it
        answers = names.resolver()
        if seen == "on the socket":
            monkeypatch.setattr("workers.egress.connector.GuardedResolver.resolve", answers.resolve)
        assert await refused(names, policy, str(called)) is Refusal.ADDRESS
        async with poster(policy, names) as sender:
            outcome = await post(sender, str(called))
        await answers.close()
        assert isinstance(outcome, FailedDelivery)
        assert outcome.reason is FailureReason.ADDRESS_REFUSED
        assert (names.asked[name], internal.connections) == (2, [])


@pytest.mark.parametrize(
    "addresses",
    [
        [PUBLIC, "127.0.0.2"],
        ["127.0.0.2", PUBLIC],
        [PUBLIC, "::1"],
        ["2606:4700::1", "127.0.0.2"],
        [PUBLIC, "10.0.0.1"],
    ],
)
async def test_a_name_that_mixes_public_and_private_addresses_is_refused_wholly(addresses: list[str]) -> None:
    async with name_server({NAME: [addresses]}) as names, serving("127.0.0.2") as internal:
        assert await refused(names, open_port(internal), internal.url(NAME)) is Refusal.ADDRESS
        assert not internal.connections


async def test_an_allowed_network_does_not_admit_a_name_with_mixed_addresses() -> None:
    async with name_server({NAME: [[PUBLIC, "127.0.0.1"]]}) as names, serving("127.0.0.1") as server:
        policy = EgressPolicy(allow=FIRST.allow, development=True, ports=frozenset({server.port}))
        assert await refused(names, policy, server.url(NAME)) is Refusal.MIXED
        assert not server.connections


async def test_a_listed_name_is_reached_wherever_it_leads_and_no_other_name_is() -> None:
    answers = {"hooks.corp.example": [["127.0.0.2"]], "other.example": [["127.0.0.2"]]}
    policy = EgressPolicy(names=frozenset({"hooks.corp.example"}))
    async with name_server(answers) as names, serving("127.0.0.2") as internal, poster(policy, names) as sender:
        outcome = await post(sender, internal.url("HOOKS.corp.example"))
        assert isinstance(outcome, Delivered), outcome
        assert await refused(names, policy, internal.url("other.example")) is Refusal.SCHEME
        assert await refused(names, policy, internal.url("127.0.0.2")) is Refusal.ADDRESS
        https = EgressPolicy(names=policy.names, development=True, ports=frozenset({internal.port}))
        assert await refused(names, https, internal.url("other.example")) is Refusal.ADDRESS
        assert len(internal.connections) == 1


async def test_two_guards_in_one_task_do_not_share_their_names() -> None:
    """A name that one guard lists may be called through that guard only, even by the same task."""
    listed = EgressPolicy(names=frozenset({NAME}))
    async with name_server({NAME: [["127.0.0.2"]]}) as names, serving("127.0.0.2") as internal:
        async with poster(listed, names) as sender:
            assert isinstance(await post(sender, internal.url(NAME)), Delivered)
        assert await refused(names, open_port(internal), internal.url(NAME)) is Refusal.ADDRESS
        assert len(internal.connections) == 1


async def test_name_servers_that_never_answer_delay_no_other_lookup() -> None:
    """With a thread for each lookup, a few such names would take all threads."""
    assert DefaultResolver is AsyncResolver
    async with (
        name_server({"healthy.example": [["127.0.0.1"]]}) as names,
        serving("127.0.0.1") as server,
        poster(FIRST, names) as sender,
    ):
        urls = [f"http://a{number}.hung.example:{server.port}/" for number in range(200)]
        hung = [asyncio.ensure_future(post(sender, url)) for url in urls]
        while len(names.asked) < len(urls):
            await asyncio.sleep(0.01)
        assert isinstance(await post(sender, server.url("healthy.example")), Delivered)
        assert not any(attempt.done() for attempt in hung)
        for attempt in hung:
            attempt.cancel()
        await asyncio.gather(*hung, return_exceptions=True)


@pytest.mark.parametrize(
    ("name", "deadline_seconds", "reason"),
    [("nobody.example", 20.0, FailureReason.DNS_FAILED), ("a.hung.example", 0.3, FailureReason.TIMEOUT)],
)
async def test_a_name_that_does_not_resolve_by_the_deadline_is_a_failure(
    name: str, deadline_seconds: float, reason: FailureReason
) -> None:
    async with name_server({}) as names, poster(FIRST, names, deadline_seconds) as sender:
        outcome = await post(sender, f"http://{name}/")
    assert isinstance(outcome, FailedDelivery)
    assert outcome.reason is reason


def test_rebinding_is_refused_on_the_loop_that_workers_run() -> None:
    """uvloop has its own implementation of sockets and datagrams."""
    uvloop.run(test_a_name_that_is_public_at_first_and_loopback_then_is_refused_on_the_socket())


# -- names that no job may learn -----------------------------------------------------------------------------------

ANSWERS = {
    "private.example": [["10.1.2.3"]],
    "metadata.example": [["169.254.169.254"]],
    "loopback6.example": [["::1"]],
    "mixed.example": [["1.1.1.1", "10.1.2.3"]],
    "denied.example": [["9.9.9.9"]],
}
NAMES = [*ANSWERS, "missing.example"]
POLICY = EgressPolicy(allow=(ip_network("127.0.0.0/8"),), deny=(ip_network("9.9.9.9/32"),))


@pytest.mark.parametrize("robots", [False, True], ids=["without robots.txt", "with robots.txt"])
@pytest.mark.parametrize("redirected", [False, True], ids=["named by the job", "named by a redirect"])
async def test_a_name_that_is_missing_and_one_that_is_not_public_get_the_same_note(
    robots: bool, redirected: bool
) -> None:
    notes: set[str] = set()
    async with name_server(ANSWERS) as names, reading_here(Guard(POLICY, names.resolver()), robots=robots) as enricher:
        for name in NAMES:
            script = saying(page(), HTML, f"Location: http://{name}/x", status="302 Found")
            async with speaking(script, robots=b"") as origin:
                url = f"{origin}/" if redirected else f"http://{name}/"
                evidence = await enricher.enrich(Sources(urls=[url, url + "?again"]), "Why?")
            assert evidence.sources == ()
            notes |= {note.replace(name, "NAME").replace(origin, "ORIGIN") for note in evidence.notes}
    assert len(notes) == 2  # one note for the first source, and one for the second
    assert all(NO_PUBLIC_NAME in note for note in notes)


async def test_missing_and_forbidden_names_are_cached_equally_long() -> None:
    async with name_server(ANSWERS) as names, reading_here(Guard(POLICY, names.resolver())) as enricher:
        by_ipv4 = [name for name in NAMES if name != "loopback6.example"]
        for name in by_ipv4:
            for _ in range(2):
                await enricher.enrich(Sources(urls=[f"http://{name}/"]), "Why?")
        assert {name: names.asked[name] for name in by_ipv4} == dict.fromkeys(by_ipv4, 2)


async def test_the_log_distinguishes_missing_and_forbidden_names(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with name_server(ANSWERS) as names, reading_here(Guard(POLICY, names.resolver())) as enricher:
        await enricher.enrich(Sources(urls=[f"http://{name}/secret?token=7" for name in NAMES]), "Why?")
    lines = [one for one in map(str, (record.msg for record in caplog.records)) if "source-name-refused" in one]
    reasons = {"missing": "no such name", "denied": "the operator denies it", "private": "the address is not public"}
    for name, reason in reasons.items():
        assert [reason in line for line in lines if f"http://{name}.example" in line] == [True]
    assert not any("secret" in line or "token" in line for line in lines)
