"""One attempt at servers that are slow, endless, broken or absent: each ends by the deadline."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from tests.integration.one_attempt import HEADERS, OK, TENANT, Peer, Start, always, failure, on_both_loops, post, status
from workers.delivery.post import Delivered, FailedDelivery, FailureReason, Poster


@on_both_loops
async def test_headers_that_never_come_are_cut_off_at_the_deadline(start: Start, hasty: Poster) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await asyncio.Event().wait()

    server = await start(script)
    assert failure(await post(hasty, server.url)) == (FailureReason.TIMEOUT, None)
    assert len(server.requests) == 1


@on_both_loops
async def test_headers_that_drip_are_cut_off_at_the_deadline(start: Start, hasty: Poster) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nx-slow: ")
        while True:
            await peer.send(b"a")
            await asyncio.sleep(0.02)

    assert failure(await post(hasty, (await start(script)).url)) == (FailureReason.TIMEOUT, None)


@pytest.mark.parametrize("code", [100, 102, 103, 199])
@on_both_loops
async def test_an_interim_response_is_not_the_answer(start: Start, poster: Poster, code: int) -> None:
    interim = f"HTTP/1.1 {code} Wait\r\nx: y\r\n\r\n".encode()
    server = await start(always(interim + interim + status(503, "retry-after: 7")))
    outcome = await post(poster, server.url)
    assert failure(outcome) == (FailureReason.SERVER_ERROR, 503)
    assert isinstance(outcome, FailedDelivery)
    assert outcome.retry_after_seconds == 7
    other = await start(always(interim + OK))
    assert isinstance(await post(poster, other.url), Delivered)


@on_both_loops
async def test_endless_interim_responses_are_cut_off_at_the_deadline(start: Start, hasty: Poster) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        while True:
            await peer.send(b"HTTP/1.1 103 Early Hints\r\n\r\n")
            await asyncio.sleep(0.05)

    assert failure(await post(hasty, (await start(script)).url)) == (FailureReason.TIMEOUT, None)


@on_both_loops
async def test_a_body_that_drips_is_cut_off_at_the_same_deadline(start: Start, unhurried: Poster) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
        while True:
            await peer.send(b"a")
            await asyncio.sleep(0.02)

    server = await start(script)
    assert failure(await post(unhurried, server.url)) == (FailureReason.TIMEOUT, 200)
    # A body that was cut off does not block the next callback either.
    server.script = always(OK)
    assert isinstance(await post(unhurried, server.url), Delivered)
    assert server.connections == 2


@pytest.mark.parametrize("framing", [b"transfer-encoding: chunked", b"content-length: 99999999999", b"x-until: close"])
@on_both_loops
async def test_an_endless_body_is_cut_off_and_the_callback_stays_delivered(
    start: Start, poster: Poster, framing: bytes
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n")
        while True:
            data = bytes(4096)
            await peer.send(b"1000\r\n" + data + b"\r\n" if b"chunked" in framing else data)

    server = await start(script)
    assert isinstance(await post(poster, server.url), Delivered)
    await server.client_left.wait()
    server.script = always(OK)
    assert isinstance(await post(poster, server.url), Delivered)
    assert server.connections == 2


@on_both_loops
async def test_a_body_that_ends_early_is_a_failure(start: Start, poster: Poster) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc")

    assert failure(await post(poster, (await start(script)).url)) == (FailureReason.BAD_RESPONSE, 200)


@on_both_loops
async def test_a_compressed_body_is_never_unpacked(start: Start, poster: Poster) -> None:
    # Unpacking these bytes, which are no gzip, would raise an error; unpacking a real bomb would fill the memory.
    answer = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 4\r\n\r\nbomb"
    assert isinstance(await post(poster, (await start(always(answer))).url), Delivered)


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 100_000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 1_000_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nnot-a-size\r\n",
    ],
    ids=["ssh", "no-status", "many-headers", "large-header", "bad-chunk"],
)
@on_both_loops
async def test_an_answer_that_is_not_http_is_a_failure(start: Start, poster: Poster, answer: bytes) -> None:
    server = await start(always(answer))
    assert failure(await post(poster, server.url))[0] is FailureReason.BAD_RESPONSE
    assert len(server.requests) == 1


@on_both_loops
async def test_a_closed_port_is_a_failed_connect(poster: Poster) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        assert failure(await post(poster, url)) == (FailureReason.CONNECT_FAILED, None)


@contextmanager
def full_port() -> Iterator[int]:
    """A port whose backlog is full, so that each further SYN is dropped. Fails if a further connection is accepted."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        waiting = []
        with suppress(TimeoutError):
            while True:
                client = stack.enter_context(socket.socket())
                client.settimeout(0.2)
                client.connect(listener.getsockname())
                waiting.append(client.getsockname())
        yield listener.getsockname()[1]
        listener.setblocking(False)
        let_in = []
        with suppress(BlockingIOError):
            while True:
                connection, peer = listener.accept()
                stack.enter_context(connection)
                let_in.append(peer)
        assert let_in == waiting


@on_both_loops
async def test_a_connection_without_an_answer_is_cut_off_at_the_deadline(hasty: Poster) -> None:
    with full_port() as port:
        # Without our deadline, the kernel would retry for two minutes.
        async with asyncio.timeout(20):
            assert failure(await post(hasty, f"http://127.0.0.1:{port}/")) == (FailureReason.TIMEOUT, None)


@on_both_loops
async def test_a_request_that_the_server_does_not_take_is_dropped_at_the_deadline(start: Start, hasty: Poster) -> None:
    """An orderly close would wait until the peer reads the rest, perhaps for ever, and keep the body in memory."""
    left, taken = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def script(peer: Peer) -> None:
        peer.transport.pause_reading()
        await left.wait()
        peer.transport.resume_reading()
        size = 0
        with suppress(ConnectionError):
            while data := await peer.reader.read(1 << 20):
                size += len(data)
        taken.set_result(size)

    server, body = await start(script), bytes(32 * 1024 * 1024)
    assert failure(await hasty.post(server.url, body, HEADERS, TENANT)) == (FailureReason.TIMEOUT, None)
    left.set()
    async with asyncio.timeout(20):
        assert await taken < len(body)
