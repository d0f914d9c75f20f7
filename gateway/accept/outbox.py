"""The outbox: records that are accepted and not yet known to be on Kafka.

The relay puts the records on Kafka, exactly once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic_core import from_json, to_json
from sqlalchemy import Connection

from gateway.store.dialects import insert, write_rows
from gateway.store.engine import fresh_rows, require_no_hold
from gateway.store.tables import outbox

Header = tuple[str, bytes]
_LAST_NUMBER = {"sqlite": "SELECT last_insert_rowid()", "postgresql": "SELECT currval('outbox_number_seq')"}


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
    put_rows(connection, [outbox_row(topic, key, value, headers)])


def put_rows(connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows into the outbox, and note them for the relay. Their numbers are consecutive, as writers take turns."""
    write_rows(connection, insert(connection, outbox), rows)
    last: int = connection.exec_driver_sql(_LAST_NUMBER[connection.dialect.name]).scalar_one()
    fresh_rows(connection).extend({**row, "number": number} for number, row in enumerate(rows, last - len(rows) + 1))


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
