"""One attempt: its request, its connection, and the outcome for each answer, each slow or broken server, each name."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import aiohttp
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider

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
    post_by_name,
    status,
)
from tests.integration.test_egress_sockets import Names, serving
from tests.open_files import no_files_left
from workers.delivery.post import USER_AGENT, Delivered, Exhausted, FailedDelivery, FailureReason, Poster, PostOutcome
from workers.delivery.settings import DeliverySettings
from workers.egress import EgressPolicy, GuardedConnector, answers


@on_both_loops
async def test_the_request_is_what_the_consumer_is_promised(start: Start, poster: Poster) -> None:
    server = await start(always(OK))
    outcome = await post(poster, server.url)
    assert isinstance(outcome, Delivered)
    [(head, body)] = server.requests
    line, *headers = head.decode().rstrip().split("\r\n")
    assert line == "POST /hooks?token=x HTTP/1.1"
    assert {name.lower(): value for name, value in (header.split(": ", 1) for header in headers)} == {
        "host": f"127.0.0.1:{server.port}",
        "user-agent": USER_AGENT,
        "content-type": "application/json",
        "content-length": "7",
        "webhook-id": "msg_1",
        "webhook-timestamp": "1",
        "traceparent": "00-x",
    }
    assert body == b'{"a":1}'
    assert USER_AGENT.startswith("Postback/")


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        # Reserved characters and their encodings are different things (RFC 3986, section 2.2).
        ("/a%3Bb", "/a%3Bb"),
        ("/a;b=1,2", "/a;b=1,2"),
        ("/hook?sig=x%3By%27z&q=%2C%3A", "/hook?sig=x%3By%27z&q=%2C%3A"),
        ("/a%2Fb%2fc", "/a%2Fb%2fc"),
        ("/!$&'()*+,;=:@-._~?!$&'()*+,;=:@/?-._~", "/!$&'()*+,;=:@-._~?!$&'()*+,;=:@/?-._~"),
        # A signature of a URL does not fit an equivalent URL, so the URL is sent as it is written.
        ("/%41%7e?%41=%7E", "/%41%7e?%41=%7E"),
        ("/a/../b/./c//d", "/a/../b/./c//d"),
        ("/%2e%2E/x", "/%2e%2E/x"),
        ("/hook?", "/hook?"),
        ("/hook?a=1&&b", "/hook?a=1&&b"),
        ("?token=x", "/?token=x"),
        ("", "/"),
        ("/hook#fragment", "/hook"),
        ("/hook?#fragment", "/hook?"),
        # Characters that a request line cannot hold are percent-encoded.
        ("/a b?c d=%20+", "/a%20b?c%20d=%20+"),
        ("/bücher/☃?ü=%C3%BC", "/b%C3%BCcher/%E2%98%83?%C3%BC=%C3%BC"),
        ("/100%?x=%zz%4", "/100%25?x=%25zz%254"),
        ('/{x}|"<>^`[]?y[]=\\', "/%7Bx%7D%7C%22%3C%3E%5E%60%5B%5D?y%5B%5D=%5C"),
        ("/a HTTP/1.1", "/a%20HTTP/1.1"),
        ("/a%0d%0ax:1/é b?q=\u2028%0a#fragment", "/a%0d%0ax:1/%C3%A9%20b?q=%E2%80%A8%0a"),
    ],
)
@on_both_loops
async def test_path_and_query_are_sent_as_the_job_wrote_them(
    start: Start, poster: Poster, written: str, sent: str
) -> None:
    server = await start(always(OK))
    outcome = await post(poster, f"http://127.0.0.1:{server.port}{written}")
    assert isinstance(outcome, Delivered)
    [(head, _)] = server.requests
    assert head.split(b"\r\n")[0].decode() == f"POST {sent} HTTP/1.1"
    assert head.count(b"\r\n") == 4 + len(HEADERS) + 2


@pytest.mark.parametrize("at", ["/a{}b", "/?a{}b", "/#a{}b", "{}/", "/{}"])
@pytest.mark.parametrize("control", ["\r\nx-admin: 1", "\n", "\r", "\t", "\0", "\x7f", "\x0b"])
@on_both_loops
async def test_a_url_with_a_control_character_is_sent_nowhere(
    start: Start, poster: Poster, at: str, control: str
) -> None:
    server = await start(always(OK))
    outcome = await post(poster, f"http://127.0.0.1:{server.port}{at.format(control)}")
    assert failure(outcome) == (FailureReason.REFUSED, None)
    assert server.connections == 0


OUTCOMES = {
    None: (200, 201, 202, 204, 299),
    FailureReason.REDIRECTED: (300, 304),
    FailureReason.CLIENT_ERROR: (400, 401, 404, 408, 425),
    FailureReason.GONE: (410,),
    FailureReason.THROTTLED: (429, 502, 504),
    FailureReason.SERVER_ERROR: (101, 500, 503, 599, 700),
}
"""The statuses of each failure's class; None is a success."""


