"""Producers' job ids: UUID version 7, RFC 9562 section 5.7."""

from __future__ import annotations

import uuid

from pydantic import TypeAdapter

from producers.identity import new_job_id
from schemas.job import Identifier
from telemetry.hand_clock import SetClock


def test_a_job_id_is_a_uuid_of_version_7_with_its_time_in_front() -> None:
    # This is the time in the example of RFC 9562, appendix A.6.
    job_id = new_job_id(SetClock(1645557742.0))
    parsed = uuid.UUID(job_id.removeprefix("job_"))
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    assert job_id.startswith("job_017f22e279b07")
    assert TypeAdapter[str](Identifier).validate_python(job_id) == job_id


def test_ids_of_the_same_moment_differ() -> None:
    clock = SetClock(1.0)
    assert len({new_job_id(clock) for _ in range(1000)}) == 1000


def test_ids_sort_by_time() -> None:
    assert new_job_id(SetClock(1.0)) < new_job_id(SetClock(1.5))
