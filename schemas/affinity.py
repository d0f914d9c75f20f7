"""Prefix affinity: jobs with the same prompt prefix go to one place, whose engine caches the prefix.

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

from pydantic_core import from_json

from schemas import openai
from schemas.problems import UnusableLine

MOST_LOAD = 1.25
"""Cap on a place's load, relative to the mean. A larger cap keeps more jobs together, and spreads loads less evenly."""
SLACK = 8
"""Jobs that a place may get beyond MOST_LOAD, because every engine answers this many at the same time."""
_RANKINGS = 4096
_DEFAULTS = {"limit": 5, "profile": "default"}
"""Defaults of sources and searches. A member that equals its default is treated like an absent one."""
_IGNORED = ("required",)
"""Members of `sources` that do not change the evidence."""
_ABSENT: tuple[object, ...] = (None, [], {})


def prefix_key(value: bytes | None) -> bytes | None:
    """Return the affinity key of the job in `value`, which is a job's JSON or a line of an OpenAI Batch.

    Any bytes may be given.

    Jobs with equal keys share a prompt prefix. None means that the job has no system message, no sources and no
    `payload_url`.
    """
    try:
        document = from_json(value or b"")
        job = openai.job_fields(document) if openai.is_batch_line(document) else document
    except (ValueError, UnusableLine):
        return None
    return prefix_of(job) if isinstance(job, dict) else None


def prefix_of(job: Mapping[str, Any]) -> bytes | None:
    """Return the same key as `prefix_key`, but from the job's fields, which may have any types."""
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
