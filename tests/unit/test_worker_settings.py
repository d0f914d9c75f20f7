"""Allowed lanes of a worker."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from workers.inference.settings import WorkerSettings


@pytest.mark.parametrize("lane", ["batch", "shadow", "a.b", ""])
def test_a_lane_that_is_another_topic_is_refused_where_it_is_read_and_where_jobs_are_sent(lane: str) -> None:
    """`model_requests.batch` is the shared bulk lane, so a lane `batch` would get the bulk jobs of the whole fleet."""
    with pytest.raises(ValidationError, match="lane"):
        WorkerSettings(lane=lane)
    with pytest.raises(ValidationError, match="models"):
        WorkerSettings(models={"m": lane})


def test_any_other_name_can_be_a_lane_and_no_name_means_the_shared_lane() -> None:
    assert WorkerSettings(lane="gpu-1", models={"m": "batches", "n": None}).lane == "gpu-1"
