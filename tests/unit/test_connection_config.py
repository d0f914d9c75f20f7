"""Translation of librdkafka's property names, which the fleet's settings use, to kafka-python's."""

from __future__ import annotations

import contextlib
import ctypes
import re
from pathlib import Path
from typing import Any

import confluent_kafka
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


def test_properties_of_the_fleets_own_processes_are_skipped() -> None:
    assert config_of(queued_min_messages="10", statistics_interval_ms="1000") == {
        "bootstrap_servers": ["a:9092", "b:9092"]
    }


@pytest.mark.parametrize("name", ["client_rack", "fetch_min_bytes", "max_poll_interval_ms", "compression_type"])
def test_properties_of_consumers_and_of_workers_producers_do_not_stop_a_command(name: str) -> None:
    assert config_of(**{name: "1"}) == config_of()


def test_a_zero_that_means_no_limit_is_not_taken_for_a_number() -> None:
    assert config_of(connections_max_idle_ms="0", socket_send_buffer_bytes="0") == config_of()
    assert config_of(reconnect_backoff_ms="0")["reconnect_backoff_ms"] == 0


def test_the_systems_certificates_may_be_asked_for_by_name() -> None:
    assert config_of(ssl_ca_location="probe", enable_ssl_certificate_verification="true") == config_of()


def test_each_property_of_librdkafka_is_mapped_ignored_or_listed_here_as_refused(tmp_path: Path) -> None:
    """A new version of librdkafka may add properties; each has to be mapped, ignored, or listed here as refused."""
    refused = set()
    for name in librdkafka_properties(tmp_path / "properties"):
        with contextlib.suppress(UnusableProperty):  # the name is mapped, but 1 is perhaps no valid value
            try:
                config_of(**{name.replace(".", "_"): "1"})
            except UnmappedProperty:
                refused.add(name)
    assert {name for name in refused if not name.startswith(("sasl.oauthbearer.", "https.ca."))} == {
        # these state identity and trust in forms that kafka-python does not accept
        *("ssl.ca.certificate.stores", "ssl.ca.pem", "ssl.certificate.pem", "ssl.key.pem"),
        *("ssl.keystore.location", "ssl.keystore.password"),
        *("ssl.cipher.suites", "ssl.curves.list", "ssl.sigalgs.list"),
        *("ssl.engine.id", "ssl.engine.location", "ssl.providers"),
        *("enable.sasl.oauthbearer.unsecure.jwt", "sasl.kerberos.keytab", "sasl.kerberos.kinit.cmd"),
        *("sasl.kerberos.min.time.before.relogin", "sasl.kerberos.principal"),
        # this is an alias of bootstrap.servers, which has its own setting
        "metadata.broker.list",
        # these are callbacks, objects, and libraries to load
        *("interceptors", "opaque", "plugin.library.paths"),
    }


def librdkafka_properties(scratch: Path) -> list[str]:
    """The property names of confluent-kafka's bundled librdkafka that an environment variable can state."""
    (library,) = Path(confluent_kafka.__file__).parent.with_name("confluent_kafka.libs").glob("librdkafka-*")
    c, librdkafka = ctypes.CDLL(None), ctypes.CDLL(str(library))
    c.fopen.restype = ctypes.c_void_p
    file = ctypes.c_void_p(c.fopen(bytes(scratch), b"w"))
    librdkafka.rd_kafka_conf_properties_show(file)
    c.fclose(file)
    names = re.findall(r"^([a-z][a-z._]+?) +\| +[*CP] +\|", scratch.read_text(), re.MULTILINE)
    assert len(names) > 150
    return [name for name in names if "_" not in name]  # the value of a name with `_` is a callback or an object


def test_a_property_without_an_equal_is_named_and_its_value_is_not() -> None:
    with pytest.raises(UnmappedProperty, match=r"ssl\.key\.pem \(POSTBACK_KAFKA__EXTRA__SSL_KEY_PEM\)") as raised:
        config_of(ssl_key_pem="private")
    assert "private" not in str(raised.value)
    assert "name the file in ssl.key.location" in str(raised.value)


@pytest.mark.parametrize(
    "extra",
    [
        {"socket_timeout_ms": "soonish"},
        {"ssl_endpoint_identification_algorithm": "soonish"},
        {"security_protocol": "soonish"},
        {"enable_ssl_certificate_verification": "soonish"},
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


def test_properties_that_kafka_python_does_not_take_together_are_no_brokers_refusal() -> None:
    settings = KafkaSettings(extra={"connections_max_idle_ms": SecretStr("200")})
    with pytest.raises(UnusableProperty, match="takes together"):
        connect(KafkaConsumer, settings)
