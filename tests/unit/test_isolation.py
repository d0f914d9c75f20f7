"""Isolation of records that kill their worker, or their engine, in one worker and in a fleet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.drawn import drawn
from workers.stage.isolation import ATTEMPTS_ALLOWED, DEATHS_IN_A_ROW, MAX_ATTEMPTED, Isolation
from workers.stage.partition import Partition, Phase
from workers.stage.progress import MAX_SUSPECTS, Progress, Suspect
from workers.stage.record import Record

FIRST_WINDOW = 1000
NO_BOUND = 1 << 30


def opened(number: int = 0, progress: Progress | None = None, window: int = FIRST_WINDOW) -> Partition:
    partition = Partition("requests", number, 1, 0.0)
    partition.open(progress or Progress(0), window)
    return partition


def record(offset: int, partition: Partition | None = None) -> Record:
    return Record("requests", partition.number if partition else 0, offset, b"")


def taken(isolation: Isolation, partition: Partition, offsets: Sequence[int]) -> list[int]:
    """Take these records; return those that are not suspects."""
    free = []
    for offset in offsets:
        partition.ledger.take(offset)
        if not isolation.suspect(partition, record(offset, partition)):
            free.append(offset)
    return free


def left_open(
    suspects: dict[int, Suspect] | None = None,
    came: Sequence[int] = (),
    *,
    alone: bool = False,
    window: int = FIRST_WINDOW,
) -> tuple[Isolation, Partition]:
    """Isolation and a partition that was left open with these suspects; the records that came are taken."""
    isolation = Isolation()
    partition = opened(progress=Progress(0, open=True, alone=alone, suspects=suspects or {}), window=window)
    isolation.opened(partition)
    taken(isolation, partition, came)
    return isolation, partition


def after_crash(offsets: Sequence[int]) -> tuple[Isolation, Partition]:
    """Isolation and a partition with these records running when the engine died."""
    isolation, partition = Isolation(), opened()
    crashed(isolation, partition, offsets)
    return isolation, partition


def crashed(isolation: Isolation, partition: Partition, offsets: Sequence[int]) -> None:
    """Report these records as running in the process or engine that died."""
    for offset in offsets:
        partition.ledger.take(offset)
    isolation.crashed([(partition, record(offset, partition)) for offset in offsets])


def dispatched(isolation: Isolation) -> list[int]:
    """Mark the next cohort as committed and dispatched; return the offsets of its records."""
    cohort = isolation.next_cohort(NO_BOUND)
    if cohort is None:
        return []
    cohort.committed = cohort.dispatched = True
    return [member.offset for _, member in cohort.members]


def acquitted(isolation: Isolation, partition: Partition) -> None:
    """Settle all records of the cohorts under trial."""
    settled(isolation, partition, [member.offset for cohort in isolation.cohorts for _, member in cohort.members])


def answered(isolation: Isolation, partition: Partition, offsets: list[int]) -> None:
    """Complete and settle these records."""
    isolation.completed()
    settled(isolation, partition, offsets)


def settled(isolation: Isolation, partition: Partition, offsets: list[int]) -> None:
    partition.settle(offsets, partition.progress(offsets))
    for offset in offsets:
        isolation.settled(partition, offset)


def reopened(partition: Partition) -> Partition:
    """The partition as its next owner opens it, after its worker was killed."""
    committed = partition.progress([])
    return opened(partition.number, Progress.decode(committed.base, committed.encode()))


# -- a partition that was left open: suspects, the cohorts of their trials, and condemned records --------------------


def test_nothing_is_suspected_in_a_partition_that_was_left_cleanly() -> None:
    isolation, partition = Isolation(), opened()
    isolation.opened(partition)
    assert taken(isolation, partition, range(100)) == list(range(100))
    assert (isolation.idle, isolation.exclusive, isolation.next_cohort(NO_BOUND)) == (True, False, None)


def test_the_first_window_of_a_partition_that_was_left_open_is_suspected_and_no_more() -> None:
    isolation, partition = left_open(window=40)
    assert taken(isolation, partition, range(50)) == list(range(40, 50))
    assert not isolation.exclusive
    assert dispatched(isolation) == list(range(MAX_SUSPECTS))


def test_after_a_crash_the_next_cohort_waits_until_the_last_one_is_settled() -> None:
    suspects = {offset: Suspect(running=True) for offset in range(8)}
    isolation, partition = left_open(suspects, range(40))
    assert dispatched(isolation) == [0, 1, 2, 3]
    for offset in range(3):
        isolation.settled(partition, offset)
    assert dispatched(isolation) == []
    isolation.settled(partition, 3)
    assert dispatched(isolation) == [4, 5, 6, 7]


def test_a_slow_suspect_of_a_first_window_delays_no_record_behind_it() -> None:
    isolation, partition = left_open(came=range(FIRST_WINDOW))
    tried = set(dispatched(isolation))
    slow = {offset for offset in range(FIRST_WINDOW) if offset % 50 == 0}
    while tried != set(range(FIRST_WINDOW)):
        quick = [offset for cohort in isolation.cohorts for _, offset in cohort.waiting if offset not in slow]
        settled(isolation, partition, quick)
        new = dispatched(isolation)
        assert new
        running = {offset for offset, suspect in reopened(partition).suspects.items() if suspect.running}
        assert running == {offset for cohort in isolation.cohorts for _, offset in cohort.waiting}
        assert len(running) <= MAX_SUSPECTS
        tried.update(new)
    acquitted(isolation, partition)
    assert isolation.idle


def test_each_partition_that_was_left_open_has_places_of_its_own() -> None:
    """In an earlier version, all partitions shared the places for suspects, so each of twelve had a twelfth of them."""
    isolation = Isolation()
    partitions = [opened(number, Progress(0, open=True)) for number in range(12)]
    for partition in partitions:
        isolation.opened(partition)
        taken(isolation, partition, range(100))
    cohort = isolation.next_cohort(NO_BOUND)
    assert cohort is not None
    for partition in partitions:
        tried = [one.offset for owner, one in cohort.members if owner is partition]
        assert tried == list(range(MAX_SUSPECTS))
        assert set(reopened(partition).suspects) == set(tried)


def test_no_more_of_first_windows_is_tried_than_there_is_room_for_and_all_partitions_get_their_turn() -> None:
    isolation = Isolation()
    partitions = [opened(number, Progress(0, open=True)) for number in range(4)]
    for partition in partitions:
        isolation.opened(partition)
        taken(isolation, partition, range(MAX_SUSPECTS))
    tried: list[int] = []
    for room in (0, 40, 40, 40, 40):
        cohort = isolation.next_cohort(room)
        members = [] if cohort is None else cohort.members
        assert len(members) == min(room, 4 * MAX_SUSPECTS - len(tried))
        tried += [partition.number for partition, _ in members]
        if cohort is not None:
            cohort.committed = cohort.dispatched = True
    assert set(tried[:80]) == {0, 1, 2, 3}, "a partition waited although others had had their turn"
    assert len(tried) == 4 * MAX_SUSPECTS


@pytest.mark.parametrize("state", ["to come", "waiting", "tried", "awaited", "ran in a crash", "condemned"])
def test_isolation_knows_whether_a_partition_has_suspects(state: str) -> None:
    running = {5: Suspect(2 if state == "condemned" else 0, running=True)}
    suspects = running if state in ("awaited", "condemned") else {}
    isolation = Isolation()
    partition = opened(progress=Progress(0, open=True, alone=state == "condemned", suspects=suspects), window=1)
    other = opened(1)
    assert not isolation.involves(other)
    isolation.opened(partition)
    if state == "ran in a crash":
        partition.careful_records = 0
        crashed(isolation, partition, [5])
    elif state in ("waiting", "tried"):
        taken(isolation, partition, [0])
    elif state == "condemned":
        partition.careful_records = 0
        taken(isolation, partition, [5])
    if state == "tried":
        assert dispatched(isolation) == [0]
    assert isolation.involves(partition)
    assert not isolation.involves(other)
    if state == "tried":
        acquitted(isolation, partition)
        assert not isolation.involves(partition)


def test_a_first_window_waits_even_for_the_last_suspects_that_ran_in_a_crash() -> None:
    isolation = Isolation()
    left_open = opened(0, Progress(0, open=True))
    ran = opened(1, Progress(0, open=True, alone=True, suspects={0: Suspect(running=True)}))
    for partition in (left_open, ran):
        isolation.opened(partition)
    taken(isolation, left_open, range(50))
    taken(isolation, ran, [0])
    assert dispatched(isolation) == [0]
    assert [cohort.alone for cohort in isolation.cohorts] == [True]
    assert isolation.next_cohort(NO_BOUND) is None
    acquitted(isolation, ran)
    assert dispatched(isolation) == list(range(MAX_SUSPECTS))


def test_suspects_with_attempts_take_places_and_delay_no_other_for_ever() -> None:
    attempted = {offset: Suspect(1) for offset in range(500, 500 + MAX_SUSPECTS - 2)}
    isolation, partition = left_open(attempted, range(10))
    tried = []
    while cohort := dispatched(isolation):
        assert len(cohort) == 2
        assert dispatched(isolation) == []
        assert len(reopened(partition).suspects) == MAX_SUSPECTS
        tried += cohort
        acquitted(isolation, partition)
    assert tried == list(range(10))


def test_suspects_are_committed_before_the_dispatch_and_survive_the_worker() -> None:
    isolation, partition = left_open(came=range(8))
    cohort = isolation.next_cohort(NO_BOUND)
    assert cohort is not None
    assert not cohort.committed
    assert isolation.next_cohort(NO_BOUND) is cohort
    assert reopened(partition).suspects == {offset: Suspect(0, running=True) for offset in range(8)}


@pytest.mark.parametrize(("killed", "cohorts"), [(8, [4, 4]), (7, [4, 3]), (2, [1, 1]), (1, [1])])
def test_a_cohort_that_killed_its_worker_is_halved(killed: int, cohorts: list[int]) -> None:
    suspects = {offset: Suspect(running=True) for offset in range(killed)}
    isolation, partition = left_open(suspects, range(killed), window=0)
    sizes = []
    while not isolation.idle:
        sizes.append(len(dispatched(isolation)))
        acquitted(isolation, partition)
    assert sizes == cohorts


def test_suspects_that_ran_are_tried_before_the_first_window_and_hold_up_everything_else() -> None:
    suspects = {offset: Suspect(running=True) for offset in (5, 7)}
    isolation, partition = left_open(suspects, range(10))
    before, begun = isolation.exclusive, dispatched(isolation)
    assert (before, begun, [cohort.alone for cohort in isolation.cohorts]) == (True, [5], [True])
    assert (isolation.exclusive, begun) == (True, [5])
    acquitted(isolation, partition)
    assert dispatched(isolation) == [7]
    acquitted(isolation, partition)
    assert not isolation.exclusive
    assert dispatched(isolation) == [0, 1, 2, 3, 4, 6, 8, 9]


def test_only_a_record_that_killed_while_it_was_alone_gets_an_attempt() -> None:
    together = {offset: Suspect(running=True) for offset in range(3)}
    for suspects, alone, attempts in (
        (together, False, [0, 0, 0]),
        ({0: Suspect(running=True)}, False, [0]),
        ({0: Suspect(running=True)}, True, [1]),
        ({0: Suspect(1, running=True)}, True, [2]),
        ({0: Suspect(1, running=True)}, False, [1]),
        ({0: Suspect(1)}, True, [1]),
    ):
        _, partition = left_open(suspects, alone=alone)
        assert [partition.suspects[offset].attempts for offset in sorted(suspects)] == attempts


def test_a_record_that_killed_three_workers_alone_is_given_up() -> None:
    killer = {4: Suspect(ATTEMPTS_ALLOWED - 1, running=True)}
    isolation, partition = left_open(killer, [4], alone=True)
    assert [(owner, condemned.offset, times) for owner, condemned, times in isolation.condemned] == [(partition, 4, 3)]
    assert isolation.next_cohort(NO_BOUND) is None


@pytest.mark.parametrize("way", ["worker", "engine"])
def test_isolation_is_not_idle_until_a_condemned_record_is_given_up(way: str) -> None:
    """The stage looks for condemned records only if isolation is not idle.

    In an earlier version isolation was idle too early, so the last suspect was never given up.
    """
    killer = {0: Suspect(ATTEMPTS_ALLOWED - 1, running=way == "worker")}
    isolation, partition = left_open(killer, [0], alone=way == "worker", window=0)
    if way == "engine":
        isolation.completed()  # an unsuspected record completes, so the suspect may be tried
        assert dispatched(isolation) == [0]
        crashed(isolation, partition, [0])
    assert len(isolation.condemned) == 1
    assert not isolation.idle


def test_partitions_that_open_together_are_halved_together() -> None:
    """If each partition's opening reset the halved size, the same cohort would kill one worker after another."""
    isolation = Isolation()
    partitions = []
    for number, killed in enumerate((2, 8)):
        suspects = {offset: Suspect(running=True) for offset in range(killed)}
        partitions.append(opened(number, Progress(0, open=True, suspects=suspects)))
        isolation.opened(partitions[-1])
    taken(isolation, partitions[0], range(2))
    assert dispatched(isolation) == [0]


