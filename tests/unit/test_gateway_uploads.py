"""`/v1/uploads` over the application: parts in any order, one file for each upload, refusals, limits."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.access import Scope
from gateway.batches.assembly import Assembly
from gateway.batches.declined import Declined
from gateway.batches.uploads import MOST_PARTS, completion, upload_terms
from tests.drawn import drawn
from tests.unit.gateway_rig import Rig, gateway_rig
from tests.unit.gateway_uploader import TERMS, Uploader, refusal
from tests.unit.test_gateway_files import END, FORM, part

ABSENT = "upload_absent"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with gateway_rig(tmp_path, most_bytes=100_000) as made:
        yield made


async def test_parts_become_a_file_in_the_order_of_their_ids(rig: Rig) -> None:
    client = Uploader(rig)
    begun = (await client.create(9, filename="../x/in.jsonl")).json()
    first, second, third, _ = await client.added(begun["id"], b"ghi", b"abc", b"def", b"not used")

    done = (await client.complete(begun["id"], [second, third, first])).json()

    assert (begun["object"], begun["status"], begun["bytes"], begun["file"]) == ("upload", "pending", 9, None)
    assert (begun["filename"], begun["purpose"]) == ("in.jsonl", "batch")
    assert begun["expires_at"] == begun["created_at"] + 3600
    assert done == {**begun, "status": "completed", "file": done["file"]}
    assert done["file"]["bytes"] == 9
    assert await client.content(done["file"]["id"]) == b"abcdefghi"
    assert await client.files() == [done["file"]]
    assert rig.blobs == [done["file"]["id"]]


async def test_a_part_is_described(rig: Rig) -> None:
    client = Uploader(rig)
    upload_id = await client.begun(3)

    made = (await client.add(upload_id, b"abc")).json()

    assert made["id"].startswith("part_")
    assert (made["object"], made["upload_id"], made["created_at"]) == ("upload.part", upload_id, 1_800_000_000)


async def test_a_repeated_complete_gives_the_same_file_and_other_parts_are_a_conflict(rig: Rig) -> None:
    client = Uploader(rig)
    upload_id = await client.begun(6)
    parts = await client.added(upload_id, b"abc", b"def")
    first = (await client.complete(upload_id, parts)).json()

    assert (await client.complete(upload_id, parts)).json() == first
    other = await client.complete(upload_id, parts[::-1])
    assert refusal(other) == (409, "upload_not_pending", "upload_id")
    assert other.headers["x-should-retry"] == "false"
    await rig.request("DELETE", f"/v1/files/{first['file']['id']}", client.key)
    assert (await client.complete(upload_id, parts)).json() == {**first, "file": None}


async def test_completes_at_once_in_one_process_and_in_two_give_one_file(rig: Rig) -> None:
    client = Uploader(rig)
    upload_id = await client.begun(6)
    parts = await client.added(upload_id, b"abc", b"def")
    asked = completion({"part_ids": parts})
    others = [Assembly(rig.shelf) for _ in range(3)]

    answers, rows = await asyncio.gather(
        asyncio.gather(*(client.complete(upload_id, parts) for _ in range(3))),
        asyncio.gather(*(other.complete("acme", upload_id, asked, None) for other in others)),
    )

    (file,) = await client.files()
    assert {answer.json()["file"]["id"] for answer in answers} == {row.file_id for row in rows} == {file["id"]}
    assert rig.blobs == [file["id"]]


@pytest.mark.parametrize("opened_first", [True, False], ids=["parts-read-in-time", "parts-gone-before"])
@pytest.mark.parametrize("end", ["cancel", "complete"])
async def test_an_upload_that_another_process_ends_meanwhile_has_at_most_one_file(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, end: str, opened_first: bool
) -> None:
    client, other = Uploader(rig), Assembly(rig.shelf)
    upload_id = await client.begun(3)
    parts = await client.added(upload_id, b"abc")
    copying, ended = threading.Event(), threading.Event()
    read = rig.shelf.blobs.read

    def late(*arguments: Any) -> Iterator[bytes]:
        pieces = list(read(*arguments)) if opened_first else []
        copying.set()
        assert ended.wait(60)
        yield from pieces or read(*arguments)

    async def end_it() -> None:
        await asyncio.to_thread(copying.wait, 60)
        monkeypatch.setattr(rig.shelf.blobs, "read", read)
        if end == "cancel":
            await other.cancel("acme", upload_id)
        else:
            await other.complete("acme", upload_id, completion({"part_ids": parts}), None)
        ended.set()

    monkeypatch.setattr(rig.shelf.blobs, "read", late)
    answer, _ = await asyncio.gather(client.complete(upload_id, parts), end_it())

    files = await client.files()
    if end == "cancel":
        assert refusal(answer) == (409, "upload_not_pending", "upload_id")
        assert files == []
    else:
        assert [answer.json()["file"]] == files
    assert rig.blobs == [file["id"] for file in files]


async def test_an_upload_whose_part_is_lost_is_no_server_error(rig: Rig) -> None:
    client = Uploader(rig)
    upload_id = await client.begun(3)
    parts = await client.added(upload_id, b"abc")
    rig.shelf.blobs.delete(parts[0])

    assert refusal(await client.complete(upload_id, parts))[:2] == (404, "content_missing")
    assert rig.blobs == []


async def test_parts_that_are_not_the_file_are_refused_and_the_upload_goes_on(rig: Rig) -> None:
    client = Uploader(rig)
    upload_id = await client.begun(6)
    first, second = await client.added(upload_id, b"abc", b"def")
    (other,) = await client.added(await client.begun(3), b"def")
    cases = {
        "part_not_found": ([first, "part_absent"], [first, other]),
        "bytes_mismatch": ([first],),
        "checksum_mismatch": ([first, second], [second, first]),
    }
    for code, lists in cases.items():
        for part_ids in lists:
            answer = await client.complete(upload_id, part_ids, md5="0" * 32)
            assert refusal(answer) == (400, code, "md5" if code == "checksum_mismatch" else "part_ids")
    assert await client.files() == []
    assert len(rig.blobs) == 3
    right = hashlib.md5(b"abcdef", usedforsecurity=False).hexdigest().upper()
    assert (await client.complete(upload_id, [first, second], md5=right)).status_code == 200


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ([], None),
        ({}, "part_ids"),
        ({"part_ids": []}, "part_ids"),
        ({"part_ids": "part_1"}, "part_ids"),
        ({"part_ids": [1]}, "part_ids"),
        ({"part_ids": ["A", "A"]}, "part_ids"),
        ({"part_ids": ["A"], "md5": "no"}, "md5"),
        ({"part_ids": ["A"], "md5": 5}, "md5"),
    ],
)
def test_a_completion_of_another_form_is_declined(asked: object, param: str | None) -> None:
    with pytest.raises(Declined) as declined:
        completion(asked)
    assert (declined.value.status, declined.value.param) == (400, param)


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"bytes": 0}, (400, "invalid_value", "bytes")),
        ({"bytes": True}, (400, "invalid_value", "bytes")),
        ({"bytes": "3"}, (400, "invalid_value", "bytes")),
        ({"bytes": 100_001}, (413, "file_too_large", "bytes")),
        ({"filename": None}, (400, "missing_required_parameter", "filename")),
        ({"mime_type": 3}, (400, "missing_required_parameter", "mime_type")),
        ({"purpose": None}, (400, "missing_required_parameter", "purpose")),
        ({"purpose": "batch_output"}, (400, "invalid_value", "purpose")),
        ({"purpose": []}, (400, "invalid_value", "purpose")),
        ({"expires_after": 3}, (400, "invalid_value", "expires_after")),
        (
            {"expires_after": {"anchor": "created_at", "seconds": 5}},
            (400, "invalid_value", "expires_after.seconds"),
        ),
    ],
)
def test_an_upload_out_of_bounds_is_declined(changes: dict[str, Any], refused: tuple[int, str, str]) -> None:
    with pytest.raises(Declined) as declined:
        upload_terms({**TERMS, **changes}, 100_000)
    assert (declined.value.status, declined.value.code, declined.value.param) == refused


async def test_the_file_expires_by_the_terms_of_its_upload(rig: Rig) -> None:
    client = Uploader(rig)
    upload_id = await client.begun(1, expires_after={"anchor": "created_at", "seconds": 7200})
    file = (await client.complete(upload_id, await client.added(upload_id, b"1"))).json()["file"]

    assert file["expires_at"] == file["created_at"] + 7200


async def test_an_unusable_part_leaves_nothing(rig: Rig) -> None:
    client = Uploader(rig)
    upload_id = await client.begun(3)
    bodies: list[tuple[bytes, str | None]] = [
        (part("file", b"1", "x") + END, "data"),
        (part("data", b"1", "x") + part("data", b"1", "x") + END, "data"),
        (part("data", b"1", "x"), None),
        (part("data", b"x" * 100_001, "x") + END, "data"),
        (b"no form", None),
    ]
    for body, param in bodies:
        answer = await client.post(f"/{upload_id}/parts", content=body, headers={"content-type": FORM})
        assert answer.status_code in (400, 413)
        assert answer.json()["error"]["param"] == param
    assert rig.blobs == []


async def test_no_byte_of_a_part_is_kept_before_the_credential_and_the_upload_are_known(rig: Rig) -> None:
    client, read = Uploader(rig), list[int]()

    async def body() -> AsyncIterator[bytes]:
        read.append(1)
        yield part("data", b"1", "x")

    upload_id = await client.begun(3)
    for key, path, status in (
        (None, upload_id, 401),
        (rig.key("acme", Scope.READ), upload_id, 403),
        (rig.key("other"), upload_id, 404),
        (client.key, ABSENT, 404),
    ):
        answer = await rig.request(
            "POST", f"/v1/uploads/{path}/parts", key, content=body(), headers={"content-type": FORM}
        )
        assert answer.status_code == status
    assert (read, rig.blobs) == ([], [])


async def test_another_tenants_upload_looks_like_an_absent_one(rig: Rig) -> None:
    theirs, mine = Uploader(rig, "theirs"), Uploader(rig, "mine")
    upload_id = await theirs.begun(3)
    parts = await theirs.added(upload_id, b"abc")

    for identifier in (upload_id, ABSENT, "x" * 500, "%00", "..%2Fx"):
        for answer in (
            await mine.add(identifier, b"abc"),
            await mine.complete(identifier, parts),
            await mine.post(f"/{identifier}/cancel"),
        ):
            assert refusal(answer)[:2] in ((404, "upload_not_found"), (404, "unknown_url"))
    own = await mine.begun(3)
    assert refusal(await mine.complete(own, parts))[1] == "part_not_found"
    assert (await theirs.complete(upload_id, parts)).status_code == 200


async def test_parts_take_space_until_their_upload_ends(tmp_path: Path) -> None:
    with gateway_rig(tmp_path, tenant_bytes=2048) as rig:
        client = Uploader(rig)
        assert refusal(await client.create(2049)) == (413, "storage_full", "bytes")
        upload_id, other = await client.begun(2048), await client.begun(1)
        parts = await client.added(upload_id, b"x" * 2048)

        assert refusal(await client.add(upload_id, b"x")) == (413, "storage_full", "data")
        assert refusal(await client.add(other, b"x")) == (413, "storage_full", "data")
        assert refusal(await client.create(1)) == (413, "storage_full", "bytes")
        assert (await rig.upload(b"x", client.key)).status_code == 413
        assert (await rig.upload(b"x", rig.key("other"))).status_code == 200
        assert (await client.complete(upload_id, parts)).status_code == 200
        assert (await rig.upload(b"x", client.key)).status_code == 413


async def test_parts_side_by_side_take_no_more_than_the_tenants_space(tmp_path: Path) -> None:
    with gateway_rig(tmp_path, tenant_bytes=2048) as rig:
        client = Uploader(rig)
        upload_id = await client.begun(2048)
        answers = await asyncio.gather(*(client.add(upload_id, b"x" * 1000) for _ in range(5)))
        assert sorted(answer.status_code for answer in answers) == [200, 200, 413, 413, 413]


async def test_an_upload_has_a_limit_of_parts(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Uploader(rig)
    monkeypatch.setattr("gateway.batches.uploads.MOST_PARTS", 2)
    upload_id = await client.begun(3)
    await client.added(upload_id, b"a", b"b")

    assert refusal(await client.add(upload_id, b"c")) == (400, "too_many_parts", "data")
    assert MOST_PARTS >= 5 * 1024 / 64


async def test_memory_does_not_grow_with_the_parts(tmp_path: Path) -> None:
    content = b"x" * (8 * 1024 * 1024)

    async def body() -> AsyncIterator[bytes]:
        yield part("data", b"", "upload")[:-2]
        for at in range(0, len(content), 65_536):
            yield content[at : at + 65_536]
        yield b"\r\n" + END

    with gateway_rig(tmp_path) as rig:
        client = Uploader(rig)
        upload_id = await client.begun(2 * len(content))
        tracemalloc.start()
        parts = [
            (await client.post(f"/{upload_id}/parts", content=body(), headers={"content-type": FORM})).json()["id"]
            for _ in range(2)
        ]
        done = (await client.complete(upload_id, parts)).json()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

    assert done["file"]["bytes"] == 2 * len(content)
    assert peak < 3 * 1024 * 1024


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
NAMES = ["bytes", "filename", "mime_type", "purpose", "expires_after", "part_ids", "md5", "anchor", "seconds"]
BODIES = JSON | st.dictionaries(st.sampled_from(NAMES), JSON | st.just("batch") | st.lists(st.text(), max_size=4))


@given(BODIES)
def test_any_body_is_an_upload_or_a_completion_or_is_declined(body: Any) -> None:
    for read in (lambda: upload_terms(body, 1000), lambda: completion(body)):
        try:
            made: Any = read()
        except Declined as declined:
            assert declined.status in (400, 413)
        else:
            assert 1 <= made.bytes <= 1000 if hasattr(made, "bytes") else len(made.part_ids_sha256) == 64


@given(cuts=st.lists(st.integers(1, 40), max_size=5), order=st.randoms())
@settings(max_examples=drawn(10), deadline=None, suppress_health_check=list(HealthCheck))
async def test_any_cuts_in_any_order_of_arrival_give_the_content(rig: Rig, cuts: list[int], order: Any) -> None:
    client, content = Uploader(rig), bytes(range(100))
    edges = sorted({0, 100, *(min(cut * 2, 100) for cut in cuts)})
    pieces = [content[start:end] for start, end in pairwise(edges)]
    upload_id = await client.begun(100)
    arrival = list(range(len(pieces)))
    order.shuffle(arrival)
    ids = {number: (await client.added(upload_id, pieces[number]))[0] for number in arrival}

    done = (await client.complete(upload_id, [ids[number] for number in range(len(pieces))])).json()

    assert await client.content(done["file"]["id"]) == content
