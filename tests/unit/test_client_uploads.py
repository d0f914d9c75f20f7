"""Uploads of the client library in parts: repeats, ended uploads, and earlier runs' state files of any content."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from postback_client import Conflict, HttpClient, InvalidRequest
from telemetry.hand_clock import HandClock
from tests.drawn import drawn
from tests.unit.test_client_library import NOW, refusal, scripted

CONTENT = b"0123456789abcdefghijXYZ"
FILE = {"id": "file-1", "bytes": len(CONTENT), "filename": "in.bin", "purpose": "batch", "created_at": NOW}
Answer = tuple[int, dict[str, str], bytes]
DONE: Answer = (200, {}, json.dumps({"id": "upload_1", "file": FILE}).encode())
ENDED: Answer = (409, {"x-should-retry": "false"}, refusal("upload_not_pending"))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("parts", "files"):
        monkeypatch.setattr(f"postback_client.{module}.PART_BYTES", 10)


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


def test_a_file_goes_in_parts_and_a_part_without_an_answer_is_sent_again(tmp_path: Path) -> None:
    seen: list[int] = []
    answers = [created(), part(1), (503, {}, b""), part(2), part(3), DONE]
    with scripted(*answers) as (url, got), HttpClient(url, "k", clock=HandClock(NOW)) as client:
        made = client.files.upload(file_in(tmp_path), on_bytes=seen.append)
    assert (made.id, seen) == ("file-1", [0, 10, 20, 23])
    assert json.loads(got[0][2]) | {"mime_type": ""} == {
        "bytes": 23,
        "filename": "in.bin",
        "mime_type": "",
        "purpose": "batch",
    }
    pieces = [data_of(body) for path, _, body in got if path.endswith("/parts")]
    assert pieces == [CONTENT[:10], CONTENT[10:20], CONTENT[10:20], CONTENT[20:]]
    md5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
    assert json.loads(got[-1][2]) == {"part_ids": ["part_1", "part_2", "part_3"], "md5": md5}


class Killed(BaseException):
    """Stands for the end of the process."""


def cut_off(client: HttpClient, source: Path, state: Path, after: int) -> None:
    """Upload until `after` bytes are sent, and then raise an error as if the process were killed."""

    def on_bytes(sent: int) -> None:
        if sent >= after:
            raise Killed

    with pytest.raises(Killed):
        client.files.upload(source, state=state, on_bytes=on_bytes)


def test_another_process_sends_only_the_parts_that_are_missing(tmp_path: Path) -> None:
    source, state, seen = file_in(tmp_path), tmp_path / "state", list[int]()
    with scripted(created(), part(1), part(2), part(3), DONE) as (url, got):
        with HttpClient(url, "k", clock=HandClock(NOW)) as client:
            cut_off(client, source, state, 20)
        with HttpClient(url, "k", clock=HandClock(NOW)) as client:
            client.files.upload(source, state=state, on_bytes=seen.append)
    assert seen == [20, 23]
    assert [path for path, _, _ in got].count("/v1/uploads") == 1
    md5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
    assert json.loads(got[-1][2]) == {"part_ids": ["part_1", "part_2", "part_3"], "md5": md5}
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("change", ["other content", "other purpose", "other gateway", "an hour later"])
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
