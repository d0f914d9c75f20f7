"""The states of endpoints, as each delivery process knows them."""

from __future__ import annotations

import logging

import pytest

from schemas.endpoint import (
    DisabledBecause,
    EndpointKey,
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
    OTHER_EVENT,
    PENDING,
    REFUSED,
    URL,
    Fleet,
    url_of_its_own,
)
from workers.delivery.endpoint_states import IDLE_MS, MOST_DISABLED, MOST_FAILING, EndpointStates
from workers.delivery.post import Delivered, FailedDelivery
from workers.delivery.settings import DeliverySettings


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


def put(
    fleet: Fleet,
    state: EndpointState,
    at: int,
    reason: DisabledBecause | None = None,
    url: str = URL,
    tenant: str = "acme",
) -> EndpointRecord:
    """Write a record that all processes read; return it."""
    record = EndpointRecord(tenant=tenant, url=url, state=state, at=at, reason=reason)
    fleet.put(key_bytes(record.key), write_endpoint(record))
    return record


# -- endpoint states -------------------------------------------------------------------------------------------------
def test_a_410_disables_the_endpoint_for_every_process_and_no_other_url_or_tenant(fleet: Fleet) -> None:
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


@pytest.mark.parametrize(
    ("outcomes", "every", "times"),
    [
        ([DOWN] * 4 + [OK], MINUTE, 5),  # an outage of minutes
        ([DOWN], 6 * DAY, 2),  # one failure with days between it and the next
        ([REFUSED], DAY, 100),  # a refusal by the guard says nothing about the endpoint
    ],
)
def test_short_outages_rare_failures_and_refusals_write_nothing(
    fleet: Fleet, outcomes: list[Delivered | FailedDelivery], every: int, times: int
) -> None:
    for number in range(times):
        fleet.attempt(outcomes[number % len(outcomes)])
        fleet.now_ms += every
    assert fleet.written == []


@pytest.mark.parametrize(
    ("seen", "written"),
    [("xxx", [EndpointState.FAILING]), ("xxox", []), ("xxoxx", []), ("xxoxxx", [EndpointState.FAILING])],
)
def test_a_delivery_ends_the_failures_in_a_row(fleet: Fleet, seen: str, written: list[EndpointState]) -> None:
    """Attempts ten minutes apart: `x` fails, and `o` is a delivery."""
    for letter in seen:
        fleet.attempt(OK if letter == "o" else DOWN)
        fleet.now_ms += 10 * MINUTE
    assert fleet.states == written


