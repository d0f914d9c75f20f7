"""Requests that servers may read differently: each gets one 400 and the connection's end, or the right responses."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network

import pytest

from tests.integration.gateway.small_door import Served, received, serving, statuses_in
from tests.product import eventually

GET = b"GET /hello HTTP/1.1\r\nHost: a\r\n"
POST = b"POST /echo HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
LAST = GET + b"Connection: close\r\n\r\n"
"""A valid request, after which the server ends the connection."""

REFUSED = {
    "two lengths that agree": POST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\na",
    "two lengths that differ": POST + b"Content-Length: 1\r\nContent-Length: 40\r\n\r\na",
    "a list of lengths": POST + b"Content-Length: 1, 1\r\n\r\na",
    "a length with a sign": POST + b"Content-Length: +1\r\n\r\na",
    "a negative length": POST + b"Content-Length: -1\r\n\r\na",
    "a length of no digits": POST + b"Content-Length: \r\n\r\na",
    "a length beyond 64 bits": POST + b"Content-Length: 99999999999999999999\r\n\r\na",
    "a length before chunks": POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks before a length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    "an unknown coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a coding without chunks": POST + b"Transfer-Encoding: gzip\r\n\r\n0\r\n\r\n",
    "chunks within a coding": POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "a coding within chunks": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunks twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks over HTTP/1.0": b"POST /echo HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a folded field": GET + b"X: a\r\n b\r\n\r\n",
    "a space before the colon": GET + b"X : a\r\n\r\n",
    "lines that end in LF": b"GET /hello HTTP/1.1\nHost: a\n\n",
    "a field that ends in LF": GET + b"X: a\n\r\n",
    "a field that ends in CR": GET + b"X: a\rY: b\r\n\r\n",
    "a NUL in a field": GET + b"X: a\0b\r\n\r\n",
    "a control character in a field": GET + b"X: a\x01b\r\n\r\n",
    "no Host": b"GET /hello HTTP/1.1\r\n\r\n",
    "two Hosts": GET + b"Host: b\r\n\r\n",
    "a Host that is no host": b"GET /hello HTTP/1.1\r\nHost: a/b@c\r\n\r\n",
    "an open bracket as Host": b"GET /hello HTTP/1.1\r\nHost: [\r\n\r\n",
    "another version": b"GET /hello HTTP/1.2\r\nHost: a\r\n\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a method in lower case": b"get /hello HTTP/1.1\r\nHost: a\r\n\r\n",
    "an unknown method": b"FOO /hello HTTP/1.1\r\nHost: a\r\n\r\n",
    "CONNECT": b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
    "a byte above ASCII in the path": b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
    "a NUL in the path": b"GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n",
    "a NUL in the query": b"GET /hello?a=%00 HTTP/1.1\r\nHost: a\r\n\r\n",
    "an upgrade with a body": POST + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 1\r\n\r\na",
    "a chunk that ends in LF": CHUNKED + b"1\na\n0\n\n",
    "a chunk without a size": CHUNKED + b"zz\r\na\r\n0\r\n\r\n",
    "a chunk beyond 64 bits": CHUNKED + b"fffffffffffffffff\r\na\r\n0\r\n\r\n",
    "a chunk longer than its size": CHUNKED + b"1\r\nab\r\n0\r\n\r\n",
    "noise": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}

ANSWERED = {
    "a whole URL": (b"GET http://other/hello?a=1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", [200]),
    "HTTP/1.0": (b"GET /hello HTTP/1.0\r\n\r\n", [200]),
    "a stream over HTTP/1.0": (b"GET /stream HTTP/1.0\r\n\r\n", [200]),
    "empty lines before a request": (b"\r\n\r\n" + LAST, [200]),
    "three requests at once": ((GET + b"\r\n") * 2 + LAST, [200, 200, 200]),
    "a request after the last": (LAST + GET + b"\r\n", [200]),
    "a body of a GET": (GET + b"Content-Length: 1\r\n\r\na" + LAST, [200, 200]),
    "noise after a request": (GET + b"\r\nNOISE\r\n\r\n", [200]),
    "a trailer": (CHUNKED + b"1\r\na\r\n0\r\nAuthorization: Bearer x\r\n\r\n" + LAST, [200, 200]),
    "an extension of a chunk": (CHUNKED + b"1;a=b\r\na\r\n0\r\n\r\n" + LAST, [200, 200]),
    "an upgrade to websockets": (GET + b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n" + LAST, [200]),
    "OPTIONS of the server": (b"OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", [204]),
    "OPTIONS of a URL": (b"OPTIONS /hello HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", [204]),
    "HEAD": (b"HEAD /hello HTTP/1.1\r\nHost: a\r\n\r\n" + LAST, [200, 200]),
    "a method that the URL does not take": (b"DELETE /hello HTTP/1.1\r\nHost: a\r\n\r\n" + LAST, [405, 200]),
    "an unknown URL": (b"GET /hello/ HTTP/1.1\r\nHost: a\r\n\r\n" + LAST, [404, 200]),
    "too long a URL": (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", [414]),
    "too large a field": (GET + b"X: " + b"a" * 70_000 + b"\r\n\r\n", [431]),
    "too many fields": (GET + b"X: a\r\n" * 300 + b"\r\n", [431]),
    "too large a body by its length": (POST + b"Content-Length: 2000000\r\n\r\n" + bytes(2_000_000), [413]),
    "too large a body in chunks": (CHUNKED + (b"10000\r\n" + bytes(65536) + b"\r\n") * 40, [413]),
    "a compressed body": (POST + b"Content-Encoding: gzip\r\nContent-Length: 1\r\n\r\na" + LAST, [415, 200]),
}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving() as started:
        yield started


@pytest.mark.parametrize("name", REFUSED)
def test_an_ambiguous_request_gets_400_and_none_after_it_is_served(served: Served, name: str) -> None:
    before = len(served.seen)
    answer = served.talk(REFUSED[name] + LAST)
    assert statuses_in(answer) == [400]
    assert b'"type":' in answer
    assert b"x-request-id: req_" in answer
    assert set(served.seen[before:]) <= {"/echo"}


@pytest.mark.parametrize("name", ANSWERED)
def test_a_request_gets_its_response(served: Served, name: str) -> None:
    sent, expected = ANSWERED[name]
    assert served.statuses(sent) == expected


def test_a_trailer_does_not_become_a_field_of_the_request(served: Served) -> None:
    answer = served.talk(CHUNKED + b"1\r\na\r\n0\r\nAuthorization: Bearer x\r\n\r\n" + LAST)
    assert b'{"bytes":1,"authorization":null}' in answer


def test_a_stream_over_http_1_0_has_no_chunks(served: Served) -> None:
    assert served.talk(b"GET /stream HTTP/1.0\r\n\r\n").endswith(b"\r\n\r\nfirst second")


def test_the_405_and_options_name_the_methods_of_all_routes_with_the_url(served: Served) -> None:
    for method in (b"PATCH", b"OPTIONS"):
        answer = served.talk(method + b" /items/1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert b"allow: DELETE, GET, HEAD, OPTIONS\r\n" in answer


def test_a_connection_ends_after_a_bounded_number_of_pipelined_requests(served: Served) -> None:
    assert served.statuses((GET + b"\r\n") * 1000) == [200] * 17


def test_a_client_is_asked_to_continue_only_if_its_body_is_read(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(POST + b"Connection: close\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n")
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"a")
        assert statuses_in(received(connection)) == [200]
    with served.connect() as connection:
        connection.sendall(POST + b"Expect: 100-continue\r\nContent-Length: 2000000\r\n\r\n")
        assert statuses_in(received(connection)) == [413]


def test_every_response_forbids_sniffing_and_caching(served: Served) -> None:
    for sent in (LAST, REFUSED["no Host"]):
        answer = served.talk(sent)
        assert b"x-content-type-options: nosniff\r\n" in answer
        assert b"cache-control: no-store\r\n" in answer
        assert b"uvicorn" not in answer


# -- clients behind proxies --------------------------------------------------------------------------------------------

CLIENT = b"GET /client HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
HERE = [ip_network("127.0.0.0/8")]
V2 = b"\r\n\r\n\0\r\nQUIT\n"


def client_of(served: Served, sent: bytes) -> str:
    """The client's address as the application sees it; the empty text without an answer."""
    return served.talk(sent).rpartition(b"\r\n\r\n")[2].decode().strip('"')