# -- an engine that died -------------------------------------------------------------------------------------------
def test_records_of_an_engine_that_died_are_halved_until_one_is_alone() -> None:
    isolation, partition = after_crash(range(8))
    sizes = []
    for _ in range(4):
        cohort = dispatched(isolation)
        sizes.append(len(cohort))
        crashed(isolation, partition, cohort)
    assert sizes == [4, 2, 1, 1]
    assert [partition.suspects[offset].attempts for offset in (0, 1)] == [1, 1]


def test_one_killer_among_many_is_found_by_halving_its_cohorts_and_no_others() -> None:
    """In an earlier version, each later cohort was as small as the killer's: a thousand jobs ran one by one."""
    isolation, partition = after_crash(range(1000))
    sizes = []
    while cohort := dispatched(isolation):
        sizes.append(len(cohort))
        if 500 in cohort:
            crashed(isolation, partition, cohort)
        else:
            answered(isolation, partition, cohort)
        if isolation.needs_others:
            isolation.completed()  # a new job comes and is answered
    assert [(one.offset, attempts) for _, one, attempts in isolation.condemned] == [(500, ATTEMPTS_ALLOWED)]
    assert sum(size >= MAX_SUSPECTS - 1 for size in sizes) >= 27  # the killer's attempts take one place of a commit
    assert len(sizes) <= 1000 // MAX_SUSPECTS + 2 * MAX_SUSPECTS.bit_length() + ATTEMPTS_ALLOWED


