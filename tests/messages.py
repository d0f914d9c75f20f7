"""Fields of Kafka's messages, for comparisons: a missing field fails the test."""

from __future__ import annotations

from collections.abc import Iterable

from confluent_kafka import Message

Pairs = Iterable[tuple[str, bytes | None]]


def headers_of(message: Message) -> dict[str, bytes]:
    """A message's headers by name, each with a value; of headers with the same name, the last counts."""
    return _present(pairs_of(message))


def pairs_of(message: Message) -> list[tuple[str, bytes | None]]:
    """A message's headers in their order. A consumer gives each value as bytes, or as None."""
    pairs = message.headers() or []
    assert isinstance(pairs, list)
    return [(name, _bytes_or_none(value)) for name, value in pairs]


def in_text(headers: Pairs | None) -> dict[str, str]:
    """Headers by name, with values decoded as UTF-8."""
    return {name: value.decode() for name, value in _present(headers or ()).items()}


def key_of(message: Message) -> str:
    """A message's key as text."""
    key = message.key()
    assert key is not None, "the message has no key"
    return key.decode()


def value_of(message: Message) -> bytes:
    """A message's value."""
    value = message.value()
    assert value is not None, "the message has no value"
    return value


def _present(headers: Pairs) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for name, value in headers:
        assert value is not None, f"the header {name} has no value"
        found[name] = value
    return found


def _bytes_or_none(value: str | bytes | None) -> bytes | None:
    assert not isinstance(value, str)
    return value
