"""How many failing and disabled endpoints are recorded, and the time after which an endpoint is forgotten."""

from __future__ import annotations

import pytest

from schemas.endpoint import (
    DisabledBecause,
    EndpointRecord,
    EndpointState,
    key_bytes,
    read_endpoint,
    write_endpoint,
)
from telemetry.metrics import Metrics
from tests.endpoint_fleet import (
    DAY,
    DOWN,
    GONE,
    KEY,
    MINUTE,
    NOW_MS,
    OK,
    OTHER_EVENT,
    PENDING,
    URL,
    Fleet,
    url_of_its_own,
)
from workers.delivery.endpoint_states import IDLE_MS, MOST_DISABLED, MOST_FAILING, EndpointStates
from workers.delivery.settings import DeliverySettings


def test_a_url_of_a_single_event_is_never_recorded_however_long_it_fails() -> None:
    fleet = Fleet()
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


def test_an_untried_endpoint_is_forgotten_by_any_other_attempt() -> None:
    fleet = Fleet()
    fleet.fail_for(10 * MINUTE)
    [failing] = fleet.kept.values()
    fleet.now_ms = read_endpoint(failing).at + 5 * DAY + IDLE_MS - 1
    fleet.attempt(OK, pending=url_of_its_own(1))
    assert len(fleet.kept) == 1
    fleet.now_ms += 1
    fleet.attempt(OK, process=1, pending=url_of_its_own(1))
    fleet.attempt(OK, process=1, pending=url_of_its_own(1))
    assert (fleet.states, fleet.kept) == ([EndpointState.FAILING, None], {})


def test_endpoints_enabled_long_ago_are_forgotten_and_disabled_ones_never() -> None:
    fleet = Fleet()
    disabled = EndpointRecord(
        tenant="acme", url=URL, state=EndpointState.DISABLED, at=NOW_MS, reason=DisabledBecause.OPERATOR
    )
    enabled = EndpointRecord(tenant="acme", url=f"{URL}2", state=EndpointState.ENABLED, at=NOW_MS)
    fleet.put(key_bytes(disabled.key), write_endpoint(disabled))
    fleet.put(key_bytes(enabled.key), write_endpoint(enabled))
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
    operator = EndpointRecord(
        tenant="acme", url=URL, state=EndpointState.DISABLED, at=1, reason=DisabledBecause.OPERATOR
    )
    fleet.put(key_bytes(KEY), write_endpoint(operator))
    assert fleet.disabled == [True]
    for url in (URL, url_of_its_own(0).url):
        enabled = EndpointRecord(tenant="acme", url=url, state=EndpointState.ENABLED, at=NOW_MS)
        fleet.put(key_bytes(enabled.key), write_endpoint(enabled))
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
    state: EndpointState,
) -> None:
    fleet = Fleet()
    for at in (NOW_MS + 10_000 * DAY, NOW_MS):
        record = EndpointRecord(tenant="other", url=f"{URL}&at={at}", state=state, at=at)
        fleet.put(key_bytes(record.key), write_endpoint(record))
    fleet.attempt(OK)
    fleet.now_ms += IDLE_MS + 6 * DAY
    for _ in range(2):
        fleet.attempt(OK)
    assert fleet.kept == {}


def test_an_endpoint_that_fails_since_a_time_in_the_future_is_disabled_after_five_days_from_now() -> None:
    fleet = Fleet()
    record = EndpointRecord(tenant="acme", url=URL, state=EndpointState.FAILING, at=NOW_MS + 10_000 * DAY)
    fleet.put(key_bytes(KEY), write_endpoint(record))
    fleet.fail_for(6 * DAY, every=30 * MINUTE)
    assert fleet.disabled == [True, True]
