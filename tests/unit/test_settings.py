"""What an operator is told of a variable that holds what it may not."""

from __future__ import annotations

import pytest
from pydantic_settings import BaseSettings

from schemas.settings import FleetSettings, SettingsRefused, read_settings
from workers.delivery.settings import DeliverySettings
from workers.egress import EgressSettings
from workers.engines import EngineSettings
from workers.enrichment.cache.settings import CacheSettings
from workers.settings import WorkerSettings


@pytest.mark.parametrize(
    ("kind", "variable", "value"),
    [
        (FleetSettings, "POSTBACK_ENV", "s3cret"),
        (FleetSettings, "POSTBACK_KAFKA__PARTITIONS", "s3cret"),
        (CacheSettings, "POSTBACK_CACHE__MEMORY_BYTES", "s3cret"),
        (EngineSettings, "POSTBACK_ENGINE__OPENAI__ATTEMPTS", "s3cret"),
        (EgressSettings, "POSTBACK_EGRESS__PORTS", "s3cret"),
        (WorkerSettings, "POSTBACK_WORKER__MODELS", '{"a": "s3cret", "b": 7}'),
        (WorkerSettings, "POSTBACK_WORKER__MODELS", "{s3cret"),
        (DeliverySettings, "POSTBACK_DELIVERY__CLIENT_CERTIFICATES", '{"acme": "/s3cret.pem"}'),
    ],
)
def test_a_value_that_is_refused_is_told_by_the_name_of_its_variable_and_not_shown(
    kind: type[BaseSettings], variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsRefused) as refused:
        read_settings(kind)
    assert str(refused.value).startswith(f"{variable}: ")
    assert "s3cret" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_of_several_variables_that_make_one_field_their_beginning_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTBACK_KAFKA__TIER_DELAYS_SECONDS", "[s3cret")
    with pytest.raises(SettingsRefused, match=r"^POSTBACK_KAFKA__…: what should be JSON is none$"):
        read_settings(FleetSettings)


def test_every_variable_that_is_refused_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTBACK_WORKER__WINDOW_RECORDS", "0")
    monkeypatch.setenv("POSTBACK_WORKER__BULK_SHARE", "2")
    with pytest.raises(SettingsRefused) as refused:
        read_settings(WorkerSettings)
    assert str(refused.value).split("; ") == [
        "POSTBACK_WORKER__WINDOW_RECORDS: Input should be greater than or equal to 1",
        "POSTBACK_WORKER__BULK_SHARE: Input should be less than or equal to 0.9",
    ]
