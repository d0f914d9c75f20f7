"""A real gateway process under floods and noise: it lives, answers afterwards, and its memory stays bounded."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from contextlib import suppress

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.settings import KafkaSettings
from tests.integration.gateway.gateway_process import Gateway, running_gateway
from tests.integration.gateway.small_door import PATIENCE_SECONDS, received, statuses_in
from tests.product import RoleProcess, eventually, running

MEMORY_BYTES = 64 * 1024 * 1024
GET = b"GET /v1/models HTTP/1.1\r\nHost: a\r\n"
PIECES = [
    *(b"GET ", b"POST ", b"HEAD ", b"DELETE ", b"OPTIONS ", b"/v1/jobs", b"/v1/models", b"/v1/files", b"/v1/batches"),
    *(b"/job_0", b"?limit=1", b"?limit=-1&after=%ff", b"*", b"//", b"/../", b" HTTP/1.1\r\n", b" HTTP/1.0\r\n"),
    *(b"Host: a\r\n", b"Content-Length: 2\r\n", b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n"),
    *(b"Connection: close\r\n", b"Authorization: Bearer pk_0_0\r\n", b"Authorization: \xff\r\n", b"Upgrade: h2c\r\n"),
    *(b"Content-Type: multipart/form-data; boundary=a\r\n", b"\r\n", b"{}", b"2\r\n{}\r\n", b"0\r\n\r\n", b"--a--\r\n"),
    *(b"\0", b"\xff", b"\n", b" ", b"\x16\x03\x01"),
]


@pytest.fixture
def many_files() -> Iterator[None]:
    """Let this process open two thousand connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module")
def shared_gateway(module_fleet: KafkaSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One gateway as a process, whose memory the tests measure."""
    with running(module_fleet, tmp_path_factory.mktemp("product")) as product, running_gateway(product) as started:
        yield started


@pytest.fixture(autouse=True)
def lives_and_answers(shared_gateway: Gateway) -> Iterator[None]:
    """Assert after each test that the process answers, has logged no defect, and kept within its memory bound."""
    assert isinstance(shared_gateway.role, RoleProcess)
    process = psutil.Process(shared_gateway.role.process.pid)
    shared_gateway.get("/v1/models")
    before = process.memory_info().rss
    yield

    def answers() -> bool:
        return b"HTTP/1.1 401 " in talk(shared_gateway, GET + b"Connection: close\r\n\r\n")

    eventually(answers, PATIENCE_SECONDS, shared_gateway.role.said)
    assert process.memory_info().rss - before < MEMORY_BYTES
    assert "request-failed" not in shared_gateway.role.said()


def talk(gateway: Gateway, sent: bytes) -> bytes:
    """Send bytes and nothing more; return everything until the connection's end."""
    with socket.create_connection(("127.0.0.1", gateway.port), PATIENCE_SECONDS) as connection:
        with suppress(OSError):
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
        return received(connection)


@given(st.lists(st.sampled_from(PIECES), max_size=14).map(b"".join) | st.binary(max_size=200))
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_get_no_5xx_and_the_connection_ends(shared_gateway: Gateway, sent: bytes) -> None:
    assert all(status < 500 for status in statuses_in(talk(shared_gateway, sent)))


def test_64_mb_of_header_fields_are_refused(shared_gateway: Gateway) -> None:
    part = b"a" * 1024 * 1024
    with socket.create_connection(("127.0.0.1", shared_gateway.port), PATIENCE_SECONDS) as connection:
        connection.sendall(GET + b"X: ")
        with suppress(OSError):
            for _ in range(64):
                connection.sendall(part)
            connection.shutdown(socket.SHUT_WR)
        assert statuses_in(received(connection)) == [431]


def test_1000_idle_connections_of_one_client_leave_places_for_others(shared_gateway: Gateway, many_files: None) -> None:
    idle = [socket.create_connection(("127.0.0.1", shared_gateway.port), PATIENCE_SECONDS) for _ in range(1000)]
    with socket.create_connection(
        ("127.0.0.1", shared_gateway.port), PATIENCE_SECONDS, source_address=("127.0.0.2", 0)
    ) as other:
        other.sendall(GET + b"Connection: close\r\n\r\n")
        assert statuses_in(received(other)) == [401]
    for connection in idle:
        connection.close()


def test_a_body_beyond_every_limit_is_refused_while_it_is_sent(shared_gateway: Gateway) -> None:
    key = shared_gateway.key("large").encode()
    head = b"POST /v1/jobs HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer " + key + b"\r\nConnection: close\r\n"
    chunk = b"100000\r\n" + bytes(1024 * 1024) + b"\r\n"
    for sent in (
        head + b"Content-Length: 1000000000000\r\n\r\n",
        head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 40,
    ):
        with socket.create_connection(("127.0.0.1", shared_gateway.port), PATIENCE_SECONDS) as connection:
            with suppress(OSError):
                connection.sendall(sent)
            assert statuses_in(received(connection)) == [413]
