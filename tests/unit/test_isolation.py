"""Crash isolation in a partition that was left open: suspects, the cohorts of their trials, and condemned records."""

from __future__ import annotations

import pytest

from tests.unit.isolation_rig import FIRST_WINDOW, NO_BOUND, acquitted, crashed, dispatched, opened, reopened, taken
from workers.stage.isolation import ATTEMPTS_ALLOWED, Isolation
from workers.stage.progress import MAX_SUSPECTS, Progress, Suspect


def test_nothing_is_suspected_in_a_partition_that_was_left_cleanly() -> None:
    isolation, partition = Isolation(), opened()
    isolation.opened(partition)
    assert taken(isolation, partition, range(100)) == list(range(100))
    assert (isolation.idle, isolation.exclusive, isolation.next_cohort(NO_BOUND)) == (True, False, None)


def test_the_first_window_of_a_partition_that_was_left_open_is_suspected_and_no_more() -> None:
    isolation, partition = Isolation(), opened(progress=Progress(0, open=True), window=40)
    isolation.opened(partition)
    assert taken(isolation, partition, range(50)) == list(range(40, 50))
    assert not isolation.exclusive
    assert dispatched(isolation) == list(range(MAX_SUSPECTS))


def test_after_a_crash_the_next_cohort_waits_until_the_last_one_is_settled() -> None:
    suspects = {offset: Suspect(running=True) for offset in range(8)}
    isolation, partition = Isolation(), opened(progress=Progress(0, open=True, suspects=suspects))
    isolation.opened(partition)
    taken(isolation, partition, range(40))
    assert dispatched(isolation) == [0, 1, 2, 3]
    for offset in range(3):
        isolation.settled(partition, offset)
    assert dispatched(isolation) == []
    isolation.settled(partition, 3)
    assert dispatched(isolation) == [4, 5, 6, 7]


def test_a_slow_suspect_of_a_first_window_delays_no_record_behind_it() -> None:
    isolation, partition = Isolation(), opened(progress=Progress(0, open=True))
    isolation.opened(partition)
    taken(isolation, partition, range(FIRST_WINDOW))
    tried = set(dispatched(isolation))
    slow = {offset for offset in range(FIRST_WINDOW) if offset % 50 == 0}
    while tried != set(range(FIRST_WINDOW)):
        quick = [offset for cohort in isolation.cohorts for _, offset in cohort.waiting if offset not in slow]
        partition.settle(quick, partition.progress(quick))
        for offset in quick:
            isolation.settled(partition, offset)
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
    isolation, partition = Isolation(), opened(progress=Progress(0, open=True, suspects=attempted))
    isolation.opened(partition)
    taken(isolation, partition, range(10))
    tried = []
    while cohort := dispatched(isolation):
        assert len(cohort) == 2
        assert dispatched(isolation) == []
        assert len(reopened(partition).suspects) == MAX_SUSPECTS
        tried += cohort
        acquitted(isolation, partition)
    assert tried == list(range(10))


def test_suspects_are_committed_before_the_dispatch_and_survive_the_worker() -> None:
    isolation, partition = Isolation(), opened(progress=Progress(0, open=True))
    isolation.opened(partition)
    taken(isolation, partition, range(8))
    cohort = isolation.next_cohort(NO_BOUND)
    assert cohort is not None
    assert not cohort.committed
    assert isolation.next_cohort(NO_BOUND) is cohort
    assert reopened(partition).suspects == {offset: Suspect(0, running=True) for offset in range(8)}


@pytest.mark.parametrize(("killed", "cohorts"), [(8, [4, 4]), (7, [4, 3]), (2, [1, 1]), (1, [1])])
def test_a_cohort_that_killed_its_worker_is_halved(killed: int, cohorts: list[int]) -> None:
    suspects = {offset: Suspect(running=True) for offset in range(killed)}
    isolation, partition = Isolation(), opened(progress=Progress(0, open=True, suspects=suspects), window=0)
    isolation.opened(partition)
    taken(isolation, partition, range(killed))
    sizes = []
    while not isolation.idle:
        sizes.append(len(dispatched(isolation)))
        acquitted(isolation, partition)
    assert sizes == cohorts


def test_suspects_that_ran_are_tried_before_the_first_window_and_hold_up_everything_else() -> None:
    suspects = {offset: Suspect(running=True) for offset in (5, 7)}
    isolation, partition = Isolation(), opened(progress=Progress(0, open=True, suspects=suspects))
    isolation.opened(partition)
    taken(isolation, partition, range(10))
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
        isolation = Isolation()
        partition = opened(progress=Progress(0, open=True, alone=alone, suspects=suspects))
        isolation.opened(partition)
        assert [partition.suspects[offset].attempts for offset in sorted(suspects)] == attempts


def test_a_record_that_killed_three_workers_alone_is_given_up() -> None:
    killer = {4: Suspect(ATTEMPTS_ALLOWED - 1, running=True)}
    isolation, partition = Isolation(), opened(progress=Progress(0, open=True, alone=True, suspects=killer))
    isolation.opened(partition)
    taken(isolation, partition, [4])
    assert [(owner, condemned.offset, times) for owner, condemned, times in isolation.condemned] == [(partition, 4, 3)]
    assert isolation.next_cohort(NO_BOUND) is None


@pytest.mark.parametrize("way", ["worker", "engine"])
def test_isolation_is_not_idle_until_a_condemned_record_is_given_up(way: str) -> None:
    """The stage looks for condemned records only if isolation is not idle.

    In an earlier version isolation was idle too early, so the last suspect was never given up.
    """
    killer = {0: Suspect(ATTEMPTS_ALLOWED - 1, running=way == "worker")}
    isolation = Isolation()
    partition = opened(progress=Progress(0, open=True, alone=way == "worker", suspects=killer), window=0)
    isolation.opened(partition)
    taken(isolation, partition, [0])
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
