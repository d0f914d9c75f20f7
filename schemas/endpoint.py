"""Records of `callback_endpoints`, by tenant and full URL.

The topic is compacted: each record replaces the earlier ones of its endpoint.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field, TypeAdapter

from schemas.bounded import WireModel
from schemas.compacted import CompactedCodec

EndpointKey = tuple[str, str]
"""Tenant and full URL. A record's key is a JSON array of tenant and URL."""

_KEY: TypeAdapter[EndpointKey] = TypeAdapter(EndpointKey)


class EndpointState(StrEnum):
    """An endpoint's state. An endpoint without a state gets callbacks, like an enabled one."""

    FAILING = "failing"
    """The endpoint gets callbacks, though no attempt has succeeded since `at`."""
    DISABLED = "disabled"
    """The endpoint gets no callbacks; its events become dead letters."""
    ENABLED = "enabled"
    """A person enabled the endpoint again."""


class DisabledBecause(StrEnum):
    """The reason for disabling an endpoint."""

    GONE = "gone"
    """The endpoint answered 410."""
    FAILING = "failing"
    """Every attempt failed for days."""
    OPERATOR = "operator"
    """A person disabled the endpoint."""


class EndpointRecord(WireModel):
    """A record's value. A tombstone (no value) makes readers forget the endpoint, unless it is disabled."""

    tenant: str
    url: str
    state: EndpointState
    at: int
    """Start of this state, Unix milliseconds."""
    reason: DisabledBecause | None = None
    """The reason for disabling, on a disabled endpoint."""
    webhook_id: str | None = Field(default=None, max_length=256)
    """The `webhook-id` of the event whose attempt caused this state, if one did."""

    @property
    def key(self) -> EndpointKey:
        """The endpoint of this record."""
        return self.tenant, self.url


class InvalidEndpointRecord(Exception):  # noqa: N818 - named after the record
    """A record of `callback_endpoints` that cannot be read."""


def ends_disabling(record: EndpointRecord | None) -> bool:
    """True if this record ends a disabled state; None is a tombstone.

    A failing record and the tombstone after it do not end the state: they may come from a process that has not yet read
    that the endpoint was disabled.
    """
    return record is not None and record.state is not EndpointState.FAILING


# `read_key` and `read_endpoint` raise InvalidEndpointRecord.
_CODEC = CompactedCodec(
    _KEY, EndpointRecord, InvalidEndpointRecord, key_is="[tenant, url]", value_is="an endpoint's state"
)
key_bytes, read_key = _CODEC.key_bytes, _CODEC.read_key
write_endpoint, read_endpoint = _CODEC.write, _CODEC.read
