"""Properties and log lines of the Kafka clients."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import re
import socket
from pathlib import Path
from typing import Any

import confluent_kafka
import pytest
from confluent_kafka import Producer
from kafka import KafkaConsumer, KafkaProducer
from kafka.admin import KafkaAdminClient
from pydantic import SecretStr

from producers.connection import _NUMBERS, _SAME_MEANING, connect, connection_config
from producers.errors import UnmappedProperty, UnusableProperty
from schemas.settings import KafkaSettings
from telemetry.clock import Deadline, SystemClock
from telemetry.hand_clock import HandClock
from workers.kafka.clients import REPEAT_SECONDS, RepeatFilter, client_config


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


def test_every_name_that_is_mapped_is_one_that_each_client_knows() -> None:
    mapped = {*_SAME_MEANING.values(), *_NUMBERS.values(), "security_protocol", "ssl_check_hostname"}
    for client in (KafkaAdminClient, KafkaConsumer, KafkaProducer):
        assert mapped <= set(client.DEFAULT_CONFIG), client


def test_properties_that_mean_nothing_to_a_command_are_skipped() -> None:
    assert config_of() == {"bootstrap_servers": ["a:9092", "b:9092"]}
    for extra in (
        {"queued_min_messages": "10", "statistics_interval_ms": "1000"},
        dict.fromkeys(("client_rack", "fetch_min_bytes", "max_poll_interval_ms", "compression_type"), "1"),
        dict.fromkeys(("connections_max_idle_ms", "socket_send_buffer_bytes"), "0"),  # no limit, and no number
        {"ssl_ca_location": "probe", "enable_ssl_certificate_verification": "true"},  # the system's certificates
    ):
        assert config_of(**extra) == config_of()
    assert config_of(reconnect_backoff_ms="0")["reconnect_backoff_ms"] == 0


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


def test_a_value_that_cannot_be_used_is_not_shown_and_not_taken_for_a_broker_that_is_away() -> None:
    checked = ("ssl_endpoint_identification_algorithm", "enable_ssl_certificate_verification")
    for name in ("socket_timeout_ms", "security_protocol", *checked):
        with pytest.raises(UnusableProperty) as raised:
            config_of(**{name: "soonish"})
        assert "soonish" not in str(raised.value)
    readable = r"ssl\.ca\.location .* the path of a file that can be read"
    for client, name, value, problem in (
        (KafkaAdminClient, "ssl_ca_location", "/absent/ca.pem", readable),
        (KafkaConsumer, "connections_max_idle_ms", "200", "takes together"),
    ):
        with pytest.raises(UnusableProperty, match=problem):
            connect(client, KafkaSettings(extra={name: SecretStr(value)}))


# -- log lines of librdkafka -------------------------------------------------------------------------------------------


REFUSED = "127.0.0.1:9092/1: Connect to ipv4#127.0.0.1:9092 failed: Connection refused (after 3ms in state CONNECT)"


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def repeats(clock: HandClock) -> RepeatFilter:
    return RepeatFilter(clock)


def line(text: str, client: str = "rdkafka#producer-1", what: str = "FAIL") -> logging.LogRecord:
    return logging.LogRecord("librdkafka", logging.ERROR, "", 0, "%s [%s] %s", (what, client, text), None)


def passed(repeats: RepeatFilter, record: logging.LogRecord) -> str | None:
    return record.getMessage() if repeats.filter(record) else None


def test_one_line_of_a_kind_passes_and_the_next_one_counts_those_between(
    repeats: RepeatFilter, clock: HandClock
) -> None:
    text = f"[thrd:127.0.0.1:9092/1]: {REFUSED}"
    assert passed(repeats, line(text)) == f"FAIL [rdkafka#producer-1] {text}"
    for number in range(600):
        clock.sleep(REPEAT_SECONDS / 601)
        assert passed(repeats, line(text.replace("3ms", f"{number}ms"), f"rdkafka#producer-{number}")) is None
    clock.sleep(1)
    assert passed(repeats, line(text)) == f"FAIL [rdkafka#producer-1] {text} (and 600 more like it before)"
    clock.sleep(REPEAT_SECONDS)
    assert passed(repeats, line(text)) == f"FAIL [rdkafka#producer-1] {text}"


def test_another_broker_and_another_trouble_are_of_another_kind(repeats: RepeatFilter) -> None:
    texts = [
        f"[thrd:127.0.0.1:9092/1]: {REFUSED}",
        f"[thrd:127.0.0.1:9093/2]: {REFUSED}",
        "[thrd:127.0.0.1:9092/1]: 127.0.0.1:9092/1: SASL authentication error: the password is wrong",
    ]
    assert None not in [passed(repeats, line(text)) for text in texts]
    assert passed(repeats, line(texts[0], what="SESSTMOUT")) is not None


def test_clients_that_come_and_go_report_an_absent_broker_once(caplog: pytest.LogCaptureFixture) -> None:
    """Real clients run here, so the test sees the lines that librdkafka really passes to the logger."""
    with socket.socket() as nobody, caplog.at_level(logging.INFO, "librdkafka"):
        nobody.bind(("127.0.0.1", 0))  # the port is bound but not listening, so connections are refused
        config = client_config(KafkaSettings(bootstrap_servers=f"127.0.0.1:{nobody.getsockname()[1]}"))
        for _ in range(5):
            producer = Producer({**config, "reconnect.backoff.ms": 10, "reconnect.backoff.max.ms": 10})
            deadline = Deadline.after(SystemClock(), 0.3)
            while not deadline.passed:
                producer.poll(0.05)
    said = [record.getMessage() for record in caplog.records if "Connection refused" in record.getMessage()]
    assert len(said) == 1, said