def test_a_suspect_that_retention_removed_is_no_longer_awaited() -> None:
    suspects = {offset: Suspect(running=True) for offset in range(8)}
    isolation, partition = left_open(suspects, window=0)
    partition.ledger.reach(10)
    assert isolation.involves(partition)
    partition.settle([], partition.progress([]))
    assert (partition.suspects, isolation.involves(partition)) == ({}, False)


def test_a_suspect_that_killed_alone_lets_the_others_go_first_and_is_given_up_after_three_attempts() -> None:
    isolation, partition = after_crash(range(4))
    tried = []
    while cohort := dispatched(isolation):
        tried += [cohort]
        if 0 in cohort:
            crashed(isolation, partition, cohort)
        else:
            answered(isolation, partition, cohort)
        if not isolation.exclusive and partition.suspects.get(0) == Suspect(2):
            assert isolation.needs_others or isolation.next_cohort(NO_BOUND) is not None
            isolation.completed()  # an unsuspected record completes, since such records run while a suspect waits
    assert tried == [[0, 1], [0], [1], [2, 3], [0], [0]]
    assert [(one.offset, attempts) for _, one, attempts in isolation.condemned] == [(0, 3)]


# -- a machine on which everything dies ----------------------------------------------------------------------------
def test_a_machine_that_kills_at_every_record_is_sick_and_condemns_no_record() -> None:
    isolation, partition = after_crash(range(40))
    deaths = 0
    while not isolation.sick:
        crashed(isolation, partition, dispatched(isolation))
        deaths += 1
    assert deaths == 6 + DEATHS_IN_A_ROW  # cohorts of 20, 10, 5, 3, 2, 1, 1, 2, 1 and 1 records
    assert isolation.condemned == []


