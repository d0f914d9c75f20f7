"""Batches: lines of the input, ranges, the life from creation to files, and every other end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import Batch, BatchUsage
from sqlalchemy import Connection, select

from gateway.access.quotas import queued_work, release
from gateway.access.tenant_settings import TenantSettings
from gateway.batches import finalising
from gateway.batches.checking import Checked, check_file
from gateway.batches.clerk import LATE_MS
from gateway.batches.expansion import UNUSABLE, ExpansionHandler
from gateway.batches.files import FileTerms, Shelf
from gateway.batches.finalising import finalise
from gateway.batches.orders import BatchRow, find
from gateway.batches.ranges import (
    MOST_BYTES,
    MOST_LINES,
    InvalidRange,
    LineRange,
    cut,
    job_id,
    lines_of,
    read_range,
    write_range,
)
from gateway.blobs.base import BlobsAway
from gateway.store.tables import batch_segments, files
from gateway.view.offsets import OffsetsMoved, TopicPlace, begin_at, move
from gateway.view.records import ResultRecord
from gateway.view.segments import forget_since
from gateway.view.stored_jobs import find_job, line_of
from gateway.view.writing import write_results
from producers.identity import new_hex
from schemas.affinity import shard_of
from schemas.codec import read_result
from schemas.control import read_control, read_job_key
from schemas.job import MAX_JOB_BYTES
from schemas.outcome import Outcome
from schemas.result import Result
from schemas.topics import DEADLINE, JOB_ID, TENANT, TRACEPARENT
from telemetry.metrics import Metrics
from tests.drawn import JSON, drawn
from tests.unit.batch_rig import (
    CHAT,
    TOPICS,
    BatchRig,
    batch_rig,
    job_of,
    jsonl,
    line,
    lines,
    put_batch,
    result_record,
    twelve,
)
from tests.unit.gateway_rig import gateway_rig


@pytest.fixture(autouse=True)
def quick_clerk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.batches.clerk.POLL_SECONDS", 0.02)


@pytest_asyncio.fixture
async def rig(tmp_path: Path) -> AsyncIterator[BatchRig]:
    async with batch_rig(tmp_path) as made:
        yield made


@pytest_asyncio.fixture
async def both(tmp_path: Path, store_url: str) -> AsyncIterator[BatchRig]:
    """A rig on SQLite, and one on PostgreSQL."""
    async with batch_rig(tmp_path, store_url) as made:
        yield made


# -- a batch's life ----------------------------------------------------------------------------------------------------


TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ALL_BAD = [Outcome.FAILED, Outcome.EXPIRED, Outcome.CANCELLED, Outcome.REJECTED]


async def test_a_batch_runs_from_its_creation_to_its_files(both: BatchRig) -> None:
    async with both.clerk():
        batch_id = await both.create(lines(1203), metadata={"a": "b"}, headers={TRACEPARENT: TRACE})
        running = await both.until(batch_id, "in_progress")
        assert running["request_counts"] == {"total": 1203, "completed": 0, "failed": 0}
        made = await both.expand()
        both.answer(made, lambda number: ALL_BAD[number % 4] if number % 3 == 0 else Outcome.SUCCEEDED)
        ended = await both.until(batch_id, "completed")

    received = [job_of(output) for output in made]
    assert [job.job_id for job in received] == [f"{batch_id}.{number}" for number in range(1203)]
    assert {job.tenant for job in received} == {"acme"}
    assert {job.deadline_ms for job in received} == {1000 * running["expires_at"]}
    assert {job.traceparent for job in received} == {TRACE}
    assert {output.topic for output in made} == {TOPICS.requests(bulk=True)}
    assert {output.partition for output in made} == set(shard_of("acme", 12))
    done, failed = await both.assert_complete(ended, 1203)
    assert (len(done), len(failed)) == (802, 401)
    assert ended["metadata"] == {"a": "b"}
    assert Batch.model_validate(ended).usage == BatchUsage(
        input_tokens=3 * 1203,
        input_tokens_details={"cached_tokens": 1203},
        output_tokens=2 * 1203,
        output_tokens_details={"reasoning_tokens": 0},
        total_tokens=5 * 1203,
    )
    assert ended["model"] == "echo"
    assert both.ended == ["completed"]
    outcomes = {each["error"]["code"] if each["error"] else each["response"]["status_code"] for each in failed}
    assert outcomes == {500, 400, "batch_expired", "batch_cancelled"}


async def test_the_files_of_a_batch_are_in_the_list_and_expire(rig: BatchRig) -> None:
    terms = {"anchor": "created_at", "seconds": 3600}
    async with rig.clerk():
        batch_id, made = await rig.begun(lines(2), output_expires_after=terms)
        rig.answer(made, lambda number: Outcome.FAILED if number else Outcome.SUCCEEDED)
        ended = await rig.until(batch_id, "completed")

    listed = (await rig.door.request("GET", "/v1/files?purpose=batch_output", rig.key)).json()["data"]
    assert {file["id"] for file in listed} == {ended["output_file_id"], ended["error_file_id"]}
    assert {file["expires_at"] - file["created_at"] for file in listed} == {3600}
    assert {file["filename"] for file in listed} == {f"{batch_id}_output.jsonl", f"{batch_id}_error.jsonl"}


async def test_a_batch_whose_lines_all_succeed_has_no_error_file_whatever_editor_wrote_the_input(rig: BatchRig) -> None:
    content = b"\xef\xbb\xbf" + lines(3).replace(b"\n", b"\r\n") + b"\r\n \n"
    async with rig.clerk():
        batch_id, made = await rig.begun(content)
        rig.answer(made)
        ended = await rig.until(batch_id, "completed")

    assert ended["error_file_id"] is None
    assert {output.topic for output in made} == {TOPICS.requests()}
    await rig.assert_complete(ended, 3)


async def test_a_bad_line_is_named_before_any_line_runs(rig: BatchRig) -> None:
    async with rig.clerk():
        batch_id = await rig.create(lines(3) + b"{\n" + jsonl([line(8)]))
        ended = await rig.until(batch_id, "failed", "in_progress")

    message = "Line 4 is not a JSON object."
    error = {"code": "invalid_json_line", "line": 4, "message": message, "param": None}
    assert ended["errors"] == {"object": "list", "data": [error]}
    assert (ended["status"], ended["failed_at"] is None) == ("failed", False)
    assert rig.requested() == []
    assert rig.ended == ["failed"]


async def test_a_batch_that_skips_bad_lines_runs_the_others_and_names_the_reasons(both: BatchRig) -> None:
    bad = {"custom_id": "row-4", "method": "POST", "url": CHAT, "body": {"model": "echo"}}
    hooked = line(6, url="/v1/embeddings", metadata={"webhook_url": "https://example.com/hook"})
    too_long = b'{"custom_id": "' + b"x" * MAX_JOB_BYTES + b'"}\n'
    content = lines(3) + b"{\n" + jsonl([bad, line(0), hooked]) + too_long + jsonl([line(8)])
    async with both.clerk():
        batch_id, made = await both.begun(content, metadata={"postback.skip_invalid": "true"})
        results = [output for output in made if output.topic == TOPICS.results]
        both.answer(made)
        ended = await both.until(batch_id, "completed")

    assert [job_of(output).job_id for output in made if output not in results] == [
        f"{batch_id}.{number}" for number in (0, 1, 2, 8)
    ]
    assert not any(name == "callback-url" for output in results for name, _ in output.headers or ())
    failed = await both.lines_of(ended["error_file_id"])
    assert [each["custom_id"] for each in failed] == [None, "row-4", "row-0", "row-6", None]
    reasons = [each["response"]["body"]["error"]["message"] for each in failed]
    assert [reason.partition(" ")[0] + " " + reason.split()[1] for reason in reasons] == [
        *("Line 4", "Line 5:", "Line 6:", "Line 7:", "Line 8")
    ]
    assert [each["custom_id"] for each in await both.lines_of(ended["output_file_id"])] == [
        f"row-{number}" for number in (0, 1, 2, 8)
    ]
    assert (ended["request_counts"], ended["errors"]) == ({"total": 9, "completed": 4, "failed": 5}, None)


async def test_a_tenants_allow_lists_hold_for_each_line(rig: BatchRig) -> None:
    content = jsonl([line(0), line(1, body={**line(1)["body"], "model": "secret"})])

    async with rig.clerk(TenantSettings(models=["echo"])):
        ended = await rig.until(await rig.create(content), "failed", "in_progress")

    assert [(error["code"], error["line"]) for error in ended["errors"]["data"]] == [("not_allowed", 2)]
    assert "body.model" in ended["errors"]["data"][0]["message"]


async def test_the_lines_of_a_batch_are_reserved_in_its_tenants_quota(rig: BatchRig) -> None:
    async with rig.clerk(TenantSettings(queued_lines=4)):
        first = await rig.create(lines(3))
        await rig.until(first, "in_progress")
        refused = await rig.until(await rig.create(lines(2)), "failed")

    assert [error["code"] for error in refused["errors"]["data"]] == ["quota_exceeded"]
    queued = rig.door.store.read_now(lambda connection: queued_work(connection, "acme"))
    assert (queued.lines, queued.tokens > 3 * 512) == (3, True)
    rig.door.store.write_now(lambda connection: release(connection, of_batches={("acme", first): None}))
    assert rig.door.store.read_now(lambda connection: queued_work(connection, "acme")) == (0, 0)


async def test_a_batch_with_a_wrong_member_is_refused(rig: BatchRig) -> None:
    file_id = await rig.upload(lines(1))
    metadata = ({"k": 5}, {"k" * 65: "v"}, {"k": "v" * 513}, {str(n): "v" for n in range(17)}, "x")
    for param, wrong in (
        *(("endpoint", endpoint) for endpoint in ("/v1/moderations", None)),
        *(("completion_window", window) for window in ("1h", None)),
        *(("metadata", each) for each in metadata),
        ("input_file_id", 5),
        ("output_expires_after", 5),
        *(("output_expires_after.seconds", {"anchor": "created_at", "seconds": seconds}) for seconds in (5, True)),
        ("output_expires_after.anchor", {"anchor": "x", "seconds": 3600}),
    ):
        changes: dict[str, Any] = {param.partition(".")[0]: wrong}
        answer = await rig.post(file_id, **changes)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), wrong


async def test_only_the_tenants_own_file_of_the_right_purpose_can_be_the_input(rig: BatchRig) -> None:
    theirs = await rig.upload(lines(1), rig.door.key("other"))
    vision = (await rig.door.upload(lines(1), rig.key, purpose="vision")).json()["id"]

    assert (await rig.post(theirs)).status_code == 404
    assert (await rig.post("file-absent")).status_code == 404
    assert (await rig.post(vision)).json()["error"]["code"] == "invalid_file_purpose"


async def test_a_repeated_create_makes_one_batch(both: BatchRig) -> None:
    file_id, once = await both.upload(lines(1)), {"idempotency-key": "k1"}

    first = await both.post(file_id, headers=once)
    again = await both.post(file_id, headers=once)
    other = await both.post(file_id, headers=once, metadata={"a": "b"})

    assert (first.status_code, again.json()) == (200, first.json())
    assert (other.status_code, other.headers["x-should-retry"]) == (409, "false")
    listed = (await both.door.request("GET", "/v1/batches", both.key)).json()
    assert [batch["id"] for batch in listed["data"]] == [first.json()["id"]]
    assert listed["has_more"] is False


async def test_another_tenants_batch_and_its_files_look_like_absent_ones(rig: BatchRig) -> None:
    async with rig.clerk():
        ended = await rig.completed(lines(1))
    other, batch = rig.door.key("other"), f"/v1/batches/{ended['id']}"

    for path in (batch, f"/v1/files/{ended['output_file_id']}/content", "/v1/batches/batch_absent"):
        assert (await rig.door.request("GET", path, other)).status_code == 404
    assert (await rig.door.request("POST", f"{batch}/cancel", other)).status_code == 404
    assert (await rig.door.request("GET", "/v1/batches", other)).json()["data"] == []


async def test_an_input_file_stays_while_a_batch_reads_it(rig: BatchRig) -> None:
    file_id = await rig.upload(lines(1))
    batch_id = (await rig.post(file_id)).json()["id"]

    refused = await rig.door.request("DELETE", f"/v1/files/{file_id}", rig.key)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "file_in_use")
    async with rig.clerk():
        await rig.until(batch_id, "in_progress")
        rig.answer(await rig.expand())
        await rig.until(batch_id, "completed")
    assert (await rig.door.request("DELETE", f"/v1/files/{file_id}", rig.key)).status_code == 200


# -- lines and ranges --------------------------------------------------------------------------------------------------


BAD_LINES: list[tuple[Any, str, str | None]] = [
    (b"{", "invalid_json_line", None),
    (b"", "invalid_json_line", None),
    (b"[1]", "invalid_request_line", None),
    (b"\xff", "invalid_json_line", None),
    ({**line(7), "prompt": "a job beside the line"}, "invalid_request_line", None),
    ({"prompt": "a job"}, "invalid_request_line", None),
    (line(7, url="/v1/responses"), "invalid_url", "url"),
    (line(7, method="GET"), "invalid_method", "method"),
    ({name: value for name, value in line(7).items() if name != "method"}, "invalid_method", "method"),
    (line(7, custom_id=None), "missing_required_parameter", "custom_id"),
    (line(7, custom_id="row-1"), "duplicate_custom_id", "custom_id"),
    (line(7, body={"model": "echo"}), "missing_required_parameter", "body.messages"),
    (line(7, body={**line(7)["body"], "n": 17}), "invalid_value", "body.n"),
    (line(7, body={**line(7)["body"], "temperature": 99}), "invalid_value", "body.temperature"),
    (line(7, body="x"), "invalid_value", "body"),
    (line(7, body={**line(7)["body"], "not_before": 2_000_000_000}), "invalid_value", "body.not_before"),
    (b'{"custom_id": "' + b"x" * 600_000 + b'"}', "line_too_large", None),
]
RECORDS = st.fixed_dictionaries({}, optional=dict.fromkeys(LineRange.model_fields, JSON))


def check(content: bytes, endpoint: str = CHAT) -> Checked:
    return check_file(pieces(content, 1000), endpoint, lambda job: None, expires_ms=2_000_000_000_000)


def pieces(content: bytes, size: int) -> Iterator[bytes]:
    for at in range(0, len(content), size):
        yield content[at : at + size]


@pytest.mark.parametrize(("bad", "code", "param"), BAD_LINES)
def test_a_bad_line_is_named_with_its_number_and_member(bad: Any, code: str, param: str | None) -> None:
    content = bad if isinstance(bad, bytes) else json.dumps(bad).encode()

    [error] = check(lines(3) + content + b"\n" + jsonl([line(8)])).errors

    assert (error.code, error.line, error.param) == (code, 4, param)
    assert error.message.startswith("Line 4")
    assert "question" not in error.message


def test_a_file_without_lines_or_with_too_many_is_refused_with_at_most_a_hundred_errors() -> None:
    small = b'{"custom_id":"%d","method":"POST","url":"/v1/completions","body":{"prompt":"x"}}\n'
    checked = check(b"".join(small % number for number in range(50_001)), "/v1/completions")

    assert [(error.code, error.line) for error in checked.errors] == [("too_many_lines", 50_001)]
    for content in (b"", b"\n \r\n", b"\xef\xbb\xbf"):
        assert [error.code for error in check(content).errors] == ["empty_file"]
    assert [error.line for error in check(b"x\n" * 3000).errors] == list(range(1, 101))


@given(st.binary(max_size=300), st.integers(1, 40))
def test_lines_are_those_of_the_whole_content_in_any_pieces(content: bytes, size: int) -> None:
    content = content.removeprefix(b"\xef\xbb\xbf")
    wanted = content.split(b"\n")
    wanted = wanted if wanted[-1] else wanted[:-1]

    found = list(lines_of(pieces(content, size)))

    assert [each.content for each in found] == [each.strip() for each in wanted]
    assert [each.number for each in found] == list(range(len(wanted)))
    assert b"".join(content[each.start : each.end] for each in found) == content


@given(
    st.lists(st.binary() | st.sampled_from([json.dumps(line(n)).encode() for n in range(3)]), max_size=8),
    st.fixed_dictionaries({}, optional=dict.fromkeys(("custom_id", "method", "url", "body"), JSON)),
    JSON,
)
def test_noise_and_any_json_are_jobs_or_are_named_line_by_line(
    some: list[bytes], document: dict[str, Any], member: object
) -> None:
    checked = check(b"\n".join(some))
    whole = line(0, body={**line(0)["body"], "metadata": member, "temperature": member})

    assert checked.errors or checked.total == sum(each.lines for each in checked.ranges)
    for one in (document, whole, {**whole, **document}):
        assert all(error.line in (1, None) for error in check(json.dumps(one).encode()).errors)


@given(st.lists(st.integers(1, 400_000), min_size=1, max_size=30) | st.just([10] * 1203))
def test_ranges_are_adjacent_and_bounded(sizes: list[int]) -> None:
    content = b"".join(b"x" * (size - 1) + b"\n" for size in sizes)

    found = list(cut(lines_of(pieces(content, 100_000))))

    assert sum(one.lines for one in found) == len(sizes)
    assert max(one.lines for one in found) <= MOST_LINES
    assert max(one.length for one in found) <= MOST_BYTES
    assert b"".join(content[one.start : one.start + one.length] for one in found) == content
    assert [one.first for one in found] == [sum(each.lines for each in found[:at]) for at in range(len(found))]


@given(st.binary() | RECORDS.map(lambda record: json.dumps(record).encode()))
def test_a_range_reads_back_and_any_other_record_is_refused(value: bytes) -> None:
    ids = {"batch_id": "batch_" + "0" * 32, "file_id": "file-" + "1" * 32, "tenant": "acme"}
    one = LineRange(**ids, first=500, lines=3, start=7, length=90)

    assert read_range(write_range(one)) == one
    with pytest.raises(InvalidRange, match="range"):
        read_range(value)


@given(st.text() | st.integers(0, 99_999).map(lambda number: job_id("batch_" + "a" * 32, number)))
def test_only_a_lines_own_id_names_its_batch_and_line(identifier: str) -> None:
    found = line_of(identifier)

    assert found is None or job_id(*found) == identifier


# -- pages of results --------------------------------------------------------------------------------------------------


PLACE = TopicPlace(TOPICS.results, "id", 0)
TOTAL = 12
ANSWERS = st.tuples(st.integers(0, TOTAL - 1), st.sampled_from(Outcome), st.booleans())
"""A line, its outcome, and True if the result has the line's `custom_id`."""


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    with gateway_rig(tmp_path_factory.mktemp("pages")) as made:
        yield made.shelf


