"""Messages to an operator about a variable with an invalid value."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

from schemas.settings import FleetSettings, SettingsRefused, read_settings
from workers.delivery.settings import DeliverySettings
from workers.egress import EgressSettings
from workers.engines.registry import engine_settings
from workers.enrichment.cache.settings import CacheSettings
from workers.enrichment.settings import EnrichmentSettings
from workers.inference.settings import WorkerSettings


@pytest.mark.parametrize(
    ("kind", "variable", "value"),
    [
        (FleetSettings, "POSTBACK_ENV", "s3cret"),
        (FleetSettings, "POSTBACK_KAFKA__PARTITIONS", "s3cret"),
        (CacheSettings, "POSTBACK_CACHE__MEMORY_BYTES", "s3cret"),
        (engine_settings(), "POSTBACK_ENGINE__OPENAI__ATTEMPTS", "s3cret"),
        (EgressSettings, "POSTBACK_EGRESS__PORTS", "s3cret"),
        (WorkerSettings, "POSTBACK_WORKER__MODELS", '{"a": "s3cret", "b": 7}'),
        (WorkerSettings, "POSTBACK_WORKER__MODELS", "{s3cret"),
        (DeliverySettings, "POSTBACK_DELIVERY__CLIENT_CERTIFICATES", '{"acme": "/s3cret.pem"}'),
    ],
)
def test_a_refused_value_is_not_shown_and_its_variable_is_named(
    kind: type[BaseSettings], variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsRefused) as refused:
        read_settings(kind)
    assert str(refused.value).startswith(f"{variable}: ")
    assert "s3cret" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_variables_that_make_up_one_field_are_named_by_their_common_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTBACK_KAFKA__TIER_DELAYS_SECONDS", "[s3cret")
    with pytest.raises(SettingsRefused, match=r"^POSTBACK_KAFKA__…: is not JSON, as this variable has to be$"):
        read_settings(FleetSettings)


@pytest.mark.parametrize(
    ("kind", "variable", "value", "meaning"),
    [
        (EnrichmentSettings, "POSTBACK_ENRICHMENT__OCR", "eng deu", "reads images and scanned pages of PDFs, such as"),
        (FleetSettings, "POSTBACK_KAFKA__TOPIC_PREFIX", "a fleet", "Prefix of "),
        (engine_settings(), "POSTBACK_ENGINE__OPENAI__BASE_URL", "localhost:8000", "URL"),
    ],
)
def test_a_value_of_another_form_is_answered_with_the_variable_s_meaning_and_no_pattern(
    kind: type[BaseSettings], variable: str, value: str, meaning: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsRefused) as refused:
        read_settings(kind)
    said = str(refused.value)
    assert said.startswith(f"{variable}: has another form than this variable takes: ")
    assert (meaning in said, "pattern" in said, value in said) == (True, False, False)


def test_every_refused_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTBACK_WORKER__WINDOW_RECORDS", "0")
    monkeypatch.setenv("POSTBACK_WORKER__BULK_SHARE", "2")
    with pytest.raises(SettingsRefused) as refused:
        read_settings(WorkerSettings)
    assert str(refused.value).split("; ") == [
        "POSTBACK_WORKER__WINDOW_RECORDS: Input should be greater than or equal to 1",
        "POSTBACK_WORKER__BULK_SHARE: Input should be less than or equal to 0.9",
    ]


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_a_secret_of_kafka_s_clients_may_stand_in_a_file(
    ending: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """librdkafka gets the secret from the file; kafka-python's properties are translated from the same settings."""
    file = tmp_path / "password"
    file.write_bytes(f" s3cret\u00e4{ending}".encode())
    monkeypatch.setenv("POSTBACK_KAFKA__EXTRA__SASL_PASSWORD_FILE", str(file))
    monkeypatch.setenv("POSTBACK_KAFKA__EXTRA__SASL_USERNAME", "fleet")
    config = read_settings(FleetSettings).kafka.client_config()
    assert config["sasl.password"] == " s3cret\u00e4"
    assert config["sasl.username"] == "fleet"
    assert "sasl.password.file" not in config


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "cannot be read (No such file"), (b"", "is empty"), (b"\xff", "is not UTF-8"), (b"x" * 70_000, "larger")],
)
def test_a_file_without_a_usable_secret_is_named_by_its_variable(
    content: bytes | None, problem: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "s3cret-place"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setenv("POSTBACK_KAFKA__EXTRA__SSL_KEY_PASSWORD_FILE", str(file))
    with pytest.raises(SettingsRefused) as refused:
        read_settings(FleetSettings)
    assert "SSL_KEY_PASSWORD_FILE" in str(refused.value)
    assert problem in str(refused.value)
    assert "s3cret" not in str(refused.value)


def test_a_secret_that_is_given_twice_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POSTBACK_KAFKA__EXTRA__SASL_PASSWORD_FILE", str(tmp_path))
    monkeypatch.setenv("POSTBACK_KAFKA__EXTRA__SASL_PASSWORD", "s3cret")
    with pytest.raises(SettingsRefused, match="both set"):
        read_settings(FleetSettings)
