"""Ends of uploads: cancelled, expired, swept after a killed process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.batches.assembly import Assembly
from gateway.batches.clerk import Clerk
from gateway.batches.uploads import LATE_MS, LIFE_MS
from gateway.blobs.base import BlobsAway
from schemas.topics import Topics
from tests.unit.gateway_rig import Rig, gateway_rig
from tests.unit.gateway_uploader import Uploader, refusal


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with gateway_rig(tmp_path, most_bytes=100_000) as made:
        yield made


async def test_a_cancelled_upload_takes_nothing_more_and_its_parts_are_gone(rig: Rig) -> None:
    client = Uploader(rig)
    upload_id = await client.begun(3)
    parts = await client.added(upload_id, b"abc")

    answers = [(await client.post(f"/{upload_id}/cancel")).json()["status"] for _ in range(2)]

    assert answers == ["cancelled"] * 2
    assert rig.blobs == []
    assert refusal(await client.add(upload_id, b"abc"))[:2] == (409, "upload_not_pending")
    assert refusal(await client.complete(upload_id, parts))[:2] == (409, "upload_not_pending")


async def test_an_upload_expires_after_an_hour_and_is_swept(rig: Rig) -> None:
    client, assembly = Uploader(rig), Assembly(rig.shelf)
    upload_id = await client.begun(3)
    parts = await client.added(upload_id, b"abc")
    done = await client.begun(1)
    completed = await client.added(done, b"1")
    file = (await client.complete(done, completed)).json()["file"]

    rig.clock.now += LIFE_MS / 1000 + 1
    for answer in (
        await client.add(upload_id, b"abc"),
        await client.complete(upload_id, parts),
        await client.post(f"/{upload_id}/cancel"),
    ):
        assert refusal(answer) == (409, "upload_not_pending", "upload_id")
        assert "`expired`" in answer.text
    assert assembly.sweep() == 0
    rig.clock.now += LATE_MS / 1000 + 1
    assert assembly.sweep() == 1
    assert rig.blobs == [file["id"]]

    assert (await client.complete(done, completed)).json()["file"] == file
    rig.clock.now += 24 * 3600
    assert assembly.sweep() == 0
    assert refusal(await client.complete(done, completed))[:2] == (404, "upload_not_found")


async def test_the_clerk_sweeps_the_parts_of_expired_uploads(rig: Rig) -> None:
    client = Uploader(rig)
    await client.added(await client.begun(3), b"abc")
    rig.clock.now += (LIFE_MS + LATE_MS) / 1000 + 1

    clerk = asyncio.create_task(Clerk(rig.shelf, Topics()).ended())
    async with asyncio.timeout(60):
        while rig.blobs:
            await asyncio.sleep(0.01)
    clerk.cancel()
    await asyncio.wait([clerk])


async def test_a_part_that_a_killed_process_left_is_swept_once_no_request_can_be_that_old(rig: Rig) -> None:
    client, assembly = Uploader(rig), Assembly(rig.shelf)
    upload_id = await client.begun(3)
    draft = assembly.begin_part("acme", upload_id)
    draft.write(b"1")
    await client.post(f"/{upload_id}/cancel")

    assert assembly.sweep() == 0
    rig.clock.now += 2 * rig.shelf.settings.upload_seconds + 1
    assert assembly.sweep() == 1
    assert rig.blobs == []
    draft.writer.abort()


async def test_a_file_that_a_killed_process_did_not_join_is_swept_and_the_upload_goes_on(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Uploader(rig)
    upload_id = await client.begun(3)
    parts = await client.added(upload_id, b"abc")
    with monkeypatch.context() as patched:
        patched.setattr("gateway.batches.uploads.complete", refused)
        assert (await client.complete(upload_id, parts)).status_code == 503

    assert len(rig.blobs) == 2
    file = (await client.complete(upload_id, parts)).json()["file"]
    rig.clock.now += 2 * rig.shelf.settings.upload_seconds + 1
    assert rig.shelf.sweep() == 1
    assert rig.blobs == [file["id"]]


def refused(*_: object) -> bool:
    """Act like a database that commits and then dies before it answers."""
    raise BlobsAway("gone")
