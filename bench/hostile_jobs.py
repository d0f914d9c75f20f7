"""Sends jobs drawn from the published schema, and broken ones, to a live fleet: `python -m bench.hostile_jobs`.

Real `postback worker --engine echo` processes and a `postback deliver` handle the records. Then a read_committed reader
must find exactly one result for each record, by the `webhook-id` derived from the record's place and value. Each
result with a callback to the run's receiver must arrive there. No process may end early or report a defect.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import KafkaError, Message, Producer

from bench.committed import committed_records
from bench.drawn_jobs import Drawn, DrawnJobs
from bench.fleet import Command, Kafka, broker, new_fleet, wait_for
from bench.receivers import receivers
from bench.result import parsed, table, title, verdict
from schemas.codec import Origin, read_result
from schemas.settings import KafkaSettings
from schemas.topics import CALLBACK_URL, REASON, WEBHOOK_ID
from telemetry.clock import SystemClock
from workers.delivery.keyring import Keyring
from workers.kafka.topics import topic_ids

PARTITIONS = 4
WORKERS = 2
POOL = 400
LOOK_SECONDS = 2.0
LONGEST_SECONDS = 900.0
"""Longest duration of each wait. If a wait takes longer, the bench fails."""


class NotSound(Exception):  # noqa: N818 - named after the finding
    """A record does not have exactly one result, a callback did not arrive, or a process failed."""


@dataclass(frozen=True, slots=True)
class Counted:
    """The outcomes of one group of records: the drawn or the broken ones."""

    sent: int
    outcomes: Counter[str]
    """Number of results by outcome. Each record has one result."""
    letters: Counter[str]
    """Number of dead letters by reason."""
    callbacks: int
    """Number of events that arrived at the receiver."""


def main() -> None:
    """Send both kinds of records, and print the counts. Raises NotSound as `run` does."""
    options = _options()
    title(f"{options.jobs:,} jobs drawn from the published schema, and {options.broken:,} broken ones")
    with broker(options.bootstrap_servers) as used:
        counted = run(used, options.jobs, options.broken, pool=options.pool, seed=options.seed)
    rows = [
        (kind, one.sent, one.outcomes.total(), _told(one.outcomes), _told(one.letters), one.callbacks)
        for kind, one in counted.items()
    ]
    table(("records", "sent", "results", "outcomes", "dead letters", "callbacks"), rows)
    without = sum(one.sent - one.outcomes.total() for one in counted.values())
    verdict(
        "records without exactly one result; no process ended, and no handler had a defect", without, 0, at_least=False
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=20_000, help="number of jobs drawn from the schema")
    parser.add_argument("--broken", type=int, default=20_000, help="number of jobs with one fault")
    parser.add_argument("--pool", type=int, default=POOL, help="number of values drawn for each field")
    parser.add_argument("--seed", type=int, default=1, help="the same seed draws the same records")
    parser.add_argument("--bootstrap-servers", help="a Kafka to use; by default the bench starts one")
    return parsed(parser)


def run(used: Kafka, jobs: int, broken: int, *, pool: int, seed: int) -> dict[str, Counted]:
    """Send both kinds of records through one fleet, and count their outcomes by kind. Raises NotSound."""
    kafka = new_fleet(used, PARTITIONS)
    with receivers(1, note=True) as consumers:
        drawn = DrawnJobs(f"http://127.0.0.1:{consumers.ports[0]}", pool, seed)
        expected = {"drawn": put(kafka, drawn.jobs(jobs)), "broken": put(kafka, drawn.broken(broken))}
        with _running(kafka) as fleet:
            _await_results(kafka, fleet, jobs + broken)
            ours = [one for one in _results(kafka) if _leads_to(one, consumers.ports[0])]
            arrived = consumers.first_arrivals([_header(one, WEBHOOK_ID) for one in ours], LONGEST_SECONDS).keys()
            _ensure_well(fleet)
    results = _results(kafka)
    letters = committed_records(kafka.client_config(), kafka.topics.dead_letters)
    ensure_one_each(set().union(*expected.values()), Counter(_header(one, WEBHOOK_ID) for one in results))
    return {kind: _counted(ids, results, letters, arrived) for kind, ids in expected.items()}


@contextmanager
def _running(kafka: KafkaSettings) -> Iterator[list[Command]]:
    """Run the fleet's processes for a block."""
    with ExitStack() as stack:
        keyring = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "keyring.json"
        Keyring.create(keyring, SystemClock())
        variables = {"POSTBACK_ENV": "production", "POSTBACK_KEYRING": str(keyring)}
        roles = [("worker", "--engine", "echo")] * WORKERS + [("deliver",)]
        processes = [
            Command(kafka, *role, POSTBACK_REPLICA=f"r{number}", **variables) for number, role in enumerate(roles)
        ]
        yield [stack.enter_context(process) for process in processes]


