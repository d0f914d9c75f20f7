"""Chooses the partitions of a tenant, and the place of a job. The client library has this very file in its package.

Shuffle sharding with rendezvous hashing: each tenant has k of the N partitions, so that one tenant's flood fills k
queues and not all. Two tenants rarely share all of their partitions; with plain sharding, all tenants of a shard
would. k is a third of N, but at least 2: of 12 partitions each tenant has 4, and there are 495 different choices. The
weight of a (tenant, partition) pair is a hash of both, and a tenant gets the k heaviest partitions. So a new partition
replaces at most one of a tenant's partitions, or joins them if k grows; it moves nothing else. Jobs without a tenant
belong to `default`, which uses all partitions: a fleet with a single tenant needs no shielding.

Prefix affinity: jobs with the same prompt prefix go to one place, whose engine caches the prefix.

The prefix is the system message and the sources; the question comes last. A place is a partition, or an address of a
remote engine. The place is chosen by consistent hashing with bounded loads (Mirrokni, Thorup and Zadimoghaddam, SODA
2018), over rendezvous hashing. No place gets many more jobs than the other places, even if all jobs have one prefix.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

DEFAULT_TENANT = "default"
"""The tenant of jobs without one."""
MOST_LOAD = 1.25
"""Cap on a place's load, relative to the mean. A larger cap keeps more jobs together, and spreads loads less evenly."""
SLACK = 8
"""Jobs that a place may get beyond MOST_LOAD, because every engine answers this many at the same time."""
LATELY_JOBS = 1000
"""All counts of a shard are halved after this number of jobs for each partition, because most older jobs are answered
by then."""
_RANKINGS = 4096
_DEFAULTS = {"limit": 5, "profile": "default"}
"""Defaults of sources and searches. A member that equals its default is treated like an absent one."""
_IGNORED = ("required",)
"""Members of `sources` that do not change the evidence."""
_ABSENT: tuple[object, ...] = (None, [], {})


def shard_of(tenant: str, partitions: int) -> tuple[int, ...]:
    """Return the tenant's partitions out of 0 to `partitions` - 1, ascending.

    All processes compute the same partitions.
    """
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
        """`partitions` is the topic's number of partitions."""
        self._partitions = shard_of(tenant, partitions)
        self._jobs = [0] * len(self._partitions)

    def next(self, key: bytes | None) -> int:
        """Return the partition of a job with this key, and count the job."""
        index = place_of(key, self._partitions, self._jobs)
        self._jobs[index] += 1
        if sum(self._jobs) >= LATELY_JOBS * len(self._jobs):
            self._jobs = [jobs // 2 for jobs in self._jobs]
        return self._partitions[index]


def prefix_of(job: Mapping[str, Any]) -> bytes | None:
    """Return the affinity key of a job's fields, which may have any types.

    Jobs with equal keys share a prompt prefix. None means that the job has no system message, no sources and no
    `payload_url`.
    """
    system, sources, payload = _system(job.get("messages")), job.get("sources"), _payload(job)
    if not system and not isinstance(sources, dict) and not payload:
        return None
    parts = [system, _plain(sources) if isinstance(sources, dict) else None, *([payload] if payload else ())]
    text = json.dumps(parts, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def place_of(key: bytes | None, places: Sequence[object], loads: Sequence[float]) -> int:
    """Return the index of the place for a job with this key.

    `loads` lists the load of each of `places`, in the same order. Neither may be empty.

    Each key has its own order of the places: the first place whose load is below the cap is chosen. If `key` is None,
    the least loaded place is chosen.
    """
    if key is None:
        return min(range(len(loads)), key=loads.__getitem__)
    most = math.ceil(MOST_LOAD * (sum(loads) + 1) / len(loads)) + SLACK
    return next(index for index in _ranking(key, tuple(map(str, places))) if loads[index] < most)


@lru_cache(maxsize=_RANKINGS)
def _ranking(key: bytes, places: tuple[str, ...]) -> tuple[int, ...]:
    """Return the indices of the places in this key's order, the same in every process."""

    def weight(index: int) -> bytes:
        return hashlib.blake2b(b"%b:%b" % (key, places[index].encode()), digest_size=8).digest()

    return tuple(sorted(range(len(places)), key=weight, reverse=True))


def _system(messages: object) -> list[str]:
    """Return the texts of the system messages with which the chat begins."""
    texts: list[str] = []
    for message in messages if isinstance(messages, list) else ():
        if not isinstance(message, dict) or message.get("role") not in ("system", "developer"):
            break
        texts.append(_text(message.get("content")))
    return texts


def _payload(job: Mapping[str, Any]) -> str | None:
    """Return a name for the document that has the question: the digest, or else the URL without its query.

    The query of a presigned URL changes with each signature.
    """
    url, digest = job.get("payload_url"), job.get("payload_sha256")
    if not isinstance(url, str):
        return None
    return digest.lower() if isinstance(digest, str) else url.partition("?")[0]


def _text(content: object) -> str:
    parts = content if isinstance(content, list) else [{"text": content}]
    return "\n".join(str(part.get("text")) for part in parts if isinstance(part, dict))


def _plain(value: object) -> object:
    """Return JSON in a canonical form.

    Members are sorted by name. Absent members, defaults and `_IGNORED` are left out.
    """
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if not isinstance(value, dict):
        return value
    members = ((name, each) for name, each in value.items() if name not in _IGNORED and each not in _ABSENT)
    return sorted([name, _plain(each)] for name, each in members if _DEFAULTS.get(name) != each)
