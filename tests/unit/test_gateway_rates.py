"""Rates of requests: the whole door, tenants, credentials, and addresses with refused credentials."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.access import Scope
from gateway.access.rates import AWAY_SECONDS, Rates, RateWindows, network_of, per_minute, per_second
from gateway.access.settings import AccessSettings
from gateway.access.tenant_settings import TenantSettings
from gateway.access.tenants import put_tenant
from telemetry.clock import SystemClock
from telemetry.hand_clock import HandClock
from tests.redis_server import RedisServer
from tests.unit.gateway_rig import Rig, gateway_rig

FEW = AccessSettings(requests_per_second=1_000_000, failures_per_minute=3, key_cache_seconds=0)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with gateway_rig(tmp_path, FEW) as made:
        yield made


def limit(rig: Rig, settings: TenantSettings, tenant: str = "acme") -> None:
    rig.store.submit(lambda connection: put_tenant(connection, rig.clock, tenant, settings)).result()


async def models(rig: Rig, key: str | None) -> httpx.Response:
    return await rig.request("GET", "/v1/jobs", key)


async def statuses(rig: Rig, key: str | None, requests: int) -> list[int]:
    return [(await models(rig, key)).status_code for _ in range(requests)]


def wait_hint(response: httpx.Response) -> int:
    return int(response.headers["retry-after"])


async def test_requests_are_counted_without_a_thread_and_any_number_of_addresses_takes_bounded_memory() -> None:
    clock = HandClock(0.0)
    rates, windows, before = Rates(None, clock), RateWindows(clock, most=100), threading.active_count()
    assert [(await rates.take(per_minute(2), "one")).allowed for _ in range(3)] == [True, True, False]
    assert threading.active_count() == before
    for number in range(1_000):
        windows.take("busy", windows.window("busy", 60))
        windows.take(str(number), windows.window(str(number), 60))
    assert windows.window("0", 60).count == 0
    assert windows.window("busy", 60).count == 1_000
    clock.sleep(60)
    assert windows.window("busy", 60).count == 0


async def test_requests_above_the_rate_of_the_whole_door_are_refused(tmp_path: Path) -> None:
    with gateway_rig(tmp_path, AccessSettings(requests_per_second=2)) as rig:
        key = rig.key()
        answers = [await rig.request("GET", path, key) for path in ("/v1/jobs", "/nowhere", "/v1/files") * 20]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    error = refused[0].json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert all(1 <= wait_hint(answer) <= 60 and "x-request-id" in answer.headers for answer in refused)


async def test_the_rate_of_a_tenant_is_shared_by_its_credentials_and_by_no_other_tenant(rig: Rig) -> None:
    limit(rig, TenantSettings(requests_per_second=3))
    keys, other = [rig.key(), rig.key()], rig.key("globex")
    first = await models(rig, keys[0])
    assert first.headers["x-ratelimit-limit-requests"] == "3"
    assert first.headers["x-ratelimit-remaining-requests"] == "2"
    assert first.headers["x-ratelimit-reset-requests"].endswith("s")
    seen = [await statuses(rig, key, 30) for key in keys]
    assert all(429 in each for each in seen)
    assert await statuses(rig, other, 20) == [200] * 20
    assert "x-ratelimit-limit-requests" not in (await models(rig, other)).headers


async def test_the_rate_of_a_credential_leaves_the_tenants_other_ones_alone(rig: Rig) -> None:
    limit(rig, TenantSettings(key_requests_per_second=3, requests_per_second=1_000_000))
    busy, idle = rig.key(), rig.key()
    assert 429 in await statuses(rig, busy, 40)
    answer = await models(rig, idle)
    assert (answer.status_code, answer.headers["x-ratelimit-limit-requests"]) == (200, "3")


async def test_guessing_of_keys_is_slowed_by_address_and_known_keys_still_work(rig: Rig) -> None:
    known, unknown, guess = rig.key(), rig.key("globex"), rig.key()
    rig.store.write_now(
        lambda connection: connection.exec_driver_sql("DELETE FROM api_keys WHERE id = ?", (guess[3:19],))
    )
    assert await statuses(rig, known, 1) == [200]
    assert await statuses(rig, guess, 5) == [401, 401, 401, 429, 429]
    assert await statuses(rig, None, 1) == [429]
    assert await statuses(rig, unknown, 1) == [429]
    assert await statuses(rig, known, 2) == [200, 200]
    refused = await models(rig, guess)
    assert 1 <= wait_hint(refused) <= 60


async def test_a_credential_that_lacks_only_the_scope_is_known_and_so_no_guess(rig: Rig) -> None:
    key = rig.key("acme", Scope.SUBMIT)
    assert await statuses(rig, key, 6) == [403] * 6


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:1", "2001:db8::/64"),
        ("testclient", "unknown"),
        (None, "unknown"),
    ],
)
def test_an_address_is_counted_with_its_network(address: str | None, network: str) -> None:
    assert network_of(address) == network


@given(st.text(max_size=50))
def test_any_address_has_a_network(address: str) -> None:
    assert network_of(address)


async def test_gateways_count_together_in_redis_and_each_by_itself_while_it_is_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    clock, item = HandClock(SystemClock().time()), per_minute(3)
    with RedisServer(tmp_path) as redis:
        first, second = Rates(redis.url, clock), Rates(redis.url, clock)
        counts = [(await each.take(item, "a")).remaining for each in (first, second, first)]
        assert counts == [2, 1, 0]
        taken = await second.take(item, "a")
        assert (taken.allowed, 1 <= taken.reset_seconds <= 60) == (False, True)
        assert await second.is_spent(item, "a") is not None
        assert await second.is_spent(item, "b") is None

        redis.kill()
        alone = [(await first.take(item, "a")).allowed for _ in range(4)]
        assert alone == [True, True, True, False]
        assert await first.is_spent(item, "a") is not None
        assert (await second.take(per_second(1), "a")).allowed
        assert caplog.text.count("Redis does not answer") == 2

        redis.start()
        clock.now += AWAY_SECONDS
        assert (await first.take(item, "a")).remaining == 2
        assert "Redis answers again" in caplog.text
        await first.close()
        await second.close()
