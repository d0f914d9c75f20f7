"""Crash isolation: a record that kills its worker must not kill the fleet, and its neighbours must not be blamed.

After a crash any record in work may be to blame, so all of them are *suspects*. Suspects run in *cohorts*, and the
members of a cohort are committed before it is dispatched. A cohort that kills again is halved, until one suspect runs
*alone*: nothing else runs in its process. Only a suspect that killed while alone gets an attempt; at three attempts it
is given up.

Suspects come from two places. A partition that its last owner left open brings its first window, and the records that
were committed as running. A handler that raises HandlerCrashed (an engine process died) brings the records that it ran;
then all of this happens in memory.

First windows are tried beside all other records, MAX_SUSPECTS of each partition at once: so many fit into its commit.
New members take the places of settled ones, since a callback to a server that hangs must not hold up thousands of
others. Records that were running in a crash are tried strictly one cohort after the other.

A sick machine kills at every record, and none is to blame. So the third attempt waits until another record has
completed since the last death; without such a completion, a death does not count as the third attempt. The process is
`sick` once DEATHS_IN_A_ROW records have died alone while none completed, or once a record has died that was tried for
lack of others. It then ends, and the records stay in Kafka for other workers.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field

from workers.stage.partition import Partition
from workers.stage.progress import MAX_SUSPECTS, Suspect
from workers.stage.record import Record

ATTEMPTS_ALLOWED = 3
DEATHS_IN_A_ROW = 4
"""Deaths of different records that ran alone, while none completed. Three killers side by side count as killers."""
MAX_ATTEMPTED = MAX_SUSPECTS // 2
"""The most records of a partition with attempts. Each has a place in every commit until it is settled; cohorts have
the others."""


@dataclass(slots=True, eq=False)
class Cohort:
    """Suspects that are tried together."""

    members: list[tuple[Partition, Record]]
    alone: bool
    narrow: bool = False
    """True if the members were running in a crash: then nothing new is started beside them."""
    waiting: set[tuple[Partition, int]] = field(default_factory=set)
    """Members that are not settled yet."""
    committed: bool = False
    dispatched: bool = False


class Isolation:
    """The suspects of one process, and the cohorts that are being tried. A healthy process asks for `idle` only."""

    def __init__(self) -> None:
        self._narrow: deque[tuple[Partition, Record]] = deque()
        """Suspects that were running in a crash: they run before all others, in halves, with nothing beside them."""
        self._wide: dict[Partition, deque[Record]] = {}
        """The first window of each partition that was left open: its cohorts run beside all other records. No queue is
        empty, and the partition that was drawn from last stands last."""
        self._last: deque[tuple[Partition, Record]] = deque()
        """Suspects before their last attempt: they wait until another record has completed, and hold up no other."""
        self._healthy = False
        """True if a record has completed since the last death, or since this process began."""
        self._died_alone: set[tuple[Partition, int]] = set()
        """Records that have died alone since a record completed last."""
        self._for_lack_of_others = False
        """True if a last attempt is under way although no other record has completed."""
        self.sick = False
        """True if the machine is to blame, and not the records."""
        self._limit = MAX_SUSPECTS
        self._awaited: set[tuple[Partition, int]] = set()
        """Records that another worker committed as running, and that were not delivered to this one yet."""
        self.cohorts: list[Cohort] = []
        """Cohorts with unsettled members: one whose members ran in a crash, or several of first windows. Only the last
        one may wait for its dispatch."""
        self.condemned: list[tuple[Partition, Record, int]] = []
        """Records to be given up, with the attempts of each."""

    @property
    def idle(self) -> bool:
        """True if there is no suspect."""
        return not (self.cohorts or self._narrow or self._wide or self._last or self.condemned)

    @property
    def exclusive(self) -> bool:
        """True if records that are no suspects must wait."""
        return bool(self._narrow) or any(cohort.narrow for cohort in self.cohorts)

    @property
    def needs_others(self) -> bool:
        """True if every suspect waits for another record to complete before its last attempt."""
        return bool(self._last) and not (self._healthy or self.cohorts or self._narrow or self._wide or self.condemned)

    @property
    def announced(self) -> Cohort | None:
        """The cohort whose suspicion is to be committed."""
        return self.cohorts[-1] if self.cohorts and not self.cohorts[-1].committed else None

    def involves(self, partition: Partition) -> bool:
        """Return whether records of the partition are suspects, or will be when they come."""
        if partition.careful_records or any(suspect.running for suspect in partition.suspects.values()):
            return True
        suspected = {*self._wide, *self._tried(), *(owner for owner, _ in (*self._narrow, *self._last))}
        suspected.update(owner for owner, _, _ in self.condemned)
        return partition in suspected

    def opened(self, partition: Partition) -> None:
        """Take over the suspects that the last owner committed as running: their cohort killed, and is halved."""
        self._start_anew_if_calm()
        running = [offset for offset, suspect in partition.suspects.items() if suspect.running]
        if len(running) == 1 and partition.alone:
            offset = running[0]
            attempts = partition.suspects[offset].attempts
            partition.suspects[offset] = Suspect(attempts + _has_room(partition, attempts), running=True)
        if running:
            self._halve(len(running))
        self._awaited.update((partition, offset) for offset in running)
        partition.alone = False

    def suspect(self, partition: Partition, record: Record) -> bool:
        """Return True if a record that was just taken is a suspect; it is then dispatched from here."""
        self._awaited.discard((partition, record.offset))
        known = partition.suspects.get(record.offset)
        if known is not None:
            if 0 < known.attempts < ATTEMPTS_ALLOWED - 1:
                self._halve(1)
            self._judge(partition, record, known.attempts)
        elif partition.careful_records > 0:
            partition.careful_records -= 1
            self._wide.setdefault(partition, deque()).append(record)
        else:
            return False
        return True

    def end_first_window(self, partition: Partition) -> None:
        """Suspect no further record of the partition: its last owner cannot have begun those that are still to come."""
        partition.careful_records = 0

    def completed(self) -> None:
        """Note that a record has completed: the engine works."""
        self._healthy, self._for_lack_of_others = True, False
        self._died_alone.clear()

    def crashed(self, casualties: list[tuple[Partition, Record]]) -> None:
        """Suspect the records that were running in a crash. Call it once per death, with all of them."""
        self._start_anew_if_calm()
        tried, self.cohorts = self.cohorts, []
        alone = len(casualties) == 1 and any(cohort.alone and cohort.dispatched for cohort in tried)
        healthy, self._healthy = self._healthy, False
        if alone and not healthy:
            self._died_alone.update((partition, record.offset) for partition, record in casualties)
            self.sick = self._for_lack_of_others or len(self._died_alone) >= DEATHS_IN_A_ROW
        for cohort in tried:
            if not cohort.dispatched:
                self._put_back(cohort)
        self._halve(len(casualties))
        for partition, record in reversed(casualties):
            attempts = partition.suspects.pop(record.offset, Suspect()).attempts
            if alone and _counts(attempts, healthy=healthy):
                attempts += _has_room(partition, attempts)
            if attempts:
                partition.suspects[record.offset] = Suspect(attempts)
            self._judge(partition, record, attempts, first=not alone)
        waiting, self._narrow = self._narrow, deque()
        for partition, record in waiting:  # the next one may have to wait for another completion
            self._judge(partition, record, partition.suspects.get(record.offset, Suspect()).attempts)

    def try_anyway(self) -> None:
        """Let a suspect have its last attempt although no record completes: there may be no other for days."""
        self._for_lack_of_others = True
        self._try_last()

    def _try_last(self) -> None:
        self._narrow.append(self._last.popleft())
        self._limit = 1

    def next_cohort(self, room: int) -> Cohort | None:
        """Return the cohort to dispatch next, if any. Its members have to be committed as running before that.

        `room`: how many records of first windows the handler may be given now.
        """
        if self.cohorts and not self.cohorts[-1].dispatched:
            return self.cohorts[-1]
        if self._last and self._healthy and not self.exclusive:
            self._try_last()
        if self.cohorts and self.exclusive:
            return None  # not even suspects run beside those that ran in a crash
        narrow = bool(self._narrow)
        members = self._draw_narrow() if narrow else self._draw_wide(room)
        if not members:
            return None
        cohort = Cohort(members, alone=narrow and self._limit == 1, narrow=narrow)
        cohort.waiting = {(partition, record.offset) for partition, record in members}
        self.cohorts.append(cohort)
        self._mark(cohort)
        return cohort

    def settled(self, partition: Partition, offset: int) -> None:
        """Note that a record is settled; a cohort without unsettled members is acquitted."""
        for cohort in list(self.cohorts):
            cohort.waiting.discard((partition, offset))
            if not cohort.waiting:
                for member, _ in cohort.members:
                    member.alone = False
                self.cohorts.remove(cohort)

    def forget(self, partition: Partition) -> list[Record]:
        """Forget the suspects of a partition that goes to another worker. Returns those that were not dispatched."""
        untried = [record for owner, record, _ in self.condemned if owner is partition]
        untried += [record for owner, record in (*self._narrow, *self._last) if owner is partition]
        untried += self._wide.pop(partition, ())
        self._narrow = deque(entry for entry in self._narrow if entry[0] is not partition)
        self._last = deque(entry for entry in self._last if entry[0] is not partition)
        self.condemned = [entry for entry in self.condemned if entry[0] is not partition]
        self._awaited = {entry for entry in self._awaited if entry[0] is not partition}
        for cohort in self.cohorts:
            members = [record for owner, record in cohort.members if owner is partition]
            untried += [] if cohort.dispatched else members
            cohort.members = [entry for entry in cohort.members if entry[0] is not partition]
            cohort.waiting = {entry for entry in cohort.waiting if entry[0] is not partition}
        self.cohorts = [cohort for cohort in self.cohorts if cohort.waiting]
        return untried

    def _judge(self, partition: Partition, record: Record, attempts: int, *, first: bool = False) -> None:
        if attempts >= ATTEMPTS_ALLOWED:
            self.condemned.append((partition, record, attempts))
        elif attempts == ATTEMPTS_ALLOWED - 1:
            self._last.append((partition, record))
        elif first:
            self._narrow.appendleft((partition, record))
        else:
            self._narrow.append((partition, record))

    def _start_anew_if_calm(self) -> None:
        if not (self.exclusive or self._awaited):
            self._limit = MAX_SUSPECTS

    def _halve(self, size: int) -> None:
        self._limit = max(1, min(self._limit, (size + 1) // 2 if size > 1 else 1))

    def _put_back(self, cohort: Cohort) -> None:
        """Make the members of a cohort that was not dispatched the next to be tried."""
        if cohort.narrow:
            self._narrow.extendleft(reversed(cohort.members))
            return
        for partition, record in reversed(cohort.members):
            self._wide.setdefault(partition, deque()).appendleft(record)

    def _tried(self) -> defaultdict[Partition, set[int]]:
        """Return the offsets that are in a cohort and not settled."""
        tried: defaultdict[Partition, set[int]] = defaultdict(set)
        for cohort in self.cohorts:
            for partition, offset in cohort.waiting:
                tried[partition].add(offset)
        return tried

    def _mark(self, cohort: Cohort) -> None:
        """Mark the members as running in their partitions' progress, and clear earlier members that are settled."""
        tried = self._tried()
        for partition in {partition for partition, _ in cohort.members}:
            partition.alone = cohort.alone and all(
                _counts(owner.suspects.get(record.offset, Suspect()).attempts, healthy=self._healthy)
                for owner, record in cohort.members
            )
            partition.suspects = {
                offset: Suspect(suspect.attempts, running=offset in tried[partition])
                for offset, suspect in partition.suspects.items()
                if suspect.attempts or offset in tried[partition]
            }
        for partition, record in cohort.members:
            attempts = partition.suspects.get(record.offset, Suspect()).attempts
            partition.suspects[record.offset] = Suspect(attempts, running=True)

    def _draw_narrow(self) -> list[tuple[Partition, Record]]:
        """Take up to a cohort of suspects from the front, as far as their partitions' commits have room."""
        drawn: list[tuple[Partition, Record]] = []
        named = self._named()
        while self._narrow and len(drawn) < self._limit:
            partition, record = self._narrow[0]
            if (drawn or self.cohorts) and len(named[partition] | {record.offset}) > MAX_SUSPECTS:
                break
            named[partition].add(record.offset)
            drawn.append(self._narrow.popleft())
        return drawn

    def _draw_wide(self, room: int) -> list[tuple[Partition, Record]]:
        """Take up to `room` records of first windows, as far as the commit of each partition has room."""
        drawn: list[tuple[Partition, Record]] = []
        named = self._named() if self._wide else {}
        for partition in list(self._wide):
            places = min(MAX_SUSPECTS - len(named[partition]), room - len(drawn))
            if places <= 0:
                continue
            queue = self._wide.pop(partition)
            drawn += [(partition, queue.popleft()) for _ in range(min(places, len(queue)))]
            if queue:
                self._wide[partition] = queue
        return drawn

    def _named(self) -> defaultdict[Partition, set[int]]:
        """Return the offsets that each partition's commit names: those that are tried, and those with attempts."""
        named = self._tried()
        for partition in {*named, *self._wide, *(partition for partition, _ in self._narrow)}:
            named[partition].update(offset for offset, suspect in partition.suspects.items() if suspect.attempts)
        return named


def _counts(attempts: int, *, healthy: bool) -> bool:
    """Return whether killing alone counts as an attempt. The last attempt requires another record's completion."""
    return healthy or attempts < ATTEMPTS_ALLOWED - 1


def _has_room(partition: Partition, attempts: int) -> bool:
    """Return whether the partition's commits have room for one more attempt of a record with `attempts`."""
    return attempts > 0 or sum(suspect.attempts > 0 for suspect in partition.suspects.values()) < MAX_ATTEMPTED
