"""Failing, disabled and re-enabled endpoints, in two processes that share one topic."""

from __future__ import annotations

import logging

import pytest

from schemas.endpoint import (
    DisabledBecause,
    EndpointRecord,
    EndpointState,
    key_bytes,
    read_endpoint,
    read_key,
    write_endpoint,
)
from telemetry.metrics import Metrics
from tests.endpoint_fleet import (
    ASTRAY,
    DAY,
    DOWN,
    GONE,
    KEY,
    MINUTE,
    NOW_MS,
    OK,
    PENDING,
    REFUSED,
    URL,
    Fleet,
    url_of_its_own,
)
from workers.delivery.endpoint_states import EndpointStates, Forget
from workers.delivery.post import Delivered, FailedDelivery
from workers.delivery.settings import DeliverySettings


def test_a_410_disables_the_endpoint_for_every_process_and_no_other_url_or_tenant() -> None:
    fleet = Fleet()
    fleet.attempt(GONE, pending=PENDING)
    assert fleet.disabled == [True, True]
    assert not fleet.processes[1].is_disabled(("other", URL))
    assert not fleet.processes[1].is_disabled(("acme", "https://a.example/other"))
    [(key, value)] = fleet.written
    assert read_key(key) == KEY
    assert read_endpoint(value or b"") == EndpointRecord(
        tenant="acme", url=URL, state=EndpointState.DISABLED, at=NOW_MS, reason=DisabledBecause.GONE, webhook_id="msg_1"
    )
    for metrics in fleet.metrics:
        assert metrics.registry.get_sample_value("postback_disabled_endpoints") == 1


def test_the_number_of_disabled_endpoints_is_shown_once_all_present_records_are_applied() -> None:
    """If a smaller number were shown earlier, its rise would look like endpoints that were disabled after the start."""
    fleet, metrics = Fleet(), Metrics()
    fleet.attempt(GONE, pending=PENDING)
    [(key, value)] = fleet.written
    states = EndpointStates(DeliverySettings(), metrics)
    states.apply(key, value)
    assert metrics.registry.get_sample_value("postback_disabled_endpoints") is None
    states.show()
    assert metrics.registry.get_sample_value("postback_disabled_endpoints") == 1


def test_an_outage_of_minutes_writes_nothing() -> None:
    fleet = Fleet()
    fleet.fail_for(4 * MINUTE)
    fleet.attempt(OK)
    assert fleet.written == []


def test_one_failure_with_days_between_it_and_the_next_is_no_outage() -> None:
    fleet = Fleet()
    fleet.fail_for(10 * DAY, every=6 * DAY)
    assert fleet.written == []


def test_an_endpoint_that_fails_for_five_days_is_disabled() -> None:
    fleet = Fleet()
    fleet.fail_for(6 * DAY, every=30 * MINUTE)
    assert fleet.states == [EndpointState.FAILING, EndpointState.DISABLED]
    failing, disabled = (read_endpoint(value or b"") for _, value in fleet.written)
    assert disabled.reason is DisabledBecause.FAILING
    assert 5 * DAY <= disabled.at - failing.at <= 5 * DAY + 30 * MINUTE


def test_days_are_counted_over_restarts_and_over_processes() -> None:
    fleet = Fleet()
    fleet.fail_for(3 * DAY, every=30 * MINUTE)
    fleet.restart(0)
    fleet.fail_for(2 * DAY + 120 * MINUTE, process=1, every=30 * MINUTE)
    assert fleet.states == [EndpointState.FAILING, EndpointState.DISABLED]
    fleet.restart(0)
    assert fleet.disabled == [True, True]


def test_one_success_in_another_process_restarts_the_days() -> None:
    fleet = Fleet()
    fleet.fail_for(4 * DAY, every=30 * MINUTE)
    fleet.attempt(OK, process=1)
    assert fleet.states == [EndpointState.FAILING, None]
    fleet.fail_for(4 * DAY, every=30 * MINUTE)
    assert fleet.disabled == [False, False]


def test_a_single_failure_after_a_restart_does_not_disable() -> None:
    fleet = Fleet()
    fleet.fail_for(10 * MINUTE)
    fleet.restart(0)
    fleet.now_ms += 5 * DAY
    fleet.attempt(DOWN)
    assert fleet.disabled == [False, False]
    fleet.attempt(DOWN)
    fleet.attempt(DOWN)
    assert fleet.disabled == [True, True]