def _await_results(kafka: KafkaSettings, fleet: list[Command], wanted: int) -> None:
    """Wait for `wanted` results. Raises RuntimeError if a process ends, or after LONGEST_SECONDS."""

    def all_came() -> bool:
        for process in fleet:
            process.ready()  # raises if the process has ended
        return len(_results(kafka)) >= wanted

    wait_for(all_came, LONGEST_SECONDS, LOOK_SECONDS)


def _counted(ids: set[str], results: list[Message], letters: list[Message], arrived: Set[str]) -> Counted:
    return Counted(
        len(ids),
        Counter(str(read_result(one.value()).outcome) for one in results if _header(one, WEBHOOK_ID) in ids),
        Counter(_header(one, REASON) for one in letters if _header(one, WEBHOOK_ID) in ids),
        len(ids & arrived),
    )


def put(kafka: KafkaSettings, drawn: Iterable[Drawn]) -> set[str]:
    """Put the records on `model_requests`; return the `webhook-id` that each record's result must have."""
    lane, expected = kafka.topics.requests(), set[str]()
    topic_id = asyncio.run(topic_ids(kafka, [lane]))[lane]
    producer = Producer({**kafka.client_config(), "linger.ms": 20, "message.max.bytes": 2_000_000})
    for count, one in enumerate(drawn):

        def note(error: KafkaError | None, message: Message, value: bytes | None = one.value) -> None:
            if error is not None:
                raise RuntimeError(f"the broker refused a record: {error}")
            expected.add(Origin(topic_id, message.partition() or 0, message.offset() or 0).webhook_id(value))

        # the type stub wants str | bytes as value
        producer.produce(lane, one.value, partition=count % PARTITIONS, headers=one.headers, on_delivery=note)  # type: ignore[arg-type]
        producer.poll(0)
    if producer.flush(120):
        raise RuntimeError("not every record was taken by the broker")
    return expected


def _results(kafka: KafkaSettings) -> list[Message]:
    return committed_records(kafka.client_config(), kafka.topics.results)


def ids_of_results(kafka: KafkaSettings) -> Counter[str]:
    """Return the number of results of each `webhook-id`."""
    return Counter(_header(one, WEBHOOK_ID) for one in _results(kafka))


def ensure_one_each(expected: set[str], found: Counter[str]) -> None:
    """Raise NotSound unless each of the expected ids is found once, and no other id."""
    missing, others = expected - found.keys(), found.keys() - expected
    repeated = sum(1 for count in found.values() if count > 1)
    if missing or others or repeated:
        raise NotSound(
            f"of {len(expected)} records {len(missing)} have no result and {repeated} have more than one; "
            f"{len(others)} results are of no record"
        )


def _ensure_well(fleet: list[Command]) -> None:
    """Stop the fleet. Raises NotSound for defects or failing exit statuses, RuntimeError if a process ended early."""
    defects = sum(process.sample()["postback_handler_defects_total"] for process in fleet)
    wait_for(lambda: all(process.ready() for process in fleet), LONGEST_SECONDS)
    for process in fleet:
        process.stop()
    failed = [status for status in [process.wait() for process in fleet] if status]
    if defects or failed:
        raise NotSound(f"{defects:.0f} defects of handlers, exit statuses {failed}")


def _leads_to(result: Message, port: int) -> bool:
    return _header(result, CALLBACK_URL).startswith(f"http://127.0.0.1:{port}")


def _header(message: Message, name: str) -> str:
    headers: dict[str, bytes | None] = dict(message.headers() or ())  # type: ignore[arg-type]  # the stub: str too
    return (headers.get(name) or b"").decode()


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "-"


if __name__ == "__main__":
    main()
