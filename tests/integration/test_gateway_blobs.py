"""One contract for both storages of files: a folder, and a bucket of a real S3 server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from gateway.batches.files import Shelf
from gateway.batches.uploads import UploadCompletion, UploadRequest, Uploads
from gateway.blobs.base import BlobMissing, Blobs, BlobsAway
from gateway.blobs.folder import FolderBlobs, open_blobs
from gateway.blobs.s3 import PART_BYTES
from gateway.blobs.settings import FilesSettings
from gateway.store.store import Store
from telemetry.clock import SystemClock
from tests.s3_server import ACCESS, SECRET, s3_server

pytestmark = pytest.mark.timeout(1_200)  # the first test builds the S3 server, which takes minutes

BUCKET = "fleet"
UPLOAD = {"filename": "in.jsonl", "mime_type": "application/jsonl", "purpose": "batch"}
NAMES_THAT_ARE_PATHS = ["", ".", "..", "../x", "a/b", "a.b", "a\\b", "a\0b", "ä", "a" * 65]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server(tmp_path_factory.mktemp("s3") / "data", BUCKET) as endpoint:
        yield endpoint


def in_folder(folder: Path) -> Blobs:
    return open_blobs(FilesSettings(place=str(folder / "blobs")), "sqlite://")


def in_bucket(endpoint: str) -> Blobs:
    return open_blobs(FilesSettings(place=f"s3://{BUCKET}/some/prefix", s3_endpoint=endpoint), "sqlite://")


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ACCESS_KEY_ID", ACCESS), ("SECRET_ACCESS_KEY", SECRET), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)


def put(blobs: Blobs, name: str, *pieces: bytes) -> None:
    writer = blobs.create(name)
    for piece in pieces:
        writer.write(piece)
    writer.commit()


class Contract:
    """The contract that every storage keeps."""

    def test_a_blob_reads_back_whole_and_in_ranges(self, blobs: Blobs) -> None:
        put(blobs, "file-1", b"hello ", b"world")

        assert b"".join(blobs.read("file-1")) == b"hello world"
        assert b"".join(blobs.read("file-1", 6, 3)) == b"wor"
        assert b"".join(blobs.read("file-1", 6, 300)) == b"world"
        assert b"".join(blobs.read("file-1", 11, 1)) == b""
        assert b"".join(blobs.read("file-1", 50)) == b""
        assert b"".join(blobs.read("file-1", 3, 0)) == b""

    def test_a_large_blob_comes_in_small_pieces(self, blobs: Blobs) -> None:
        content = bytes(range(256)) * (PART_BYTES // 256) + b"the last part"
        put(blobs, "large", *(content[at : at + 100_000] for at in range(0, len(content), 100_000)))

        pieces = list(blobs.read("large"))

        assert b"".join(pieces) == content
        assert max(map(len, pieces)) <= 256 * 1024

    def test_an_empty_blob_exists(self, blobs: Blobs) -> None:
        put(blobs, "empty")

        assert b"".join(blobs.read("empty")) == b""

    def test_a_blob_is_readable_only_after_its_commit(self, blobs: Blobs) -> None:
        writer = blobs.create("late")
        writer.write(b"x" * (PART_BYTES + 1))

        with pytest.raises(BlobMissing):
            list(blobs.read("late"))
        writer.commit()
        writer.abort()
        assert len(b"".join(blobs.read("late"))) == PART_BYTES + 1

    def test_an_aborted_blob_never_existed(self, blobs: Blobs) -> None:
        writer = blobs.create("aborted")
        writer.write(b"x" * (PART_BYTES + 1))
        writer.abort()

        with pytest.raises(BlobMissing):
            list(blobs.read("aborted"))

    def test_deleting_removes_the_blob_and_interrupted_writes_and_may_be_repeated(self, blobs: Blobs) -> None:
        put(blobs, "doomed", b"1")
        interrupted = blobs.create("doomed")
        interrupted.write(b"x" * (PART_BYTES + 1))

        blobs.delete("doomed")
        blobs.delete("doomed")

        with pytest.raises(BlobMissing):
            list(blobs.read("doomed"))
        with pytest.raises(BlobsAway):
            interrupted.commit()

    def test_deleting_leaves_names_that_begin_alike(self, blobs: Blobs) -> None:
        put(blobs, "alike", b"1")
        put(blobs, "alike-too", b"2")

        blobs.delete("alike")

        assert b"".join(blobs.read("alike-too")) == b"2"

    async def test_parts_of_an_upload_become_one_blob(self, blobs: Blobs, tmp_path: Path) -> None:
        store, asked = Store.open(f"sqlite:///{tmp_path}/store.db"), {**UPLOAD, "bytes": PART_BYTES + 3}
        uploads = Uploads(Shelf(store, blobs, FilesSettings(), SystemClock()))
        upload = await uploads.create("acme", UploadRequest.model_validate(asked))
        contents, part_ids = [b"x" * PART_BYTES, b"end"], []
        for content in contents:
            draft = uploads.begin_part("acme", upload.id)
            draft.write(content)
            part_ids.append((await uploads.keep_part(draft)).id)

        done = await uploads.complete("acme", upload.id, UploadCompletion(part_ids=tuple(part_ids)), None)

        assert b"".join(blobs.read(done.file_id)) == b"".join(contents)
        for part_id in part_ids:
            with pytest.raises(BlobMissing):
                list(blobs.read(part_id))
        store.close()

    @pytest.mark.parametrize("name", NAMES_THAT_ARE_PATHS)
    def test_a_name_is_never_a_path(self, blobs: Blobs, name: str) -> None:
        with pytest.raises(ValueError, match="a blob's name"):
            blobs.create(name)
        with pytest.raises(ValueError, match="a blob's name"):
            list(blobs.read(name))
        with pytest.raises(ValueError, match="a blob's name"):
            blobs.delete(name)


class TestFolder(Contract):
    @pytest.fixture
    def blobs(self, tmp_path: Path) -> Blobs:
        return in_folder(tmp_path)

    def test_only_the_gateways_user_may_read_the_files(self, blobs: Blobs, tmp_path: Path) -> None:
        put(blobs, "secret", b"1")

        assert (tmp_path / "blobs").stat().st_mode & 0o777 == 0o700
        assert (tmp_path / "blobs" / "secret").stat().st_mode & 0o777 == 0o600

    def test_nothing_is_left_of_an_aborted_write(self, blobs: Blobs, tmp_path: Path) -> None:
        writer = blobs.create("gone")
        writer.write(b"1")
        writer.abort()

        assert list((tmp_path / "blobs").iterdir()) == []

    def test_a_full_disk_is_named_and_ends_nothing_else(self) -> None:
        with pytest.raises(BlobsAway, match="POSTBACK_FILES__PLACE"):
            FolderBlobs(Path("/proc/no-such-folder"))


class TestBucket(Contract):
    @pytest.fixture
    def blobs(self, bucket: str, credentials: None) -> Blobs:
        return in_bucket(bucket)

    def test_no_upload_is_left_open_by_an_aborted_write(self, blobs: Blobs, bucket: str) -> None:
        writer = blobs.create("open")
        writer.write(b"x" * (PART_BYTES + 1))
        client = boto3.session.Session().client("s3", endpoint_url=bucket)
        before = client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
        writer.abort()

        assert [upload["Key"] for upload in before] == ["some/prefix/open"]
        assert client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []) == []

    def test_a_storage_that_is_away_is_reported_as_away(self, credentials: None) -> None:
        with pytest.raises(BlobsAway, match="does not answer"):
            list(in_bucket("http://127.0.0.1:1").read("any"))


def test_files_lie_beside_the_sqlite_database_unless_set(tmp_path: Path) -> None:
    blobs = open_blobs(FilesSettings(), f"sqlite:///{tmp_path}/fleet.db")
    put(blobs, "here", b"1")

    assert (tmp_path / "postback-files" / "here").read_bytes() == b"1"