@pytest.mark.parametrize("late", [OK, DOWN, GONE])
def test_an_attempt_under_way_does_not_undo_a_disabling(late: Delivered | FailedDelivery) -> None:
    fleet = Fleet()
    fleet.fail_for(6 * DAY, every=30 * MINUTE)
    written = len(fleet.written)
    fleet.attempt(late)
    assert (len(fleet.written), fleet.disabled) == (written, [True, True])


def test_a_refusal_by_the_guard_says_nothing_about_the_endpoint() -> None:
    fleet = Fleet()
    for _ in range(100):
        fleet.attempt(REFUSED)
        fleet.now_ms += DAY
    assert fleet.written == []


def test_an_endpoint_whose_name_leads_where_the_guard_refuses_fails_like_others() -> None:
    fleet = Fleet()
    for _ in range(6 * 24):
        fleet.attempt(ASTRAY)
        fleet.now_ms += DAY // 24
    assert fleet.disabled == [True, True]


def test_after_an_operator_enables_an_endpoint_the_days_start_again() -> None:
    fleet = Fleet()
    fleet.fail_for(6 * DAY, every=30 * MINUTE)
    record = EndpointRecord(tenant="acme", url=URL, state=EndpointState.ENABLED, at=fleet.now_ms)
    fleet.put(key_bytes(KEY), write_endpoint(record))
    assert fleet.disabled == [False, False]
    assert fleet.metrics[0].registry.get_sample_value("postback_disabled_endpoints") == 0
    fleet.attempt(DOWN)
    assert fleet.disabled == [False, False]


@pytest.mark.parametrize("reason", [DisabledBecause.OPERATOR, DisabledBecause.GONE])
def test_a_tombstone_does_not_undo_a_later_disabling(reason: DisabledBecause) -> None:
    fleet = Fleet()
    fleet.fail_for(10 * MINUTE)
    [forget] = fleet.processes[0].learn(PENDING, OK, fleet.now_ms)
    record = EndpointRecord(tenant="acme", url=URL, state=EndpointState.DISABLED, at=fleet.now_ms, reason=reason)
    fleet.put(key_bytes(KEY), write_endpoint(record))
    fleet.put(key_bytes(forget.key), None)
    assert (fleet.disabled, fleet.kept) == ([True, True], {})
    fleet.attempt(OK, pending=url_of_its_own(1))
    fleet.attempt(OK, pending=url_of_its_own(1))
    assert [read_endpoint(value) for value in fleet.kept.values()] == [record]
    fleet.restart(1)
    assert fleet.disabled == [True, True]


def test_a_failing_state_does_not_undo_an_operators_disabling() -> None:
    fleet = Fleet()
    fleet.now_ms += 10 * MINUTE
    late: list[EndpointRecord | Forget] = []
    while not late:
        late += fleet.processes[0].learn(next(fleet.events), DOWN, fleet.now_ms)
        fleet.now_ms += MINUTE
    [failing] = late
    assert isinstance(failing, EndpointRecord)
    assert failing.state is EndpointState.FAILING
    disabled = EndpointRecord(
        tenant="acme", url=URL, state=EndpointState.DISABLED, at=fleet.now_ms, reason=DisabledBecause.OPERATOR
    )
    fleet.put(key_bytes(KEY), write_endpoint(disabled))
    fleet.put(key_bytes(KEY), write_endpoint(failing))
    assert fleet.disabled == [True, True]
    fleet.attempt(OK, pending=url_of_its_own(1))
    assert [read_endpoint(value) for value in fleet.kept.values()] == [disabled]
    fleet.restart(1)
    assert fleet.disabled == [True, True]


def test_a_hundred_answers_of_410_are_logged_and_counted_once_and_without_path_or_query(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    metrics = Metrics()
    states = EndpointStates(DeliverySettings(), metrics)
    changes = [states.learn(PENDING, GONE, NOW_MS + n) for n in range(100)]
    assert all(changes)  # each change is written, since the transaction of an earlier one may be aborted
    [line] = [record.getMessage() for record in caplog.records]
    assert "inference.endpoint.disabled" in line
    assert "https://a.example" in line
    assert "token" not in line
    assert metrics.registry.get_sample_value("postback_endpoints_disabled_total", {"reason": "gone"}) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [(None, b"{}"), (b"[]", b"{}"), (b'["a"]', None), (key_bytes(KEY), b"{}"), (key_bytes(KEY), b"\xff")],
)
def test_a_record_that_cannot_be_read_changes_nothing(key: bytes | None, value: bytes | None) -> None:
    fleet = Fleet()
    fleet.attempt(GONE)
    fleet.processes[0].apply(key, value)
    assert fleet.disabled == [True, True]
