"""The client library without a fleet: answers, callbacks, repeats, uploads, spans, and partitions of tenants."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import socket
import subprocess
import sys
import threading
import tomllib
import zipfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from gateway.door.routes.events import event_text
from gateway.view.stored_events import StoredEvent
from postback_client import (
    CallbackRefused,
    Conflict,
    HttpClient,
    InvalidRequest,
    Job,
    PostbackError,
    RateLimited,
    Result,
    SubmitFailed,
    Unreachable,
    UnreadableAnswer,
    UnusableKey,
    verify,
)
from postback_client.client import Submitted
from postback_client.server_sent import ServerSentParser
from postback_client.shapes import parsed, read
from schemas import signature
from schemas.affinity import shard_of
from schemas.event import event_body
from schemas.outcome import Outcome
from schemas.result import Result as FleetResult
from telemetry.hand_clock import HandClock
from telemetry.traces import parse_traceparent
from tests.drawn import drawn
from tests.http_handler import Answering, handling

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "producers" / "postback_client"
NOW = 1_800_000_000
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["job_id", "outcome", "data"]), inner),
)
RESULT = FleetResult(job_id="job_1", outcome=Outcome.SUCCEEDED, text="Rayleigh", created_at=NOW)


Answer = tuple[int, dict[str, str], bytes]


@contextmanager
def scripted(*answers: Answer) -> Iterator[tuple[str, list[tuple[str, dict[str, str], bytes]]]]:
    """The URL of a server and the requests it got; the server gives these answers in turn, and repeats the last."""
    got: list[tuple[str, dict[str, str], bytes]] = []

    class Handler(Answering):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            got.append((self.path, {name.lower(): value for name, value in self.headers.items()}, self.body()))
            status, headers, content = answers[min(len(got), len(answers)) - 1]
            self.answer(status, content, headers=headers)

        do_GET = do_POST  # noqa: N815

    with handling(Handler) as url:
        yield url, got


def refusal(code: str, **more: Any) -> bytes:
    return json.dumps({"error": {"message": "no", "code": code, **more}}).encode()


def test_a_repeat_sends_the_same_request_with_the_same_key_after_the_pause_that_is_asked_for() -> None:
    clock = HandClock(NOW)
    answers = [(429, {"retry-after": "7"}, refusal("rate_limited")), (503, {}, b""), (202, {}, b"{}")]
    with scripted(*answers) as (url, got), HttpClient(url, "secret", clock=clock) as client:
        assert client.submit([Job(prompt="q", job_id="a")]) == ["a"]
    assert [body for _, _, body in got] == [b'[{"job_id":"a","prompt":"q"}]'] * 3
    assert len({headers["idempotency-key"] for _, headers, _ in got}) == 1
    assert {headers["authorization"] for _, headers, _ in got} == {"Bearer secret"}
    assert clock.time() - NOW >= 7
    clock.now = NOW  # a pause of hours is shortened, and repeats end
    with (
        scripted((429, {"retry-after": "86400"}, refusal("rate_limited"))) as (url, got),
        HttpClient(url, "k", clock=clock, patience_seconds=100) as client,
        pytest.raises(RateLimited) as error,
    ):
        client.status("job_1")
    assert (error.value.code, len(got), clock.time() - NOW) == ("rate_limited", 2, 60)


def test_a_wait_for_a_gateway_that_is_away_is_told_once_with_its_end_until_the_gateway_answers_again() -> None:
    clock, said = HandClock(NOW), list[str]()
    away: Answer = (503, {}, b"")
    answers: list[Answer] = [*[away] * 6, (200, {}, b'{"id":"a","status":"queued"}'), away]
    with (
        scripted(*answers) as (url, got),
        HttpClient(url, "k", clock=clock, patience_seconds=100, tell=said.append) as client,
    ):
        assert client.status("a") == "queued"
        assert said == [f"the gateway at {url} answers with status 503; trying again until 08:01:40 UTC"]
        with pytest.raises(PostbackError):
            client.status("a")
    assert len(said) == 2
    assert len(got) > len(answers)


def test_a_short_fault_is_not_told_and_the_default_is_a_warning_of_the_logger(caplog: pytest.LogCaptureFixture) -> None:
    clock = HandClock(NOW)
    with scripted((503, {}, b""), (202, {}, b"{}")) as (url, _), HttpClient(url, "k", clock=clock) as client:
        client.submit([Job(prompt="q")])
        assert caplog.messages == []
    clock.now = NOW
    with HttpClient(url, "k", clock=clock, patience_seconds=30) as client, pytest.raises(Unreachable):
        client.status("a")
    said = f"the gateway at {url} does not answer; trying again until 08:00:30 UTC"
    assert caplog.record_tuples == [("postback_client", logging.WARNING, said)]


def test_a_gateway_that_accepts_and_stays_silent_is_told_of_while_its_answer_is_awaited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("postback_client.http_session.TOLD_SECONDS", 0.05)
    told, said = threading.Event(), list[str]()

    def tell(sentence: str) -> None:
        said.append(sentence)
        told.set()

    def answer() -> None:
        """Answer only once the wait was told; the listening socket's backlog accepts the connection before."""
        told.wait(50)
        with silent.accept()[0] as connection:
            connection.recv(64 * 1024)
            connection.sendall(b'HTTP/1.1 200 OK\r\ncontent-length: 28\r\n\r\n{"id":"a","status":"queued"}')

    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(1) as thread:
        answered, url = thread.submit(answer), f"http://127.0.0.1:{silent.getsockname()[1]}"
        with HttpClient(url, "k", clock=HandClock(NOW), patience_seconds=100, tell=tell) as client:
            assert client.status("a") == "queued"
        answered.result()
    assert said == [f"the gateway at {url} does not answer; trying again until 08:01:40 UTC"]