@pytest.mark.parametrize(("outcome", "every"), [(DOWN, 30 * MINUTE), (ASTRAY, DAY // 24)])
def test_an_endpoint_that_fails_or_leads_astray_for_five_days_is_disabled(
    fleet: Fleet, outcome: FailedDelivery, every: int
) -> None:
    while fleet.now_ms <= NOW_MS + 6 * DAY:
        fleet.attempt(outcome)
        fleet.now_ms += every
    assert (fleet.states, fleet.disabled) == ([EndpointState.FAILING, EndpointState.DISABLED], [True, True])
    failing, disabled = (read_endpoint(value or b"") for _, value in fleet.written)
    assert disabled.reason is DisabledBecause.FAILING
    assert 5 * DAY <= disabled.at - failing.at <= 5 * DAY + every


def test_days_are_counted_over_restarts_and_over_processes(fleet: Fleet) -> None:
    fleet.fail_for(3 * DAY, every=30 * MINUTE)
    fleet.restart(0)
    fleet.fail_for(2 * DAY + 120 * MINUTE, process=1, every=30 * MINUTE)
    assert fleet.states == [EndpointState.FAILING, EndpointState.DISABLED]
    fleet.restart(0)
    assert fleet.disabled == [True, True]


def test_one_success_in_another_process_restarts_the_days(fleet: Fleet) -> None:
    fleet.fail_for(4 * DAY, every=30 * MINUTE)
    fleet.attempt(OK, process=1)
    assert fleet.states == [EndpointState.FAILING, None]
    fleet.fail_for(4 * DAY, every=30 * MINUTE)
    assert fleet.disabled == [False, False]


def test_a_single_failure_after_a_restart_does_not_disable(fleet: Fleet) -> None:
    fleet.fail_for(10 * MINUTE)
    fleet.restart(0)
    fleet.now_ms += 5 * DAY
    fleet.attempt(DOWN)
    assert fleet.disabled == [False, False]
    fleet.attempt(DOWN)
    fleet.attempt(DOWN)
    assert fleet.disabled == [True, True]


@pytest.mark.parametrize("late", [OK, DOWN, GONE])
def test_an_attempt_under_way_does_not_undo_a_disabling(fleet: Fleet, late: Delivered | FailedDelivery) -> None:
    fleet.fail_for(6 * DAY, every=30 * MINUTE)
    written = len(fleet.written)
    fleet.attempt(late)
    assert (len(fleet.written), fleet.disabled) == (written, [True, True])


def test_after_an_operator_enables_an_endpoint_the_days_start_again(fleet: Fleet) -> None:
    fleet.fail_for(6 * DAY, every=30 * MINUTE)
    put(fleet, EndpointState.ENABLED, fleet.now_ms)
    assert fleet.disabled == [False, False]
    assert fleet.metrics[0].registry.get_sample_value("postback_disabled_endpoints") == 0
    fleet.attempt(DOWN)
    assert fleet.disabled == [False, False]


@pytest.mark.parametrize("reason", [DisabledBecause.OPERATOR, DisabledBecause.GONE])
def test_a_tombstone_does_not_undo_a_later_disabling(fleet: Fleet, reason: DisabledBecause) -> None:
    fleet.fail_for(10 * MINUTE)
    [(forgotten, _)] = fleet.processes[0].learn(PENDING, OK, fleet.now_ms)
    disabled = put(fleet, EndpointState.DISABLED, fleet.now_ms, reason)
    fleet.put(key_bytes(forgotten), None)
    assert (fleet.disabled, fleet.kept) == ([True, True], {})
    fleet.attempt(OK, pending=url_of_its_own(1))
    fleet.attempt(OK, pending=url_of_its_own(1))
    assert [read_endpoint(value) for value in fleet.kept.values()] == [disabled]
    fleet.restart(1)
    assert fleet.disabled == [True, True]


def test_a_failing_state_does_not_undo_an_operators_disabling(fleet: Fleet) -> None:
    fleet.now_ms += 10 * MINUTE
    late: list[tuple[EndpointKey, EndpointRecord | None]] = []
    while not late:
        late += fleet.processes[0].learn(next(fleet.events), DOWN, fleet.now_ms)
        fleet.now_ms += MINUTE
    [(_, failing)] = late
    assert failing is not None
    assert failing.state is EndpointState.FAILING
    disabled = put(fleet, EndpointState.DISABLED, fleet.now_ms, DisabledBecause.OPERATOR)
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
def test_a_record_that_cannot_be_read_changes_nothing(fleet: Fleet, key: bytes | None, value: bytes | None) -> None:
    fleet.attempt(GONE)
    fleet.processes[0].apply(key, value)
    assert fleet.disabled == [True, True]


# -- endpoint limits -------------------------------------------------------------------------------------------------
def test_a_url_of_a_single_event_is_never_recorded_however_long_it_fails(fleet: Fleet) -> None:
    fleet.fail_for(10 * DAY, every=12 * 60 * MINUTE, pending=PENDING)
    assert fleet.written == []
    fleet.attempt(DOWN, pending=OTHER_EVENT)
    assert fleet.states == [EndpointState.FAILING]


def test_the_failing_urls_of_a_tenant_are_recorded_up_to_a_limit_and_those_of_others_are_not_affected() -> None:
    fleet = Fleet(processes=1)
    for number in range(MOST_FAILING + 50):
        for minute in range(0, 8, 2):
            first = url_of_its_own(number)
            fleet.now_ms = NOW_MS + minute * MINUTE
            fleet.attempt(DOWN, pending=first if minute else first._replace(webhook_id="another"))
    assert fleet.states == [EndpointState.FAILING] * MOST_FAILING
    fleet.fail_for(10 * MINUTE, pending=url_of_its_own(1, tenant="globex"))
    fleet.attempt(DOWN, pending=url_of_its_own(1, tenant="globex")._replace(webhook_id="another"))
    assert len(fleet.kept) == MOST_FAILING + 1


def test_a_tenant_whose_urls_all_fail_does_not_displace_the_failures_of_another_tenant() -> None:
    fleet = Fleet(processes=1)
    for minute in range(0, 8, 2):
        fleet.now_ms = NOW_MS + minute * MINUTE
        fleet.attempt(DOWN)
        for number in range(12_000):
            fleet.attempt(DOWN, pending=url_of_its_own(number, tenant="globex"))
    assert (fleet.states, list(fleet.kept)) == ([EndpointState.FAILING], [key_bytes(KEY)])


def test_an_untried_endpoint_is_forgotten_by_any_other_attempt(fleet: Fleet) -> None:
    fleet.fail_for(10 * MINUTE)
    [failing] = fleet.kept.values()
    fleet.now_ms = read_endpoint(failing).at + 5 * DAY + IDLE_MS - 1
    fleet.attempt(OK, pending=url_of_its_own(1))
    assert len(fleet.kept) == 1
    fleet.now_ms += 1
    fleet.attempt(OK, process=1, pending=url_of_its_own(1))
    fleet.attempt(OK, process=1, pending=url_of_its_own(1))
    assert (fleet.states, fleet.kept) == ([EndpointState.FAILING, None], {})


def test_endpoints_enabled_long_ago_are_forgotten_and_disabled_ones_never(fleet: Fleet) -> None:
    put(fleet, EndpointState.DISABLED, NOW_MS, DisabledBecause.OPERATOR)
    put(fleet, EndpointState.ENABLED, NOW_MS, url=f"{URL}2")
    fleet.now_ms += 366 * DAY
    fleet.attempt(OK, pending=url_of_its_own(1))
    assert list(fleet.kept) == [key_bytes(KEY)]
    fleet.restart(1)
    assert fleet.disabled == [True, True]


def test_a_tenant_with_only_gone_urls_has_a_bounded_number_disabled_and_loses_none(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fleet = Fleet(processes=1)
    [states] = fleet.processes
    for number in range(MOST_DISABLED + 50):
        fleet.attempt(GONE, pending=url_of_its_own(number))
    assert len(fleet.written) == len(fleet.kept) == MOST_DISABLED
    assert all(states.is_disabled(("acme", url_of_its_own(number).url)) for number in range(MOST_DISABLED))
    assert not states.is_disabled(("acme", url_of_its_own(MOST_DISABLED).url))
    [line] = [one.getMessage() for one in caplog.records if "inference.endpoint.not-disabled" in one.getMessage()]
    assert "https://a.example" in line
    assert "/job/" not in line

    # Other tenants' endpoints can still be disabled. An operator can disable further endpoints beyond the bound.
    # Enabling one endpoint makes room for another.
    fleet.attempt(GONE, pending=url_of_its_own(1, tenant="globex"))
    put(fleet, EndpointState.DISABLED, 1, DisabledBecause.OPERATOR)
    assert fleet.disabled == [True]
    for url in (URL, url_of_its_own(0).url):
        put(fleet, EndpointState.ENABLED, NOW_MS, url=url)
    fleet.attempt(GONE, pending=url_of_its_own(MOST_DISABLED))
    assert states.is_disabled(("acme", url_of_its_own(MOST_DISABLED).url))


def test_a_decision_that_was_never_settled_makes_room_after_a_minute() -> None:
    states = EndpointStates(DeliverySettings(), Metrics())
    for number in range(MOST_DISABLED):
        assert states.learn(url_of_its_own(number), GONE, NOW_MS)
    another = url_of_its_own(MOST_DISABLED)
    assert not states.learn(another, GONE, NOW_MS + MINUTE - 1)
    assert states.learn(another, GONE, NOW_MS + MINUTE)


def test_the_limit_of_disabled_endpoints_is_logged_once_a_minute_for_each_tenant(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.delivery.endpoint_states.MOST_DISABLED", 0)
    states = EndpointStates(DeliverySettings(), Metrics())
    for number, (tenant, after_ms, said) in enumerate(
        [("acme", 0, 1), ("acme", MINUTE - 1, 1), ("globex", MINUTE - 1, 2), ("acme", MINUTE, 3)]
    ):
        assert not states.learn(url_of_its_own(number, tenant), GONE, NOW_MS + after_ms)
        assert sum("not-disabled" in record.getMessage() for record in caplog.records) == said


@pytest.mark.parametrize("state", [EndpointState.FAILING, EndpointState.ENABLED])
def test_a_record_dated_in_the_future_and_the_records_after_it_are_forgotten_like_present_ones(
    fleet: Fleet,
    state: EndpointState,
) -> None:
    for at in (NOW_MS + 10_000 * DAY, NOW_MS):
        put(fleet, state, at, url=f"{URL}&at={at}", tenant="other")
    fleet.attempt(OK)
    fleet.now_ms += IDLE_MS + 6 * DAY
    for _ in range(2):
        fleet.attempt(OK)
    assert fleet.kept == {}


def test_an_endpoint_that_fails_since_a_time_in_the_future_is_disabled_after_five_days_from_now(fleet: Fleet) -> None:
    put(fleet, EndpointState.FAILING, NOW_MS + 10_000 * DAY)
    fleet.fail_for(6 * DAY, every=30 * MINUTE)
    assert fleet.disabled == [True, True]
