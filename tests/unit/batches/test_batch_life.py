"""A batch from its creation to its files, over the application, the clerk and the expansion's handler."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.access.quotas import queued_work, release_batch
from gateway.access.tenant_settings import TenantSettings
from producers.sharding import shard_of
from schemas.outcome import Outcome
from schemas.topics import TRACEPARENT
from tests.unit.batches.batch_rig import TOPICS, BatchRig, job_of, jsonl, line, lines

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ALL_BAD = [Outcome.FAILED, Outcome.EXPIRED, Outcome.CANCELLED, Outcome.REJECTED]


async def test_a_batch_runs_from_its_creation_to_its_files(both: BatchRig) -> None:
    rig = both
    async with rig.clerk():
        batch_id = await rig.create(lines(1203), metadata={"a": "b"}, headers={TRACEPARENT: TRACE})
        running = await rig.until(batch_id, "in_progress")
        assert running["request_counts"] == {"total": 1203, "completed": 0, "failed": 0}
        made = await rig.expand()
        rig.answer(made, lambda number: ALL_BAD[number % 4] if number % 3 == 0 else Outcome.SUCCEEDED)
        ended = await rig.until(batch_id, "completed")

    received = [job_of(output) for output in made]
    assert [job.job_id for job in received] == [f"{batch_id}.{number}" for number in range(1203)]
    assert {job.tenant for job in received} == {"acme"}
    assert {job.deadline_ms for job in received} == {1000 * running["expires_at"]}
    assert {job.traceparent for job in received} == {TRACE}
    assert {output.topic for output in made} == {TOPICS.requests(bulk=True)}
    assert {output.partition for output in made} == set(shard_of("acme", 12))
    done, failed = await rig.assert_complete(ended, 1203)
    assert (len(done), len(failed)) == (802, 401)
    assert ended["metadata"] == {"a": "b"}
    assert rig.ended == ["completed"]
    outcomes = {each["error"]["code"] if each["error"] else each["response"]["status_code"] for each in failed}
    assert outcomes == {500, 400, "batch_expired", "batch_cancelled"}


async def test_the_files_of_a_batch_are_in_the_list_and_expire(rig: BatchRig) -> None:
    terms = {"anchor": "created_at", "seconds": 3600}
    async with rig.clerk():
        batch_id = await rig.create(lines(2), output_expires_after=terms)
        await rig.until(batch_id, "in_progress")
        rig.answer(await rig.expand(), lambda number: Outcome.FAILED if number else Outcome.SUCCEEDED)
        ended = await rig.until(batch_id, "completed")

    listed = (await rig.door.request("GET", "/v1/files?purpose=batch_output", rig.key)).json()["data"]
    assert {file["id"] for file in listed} == {ended["output_file_id"], ended["error_file_id"]}
    assert {file["expires_at"] - file["created_at"] for file in listed} == {3600}
    assert {file["filename"] for file in listed} == {f"{batch_id}_output.jsonl", f"{batch_id}_error.jsonl"}


async def test_a_batch_whose_lines_all_succeed_has_no_error_file(rig: BatchRig) -> None:
    async with rig.clerk():
        batch_id = await rig.create(lines(3))
        await rig.until(batch_id, "in_progress")
        made = await rig.expand()
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


async def test_a_file_of_another_systems_editor_is_taken(rig: BatchRig) -> None:
    content = b"\xef\xbb\xbf" + lines(3).replace(b"\n", b"\r\n") + b"\r\n \n"

    async with rig.clerk():
        batch_id = await rig.create(content)
        await rig.until(batch_id, "in_progress")
        rig.answer(await rig.expand())
        await rig.assert_complete(await rig.until(batch_id, "completed"), 3)


async def test_a_tenants_allow_lists_hold_for_each_line(rig: BatchRig) -> None:
    content = jsonl([line(0), line(1, body={**line(1)["body"], "model": "secret"})])

    async with rig.clerk(settings_of=lambda tenant: TenantSettings(models=["echo"])):
        ended = await rig.until(await rig.create(content), "failed", "in_progress")

    assert [(error["code"], error["line"]) for error in ended["errors"]["data"]] == [("not_allowed", 2)]
    assert "body.model" in ended["errors"]["data"][0]["message"]


async def test_the_lines_of_a_batch_are_reserved_in_its_tenants_quota(rig: BatchRig) -> None:
    async with rig.clerk(settings_of=lambda tenant: TenantSettings(queued_lines=4)):
        first = await rig.create(lines(3))
        await rig.until(first, "in_progress")
        refused = await rig.until(await rig.create(lines(2)), "failed")

    assert [error["code"] for error in refused["errors"]["data"]] == ["quota_exceeded"]
    queued = rig.door.store.read_now(lambda connection: queued_work(connection, "acme"))
    assert (queued.lines, queued.tokens > 3 * 512) == (3, True)
    rig.door.store.write_now(lambda connection: release_batch(connection, "acme", first))
    assert rig.door.store.read_now(lambda connection: queued_work(connection, "acme")) == (0, 0)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"endpoint": "/v1/moderations"}, "endpoint"),
        ({"endpoint": None}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"completion_window": None}, "completion_window"),
        ({"input_file_id": 5}, "input_file_id"),
        ({"metadata": {"k": 5}}, "metadata"),
        ({"metadata": {"k" * 65: "v"}}, "metadata"),
        ({"metadata": {"k": "v" * 513}}, "metadata"),
        ({"metadata": {str(n): "v" for n in range(17)}}, "metadata"),
        ({"metadata": "x"}, "metadata"),
        ({"output_expires_after": 5}, "output_expires_after"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 5}}, "output_expires_after.seconds"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": True}}, "output_expires_after.seconds"),
        ({"output_expires_after": {"anchor": "x", "seconds": 3600}}, "output_expires_after.anchor"),
    ],
)
async def test_a_batch_with_a_wrong_member_is_refused(rig: BatchRig, changes: dict[str, Any], param: str) -> None:
    answer = await rig.post(await rig.upload(lines(1)), **changes)

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


async def test_only_the_tenants_own_file_of_the_right_purpose_can_be_the_input(rig: BatchRig) -> None:
    theirs = await rig.upload(lines(1), rig.door.key("other"))
    vision = (await rig.door.upload(lines(1), rig.key, purpose="vision")).json()["id"]

    assert (await rig.post(theirs)).status_code == 404
    assert (await rig.post("file-absent")).status_code == 404
    assert (await rig.post(vision)).json()["error"]["code"] == "invalid_file_purpose"


async def test_a_repeated_create_makes_one_batch(both: BatchRig) -> None:
    rig = both
    file_id, once = await rig.upload(lines(1)), {"idempotency-key": "k1"}

    first = await rig.post(file_id, headers=once)
    again = await rig.post(file_id, headers=once)
    other = await rig.post(file_id, headers=once, metadata={"a": "b"})

    assert (first.status_code, again.json()) == (200, first.json())
    assert (other.status_code, other.headers["x-should-retry"]) == (409, "false")
    listed = (await rig.door.request("GET", "/v1/batches", rig.key)).json()
    assert [batch["id"] for batch in listed["data"]] == [first.json()["id"]]
    assert listed["has_more"] is False


async def test_another_tenants_batch_and_its_files_look_like_absent_ones(rig: BatchRig) -> None:
    async with rig.clerk():
        batch_id = await rig.create(lines(1))
        await rig.until(batch_id, "in_progress")
        rig.answer(await rig.expand())
        ended = await rig.until(batch_id, "completed")
    other = rig.door.key("other")

    paths = [f"/v1/batches/{batch_id}", f"/v1/files/{ended['output_file_id']}/content", "/v1/batches/batch_absent"]
    for path in paths:
        assert (await rig.door.request("GET", path, other)).status_code == 404
    assert (await rig.door.request("POST", f"/v1/batches/{batch_id}/cancel", other)).status_code == 404
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