def test_a_failed_submission_names_the_jobs_that_were_accepted_and_is_final_if_repeats_are_forbidden() -> None:
    def failed(*answers: Answer) -> tuple[SubmitFailed, int]:
        jobs = [{"prompt": "q", "job_id": name} for name in "abcde"]
        with scripted(*answers) as (url, got), HttpClient(url, "k", jobs_together=2) as client:
            with pytest.raises(SubmitFailed) as error:
                client.submit(jobs)
            return error.value, len(got)

    taken: Answer = (202, {}, b"{}")
    error, asked = failed(taken, taken, (409, {}, refusal("job_exists", param="job_id")))
    assert (error.accepted, asked) == (["a", "b", "c", "d"], 3)
    assert isinstance(error.__cause__, Conflict)
    error, asked = failed((429, {"x-should-retry": "false"}, refusal("quota_exceeded")))
    assert (error.accepted, error.doubtful, asked) == ([], [], 1)


def test_jobs_are_doubtful_if_any_try_of_their_request_had_no_definite_answer() -> None:
    taken, away = (202, dict[str, str](), b"{}"), (503, dict[str, str](), b"")
    refused = (429, {"x-should-retry": "false"}, refusal("quota_exceeded"))
    for answers in ((taken, away), (taken, refused, away), (taken, away, refused)):
        jobs = [{"prompt": "q", "job_id": name} for name in "abc"]
        with (
            scripted(*answers) as (url, _),
            HttpClient(url, "k", jobs_together=2, clock=HandClock(NOW), patience_seconds=9) as client,
            pytest.raises(SubmitFailed) as error,
        ):
            client.submit(jobs)
        expected = [] if answers[1] is refused else ["c"]
        assert (error.value.accepted, error.value.doubtful) == (["a", "b"], expected)


def test_a_stream_that_is_cut_off_before_its_first_event_goes_on_at_its_position() -> None:
    event = event_text(StoredEvent(6, "inference.succeeded", event_body(RESULT, "msg_1", "acme")))
    answers = [b"id: 5\nretry: 2000\n\n", b'{"id": "job_1", "result": null}', event]
    given = [(200, dict[str, str](), answer) for answer in answers]
    with scripted(*given) as (url, got), HttpClient(url, "k", clock=HandClock(NOW)) as client:
        assert [result.text for result in client.stream(["job_1"])] == ["Rayleigh"]
    asked = [(path.partition("?")[0], headers.get("last-event-id")) for path, headers, _ in got]
    assert asked == [("/v1/events", None), ("/v1/jobs/job_1", None), ("/v1/events", "5")]


