"""Finds the newest of a job's results.

A job may have several results, for example after a redrive. A topic's partitions are read in parallel, so the result
that is read last may not be the newest. Code that counts or writes results must therefore compare their `Moment`s.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from typing import NamedTuple

from producers.scan import StoredPlace

_TABLE = "CREATE TABLE result (job BLOB NOT NULL, at_ms INTEGER, partition INTEGER, offset INTEGER)"
_OLDER = """
    SELECT partition, offset FROM (
        SELECT partition, offset, row_number() OVER (PARTITION BY job ORDER BY at_ms DESC, partition DESC, offset DESC)
        AS age FROM result
    ) WHERE age > 1
"""


class Moment(NamedTuple):
    """A result's time of settlement. The result with the greatest moment is the newest of its job.

    Brokers set the timestamps of the topic's records (LogAppendTime), so workers' clocks have no effect. Brokers'
    clocks must differ by less than the duration of a redrive. Partition and offset only decide between records with the
    same timestamp.
    """

    at_ms: int
    """Unix milliseconds."""
    partition: int
    offset: int


class Moments:
    """Computes the moments of records.

    Within a partition, moments increase with the offsets, even if a broker's clock was set back.
    """

    def __init__(self) -> None:
        self._latest: dict[int, int] = {}

    def of(self, at_ms: int, place: StoredPlace) -> Moment:
        """Return the moment of the record at `place` with the timestamp `at_ms`, Unix milliseconds."""
        latest = self._latest[place.partition] = max(at_ms, self._latest.get(place.partition, 0))
        return Moment(latest, place.partition, place.offset)


def superseded(results: Iterable[tuple[str, str, Moment]]) -> set[StoredPlace]:
    """Return the places of results that are older than another result of their job.

    The index of all results is a file in SQLite's temporary directory, with some 50 bytes for each result. The returned
    places are in memory.
    """
    rows = ((_digest(tenant, job_id), *moment) for tenant, job_id, moment in results)
    with closing(sqlite3.connect("")) as index:  # "" makes a temporary file, which SQLite removes (see sqlite3_open)
        index.execute(_TABLE)
        index.executemany("INSERT INTO result VALUES (?, ?, ?, ?)", rows)
        return {StoredPlace(partition, offset) for partition, offset in index.execute(_OLDER)}


def _digest(tenant: str, job_id: str) -> bytes:
    return hashlib.blake2b(f"{tenant}\0{job_id}".encode(), digest_size=16).digest()
