"""Batches that are cancelled, expire, or lose inputs or results; ranges of lines, and lists of batches."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import select

from gateway.batches.clerk import LATE_MS
from gateway.batches.expansion import UNUSABLE, ExpansionHandler
from gateway.batches.ranges import read_range
from gateway.blobs.base import BlobsAway
from gateway.store.tables import files, jobs
from schemas.control import read_control, read_job_key
from schemas.outcome import Outcome
from schemas.result import Result
from schemas.topics import DEADLINE, JOB_ID, TENANT
from telemetry.metrics import Metrics
from tests.unit.batches.batch_rig import CHAT, TOPICS, Answer, BatchRig, job_of, jsonl, line, lines, twelve


async def test_a_cancelled_batch_gives_each_line_in_one_file(both: BatchRig) -> None:
    rig = both
    async with rig.clerk():
        batch_id = await rig.create(lines(40))
        await rig.until(batch_id, "in_progress")
        made = await rig.expand()
        rig.answer(made[:10])
        assert (await rig.cancel(batch_id)).json()["status"] == "cancelling"
        assert (await rig.cancel(batch_id)).json()["status"] == "cancelling"
        rig.answer(made[10:25], Outcome.CANCELLED)
        await asyncio.sleep(0.05)
        assert (await rig.batch(batch_id))["status"] == "cancelling"
        rig.door.clock.now += rig.door.shelf.settings.cancel_seconds
        ended = await rig.until(batch_id, "cancelled")

    done, failed = await rig.assert_complete(ended, 40)
    assert (len(done), len(failed)) == (10, 30)
    assert {each["error"]["code"] for each in failed} == {"batch_cancelled"}
    assert ended["cancelled_at"] is not None
    [order] = rig.outbox(TOPICS.control)
    assert read_job_key(order.record_key) == ("acme", batch_id)
    assert read_control(order.value).job_id == batch_id


async def test_a_cancelled_batch_ends_at_once_when_all_lines_have_results(rig: BatchRig) -> None:
    async with rig.clerk():
        batch_id = await rig.create(lines(4))
        await rig.until(batch_id, "in_progress")
        made = await rig.expand()
        await rig.cancel(batch_id)
        rig.answer(made, Outcome.CANCELLED)
        await rig.assert_complete(await rig.until(batch_id, "cancelled"), 4)


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


async def test_a_batch_that_is_cancelled_before_its_check_ends_without_files(rig: BatchRig) -> None:
    batch_id = await rig.create(lines(3))
    await rig.cancel(batch_id)

    async with rig.clerk():
        ended = await rig.until(batch_id, "cancelled")

    assert (ended["output_file_id"], ended["error_file_id"]) == (None, None)
    assert rig.requested() == []


async def test_cancelling_a_batch_that_has_ended_is_a_conflict(rig: BatchRig) -> None:
    async with rig.clerk():
        batch_id = await rig.create(lines(1))
        await rig.until(batch_id, "in_progress")
        rig.answer(await rig.expand())
        await rig.until(batch_id, "completed")

    answer = await rig.cancel(batch_id)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "batch_not_cancellable")
    assert (await rig.batch(batch_id))["status"] == "completed"
    assert (await rig.cancel("batch_absent")).status_code == 404


async def test_a_batch_past_its_end_expires_with_each_line_in_one_file(both: BatchRig) -> None:
    rig = both
    async with rig.clerk():
        batch_id = await rig.create(lines(6))
        await rig.until(batch_id, "in_progress")
        made = await rig.expand()
        rig.answer(made[:2])
        rig.answer(made[4:5], Outcome.EXPIRED)
        rig.door.clock.now += 24 * 3600 + LATE_MS / 1000 + 1
        ended = await rig.until(batch_id, "expired")

    done, failed = await rig.assert_complete(ended, 6)
    assert (len(done), {each["error"]["code"] for each in failed}) == (2, {"batch_expired"})
    assert rig.ended == ["expired"]


async def test_a_result_that_comes_after_the_end_changes_nothing(rig: BatchRig) -> None:
    async with rig.clerk():
        batch_id = await rig.create(lines(3))
        await rig.until(batch_id, "in_progress")
        made = await rig.expand()
        rig.answer(made[:1])
        rig.door.clock.now += 24 * 3600 + LATE_MS / 1000 + 1
        ended = await rig.until(batch_id, "expired")
        rig.answer(made[1:])
        await asyncio.sleep(0.05)

    assert await rig.batch(batch_id) == ended
    await rig.assert_complete(ended, 3)


async def test_a_line_counts_once_however_often_it_is_answered(rig: BatchRig) -> None:
    async with rig.clerk():
        batch_id = await rig.create(lines(3))
        await rig.until(batch_id, "in_progress")
        made = await rig.expand()
        rig.answer(made[:2])
        again = Result(job_id=f"{batch_id}.0", outcome=Outcome.SUCCEEDED, created_at=1)
        strangers = [
            Answer("acme", f"{batch_id}.0", again, first=False),
            Answer("acme", f"{batch_id}.7", again),
            Answer("other", f"{batch_id}.2", again),
        ]
        rig.store(strangers)
        counted = (await rig.batch(batch_id))["request_counts"]
        rig.answer(made[2:])
        ended = await rig.until(batch_id, "completed")

    assert counted == {"total": 3, "completed": 2, "failed": 0}
    await rig.assert_complete(ended, 3)


async def test_two_clerks_make_one_pair_of_files(both: BatchRig) -> None:
    rig = both
    async with rig.clerk(), rig.clerk(), rig.clerk():
        batch_id = await rig.create(lines(30))
        await rig.until(batch_id, "in_progress")
        rig.answer(await rig.expand(), lambda number: Outcome.FAILED if number % 2 else Outcome.SUCCEEDED)
        ended = await rig.until(batch_id, "completed")

    await rig.assert_complete(ended, 30)
    assert rig.ended == ["completed"]
    assert len(rig.requested()) == 1
    assert len(rig.door.blobs) == 3


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
    async with rig.clerk():
        file_id = await rig.upload(lines(3))
        batch_id = (await rig.post(file_id)).json()["id"]
        await rig.until(batch_id, "in_progress")
        rig.door.shelf.blobs.delete(file_id)
        made = await rig.expand()
        rig.answer(made)
        ended = await rig.until(batch_id, "completed")

    failed = await rig.lines_of(ended["error_file_id"])
    assert ended["request_counts"] == {"total": 3, "completed": 0, "failed": 3}
    assert [each["response"]["body"]["error"]["code"] for each in failed] == ["input_file_missing"] * 3
    [letter] = [output for output in made if output.topic == TOPICS.dead_letters]
    assert dict(letter.headers or ())["reason"] == b"unusable_batch_range"


async def test_the_count_of_dead_letters_of_batches_begins_with_0(rig: BatchRig) -> None:
    metrics = Metrics()
    ExpansionHandler(TOPICS, rig.door.shelf, twelve, rig.door.clock, metrics)
    assert metrics.registry.get_sample_value("postback_dead_letters_total", {"reason": UNUSABLE}) == 0


async def test_a_batch_whose_input_is_lost_before_its_check_fails(rig: BatchRig) -> None:
    file_id = await rig.upload(lines(3))
    batch_id = (await rig.post(file_id)).json()["id"]
    rig.door.shelf.blobs.delete(file_id)

    async with rig.clerk():
        ended = await rig.until(batch_id, "failed")

    assert [error["code"] for error in ended["errors"]["data"]] == ["input_file_missing"]


async def test_results_that_the_store_has_lost_are_waited_for(both: BatchRig) -> None:
    rig = both
    async with rig.clerk():
        batch_id = await rig.create(lines(4))
        await rig.until(batch_id, "in_progress")
        made = await rig.expand()
        rig.answer(made[:3])
        rig.door.store.submit(
            lambda connection: connection.execute(jobs.delete().where(jobs.c.job_id == f"{batch_id}.0"))
        ).result()
        rig.answer(made[3:])
        for _ in range(1000):
            if (await rig.batch(batch_id))["request_counts"]["completed"] == 3:
                break
            await asyncio.sleep(0.01)
        waiting = await rig.batch(batch_id)
        rig.answer(made[:1])
        ended = await rig.until(batch_id, "completed")

    assert (waiting["status"], waiting["request_counts"]["completed"]) == ("in_progress", 3)
    await rig.assert_complete(ended, 4)


async def test_a_lines_own_lifetime_counts_if_it_is_shorter(rig: BatchRig) -> None:
    bodies = [{**line(0)["body"], "ttl_seconds": seconds} for seconds in (60, 100_000.0)]
    content = jsonl(line(number, body=body) for number, body in enumerate(bodies))
    async with rig.clerk():
        batch_id = await rig.create(content)
        running = await rig.until(batch_id, "in_progress")
        made = await rig.expand()

    now = int(1000 * rig.door.clock.now)
    assert [dict(output.headers or ())[DEADLINE] for output in made] == [
        str(now + 60_000).encode(),
        str(1000 * running["expires_at"]).encode(),
    ]


async def test_ranges_have_bounded_lines_and_bytes(rig: BatchRig) -> None:
    long = {"model": "echo", "messages": [{"role": "user", "content": "x" * 500_000}]}
    async with rig.clerk():
        batch_id = await rig.create(jsonl(line(number, body=long) for number in range(12)))
        await rig.until(batch_id, "in_progress")
        made = await rig.expand()

    ranges = [read_range(record.value) for record in rig.requested()]
    assert [(one.first, one.lines) for one in ranges] == [(0, 8), (8, 4)]
    assert [job_of(output).job.custom_id for output in made] == [f"row-{number}" for number in range(12)]
    ids = [dict(output.headers or ())[JOB_ID] for output in made]
    assert ids == [f"{batch_id}.{number}".encode() for number in range(12)]
    assert {dict(output.headers or ())[TENANT] for output in made} == {b"acme"}


async def test_batches_are_listed_in_pages(both: BatchRig) -> None:
    rig = both
    made = []
    file_id = await rig.upload(lines(1))
    for _ in range(5):
        rig.door.clock.now += 1
        made.append((await rig.post(file_id)).json()["id"])

    first = (await rig.door.request("GET", "/v1/batches?limit=3", rig.key)).json()
    rest = (await rig.door.request("GET", f"/v1/batches?limit=3&after={first['last_id']}", rig.key)).json()

    assert [batch["id"] for batch in (*first["data"], *rest["data"])] == made[::-1]
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert (await rig.door.request("GET", "/v1/batches?limit=101", rig.key)).status_code == 400
    assert first["data"][0]["endpoint"] == CHAT
