"""The endpoints that the fleet knows, and operators' orders for them.

Every delivery process reads the topic of these orders.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cli.operations.compacted import put_facts
from producers.scan import Scanner, Stored
from schemas.endpoint import (
    EndpointKey,
    EndpointRecord,
    EndpointState,
    InvalidEndpointRecord,
    ends_disabling,
    key_bytes,
    read_endpoint,
    read_key,
    write_endpoint,
)
from schemas.settings import KafkaSettings


def known_endpoints(settings: KafkaSettings) -> dict[EndpointKey, EndpointRecord]:
    """Return a mapping from each known endpoint (tenant and URL) to its last record. Raises ProducerError."""
    with Scanner(settings) as scanner:
        last = latest_records(scanner.read(scanner.ranges(settings.topics.endpoints)))
    return dict(sorted(last.items()))


def disabled_endpoints(settings: KafkaSettings) -> frozenset[EndpointKey]:
    """Return the disabled endpoints. A callback that is put back for a disabled endpoint would be given up at once.

    Raises ProducerError.
    """
    known = known_endpoints(settings).values()
    return frozenset(record.key for record in known if record.state is EndpointState.DISABLED)


def put_endpoints(settings: KafkaSettings, records: Sequence[EndpointRecord]) -> None:
    """Publish endpoints' states to every delivery process. Returns when Kafka has the records. Raises ProducerError."""
    put_facts(settings, settings.topics.endpoints, [(key_bytes(one.key), write_endpoint(one)) for one in records])


def latest_records(records: Iterable[Stored]) -> dict[EndpointKey, EndpointRecord]:
    """Return the record in force for each known endpoint.

    It is the last record, unless an earlier record disables the endpoint and the last one does not end that.
    """
    last: dict[EndpointKey, EndpointRecord] = {}
    for record in records:
        try:
            endpoint = read_key(record.key)
            said = read_endpoint(record.value) if record.value is not None else None
        except InvalidEndpointRecord:
            continue  # delivery also ignores this record, and logs a warning
        known = last.get(endpoint)
        if known is not None and known.state is EndpointState.DISABLED and not ends_disabling(said):
            continue
        if said is not None:
            last[endpoint] = said
        else:
            last.pop(endpoint, None)
    return last
