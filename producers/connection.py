"""Translates librdkafka's properties to kafka-python's arguments, and kafka-python's errors to `producers.errors`."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kafka import errors as kafka_errors
from kafka.admin import KafkaAdminClient

from producers.errors import (
    AccessRefused,
    BrokerUnreachable,
    RequestRefused,
    TopicMissing,
    UnmappedProperty,
    UnusableProperty,
)
from schemas.settings import KafkaSettings
from telemetry.clock import Clock, Deadline, SystemClock

BOOTSTRAP_SECONDS = 5.0
"""Longest wait for a first connection. After this wait, the broker is reported as unreachable."""

_CLOSE_SECONDS = 2.0
_TOPIC_KNOWN_SECONDS = 2.0
_COORDINATOR_SECONDS = 10.0
_ASK_AGAIN_SECONDS = 0.1
_UNKNOWN_TOPIC = kafka_errors.UnknownTopicOrPartitionError.errno
_TOPIC_FORBIDDEN = kafka_errors.TopicAuthorizationFailedError.errno
_COORDINATOR_MOVES = (
    kafka_errors.CoordinatorNotAvailableError,
    kafka_errors.CoordinatorLoadInProgressError,
    kafka_errors.NotCoordinatorError,
)
_CLOCK = SystemClock()

_SAME_MEANING = {
    "client.dns.lookup": "client_dns_lookup",
    "client.id": "client_id",
    "sasl.kerberos.service.name": "sasl_kerberos_service_name",
    "sasl.mechanism": "sasl_mechanism",
    "sasl.mechanisms": "sasl_mechanism",
    "sasl.password": "sasl_plain_password",
    "sasl.username": "sasl_plain_username",
    "ssl.ca.location": "ssl_cafile",
    "ssl.certificate.location": "ssl_certfile",
    "ssl.crl.location": "ssl_crlfile",
    "ssl.key.location": "ssl_keyfile",
    "ssl.key.password": "ssl_password",
}
_NUMBERS = {
    "connections.max.idle.ms": "connections_max_idle_ms",
    "metadata.max.age.ms": "metadata_max_age_ms",
    "receive.message.max.bytes": "receive_message_max_bytes",
    "reconnect.backoff.max.ms": "reconnect_backoff_max_ms",
    "reconnect.backoff.ms": "reconnect_backoff_ms",
    "retry.backoff.ms": "retry_backoff_ms",
    "socket.receive.buffer.bytes": "receive_buffer_bytes",
    "socket.send.buffer.bytes": "send_buffer_bytes",
    "socket.timeout.ms": "request_timeout_ms",
}
_FILES = ("ssl.ca.location", "ssl.certificate.location", "ssl.crl.location", "ssl.key.location")
_TOGETHER = "a set of properties that kafka-python takes together ({})"
_CHOICES: dict[str, dict[str, dict[str, Any]]] = {
    "enable.ssl.certificate.verification": {"true": {}},  # needs no argument, because kafka-python always verifies
    "security.protocol": {
        name.lower(): {"security_protocol": name} for name in ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
    },
    "ssl.endpoint.identification.algorithm": {
        "https": {"ssl_check_hostname": True},
        "none": {"ssl_check_hostname": False},
    },
}

# Properties that only concern the fleet's own processes are ignored, so that one environment serves both clients. Any
# other property without an equivalent is an error, because a connection's safety may depend on the property. A test
# checks that each property of the installed librdkafka is either translated or in a list here.
_PASSED_OVER = (
    *("acks", "allow.auto.create.", "api.version.", "auto.", "batch.", "broker.", "builtin.", "check.crcs"),
    *("client.rack", "compression.", "consume.", "coordinator.", "debug", "delivery.", "enable.auto."),
    *("enable.gapless.", "enable.idempotence", "enable.metrics.", "enable.partition.", "enable.random.", "fetch."),
    *("group.", "heartbeat.", "internal.", "isolation.", "linger.", "log.", "max.", "message.", "metadata.recovery."),
    *("offset.", "partition", "produce.", "queue", "queuing.", "reconnect.backoff.jitter.", "request.", "retries"),
    *("retry.backoff.max.", "session.", "share.", "socket.blocking.", "socket.connection.setup.", "socket.keepalive."),
    *("socket.max.fails", "socket.nagle.", "statistics.", "sticky.", "topic.", "transaction"),
)
_ZERO_IS_NONE = ("connections.max.idle.ms", "socket.receive.buffer.bytes", "socket.send.buffer.bytes")
"""Properties whose value 0 means "no limit" or "the system's default". kafka-python would use 0 as a number."""


def connection_config(settings: KafkaSettings) -> dict[str, Any]:
    """Return the arguments for any kafka-python client of this fleet. The arguments contain secrets, so never log them.

    Raises UnmappedProperty, UnusableProperty.
    """
    config: dict[str, Any] = {}
    for name, value in settings.client_config().items():
        config.update(_translated(name, value))
    return config


def _translated(name: str, value: str) -> dict[str, Any]:
    if name == "bootstrap.servers":
        return {"bootstrap_servers": [server.strip() for server in value.split(",")]}
    if name in _CHOICES:
        if value.lower() not in _CHOICES[name]:
            raise UnusableProperty(name, f"one of {', '.join(_CHOICES[name])}")
        return _CHOICES[name][value.lower()]
    if name == "ssl.ca.location" and value == "probe":
        return {}  # "probe" means the system's store, which kafka-python uses by default
    if name in _SAME_MEANING:
        return {_SAME_MEANING[name]: value}
    if name in _NUMBERS:
        if not value.isdecimal():
            raise UnusableProperty(name, "a whole number")
        return {} if int(value) == 0 and name in _ZERO_IS_NONE else {_NUMBERS[name]: int(value)}
    if name.startswith(_PASSED_OVER):
        return {}
    raise UnmappedProperty(name)


class Connection(ABC):
    """A connection to Kafka, opened by its constructor. A `with` block closes the connection, also after an error."""

    @abstractmethod
    def close(self) -> None:
        """Disconnect."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def connect(kind: Callable[..., Any], settings: KafkaSettings, **config: Any) -> Any:
    """Make a kafka-python client and wait for its first connection. Raises ProducerError.

    The return type is Any, because kafka-python has no types.
    """
    bootstrap = {"bootstrap_timeout_ms": round(BOOTSTRAP_SECONDS * 1000)}
    connection = connection_config(settings)
    _check_files(connection)
    with kafka_errors_translated(settings):
        try:
            return kind(**{**bootstrap, **connection, **config})
        except kafka_errors.KafkaTimeoutError:
            raise BrokerUnreachable(settings.bootstrap_servers) from None
        except (AssertionError, TypeError, ValueError, kafka_errors.KafkaConfigurationError) as error:
            # kafka-python raises these errors for arguments that contradict each other. The errors' texts may quote the
            # arguments.
            raise UnusableProperty("a POSTBACK_KAFKA__… variable", _TOGETHER.format(type(error).__name__)) from None


