"""Errors between a producer and Kafka. Each text names the fix and shows no secret.

ProducerError
├── UnmappedProperty    a librdkafka property without an equivalent in kafka-python
├── UnusableProperty    a property with a value that kafka-python refuses
├── BrokerUnreachable   no broker answered in time
├── AccessRefused       a broker refused this client's identity or request
├── TopicMissing        the topic is missing
└── RequestRefused      a broker refused a request for another reason
"""

from __future__ import annotations

from schemas.broker_hint import broker_hint
from schemas.operator_error import OperatorError


class ProducerError(OperatorError):
    """The producer cannot do its work."""


class UnmappedProperty(ProducerError):  # noqa: N818 - the tree names events
    """Only librdkafka has this property."""

    def __init__(self, name: str) -> None:
        variable = f"POSTBACK_KAFKA__EXTRA__{name.upper().replace('.', '_')}"
        way = "unset it here"
        if name.endswith(".pem"):
            way = f"put the value into a file, and name the file in {name.removesuffix('pem')}location"
        super().__init__(f"{name} ({variable}) has no counterpart in kafka-python, which this command uses: {way}")


class UnusableProperty(ProducerError):  # noqa: N818
    """The property's value cannot be used. The value may be a secret, so the error's text does not show it."""

    def __init__(self, name: str, allowed: str) -> None:
        super().__init__(f"the value of {name} cannot be used: {allowed} is needed")


class BrokerUnreachable(ProducerError):  # noqa: N818
    """No broker answered in time."""

    def __init__(self, bootstrap_servers: str) -> None:
        super().__init__(f"no Kafka broker answers at {bootstrap_servers}: {broker_hint(bootstrap_servers)}")


class AccessRefused(ProducerError):  # noqa: N818
    """A broker refused this client's identity or request.

    `purpose` is a clause of the text that says why the access was needed.
    """

    def __init__(self, reason: str, purpose: str | None = None) -> None:
        self.reason = reason
        why = f"; {purpose}" if purpose is not None else ""
        super().__init__(
            f"Kafka refuses access ({reason}){why}: check POSTBACK_KAFKA__EXTRA__SASL_… and the broker's ACLs"
        )


class TopicMissing(ProducerError):  # noqa: N818
    """The topic is missing."""

    def __init__(self, topic: str) -> None:
        super().__init__(f"the topic {topic} does not exist: run `postback topics create`")


class RequestRefused(ProducerError):  # noqa: N818
    """A broker refused a request for a reason that no other class here names."""
