"""One attempt at a URL with a name: the name's resolution, and the addresses and URLs that are refused."""

from __future__ import annotations

import socket

import pytest

from telemetry.clock import SystemClock
from tests.integration.one_attempt import LOOPBACK, OK, Start, always, failure, on_both_loops, post, post_by_name
from tests.open_files import no_files_left
from workers.delivery.exhaustion import Exhausted
from workers.delivery.post import Delivered, FailedDelivery, FailureReason, Poster
from workers.delivery.settings import DeliverySettings
from workers.egress import EgressPolicy


@on_both_loops
async def test_a_process_without_free_file_descriptors_makes_no_attempt_and_counts_no_failure(
    start: Start, poster: Poster
) -> None:
    server = await start(always(OK))
    by_name = server.url.replace("127.0.0.1", "hooks.example")
    with no_files_left():
        for url in (server.url, by_name):
            with pytest.raises(Exhausted):
                await post(poster, url)
    assert server.connections == 0
    assert isinstance(await post(poster, server.url), Delivered)


@on_both_loops
async def test_a_name_that_does_not_resolve_is_a_failure_of_dns() -> None:
    outcome = await post_by_name(socket.gaierror(socket.EAI_NONAME, "Name or service not known"), LOOPBACK, 80)
    assert failure(outcome) == (FailureReason.DNS_FAILED, None)


@on_both_loops
async def test_a_name_server_that_never_answers_is_cut_off_at_the_deadline() -> None:
    assert failure(await post_by_name(None, LOOPBACK, 80)) == (FailureReason.TIMEOUT, None)


@on_both_loops
async def test_a_name_that_leads_to_a_private_address_is_refused_without_a_connection(start: Start) -> None:
    server = await start(always(OK))
    outcome = await post_by_name(
        "127.0.0.1", EgressPolicy(development=True, ports=frozenset({server.port})), server.port
    )
    assert failure(outcome) == (FailureReason.ADDRESS_REFUSED, None)
    assert server.connections == 0


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:{port}/", "http://localhost:{port}/", "http://u:p@example.com/", "http://example.com:22/",
     "http://[::1]:{port}/", "http://2130706433:{port}/", "ftp://example.com/", "not a url", "http://", "http://\x00/"],
)  # fmt: skip
@on_both_loops
async def test_a_url_that_must_not_be_called_is_refused_for_good(start: Start, url: str) -> None:
    server = await start(always(OK))
    poster = Poster(
        DeliverySettings(), EgressPolicy(development=True, ports=frozenset({server.port, 80})), SystemClock()
    )
    outcome = await post(poster, url.format(port=server.port))
    await poster.close()
    assert failure(outcome) == (FailureReason.REFUSED, None)
    assert isinstance(outcome, FailedDelivery)
    assert outcome.detail is not None
    assert url not in outcome.detail
    assert server.connections == 0


@pytest.mark.parametrize("host", ["a..example", f"{'a' * 64}.example"])
@pytest.mark.parametrize("scheme", ["http", "https"])
@on_both_loops
async def test_a_host_that_cannot_be_a_name_is_refused_whatever_a_resolver_says(
    start: Start, scheme: str, host: str
) -> None:
    server = await start(always(OK))
    outcome = await post_by_name("127.0.0.1", LOOPBACK, server.port, f"{scheme}://{host}")
    assert failure(outcome) == (FailureReason.REFUSED, None)
    assert server.connections == 0