def _check_files(connection: dict[str, Any]) -> None:
    """Check that certificate files can be read.

    Otherwise kafka-python would report an unreadable file as an unreachable broker.
    """
    for name in _FILES:
        path = connection.get(_SAME_MEANING[name])
        if path is not None and not (Path(path).is_file() and os.access(path, os.R_OK)):
            raise UnusableProperty(name, "the path of a file that can be read")


@contextmanager
def kafka_errors_translated(settings: KafkaSettings) -> Iterator[None]:
    """Translate kafka-python's errors to those of `producers.errors`; no other code translates them."""
    try:
        yield
    except (kafka_errors.AuthorizationError, kafka_errors.SaslAuthenticationFailedError) as error:
        raise AccessRefused(_refused_by(error)) from None
    except (kafka_errors.KafkaTimeoutError, kafka_errors.KafkaConnectionError, kafka_errors.NodeNotReadyError):
        raise BrokerUnreachable(settings.bootstrap_servers) from None
    except kafka_errors.KafkaError as error:
        raise RequestRefused(f"Kafka refused the request: {error}") from None


def _refused_by(error: Exception) -> str:
    """Return the kind of the refused resource, and its names if the client has them."""
    kind = type(error).__name__.removesuffix("Error")
    named = error.args[0] if error.args else None
    return f"{kind}: {', '.join(sorted(named))}" if isinstance(named, (set, frozenset)) else kind