def test_jobs_that_are_no_json_end_the_submission_and_name_the_job() -> None:
    for wrong in (object(), float("nan"), "\ud800"):
        jobs: list[dict[str, Any]] = [{"prompt": "q", "job_id": "a"}, {"prompt": "q", "job_id": "b"}, {"prompt": wrong}]
        with scripted((202, {}, b"{}")) as (url, got), HttpClient(url, "k", jobs_together=1) as client:
            with pytest.raises(SubmitFailed, match="job 2 ") as failed:
                client.submit(jobs)
            assert failed.value.accepted == ["a"]
            assert len(got) == 1


def test_an_idempotency_key_gives_the_same_ids_in_every_process() -> None:
    with scripted((202, {}, b"{}")) as (url, got), HttpClient(url, "k") as client:
        once = client.submit([Job(prompt="q"), Job(prompt="r")], idempotency_key="import-7")
        again = client.submit([Job(prompt="q"), Job(prompt="r")], idempotency_key="import-7")
        other = client.submit([Job(prompt="q")])
    assert once == again
    assert len({*once, *other}) == 3
    assert got[0][2] == got[1][2]


def test_a_key_does_not_travel_to_an_unsafe_url() -> None:
    hosts = ("http://postback.example", "ftp://127.0.0.1", "https://h/path", "https://h/?q", "https://u:p@h", "", "//")
    for url in hosts:
        with pytest.raises(ValueError):
            HttpClient(url, "k")


