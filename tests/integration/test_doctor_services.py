"""`postback doctor` on real servers beside Kafka: each fault of Redis, PostgreSQL, S3 and a model server is named."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from tests.http_handler import handling
from tests.postgres_server import PostgresServer
from tests.redis_server import RedisServer
from tests.s3_server import ACCESS, SECRET, s3_server
from tests.unit.test_doctor import NO_KAFKA, findings, told

pytestmark = pytest.mark.timeout(1_200)  # the first test builds the S3 server, which takes minutes

ENDPOINT = "AWS_ENDPOINT_URL_S3"


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The endpoint of a server with the bucket `files`, and the folder of its buckets."""
    folder = tmp_path_factory.mktemp("s3") / "data"
    with s3_server(folder, "files") as endpoint:
        yield endpoint, folder


@pytest.mark.parametrize(
    ("place", "secret", "problem"),
    [
        ("s3://files", SECRET, ""),
        ("s3://nowhere", SECRET, "(NoSuchBucket)"),
        ("s3://files", "wrong", "(SignatureDoesNotMatch)"),
    ],
)
def test_a_bucket_that_is_missing_or_refuses_the_key_is_named(
    s3: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, place: str, secret: str, problem: str
) -> None:
    _credentials(monkeypatch, secret)
    found = findings("files", POSTBACK_FILES__PLACE=place, **{ENDPOINT: s3[0]})
    if not problem:
        assert found == []
        assert list(s3[1].glob("files/doctor*")) == []
    else:
        assert told(found, problem, "POSTBACK_FILES__PLACE"), found


def test_a_bucket_service_that_is_away_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    _credentials(monkeypatch, SECRET)
    found = findings("files", POSTBACK_FILES__PLACE="s3://files", **{ENDPOINT: f"http://{NO_KAFKA}"})
    assert told(found, "does not answer", "POSTBACK_FILES__PLACE"), found


def test_a_bucket_that_takes_no_writes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server answers as S3 does for a key that may only read: it knows no object, and denies each write."""
    _credentials(monkeypatch, SECRET)
    with handling(ReadOnly) as url:
        found = findings("files", POSTBACK_FILES__PLACE="s3://files", **{ENDPOINT: url})
    assert told(found, "cannot be written: the bucket of files refuses a request (AccessDenied)", "PLACE"), found


class ReadOnly(BaseHTTPRequestHandler):
    """A bucket without objects that denies writes."""

    def do_GET(self) -> None:
        self._refuse(404, "NoSuchKey")

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._refuse(403, "AccessDenied")

    do_POST = do_PUT  # noqa: N815 - the base class finds it by this name

    def _refuse(self, status: int, code: str) -> None:
        body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Write no line for a request."""


def test_a_redis_that_is_a_replica_is_named_as_read_only(tmp_path: Path) -> None:
    import redis

    with RedisServer(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        for role in ("ACCESS", "CACHE"):
            assert findings(f"redis-{role.lower()}", **{f"POSTBACK_{role}__REDIS_URL": server.url}) == []
        client.execute_command("REPLICAOF", "127.0.0.1", "9")
        for role in ("ACCESS", "CACHE"):
            variable = f"POSTBACK_{role}__REDIS_URL"
            found = findings(f"redis-{role.lower()}", **{variable: server.url})
            assert told(found, f"the Redis of {variable} takes no writes (ReadOnlyError)", "name the primary"), found


def test_a_redis_that_refuses_the_password_is_named_for_each_setting(tmp_path: Path) -> None:
    import redis

    with RedisServer(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        client.config_set("requirepass", "right")
        for setting in ("ACCESS", "CACHE", "DELTAS"):
            variable, check = f"POSTBACK_{setting}__REDIS_URL", f"redis-{setting.lower()}"
            assert findings(check, **{variable: server.url.replace("//", "//:right@")}) == []
            for url in (server.url, server.url.replace("//", "//:wrong@")):
                found = findings(check, **{variable: url})
                assert told(found, f"the Redis of {variable} refuses the password", f"in {variable}"), found


@pytest.mark.parametrize("refused", ["", "-publish", "-subscribe", "-ping", "resetchannels"])
def test_a_user_of_redis_that_may_not_publish_or_subscribe_is_named_for_deltas(refused: str, tmp_path: Path) -> None:
    """Without a refusal, the user has only the rights that docs/howto/gateway.md names."""
    import redis

    rights = ["on", ">word", "-@all", "&postback:deltas:*", *("+ping", "+publish", "+subscribe", "+unsubscribe")]
    with RedisServer(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        client.execute_command("ACL", "SETUSER", "speaker", *rights, *([refused] if refused else []))
        url = server.url.replace("//", "//speaker:word@")
        found = findings("redis-deltas", POSTBACK_DELTAS__REDIS_URL=url)
        if refused:
            problem = "the Redis of POSTBACK_DELTAS__REDIS_URL refuses a command of this user"
            assert told(found, problem, "PUBLISH, SUBSCRIBE"), found
        else:
            assert found == []
            assert told(findings("redis-cache", POSTBACK_CACHE__REDIS_URL=url), "refuses a command", "writes")


def test_a_database_of_another_encoding_is_named(postgres: PostgresServer) -> None:
    found = findings("store", POSTBACK_STORE__URL=postgres.new_database("SQL_ASCII"))
    assert told(found, "the store's database has the encoding SQL_ASCII", "ENCODING 'UTF8'"), found


class Website(BaseHTTPRequestHandler):
    """A server of a page instead of models; under another path it serves nothing."""

    def do_GET(self) -> None:
        body = b"<html>Welcome</html>"
        self.send_response(200 if self.path == "/v1/models" else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Write no line for a request."""


def test_a_base_url_without_a_model_server_and_a_hung_one_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.operate.doctor_engine._ANSWER_SECONDS", 0.5)
    with handling(Website) as url, socket.create_server(("127.0.0.1", 0)) as hung:
        silent = f"http://127.0.0.1:{hung.getsockname()[1]}"
        for base, problem, fix in (
            (f"{url}/v1", "answers, and is no model server", "POSTBACK_ENGINE__OPENAI__BASE_URL"),
            (url, "lists no models (404)", "end POSTBACK_ENGINE__OPENAI__BASE_URL with /v1"),
            (f"{silent}/v1", f"the server at {silent} hangs", "restart it"),
        ):
            found = findings("engine", "--engine", "openai", "--model", "m", POSTBACK_ENGINE__OPENAI__BASE_URL=base)
            assert told(found, problem, fix), found


def _credentials(monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    for name, value in (("ACCESS_KEY_ID", ACCESS), ("SECRET_ACCESS_KEY", secret), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