def test_only_a_trusted_proxy_is_believed_about_its_client() -> None:
    forwarded = {
        b"198.51.100.7": "198.51.100.7",
        b"203.0.113.9, 198.51.100.7": "198.51.100.7",
        b"198.51.100.7, 127.0.0.9": "198.51.100.7",
        b"2001:db8::1": "2001:db8::1",
        b"127.0.0.8": "127.0.0.8",
        b"nonsense": "127.0.0.1",
        b"198.51.100.7, nonsense": "127.0.0.1",
    }
    with serving(trusted_proxies=HERE) as served:
        found = {said: client_of(served, CLIENT + b"X-Forwarded-For: %b\r\n\r\n" % said) for said in forwarded}
        assert found == forwarded
        assert client_of(served, CLIENT + b"\r\n") == "127.0.0.1"
    with serving() as served:
        assert client_of(served, CLIENT + b"X-Forwarded-For: 198.51.100.7\r\n\r\n") == "127.0.0.1"
    with serving(trusted_proxies=HERE, connections_per_address=1) as served, served.connect(), served.connect():
        assert client_of(served, CLIENT + b"\r\n") == "127.0.0.1"


def test_the_proxy_protocol_names_the_client_of_a_connection() -> None:
    v4 = bytes([198, 51, 100, 7, 127, 0, 0, 1]) + b"\0\1\0\2"
    headers = {
        b"PROXY TCP4 198.51.100.7 127.0.0.1 1 2\r\n": "198.51.100.7",
        b"PROXY TCP6 2001:db8::1 ::1 1 2\r\n": "2001:db8::1",
        b"PROXY UNKNOWN\r\n": "127.0.0.1",
        V2 + b"\x21\x11\0\x0c" + v4: "198.51.100.7",
        V2 + b"\x21\x11\0\x0f" + v4 + b"\4\0\0": "198.51.100.7",
        V2 + b"\x20\0\0\0": "127.0.0.1",
        b"": "",
        b"PROXY TCP4 x y 1 2\r\n": "",
        V2 + b"\x31\x11\0\x0c" + v4: "",
    }
    with serving(trusted_proxies=HERE, proxy_protocol=True) as served:
        assert {header: client_of(served, header + CLIENT + b"\r\n") for header in headers} == headers
    with serving(trusted_proxies=HERE, proxy_protocol=True, connections_per_address=1) as served:
        first, second = b"PROXY TCP4 198.51.100.7 127.0.0.1 1 2\r\n", b"PROXY TCP4 198.51.100.8 127.0.0.1 1 2\r\n"
        with served.connect() as held:
            held.sendall(first + CLIENT)
            eventually(lambda: not client_of(served, first + CLIENT + b"\r\n"), 30, "a second connection is served")
            assert client_of(served, second + CLIENT + b"\r\n") == "198.51.100.8"
