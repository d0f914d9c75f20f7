"""Crash isolation in a process whose engine dies: suspects, a sick machine, and partitions revoked meanwhile."""

from __future__ import annotations

import pytest

from tests.unit.isolation_rig import NO_BOUND, acquitted, answered, crashed, dispatched, opened, record, reopened, taken
from workers.stage.isolation import ATTEMPTS_ALLOWED, DEATHS_IN_A_ROW, MAX_ATTEMPTED, Isolation
from workers.stage.partition import Phase
from workers.stage.progress import MAX_SUSPECTS, Progress, Suspect

# -- an engine that died -------------------------------------------------------------------------------------------


def test_records_of_an_engine_that_died_are_halved_until_one_is_alone() -> None:
    isolation, partition = Isolation(), opened()
    crashed(isolation, partition, range(8))
    sizes = []
    for _ in range(4):
        cohort = dispatched(isolation)
        sizes.append(len(cohort))
        crashed(isolation, partition, cohort)
    assert sizes == [4, 2, 1, 1]
    assert [partition.suspects[offset].attempts for offset in (0, 1)] == [1, 1]


def test_a_suspect_that_killed_alone_lets_the_others_go_first_and_is_given_up_after_three_attempts() -> None:
    isolation, partition = Isolation(), opened()
    crashed(isolation, partition, range(4))
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
    assert tried == [[0, 1], [0], [1], [2], [3], [0], [0]]
    assert [(one.offset, attempts) for _, one, attempts in isolation.condemned] == [(0, 3)]


# -- a machine on which everything dies ----------------------------------------------------------------------------


def test_a_machine_that_kills_at_every_record_is_sick_and_condemns_no_record() -> None:
    isolation, partition = Isolation(), opened()
    crashed(isolation, partition, range(40))
    deaths = 0
    while not isolation.sick:
        crashed(isolation, partition, dispatched(isolation))
        deaths += 1
    assert deaths == 5 + DEATHS_IN_A_ROW  # after cohorts of 20, 10, 5, 3 and 2, each cohort is one record
    assert isolation.condemned == []


def test_a_record_alone_on_a_sick_machine_is_not_condemned_either() -> None:
    isolation, partition = Isolation(), opened()
    crashed(isolation, partition, [0])
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
    isolation, partition = Isolation(), opened()
    crashed(isolation, partition, range(8))
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
    isolation, partition = Isolation(), opened()
    crashed(isolation, partition, [0])
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
    isolation, partition = Isolation(), opened(progress=Progress(0, open=True, suspects=attempted))
    isolation.opened(partition)
    taken(isolation, partition, range(100))
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
    isolation, partition = Isolation(), opened(progress=Progress(0, open=True, alone=True, suspects=killer))
    isolation.opened(partition)
    taken(isolation, partition, [0])
    assert [untried.offset for untried in isolation.forget(partition)] == [0]
    assert (isolation.condemned, isolation.idle) == ([], True)
