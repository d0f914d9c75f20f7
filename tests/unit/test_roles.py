"""A role's checks before it serves."""

from __future__ import annotations

import pytest

from schemas.topics import Topics
from workers.roles.worker import lanes_of


@pytest.mark.parametrize(
    ("lane", "expected"),
    [
        (None, ["model_requests.gpu", "model_requests.gpu.batch", "model_requests.gpu.spare"]),
        ("gpu", ["model_requests", "model_requests.batch", "model_requests.spare"]),
    ],
)
def test_a_worker_asks_for_all_lanes_of_every_engine_that_it_forwards_to(lane: str | None, expected: list[str]) -> None:
    assert lanes_of({"big": "gpu", "lost": "gpu", "small": None}, lane, Topics()) == expected
