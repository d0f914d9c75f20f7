"""Files of tenants at the door: `/v1/files`, uploads in parts, their ends, and the space that they take."""

from __future__ import annotations

import asyncio
import hashlib
import math
import threading
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import generate_latest
from sqlalchemy import Connection

from gateway.access import Scope
from gateway.access.tenant_settings import TenantSettings
from gateway.batches.clerk import Clerk
from gateway.batches.files import PURPOSES, STORAGE_CALLS, STORAGE_WAITING, clean_filename
from gateway.batches.uploads import LATE_MS, LIFE_MS, MOST_PARTS, UploadCompletion, UploadRequest, Uploads, sweep
from gateway.blobs.base import BlobsAway, BlobWriter
from gateway.blobs.folder import folder_of
from gateway.blobs.settings import FilesSettings
from gateway.door.receiving import FileForm
from gateway.errors import ApiError, OutcomeUnknown, validated
from gateway.role import measure_disks
from schemas.topics import Topics
from telemetry.metrics import Metrics
from tests.drawn import JSON, drawn
from tests.unit.gateway_rig import Rig, gateway_rig

TERMS = {"bytes": 3, "filename": "in.jsonl", "mime_type": "application/jsonl", "purpose": "batch"}


ABSENT = "upload_absent"


class Uploader:
    """A client of one tenant."""

    def __init__(self, rig: Rig, tenant: str = "acme") -> None:
        self.rig = rig
        self.key = rig.key(tenant)

    async def post(self, path: str, **arguments: Any) -> httpx.Response:
        return await self.rig.request("POST", f"/v1/uploads{path}", self.key, **arguments)

    async def create(self, size: int, **changes: Any) -> httpx.Response:
        return await self.post("", json={**TERMS, "bytes": size, **changes})

    async def begun(self, size: int, **changes: Any) -> str:
        answer = await self.create(size, **changes)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    async def add(self, upload_id: str, data: bytes) -> httpx.Response:
        return await self.post(f"/{upload_id}/parts", files={"data": ("upload", data)})

    async def added(self, upload_id: str, *contents: bytes) -> list[str]:
        answers = [await self.add(upload_id, content) for content in contents]
        assert [answer.status_code for answer in answers] == [200] * len(contents), answers[-1].text
        return [answer.json()["id"] for answer in answers]

    async def pending(self, *contents: bytes) -> tuple[str, list[str]]:
        """A new upload and its parts, which have all of its content."""
        upload_id = await self.begun(sum(map(len, contents)))
        return upload_id, await self.added(upload_id, *contents)

    async def complete(self, upload_id: str, part_ids: list[str], **changes: Any) -> httpx.Response:
        return await self.post(f"/{upload_id}/complete", json={"part_ids": part_ids, **changes})

    async def files(self) -> list[dict[str, Any]]:
        return list((await self.rig.request("GET", "/v1/files", self.key)).json()["data"])

    async def content(self, file_id: str) -> bytes:
        return (await self.rig.request("GET", f"/v1/files/{file_id}/content", self.key)).content


def refusal(answer: httpx.Response) -> tuple[int, str, str | None]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


# -- files -------------------------------------------------------------------------------------------------------------


BOUNDARY = "b0undary"
FORM = f"multipart/form-data; boundary={BOUNDARY}"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with gateway_rig(tmp_path, most_bytes=100_000, tenant_bytes=200_000) as made:
        yield made


@pytest.fixture
def client(rig: Rig) -> Uploader:
    return Uploader(rig)


@pytest.fixture
def narrow(tmp_path: Path) -> Iterator[Rig]:
    """A door whose tenants have little space."""
    with gateway_rig(tmp_path, tenant_bytes=2048) as made:
        yield made


def part(name: str, content: bytes, filename: str | None = None) -> bytes:
    said = f'form-data; name="{name}"' + ("" if filename is None else f'; filename="{filename}"')
    return f"--{BOUNDARY}\r\nContent-Disposition: {said}\r\n\r\n".encode() + content + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()
ENCODED = {"content-type": FORM}


async def pieces(body: bytes, size: int = 100) -> AsyncIterator[bytes]:
    for at in range(0, len(body), size):
        yield body[at : at + size]


