"""Roles in one process are as separate as processes: their settings, metrics, pages, log lines and ends."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from schemas.settings import KafkaSettings
from tests.fleet_here import running_here
from tests.process_state import changes, shared_state
from tests.product import eventually

pytestmark = pytest.mark.broker


def test_roles_in_one_process_share_nothing_and_leave_nothing(
    fleet: KafkaSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSTBACK_WORKER__MODELS", '{"of-the-test": null}')
    before, threads = shared_state(), {thread.name for thread in threading.enumerate()}
    with running_here(fleet, tmp_path) as here:
        first = here.worker("w1", POSTBACK_WORKER__MODELS='{"first": null}')
        second = here.worker("w2", POSTBACK_WORKER__MODELS='{"second": null}')
        refused = here.deliver("d1", POSTBACK_DELIVERY__DRAIN_SECONDS="2")
        eventually(lambda: first.ready()[0] and second.ready()[0], 60, here.last_lines)
        assert os.environ["POSTBACK_WORKER__MODELS"] == '{"of-the-test": null}'
        here.submit([{"job_id": f"job-{number}", "prompt": "?"} for number in range(8)])
        here.wait_for_results(8, 60)
        answered = [role.metrics()["postback_jobs_total{succeeded}"] for role in (first, second)]
        assert sum(answered) == 8
        assert (first.terminate(), second.ended()) == (0, None)

    assert [role.ended() for role in (first, second, refused)] == [0, 0, 2]
    for role, replica, model in ((first, "w1", "first"), (second, "w2", "second")):
        assert {line["postback.replica"] for line in role.lines() if "postback.replica" in line} == {replica}
        [ready] = [line["message"] for line in role.lines() if line.get("event.action") == "serving"]
        assert [name for name in ("first", "second", "of-the-test") if name in ready] == [model]
    assert refused.lines()[-1]["message"].startswith("POSTBACK_DELIVERY__DRAIN_SECONDS: ")
    assert changes(before, shared_state()) == []
    assert [one.name for one in threading.enumerate() if one.name not in threads and "Thread-" not in one.name] == []
