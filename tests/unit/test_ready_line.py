"""The log line that tells a person that a process is ready."""

from __future__ import annotations

import asyncio

import pytest

from schemas.settings import FleetSettings
from telemetry.health import READY, Readiness
from workers.roles import ready_line
from workers.roles.process import Listen, Process
from workers.roles.ready_line import ReadyLine

DUTIES = ['answers model "big" from topic model_requests', "delivers results from topic model_results"]


async def test_a_process_says_once_that_it_is_ready_and_not_before_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(ready_line, "LOOK_SECONDS", 0)
    asked = 0

    def readiness() -> Readiness:
        nonlocal asked
        asked += 1
        return READY if asked > 3 else Readiness(("the consumer group has not let it in yet",))

    task = asyncio.create_task(ReadyLine(readiness, DUTIES, "w0", "http://127.0.0.1:9000/metrics").ended())
    for _ in range(50):
        await asyncio.sleep(0)
    assert not task.done(), "a side task that ends would end the process"
    task.cancel()
    assert asked == 4
    [line] = [record.msg for record in caplog.records if "serving" in str(record.msg)]
    assert isinstance(line, dict)
    said = (
        'Ready: answers model "big" from topic model_requests and delivers results from topic model_results, '
        "as replica w0; metrics on http://127.0.0.1:9000/metrics."
    )
    fields = {"action": "serving", "replica": "w0", "metrics_url": "http://127.0.0.1:9000/metrics"}
    assert {name: line[name] for name in ("event", *fields)} == {"event": said, **fields}


async def test_a_process_knows_where_its_metrics_are_once_it_is_observed() -> None:
    process, ports = Process(FleetSettings()), list[int]()
    async with process.observed(Listen(), ports.append):
        assert process.metrics_url == f"http://127.0.0.1:{ports[0]}/metrics"