def test_a_record_alone_on_a_sick_machine_is_not_condemned_either() -> None:
    isolation, partition = after_crash([0])
    for _ in range(2):
        crashed(isolation, partition, dispatched(isolation))
    assert isolation.needs_others
    isolation.try_anyway()  # the stage calls this if no other record comes for a while
    sick_before = isolation.sick
    crashed(isolation, partition, dispatched(isolation))
    assert (sick_before, isolation.sick) == (False, True)
    assert (isolation.condemned, partition.suspects) == ([], {0: Suspect(2)})


def test_a_completion_before_a_death_proves_nothing_about_the_time_after_it() -> None:
    isolation, partition = Isolation(), opened()
    isolation.completed()
    crashed(isolation, partition, [0])
    for _ in range(2):
        crashed(isolation, partition, dispatched(isolation))
    assert dispatched(isolation) == []
    assert isolation.needs_others
    assert not isolation.exclusive, "others are held up by a suspect that waits for them"


def test_the_last_attempt_is_no_attempt_where_the_process_had_completed_nothing_since_it_began() -> None:
    """Attempts count across restarts, so a machine on which every worker dies would otherwise condemn all records."""
    isolation = Isolation()
    partition = opened(progress=Progress(0, open=True, suspects={0: Suspect(2)}), window=0)
    for healthy, attempts in ((False, 2), (False, 2), (True, 3)):
        isolation = Isolation()
        isolation.opened(partition)
        taken(isolation, partition, [0])
        assert dispatched(isolation) == []
        if healthy:
            isolation.completed()
        else:
            isolation.try_anyway()
        assert dispatched(isolation) == [0]
        partition = reopened(partition)
        Isolation().opened(partition)
        assert partition.suspects[0].attempts == attempts
        partition.suspects[0] = Suspect(attempts)


