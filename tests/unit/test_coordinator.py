"""The coordinator's silence, as read from the client's statistics."""

from __future__ import annotations

import json
import math
from typing import Any

from workers.stage.coordinator import Coordinator


def statistics(at_seconds: float, **connection: Any) -> str:
    """Statistics in librdkafka's form, with the fields that are read. Without `connection`, no coordinator is known."""
    brokers = {"127.0.0.1:9092/1": {"state": "UP", "rxidle": 0, "waitresp_cnt": 1}}
    if connection:
        brokers["GroupCoordinator"] = connection
    return json.dumps({"ts": round(at_seconds * 1e6), "brokers": brokers})


def up(at_seconds: float, silent_seconds: float, waiting: int) -> str:
    return statistics(at_seconds, state="UP", rxidle=round(silent_seconds * 1e6), waitresp_cnt=waiting)


def reconnecting(at_seconds: float) -> str:
    return statistics(at_seconds, state="APIVERSION_QUERY", rxidle=-1, waitresp_cnt=1)


def silent_after(*texts: str) -> float:
    coordinator = Coordinator()
    for text in texts:
        coordinator.statistics(text)
    return coordinator.silent_seconds


def test_no_silence_is_reported_before_there_are_statistics() -> None:
    assert silent_after() == 0


def test_a_coordinator_that_is_never_found_is_silent_from_the_start() -> None:
    assert silent_after(statistics(100), statistics(112)) == 12


def test_silence_counts_where_an_answer_is_owed() -> None:
    assert silent_after(up(100, 0, 0), up(110, 9, 1)) == 9


def test_a_group_whose_heartbeats_are_rare_is_not_silent_between_them() -> None:
    assert silent_after(up(100, 0, 0), up(112, 12, 0)) == 0


def test_a_new_connection_on_which_nothing_came_does_not_end_the_silence() -> None:
    assert silent_after(up(100, 0, 0), up(102, 2, 1), reconnecting(104), reconnecting(112)) == 12


def test_the_first_answer_ends_the_silence() -> None:
    assert silent_after(up(100, 0, 0), reconnecting(112), up(114, 0.5, 0)) == 0


def test_no_broker_at_all_is_endless_silence_until_one_answers() -> None:
    coordinator = Coordinator()
    coordinator.statistics(up(100, 0, 0))
    coordinator.away()
    assert coordinator.silent_seconds == math.inf
    coordinator.statistics(reconnecting(102))
    assert coordinator.silent_seconds == math.inf
    coordinator.statistics(up(104, 1, 1))
    assert coordinator.silent_seconds == 1
