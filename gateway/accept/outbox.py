"""The outbox: records that are accepted and not yet known to be on Kafka.

The relay puts the records on Kafka, exactly once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic_core import from_json, to_json
from sqlalchemy import Connection

from gateway.store.engine import require_no_hold
from gateway.store.tables import outbox

Header = tuple[str, bytes]


def put_record(
    connection: Connection,
    topic: str,
    key: bytes | None,
    value: bytes | None,
    headers: Sequence[Header] = (),
) -> None:
    """Write one record into the outbox. `topic` is the full name, see `schemas.topics.Topics`.

    The relay chooses the partition by the key; a record without a key may go to any partition.

    Raises StoreAway while no work is accepted.
    """
    require_no_hold(connection, new_work=False)
    connection.execute(outbox.insert(), outbox_row(topic, key, value, headers))


def outbox_row(
    topic: str, key: bytes | None, value: bytes | None, headers: Sequence[Header], shard: str | None = None
) -> dict[str, Any]:
    """Return a row of the outbox. A record with a tenant as its `shard` goes to one of the tenant's partitions."""
    packed = to_json([[name, content.decode("latin-1")] for name, content in headers])
    size = len(value or b"") + len(key or b"") + len(packed)
    return {"topic": topic, "record_key": key, "value": value, "headers": packed, "shard": shard, "size": size}


def unpacked(headers: bytes) -> list[Header]:
    """Return the headers of a row."""
    return [(name, content.encode("latin-1")) for name, content in from_json(headers)]
