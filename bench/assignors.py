"""Counts the partitions that Kafka's assignors move, and measures how they spread topics: `python -m bench.assignors`.

Members of a KIP-848 group join and leave, one at a time. The group reads a worker's topics (two lanes) or a delivery
process's (results and tiers). After each step, the bench compares each partition's owner with the owner before. A move
is *needed* if the owner left, or if the newcomer would otherwise have less than its share. Any other move is useless,
and costs a drain of the partition.

*Largest part* is the largest part of one topic that a single member has, as a multiple of an equal part. At 2.0, one of
two members has the whole topic, which matters if this topic is busy and another is empty.
"""

from __future__ import annotations

import argparse
import time
import uuid
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass

from confluent_kafka import Consumer
from confluent_kafka.admin import AdminClient, NewTopic

from bench.fleet import Kafka, broker
from bench.result import figure, parsed, table, title

ASSIGNORS = ("range", "uniform")
SHAPES = {"worker": (2, 12), "delivery": (9, 12), "seven topics of six": (7, 6)}
"""Number of topics, and number of partitions of each topic."""
STEPS = ((2, 3), (3, 2), (8, 9), (9, 8))
"""Numbers of members before and after a step."""
STEADY_SECONDS = 4.0
"""The owners count as final after this many seconds (four heartbeats) without a change."""
MOST_SECONDS = 120.0

Place = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Step:
    """The effect of one member's joining or leaving."""

    moved: int
    needed: int
    largest_part: float
    spread: int
    """The largest number of partitions of one member, over all topics, minus the smallest such number."""


class Members:
    """A group's members, which one thread polls in turn."""

    def __init__(self, used: Kafka, assignor: str, topics: Sequence[str]) -> None:
        self._config = {
            "bootstrap.servers": used.servers,
            "group.id": f"group-{uuid.uuid4().hex[:8]}",
            "group.protocol": "consumer",
            "group.remote.assignor": assignor,
            "enable.auto.commit": False,
        }
        self._topics = list(topics)
        self._consumers: dict[int, Consumer] = {}
        self._joined = 0

    def join(self) -> None:
        """Add a member."""
        consumer = Consumer(self._config)
        consumer.subscribe(self._topics)
        self._consumers[self._joined] = consumer
        self._joined += 1

    def leave(self) -> None:
        """Close the member in the middle of the list."""
        names = sorted(self._consumers)
        self._consumers.pop(names[len(names) // 2]).close()

    def owners(self, partitions: int) -> dict[Place, int]:
        """Return each partition's owner, after no owner has changed for STEADY_SECONDS."""
        last, since, end = self._owners(), time.monotonic(), time.monotonic() + MOST_SECONDS
        while time.monotonic() < end:
            for consumer in self._consumers.values():
                consumer.poll(0.01)
            found = self._owners()
            if found != last or len(found) != partitions:
                last, since = found, time.monotonic()
            elif time.monotonic() - since > STEADY_SECONDS:
                return found
        raise RuntimeError(f"the group did not come to rest: {len(last)} of {partitions} partitions have an owner")

    def _owners(self) -> dict[Place, int]:
        return {
            (place.topic, place.partition): name
            for name, consumer in self._consumers.items()
            for place in consumer.assignment()
        }

    @property
    def names(self) -> set[int]:
        """Names of the current members."""
        return set(self._consumers)

    def close(self) -> None:
        """Close all members."""
        for consumer in self._consumers.values():
            consumer.close()


def compared(before: Mapping[Place, Hashable], after: Mapping[Place, Hashable], members: Set[Hashable]) -> Step:
    """Compare two assignments. `members` are the members after the change."""
    moved = sum(after[place] != owner for place, owner in before.items())
    orphaned = sum(owner not in members for owner in before.values())
    newcomers = members - set(before.values())
    needed = orphaned or len(newcomers) * (len(after) // len(members))
    topics = Counter(topic for topic, _ in after)
    parts = Counter((topic, owner) for (topic, _), owner in after.items())
    largest = max(count / max(1.0, topics[topic] / len(members)) for (topic, _), count in parts.items())
    totals = Counter(after.values())
    spread = max(totals.values()) - min(totals[name] for name in members)
    return Step(moved, needed, largest, spread)


@contextmanager
def topics_of(used: Kafka, count: int, partitions: int) -> Iterator[list[str]]:
    """Create topics for this measurement, and delete them afterwards."""
    admin = AdminClient({"bootstrap.servers": used.servers})
    prefix = f"a{uuid.uuid4().hex[:8]}"
    names = [f"{prefix}.{number}" for number in range(count)]
    for made in admin.create_topics([NewTopic(name, partitions, 1) for name in names]).values():
        made.result(60)
    yield names
    for gone in admin.delete_topics(names).values():
        gone.result(60)


def measure(used: Kafka, assignor: str, topics: Sequence[str], partitions: int) -> Iterator[tuple[str, Step]]:
    """Yield each step's name and effect."""
    members = Members(used, assignor, topics)
    try:
        for before, after in STEPS:
            while len(members.names) < before:
                members.join()
            owners = members.owners(partitions)
            if after > before:
                members.join()
            else:
                members.leave()
            yield f"{before} to {after} members", compared(owners, members.owners(partitions), members.names)
    finally:
        members.close()


def main() -> None:
    """Measure both assignors with each shape, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bootstrap-servers", help="a Kafka to use instead of a fresh one")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    options = parsed(parser)
    title("partitions that move when members join and leave, and how a topic is spread over members")
    rows, found = [], dict[tuple[str, str], list[Step]]()
    with broker(options.bootstrap_servers) as used:
        for shape in options.shapes:
            count, each = SHAPES[shape]
            for assignor in ASSIGNORS:
                with topics_of(used, count, each) as topics:
                    for name, step in measure(used, assignor, topics, count * each):
                        moved = f"{step.moved} of {count * each} ({step.needed})"
                        rows.append((shape, assignor, name, moved, f"{step.largest_part:.1f}", step.spread))
                        found.setdefault((shape, assignor), []).append(step)
                        print(*rows[-1], flush=True)
    head = ("topics of", "assignor", "step", "moved (needed)", "largest part of a topic", "spread over members")
    table(head, rows)
    for shape in options.shapes:
        steps = [found[shape, assignor] for assignor in ASSIGNORS]
        moved = ", ".join(str(sum(step.moved for step in some)) for some in steps)
        largest = ", ".join(f"{max(step.largest_part for step in some):.1f}" for some in steps)
        names = ", ".join(ASSIGNORS)
        needed = sum(step.needed for step in steps[0])
        figure(f"topics of {shape}: partitions moved by {len(STEPS)} changes, {needed} needed: {names}", moved)
        figure(f"topics of {shape}: the largest part of one topic, 1.0 being equal: {names}", largest)


if __name__ == "__main__":
    main()