async def post(rig: Rig, body: bytes, key: str, size: int = 100) -> tuple[int, dict[str, object]]:
    answer = await rig.request("POST", "/v1/files", key, content=pieces(body, size), headers=ENCODED)
    return answer.status_code, answer.json()


async def test_an_uploaded_file_reads_back(rig: Rig) -> None:
    key, content = rig.key(), b'{"a": 1}\n' * 5000

    made = (await rig.upload(content, key)).json()

    assert made["bytes"] == len(content)
    assert (made["object"], made["purpose"], made["filename"]) == ("file", "batch", "in.jsonl")
    assert (await rig.request("GET", f"/v1/files/{made['id']}", key)).json() == made
    answer = await rig.request("GET", f"/v1/files/{made['id']}/content", key)
    assert answer.content == content
    assert answer.headers["content-length"] == str(len(content))
    assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''in.jsonl"


async def test_a_range_of_a_file_is_read(rig: Rig) -> None:
    key = rig.key()
    path = f"/v1/files/{(await rig.upload(b'0123456789', key)).json()['id']}/content"

    wanted = {"bytes=2-4": b"234", "bytes=7-": b"789", "bytes=5-500": b"56789"}
    for said, content in wanted.items():
        answer = await rig.request("GET", path, key, headers={"range": said})
        assert (answer.status_code, answer.content) == (206, content)
    assert (await rig.request("GET", path, key, headers={"range": "bytes=10-"})).status_code == 416
    assert (await rig.request("GET", path, key, headers={"range": "lines=1-2"})).content == b"0123456789"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (part("file", b"1", "x") + END, "purpose"),
        (part("file", b"1", "x") + part("purpose", b"batches") + END, "purpose"),
        (part("purpose", b"batch_output") + part("file", b"1", "x") + END, "purpose"),
        (part("purpose", b"batch") + END, "file"),
        (part("purpose", b"batch") + part("file", b"1", "x") + part("file", b"2", "x") + END, "file"),
        (part("purpose", b"batch") + part("file", b"1", "x"), None),
        (part("file", b"content", "in.jsonl") + part("purpose", b"batch") + END, "taken"),
        (part("x", b"1" * 5000) + END, None),
        (part("x", b"1") * 33 + END, None),
        (b"no form", None),
        (b"", None),
    ],
)
async def test_a_file_before_its_purpose_is_taken_and_a_form_without_its_fields_leaves_nothing(
    rig: Rig, body: bytes, param: str | None
) -> None:
    status, answer = await post(rig, body, rig.key(), size=1)

    if param == "taken":
        assert (status, answer["bytes"], answer["purpose"]) == (200, 7, "batch")
        return
    assert status == 400
    assert isinstance(answer["error"], dict)
    assert answer["error"]["param"] == param
    assert rig.blobs == []
    assert (await rig.request("GET", "/v1/files", rig.key())).json()["data"] == []


async def test_a_file_beyond_the_limit_is_refused_with_and_without_a_length(rig: Rig) -> None:
    key, large = rig.key(), b"x" * 100_001

    assert (await rig.upload(large, key)).status_code == 413
    status, _ = await post(rig, part("purpose", b"batch") + part("file", large, "x") + END, key, size=10_000)
    assert status == 413
    assert (await rig.upload(b"x" * 500_000, key)).status_code == 413
    assert (await rig.upload(b"x" * 100_000, key)).status_code == 200
    assert len(rig.blobs) == 1


async def test_no_byte_is_read_before_the_credential_and_the_upload_are_known(rig: Rig) -> None:
    client, read = Uploader(rig), list[int]()

    async def body() -> AsyncIterator[bytes]:
        read.append(1)
        yield part("data", b"1", "x")

    parts, reader = f"/v1/uploads/{await client.begun(3)}/parts", rig.key("acme", Scope.READ)
    for key, path, status in (
        *((None, path, 401) for path in ("/v1/files", parts)),
        ("pk_no_key", "/v1/files", 401),
        *((reader, path, 403) for path in ("/v1/files", parts)),
        (rig.key("other"), parts, 404),
        (client.key, f"/v1/uploads/{ABSENT}/parts", 404),
    ):
        assert (await rig.request("POST", path, key, content=body(), headers=ENCODED)).status_code == status, path
    assert (read, rig.blobs) == ([], [])


