"""Crash isolation: a record that kills its worker must not kill the fleet, and no innocent record must be given up.

After a crash each running record may be to blame, so all running records become *suspects*. The stage tries suspects in
*cohorts*, and commits the members of a cohort before dispatching the cohort. A cohort that kills again is halved, until
one suspect runs *alone*: its process runs nothing else. If a suspect kills while it runs alone, this counts as an
*attempt*; after three attempts the stage gives the suspect up.

Suspects have two sources. First, a partition that its last owner left open: its first window is suspect, and so are the
records committed as running. Second, a handler that raises HandlerCrashed because an engine process died: the records
of this engine are suspect, and are tried without a restart of the worker.

First windows are tried beside all other records, at most MAX_SUSPECTS of each partition at once, because a commit
cannot name more. New members replace settled members at once, so a callback to a server that hangs does not hold up
thousands of records. Records that were running in a crash are tried strictly one cohort after the other.

A sick machine kills its process at every record, and no record is to blame. So the third attempt waits until another
record has completed since the last death. If the third attempt could not wait, a death in it is not counted as an
attempt. The process is `sick` when DEATHS_IN_A_ROW records have died alone while no record completed. The process is
also `sick` when a record has died in a last attempt that did not wait for another record. A sick process ends, and
other workers take the records from Kafka.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field

from workers.stage.partition import Partition
from workers.stage.progress import MAX_SUSPECTS, Suspect
from workers.stage.record import Record

ATTEMPTS_ALLOWED = 3
DEATHS_IN_A_ROW = 4
"""The machine is to blame if this many different records have died alone, and no record has completed in between.

Up to three such deaths are blamed on the records, and further ones on the machine.
"""
MAX_ATTEMPTED = MAX_SUSPECTS // 2
"""Cap on the number of records in a partition that have attempts.