def test_a_sick_machines_restarts_leave_a_progress_that_can_be_read_and_a_healthy_one_answers_everything() -> None:
    jobs = 300
    found = opened(window=64)
    for restart in range(80):
        isolation = Isolation()
        isolation.opened(found)
        taken(isolation, found, [offset for offset in range(jobs) if offset not in found.suspects])
        taken(isolation, found, sorted(found.suspects))
        crashed(isolation, found, range(restart, restart + 40))
        while not isolation.sick and (cohort := dispatched(isolation)):
            crashed(isolation, found, cohort)
        assert isolation.condemned == []
        attempted = {offset: suspect for offset, suspect in reopened(found).suspects.items() if suspect.attempts}
        assert len(attempted) <= MAX_ATTEMPTED
        found = opened(progress=Progress(0, suspects=attempted), window=64)
    assert len(found.suspects) == MAX_ATTEMPTED
    isolation = Isolation()
    isolation.opened(found)
    taken(isolation, found, range(jobs))
    isolation.completed()
    tried = []
    while cohort := dispatched(isolation):
        tried += cohort
        answered(isolation, found, cohort)
    assert isolation.idle
    assert set(tried) >= found.suspects.keys()
    assert isolation.condemned == []


def test_after_a_crash_nothing_runs_even_beside_the_last_suspects() -> None:
    """If the suspects kill again, a record beside them would become a suspect too, and be tried with these suspects."""
    isolation, partition = after_crash(range(8))
    while cohort := dispatched(isolation):
        assert isolation.exclusive, f"others may run beside {cohort}"
        acquitted(isolation, partition)
    assert (isolation.idle, isolation.exclusive) == (True, False)


@pytest.mark.parametrize("formed", ["first window", "after a crash"])
def test_a_cohort_that_was_not_dispatched_when_something_else_died_is_still_tried(formed: str) -> None:
    """A cohort waits for its commit, or until running records end; such a record may kill the engine meanwhile."""
    left_open = formed == "first window"
    isolation, partition = Isolation(), opened(progress=Progress(0, open=left_open), window=3)
    isolation.opened(partition)
    if left_open:
        taken(isolation, partition, range(3))
    else:
        crashed(isolation, partition, range(3))
    assert isolation.next_cohort(NO_BOUND) is not None  # the cohort is formed, but not dispatched
    crashed(isolation, partition, [10, 11])
    tried: set[int] = set()
    while cohort := dispatched(isolation):
        tried.update(cohort)
        acquitted(isolation, partition)
    assert tried == {0, 1, 2, 10, 11}


