"""One attempt: the request that is sent, and the outcome of its answer."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider

from tests.integration.one_attempt import HEADERS, OK, TENANT, Start, always, failure, on_both_loops, post, status
from workers.delivery.exchange import USER_AGENT
from workers.delivery.post import Delivered, FailedDelivery, FailureReason, Poster


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
    ],
)
@on_both_loops
async def test_path_and_query_are_sent_as_the_job_wrote_them(
    start: Start, poster: Poster, written: str, sent: str
) -> None:
    server = await start(always(OK))
    outcome = await post(poster, f"http://127.0.0.1:{server.port}{written}")
    assert isinstance(outcome, Delivered)
    assert server.requests[0][0].split(b"\r\n")[0].decode() == f"POST {sent} HTTP/1.1"


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


@pytest.mark.parametrize("code", [200, 201, 202, 204, 299])
@on_both_loops
async def test_every_2xx_is_a_success(start: Start, poster: Poster, code: int) -> None:
    outcome = await post(poster, (await start(always(status(code)))).url)
    assert isinstance(outcome, Delivered)
    assert outcome.status == code


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (101, FailureReason.SERVER_ERROR),
        (300, FailureReason.REDIRECTED),
        (304, FailureReason.REDIRECTED),
        (400, FailureReason.CLIENT_ERROR),
        (401, FailureReason.CLIENT_ERROR),
        (404, FailureReason.CLIENT_ERROR),
        (408, FailureReason.CLIENT_ERROR),
        (410, FailureReason.GONE),
        (425, FailureReason.CLIENT_ERROR),
        (429, FailureReason.THROTTLED),
        (500, FailureReason.SERVER_ERROR),
        (502, FailureReason.THROTTLED),
        (503, FailureReason.SERVER_ERROR),
        (504, FailureReason.THROTTLED),
        (599, FailureReason.SERVER_ERROR),
        (700, FailureReason.SERVER_ERROR),
    ],
)
@on_both_loops
async def test_everything_else_is_a_failure_of_its_class(
    start: Start, poster: Poster, code: int, reason: FailureReason
) -> None:
    server = await start(always(status(code)))
    outcome = await post(poster, server.url)
    assert failure(outcome) == (reason, code)
    assert len(server.requests) == 1


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@on_both_loops
async def test_a_redirect_is_never_followed(start: Start, poster: Poster, code: int) -> None:
    target = await start(always(OK))
    server = await start(always(status(code, f"location: {target.url}")))
    assert failure(await post(poster, server.url)) == (FailureReason.REDIRECTED, code)
    assert (len(server.requests), target.connections) == (1, 0)


@pytest.mark.parametrize("code", [429, 502, 503, 504, 400])
@pytest.mark.parametrize("form", ["seconds", "date"])
@on_both_loops
async def test_retry_after_is_reported_in_both_forms(start: Start, poster: Poster, code: int, form: str) -> None:
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=30)
    value = "120" if form == "seconds" else soon.strftime("%a, %d %b %Y %H:%M:%S GMT")
    outcome = await post(poster, (await start(always(status(code, f"Retry-After: {value}")))).url)
    assert isinstance(outcome, FailedDelivery)
    # 30 hours exceed the maximum, so the date's result does not depend on this test's speed.
    assert outcome.retry_after_seconds == (120 if form == "seconds" else 86_400)


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


@on_both_loops
async def test_no_part_of_a_url_begins_a_line_of_its_own(start: Start, poster: Poster) -> None:
    server = await start(always(OK))
    outcome = await post(poster, f"http://127.0.0.1:{server.port}/a%0d%0ax:1/é b?q=\u2028%0a#fragment")
    assert isinstance(outcome, Delivered)
    [(head, _)] = server.requests
    assert head.startswith(b"POST /a%0d%0ax:1/%C3%A9%20b?q=%E2%80%A8%0a HTTP/1.1\r\nHost: ")
    assert head.count(b"\r\n") == 4 + len(HEADERS) + 2