@pytest.mark.parametrize(("reason", "code"), [(reason, code) for reason, codes in OUTCOMES.items() for code in codes])
@on_both_loops
async def test_every_2xx_is_a_success_and_everything_else_a_failure_of_its_class(
    start: Start, poster: Poster, reason: FailureReason | None, code: int
) -> None:
    server = await start(always(status(code, "Retry-After: 120")))
    outcome = await post(poster, server.url)
    if reason is None:
        assert (type(outcome), outcome.status) == (Delivered, code)
    else:
        assert failure(outcome) == (reason, code)
        assert getattr(outcome, "retry_after_seconds", None) == (120 if code >= 400 else None)
    assert len(server.requests) == 1


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@on_both_loops
async def test_a_redirect_is_never_followed(start: Start, poster: Poster, code: int) -> None:
    target = await start(always(OK))
    server = await start(always(status(code, f"location: {target.url}")))
    assert failure(await post(poster, server.url)) == (FailureReason.REDIRECTED, code)
    assert (len(server.requests), target.connections) == (1, 0)


@on_both_loops
async def test_cookies_are_not_kept(start: Start, poster: Poster) -> None:
    server = await start(always(b"HTTP/1.1 200 OK\r\nset-cookie: a=b\r\ncontent-length: 0\r\n\r\n"))
    for _ in range(2):
        await post(poster, server.url)
    assert b"cookie" not in server.requests[1][0].lower()