@given(content=st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_answer_gives_a_result_or_an_error_of_the_library(content: bytes) -> None:
    try:
        read(Result, parsed(content))
    except UnreadableAnswer as error:
        assert len(str(error)) < 200
    newer = json.loads(RESULT.model_dump_json()) | {"mood": "good"}
    result = read(Result, newer)
    assert (result.job_id, result.text, result.succeeded, result.raw["mood"]) == ("job_1", "Rayleigh", True, "good")


@given(name=st.sampled_from(sorted(FleetResult.model_fields)), value=JSON)
def test_a_member_of_another_type_is_refused(name: str, value: Any) -> None:
    document = json.loads(RESULT.model_dump_json()) | {name: value}
    try:
        read(Result, document)
    except UnreadableAnswer as error:
        assert name in str(error)
        return
    lists, texts = ("sources", "source_details", "citations", "notes"), ("text", "outcome", "engine")
    assert name not in lists or value is None or isinstance(value, list)
    assert name not in texts or value is None or isinstance(value, str)


@given(
    events=st.lists(st.tuples(st.integers(1, 10**9), JSON.map(lambda value: json.dumps(value).encode())), max_size=4),
    cuts=st.lists(st.integers(1, 40), min_size=1),
    line_end=st.sampled_from([b"\n", b"\r\n", b"\r"]),
    noise=st.lists(st.binary()),
)
def test_events_are_read_in_pieces_of_any_size_and_any_other_bytes_may_come(
    events: list[tuple[int, bytes]], cuts: list[int], line_end: bytes, noise: list[bytes]
) -> None:
    stored = [StoredEvent(number, "batch.completed", data) for number, data in events]
    content = b"".join(map(event_text, stored)).replace(b"\n", line_end) + b": heartbeat\n\n"
    parser, found, place = ServerSentParser(), [], 0
    while place < len(content):
        size = cuts[place % len(cuts)]
        found += parser.feed(content[place : place + size])
        place += size
    assert [(each.id, each.data.encode()) for each in found] == [(str(number), data) for number, data in events]
    parser = ServerSentParser()
    for piece in noise:
        parser.feed(piece)


SECRETS = [signature.generate_secret() for _ in range(2)]
SIGNING_KEYS = [signature.generate_signing_key() for _ in range(2)]
BODY = event_body(RESULT, "msg_1", "acme")


@given(
    content=st.just(BODY) | st.binary(),
    signed=st.just(BODY) | st.binary(),
    by=st.lists(st.sampled_from([*SECRETS, *SIGNING_KEYS]), min_size=1, max_size=3),
    secrets=st.lists(st.sampled_from(SECRETS)),
    keys=st.lists(st.sampled_from(SIGNING_KEYS)),
    drift=st.floats(-400, 400),
    noise=st.dictionaries(
        st.sampled_from(["Webhook-Id", "webhook-timestamp", "webhook-signature"]), st.text(), max_size=1
    ),
)
def test_a_callback_is_trusted_exactly_if_the_fleets_own_check_trusts_it(
    content: bytes,
    signed: bytes,
    by: list[str],
    secrets: list[str],
    keys: list[str],
    drift: float,
    noise: dict[str, str],
) -> None:
    signer = signature.Signer([k for k in by if k in SECRETS], [k for k in by if k in SIGNING_KEYS])
    headers = signer.headers("msg_1", NOW, signed) | noise
    public = [signature.public_key_of(key) for key in keys]
    try:
        signature.verify(headers, content, secrets, public, NOW + drift)
    except signature.VerificationError:
        trusted = False
    else:
        trusted = True
    try:
        callback = verify(headers, content, secrets=secrets, public_keys=public, clock=HandClock(NOW + drift))
    except CallbackRefused as refused:
        assert trusted == (refused.reason == "malformed_event")
    else:
        assert trusted
        assert callback.result is not None
        assert (callback.id, callback.tenant, callback.result.text) == ("msg_1", "acme", "Rayleigh")


def test_a_signature_is_refused_if_its_last_byte_is_moved_into_the_content_or_for_another_tenant() -> None:
    entry = signature.Signer([], SIGNING_KEYS[:1]).sign("msg_1", NOW, BODY)
    whole = base64.b64decode(entry.removeprefix("v1a,"))
    headers = {
        "webhook-id": chr(whole[-1]) + "msg_1",  # the signature's last byte is below 16, and so an ASCII character
        "webhook-timestamp": str(NOW),
        "webhook-signature": f"v1a,{base64.b64encode(whole[:-1]).decode()}",
    }
    with pytest.raises(CallbackRefused) as refused:
        verify(headers, BODY, public_keys=[signature.public_key_of(SIGNING_KEYS[0])], clock=HandClock(NOW))
    assert refused.value.reason == "no_matching_signature"
    headers = signature.Signer(SECRETS).headers("msg_1", NOW, BODY)
    assert verify(headers, BODY, secrets=SECRETS, tenant="acme", clock=HandClock(NOW)).type == "inference.succeeded"
    with pytest.raises(CallbackRefused) as refused:
        verify(headers, BODY, secrets=SECRETS, tenant="other", clock=HandClock(NOW))
    assert refused.value.reason == "other_tenant"


@given(text=st.text() | st.text().map(lambda rest: f"whsec_{rest}") | st.text().map(lambda rest: f"whpk_{rest}"))
def test_a_text_that_is_no_key_is_refused_and_not_shown(text: str) -> None:
    for keys in ({"secrets": [text]}, {"public_keys": [text]}):
        with pytest.raises(PostbackError) as error:
            verify({}, b"", **keys)  # type: ignore[arg-type]
        assert isinstance(error.value, UnusableKey | CallbackRefused)
        assert len(text) < 12 or text not in str(error.value)


def alone(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a Python that finds the client library, and nothing of the fleet or of optional libraries."""
    hidden = "import sys\nfor name in ('kafka', 'lz4', 'nacl', 'pydantic'): sys.modules[name] = None\n"
    paths = [path for path in sys.path if path and Path(path).resolve() != ROOT]
    begin = f"import sys; sys.path[:] = {[str(FOLDER), *paths]!r}\nsys.meta_path[:] = sys.meta_path[-3:]\n"
    done = [sys.executable, "-S", "-I", "-c", begin + hidden + code]
    return subprocess.run(done, capture_output=True, text=True, timeout=60, check=False)


def test_the_library_works_without_the_fleet_and_without_optional_libraries() -> None:
    code = """
import postback_client
from postback_client import HttpClient, Job, verify
fleet = {"schemas", "telemetry", "screening", "producers", "workers", "gateway", "cli"}
print(sorted(fleet & {name.partition(".")[0] for name in sys.modules}))
try:
    verify({}, b"", public_keys=["whpk_" + "A" * 43 + "="])
except postback_client.UnusableKey as error:
    print(error)
try:
    import schemas
except ModuleNotFoundError:
    print("no fleet")
"""
    done = alone(code)
    assert (done.returncode, done.stderr) == (0, "")
    needs = "whpk_ keys need PyNaCl: pip install 'postback-client[ed25519]'"
    assert done.stdout.splitlines() == ["[]", needs, "no fleet"]


def test_the_two_wheels_have_no_file_in_common(tmp_path: Path) -> None:
    files = []
    for source in (ROOT, FOLDER):
        out = tmp_path / source.name
        build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
        subprocess.run(build, cwd=source, check=True, capture_output=True, timeout=120)
        (wheel,) = out.glob("*.whl")
        files.append(set(zipfile.ZipFile(wheel).namelist()))
    fleet, client = files
    assert {name.partition("/")[0] for name in client} == {"postback_client", "postback_client-0.1.0.dist-info"}
    assert {
        "postback_client/py.typed",
        "postback_client/sharding.py",
        "postback_client-0.1.0.dist-info/licenses/LICENSE",
    } <= client
    assert not [name for name in fleet if "postback_client" in name]
    versions = {tomllib.loads((each / "pyproject.toml").read_text())["project"]["version"] for each in (ROOT, FOLDER)}
    assert len(versions) == 1


# -- uploads -----------------------------------------------------------------------------------------------------------


CONTENT = b"0123456789abcdefghijXYZ"
MD5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
PARTS = {"part_ids": ["part_1", "part_2", "part_3"], "md5": MD5}
FILE = {"id": "file-1", "bytes": len(CONTENT), "filename": "in.bin", "purpose": "batch", "created_at": NOW}
DONE: Answer = (200, {}, json.dumps({"id": "upload_1", "file": FILE}).encode())
ENDED: Answer = (409, {"x-should-retry": "false"}, refusal("upload_not_pending"))


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("postback_client.files.PART_BYTES", 10)


def created(number: int = 1) -> Answer:
    return 200, {}, json.dumps({"id": f"upload_{number}", "expires_at": NOW + 3600}).encode()


def part(number: int) -> Answer:
    return 200, {}, json.dumps({"id": f"part_{number}"}).encode()


def file_in(folder: Path) -> Path:
    path = folder / "in.bin"
    path.write_bytes(CONTENT)
    return path


def data_of(body: bytes) -> bytes:
    """The content of a form's only part."""
    return body.split(b"\r\n\r\n", 1)[1].rsplit(b"\r\n--", 1)[0]


def test_a_small_file_goes_in_one_request_whose_repeat_has_the_same_key(tmp_path: Path) -> None:
    answers = [(503, dict[str, str](), b""), (200, dict[str, str](), json.dumps(FILE).encode())]
    with scripted(*answers) as (url, got), HttpClient(url, "k", clock=HandClock(NOW)) as client:
        assert client.files.upload(file_in(tmp_path)).id == "file-1"
    (first, headers, body), again = got
    assert (first, headers["idempotency-key"], body) == (again[0], again[1]["idempotency-key"], again[2])
    assert (CONTENT in body, b'name="purpose"\r\n\r\nbatch' in body) == (True, True)


@pytest.mark.usefixtures("small_parts")
def test_a_file_goes_in_parts_and_a_part_without_an_answer_is_sent_again(tmp_path: Path) -> None:
    seen: list[int] = []
    answers = [created(), part(1), (503, {}, b""), part(2), part(3), DONE]
    with scripted(*answers) as (url, got), HttpClient(url, "k", clock=HandClock(NOW)) as client:
        made = client.files.upload(file_in(tmp_path), on_bytes=seen.append)
    assert (made.id, seen) == ("file-1", [0, 10, 20, 23])
    terms = {"bytes": 23, "filename": "in.bin", "purpose": "batch"}
    assert json.loads(got[0][2]) | {"mime_type": ""} == {**terms, "mime_type": ""}
    pieces = [data_of(body) for path, _, body in got if path.endswith("/parts")]
    assert pieces == [CONTENT[:10], CONTENT[10:20], CONTENT[10:20], CONTENT[20:]]
    assert json.loads(got[-1][2]) == PARTS


class Killed(BaseException):
    """Stands for the end of the process."""


def cut_off(client: HttpClient, source: Path, state: Path, after: int) -> None:
    """Upload until `after` bytes are sent, and then raise an error as if the process were killed."""

    def on_bytes(sent: int) -> None:
        if sent >= after:
            raise Killed

    with pytest.raises(Killed):
        client.files.upload(source, state=state, on_bytes=on_bytes)


@pytest.mark.usefixtures("small_parts")
def test_another_process_sends_only_the_parts_that_are_missing(tmp_path: Path) -> None:
    source, state, seen = file_in(tmp_path), tmp_path / "state", list[int]()
    with scripted(created(), part(1), part(2), part(3), DONE) as (url, got):
        with HttpClient(url, "k", clock=HandClock(NOW)) as client:
            cut_off(client, source, state, 20)
        with HttpClient(url, "k", clock=HandClock(NOW)) as client:
            client.files.upload(source, state=state, on_bytes=seen.append)
    assert seen == [20, 23]
    assert [path for path, _, _ in got].count("/v1/uploads") == 1
    assert json.loads(got[-1][2]) == PARTS
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("change", ["other content", "other purpose", "other gateway", "an hour later"])
@pytest.mark.usefixtures("small_parts")
def test_an_upload_that_does_not_fit_is_started_again(tmp_path: Path, change: str) -> None:
    source, state, clock, purpose = file_in(tmp_path), tmp_path / "state", HandClock(NOW), "batch"
    answers = [created(), part(1), created(2), part(4), part(5), part(6), DONE]
    with scripted(*answers) as (url, got):
        with HttpClient(url, "k", clock=clock) as client:
            cut_off(client, source, state, 10)
        if change == "other content":
            source.write_bytes(CONTENT[::-1])
        elif change == "an hour later":
            clock.now += 3600
        elif change == "other purpose":
            purpose = "user_data"
        else:
            state.write_text(state.read_text().replace(url, "https://other.example"))
        with HttpClient(url, "k", clock=clock) as client:
            client.files.upload(source, purpose=purpose, state=state)
    assert json.loads(got[-1][2])["part_ids"] == ["part_4", "part_5", "part_6"]
    assert got[-1][0] == "/v1/uploads/upload_2/complete"


@pytest.mark.usefixtures("small_parts")
def test_an_upload_that_has_ended_is_started_again_but_not_for_ever(tmp_path: Path) -> None:
    answers = [created(), part(1), ENDED, created(2), part(2), part(3), part(4), DONE]
    with scripted(*answers) as (url, got), HttpClient(url, "k", clock=HandClock(NOW)) as client:
        assert client.files.upload(file_in(tmp_path)).id == "file-1"
    assert json.loads(got[-1][2])["part_ids"] == ["part_2", "part_3", "part_4"]
    with (
        scripted(created(), ENDED, created(), ENDED, created(), ENDED, created()) as (url, got),
        HttpClient(url, "k", clock=HandClock(NOW)) as client,
        pytest.raises(Conflict),
    ):
        client.files.upload(file_in(tmp_path))
    assert len(got) == 6


@pytest.mark.parametrize(
    ("refused", "is_kept"),
    [((400, {}, refusal("checksum_mismatch")), False), ((413, {}, refusal("storage_full")), True)],
)
@pytest.mark.usefixtures("small_parts")
def test_the_state_is_kept_unless_the_parts_are_of_another_file(tmp_path: Path, refused: Answer, is_kept: bool) -> None:
    state = tmp_path / "state"
    with (
        scripted(created(), part(1), part(2), part(3), refused) as (url, _),
        HttpClient(url, "k", clock=HandClock(NOW)) as client,
        pytest.raises(InvalidRequest),
    ):
        client.files.upload(file_in(tmp_path), state=state)
    assert state.exists() is is_kept


STATE = {
    "gateway": "URL",
    "upload_id": "upload_0",
    "expires_at": NOW + 60,
    "bytes": 23,
    "modified_ns": 0,
    "purpose": "batch",
    "part_bytes": 10,
    "part_ids": ["part_0"],
}
VALUES = st.none() | st.integers() | st.text() | st.lists(st.text())


@given(
    st.binary() | st.fixed_dictionaries({}, optional={name: st.just(value) | VALUES for name, value in STATE.items()})
)
@example(STATE | {"part_bytes": 0})
@example(STATE | {"part_bytes": 30, "part_ids": ["a", "b"]})
@settings(deadline=None, max_examples=drawn(60), suppress_health_check=list(HealthCheck))
@pytest.mark.usefixtures("small_parts")
def test_a_state_of_any_content_leads_to_the_whole_file(tmp_path: Path, found: bytes | dict[str, Any]) -> None:
    source, state = file_in(tmp_path), tmp_path / "state"
    with scripted(created(), part(1), part(2), part(3), DONE) as (url, got):
        if isinstance(found, dict):
            of_file = {"gateway": url, "modified_ns": source.stat().st_mtime_ns}
            found = json.dumps({name: of_file.get(name, value) for name, value in found.items()}).encode()
        state.write_bytes(found)
        with HttpClient(url, "k", clock=HandClock(NOW)) as client:
            client.files.upload(source, state=state)
    sent = b"".join(data_of(body) for path, _, body in got if path.endswith("/parts"))
    assert CONTENT.endswith(sent)
    assert not state.exists()


# -- spans -------------------------------------------------------------------------------------------------------------


def test_the_header_names_the_exported_span_if_there_is_an_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    with Submitted("job_1") as submitted:
        assert submitted.headers == {}
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    accepted, refused = Submitted("job_1"), Submitted("job_2")
    accepted.end()
    refused.end(failed=True)
    with pytest.raises(ValueError, match="hush"), Submitted(None):
        raise ValueError("hush: the prompt")
    spans = exporter.get_finished_spans()
    assert [(span.name, span.status.status_code.name, dict(span.attributes or {})) for span in spans] == [
        ("submit", "UNSET", {"job_id": "job_1"}),
        ("submit", "ERROR", {"job_id": "job_2"}),
        ("submit", "ERROR", {}),
    ]
    context, own = parse_traceparent(accepted.headers["traceparent"]), spans[0].context
    assert context is not None
    assert (int(context.trace_id, 16), int(context.span_id, 16)) == (own.trace_id, own.span_id)
    assert "hush" not in spans[2].to_json()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: TracerProvider(sampler=ALWAYS_OFF))
    unsampled = parse_traceparent(Submitted().headers["traceparent"])
    assert unsampled is not None
    assert not unsampled.sampled


# -- partitions of tenants ---------------------------------------------------------------------------------------------


def test_a_tenants_shard_never_changes() -> None:
    # These shards stay the same, because every tenant's queue would move if a new version chose other shards.
    assert shard_of("acme", 12) == (0, 1, 3, 10)
    assert shard_of("globex", 12) == (0, 2, 3, 9)
    for tenant in (f"t{number}" for number in range(200)):
        assert len(set(shard_of(tenant, 12)) - set(shard_of(tenant, 13))) <= 1
    # Tenants are spread evenly, and seldom share a whole shard.
    shards = [shard_of(f"t{number}", 12) for number in range(1200)]
    load = Counter(partition for shard in shards for partition in shard)
    assert min(load.values()) > 0.8 * 400
    assert max(load.values()) < 1.2 * 400
    assert Counter(shards).most_common(1)[0][1] <= 12


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", fullmatch=True), st.integers(1, 64))
def test_a_shard_holds_a_third_of_the_partitions(tenant: str, partitions: int) -> None:
    shard = shard_of(tenant, partitions)
    assert list(shard) == sorted(set(shard))
    assert set(shard) <= set(range(partitions))
    assert shard_of("default", partitions) == tuple(range(partitions))
    sizes = {1: 1, 2: 2, 4: 2, 12: 4, 100: 33}
    assert {size: len(shard_of("acme", size)) for size in sizes} == sizes
