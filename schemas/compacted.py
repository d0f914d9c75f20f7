"""Converts the keys and values of compacted topics, such as `job_control` and `callback_endpoints`."""

from __future__ import annotations

from typing import Generic, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from schemas.bounded import WireModel

Fact = TypeVar("Fact", bound=WireModel)


class CompactedCodec(Generic[Fact]):
    """Reads and writes keys and values. A key is a JSON array of a tenant and a name; a value is a fact about the name.

    Reading any other record raises the error class `invalid`, whose text says that `key_is` or `value_is` was expected.
    """

    def __init__(
        self,
        key: TypeAdapter[tuple[str, str]],
        fact: type[Fact],
        invalid: type[Exception],
        *,
        key_is: str,
        value_is: str,
    ) -> None:
        self._key = key
        self._fact = fact
        self._invalid = invalid
        self._key_is = key_is
        self._value_is = value_is

    def key_bytes(self, key: tuple[str, str]) -> bytes:
        """Return the key as bytes."""
        return to_json(list(key))

    def read_key(self, key: bytes | None) -> tuple[str, str]:
        """Return the key in these bytes. Raises `invalid`."""
        try:
            return self._key.validate_json(key or b"")
        except ValidationError:
            raise self._invalid(f"the key is not {self._key_is}") from None

    def write(self, fact: Fact) -> bytes:
        """Return the fact as a record's value."""
        return fact.model_dump_json(exclude_none=True).encode()

    def read(self, value: bytes) -> Fact:
        """Return the fact in a record's value. Raises `invalid`."""
        try:
            return self._fact.model_validate_json(value)
        except ValidationError:
            raise self._invalid(f"the value is not {self._value_is}") from None