def test_suspicion_starts_over_once_all_suspects_are_settled() -> None:
    isolation, partition = after_crash([0])
    assert dispatched(isolation) == [0]
    acquitted(isolation, partition)
    crashed(isolation, partition, range(10, 20))
    assert len(dispatched(isolation)) == 5


@pytest.mark.parametrize("casualties", [MAX_SUSPECTS + 1, 100, 300])
def test_progress_after_a_crash_can_be_read_however_many_records_ran(casualties: int) -> None:
    """With undecodable metadata no record above base counts as done, so each done record there would run twice."""
    isolation = Isolation()
    partitions = [opened(0), opened(1)]
    for partition in partitions:
        for offset in range(casualties):
            partition.ledger.take(offset)
    isolation.crashed(
        [(partition, record(offset, partition)) for partition in partitions for offset in range(casualties)]
    )
    assert isolation.next_cohort(NO_BOUND) is not None
    for partition in partitions:
        assert reopened(partition).phase is Phase.OPEN


def test_a_commit_has_room_for_a_cohort_beside_records_with_attempts() -> None:
    attempted = {offset: Suspect(1) for offset in range(500, 504)}
    isolation, partition = left_open(attempted, range(100))
    dispatched(isolation)
    found = reopened(partition).suspects
    assert {offset: found[offset] for offset in attempted} == attempted


# -- partitions that go --------------------------------------------------------------------------------------------
def test_a_partition_that_goes_takes_its_untried_suspects_with_it_and_leaves_the_others() -> None:
    isolation, going, staying = Isolation(), opened(0), opened(1)
    isolation.crashed([(going, record(1, going)), (staying, record(2, staying)), (going, record(3, going))])
    assert sorted(untried.offset for untried in isolation.forget(going)) == [1, 3]
    assert dispatched(isolation) == [2]
    acquitted(isolation, staying)
    assert isolation.idle


def test_a_cohort_dispatched_when_its_partition_goes_is_not_given_back_and_delays_no_other() -> None:
    isolation, going, staying = Isolation(), opened(0), opened(1)
    isolation.crashed([(owner, record(offset, owner)) for owner in (going, staying) for offset in range(2)])
    assert dispatched(isolation) == [0, 1]  # both records are of the revoked partition
    assert isolation.forget(going) == []
    assert dispatched(isolation) == [0, 1]
    assert {owner for cohort in isolation.cohorts for owner, _ in cohort.members} == {staying}


def test_a_dispatched_cohort_of_a_partition_that_drains_keeps_others_from_beginning_until_it_is_settled() -> None:
    """In an earlier version, a revocation let other records begin beside a suspect that ran alone."""
    isolation, going, staying = Isolation(), opened(0), opened(1)
    isolation.crashed([(owner, record(offset, owner)) for owner in (going, staying) for offset in range(2)])
    assert dispatched(isolation) == [0, 1]  # both records are of the revoked partition
    assert isolation.forget(going, draining=True) == []
    assert dispatched(isolation) == []
    acquitted(isolation, going)
    assert dispatched(isolation) == [0, 1]


def test_a_cohort_that_loses_a_partition_before_its_dispatch_gives_those_members_back() -> None:
    isolation, going, staying = Isolation(), opened(0), opened(1)
    for owner in (going, staying):
        owner.careful_records = 2
        taken(isolation, owner, range(2))
    assert isolation.next_cohort(NO_BOUND) is not None
    assert [untried.offset for untried in isolation.forget(going)] == [0, 1]
    assert dispatched(isolation) == [0, 1]
    acquitted(isolation, staying)
    assert isolation.idle


def test_a_condemned_record_goes_with_its_partition() -> None:
    killer = {0: Suspect(ATTEMPTS_ALLOWED - 1, running=True)}
    isolation, partition = left_open(killer, [0], alone=True)
    assert [untried.offset for untried in isolation.forget(partition)] == [0]
    assert (isolation.condemned, isolation.idle) == ([], True)


# -- isolation fleet -------------------------------------------------------------------------------------------------
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
        settled(isolation, partition, offsets)


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
