"""The door's TLS on real sockets: clients that are accepted or refused, and changed files that take effect."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from cli.operations.certificates import Authority, Leaf, init, issue, renew, revoke, sign_crl
from gateway.tls import LOOK_SECONDS, DoorTls, TlsFiles, read_peer
from telemetry.clock import SystemClock
from telemetry.hand_clock import SetClock
from telemetry.metrics import Metrics
from workers.system.tls_files import TlsFileUnusable


async def _answer(door: DoorTls, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer requests until the client hangs up; the gateway does the same."""
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    peer = read_peer(der) if der else None
    try:
        while await reader.readuntil(b"\r\n\r\n"):
            said = {"tenant": peer.tenant, "scopes": sorted(peer.scopes), "serial": peer.serial} if peer else {}
            body = json.dumps({**said, "refusal": door.refusal(peer) if peer else None}).encode()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
            await writer.drain()
    except (asyncio.IncompleteReadError, OSError):
        pass
    finally:
        writer.close()


@contextmanager
def serving(door: DoorTls) -> Iterator[int]:
    """Serve on a free port of 127.0.0.1, and yield the port. The server runs on uvloop, as the gateway does."""
    started: list[int] = []
    ready, loop = threading.Event(), uvloop.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        server = await asyncio.start_server(lambda *ends: _answer(door, *ends), "127.0.0.1", 0, ssl=door.context)
        started.append(server.sockets[0].getsockname()[1])
        ready.set()
        async with server:
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(30)
        yield started[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


NOW = datetime.fromtimestamp(SystemClock().time(), UTC)
DAY = timedelta(days=1)
VERIFY = ("-verify_return_error", "-verify_ip", "127.0.0.1")
REQUEST = b"GET / HTTP/1.1\r\nhost: door\r\n\r\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority with a server `web`, the client `acme`, and the clients `revoked`, `early` and `late`."""
    ca = tmp_path_factory.mktemp("certs") / "ca"
    init(ca, NOW - 200 * DAY)
    issue(ca, Leaf.client("late", "acme"), NOW - 100 * DAY)
    issue(ca, Leaf.client("early", "acme"), NOW + DAY)
    issue(ca, Leaf.server("web", ("localhost", "127.0.0.1")), NOW)
    issue(ca, Leaf.client("acme", "acme", ("read", "submit")), NOW)
    issue(ca, Leaf.client("revoked", "acme"), NOW)
    revoke(ca, "revoked", NOW)
    return ca


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another authority of the same name, with a client of the same tenant."""
    ca = tmp_path_factory.mktemp("other") / "ca"
    init(ca, NOW)
    issue(ca, Leaf.client("acme", "acme"), NOW)
    issue(ca, Leaf.server("web", ("localhost", "127.0.0.1")), NOW)
    return ca


@pytest.fixture
def ca(made: Path, tmp_path: Path) -> Path:
    """A copy of the authority for one test, which may change it."""
    return Path(shutil.copytree(made, tmp_path / "ca"))


@pytest.fixture
def clock() -> SetClock:
    return SetClock(SystemClock().time())


def files_of(ca: Path, **changes: Any) -> TlsFiles:
    return replace(TlsFiles(ca / "web.pem", ca / "web.key", ca / "ca.pem"), **changes)


def client_of(ca: Path, name: str | None = None, of: Path | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca / "ca.pem")
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    if name is not None:
        context.load_cert_chain((of or ca) / f"{name}.pem", (of or ca) / f"{name}.key")
    return context


class Connection:
    """One client's connection over TLS."""

    def __init__(self, port: int, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> None:
        plain = socket.create_connection(("127.0.0.1", port), timeout=30)
        with ExitStack() as closing:
            closing.enter_context(plain)
            self.tls = context.wrap_socket(plain, server_hostname="127.0.0.1", session=session)
            closing.pop_all()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.tls.close()

    def ask(self) -> dict[str, Any]:
        """Send a request. With TLS 1.3, only an answer shows that the server accepts the client's certificate."""
        self.tls.sendall(REQUEST)
        head, _, body = self._read().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        return dict(json.loads(body))

    def _read(self) -> bytes:
        found = b""
        while not found.endswith(b"}"):
            more = self.tls.recv(4096)
            if not more:
                raise ConnectionResetError("the server ended the connection")
            found += more
        return found


def answer(port: int, context: ssl.SSLContext) -> dict[str, Any]:
    with Connection(port, context) as connection:
        return connection.ask()


@contextmanager
def refused(alert: str = "") -> Iterator[None]:
    """Assert that the server refuses the connection with this TLS alert, which is lost if a reset comes first."""
    with pytest.raises((ssl.SSLError, ConnectionError)) as error:
        yield
    if not isinstance(error.value, ConnectionError | ssl.SSLEOFError):
        assert alert in str(error.value).replace(" ", "_").lower()


def serial_in(ca: Path, name: str) -> str:
    done = subprocess.run(
        ["openssl", "x509", "-in", ca / f"{name}.pem", "-noout", "-serial"], capture_output=True, text=True, check=True
    )
    return done.stdout.strip().removeprefix("serial=")


def test_clients_without_a_certificate_are_accepted_where_it_is_optional_and_refused_where_required(
    made: Path, clock: SetClock
) -> None:
    acme = {"tenant": "acme", "scopes": ["read", "submit"], "serial": serial_in(made, "acme"), "refusal": None}
    with serving(DoorTls(files_of(made), clock)) as port:
        assert answer(port, client_of(made)) == {"refusal": None}
        assert answer(port, client_of(made, "acme")) == acme
    with serving(DoorTls(files_of(made, client_required=True), clock)) as port:
        with refused("certificate_required"):
            answer(port, client_of(made))
        assert answer(port, client_of(made, "acme")) == acme
    with serving(DoorTls(files_of(made, client_ca=None), clock)) as port:
        assert answer(port, client_of(made, "acme")) == {"refusal": None}


def test_a_revoked_expired_early_foreign_or_servers_certificate_is_refused_even_where_none_is_needed(
    made: Path, other: Path, clock: SetClock
) -> None:
    alerts = {
        "revoked": "certificate_revoked",
        "late": "certificate_expired",
        "early": "bad_certificate",
        "web": "unsupported_certificate",
    }
    with serving(DoorTls(files_of(made), clock)) as port:
        for name, alert in alerts.items():
            with refused(alert):
                answer(port, client_of(made, name))
        with refused("unknown_ca"):
            answer(port, client_of(made, "acme", of=other))
        assert answer(port, client_of(made, "acme"))["tenant"] == "acme"


def test_a_client_refuses_the_server_of_another_authority(made: Path, other: Path, clock: SetClock) -> None:
    with serving(DoorTls(files_of(made), clock)) as port, pytest.raises(ssl.SSLCertVerificationError):
        answer(port, client_of(other))


def test_versions_before_1_3_are_refused(made: Path, clock: SetClock) -> None:
    with serving(DoorTls(files_of(made), clock)) as port:
        old = client_of(made, "acme")
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with refused("protocol_version"):
            answer(port, old)
        with Connection(port, client_of(made)) as connection:
            assert (connection.tls.version(), connection.ask()) == ("TLSv1.3", {"refusal": None})
        for versions, accepted in (("-tls1_2", False), ("-tls1_3", True)):
            done = subprocess.run(
                ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", versions, "-CAfile", made / "ca.pem", *VERIFY],
                input=b"",
                capture_output=True,
                timeout=60,
            )
            assert (done.returncode == 0) is accepted, done.stdout


@pytest.mark.parametrize(("name", "status"), [("acme", 200), ("revoked", 0), (None, 0)])
def test_curl_gets_in_with_a_valid_certificate_only(made: Path, clock: SetClock, name: str | None, status: int) -> None:
    shown: list[str | Path] = [] if name is None else ["--cert", made / f"{name}.pem", "--key", made / f"{name}.key"]
    with serving(DoorTls(files_of(made, client_required=True), clock)) as port:
        done = subprocess.run(
            ["curl", "-sS", "--cacert", made / "ca.pem", *shown, "-w", "%{http_code}", f"https://localhost:{port}/"],
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.stdout.endswith(f"{status:03d}"), done.stderr


def test_a_renewed_certificate_and_a_revocation_count_for_new_connections_at_once(ca: Path, clock: SetClock) -> None:
    def shown() -> str:
        with Connection(port, client_of(ca)) as connection:
            return str(dict(connection.tls.getpeercert() or {})["serialNumber"])

    with serving(DoorTls(files_of(ca), clock)) as port, Connection(port, client_of(ca, "acme")) as before:
        first = shown()
        assert before.ask()["refusal"] is None
        renew(ca, "web", NOW)
        revoke(ca, "acme", NOW)
        clock.now += LOOK_SECONDS
        assert shown() == serial_in(ca, "web") != first
        with refused("certificate_revoked"):
            answer(port, client_of(ca, "acme"))
        assert before.ask()["refusal"] == "the client certificate is revoked"
        issue(ca, Leaf.client("acme", "acme"), NOW)
        clock.now += LOOK_SECONDS
        assert answer(port, client_of(ca, "acme"))["serial"] == serial_in(ca, "acme")


def test_an_open_connection_outlives_its_certificate_but_its_requests_are_refused(ca: Path, clock: SetClock) -> None:
    with serving(DoorTls(files_of(ca), clock)) as port, Connection(port, client_of(ca, "acme")) as connection:
        clock.now += 89 * DAY.total_seconds()
        assert connection.ask()["refusal"] is None
        clock.now += 2 * DAY.total_seconds()
        assert connection.ask()["refusal"] == "the client certificate has expired"


def test_a_revoked_client_cannot_resume_its_earlier_session(ca: Path, clock: SetClock) -> None:
    context = client_of(ca, "acme")
    with serving(DoorTls(files_of(ca), clock)) as port:
        with Connection(port, context) as first:
            first.ask()
            session = first.tls.session
        revoke(ca, "acme", NOW)
        clock.now += LOOK_SECONDS
        with refused("certificate_revoked"), Connection(port, context, session) as second:
            second.ask()


def test_an_authority_that_is_added_is_trusted_without_a_restart(ca: Path, other: Path, clock: SetClock) -> None:
    bundle, lists = ca / "clients.pem", ca / "lists.pem"
    bundle.write_bytes((ca / "ca.pem").read_bytes())
    lists.write_bytes((ca / "crl.pem").read_bytes())
    with serving(DoorTls(files_of(ca, client_ca=bundle, client_crl=lists), clock)) as port:
        with refused("unknown_ca"):
            answer(port, client_of(ca, "acme", of=other))
        bundle.write_bytes(bundle.read_bytes() + (other / "ca.pem").read_bytes())
        lists.write_bytes(lists.read_bytes() + (other / "crl.pem").read_bytes())
        clock.now += LOOK_SECONDS
        assert answer(port, client_of(ca, "acme", of=other))["tenant"] == "acme"
        with refused("certificate_revoked"):
            answer(port, client_of(ca, "revoked"))


@pytest.mark.parametrize("file", ["web.pem", "web.key", "ca.pem", "crl.pem"])
@pytest.mark.parametrize("content", [b"", b"half a file", None])
def test_a_file_that_breaks_while_the_door_serves_leaves_the_earlier_ones(
    ca: Path, clock: SetClock, file: str, content: bytes | None
) -> None:
    context = client_of(ca, "acme")
    with serving(DoorTls(files_of(ca), clock)) as port:
        good = (ca / file).read_bytes()
        (ca / file).unlink() if content is None else (ca / file).write_bytes(content)
        clock.now += LOOK_SECONDS
        assert answer(port, context)["tenant"] == "acme"
        with refused():
            answer(port, client_of_copy(ca, "revoked", file, good))
        (ca / file).write_bytes(good)
        (ca / file).chmod(0o600)
        renew(ca, "web", NOW)
        clock.now += LOOK_SECONDS
        assert answer(port, context)["tenant"] == "acme"


def client_of_copy(ca: Path, name: str, file: str, good: bytes) -> ssl.SSLContext:
    """A client's TLS context. If `file` is the broken ca.pem, the context uses a copy with the good content."""
    if file != "ca.pem":
        return client_of(ca, name)
    kept = ca.with_name("kept")
    shutil.copytree(ca, kept, dirs_exist_ok=True)
    (kept / file).write_bytes(good)
    return client_of(kept, name)


def test_a_list_past_its_next_update_refuses_every_client_until_it_is_signed_again(ca: Path, clock: SetClock) -> None:
    good = (ca / "crl.pem").read_bytes()
    sign_old_list(ca, NOW - 10 * DAY)
    with serving(DoorTls(files_of(ca), clock)) as port:
        with refused():
            answer(port, client_of(ca, "acme"))
        assert answer(port, client_of(ca)) == {"refusal": None}
        (ca / "crl.pem").write_bytes(good)
        clock.now += LOOK_SECONDS
        assert answer(port, client_of(ca, "acme"))["tenant"] == "acme"


def sign_old_list(ca: Path, end: datetime) -> None:
    """Replace the revocation list by one whose next update was due at `end`."""
    certificate = x509.load_pem_x509_certificate((ca / "ca.pem").read_bytes())
    key = load_pem_private_key((ca / "ca.key").read_bytes(), None)
    assert isinstance(key, EllipticCurvePrivateKey)
    crl = sign_crl(Authority(certificate, key), (), 1, end - 10 * DAY, end)
    (ca / "crl.pem").write_bytes(crl.public_bytes(Encoding.PEM))


def test_the_log_names_each_file_that_expires_once_and_again_when_it_has_expired(
    ca: Path, clock: SetClock, caplog: pytest.LogCaptureFixture
) -> None:
    door = DoorTls(files_of(ca), clock)
    assert "certificates-expiring" not in caplog.text
    for days, told in ((61, ["web.pem"]), (1, []), (29, ["web.pem"]), (3200, ["ca.pem", "crl.pem"])):
        clock.now += days * DAY.total_seconds()
        door.look()
        door.look()
        lines = [record.getMessage() for record in caplog.records if "certificates-expiring" in record.getMessage()]
        assert [name for line in lines for name in ("web.pem", "ca.pem", "crl.pem") if f"/{name}" in line] == told
        caplog.clear()


def test_the_metrics_show_the_certificate_that_ends_first_and_follow_a_replaced_file(ca: Path, clock: SetClock) -> None:
    metrics = Metrics()
    door = DoorTls(files_of(ca), clock, metrics)
    first = {kind: lifetime(metrics, kind) for kind in ("certificate", "authority", "revocation_list")}
    now = NOW.timestamp()
    assert all(begin <= now < end for begin, end in first.values())
    assert first["revocation_list"][1] == first["authority"][1]

    renew(ca, "web", NOW + DAY)
    clock.now += LOOK_SECONDS
    door.look()
    assert lifetime(metrics, "certificate")[1] > first["certificate"][1]
    assert lifetime(metrics, "authority") == first["authority"]


def lifetime(metrics: Metrics, kind: str) -> tuple[float, float]:
    """Return when a certificate's validity begins and ends, as the metrics state it in Unix seconds."""
    shown = [
        metrics.registry.get_sample_value(f"postback_certificate_{side}_timestamp_seconds", {"kind": kind})
        for side in ("begin", "end")
    ]
    begin, end = (value for value in shown if value is not None)
    return begin, end


def test_a_door_without_a_revocation_list_says_so_and_accepts_clients(
    ca: Path, clock: SetClock, caplog: pytest.LogCaptureFixture
) -> None:
    (ca / "crl.pem").rename(ca / "elsewhere.pem")
    with serving(DoorTls(files_of(ca), clock)) as port:
        assert answer(port, client_of(ca, "revoked"))["tenant"] == "acme"
    assert "revocation-unchecked" in caplog.text
    with serving(DoorTls(files_of(ca, client_crl=ca / "elsewhere.pem"), clock)) as port, refused("certificate_revoked"):
        answer(port, client_of(ca, "revoked"))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"certificate": "absent.pem"}, "no such file"),
        ({"certificate": "acme.pem"}, "the key is not the certificate's"),
        ({"client_ca": "absent.pem"}, "no such file"),
        ({"client_crl": "absent.pem"}, "no such file"),
        ({"client_crl": "ca.pem"}, "content besides revocation lists"),
        ({"client_crl": "empty.pem"}, "expected content"),
        ({"client_ca": "empty.pem"}, "expected content"),
        ({"key": "open.key"}, "chmod 600"),
    ],
)
def test_files_that_cannot_be_used_stop_the_start_with_the_file_and_the_reason(
    ca: Path, clock: SetClock, changes: dict[str, str], problem: str
) -> None:
    (ca / "empty.pem").write_bytes(b"")
    shutil.copy(ca / "web.key", ca / "open.key")
    (ca / "open.key").chmod(0o644)
    with pytest.raises(TlsFileUnusable, match=problem):
        DoorTls(files_of(ca, **{name: ca / file for name, file in changes.items()}), clock)
