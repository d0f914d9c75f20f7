"""Chooses the partition of each job by `schemas.affinity`, for all tenants and topics.

Jobs with the same prompt prefix go to one partition of their tenant's, so that one worker caches the prefix. Other jobs
go to the partition with the fewest recent jobs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from pydantic_core import from_json

from schemas import openai
from schemas.affinity import Shard, prefix_of
from schemas.problems import UnusableLine

_PREFIXES = (b'"system"', b'"developer"', b'"sources"', b'"payload_url"', b'"instructions"', b"\\u")
"""A record without any of these bytes has no prefix, and is not parsed. In JSON, `\\u` can write any character."""
MOST_SHARDS = 10_000
"""Cap on the number of shards whose counts are in memory; the least recently used shard is evicted."""


class Partitioner:
    """Chooses the partition of each job, and counts the jobs by partition. Only one thread may use a chooser."""

    def __init__(self) -> None:
        self._shards: OrderedDict[tuple[str, str, int], Shard] = OrderedDict()

    def partition(self, topic: str, tenant: str, partitions: int, value: bytes | None) -> int:
        """Return the partition, out of `partitions`, of a tenant's job with this record value."""
        return self.partitions(topic, tenant, partitions, (value,))[0]

    def partitions(self, topic: str, tenant: str, partitions: int, values: Iterable[bytes | None]) -> list[int]:
        """Return the partition of each of a tenant's jobs."""
        name = topic, tenant, partitions
        shard = self._shards.get(name)
        if shard is None:
            shard = self._shards[name] = Shard(tenant, partitions)
            if len(self._shards) > MOST_SHARDS:
                self._shards.popitem(last=False)
        else:
            self._shards.move_to_end(name)
        return [shard.next(prefix_key(value)) for value in values]


def prefix_key(value: bytes | None) -> bytes | None:
    """Return the affinity key of the job in `value`, which is a job's JSON or a line of an OpenAI Batch.

    Any bytes may be given.

    Jobs with equal keys share a prompt prefix. None means that the job has no system message, no sources and no
    `payload_url`.
    """
    if value is None or not any(map(value.__contains__, _PREFIXES)):
        return None
    try:
        document = from_json(value)
        job = openai.job_fields(document) if openai.is_batch_line(document) else document
    except (ValueError, UnusableLine):
        return None
    return prefix_of(job) if isinstance(job, dict) else None
