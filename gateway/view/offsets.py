"""The view's offsets: rows and offsets change in one transaction, which fails if another view has moved the offsets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from sqlalchemy import Connection, bindparam, select

from gateway.errors import StoreAway
from gateway.store.dialects import insert_new
from gateway.store.tables import view_offsets


class TopicPlace(NamedTuple):
    """A partition of one topic."""

    topic: str
    topic_id: str
    """The topic's UUID: a topic that was deleted and created again has a new UUID, and is read from its beginning."""
    partition: int


HELD = -1
"""Stands in the place of a partition's offset while the rows are being rebuilt."""


class BeingRebuilt(StoreAway):
    """`postback store rebuild` is at work, or was cut off and has to be run again."""


class OffsetsMoved(Exception):  # noqa: N818 - it names what happened
    """Another view has written the records, or the view is being rebuilt: read the offsets again."""


def begin_at(connection: Connection, places: Iterable[TopicPlace]) -> dict[TopicPlace, int]:
    """Return the next offset of each partition. New partitions, and topics that were created again, begin at 0.

    Raises BeingRebuilt.
    """
    wanted = list(places)
    columns = view_offsets.c
    rows = [{"topic": p.topic, "partition": p.partition, "topic_id": p.topic_id, "next_offset": 0} for p in wanted]
    if rows:
        insert_new(connection, view_offsets, rows)
    if being_rebuilt(connection):
        raise BeingRebuilt("the rows are being rebuilt; if `postback store rebuild` was cut off, run it again")
    found: dict[TopicPlace, int] = {}
    for place in wanted:
        this = (columns.topic == place.topic) & (columns.partition == place.partition)
        row = connection.execute(select(columns.topic_id, columns.next_offset).where(this)).one()
        found[place] = row.next_offset
        if row.topic_id != place.topic_id:
            connection.execute(view_offsets.update().where(this).values(topic_id=place.topic_id, next_offset=0))
            found[place] = 0
    return found


def being_rebuilt(connection: Connection) -> bool:
    """Return whether a rebuild is at work or was cut off, so that rows of jobs may be missing or empty."""
    held = select(view_offsets.c.topic).where(view_offsets.c.next_offset == HELD)
    return connection.execute(held).first() is not None


def move(connection: Connection, moves: Mapping[TopicPlace, tuple[int, int]]) -> None:
    """Move each partition's offset in `moves` from the first number to the second.

    Raises OffsetsMoved if an offset is not at the first number.
    """
    if not moves:
        return
    columns = view_offsets.c
    at = {name: columns[name] == bindparam(f"at_{name}") for name in ("topic", "partition", "topic_id", "next_offset")}
    rows = [
        {f"at_{name}": value for name, value in (*place._asdict().items(), ("next_offset", before))} | {"after": after}
        for place, (before, after) in moves.items()
    ]
    moved = connection.execute(
        view_offsets.update().where(*at.values()).values(next_offset=bindparam("after")),
        rows,
        execution_options={"preserve_rowcount": True},
    )
    if moved.rowcount != len(rows):
        raise OffsetsMoved
