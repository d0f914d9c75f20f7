"""Chooses the partitions of a tenant's jobs, by shuffle sharding with rendezvous hashing.

All producers of a fleet choose in this way. Jobs with the same prompt prefix (system message and sources) go to one
partition, so that one worker caches the prefix. If this partition has many more jobs than the others, further jobs with
the prefix go elsewhere. Other jobs go to the least loaded partition.

A tenant has a third of the partitions, at least 2, so that one tenant's flood does not fill all queues. The tenant
`default` has all partitions.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

DEFAULT_TENANT = "default"
_MOST_LOAD = 1.25
_SLACK = 8
_LATELY_JOBS = 1000
_DEFAULTS = {"limit": 5, "profile": "default"}
_IGNORED = ("required",)
_ABSENT: tuple[object, ...] = (None, [], {})


def partitions_of(tenant: str, partitions: int) -> tuple[int, ...]:
    """Return the tenant's partitions out of 0 to `partitions` - 1, ascending."""
    if tenant == DEFAULT_TENANT:
        return tuple(range(partitions))
    size = min(partitions, max(2, partitions // 3))
    heaviest = sorted(range(partitions), key=lambda partition: _weight(tenant, partition), reverse=True)
    return tuple(sorted(heaviest[:size]))


def _weight(tenant: str, partition: int) -> bytes:
    return hashlib.blake2b(f"{tenant}:{partition}".encode(), digest_size=8).digest()


class Shard:
    """One tenant's partitions of one topic, with the number of recent jobs of each."""

    def __init__(self, tenant: str, partitions: int) -> None:
        self._partitions = partitions_of(tenant, partitions)
        self._jobs = [0] * len(self._partitions)

    def next(self, job: Mapping[str, Any]) -> int:
        """Return the partition of a job, and count the job."""
        index = self._index(prefix_key(job))
        self._jobs[index] += 1
        if sum(self._jobs) >= _LATELY_JOBS * len(self._jobs):
            self._jobs = [jobs // 2 for jobs in self._jobs]
        return self._partitions[index]

    def _index(self, key: bytes | None) -> int:
        if key is None:
            return self._jobs.index(min(self._jobs))
        most = math.ceil(_MOST_LOAD * (sum(self._jobs) + 1) / len(self._jobs)) + _SLACK
        return next(index for index in _ranking(key, self._partitions) if self._jobs[index] < most)


def prefix_key(job: Mapping[str, Any]) -> bytes | None:
    """Return the key of a job's system messages, sources and payload; None if it has none of these."""
    sources, payload = job.get("sources"), _payload(job)
    system, given = _system(job.get("messages")), _plain(sources) if isinstance(sources, dict) else None
    if not system and given is None and not payload:
        return None
    text = json.dumps([system, given, *([payload] if payload else ())], ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


@lru_cache(maxsize=4096)
def _ranking(key: bytes, partitions: tuple[int, ...]) -> tuple[int, ...]:
    def weight(index: int) -> bytes:
        return hashlib.blake2b(b"%b:%d" % (key, partitions[index]), digest_size=8).digest()

    return tuple(sorted(range(len(partitions)), key=weight, reverse=True))


def _system(messages: object) -> list[str]:
    texts: list[str] = []
    for message in messages if isinstance(messages, list) else ():
        if not isinstance(message, dict) or message.get("role") not in ("system", "developer"):
            break
        content = message.get("content")
        parts = content if isinstance(content, list) else [{"text": content}]
        texts.append("\n".join(str(part.get("text")) for part in parts if isinstance(part, dict)))
    return texts


def _payload(job: Mapping[str, Any]) -> str | None:
    """Return the digest of the document with the question, or else the document's URL without a query."""
    url, digest = job.get("payload_url"), job.get("payload_sha256")
    if not isinstance(url, str):
        return None
    return digest.lower() if isinstance(digest, str) else url.partition("?")[0]


def _plain(value: object) -> object:
    """Return JSON in a canonical form.

    Members are sorted by name, and absent members, defaults and `_IGNORED` are left out.
    """
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if not isinstance(value, dict):
        return value
    members = ((name, each) for name, each in value.items() if name not in _IGNORED and each not in _ABSENT)
    return sorted([name, _plain(each)] for name, each in members if _DEFAULTS.get(name) != each)
