"""Clients that are slow, hang up, or never read: each connection ends, and the server serves all others."""

from __future__ import annotations

import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from tests.integration.certificates import Authority
from tests.integration.gateway.small_door import PATIENCE_SECONDS, Served, received, serving, statuses_in
from tests.open_files import no_files_left
from tests.product import eventually

GET = b"GET /hello HTTP/1.1\r\nHost: a\r\n"
POST = b"POST /echo HTTP/1.1\r\nHost: a\r\n"
LAST = GET + b"Connection: close\r\n\r\n"
BETWEEN_BYTES_SECONDS = 0.1


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(
        head_seconds=1, transfer_seconds=1, transfer_bytes_per_second=1024, keep_alive_seconds=1, linger_seconds=1
    ) as started:
        yield started


@pytest.fixture(autouse=True)
def serves_afterwards(request: pytest.FixtureRequest) -> Iterator[None]:
    """Assert after each test that the server still answers, and has closed all of the test's connections."""
    yield
    if "served" in request.fixturenames:
        served: Served = request.getfixturevalue("served")
        assert served.statuses(LAST) == [200]
        wait_until_none_is_open(served)


def wait_until_none_is_open(served: Served) -> None:
    def none() -> bool:
        return served.metrics.registry.get_sample_value("postback_http_connections") == 0

    eventually(none, PATIENCE_SECONDS, "connections are still open")


def talked(served: Served, sent: Sequence[bytes]) -> list[bytes]:
    """Send each of these texts on a connection of its own; return each response up to the connection's end."""
    connections = [served.connect() for _ in sent]
    for connection, content in zip(connections, sent, strict=True):
        connection.sendall(content)
    return ended(connections)


def trickled(connections: Sequence[socket.socket], content: Sequence[bytes]) -> list[bytes]:
    """Send a byte at a time on each connection until the server ends them; return each response."""
    for bytes_of_all in zip(*content, strict=False):
        with suppress(OSError):
            for connection, byte in zip(connections, bytes_of_all, strict=True):
                connection.sendall(bytes([byte]))
            time.sleep(BETWEEN_BYTES_SECONDS)
            continue
        break
    return ended(connections)


def ended(connections: Sequence[socket.socket]) -> list[bytes]:
    answers = [received(connection) for connection in connections]
    for connection in connections:
        connection.close()
    return answers


def test_a_client_that_sends_nothing_is_disconnected(served: Served) -> None:
    assert served.talk(b"") == b""


def test_a_head_that_never_ends_gets_408(served: Served) -> None:
    heads = [b"G", GET, GET + b"X: a", b"GET /hello\r\n", GET + b"\r\n" + GET]
    assert [statuses_in(answer) for answer in talked(served, heads)] == [[408]] * 4 + [[200, 408]]


def test_a_head_that_comes_a_byte_at_a_time_gets_408(served: Served) -> None:
    [answer] = trickled([served.connect()], [GET + b"X: " + b"a" * 1000])
    assert statuses_in(answer) == [408]


def test_a_connection_without_a_further_whole_request_ends_without_a_further_response(served: Served) -> None:
    answers = talked(served, [GET + b"\r\n", GET + b"\r\n\r\n"])
    assert [statuses_in(answer) for answer in answers] == [[200], [200]]


def test_a_body_that_never_ends_gets_408_in_the_shape_of_errors(served: Served) -> None:
    chunked = POST + b"Transfer-Encoding: chunked\r\n\r\n"
    length = POST + b"Content-Length: 9\r\n\r\n"
    for answer in talked(served, [length, length + b"a", chunked, chunked + b"1\r\na\r\n0\r\nX: "]):
        assert statuses_in(answer) == [408]
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"


def test_a_body_that_comes_a_byte_at_a_time_gets_408_or_ends_with_an_earlier_answer(served: Served) -> None:
    heads = [
        POST + b"Content-Length: 9999\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n1;",
        POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: ",
        b"POST /unknown HTTP/1.1\r\nHost: a\r\nContent-Length: 9999\r\n\r\n",
    ]
    connections = [served.connect() for _ in heads]
    for connection, head in zip(connections, heads, strict=True):
        connection.sendall(head)
    answers = trickled(connections, [b"a" * 1000] * len(heads))
    assert [statuses_in(answer) for answer in answers] == [[408], [408], [408], [404]]