async def test_a_tenants_files_take_no_more_than_its_space_side_by_side_too(narrow: Rig) -> None:
    key = narrow.key()
    answers = await asyncio.gather(*(narrow.upload(b"x" * 1000, key) for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [200, 200, 413, 413, 413]
    assert len(narrow.blobs) == 2
    assert (await narrow.upload(b"x" * 48, key)).status_code == 200
    assert (await narrow.upload(b"x", key)).json()["error"]["code"] == "storage_full"
    assert (await narrow.upload(b"x", narrow.key("other"))).status_code == 200


async def test_every_purpose_of_openais_sdk_is_kept(rig: Rig) -> None:
    key = rig.key()

    answers = [await rig.upload(b"1", key, purpose=purpose) for purpose in PURPOSES]

    assert [answer.json()["purpose"] for answer in answers] == list(PURPOSES)
    listed = (await rig.request("GET", "/v1/files?purpose=vision", key)).json()
    assert [file["purpose"] for file in listed["data"]] == ["vision"]


async def test_paging_visits_each_file_once_and_continues_after_one_that_is_deleted_meanwhile(rig: Rig) -> None:
    key = rig.key()
    made = []
    for _ in range(5):
        rig.clock.now += 1
        made.append((await rig.upload(b"1", key)).json()["id"])

    async def listed(query: str) -> dict[str, Any]:
        page: dict[str, Any] = (await rig.request("GET", f"/v1/files?{query}", key)).json()
        ids = [file["id"] for file in page["data"]]
        assert (page["first_id"], page["last_id"]) == ((ids[0], ids[-1]) if ids else (None, None))
        return {"ids": ids, "more": page["has_more"]}

    for order, wanted in (("asc", made), ("desc", made[::-1])):
        seen: list[str] = []
        while (page := await listed(f"limit=2&order={order}&after={seen[-1] if seen else ''}"))["more"]:
            seen += page["ids"]
        assert seen + page["ids"] == wanted
    await rig.request("DELETE", f"/v1/files/{made[-1]}", key)
    assert await listed(f"after={made[-1]}") == {"ids": made[-2::-1], "more": False}
    assert await listed(f"after={made[0]}") == {"ids": [], "more": False}


async def test_a_list_that_is_asked_for_wrongly_is_refused(rig: Rig) -> None:
    key = rig.key()
    for query in ("limit=0", "limit=10001", "limit=x", "limit=-1", "order=up", "ordre=asc"):
        answer = await rig.request("GET", f"/v1/files?{query}", key)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, query.partition("=")[0]), query


async def test_every_list_refuses_an_unknown_parameter_and_an_after_that_is_no_id_of_its_objects(rig: Rig) -> None:
    key = rig.key("acme", Scope.ADMIN)
    listed = ("files", "batches", "jobs", "admin/api_keys", "admin/tenants")
    for path in listed:
        answer = await rig.request("GET", f"/v1/{path}?filter=x", key)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unknown_parameter"), path
    for path in listed[:4]:
        answer = await rig.request("GET", f"/v1/{path}?after=../x", key)
        assert (answer.status_code, answer.json()["error"]["type"]) == (404, "invalid_request_error"), path


async def test_a_repeated_upload_with_an_idempotency_key_gives_the_first_file(rig: Rig) -> None:
    key, once = rig.key(), {"idempotency-key": "file"}

    async def send(content: bytes) -> httpx.Response:
        files = {"file": ("in.jsonl", content)}
        return await rig.request("POST", "/v1/files", key, files=files, data={"purpose": "batch"}, headers=once)

    first, second = await send(b"{}\n"), await send(b"{}\n")
    assert first.json() == second.json()
    assert rig.blobs == [first.json()["id"]]
    other = await send(b"[]\n")
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_key_reused")
    assert rig.blobs == [first.json()["id"]]


async def test_a_file_whose_commit_had_no_answer_is_there_for_the_repeat(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, write, once = rig.key(), rig.store.write, {"idempotency-key": "file"}

    async def cut_off(change: Callable[[Connection], object]) -> None:
        await write(change)
        raise OutcomeUnknown("the connection was lost")

    async def send() -> httpx.Response:
        form = {"files": {"file": ("in.jsonl", b"{}\n")}, "data": {"purpose": "batch"}}
        return await rig.request("POST", "/v1/files", key, headers=once, **form)

    with monkeypatch.context() as patch:
        patch.setattr(rig.store, "write", cut_off)
        assert (await send()).status_code == 503
    again = await send()
    assert again.status_code == 200, again.text
    content = await rig.request("GET", f"/v1/files/{again.json()['id']}/content", key)
    assert (content.status_code, content.content, len(rig.blobs)) == (200, b"{}\n", 1)


async def test_a_storage_that_hangs_is_refused_to_further_uploads_and_stops_nothing_else(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, released, hanging = rig.key(), threading.Event(), asyncio.Semaphore(0)
    loop, create = asyncio.get_running_loop(), rig.shelf.blobs.create

    def hang(name: str) -> BlobWriter:
        loop.call_soon_threadsafe(hanging.release)
        released.wait(30)
        return create(name)

    monkeypatch.setattr(rig.shelf.blobs, "create", hang)
    uploads = [asyncio.create_task(rig.upload(b"{}\n", key)) for _ in range(STORAGE_CALLS + STORAGE_WAITING)]
    try:
        for _ in range(STORAGE_CALLS):
            await hanging.acquire()
        refused = await rig.upload(b"{}\n", key)
        error = refused.json()["error"]
        assert (refused.status_code, error["code"], refused.headers["retry-after"]) == (503, "busy", "5")
        assert (await rig.request("POST", "/v1/jobs", key, json={"prompt": "a"})).status_code == 202
        assert await asyncio.to_thread(lambda: True)
    finally:
        released.set()
    assert {answer.status_code for answer in await asyncio.gather(*uploads)} == {200}
    assert (await rig.upload(b"{}\n", key)).status_code == 200


async def test_another_tenants_file_looks_like_an_absent_one(rig: Rig) -> None:
    theirs = (await rig.upload(b"secret", rig.key("theirs"))).json()["id"]
    mine = rig.key("mine")

    for identifier in (theirs, "file-absent", "x" * 500, "%00", "..%2F..%2Fetc"):
        for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
            answer = await rig.request(method, f"/v1/files/{identifier}{path}", mine)
            assert answer.status_code == 404
    assert (await rig.request("GET", "/v1/files", mine)).json()["data"] == []


async def test_a_deleted_file_is_gone_with_its_content(rig: Rig) -> None:
    key = rig.key()
    identifier = (await rig.upload(b"1", key)).json()["id"]

    answer = (await rig.request("DELETE", f"/v1/files/{identifier}", key)).json()

    assert answer == {"id": identifier, "object": "file", "deleted": True}
    assert rig.blobs == []
    assert (await rig.request("DELETE", f"/v1/files/{identifier}", key)).status_code == 404


async def test_a_file_expires_by_its_own_terms(rig: Rig) -> None:
    key, terms = rig.key(), {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    made = (await rig.upload(b"1", key, **terms)).json()
    assert made["expires_at"] == made["created_at"] + 3600

    rig.clock.now += 3601

    assert (await rig.request("GET", f"/v1/files/{made['id']}/content", key)).status_code == 404
    assert sweep(rig.shelf) == 1
    assert rig.blobs == []


async def test_an_expiry_out_of_bounds_is_refused(rig: Rig) -> None:
    key = rig.key()
    for anchor, seconds in (
        ("created_at", None),
        (None, "3600"),
        ("last_used", "3600"),
        ("created_at", "3599"),
        ("created_at", "2592001"),
        ("created_at", "1e9"),
    ):
        given = {"expires_after[anchor]": anchor, "expires_after[seconds]": seconds}
        answer = await rig.upload(b"1", key, **{name: value for name, value in given.items() if value is not None})
        assert (answer.status_code, answer.json()["error"]["param"][:13]) == (400, "expires_after")


async def test_a_file_or_a_part_whose_content_is_lost_is_no_server_error(rig: Rig, client: Uploader) -> None:
    identifier = (await rig.upload(b"1", client.key)).json()["id"]
    upload_id, parts = await client.pending(b"abc")
    for lost in (identifier, *parts):
        rig.shelf.blobs.delete(lost)

    answer = await rig.request("GET", f"/v1/files/{identifier}/content", client.key)
    for refused in (answer, await client.complete(upload_id, parts)):
        assert refusal(refused)[:2] == (404, "content_missing")
    assert rig.blobs == []


@given(st.text())
def test_any_filename_becomes_one_that_can_be_shown_and_is_never_a_path(given: str) -> None:
    name = clean_filename(given)

    assert 1 <= len(name) <= 255
    assert not set(name) & set("/\\\r\n\0")
    name.encode()
    kept = {"../../etc/passwd": "passwd", "C:\\files\\in.jsonl": "in.jsonl", "a\r\nSet-Cookie: x": "aSet-Cookie: x"}
    kept |= {"名前.jsonl": "名前.jsonl", **dict.fromkeys(("..", "", "x/"), "file.jsonl")}
    assert {name: clean_filename(name) for name in kept} == kept
    assert clean_filename(None) == "file.jsonl"


@given(st.binary(max_size=2000), st.lists(st.integers(1, 400), max_size=20), st.booleans())
def test_any_file_in_any_chunks_is_read_as_it_is(content: bytes, cuts: list[int], fields_first: bool) -> None:
    content = content.replace(BOUNDARY.encode(), b"")
    file, field = part("file", content, "in.jsonl"), part("purpose", b"batch")
    body = (field + file if fields_first else file + field) + END
    form, taken, at = FileForm(FORM), b"", 0
    for cut in [*cuts, len(body)]:
        form.feed(body[at : at + cut])
        taken += form.take()
        at += cut
    form.finish()

    assert (taken, form.fields, form.filename) == (content, {"purpose": "batch"}, "in.jsonl")


@given(
    st.text(st.characters(max_codepoint=255)),
    st.lists(st.binary() | st.sampled_from([part("file", b"x", "y"), part("a", b"b"), END]), max_size=6),
)
def test_noise_is_a_form_or_is_refused(content_type: str, chunks: list[bytes]) -> None:
    for header in (content_type, FORM):
        try:
            form = FileForm(header)
            for chunk in chunks:
                form.feed(chunk)
            form.finish()
        except ApiError as error:
            assert error.status in (400, 415)


async def test_memory_does_not_grow_with_a_file_or_the_parts_of_an_upload(tmp_path: Path) -> None:
    size = 8 * 1024 * 1024

    async def body(*starts: bytes) -> AsyncIterator[bytes]:
        for start in starts:
            yield start
        for _ in range(size // 65_536):
            yield b"x" * 65_536
        yield b"\r\n" + END

    with gateway_rig(tmp_path) as rig:
        client = Uploader(rig)
        upload_id = await client.begun(2 * size)
        tracemalloc.start()
        content = body(part("purpose", b"batch"), part("file", b"", "large")[:-2])
        file = await rig.request("POST", "/v1/files", client.key, content=content, headers=ENCODED)
        parts = []
        for _ in range(2):
            content = body(part("data", b"", "upload")[:-2])
            parts.append((await client.post(f"/{upload_id}/parts", content=content, headers=ENCODED)).json()["id"])
        done = (await client.complete(upload_id, parts)).json()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

    assert (file.json()["bytes"], done["file"]["bytes"]) == (size, 2 * size)
    assert peak < 3 * 1024 * 1024


# -- uploads in parts --------------------------------------------------------------------------------------------------


async def test_parts_become_a_file_in_the_order_of_their_ids(rig: Rig, client: Uploader) -> None:
    begun = (await client.create(9, filename="../x/in.jsonl")).json()
    part_of = (await client.add(begun["id"], b"not used")).json()
    first, second, third = await client.added(begun["id"], b"ghi", b"abc", b"def")

    done = (await client.complete(begun["id"], [second, third, first])).json()

    assert (begun["object"], begun["status"], begun["bytes"], begun["file"]) == ("upload", "pending", 9, None)
    assert (begun["filename"], begun["purpose"]) == ("in.jsonl", "batch")
    assert begun["expires_at"] == begun["created_at"] + 3600
    assert part_of["id"].startswith("part_")
    wanted = ("upload.part", begun["id"], 1_800_000_000)
    assert (part_of["object"], part_of["upload_id"], part_of["created_at"]) == wanted
    assert done == {**begun, "status": "completed", "file": done["file"]}
    assert done["file"]["bytes"] == 9
    assert await client.content(done["file"]["id"]) == b"abcdefghi"
    assert await client.files() == [done["file"]]
    assert rig.blobs == [done["file"]["id"]]


async def test_a_repeated_complete_gives_the_same_file_and_other_parts_are_a_conflict(
    rig: Rig, client: Uploader
) -> None:
    upload_id, parts = await client.pending(b"abc", b"def")
    first = (await client.complete(upload_id, parts)).json()

    assert (await client.complete(upload_id, parts)).json() == first
    other = await client.complete(upload_id, parts[::-1])
    assert refusal(other) == (409, "upload_not_pending", "upload_id")
    assert other.headers["x-should-retry"] == "false"
    await rig.request("DELETE", f"/v1/files/{first['file']['id']}", client.key)
    assert (await client.complete(upload_id, parts)).json() == {**first, "file": None}


async def test_completes_at_once_in_one_process_and_in_two_give_one_file(rig: Rig, client: Uploader) -> None:
    upload_id, parts = await client.pending(b"abc", b"def")
    asked = UploadCompletion(part_ids=tuple(parts))
    others = [Uploads(rig.shelf) for _ in range(3)]

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
    client, other = Uploader(rig), Uploads(rig.shelf)
    upload_id, parts = await client.pending(b"abc")
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
            await other.complete("acme", upload_id, UploadCompletion(part_ids=tuple(parts)), None)
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


async def test_parts_that_are_not_the_file_are_refused_and_the_upload_goes_on(rig: Rig, client: Uploader) -> None:
    upload_id, (first, second) = await client.pending(b"abc", b"def")
    _, (other,) = await client.pending(b"def")
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


def test_a_completion_of_another_form_is_declined() -> None:
    for asked, param in (
        ([], None),
        ({}, "part_ids"),
        *(({"part_ids": ids}, "part_ids") for ids in ([], "part_1", ["A", "A"])),
        ({"part_ids": ["A", 1]}, "part_ids.1"),
        *(({"part_ids": ["A"], "md5": md5}, "md5") for md5 in ("no", 5)),
    ):
        with pytest.raises(ApiError) as declined:
            validated(UploadCompletion, asked)
        assert (declined.value.status, declined.value.param) == (400, param), asked


def test_an_upload_out_of_bounds_is_declined() -> None:
    soon = {"anchor": "created_at", "seconds": 5}
    sizes: tuple[object, ...] = (0, True, "3")
    purposes: tuple[object, ...] = ("batch_output", [])
    cases: list[tuple[dict[str, object], tuple[int, str, str]]] = [
        *(({"bytes": size}, (400, "invalid_value", "bytes")) for size in sizes),
        ({"filename": None}, (400, "invalid_value", "filename")),
        ({"mime_type": 3}, (400, "invalid_value", "mime_type")),
        ({"purpose": None}, (400, "invalid_value", "purpose")),
        *(({"purpose": purpose}, (400, "invalid_value", "purpose")) for purpose in purposes),
        ({"expires_after": 3}, (400, "invalid_value", "expires_after")),
        ({"expires_after": soon}, (400, "invalid_value", "expires_after.seconds")),
    ]
    for changes, refused in cases:
        with pytest.raises(ApiError) as declined:
            validated(UploadRequest, {**TERMS, **changes})
        assert (declined.value.status, declined.value.code, declined.value.param) == refused, changes


async def test_an_upload_of_a_file_beyond_the_limit_is_refused(client: Uploader) -> None:
    assert refusal(await client.create(100_001)) == (413, "file_too_large", "bytes")


async def test_an_unusable_part_leaves_nothing(rig: Rig, client: Uploader) -> None:
    upload_id = await client.begun(3)
    bodies: list[tuple[bytes, str | None]] = [
        (part("file", b"1", "x") + END, "data"),
        (part("data", b"1", "x") + part("data", b"1", "x") + END, "data"),
        (part("data", b"1", "x"), None),
        (part("data", b"x" * 100_001, "x") + END, "data"),
        (b"no form", None),
    ]
    for body, param in bodies:
        answer = await client.post(f"/{upload_id}/parts", content=body, headers=ENCODED)
        assert answer.status_code in (400, 413)
        assert answer.json()["error"]["param"] == param
    assert rig.blobs == []


async def test_another_tenants_upload_looks_like_an_absent_one(rig: Rig) -> None:
    theirs, mine = Uploader(rig, "theirs"), Uploader(rig, "mine")
    upload_id, parts = await theirs.pending(b"abc")

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


async def test_parts_take_space_until_their_upload_ends_side_by_side_too(narrow: Rig) -> None:
    rig, client, crowd = narrow, Uploader(narrow), Uploader(narrow, "crowd")
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
    crowded = await crowd.begun(2048)
    answers = await asyncio.gather(*(crowd.add(crowded, b"x" * 1000) for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [200, 200, 413, 413, 413]


async def test_an_upload_has_a_limit_of_parts(client: Uploader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.batches.uploads.MOST_PARTS", 2)
    upload_id = await client.begun(3)
    await client.added(upload_id, b"a", b"b")

    assert refusal(await client.add(upload_id, b"c")) == (400, "too_many_parts", "data")
    assert MOST_PARTS >= 5 * 1024 / 64


NAMES = ["bytes", "filename", "mime_type", "purpose", "expires_after", "part_ids", "md5", "anchor", "seconds"]
BODIES = JSON | st.dictionaries(st.sampled_from(NAMES), JSON | st.just("batch") | st.lists(st.text(), max_size=4))


@given(BODIES)
def test_any_body_is_an_upload_or_a_completion_or_is_declined(body: Any) -> None:
    for read in (lambda: validated(UploadRequest, body), lambda: validated(UploadCompletion, body)):
        try:
            made: Any = read()
        except ApiError as declined:
            assert declined.status == 400
        else:
            assert made.bytes >= 1 if hasattr(made, "bytes") else len(made.part_ids_sha256) == 64


@given(cuts=st.lists(st.integers(1, 40), max_size=5), order=st.randoms())
@settings(max_examples=drawn(10), suppress_health_check=list(HealthCheck))
async def test_any_cuts_in_any_order_of_arrival_give_the_content(rig: Rig, cuts: list[int], order: Random) -> None:
    client, content = Uploader(rig), bytes(range(100))
    pieces = [content[start:end] for start, end in pairwise(sorted({0, 100, *(2 * cut for cut in cuts)}))]
    terms = {"anchor": "created_at", "seconds": 7200}
    upload_id = await client.begun(100, expires_after=terms)
    arrival = list(range(len(pieces)))
    order.shuffle(arrival)
    ids = {number: (await client.added(upload_id, pieces[number]))[0] for number in arrival}

    file = (await client.complete(upload_id, [ids[number] for number in range(len(pieces))])).json()["file"]

    assert await client.content(file["id"]) == content
    assert file["expires_at"] == file["created_at"] + 7200


# -- ends of uploads ---------------------------------------------------------------------------------------------------


async def test_a_cancelled_upload_takes_nothing_more_and_its_parts_are_gone(rig: Rig, client: Uploader) -> None:
    upload_id, parts = await client.pending(b"abc")

    answers = [(await client.post(f"/{upload_id}/cancel")).json()["status"] for _ in range(2)]

    assert answers == ["cancelled"] * 2
    assert rig.blobs == []
    assert refusal(await client.add(upload_id, b"abc"))[:2] == (409, "upload_not_pending")
    assert refusal(await client.complete(upload_id, parts))[:2] == (409, "upload_not_pending")


async def test_an_upload_expires_after_an_hour_and_is_swept(rig: Rig) -> None:
    client = Uploader(rig)
    upload_id, parts = await client.pending(b"abc")
    done, completed = await client.pending(b"1")
    file = (await client.complete(done, completed)).json()["file"]

    rig.clock.now += LIFE_MS / 1000 + 1
    for answer in (
        await client.add(upload_id, b"abc"),
        await client.complete(upload_id, parts),
        await client.post(f"/{upload_id}/cancel"),
    ):
        assert refusal(answer) == (409, "upload_not_pending", "upload_id")
        assert "`expired`" in answer.text
    assert sweep(rig.shelf) == 0
    rig.clock.now += LATE_MS / 1000 + 1
    assert sweep(rig.shelf) == 1
    assert rig.blobs == [file["id"]]

    assert (await client.complete(done, completed)).json()["file"] == file
    rig.clock.now += 24 * 3600
    assert sweep(rig.shelf) == 0
    assert refusal(await client.complete(done, completed))[:2] == (404, "upload_not_found")


async def test_the_clerk_sweeps_the_parts_of_expired_uploads(rig: Rig, client: Uploader) -> None:
    await client.pending(b"abc")
    rig.clock.now += (LIFE_MS + LATE_MS) / 1000 + 1

    clerk = asyncio.create_task(Clerk(rig.shelf, Topics(), lambda _: TenantSettings(), lambda _, __: None).ended())
    async with asyncio.timeout(60):
        while rig.blobs:
            await asyncio.sleep(0.01)
    clerk.cancel()
    await asyncio.wait([clerk])


async def test_what_a_killed_process_left_is_swept_once_no_request_can_be_that_old(rig: Rig) -> None:
    client, uploads = Uploader(rig), Uploads(rig.shelf)
    upload_id = await client.begun(3)
    drafts = (rig.shelf.begin("acme", None), uploads.begin_part("acme", upload_id))
    for draft in drafts:
        draft.write(b"1")
    await client.post(f"/{upload_id}/cancel")

    assert sweep(rig.shelf) == 0
    rig.clock.now += 2 * rig.shelf.settings.upload_seconds + 1
    assert sweep(rig.shelf) == 2
    assert rig.blobs == []
    for draft in drafts:
        draft.writer.abort()


async def test_a_file_that_a_killed_process_did_not_join_is_swept_and_the_upload_goes_on(
    rig: Rig, client: Uploader, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_id, parts = await client.pending(b"abc")
    with monkeypatch.context() as patched:
        patched.setattr("gateway.batches.uploads.end_with", refused)
        assert (await client.complete(upload_id, parts)).status_code == 503

    assert len(rig.blobs) == 2
    file = (await client.complete(upload_id, parts)).json()["file"]
    rig.clock.now += 2 * rig.shelf.settings.upload_seconds + 1
    assert sweep(rig.shelf) == 1
    assert rig.blobs == [file["id"]]


def refused(*_: object, **__: object) -> bool:
    """Act like a database that commits and then dies before it answers."""
    raise BlobsAway("gone")


# -- the store's disks -------------------------------------------------------------------------------------------------


def test_each_scrape_shows_the_disks_and_a_folder_that_vanished_breaks_none(tmp_path: Path) -> None:
    metrics, folder = Metrics(), tmp_path / "store"
    folder.mkdir()
    measure_disks(metrics, {"database": folder, "files": None})
    value = metrics.registry.get_sample_value
    free, size = (value(f"postback_store_{name}_bytes", {"content": "database"}) for name in ("free", "disk"))
    assert free is not None
    assert size is not None
    assert 0 < free <= size
    assert value("postback_store_free_bytes", {"content": "files"}) is None

    folder.rmdir()
    assert math.isnan(value("postback_store_free_bytes", {"content": "database"}) or 0.0)
    assert b"postback_store_disk_bytes" in generate_latest(metrics.registry)


def test_files_are_beside_the_database_or_where_the_setting_says_or_in_a_bucket() -> None:
    store = "sqlite:////var/lib/postback/store.db"
    assert folder_of(FilesSettings(), store) == Path("/var/lib/postback/postback-files")
    assert folder_of(FilesSettings(place="/srv/files"), store) == Path("/srv/files")
    assert folder_of(FilesSettings(place="s3://bucket/files"), store) is None