@settings(max_examples=drawn(60))
@given(
    pages=st.lists(st.lists(ANSWERS, min_size=1, max_size=7), max_size=8),
    replayed=st.sets(st.integers(0, 7)),
    sizes=st.tuples(st.integers(1, 1500), st.integers(1, 1500)),
)
def test_each_line_stands_once_in_the_files_in_the_inputs_order_however_its_results_come(
    shelf: Shelf, pages: list[list[tuple[int, Outcome, bool]]], replayed: set[int], sizes: tuple[int, int]
) -> None:
    """Results repeat, in a page and later; a view that lost the race replays a page; finalising is cut off once."""
    batch_id = f"batch_{new_hex(shelf.clock)}"
    draft = shelf.begin("acme", None)
    draft.write(lines(TOTAL))
    draft.writer.commit()
    shelf.store.write_now(lambda at: shelf.store_row(at, draft, FileTerms("batch", "in.jsonl", None)))
    row: dict[str, Any] = {"input_file_id": draft.id, "in_progress_at": 1, "status": "cancelling"}
    shelf.store.write_now(partial(put_batch, batch_id=batch_id, total=TOTAL, **row))
    offset = shelf.store.write_now(lambda at: begin_at(at, [PLACE]))[PLACE]

    def take(page: list[tuple[int, Outcome, bool]], offset: int) -> None:
        answers = [answer_of(batch_id, *each, text=f"{offset}.{n}") for n, each in enumerate(page)]

        def change(connection: Connection) -> None:
            move(connection, {PLACE: (offset, offset + len(page))})
            write_results(connection, answers)

        shelf.store.write_now(change)

    expected: dict[int, tuple[Outcome, str]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gateway.view.segments.SEGMENT_BYTES", sizes[0])
        patch.setattr("gateway.batches.finalising.RUN_BYTES", sizes[1])
        for number, page in enumerate(pages):
            take(page, offset)
            if number in replayed:
                with pytest.raises(OffsetsMoved):
                    take(page, offset)
            expected |= {line: (outcome, f"{offset}.{n}") for n, (line, outcome, _) in enumerate(page)}
            offset += len(page)
        counted = shelf.store.read_now(lambda at: find(at, "acme", batch_id))
        with pytest.raises(BlobsAway):
            finalise(shelf, counted, cut_off, lambda: None)
        finalise(shelf, counted, lambda at, row: None, lambda: None)

    assert counted.completed + counted.failed == len(expected)
    ended = shelf.store.read_now(lambda at: find(at, "acme", batch_id))
    done, failed = (written(shelf, name) for name in (ended.output_file_id, ended.error_file_id))
    for some in (done, failed):
        assert [each["custom_id"] for each in some] == sorted((each["custom_id"] for each in some), key=number_of)
    assert sorted(number_of(each["custom_id"]) for each in (*done, *failed)) == [*range(TOTAL)]
    succeeded = {line: text for line, (outcome, text) in expected.items() if outcome == Outcome.SUCCEEDED}
    assert {number_of(each["custom_id"]): text_of(each) for each in done} == succeeded
    assert (ended.status, ended.completed, ended.failed) == ("cancelled", len(succeeded), TOTAL - len(succeeded))
    for number, (outcome, text) in expected.items():
        job = shelf.store.read_now(partial(find_job, tenant="acme", job_id=f"{batch_id}.{number}"))
        assert job is not None
        assert (job.status, read_result(job.result).text) == (outcome, text)


def answer_of(batch_id: str, line: int, outcome: Outcome, named: bool, text: str) -> ResultRecord:
    custom_id = f"row-{line}" if named else None
    result = Result(job_id=f"{batch_id}.{line}", outcome=outcome, custom_id=custom_id, text=text, created_at=1)
    return result_record(result)


def cut_off(_connection: Connection, _row: BatchRow) -> None:
    raise BlobsAway("the process is killed")


def written(shelf: Shelf, file_id: str | None) -> list[dict[str, Any]]:
    content = b"" if file_id is None else b"".join(shelf.blobs.read(file_id))
    return [json.loads(text) for text in content.splitlines()]


def number_of(custom_id: str) -> int:
    return int(custom_id.removeprefix("row-"))


def text_of(output: dict[str, Any]) -> str:
    return str(output["response"]["body"]["choices"][0]["message"]["content"])


# -- other ends of batches ---------------------------------------------------------------------------------------------


async def test_a_cancelled_batch_gives_each_line_in_one_file(both: BatchRig) -> None:
    async with both.clerk():
        batch_id, made = await both.begun(lines(40))
        both.answer(made[:10])
        assert (await both.cancel(batch_id)).json()["status"] == "cancelling"
        assert (await both.cancel(batch_id)).json()["status"] == "cancelling"
        both.answer(made[10:25], Outcome.CANCELLED)
        await asyncio.sleep(0.05)
        assert (await both.batch(batch_id))["status"] == "cancelling"
        both.door.clock.now += both.door.shelf.settings.cancel_seconds
        ended = await both.until(batch_id, "cancelled")

    done, failed = await both.assert_complete(ended, 40)
    assert (len(done), len(failed)) == (10, 30)
    assert {each["error"]["code"] for each in failed} == {"batch_cancelled"}
    assert ended["cancelled_at"] is not None
    [order] = both.outbox(TOPICS.control)
    assert read_job_key(order.record_key) == ("acme", batch_id)
    assert read_control(order.value).job_id == batch_id


async def test_a_cancelled_batch_is_not_expanded_further(rig: BatchRig) -> None:
    hook = {**line(0)["body"], "metadata": {"webhook_url": "https://example.com/hook"}}
    async with rig.clerk():
        batch_id = await rig.create(jsonl([line(0, body=hook), line(1)]))
        await rig.until(batch_id, "in_progress")
        await rig.cancel(batch_id)
        made = await rig.expand()
        rig.answer(made)
        ended = await rig.until(batch_id, "cancelled")

    assert {output.topic for output in made} == {TOPICS.results}
    assert dict(made[0].headers or ())["callback-url"] == b"https://example.com/hook"
    done, failed = await rig.assert_complete(ended, 2)
    assert (done, [each["error"]["code"] for each in failed]) == ([], ["batch_cancelled", "batch_cancelled"])
    assert await rig.expand() == []


async def test_a_cancelled_batch_ends_at_once_when_all_lines_have_results_or_before_its_check(rig: BatchRig) -> None:
    unchecked = await rig.create(lines(3))
    await rig.cancel(unchecked)

    async with rig.clerk():
        ended = await rig.until(unchecked, "cancelled")
        _, failed = await rig.assert_complete(ended, 3)
        assert ({each["error"]["code"] for each in failed}, rig.requested()) == ({"batch_cancelled"}, [])
        batch_id, made = await rig.begun(lines(4))
        await rig.cancel(batch_id)
        rig.answer(made, Outcome.CANCELLED)
        await rig.assert_complete(await rig.until(batch_id, "cancelled"), 4)


async def test_cancelling_a_batch_that_has_ended_is_a_conflict(rig: BatchRig) -> None:
    async with rig.clerk():
        batch_id = (await rig.completed(lines(1)))["id"]

    answer = await rig.cancel(batch_id)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "batch_not_cancellable")
    assert (await rig.batch(batch_id))["status"] == "completed"
    assert (await rig.cancel("batch_absent")).status_code == 404


