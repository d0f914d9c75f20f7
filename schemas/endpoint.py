"""What `callback_endpoints` says of an endpoint: (tenant, full URL). Compacted, so the last record of each counts."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field, TypeAdapter

from schemas.compacted import CompactedCodec
from schemas.job import WireModel

EndpointKey = tuple[str, str]
"""Tenant and full URL. The record's key is this as a JSON array."""

_KEY: TypeAdapter[EndpointKey] = TypeAdapter(EndpointKey)


class EndpointState(StrEnum):
    """Where an endpoint stands. One of which nothing is known is called like one that is enabled."""

    FAILING = "failing"
    """It is called, and no attempt has succeeded since `at`."""
    DISABLED = "disabled"
    """It is not called; its events are kept as dead letters."""
    ENABLED = "enabled"
    """A person has enabled it again."""


class DisabledBecause(StrEnum):
    """Why an endpoint was disabled."""

    GONE = "gone"
    """It answered 410."""
    FAILING = "failing"
    """Every attempt failed for days."""
    OPERATOR = "operator"
    """A person said so."""


class EndpointRecord(WireModel):
    """The value of a record. A tombstone (no value) says that there is nothing to remember, unless it was disabled."""

    tenant: str
    url: str
    state: EndpointState
    at: int
    """Since when, Unix milliseconds."""
    reason: DisabledBecause | None = None
    """Of a disabled one."""
    webhook_id: str | None = Field(default=None, max_length=256)
    """The event whose attempt brought it here, if one did."""

    @property
    def key(self) -> EndpointKey:
        """Which endpoint this is about."""
        return self.tenant, self.url


class InvalidEndpointRecord(Exception):  # noqa: N818 - it names what the record is
    """A record of `callback_endpoints` that cannot be read."""


def ends_disabling(record: EndpointRecord | None) -> bool:
    """Whether what was said last counts behind a record that says "disabled"; None is a tombstone.

    Who writes that an endpoint fails, or that it fails no more, may not have read yet that it was disabled.
    """
    return record is not None and record.state is not EndpointState.FAILING


# Reading raises InvalidEndpointRecord.
_CODEC = CompactedCodec(
    _KEY, EndpointRecord, InvalidEndpointRecord, key_is="[tenant, url]", value_is="an endpoint's state"
)
key_bytes, read_key = _CODEC.key_bytes, _CODEC.read_key
write_endpoint, read_endpoint = _CODEC.write, _CODEC.read