@on_both_loops
async def test_proxies_and_netrc_of_the_environment_are_ignored(
    start: Start, poster: Poster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    proxy, server = await start(always(OK)), await start(always(OK))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert isinstance(await post(poster, server.url), Delivered)
    assert proxy.connections == 0
    assert b"authorization" not in server.requests[0][0].lower()


TRACE_ID, SPAN_ID = 0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7


class Ended(SpanProcessor):
    """A span processor that keeps ended spans."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> list[ReadableSpan]:
    """Every span that ends in this test. OpenTelemetry's provider can be set only once, so its getter is patched."""
    provider, ended = TracerProvider(), Ended()
    provider.add_span_processor(ended)
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    return ended.spans


@on_both_loops
async def test_a_span_surrounds_the_post_where_spans_are_collected(
    start: Start, poster: Poster, collected: list[ReadableSpan]
) -> None:
    server = await start(always(status(503)))
    headers = {**HEADERS, "traceparent": f"00-{TRACE_ID:032x}-{SPAN_ID:016x}-01"}
    await poster.post(server.url, b"{}", headers, TENANT, 3)
    [span] = collected
    assert span.parent is not None
    assert (span.context.trace_id, span.parent.span_id) == (TRACE_ID, SPAN_ID)
    assert not span.status.is_ok
    assert dict(span.attributes or {}) == {
        "http.request.method": "POST",
        "url.origin": server.url.removesuffix("/hooks?token=x"),
        "attempt": 3,
        "webhook_id": "msg_1",
        "http.response.status_code": 503,
        "error.type": "server_error",
    }
    [(head, _)] = server.requests
    assert f"traceparent: 00-{TRACE_ID:032x}-{span.context.span_id:016x}-01\r\n".encode() in head


@pytest.mark.parametrize("name", ["webhook-id", "evil\r\nx"])
@on_both_loops
async def test_a_header_that_would_begin_a_line_of_its_own_is_never_sent(
    start: Start, poster: Poster, name: str
) -> None:
    server = await start(always(OK))
    with pytest.raises(ValueError, match="line break"):
        await poster.post(server.url, b"{}", {name: "a\r\nx-admin: 1"}, TENANT)
    assert (server.requests, server.connections) == ([], 0)


# -- connections -------------------------------------------------------------------------------------------------------

FAILING = b"HTTP/1.1 500 No\r\ncontent-length: 60000\r\n\r\n" + bytes(60000)


@pytest.mark.parametrize(("answer", "code"), [(OK, 200), (FAILING, 500)])
@on_both_loops
async def test_a_connection_is_kept_warm_for_the_next_callback_also_after_a_failure_with_a_body(
    start: Start, poster: Poster, answer: bytes, code: int
) -> None:
    server = await start(always(answer))
    assert [(await post(poster, server.url)).status for _ in range(3)] == [code] * 3
    assert (len(server.requests), server.connections) == (3, 1)


@pytest.mark.parametrize(("answered", "reset"), [(1, False), (0, False), (0, True)])
@on_both_loops
async def test_a_connection_closed_after_the_request_was_read_is_not_posted_to_again(
    start: Start, poster: Poster, answered: int, reset: bool
) -> None:
    """On a warm connection this is the keep-alive race: the server closes it just as the request comes."""

    async def script(peer: Peer) -> None:
        for _ in range(answered):
            await peer.request()
            await peer.send(OK)
        await peer.request()
        if reset:
            peer.reset()

    server = await start(script)
    for _ in range(answered):
        assert isinstance(await post(poster, server.url), Delivered)
    assert failure(await post(poster, server.url)) == (FailureReason.CONNECTION_CLOSED, None)
    assert (len(server.requests), server.connections) == (answered + 1, 1)


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


@on_both_loops
async def test_no_more_connections_are_idle_than_attempts_may_run_and_the_oldest_one_ends(start: Start) -> None:
    """A tenant with a new host for each callback would otherwise take the open files of all tenants."""
    servers = [await start(always(OK)) for _ in range(3)]
    poster = Poster(DeliverySettings(keep_alive_seconds=60.0, window_records=2), LOOPBACK, SystemClock())
    for number in (0, 1, 0, 2):
        assert isinstance(await post(poster, servers[number].url), Delivered)
    async with asyncio.timeout(10):
        await asyncio.gather(*servers[1].tasks)
    for number in (0, 2, 1):
        assert isinstance(await post(poster, servers[number].url), Delivered)
    await poster.close()
    assert [server.connections for server in servers] == [1, 2, 1]


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
    ("at_once", "unasked"),
    [(True, OK), (False, OK), (False, status(408, "connection: close")), (False, OK[:20]), (False, b"\r\n")],
    ids=["a second answer", "200", "408", "half-a-head", "an-empty-line"],
)
@on_both_loops
async def test_unasked_bytes_on_an_idle_connection_are_no_answer_to_the_next_callback(
    start: Start, poster: Poster, at_once: bool, unasked: bytes
) -> None:
    said = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        answer = OK if peer.number == 1 else status(503)
        await peer.send(answer + unasked if at_once else answer)
        if not at_once:
            await asyncio.sleep(0.05)  # waits until the answer is read
            await peer.send(unasked)
        said.set()
        await peer.request()

    server = await start(script)
    assert isinstance(await post(poster, server.url), Delivered)
    await said.wait()
    await asyncio.sleep(0.05)  # lets the client's loop, which is this one, see the bytes
    assert failure(await post(poster, server.url)) == (FailureReason.SERVER_ERROR, 503)
    assert (len(server.requests), server.connections) == (2, 2)


# -- names -------------------------------------------------------------------------------------------------------------


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


