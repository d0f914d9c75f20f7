"""Metrics of the store's disks: the disk of the database, if that is a file, and the disk of the batches' files."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from telemetry.metrics import Metrics


def measure_disks(metrics: Metrics, folders: Mapping[str, Path | None]) -> None:
    """Show the size and the free space of each folder's disk as metrics. None stands for content on another machine.

    Each scrape asks the operating system again. A vanished folder has the value NaN.
    """
    for content, folder in folders.items():
        if folder is not None:
            metrics.store_free_bytes.labels(content).set_function(partial(_free, folder))
            metrics.store_disk_bytes.labels(content).set_function(partial(_size, folder))


def _free(folder: Path) -> float:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return math.nan


def _size(folder: Path) -> float:
    try:
        return shutil.disk_usage(folder).total
    except OSError:
        return math.nan
