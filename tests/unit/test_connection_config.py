"""librdkafka's property names, which the fleet's settings speak, as kafka-python's."""

from __future__ import annotations

from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer
from kafka.admin import KafkaAdminClient
from pydantic import SecretStr

from producers.connection import _NUMBERS, _SAME_MEANING, connect, connection_config
from producers.errors import UnmappedProperty, UnusableProperty
from schemas.settings import KafkaSettings


def config_of(**extra: str) -> dict[str, Any]:
    settings = KafkaSettings(
        bootstrap_servers="a:9092, b:9092", extra={name: SecretStr(value) for name, value in extra.items()}
    )
    return connection_config(settings)


def test_a_secured_connection_is_mapped_whole() -> None:
    assert config_of(
        security_protocol="sasl_ssl",
        sasl_mechanisms="SCRAM-SHA-512",
        sasl_username="ada",
        sasl_password="hunter2",
        ssl_ca_location="/ca.pem",
        ssl_certificate_location="/cert.pem",
        ssl_key_location="/key.pem",
        ssl_endpoint_identification_algorithm="none",
        socket_timeout_ms="5000",
    ) == {
        "bootstrap_servers": ["a:9092", "b:9092"],
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "ada",
        "sasl_plain_password": "hunter2",
        "ssl_cafile": "/ca.pem",
        "ssl_certfile": "/cert.pem",
        "ssl_keyfile": "/key.pem",
        "ssl_check_hostname": False,
        "request_timeout_ms": 5000,
    }


@pytest.mark.parametrize("client", [KafkaAdminClient, KafkaConsumer, KafkaProducer])
def test_every_name_that_is_mapped_is_one_that_each_client_knows(client: Any) -> None:
    known = set(client.DEFAULT_CONFIG)
    assert {*_SAME_MEANING.values(), *_NUMBERS.values(), "security_protocol", "ssl_check_hostname"} <= known


def test_what_only_shapes_the_fleets_own_processes_is_passed_over() -> None:
    assert config_of(queued_min_messages="10", statistics_interval_ms="1000") == {
        "bootstrap_servers": ["a:9092", "b:9092"]
    }


def test_a_property_without_an_equal_is_named_and_its_value_is_not() -> None:
    with pytest.raises(UnmappedProperty, match=r"ssl\.key\.pem \(POSTBACK_KAFKA__EXTRA__SSL_KEY_PEM\)") as raised:
        config_of(ssl_key_pem="private")
    assert "private" not in str(raised.value)


@pytest.mark.parametrize(
    "extra",
    [
        {"socket_timeout_ms": "soonish"},
        {"ssl_endpoint_identification_algorithm": "soonish"},
        {"security_protocol": "soonish"},
    ],
)
def test_a_value_that_cannot_be_used_is_not_shown(extra: dict[str, str]) -> None:
    with pytest.raises(UnusableProperty) as raised:
        config_of(**extra)
    assert "soonish" not in str(raised.value)


def test_a_file_that_cannot_be_read_is_not_taken_for_a_broker_that_is_away() -> None:
    settings = KafkaSettings(extra={"ssl_ca_location": SecretStr("/absent/ca.pem")})
    with pytest.raises(UnusableProperty, match=r"ssl\.ca\.location .* the path of a file that can be read"):
        connect(KafkaAdminClient, settings)
