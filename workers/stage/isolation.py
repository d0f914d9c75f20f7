"""Crash isolation: a record that kills its worker must not kill the fleet, and no innocent record must be given up.

After a crash each running record may be to blame, so all running records become *suspects*. The stage tries suspects in
*cohorts*, and commits the members of a cohort before dispatching the cohort. A cohort that kills again is halved, until
one suspect runs *alone*: its process runs nothing else. If a suspect kills while it runs alone, this counts as an
*attempt*; after three attempts the stage gives the suspect up. A suspect with attempts always runs alone. Suspects that
were in no cohort that killed stay in cohorts of full size, so one killer does not slow down the records beside it.

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
    most: int = MAX_SUSPECTS
    """Cap on the size of the next cohort of these members, if this cohort is not dispatched."""
    narrow: bool = False
    """True if the members were running in a crash. No other record is dispatched until the cohort is settled."""
    waiting: set[tuple[Partition, int]] = field(default_factory=set)
    """Members that are not settled yet."""
    committed: bool = False
    dispatched: bool = False


class Isolation:
    """The suspects of one process, and the cohorts that are being tried. Without suspects, `idle` is True."""

    def __init__(self) -> None:
        self._narrow: deque[tuple[Partition, Record, int]] = deque()
        """Suspects that were running in a crash, each with a cap on the size of its next cohort: half of the cohort
        that killed. Their cohorts run one at a time, and no other record runs meanwhile."""
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
        suspected = {*self._wide, *self._tried(), *(owner for owner, _ in self._last)}
        suspected.update(owner for owner, _, _ in (*self._narrow, *self.condemned))
        return partition in suspected

    def opened(self, partition: Partition) -> None:
        """Adopt suspects that the last owner committed as running.

        These suspects killed the last owner, so their next cohorts have at most half of the size.
        """
        running = [offset for offset, suspect in partition.suspects.items() if suspect.running]
        if len(running) == 1 and partition.alone:
            offset = running[0]
            attempts = partition.suspects[offset].attempts
            partition.suspects[offset] = Suspect(attempts + _has_room(partition, attempts), running=True)
        partition.most_together = _half(len(running))
        partition.alone = False

    def suspect(self, partition: Partition, record: Record) -> bool:
        """Return True if a record that was just taken is a suspect. Suspects are queued here, not in the window."""
        known = partition.suspects.get(record.offset)
        if known is not None:
            self._judge(partition, record, known.attempts, partition.most_together)
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
        tried, self.cohorts = self.cohorts, []
        alone = len(casualties) == 1 and any(cohort.alone and cohort.dispatched for cohort in tried)
        healthy, self._healthy = self._healthy, False
        if alone and not healthy:
            self._died_alone.update((partition, record.offset) for partition, record in casualties)
            self.sick = self._for_lack_of_others or len(self._died_alone) >= DEATHS_IN_A_ROW
        for cohort in tried:
            if not cohort.dispatched:
                self._put_back(cohort)
        most = _half(len(casualties))
        for partition, record in reversed(casualties):
            attempts = partition.suspects.pop(record.offset, Suspect()).attempts
            if alone and _counts(attempts, healthy=healthy):
                attempts += _has_room(partition, attempts)
            if attempts:
                partition.suspects[record.offset] = Suspect(attempts)
            self._judge(partition, record, attempts, most, first=not alone)
        waiting, self._narrow = self._narrow, deque()
        for partition, record, most in waiting:  # before its last attempt, a suspect waits for another completion
            self._judge(partition, record, partition.suspects.get(record.offset, Suspect()).attempts, most)

    def try_anyway(self) -> None:
        """Start a suspect's last attempt without waiting for another record, which may arrive only days later."""
        self._for_lack_of_others = True
        self._try_last()

    def _try_last(self) -> None:
        self._narrow.append((*self._last.popleft(), 1))

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
        members, most = self._draw_narrow() if narrow else (self._draw_wide(room), MAX_SUSPECTS)
        if not members:
            return None
        cohort = Cohort(members, narrow and len(members) == 1, most, narrow)
        cohort.waiting = {(partition, record.offset) for partition, record in members}
        self.cohorts.append(cohort)
        self._mark(cohort)
        return cohort

    def settled(self, partition: Partition, offset: int) -> None:
        """Note that a record is settled. A cohort whose members are all settled killed no worker, and is removed."""
        for cohort in list(self.cohorts):
            cohort.waiting.discard((partition, offset))
            if not cohort.waiting:
                self.cohorts.remove(cohort)

    def forget(self, partition: Partition, *, draining: bool = False) -> list[Record]:
        """Forget the suspects of a partition that another worker gets. Returns the undispatched suspects.

        With `draining`, the dispatched suspects still run, so their cohort still keeps other records from beginning.
        """
        untried = [record for owner, record, _ in self.condemned if owner is partition]
        untried += [record for owner, record, _ in self._narrow if owner is partition]
        untried += [record for owner, record in self._last if owner is partition]
        untried += self._wide.pop(partition, ())
        self._narrow = deque(entry for entry in self._narrow if entry[0] is not partition)
        self._last = deque(entry for entry in self._last if entry[0] is not partition)
        self.condemned = [entry for entry in self.condemned if entry[0] is not partition]
        for cohort in self.cohorts:
            if draining and cohort.dispatched:
                continue
            members = [record for owner, record in cohort.members if owner is partition]
            untried += [] if cohort.dispatched else members
            cohort.members = [entry for entry in cohort.members if entry[0] is not partition]
            cohort.waiting = {entry for entry in cohort.waiting if entry[0] is not partition}
        self.cohorts = [cohort for cohort in self.cohorts if cohort.waiting]
        return untried

    def _judge(self, partition: Partition, record: Record, attempts: int, most: int, *, first: bool = False) -> None:
        """Queue a suspect for its next cohort, of at most `most` suspects; alone if it has attempts."""
        if attempts >= ATTEMPTS_ALLOWED:
            self.condemned.append((partition, record, attempts))
        elif attempts == ATTEMPTS_ALLOWED - 1:
            self._last.append((partition, record))
        elif first:
            self._narrow.appendleft((partition, record, 1 if attempts else most))
        else:
            self._narrow.append((partition, record, 1 if attempts else most))

    def _put_back(self, cohort: Cohort) -> None:
        """Put the members of an undispatched cohort back to the front of their queue."""
        if cohort.narrow:
            self._narrow.extendleft((*member, cohort.most) for member in reversed(cohort.members))
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

    def _draw_narrow(self) -> tuple[list[tuple[Partition, Record]], int]:
        """Draw a cohort from the front of the queue: as many suspects as their caps and the commits allow.

        Returns the members and the lowest of their caps.
        """
        drawn: list[tuple[Partition, Record]] = []
        named, lowest = self._named(), MAX_SUSPECTS
        while self._narrow:
            partition, record, most = self._narrow[0]
            if len(drawn) >= min(lowest, most):
                break
            if (drawn or self.cohorts) and len(named[partition] | {record.offset}) > MAX_SUSPECTS:
                break
            lowest = min(lowest, most)
            named[partition].add(record.offset)
            drawn.append((partition, record))
            self._narrow.popleft()
        return drawn, lowest

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
        for partition in {*named, *self._wide, *(partition for partition, _, _ in self._narrow)}:
            named[partition].update(offset for offset, suspect in partition.suspects.items() if suspect.attempts)
        return named


def _half(size: int) -> int:
    """Return the size of the next cohorts of `size` suspects that ran when their process died."""
    return max(1, min(MAX_SUSPECTS, (size + 1) // 2))


def _counts(attempts: int, *, healthy: bool) -> bool:
    """Return whether the death of a record that ran alone is counted as an attempt.

    The last attempt is counted only if `healthy`.
    """
    return healthy or attempts < ATTEMPTS_ALLOWED - 1


def _has_room(partition: Partition, attempts: int) -> bool:
    """Return whether the partition's commits have room for one more attempt of a record that has `attempts` so far."""
    return attempts > 0 or sum(suspect.attempts > 0 for suspect in partition.suspects.values()) < MAX_ATTEMPTED
