"""`/v1/files` over the application: uploads of every form, lists, contents, deletion, expiry."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.access import Scope
from gateway.batches.files import PURPOSES, clean_filename
from gateway.door.errors import ApiError
from gateway.door.file_form import FileForm
from tests.unit.gateway_rig import Rig, gateway_rig

BOUNDARY = "b0undary"
FORM = f"multipart/form-data; boundary={BOUNDARY}"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with gateway_rig(tmp_path, most_bytes=100_000) as made:
        yield made


def part(name: str, content: bytes, filename: str | None = None) -> bytes:
    said = f'form-data; name="{name}"' + ("" if filename is None else f'; filename="{filename}"')
    return f"--{BOUNDARY}\r\nContent-Disposition: {said}\r\n\r\n".encode() + content + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()


async def pieces(body: bytes, size: int = 100) -> AsyncIterator[bytes]:
    for at in range(0, len(body), size):
        yield body[at : at + size]


async def post(rig: Rig, body: bytes, key: str, size: int = 100) -> tuple[int, dict[str, object]]:
    answer = await rig.request("POST", "/v1/files", key, content=pieces(body, size), headers={"content-type": FORM})
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


async def test_the_file_may_come_before_the_purpose_in_a_body_without_length(rig: Rig) -> None:
    body = part("file", b"content", "in.jsonl") + part("purpose", b"batch") + END

    status, made = await post(rig, body, rig.key(), size=1)

    assert (status, made["bytes"], made["purpose"]) == (200, 7, "batch")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (part("file", b"1", "x") + END, "purpose"),
        (part("file", b"1", "x") + part("purpose", b"batches") + END, "purpose"),
        (part("purpose", b"batch_output") + part("file", b"1", "x") + END, "purpose"),
        (part("purpose", b"batch") + END, "file"),
        (part("purpose", b"batch") + part("file", b"1", "x") + part("file", b"2", "x") + END, "file"),
        (part("purpose", b"batch") + part("file", b"1", "x"), None),
        (part("x", b"1" * 5000) + END, None),
        (part("x", b"1") * 33 + END, None),
        (b"no form", None),
        (b"", None),
    ],
)
async def test_a_form_without_its_fields_is_refused_and_leaves_nothing(
    rig: Rig, body: bytes, param: str | None
) -> None:
    status, answer = await post(rig, body, rig.key())

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


async def test_no_byte_is_kept_before_the_credential_is_known(rig: Rig) -> None:
    read: list[bytes] = []

    async def body() -> AsyncIterator[bytes]:
        read.append(b"1")
        yield part("file", b"1", "x")

    reading_only = rig.key("acme", Scope.READ)
    answers = [
        await rig.request("POST", "/v1/files", key, content=body(), headers={"content-type": FORM})
        for key in (None, "pk_no_key", reading_only)
    ]

    assert [answer.status_code for answer in answers] == [401, 401, 403]
    assert read == []
    assert rig.blobs == []


async def test_a_tenant_whose_files_fill_its_space_is_refused(tmp_path: Path) -> None:
    with gateway_rig(tmp_path, tenant_bytes=2048) as rig:
        assert (await rig.upload(b"x" * 2048, rig.key())).status_code == 200
        assert (await rig.upload(b"x", rig.key())).json()["error"]["code"] == "storage_full"
        assert (await rig.upload(b"x", rig.key("other"))).status_code == 200


async def test_files_side_by_side_take_no_more_than_the_tenants_space(tmp_path: Path) -> None:
    with gateway_rig(tmp_path, tenant_bytes=2048) as rig:
        key = rig.key()
        answers = await asyncio.gather(*(rig.upload(b"x" * 1000, key) for _ in range(5)))
        assert sorted(answer.status_code for answer in answers) == [200, 200, 413, 413, 413]
        assert len(rig.blobs) == 2


async def test_every_purpose_of_openais_sdk_is_kept(rig: Rig) -> None:
    key = rig.key()

    answers = [await rig.upload(b"1", key, purpose=purpose) for purpose in PURPOSES]

    assert [answer.json()["purpose"] for answer in answers] == list(PURPOSES)
    listed = (await rig.request("GET", "/v1/files?purpose=vision", key)).json()
    assert [file["purpose"] for file in listed["data"]] == ["vision"]


async def test_paging_visits_each_file_once_and_ends(rig: Rig) -> None:
    key = rig.key()
    made = []
    for _ in range(5):
        rig.clock.now += 1
        made.append((await rig.upload(b"1", key)).json()["id"])

    for order, wanted in (("asc", made), ("desc", made[::-1])):
        seen: list[str] = []
        after = ""
        while True:
            page = (await rig.request("GET", f"/v1/files?limit=2&order={order}&after={after}", key)).json()
            seen += [file["id"] for file in page["data"]]
            assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
            if not page["has_more"]:
                break
            after = page["last_id"]
        assert seen == wanted


async def test_a_list_continues_after_a_file_that_is_deleted_meanwhile(rig: Rig) -> None:
    key = rig.key()
    for _ in range(3):
        rig.clock.now += 1
        await rig.upload(b"1", key)
    first = (await rig.request("GET", "/v1/files?limit=1", key)).json()
    await rig.request("DELETE", f"/v1/files/{first['last_id']}", key)

    rest = (await rig.request("GET", f"/v1/files?after={first['last_id']}", key)).json()

    assert (len(rest["data"]), rest["has_more"]) == (2, False)
    empty = (await rig.request("GET", f"/v1/files?after={rest['last_id']}", key)).json()
    assert empty == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=10001", "limit=x", "limit=-1", "order=up", "after=../x", "after=%00"]
)
async def test_a_list_that_is_asked_for_wrongly_is_refused(rig: Rig, query: str) -> None:
    answer = await rig.request("GET", f"/v1/files?{query}", rig.key())

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == query.partition("=")[0]


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
    assert rig.shelf.sweep() == 1
    assert rig.blobs == []


@pytest.mark.parametrize(
    "terms",
    [
        {"expires_after[anchor]": "created_at"},
        {"expires_after[seconds]": "3600"},
        {"expires_after[anchor]": "last_used", "expires_after[seconds]": "3600"},
        {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3599"},
        {"expires_after[anchor]": "created_at", "expires_after[seconds]": "2592001"},
        {"expires_after[anchor]": "created_at", "expires_after[seconds]": "1e9"},
    ],
)
async def test_an_expiry_out_of_bounds_is_refused(rig: Rig, terms: dict[str, str]) -> None:
    answer = await rig.upload(b"1", rig.key(), **terms)

    assert (answer.status_code, answer.json()["error"]["param"][:13]) == (400, "expires_after")


async def test_leftovers_of_a_killed_upload_are_swept_once_no_upload_can_be_that_old(rig: Rig) -> None:
    draft = rig.shelf.begin("acme", None)
    draft.write(b"1")

    assert rig.shelf.sweep() == 0
    rig.clock.now += 2 * rig.shelf.settings.upload_seconds + 1

    assert rig.shelf.sweep() == 1
    assert rig.blobs == []
    draft.writer.abort()


async def test_a_file_whose_content_is_lost_is_no_server_error(rig: Rig) -> None:
    key = rig.key()
    identifier = (await rig.upload(b"1", key)).json()["id"]
    rig.shelf.blobs.delete(identifier)

    answer = await rig.request("GET", f"/v1/files/{identifier}/content", key)

    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "content_missing")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\files\\in.jsonl", "in.jsonl"),
        ("a\r\nSet-Cookie: x", "aSet-Cookie: x"),
        ("..", "file.jsonl"),
        ("", "file.jsonl"),
        (None, "file.jsonl"),
        ("x/", "file.jsonl"),
        ("名前.jsonl", "名前.jsonl"),
    ],
)
def test_a_filename_is_never_a_path(given: str | None, kept: str) -> None:
    assert clean_filename(given) == kept


@given(st.text())
def test_any_filename_becomes_one_that_can_be_shown(given: str) -> None:
    name = clean_filename(given)

    assert 1 <= len(name) <= 255
    assert not set(name) & set("/\\\r\n\0")
    name.encode()


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


async def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    piece, count = b"x" * 65_536, 400

    async def body() -> AsyncIterator[bytes]:
        yield part("purpose", b"batch") + part("file", b"", "large")[:-2]
        for _ in range(count):
            yield piece
        yield b"\r\n" + END

    with gateway_rig(tmp_path) as rig:
        key = rig.key()
        tracemalloc.start()
        answer = await rig.request("POST", "/v1/files", key, content=body(), headers={"content-type": FORM})
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

    assert answer.json()["bytes"] == count * len(piece)
    assert peak < 3 * 1024 * 1024
