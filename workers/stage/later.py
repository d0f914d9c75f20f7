"""Jobs that start later: each waits in tiers of its own kind until its `not_before`, and then returns to its lane.

A worker that meets such a job moves it from the lane into a tier, so it holds neither memory nor a place for the job.
Delivery, which reads the tiers of callbacks too, moves the job on: into the largest tier that fits the time left, and
at the end into its lane. Each move is one transaction with the progress of the partition that the job leaves, so no job
is lost or doubled. The worker compares `not_before` with its own clock again: a job that a wrong clock released early
waits again.
"""

from __future__ import annotations

from schemas import topics as names
from schemas.topics import Topics, hop
from workers.stage.record import Header, Output, Record

STAMPS = frozenset({names.NOT_BEFORE, names.LEFT, names.WRITTEN})
"""The headers of one wait. The header `lane`, which names the lane to return to, stays for all waits."""


def put_off(job: Record | Output, not_before_ms: int, left_ms: int, now_ms: int, topics: Topics) -> Output:
    """Return the job for the largest tier that fits the time left, or for the smallest tier.

    `not_before_ms` and `now_ms` are Unix milliseconds.
    """
    stamps: list[Header] = [
        (names.NOT_BEFORE, str(not_before_ms).encode()),
        (names.LEFT, str(left_ms).encode()),
        (names.WRITTEN, str(now_ms).encode()),
    ]
    carried = [(name, value) for name, value in job.headers or () if name not in STAMPS]
    tiers = topics.later
    topic = tiers[hop(left_ms, tuple(tiers))]
    return Output(topic, job.value, job.key, [*carried, *stamps], job.partition, may_linger=True)