# -- slow and broken servers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("begun", "dripping"),
    [(b"", b""), (b"HTTP/1.1 200 OK\r\nx-slow: ", b"a"), (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n")],
    ids=["silence", "dripping headers", "endless interim responses"],
)
@on_both_loops
async def test_headers_that_do_not_end_are_cut_off_at_the_deadline(
    start: Start, hasty: Poster, begun: bytes, dripping: bytes
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(begun)
        while True:
            await peer.send(dripping)
            await asyncio.sleep(0.02)

    server = await start(script)
    assert failure(await post(hasty, server.url)) == (FailureReason.TIMEOUT, None)
    assert len(server.requests) == 1


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
async def test_a_compressed_body_is_never_unpacked(start: Start, poster: Poster) -> None:
    # Unpacking these bytes, which are no gzip, would raise an error; unpacking a real bomb would fill the memory.
    answer = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 4\r\n\r\nbomb"
    assert isinstance(await post(poster, (await start(always(answer))).url), Delivered)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", None),
        (b"HTTP/1.1 abc OK\r\n\r\n", None),
        (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 100_000 + b"\r\n", None),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 1_000_000 + b"\r\n\r\n", None),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nnot-a-size\r\n", 200),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc", 200),
    ],
    ids=["ssh", "no-status", "many-headers", "large-header", "bad-chunk", "early-end"],
)
@on_both_loops
async def test_an_answer_that_is_not_http_is_a_failure(
    start: Start, poster: Poster, answer: bytes, code: int | None
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer)

    server = await start(script)
    reason, seen = failure(await post(poster, server.url))
    assert (reason, seen in (code, None)) == (FailureReason.BAD_RESPONSE, True)
    assert len(server.requests) == 1


@on_both_loops
async def test_a_server_that_speaks_before_the_request_is_a_bad_response(start: Start, poster: Poster) -> None:
    async def script(peer: Peer) -> None:
        await peer.send(b"SSH-2.0-OpenSSH_9.6\r\n")
        await peer.request()

    assert failure(await post(poster, (await start(script)).url)) == (FailureReason.BAD_RESPONSE, None)


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


# -- TLS ---------------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("wrong", ["authority", "name", "date"])
@on_both_loops
async def test_a_certificate_of_another_authority_name_or_time_is_refused_and_nothing_is_sent(
    start: Start, authority: Authority, wrong: str
) -> None:
    chains = {"name": authority.chain_file("127.0.0.9"), "date": authority.chain_file(expired=True)}
    server = await start(always(OK), authority.server(chains.get(wrong)))
    trusted = None if wrong == "authority" else authority.ca_file
    assert failure(await post_tls(server.url, trusted)) == (FailureReason.TLS_FAILED, None)
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
async def test_without_a_client_certificate_such_an_endpoint_gets_nothing(start: Start, authority: Authority) -> None:
    server = await start(always(OK), authority.server(asks_for_client=True))
    reason, seen = failure(await post_tls(server.url, authority.ca_file))
    # In TLS 1.3 the server may refuse after the request was sent.
    assert (reason in (FailureReason.TLS_FAILED, FailureReason.CONNECTION_CLOSED), seen) == (True, None)
    assert server.requests == []


@on_both_loops
async def test_an_endpoint_that_asks_for_client_certificates_gets_the_tenants_on_connections_of_their_own(
    start: Start, authority: Authority
) -> None:
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


@pytest.fixture
def short_lived(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "OLDEST_SECONDS", 0.2)


@pytest.mark.usefixtures("short_lived")
@on_both_loops
async def test_callbacks_move_from_an_old_connection_to_a_new_one_and_none_fails(start: Start, poster: Poster) -> None:
    server = await start(always(OK))
    async with asyncio.timeout(20):
        while server.connections < 3:
            assert isinstance(await post(poster, server.url), Delivered)
            await asyncio.sleep(0.01)


@pytest.mark.usefixtures("short_lived")
async def test_a_name_that_moves_is_followed_although_its_connection_is_never_idle() -> None:
    async with serving("127.0.0.1") as former, serving("127.0.0.2", former.port) as latter:
        # The cache is off, because aiohttp would keep the first DNS answer for ten seconds.
        connector = GuardedConnector(LOOPBACK, Names([former.host], [latter.host]), use_dns_cache=False)
        async with aiohttp.ClientSession(connector=connector) as session, asyncio.timeout(20):
            while not latter.paths:
                async with session.get(former.url("moves.example")) as answer:
                    await answer.read()
                await asyncio.sleep(0.01)
        assert (len(former.connections), len(latter.connections)) == (1, 1)