@contextmanager
def needed(purpose: str) -> Iterator[None]:
    """If the `with` block raises AccessRefused, add the purpose to this error."""
    try:
        yield
    except AccessRefused as refused:
        raise AccessRefused(refused.reason, purpose) from None


@contextmanager
def admin_client(settings: KafkaSettings) -> Iterator[Any]:
    """Open kafka-python's admin client for the duration of a `with` block. Raises ProducerError."""
    admin = connect(KafkaAdminClient, settings)
    try:
        with kafka_errors_translated(settings):
            yield admin
    finally:
        admin.close()


def abandon(producer: Any) -> None:
    """Close a kafka-python producer and drop its unsent records.

    The producer's own `close` waits for unsent records; if this wait fails, `close` raises an error and the producer
    stays open.
    """
    sender = producer._sender
    sender.force_close()
    sender.join(_CLOSE_SECONDS)
    with suppress(kafka_errors.KafkaTimeoutError):
        producer.close(timeout=_CLOSE_SECONDS)


def committed_offsets(settings: KafkaSettings, group: str) -> dict[tuple[str, int], int]:
    """Return a group's committed offsets by topic and partition. Partitions without a commit are left out.

    Raises ProducerError.
    """
    with admin_client(settings) as admin:
        return {(topic, number): said.offset for (topic, number), said in group_offsets(admin, group).items()}


@dataclass(frozen=True, slots=True)
class Committed:
    """A group's commit for a partition."""

    offset: int
    metadata: str


def group_offsets(admin: Any, group: str, clock: Clock = _CLOCK) -> dict[tuple[str, int], Committed]:
    """Return a group's commits by topic and partition. Partitions without a commit are left out.

    The first such request makes a new cluster create `__consumer_offsets`, so the request is repeated for up to 10 s.
    """
    deadline = Deadline.after(clock, _COORDINATOR_SECONDS)
    while True:
        try:
            found = admin.list_group_offsets({group: None})[group]
            break
        except _COORDINATOR_MOVES:
            if deadline.passed:
                raise
            clock.sleep(_ASK_AGAIN_SECONDS)
    # librdkafka's metadata ends with the NUL of a C string, which is removed here.
    return {
        (place.topic, place.partition): Committed(said.offset, (said.metadata or "").rstrip("\0"))
        for place, said in found.items()
        if said.offset >= 0
    }


def partition_counts(settings: KafkaSettings, topics: list[str], clock: Clock = _CLOCK) -> dict[str, int]:
    """Return the number of partitions of each topic. Raises TopicMissing for the first missing topic.

    A broker may not know a new topic at once, so the request is repeated for up to 2 s.
    """
    deadline = Deadline.after(clock, _TOPIC_KNOWN_SECONDS)
    with admin_client(settings) as admin:
        while True:
            described = {topic["name"]: topic for topic in admin.describe_topics(topics)}
            unknown = [name for name in topics if described[name]["error_code"] == _UNKNOWN_TOPIC]
            if not unknown or deadline.passed:
                break
            clock.sleep(_ASK_AGAIN_SECONDS)
    for name in unknown:
        raise TopicMissing(name)
    for name in topics:
        if described[name]["error_code"] == _TOPIC_FORBIDDEN:
            raise AccessRefused(f"topic {name}")
    return {name: len(described[name]["partitions"]) for name in topics}
