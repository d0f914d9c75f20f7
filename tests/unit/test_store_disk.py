"""The metrics of the store's disks."""

from __future__ import annotations

import math
from pathlib import Path

from prometheus_client import generate_latest

from gateway.blobs.opening import folder_of
from gateway.blobs.settings import FilesSettings
from gateway.store.disk import measure_disks
from telemetry.metrics import Metrics


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
