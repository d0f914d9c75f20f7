"""The columns of a progress bar."""

from __future__ import annotations

from rich.progress import Progress

from console.bar_columns import STANDSTILL_SECONDS, FailedColumn, OutlookColumn


class Stopwatch:
    """A clock in seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_bar_shows_the_time_left_while_it_moves_and_what_it_waits_for_when_it_stands_still() -> None:
    watch, column = Stopwatch(), OutlookColumn()
    progress = Progress(column, get_time=watch, auto_refresh=False, disable=True)
    bar = progress.add_task("accepted", total=10)
    [task] = progress.tasks
    shown = []
    for seconds, done in ((0.0, 0), (1.0, 2), (2.0, 4), (2.0 + STANDSTILL_SECONDS, 4), (12.0, 6)):
        watch.now = seconds
        progress.update(bar, completed=done)
        shown.append(str(column.render(task)))
    assert shown[:4] == ["ETA -:--:--", "ETA -:--:--", "ETA 0:00:03", "waiting for Kafka"]
    assert shown[4].startswith("ETA 0:00:")
    watch.now += STANDSTILL_SECONDS
    progress.update(bar, awaits="answers")
    assert str(column.render(task)) == "waiting for answers"
    progress.update(bar, completed=10)
    assert str(column.render(task)) == ""


def test_a_bar_counts_failures_once_there_are_some() -> None:
    progress = Progress(disable=True)
    bar = progress.add_task("answered", total=10)
    [task] = progress.tasks
    assert str(FailedColumn().render(task)) == ""
    progress.update(bar, failed=3)
    assert str(FailedColumn().render(task)) == "3 failed"