@pytest.mark.parametrize("part", [b"1;" + b"a" * 1_000_000, b"0\r\nX: " + b"a" * 1_000_000])
def test_chunks_with_more_framing_than_content_get_400(served: Served, part: bytes) -> None:
    assert served.statuses(POST + b"Transfer-Encoding: chunked\r\n\r\n" + part) == [400]


def test_a_client_that_does_not_read_its_response_is_disconnected(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(b"GET /much HTTP/1.1\r\nHost: a\r\n\r\n")
        eventually(lambda: "/much" in served.seen, PATIENCE_SECONDS, "the request is not served")
        wait_until_none_is_open(served)
        assert len(received(connection)) < 64 * 1024 * 1024


def test_a_client_that_only_stops_sending_gets_its_response() -> None:
    with serving(keep_alive_seconds=1) as served, served.connect() as connection:
        connection.sendall(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        eventually(lambda: "/wait" in served.seen, PATIENCE_SECONDS, "the request is not served")
        served.release.set()
        assert b'{"waited":true}' in received(connection)


@pytest.mark.parametrize("sent", [GET, POST + b"Content-Length: 9\r\n\r\na"])
def test_a_client_that_stops_sending_in_the_middle_is_disconnected(served: Served, sent: bytes) -> None:
    with served.connect() as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        assert received(connection) == b""


@pytest.mark.parametrize("sent", [b"", GET, POST + b"Content-Length: 9\r\n\r\na", GET + b"\r\n" + GET])
def test_a_reset_in_the_middle_harms_no_other_client(served: Served, sent: bytes) -> None:
    connection = served.connect()
    connection.sendall(sent)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_a_client_that_leaves_is_counted_as_499(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(POST + b"Content-Length: 9\r\n\r\na")
        eventually(lambda: "/echo" in served.seen, PATIENCE_SECONDS, "the request is not served")
    label = '{route="/echo",status="499"}'
    eventually(lambda: label in served.counted("postback_http_requests_total"), PATIENCE_SECONDS, "it is not counted")


def test_connections_beyond_the_limit_are_closed_and_places_are_given_back() -> None:
    with serving(connections=3) as served:
        taken = [served.connect() for _ in range(3)]
        eventually(lambda: served.talk(LAST) == b"", PATIENCE_SECONDS, "a fourth connection is served")
        assert served.counted("postback_http_connections_refused_total")['{reason="all_taken"}'] >= 1
        for connection in taken:
            connection.close()
        eventually(lambda: served.statuses(LAST) == [200], PATIENCE_SECONDS, "no place is given back")


def test_one_client_cannot_take_all_places() -> None:
    with serving(connections_per_address=2) as served, served.connect(), served.connect():
        eventually(lambda: served.talk(LAST) == b"", PATIENCE_SECONDS, "a third connection is served")
        other = socket.create_connection(("127.0.0.1", served.port), source_address=("127.0.0.2", 0))
        with other:
            other.sendall(LAST)
            assert statuses_in(received(other)) == [200]


def test_a_process_without_a_free_file_descriptor_serves_once_it_has_one(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    connection = socket.socket()
    with no_files_left():
        connection.connect(("127.0.0.1", served.port))
        connection.sendall(LAST)
        eventually(lambda: "could not be accepted" in caplog.text, PATIENCE_SECONDS, "the connection is accepted")
    assert statuses_in(received(connection)) == [200]
    connection.close()


def test_a_defect_gets_500_with_an_id_that_the_log_has_and_no_prompt(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    head = b"POST /broken HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Request-Id: mine\r\nContent-Length: 6\r\n\r\n"
    answer = served.talk(head + b"secret")
    assert statuses_in(answer) == [500]
    identifier = answer.partition(b"x-request-id: ")[2].partition(b"\r\n")[0].decode()
    assert identifier.startswith("req_")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "server_error"
    assert identifier in caplog.text
    assert "in broken" in caplog.text
    assert "secret" not in caplog.text


def test_at_the_stop_running_requests_are_answered_and_streams_end() -> None:
    with serving() as served:
        with served.connect() as idle, served.connect() as waiting, served.connect() as events:
            waiting.sendall(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
            events.sendall(b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n")
            eventually(lambda: len(served.seen) == 2, PATIENCE_SECONDS, "the requests are not served")
            stopping = threading.Thread(target=served.stop)
            stopping.start()
            assert received(idle) == b""
            assert received(events).endswith(b"data: 1\n\n\r\n0\r\n\r\n")
            served.release.set()
            assert b'{"waited":true}' in received(waiting)
            stopping.join(PATIENCE_SECONDS)
        with pytest.raises(ConnectionRefusedError):
            served.connect()


def test_a_request_that_takes_longer_than_the_stop_gets_503() -> None:
    with serving(stop_seconds=0.1) as served, served.connect() as waiting:
        waiting.sendall(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
        eventually(lambda: "/wait" in served.seen, PATIENCE_SECONDS, "the request is not served")
        served.stop()
        answer = received(waiting)
        assert statuses_in(answer) == [503]
        assert b"retry-after: 1\r\n" in answer


# -- TLS -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def secure(authority: Authority) -> Iterator[Served]:
    context = authority.server()
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(authority.ca_file)
    context.verify_mode = ssl.CERT_OPTIONAL
    with serving(tls=context, head_seconds=2, transfer_seconds=2, keep_alive_seconds=2, linger_seconds=1) as started:
        yield started
        wait_until_none_is_open(started)


def client(authority: Authority, certificate: Path | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.ca_file))
    if certificate is not None:
        context.load_cert_chain(certificate)
    return context


def test_the_application_sees_the_peer_certificate(secure: Served, authority: Authority) -> None:
    for certificate, expected in ((authority.client_file("acme"), b"true"), (None, b"false")):
        with secure.connect(client(authority, certificate)) as connection:
            connection.sendall(LAST)
            assert b'"peer":' + expected in received(connection)


def test_a_handshake_that_does_not_come_ends_the_connection(secure: Served) -> None:
    hello = b"\x16\x03\x01\x02\x00"
    silent = talked(secure, [b"", hello[:3], LAST, hello + bytes(512)])
    assert [statuses_in(answer) for answer in silent] == [[]] * 4
    [trickling] = trickled([secure.connect()], [hello + bytes(512)])
    assert statuses_in(trickling) == []


def test_a_client_that_does_not_read_its_response_over_tls_is_disconnected(
    secure: Served, authority: Authority
) -> None:
    with secure.connect(client(authority)) as connection:
        connection.sendall(b"GET /much HTTP/1.1\r\nHost: a\r\n\r\n")
        eventually(lambda: "/much" in secure.seen, PATIENCE_SECONDS, "the request is not served")
        wait_until_none_is_open(secure)


def test_a_slow_download_over_tls_is_whole_although_the_connection_ends_after_it(authority: Authority) -> None:
    with (
        serving(tls=authority.server(), head_seconds=0.5) as served,
        served.connect(client(authority)) as connection,
    ):
        connection.sendall(b"GET /much HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        time.sleep(3)  # the limit for handshakes passes meanwhile, and must not end the response
        assert len(received(connection)) > 64 * 1024 * 1024


def test_the_stop_does_not_wait_for_idle_clients_to_close_tls(authority: Authority) -> None:
    with serving(tls=authority.server(), stop_seconds=600) as served, served.connect(client(authority)) as connection:
        connection.sendall(GET + b"\r\n")
        assert statuses_in(connection.recv(65536)) == [200]
        served.stop()


def test_tls_1_2_is_refused(secure: Served, authority: Authority) -> None:
    context = client(authority)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        secure.connect(context)


def test_a_silent_client_over_tls_is_disconnected(secure: Served, authority: Authority) -> None:
    opened = [secure.connect(client(authority)) for _ in range(3)]
    for connection, sent in zip(opened, (b"", GET, POST + b"Content-Length: 9\r\n\r\na"), strict=True):
        connection.sendall(sent)
    assert [statuses_in(received(connection)) for connection in opened] == [[], [408], [408]]
    for connection in opened:
        connection.close()
