"""A callback's connection: kept, closed by either side, and never used twice for one POST."""

from __future__ import annotations

import asyncio
import socket

import pytest

from telemetry.clock import SystemClock
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
    post_by_name,
    status,
)
from workers.delivery.post import Delivered, FailureReason, Poster
from workers.delivery.settings import DeliverySettings


@on_both_loops
async def test_a_connection_is_kept_warm_for_the_next_callback(start: Start, poster: Poster) -> None:
    server = await start(always(OK))
    for _ in range(3):
        assert isinstance(await post(poster, server.url), Delivered)
    assert (len(server.requests), server.connections) == (3, 1)


@on_both_loops
async def test_a_connection_stays_warm_after_a_failure_with_a_body(start: Start, poster: Poster) -> None:
    server = await start(always(b"HTTP/1.1 500 No\r\ncontent-length: 60000\r\n\r\n" + bytes(60000)))
    for _ in range(2):
        assert failure(await post(poster, server.url)) == (FailureReason.SERVER_ERROR, 500)
    assert server.connections == 1


@on_both_loops
async def test_a_connection_closed_after_the_request_was_read_is_not_posted_to_again(
    start: Start, poster: Poster
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        if peer.number == 1:
            await peer.send(OK)
            await peer.request()

    server = await start(script)
    assert isinstance(await post(poster, server.url), Delivered)
    # This is the keep-alive race: the request goes out on the warm connection, which the server closes without an
    # answer.
    assert failure(await post(poster, server.url)) == (FailureReason.CONNECTION_CLOSED, None)
    assert (len(server.requests), server.connections) == (2, 1)


@pytest.mark.parametrize("reset", [False, True])
@on_both_loops
async def test_a_fresh_connection_closed_without_an_answer_is_not_posted_to_again(
    start: Start, poster: Poster, reset: bool
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        if reset:
            peer.reset()

    server = await start(script)
    assert failure(await post(poster, server.url)) == (FailureReason.CONNECTION_CLOSED, None)
    assert len(server.requests) == 1


@pytest.mark.parametrize("scheme", ["http", "https"])
@on_both_loops
async def test_after_a_reset_before_the_request_was_read_no_second_connection_is_made(
    start: Start, poster: Poster, scheme: str
) -> None:
    async def script(peer: Peer) -> None:
        peer.reset()

    server = await start(script)
    reason, _ = failure(await post(poster, server.url.replace("http", scheme)))
    # The reset may arrive before the client knows that it is connected.
    assert reason in (FailureReason.CONNECT_FAILED, FailureReason.CONNECTION_CLOSED)
    assert (server.connections, server.requests) == (1, [])


@on_both_loops
async def test_a_callback_that_one_address_of_a_name_took_is_not_posted_to_the_other(start: Start) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        peer.reset()

    server = await start(script)
    other = await asyncio.start_server(server.serve, "127.0.0.2", server.port)
    outcome = await post_by_name(("127.0.0.1", "127.0.0.2"), LOOPBACK, server.port)
    other.close()
    assert failure(outcome) == (FailureReason.CONNECTION_CLOSED, None)
    assert (server.connections, len(server.requests)) == (1, 1)


@on_both_loops
async def test_an_idle_connection_that_the_server_closed_is_not_used_again(start: Start, poster: Poster) -> None:
    closed = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        peer.writer.close()
        await peer.writer.wait_closed()
        closed.set()

    server = await start(script)
    assert isinstance(await post(poster, server.url), Delivered)
    await closed.wait()
    await asyncio.sleep(0.05)  # lets the client's loop, which is this one, notice that the connection is closed
    assert isinstance(await post(poster, server.url), Delivered)
    assert (len(server.requests), server.connections) == (2, 2)


def keeping(seconds: float) -> Poster:
    return Poster(DeliverySettings(keep_alive_seconds=seconds), LOOPBACK, SystemClock())


@pytest.mark.parametrize(("kept_seconds", "connections"), [(60.0, 1), (0.1, 2)])
@on_both_loops
async def test_a_connection_is_kept_for_as_long_as_the_settings_say(
    start: Start, kept_seconds: float, connections: int
) -> None:
    server, poster = await start(always(OK)), keeping(kept_seconds)
    assert isinstance(await post(poster, server.url), Delivered)
    await asyncio.sleep(0.2)
    assert isinstance(await post(poster, server.url), Delivered)
    await poster.close()
    assert (len(server.requests), server.connections) == (2, connections)


@on_both_loops
async def test_an_idle_connection_is_closed_from_our_side_without_another_callback(start: Start) -> None:
    closed = asyncio.Event()

    async def script(peer: Peer) -> None:
        await always(OK)(peer)
        closed.set()

    server, poster = await start(script), keeping(0.1)
    assert isinstance(await post(poster, server.url), Delivered)
    async with asyncio.timeout(10):  # aiohttp itself waits 15 s, so the poster's setting closed the connection
        await closed.wait()
    await poster.close()


@pytest.mark.parametrize("shorter", [True, False], ids=["shorter", "longer"])
@on_both_loops
async def test_no_callback_meets_a_server_that_closes_idle_connections_later_than_we_do(
    start: Start, shorter: bool
) -> None:
    """The callback comes just as the server closes; it is lost if we keep connections longer than the server."""
    answered, closing = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        if peer.number == 1:
            await answered.wait()
            await asyncio.sleep(0.2)
            peer.transport.pause_reading()
            closing.set()

    server, poster = await start(script), keeping(0.1 if shorter else 60.0)
    assert isinstance(await post(poster, server.url), Delivered)
    answered.set()
    await closing.wait()
    outcome = await post(poster, server.url)
    await poster.close()
    if shorter:
        assert isinstance(outcome, Delivered)
        assert (len(server.requests), server.connections) == (2, 2)
    else:
        assert failure(outcome) == (FailureReason.CONNECTION_CLOSED, None)
        assert (len(server.requests), server.connections) == (1, 1)


@on_both_loops
async def test_cancelling_an_attempt_closes_its_connection(start: Start, poster: Poster) -> None:
    received, left = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        received.set()
        await peer.reader.read()
        left.set()

    attempt = asyncio.ensure_future(post(poster, (await start(script)).url))
    await received.wait()
    attempt.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attempt
    await left.wait()


@on_both_loops
async def test_an_answer_before_the_request_was_taken_ends_the_connection(start: Start, poster: Poster) -> None:
    """If the connection were kept, the rest of a large body would block the next callback, perhaps for ever."""

    async def script(peer: Peer) -> None:
        if peer.number > 1:
            await always(OK)(peer)
        else:
            peer.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await peer.reader.readuntil(b"\r\n\r\n")
            await peer.send(status(413))
            peer.transport.pause_reading()
            await asyncio.Event().wait()

    server = await start(script)
    outcome = await poster.post(server.url, bytes(16 * 1024 * 1024), HEADERS, TENANT)
    assert failure(outcome) == (FailureReason.CLIENT_ERROR, 413)
    assert isinstance(await post(poster, server.url), Delivered)
    assert server.connections == 2


@pytest.mark.parametrize(
    "unasked",
    [OK, status(408, "connection: close"), OK[:20], b"\r\n"],
    ids=["200", "408", "half-a-head", "an-empty-line"],
)
@on_both_loops
async def test_unasked_bytes_on_an_idle_connection_are_no_answer_to_the_next_callback(
    start: Start, poster: Poster, unasked: bytes
) -> None:
    said = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK if peer.number == 1 else status(503))
        await asyncio.sleep(0.05)  # waits until the answer is read, since bytes in the same read are another case
        await peer.send(unasked)
        said.set()
        await peer.request()

    server = await start(script)
    assert isinstance(await post(poster, server.url), Delivered)
    await said.wait()
    await asyncio.sleep(0.05)  # lets the client's loop, which is this one, see the bytes
    assert failure(await post(poster, server.url)) == (FailureReason.SERVER_ERROR, 503)
    assert (len(server.requests), server.connections) == (2, 2)


@on_both_loops
async def test_a_second_answer_to_one_callback_does_not_answer_the_next_one(start: Start, poster: Poster) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK + OK if peer.number == 1 else status(503))
        await peer.request()

    server = await start(script)
    assert isinstance(await post(poster, server.url), Delivered)
    assert failure(await post(poster, server.url)) == (FailureReason.SERVER_ERROR, 503)
    assert server.connections == 2


@on_both_loops
async def test_a_server_that_speaks_before_the_request_is_a_bad_response(start: Start, poster: Poster) -> None:
    async def script(peer: Peer) -> None:
        await peer.send(b"SSH-2.0-OpenSSH_9.6\r\n")
        await peer.request()

    assert failure(await post(poster, (await start(script)).url)) == (FailureReason.BAD_RESPONSE, None)
