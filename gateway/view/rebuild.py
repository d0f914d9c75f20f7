"""`postback store rebuild`: the rows of results and attempts are rebuilt from Kafka.

Running views pause. Rows whose records Kafka still has are emptied. Then the rebuild writes all records below the
views' offsets again, without events, webhooks and quotas, because the first writing caused those already. Rows whose
records Kafka has deleted stay. At the end the batches are counted again, and the views go on. A rebuild that is cut off
must be run again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

from sqlalchemy import Connection, select

from gateway.access import quotas
from gateway.store.meta import set_value, value_of
from gateway.store.store import Store
from gateway.store.tables import job_attempts, jobs, meta, view_offsets
from gateway.view.offsets import HELD, TopicPlace
from gateway.view.reader import TopicReader
from gateway.view.records import KAFKA, records_of
from gateway.view.segments import forget_since, recount
from gateway.view.writing import write_attempts, write_results
from schemas.settings import KafkaSettings

TOGETHER = 500
_TARGETS = "rebuilding"
_NEVER = 2**62


def rebuild(store: Store, kafka: KafkaSettings) -> int:
    """Rebuild the rows, and the counts of running batches and of quotas; return the number of records.

    Raises KafkaException and StoreAway.
    """
    topics = kafka.topics
    reader = TopicReader(kafka, (topics.results, topics.attempts))
    try:
        places = reader.places()
        results_since, attempts_since = (
            _first_kept(reader, [place for place in places if place.topic == topic])
            for topic in (topics.results, topics.attempts)
        )
        targets = store.write_now(partial(_begin, results_since, attempts_since))
        ends = {place: end for place in places if (end := targets.get(_name(place), 0)) > 0}
        count = _read(store, reader, ends, topics.results) if ends else 0
    finally:
        reader.close()
    store.write_now(partial(_end, targets))
    return count


def _first_kept(reader: TopicReader, places: Sequence[TopicPlace]) -> int:
    """Return the time in Unix milliseconds from which Kafka has the records of all partitions."""
    return max((_NEVER if first is None else first for first in map(reader.first_kept_ms, places)), default=_NEVER)


def _begin(results_since: int, attempts_since: int, connection: Connection) -> dict[str, int]:
    """Stop the views, and empty the rows that Kafka's records can restore. Returns each place's offset."""
    said = value_of(connection, _TARGETS)
    if said is None:
        rows = connection.execute(select(view_offsets)).all()
        said = json.dumps({_name(TopicPlace(row.topic, row.topic_id, row.partition)): row.next_offset for row in rows})
        set_value(connection, _TARGETS, said)
        connection.execute(view_offsets.update().values(next_offset=HELD))
    recent = jobs.c.finished_at >= results_since
    connection.execute(jobs.delete().where(recent, jobs.c.url == KAFKA))
    forget_since(connection, results_since)
    emptied = {"status": "queued", "finished_at": None, "result": None}
    connection.execute(jobs.update().where(recent).values(**emptied))
    connection.execute(job_attempts.delete().where(job_attempts.c.at >= attempts_since))
    found: dict[str, int] = json.loads(said)
    return found


def _read(store: Store, reader: TopicReader, ends: dict[TopicPlace, int], results: str) -> int:
    """Write all records below the offsets in `ends`, and return their number."""
    by_partition = {(place.topic, place.partition): place for place in ends}
    reader.begin(dict.fromkeys(ends, 0))
    left, count = set(ends), 0
    while left:
        messages = []
        for message in reader.records(TOGETHER, 1.0):
            place = by_partition[message.topic(), message.partition()]
            if message.offset() < ends[place]:
                messages.append(message)
            if message.offset() >= ends[place] - 1:
                left.discard(place)
        left = {place for place in left if not reader.has_ended({place})}
        if messages:
            store.write_now(partial(_write, messages, results))
            count += len(messages)
    return count


def _write(messages: Sequence[Any], results: str, connection: Connection) -> None:
    found, attempts = records_of(messages, results)
    write_results(connection, found, tell=False)
    write_attempts(connection, attempts)


def _end(targets: dict[str, int], connection: Connection) -> None:
    """Let the views go on from their offsets."""
    for row in connection.execute(select(view_offsets)).all():
        this = (view_offsets.c.topic == row.topic) & (view_offsets.c.partition == row.partition)
        target = targets.get(_name(TopicPlace(row.topic, row.topic_id, row.partition)), 0)
        connection.execute(view_offsets.update().where(this).values(next_offset=target))
    recount(connection)
    quotas.recount(connection)
    connection.execute(meta.delete().where(meta.c.name == _TARGETS))


def _name(place: TopicPlace) -> str:
    return f"{place.topic}:{place.topic_id}:{place.partition}"
