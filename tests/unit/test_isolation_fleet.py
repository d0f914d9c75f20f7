"""Crash isolation across successive workers: every record that kills is given up, and no other record is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.drawn import drawn
from tests.unit.isolation_rig import NO_BOUND, opened, record, taken
from workers.stage.isolation import ATTEMPTS_ALLOWED, Isolation
from workers.stage.partition import Partition
from workers.stage.progress import Progress
from workers.stage.record import Record


@dataclass
class Fleet:
    """Successive workers on the same partitions, each of which uses Isolation like the stage."""

    jobs: list[int]
    """Number of jobs by partition."""
    killers: set[tuple[int, int]]
    delay: int
    """Number of turns from a killer's dispatch until the killer kills."""
    slow: set[tuple[int, int]]
    """Records that run until no other record can run, or until a killer kills the process."""
    window: int
    kills: Literal["worker", "engine"]
    committed: dict[int, Progress] = field(default_factory=dict)
    outcomes: dict[tuple[int, int], str] = field(default_factory=dict)
    deaths: int = 0
    passers_by: int = 0

    def run(self, most_deaths: int) -> None:
        while len(self.outcomes) < sum(self.jobs):
            assert self.deaths <= most_deaths, "it does not come to an end"
            self._life()

    def _life(self) -> None:
        isolation = Isolation()
        partitions = {n: opened(n, self.committed.get(n), self.window) for n, jobs in enumerate(self.jobs) if jobs}
        parked: list[tuple[Partition, Record]] = []
        for partition in partitions.values():
            isolation.opened(partition)
            self._commit(isolation, partition, [])
        for partition in partitions.values():
            offsets = [o for o in range(self.jobs[partition.number]) if (partition.number, o) not in self.outcomes]
            free = set(taken(isolation, partition, offsets))
            parked += [(partition, record(offset, partition)) for offset in free]
        running: list[tuple[Partition, Record]] = []
        fuses: dict[tuple[int, int], int] = {}
        while len(self.outcomes) < sum(self.jobs):
            before = len(self.outcomes)
            batch = self._batch(isolation, parked, beside=len(running))
            if isolation.needs_others and not (batch or running or parked):
                self.passers_by += 1
                assert self.passers_by <= 2 * len(self.killers), "others complete, and a suspect goes on waiting"
                isolation.completed()  # this call stands for a new job that comes and is answered
                continue
            assert not isolation.sick
            assert batch or running or len(self.outcomes) > before, "nothing runs, and not everything is done"
            running += batch
            fuses = {place: turns - 1 for place, turns in fuses.items()}
            places = ((partition.number, one.offset) for partition, one in batch)
            fuses |= {place: self.delay for place in places if place in self.killers}
            if 0 in fuses.values():
                self.deaths += 1
                fuses.clear()
                if self.kills == "worker":
                    return
                isolation.crashed(running)
                running = []
                continue
            going_on = fuses.keys() | (self.slow if batch else set())
            ended = [(owner, one) for owner, one in running if (owner.number, one.offset) not in going_on]
            running = [entry for entry in running if entry not in ended]
            for partition, one in ended:
                self._end(isolation, partition, one.offset, "answered")

    def _batch(
        self, isolation: Isolation, parked: list[tuple[Partition, Record]], beside: int
    ) -> list[tuple[Partition, Record]]:
        """Give up condemned records, then return the records to dispatch. `beside` records run already."""
        batch: list[tuple[Partition, Record]] = []
        if not isolation.idle:
            condemned, isolation.condemned = isolation.condemned, []
            for partition, one, attempts in condemned:
                self._end(isolation, partition, one.offset, f"given up after {attempts}")
            cohort = isolation.next_cohort(NO_BOUND)
            if cohort is not None and not (cohort.alone and beside):
                for partition in {owner for owner, _ in cohort.members}:
                    self._commit(isolation, partition, [])
                cohort.committed = cohort.dispatched = True
                batch += cohort.members
        if not isolation.exclusive:
            free = max(0, self.window - len(batch) - beside)
            batch += parked[:free]
            del parked[:free]
        return batch

    def _end(self, isolation: Isolation, partition: Partition, offset: int, outcome: str) -> None:
        place = (partition.number, offset)
        assert place not in self.outcomes, "handled twice"
        self.outcomes[place] = outcome
        if outcome == "answered":
            isolation.completed()
        self._commit(isolation, partition, [offset])

    def _commit(self, isolation: Isolation, partition: Partition, offsets: list[int]) -> None:
        progress = partition.progress(offsets)
        self.committed[partition.number] = Progress.decode(progress.base, progress.encode())
        partition.settle(offsets, partition.progress(offsets))
        for offset in offsets:
            isolation.settled(partition, offset)


@settings(max_examples=drawn(150))
@given(data=st.data(), kills=st.sampled_from(["worker", "engine"]))
def test_every_killer_is_given_up_after_three_attempts_and_no_other_record(
    data: st.DataObject, kills: Literal["worker", "engine"]
) -> None:
    jobs = data.draw(st.lists(st.integers(0, 90), min_size=1, max_size=3), label="jobs")
    places = [(number, offset) for number, count in enumerate(jobs) for offset in range(count)]
    killers = data.draw(st.sets(st.sampled_from(places), max_size=3) if places else st.just(set()), label="killers")
    slow = data.draw(st.sets(st.sampled_from(places), max_size=40) if places else st.just(set()), label="slow")
    delay = data.draw(st.integers(0, 4), label="delay")
    fleet = Fleet(jobs, killers, delay, slow, data.draw(st.integers(1, 200), label="window"), kills)
    fleet.run(most_deaths=12 * len(killers))
    assert fleet.outcomes == {
        place: f"given up after {ATTEMPTS_ALLOWED}" if place in killers else "answered" for place in places
    }