async def test_a_batch_past_its_end_expires_with_each_line_in_one_file_and_takes_no_later_result(
    both: BatchRig,
) -> None:
    async with both.clerk():
        batch_id, made = await both.begun(lines(6))
        both.answer(made[:2])
        both.answer(made[4:5], Outcome.EXPIRED)
        both.door.clock.now += 24 * 3600 + LATE_MS / 1000 + 1
        ended = await both.until(batch_id, "expired")
        both.answer(made[2:4])
        await asyncio.sleep(0.05)

    assert await both.batch(batch_id) == ended
    done, failed = await both.assert_complete(ended, 6)
    assert (len(done), {each["error"]["code"] for each in failed}) == (2, {"batch_expired"})
    assert both.ended == ["expired"]


async def test_a_batch_past_its_end_is_claimed_while_its_files_are_written(
    rig: BatchRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed: list[bool] = []

    def noted(shelf: Shelf, row: BatchRow, *others: Any) -> None:
        now = shelf.store.read_now(lambda connection: find(connection, "acme", row.id))
        claimed.append(now.claimed_until > shelf.now_ms())
        finalise(shelf, row, *others)

    monkeypatch.setattr("gateway.batches.clerk.finalise", noted)
    async with rig.clerk():
        batch_id, _ = await rig.begun(lines(2))
        rig.door.clock.now += 24 * 3600 + LATE_MS / 1000 + 1
        await rig.until(batch_id, "expired")
    assert claimed == [True]


async def test_a_line_whose_result_was_removed_is_not_found(rig: BatchRig) -> None:
    async with rig.clerk():
        batch_id = (await rig.completed(lines(9)))["id"]
    rig.door.store.write_now(lambda connection: connection.execute(batch_segments.delete()).rowcount)

    for path in (f"/v1/jobs/{batch_id}.8", f"/v1/jobs/{batch_id}.0"):
        assert (await rig.door.request("GET", path, rig.key)).status_code == 404


async def test_results_that_come_while_a_batch_is_found_incomplete_are_counted(
    rig: BatchRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segments were removed, as by `postback store rebuild`, and the view reads their results again meanwhile."""
    async with rig.clerk():
        batch_id, made = await rig.begun(lines(3))
    rig.answer(made)
    shelf = rig.door.shelf
    row = shelf.store.read_now(lambda connection: find(connection, "acme", batch_id))
    shelf.store.write_now(lambda connection: forget_since(connection, 0))
    wait_on = finalising._wait_on

    def late(*arguments: Any) -> None:
        rig.answer(made[:2])
        wait_on(*arguments)

    monkeypatch.setattr(finalising, "_wait_on", late)
    finalise(shelf, row, lambda at, row: None, lambda: None)
    waiting = await rig.batch(batch_id)
    assert (waiting["status"], waiting["request_counts"]["completed"]) == ("in_progress", 2)
    rig.answer(made[2:])
    assert (await rig.batch(batch_id))["status"] == "finalizing"


async def test_a_line_counts_once_however_often_it_is_answered(rig: BatchRig) -> None:
    async with rig.clerk():
        batch_id, made = await rig.begun(lines(3))
        rig.answer(made[:2])
        again = Result(job_id=f"{batch_id}.0", outcome=Outcome.SUCCEEDED, created_at=1)
        strangers = [
            result_record(again),
            result_record(again.model_copy(update={"job_id": f"{batch_id}.7"})),
            result_record(again.model_copy(update={"job_id": f"{batch_id}.2"}), "other"),
        ]
        rig.store(strangers)
        counted = (await rig.batch(batch_id))["request_counts"]
        rig.answer(made[2:])
        ended = await rig.until(batch_id, "completed")

    assert counted == {"total": 3, "completed": 2, "failed": 0}
    await rig.assert_complete(ended, 3)


async def test_two_clerks_make_one_pair_of_files(both: BatchRig) -> None:
    async with both.clerk(), both.clerk(), both.clerk():
        batch_id, made = await both.begun(lines(30))
        both.answer(made, lambda number: Outcome.FAILED if number % 2 else Outcome.SUCCEEDED)
        ended = await both.until(batch_id, "completed")

    await both.assert_complete(ended, 30)
    assert both.ended == ["completed"]
    assert len(both.requested()) == 1
    assert len(both.door.blobs) == 3


async def test_finalising_is_tried_again_until_the_storage_takes_the_files(
    rig: BatchRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.batches.clerk.RETRY_SECONDS", 0.02)
    monkeypatch.setattr("gateway.batches.clerk.CLAIM_MS", 0)
    create, refusals = rig.door.shelf.blobs.create, iter([1, 2, 3])

    def refusing(name: str) -> Any:
        if next(refusals, None):
            raise BlobsAway("the disk is full")
        return create(name)

    async with rig.clerk():
        batch_id = await rig.create(lines(3))
        await rig.until(batch_id, "in_progress")
        monkeypatch.setattr(rig.door.shelf.blobs, "create", refusing)
        rig.answer(await rig.expand())
        ended = await rig.until(batch_id, "completed")

    await rig.assert_complete(ended, 3)
    rows = rig.door.store.read_now(lambda connection: connection.execute(select(files.c.id)).all())
    assert len(rows) == len(rig.door.blobs) == 2


async def test_a_batch_whose_input_is_lost_fails_line_by_line_with_a_dead_letter(rig: BatchRig) -> None:
    metrics = Metrics()
    ExpansionHandler(TOPICS, rig.door.shelf, twelve, rig.door.clock, metrics)
    assert metrics.registry.get_sample_value("postback_dead_letters_total", {"reason": UNUSABLE}) == 0
    async with rig.clerk():
        file_id = await rig.upload(lines(3))
        batch_id = (await rig.post(file_id)).json()["id"]
        await rig.until(batch_id, "in_progress")
        rig.door.shelf.blobs.delete(file_id)
        made = await rig.expand()
        rig.answer(made)
        ended = await rig.until(batch_id, "completed")
        unchecked = await rig.until((await rig.post(file_id)).json()["id"], "failed")

    failed = await rig.lines_of(ended["error_file_id"])
    assert ended["request_counts"] == {"total": 3, "completed": 0, "failed": 3}
    assert [each["response"]["body"]["error"]["code"] for each in failed] == ["input_file_missing"] * 3
    [letter] = [output for output in made if output.topic == TOPICS.dead_letters]
    assert dict(letter.headers or ())["reason"] == b"unusable_batch_range"
    assert [error["code"] for error in unchecked["errors"]["data"]] == ["input_file_missing"]


async def test_results_that_the_store_has_lost_are_waited_for(both: BatchRig) -> None:
    async with both.clerk():
        batch_id, made = await both.begun(lines(4))
        both.answer(made[:3])
        both.door.store.write_now(lambda connection: forget_since(connection, 0))
        both.answer(made[3:])
        for _ in range(1000):
            if (await both.batch(batch_id))["request_counts"]["completed"] == 1:
                break
            await asyncio.sleep(0.01)
        waiting = await both.batch(batch_id)
        both.answer(made[:3])
        ended = await both.until(batch_id, "completed")

    assert (waiting["status"], waiting["request_counts"]["completed"]) == ("in_progress", 1)
    await both.assert_complete(ended, 4)


async def test_a_lines_own_lifetime_counts_if_it_is_shorter(rig: BatchRig) -> None:
    begins = int(rig.door.clock.now) + 3600
    lives: list[dict[str, float]] = [{"ttl_seconds": 60}, {"ttl_seconds": 60, "not_before": begins}]
    bodies = [{**line(0)["body"], **life} for life in (*lives, {"ttl_seconds": 100_000.0})]
    content = jsonl(line(number, body=body) for number, body in enumerate(bodies))
    async with rig.clerk():
        batch_id = await rig.create(content)
        running = await rig.until(batch_id, "in_progress")
        made = await rig.expand()

    now = int(1000 * rig.door.clock.now)
    assert [dict(output.headers or ())[DEADLINE] for output in made] == [
        str(now + 60_000).encode(),
        str(1000 * begins + 60_000).encode(),
        str(1000 * running["expires_at"]).encode(),
    ]


async def test_ranges_have_bounded_lines_and_bytes(rig: BatchRig) -> None:
    long = {"model": "echo", "messages": [{"role": "user", "content": "x" * 500_000}]}
    async with rig.clerk():
        batch_id, made = await rig.begun(jsonl(line(number, body=long) for number in range(12)))

    ranges = [read_range(record.value) for record in rig.requested()]
    assert [(one.first, one.lines) for one in ranges] == [(0, 8), (8, 4)]
    assert [job_of(output).job.custom_id for output in made] == [f"row-{number}" for number in range(12)]
    ids = [dict(output.headers or ())[JOB_ID] for output in made]
    assert ids == [f"{batch_id}.{number}".encode() for number in range(12)]
    assert {dict(output.headers or ())[TENANT] for output in made} == {b"acme"}


async def test_batches_are_listed_in_pages(both: BatchRig) -> None:
    made = []
    file_id = await both.upload(lines(1))
    for _ in range(5):
        both.door.clock.now += 1
        made.append((await both.post(file_id)).json()["id"])

    first = (await both.door.request("GET", "/v1/batches?limit=3", both.key)).json()
    rest = (await both.door.request("GET", f"/v1/batches?limit=3&after={first['last_id']}", both.key)).json()

    assert [batch["id"] for batch in (*first["data"], *rest["data"])] == made[::-1]
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert (await both.door.request("GET", "/v1/batches?limit=101", both.key)).status_code == 400
    assert first["data"][0]["endpoint"] == CHAT