Each such record takes one of a commit's MAX_SUSPECTS places until it is settled; the other places are for cohorts.
"""


@dataclass(slots=True, eq=False)
class Cohort:
    """Suspects that are tried together."""

    members: list[tuple[Partition, Record]]
    alone: bool
    narrow: bool = False
    """True if the members were running in a crash. No other record is dispatched until the cohort is settled."""
    waiting: set[tuple[Partition, int]] = field(default_factory=set)
    """Members that are not settled yet."""
    committed: bool = False
    dispatched: bool = False


class Isolation:
    """The suspects of one process, and the cohorts that are being tried. Without suspects, `idle` is True."""

    def __init__(self) -> None:
        self._narrow: deque[tuple[Partition, Record]] = deque()
        """Suspects that were running in a crash. Their cohorts run one at a time, and no other record runs
        meanwhile."""
        self._wide: dict[Partition, deque[Record]] = {}
        """The first windows of partitions that were left open. Cohorts of first windows run beside all other records.

        Empty queues are removed; the partition drawn from most recently is the last key."""
        self._last: deque[tuple[Partition, Record]] = deque()
        """Suspects before their last attempt, waiting until another record completes. Other records run meanwhile."""
        self._healthy = False
        """True if a record has completed since the last death, or since the start if no death occurred."""
        self._died_alone: set[tuple[Partition, int]] = set()
        """Records that have died alone since the last completion."""
        self._for_lack_of_others = False
        """True if a last attempt is under way although no other record has completed."""
        self.sick = False
        """True if the machine is to blame, and not the records."""
        self._limit = MAX_SUSPECTS
        self._awaited: set[tuple[Partition, int]] = set()
        """Records that another worker committed as running, and that Kafka has not yet delivered to this worker."""
        self.cohorts: list[Cohort] = []
        """Cohorts with unsettled members: one narrow cohort, or several cohorts of first windows. Only the last cohort
        may be undispatched."""
        self.condemned: list[tuple[Partition, Record, int]] = []
        """Records to give up, each with its attempts."""

    @property
    def idle(self) -> bool:
        """True if there is no suspect."""
        return not (self.cohorts or self._narrow or self._wide or self._last or self.condemned)

    @property
    def exclusive(self) -> bool:
        """True if records that are not suspects must wait."""
        return bool(self._narrow) or any(cohort.narrow for cohort in self.cohorts)

    @property
    def needs_others(self) -> bool:
        """True if every suspect waits for another record to complete before its last attempt."""
        return bool(self._last) and not (self._healthy or self.cohorts or self._narrow or self._wide or self.condemned)

    @property
    def announced(self) -> Cohort | None:
        """The cohort whose members the next transaction has to commit as running."""
        return self.cohorts[-1] if self.cohorts and not self.cohorts[-1].committed else None

    def involves(self, partition: Partition) -> bool:
        """Return whether the partition has suspects, or its next records will be suspects."""
        if partition.careful_records or any(suspect.running for suspect in partition.suspects.values()):
            return True
        suspected = {*self._wide, *self._tried(), *(owner for owner, _ in (*self._narrow, *self._last))}
        suspected.update(owner for owner, _, _ in self.condemned)
        return partition in suspected

    def opened(self, partition: Partition) -> None:
        """Adopt suspects that the last owner committed as running.

        These suspects killed the last owner, so cohorts are halved.
        """
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
        """Return True if a record that was just taken is a suspect. Suspects are queued here, not in the window."""
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
        """Suspect no further record of the partition: the last owner cannot have begun records that come later."""
        partition.careful_records = 0

    def completed(self) -> None:
        """Note that a record has completed, which shows that the engine works."""
        self._healthy, self._for_lack_of_others = True, False
        self._died_alone.clear()

    def crashed(self, casualties: list[tuple[Partition, Record]]) -> None:
        """Suspect `casualties`: all records that were running in one crash."""
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
        for partition, record in waiting:  # before its last attempt, a suspect has to wait for another completion
            self._judge(partition, record, partition.suspects.get(record.offset, Suspect()).attempts)

    def try_anyway(self) -> None:
        """Start a suspect's last attempt without waiting for another record, which may arrive only days later."""
        self._for_lack_of_others = True
        self._try_last()

    def _try_last(self) -> None:
        self._narrow.append(self._last.popleft())
        self._limit = 1

    def next_cohort(self, room: int) -> Cohort | None:
        """Return the cohort to dispatch next, if any. Before dispatching, the caller commits the members as running.

        `room` is the largest number of records to draw from first windows.
        """
        if self.cohorts and not self.cohorts[-1].dispatched:
            return self.cohorts[-1]
        if self._last and self._healthy and not self.exclusive:
            self._try_last()
        if self.cohorts and self.exclusive:
            return None  # a suspect that was running in a crash runs with no other record
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
        """Note that a record is settled. A cohort whose members are all settled killed no worker, and is removed."""
        for cohort in list(self.cohorts):
            cohort.waiting.discard((partition, offset))
            if not cohort.waiting:
                for member, _ in cohort.members:
                    member.alone = False
                self.cohorts.remove(cohort)

    def forget(self, partition: Partition) -> list[Record]:
        """Forget the suspects of a partition that another worker gets. Returns the undispatched suspects."""
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
        """Put the members of an undispatched cohort back to the front of their queue."""
        if cohort.narrow:
            self._narrow.extendleft(reversed(cohort.members))
            return
        for partition, record in reversed(cohort.members):
            self._wide.setdefault(partition, deque()).appendleft(record)

    def _tried(self) -> defaultdict[Partition, set[int]]:
        """Return the unsettled offsets of all cohorts, by partition."""
        tried: defaultdict[Partition, set[int]] = defaultdict(set)
        for cohort in self.cohorts:
            for partition, offset in cohort.waiting:
                tried[partition].add(offset)
        return tried

    def _mark(self, cohort: Cohort) -> None:
        """Mark the members as running in the partitions' progress, and remove the marks of settled members."""
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
        """Draw a cohort from the front of the queue: as many suspects as the size limit and the commits allow."""
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
        """Draw up to `room` records of first windows. The commit of each partition bounds its part."""
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
        """Return the offsets that each partition's commit names: members of cohorts, and records with attempts."""
        named = self._tried()
        for partition in {*named, *self._wide, *(partition for partition, _ in self._narrow)}:
            named[partition].update(offset for offset, suspect in partition.suspects.items() if suspect.attempts)
        return named


def _counts(attempts: int, *, healthy: bool) -> bool:
    """Return whether the death of a record that ran alone is counted as an attempt.

    The last attempt is counted only if `healthy`.
    """
    return healthy or attempts < ATTEMPTS_ALLOWED - 1


def _has_room(partition: Partition, attempts: int) -> bool:
    """Return whether the partition's commits have room for one more attempt of a record that has `attempts` so far."""
    return attempts > 0 or sum(suspect.attempts > 0 for suspect in partition.suspects.values()) < MAX_ATTEMPTED
