"""Truncated answers: the status counts, and only a 2xx needs the whole body."""

from __future__ import annotations

import asyncio
import socket

import pytest

from tests.integration.one_attempt import Peer, Script, Start, failure, on_both_loops, post
from workers.delivery.post import FailedDelivery, FailureReason, Poster

BODY = {"length": "content-length: 10", "chunked": "transfer-encoding: chunked"}
HANGS = "hangs"


def beginning(code: int, framing: str, then: str) -> Script:
    """An answer that is closed, reset, garbled or left hanging after its headers and first bytes."""

    async def script(peer: Peer) -> None:
        await peer.request()
        head = f"HTTP/1.1 {code} Whatever\r\nretry-after: 60\r\n{BODY[framing]}\r\n\r\n"
        await peer.send(head.encode() + (b"3\r\nabc\r\n" if framing == "chunked" else b"abc"))
        await asyncio.sleep(0.05)  # lets the client read these bytes before the cut
        if then == "garbled":
            await peer.send(b"not-a-size\r\n")
        if then == "reset":
            linger_off = b"\x01\x00\x00\x00\x00\x00\x00\x00"
            peer.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_off)
        if then in ("garbled", HANGS):
            await asyncio.Event().wait()

    return script


CUTS = [("length", "closed"), ("length", "reset"), ("length", HANGS)]
CUTS += [("chunked", "closed"), ("chunked", "garbled"), ("chunked", HANGS)]


@pytest.mark.parametrize(("framing", "then"), CUTS)
@pytest.mark.parametrize(
    ("code", "reason", "wait"),
    [
        (302, FailureReason.REDIRECTED, None),
        (410, FailureReason.GONE, 60.0),
        (429, FailureReason.THROTTLED, 60.0),
    ],
)
@on_both_loops
async def test_a_status_counts_even_if_its_body_is_cut(
    start: Start,
    poster: Poster,
    hasty: Poster,
    code: int,
    reason: FailureReason,
    wait: float | None,
    framing: str,
    then: str,
) -> None:
    server = await start(beginning(code, framing, then))
    outcome = await post(hasty if then == HANGS else poster, server.url)
    assert failure(outcome) == (reason, code)
    assert isinstance(outcome, FailedDelivery)
    assert outcome.retry_after_seconds == wait


@pytest.mark.parametrize(("framing", "then"), CUTS)
@on_both_loops
async def test_a_success_needs_its_body(start: Start, poster: Poster, hasty: Poster, framing: str, then: str) -> None:
    """A proxy may lose its server after it has sent a 2xx, so the status alone proves no delivery."""
    server = await start(beginning(200, framing, then))
    outcome = await post(hasty if then == HANGS else poster, server.url)
    reason, code = failure(outcome)
    assert code == 200
    # A reset may discard the bytes that were sent before it, so two reasons are right.
    lost = {FailureReason.BAD_RESPONSE, FailureReason.CONNECTION_CLOSED}
    assert reason in ({FailureReason.TIMEOUT} if then == HANGS else lost)


@on_both_loops
async def test_headers_that_are_not_whole_have_no_status(start: Start, poster: Poster) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 410 Gone\r\nretry-af")

    assert failure(await post(poster, (await start(script)).url)) == (FailureReason.CONNECTION_CLOSED, None)
