"""Writes one record of `callback_events` for each endpoint that takes an event, in the event's transaction.

An event's id is derived from its tenant, type and object, so a repeat has the same id and consumers drop it.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from pydantic_core import to_json
from sqlalchemy import Connection, select

from gateway.accept.events import NewEvent, write_events
from gateway.accept.outbox import Header, put_record
from gateway.store.tables import webhook_endpoints
from gateway.view.records import ResultRecord
from gateway.webhooks.endpoints import EndpointRow, response_type, versions
from schemas import topics as names
from schemas.event import event_type, stored_event_body
from schemas.openai import RESPONSES
from schemas.topics import Topics
from telemetry.clock import Clock, unix_ms
from workers.delivery.keyring import Keyring
from workers.delivery.post import Poster, PostOutcome

_ASKED_TOGETHER = 200


class TenantEvent(NamedTuple):
    """An event of a tenant, as it is sent."""

    tenant: str
    type: str
    webhook_id: str
    object_id: str
    """The id of the job or the batch, for the record of each attempt."""
    body: bytes


def object_event(tenant: str, kind: str, object_id: str, data_id: str, at_ms: int) -> TenantEvent:
    """Return an event in OpenAI's shape, with the id of the object as its data."""
    webhook_id = f"evt_{hashlib.sha256(f'{tenant}/{kind}/{object_id}'.encode()).hexdigest()[:32]}"
    body = to_json(
        {
            "id": webhook_id,
            "object": "event",
            "created_at": at_ms // 1000,
            "type": kind,
            "tenant": tenant,
            "data": {"id": data_id},
        }
    )
    return TenantEvent(tenant, kind, webhook_id, object_id, body)


def fanning_out(topics: Topics, clock: Clock) -> Callable[[Connection, Sequence[ResultRecord]], None]:
    """Return the function that the view calls with the results of each transaction."""

    def fan_out_results(connection: Connection, results: Sequence[ResultRecord]) -> None:
        fresh = [one for one in results if one.first]
        found = _endpoints(connection, {one.tenant for one in fresh})
        events = (event for one in fresh if one.tenant in found for event in _events_of(one))
        _write(connection, topics, found, events, unix_ms(clock))

    return fan_out_results


def batch_ended(connection: Connection, topics: Topics, clock: Clock, tenant: str, batch_id: str, status: str) -> None:
    """Store and fan out the event of a batch that has just ended. Call this in the transaction that ends the batch."""
    now_ms = unix_ms(clock)
    event = object_event(tenant, f"batch.{status}", batch_id, batch_id, now_ms)
    write_events(connection, [NewEvent(tenant, event.type, batch_id, now_ms, event.body)])
    _write(connection, topics, _endpoints(connection, {tenant}), [event], now_ms)


def event_headers(row: EndpointRow, event: TenantEvent, now_ms: int) -> list[Header]:
    """Return the headers of the record for one endpoint."""
    limit = [] if row.rate_limit is None else [(names.WEBHOOK_RATE_LIMIT, str(row.rate_limit).encode())]
    own = [(names.WEBHOOK_HTTP_HEADER, f"{name}: {value}".encode()) for name, value in row.headers.items()]
    return [
        (names.TENANT, event.tenant.encode()),
        (names.WEBHOOK_ID, event.webhook_id.encode()),
        (names.JOB_ID, event.object_id.encode()),
        (names.CALLBACK_URL, row.url.encode()),
        (names.WEBHOOK_ENDPOINT, row.id.encode()),
        (names.WEBHOOK_ENDPOINT_VERSIONS, ",".join(map(str, versions(row, now_ms))).encode()),
        *limit,
        *own,
    ]


def _events_of(one: ResultRecord) -> Iterable[TenantEvent]:
    """Yield the events of a result. If its job has a callback of its own, there is no event `inference.*`."""
    if not one.has_callback and one.webhook_id is not None:
        body = stored_event_body(one.result, one.value, one.webhook_id, one.tenant)
        yield TenantEvent(one.tenant, event_type(one.result.outcome), one.webhook_id, one.job_id, body)
    if one.url == RESPONSES:
        yield object_event(one.tenant, response_type(one.result), one.job_id, f"resp_{one.job_id}", one.at_ms)


def _endpoints(connection: Connection, tenants: set[str]) -> dict[str, list[EndpointRow]]:
    """Return a mapping from tenants to their enabled endpoints, without tenants that have none."""
    found: defaultdict[str, list[EndpointRow]] = defaultdict(list)
    ordered = sorted(tenants)
    for start in range(0, len(ordered), _ASKED_TOGETHER):
        some = webhook_endpoints.c.tenant.in_(ordered[start : start + _ASKED_TOGETHER])
        for row in connection.execute(select(webhook_endpoints).where(some, webhook_endpoints.c.enabled)):
            found[row.tenant].append(row)
    return found


def _write(
    connection: Connection,
    topics: Topics,
    endpoints: dict[str, list[EndpointRow]],
    events: Iterable[TenantEvent],
    now_ms: int,
) -> None:
    for event in events:
        for row in endpoints.get(event.tenant, ()):
            if event.type in row.event_types:
                key = f"{row.id}/{event.object_id}".encode()
                put_record(connection, topics.events, key, event.body, event_headers(row, event, now_ms))


class Sending:
    """Derives the secrets of webhook endpoints from the keyring, and sends test events through the egress guard."""

    def __init__(self, keyring: Keyring, poster: Poster, clock: Clock) -> None:
        self._keyring = keyring
        self._poster = poster
        self._clock = clock

    def secret(self, row: EndpointRow) -> str:
        """Return the endpoint's current secret, `whsec_…`."""
        now = self._clock.time()
        self._keyring.follow(now)
        return self._keyring.endpoint_secret(row.tenant, row.id, row.secret_version, now)

    async def test(self, row: EndpointRow, kind: str) -> PostOutcome:
        """POST a sample event of this type, signed as a real event is. Raises Exhausted."""
        now = self._clock.time()
        sample = f"{kind.split('.')[0]}_test_{secrets.token_hex(8)}"
        event = object_event(row.tenant, kind, sample, sample, int(now * 1000))
        signer = self._keyring.endpoint_signer(row.tenant, row.id, versions(row, int(now * 1000)), now)
        headers = {**signer.headers(event.webhook_id, int(now), event.body), **row.headers}
        return await self._poster.post(row.url, event.body, headers, row.tenant)
