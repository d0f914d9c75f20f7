"""Crash isolation: a record that kills its worker must not kill the fleet, and its neighbours must not be blamed.

After a crash nobody knows which of the records under way was to blame, so they are *suspects*. They are run in
*cohorts*, and who is in a cohort is committed before it is dispatched. A cohort that kills again is halved, until one
suspect runs *alone*: nothing else runs in its process. Only a suspect that killed while alone gets an attempt; at three
it is given up.

Two ways lead here. A partition whose last owner left it open brings its first window, and whatever was committed as
running. And a handler that raises HandlerCrashed (an engine process died) brings what it was running; then all this
happens in memory.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from workers.stage.partition import Partition
from workers.stage.progress import MAX_SUSPECTS, Suspect
from workers.stage.record import Record

ATTEMPTS_ALLOWED = 3


@dataclass(slots=True)
class Cohort:
    """Suspects that are tried together."""

    members: list[tuple[Partition, Record]]
    alone: bool
    narrow: bool = False
    """Whether its members were running when something died: then nothing new is started beside them."""
    waiting: set[tuple[Partition, int]] = field(default_factory=set)
    """Whose answers are not yet settled."""
    committed: bool = False
    dispatched: bool = False


class Isolation:
    """The suspects of one process, and the cohort that is being tried. Healthy operation never gets past `idle`."""

    def __init__(self) -> None:
        self._narrow: deque[tuple[Partition, Record]] = deque()
        """Suspects that were running when something died: run before all else, in halves, with nothing beside them."""
        self._wide: deque[tuple[Partition, Record]] = deque()
        """The first window of partitions that were left open: run in cohorts, beside everything else."""
        self._limit = MAX_SUSPECTS
        self._awaited: set[tuple[Partition, int]] = set()
        """Committed as running by another worker, and not yet delivered to this one."""
        self.cohort: Cohort | None = None
        self.condemned: list[tuple[Partition, Record, int]] = []
        """To be given up, with the attempts of each."""

    @property
    def idle(self) -> bool:
        """Whether nothing is suspected."""
        return self.cohort is None and not self._narrow and not self._wide and not self.condemned

    @property
    def exclusive(self) -> bool:
        """Whether records that are not suspected must wait."""
        return bool(self._narrow) or (self.cohort is not None and self.cohort.narrow)

    def opened(self, partition: Partition) -> None:
        """A partition brings what its last owner committed as running: that cohort killed, so it is halved."""
        self._start_anew_if_idle()
        running = [offset for offset, suspect in partition.suspects.items() if suspect.running]
        if len(running) == 1 and partition.alone:
            offset = running[0]
            partition.suspects[offset] = Suspect(partition.suspects[offset].attempts + 1, running=True)
        if running:
            self._halve(len(running))
        self._awaited.update((partition, offset) for offset in running)
        partition.alone = False

    def suspect(self, partition: Partition, record: Record) -> bool:
        """Ask about a record that was just taken; True: it is a suspect, and isolation's to dispatch."""
        self._awaited.discard((partition, record.offset))
        known = partition.suspects.get(record.offset)
        if known is not None:
            if known.attempts:
                self._halve(1)
            self._judge(partition, record, known.attempts)
        elif partition.careful_records > 0:
            partition.careful_records -= 1
            self._wide.append((partition, record))
        else:
            return False
        return True

    def crashed(self, casualties: list[tuple[Partition, Record]]) -> None:
        """Everything that was running in what died. Call it once per death, with all of them."""
        self._start_anew_if_idle()
        tried, self.cohort = self.cohort, None
        alone = tried is not None and tried.alone and tried.dispatched and len(casualties) == 1
        if tried is not None and not tried.dispatched:
            (self._narrow if tried.narrow else self._wide).extendleft(reversed(tried.members))
        self._halve(len(casualties))
        for partition, record in reversed(casualties):
            attempts = partition.suspects.get(record.offset, Suspect()).attempts + (1 if alone else 0)
            partition.suspects.pop(record.offset, None)
            if attempts:
                partition.suspects[record.offset] = Suspect(attempts)
            self._judge(partition, record, attempts, first=True)

    def next_cohort(self) -> Cohort | None:
        """Form the next cohort, once the last one is settled. Its suspicion is to be committed before its dispatch."""
        if self.cohort is not None:
            return self.cohort if not self.cohort.dispatched else None
        narrow = bool(self._narrow)
        pool, limit = (self._narrow, self._limit) if narrow else (self._wide, MAX_SUSPECTS)
        members = _draw(pool, limit)
        if not members:
            return None
        self.cohort = Cohort(members, alone=narrow and limit == 1, narrow=narrow)
        self.cohort.waiting = {(partition, record.offset) for partition, record in members}
        self._mark(self.cohort)
        return self.cohort

    def settled(self, partition: Partition, offset: int) -> None:
        """A record is settled; a cohort of which all are settled is acquitted."""
        if self.cohort is None:
            return
        self.cohort.waiting.discard((partition, offset))
        if not self.cohort.waiting:
            for member, _ in self.cohort.members:
                member.alone = False
            self.cohort = None

    def forget(self, partition: Partition) -> list[Record]:
        """A partition is going: its suspects are another worker's. Returns those that were not dispatched."""
        untried = [record for owner, record, _ in self.condemned if owner is partition]
        for pool in (self._narrow, self._wide):
            untried += [record for owner, record in pool if owner is partition]
            kept = [(owner, record) for owner, record in pool if owner is not partition]
            pool.clear()
            pool.extend(kept)
        self.condemned = [entry for entry in self.condemned if entry[0] is not partition]
        self._awaited = {entry for entry in self._awaited if entry[0] is not partition}
        if self.cohort is not None:
            members = [record for owner, record in self.cohort.members if owner is partition]
            untried += [] if self.cohort.dispatched else members
            self.cohort.members = [entry for entry in self.cohort.members if entry[0] is not partition]
            self.cohort.waiting = {entry for entry in self.cohort.waiting if entry[0] is not partition}
            if not self.cohort.waiting:
                self.cohort = None
        return untried

    def _judge(self, partition: Partition, record: Record, attempts: int, *, first: bool = False) -> None:
        if attempts >= ATTEMPTS_ALLOWED:
            self.condemned.append((partition, record, attempts))
        elif first:
            self._narrow.appendleft((partition, record))
        else:
            self._narrow.append((partition, record))

    def _start_anew_if_idle(self) -> None:
        if self.idle and not self._awaited:
            self._limit = MAX_SUSPECTS

    def _halve(self, size: int) -> None:
        self._limit = max(1, min(self._limit, (size + 1) // 2 if size > 1 else 1))

    def _mark(self, cohort: Cohort) -> None:
        """Write down, where it will be committed, who is being tried; suspicion of an earlier cohort is lifted."""
        for partition in {partition for partition, _ in cohort.members}:
            partition.alone = cohort.alone
            partition.suspects = {
                offset: Suspect(suspect.attempts) for offset, suspect in partition.suspects.items() if suspect.attempts
            }
        for partition, record in cohort.members:
            attempts = partition.suspects.get(record.offset, Suspect()).attempts
            partition.suspects[record.offset] = Suspect(attempts, running=True)


def _draw(pool: deque[tuple[Partition, Record]], limit: int) -> list[tuple[Partition, Record]]:
    """Take up to `limit` suspects from the front, as far as their partitions' commits have room for them.

    A commit has room for MAX_SUSPECTS, and those with attempts are in it already.
    """
    drawn: list[tuple[Partition, Record]] = []
    named: dict[Partition, set[int]] = {}
    while pool and len(drawn) < limit:
        partition, record = pool[0]
        offsets = named.setdefault(partition, {o for o, suspect in partition.suspects.items() if suspect.attempts})
        if drawn and len(offsets | {record.offset}) > MAX_SUSPECTS:
            break
        offsets.add(record.offset)
        drawn.append(pool.popleft())
    return drawn
