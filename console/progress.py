"""How far a command is: a bar for a person at a terminal, nothing in a log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

INTERRUPTED = 130
"""The exit status after Ctrl-C, as a shell gives it."""


@dataclass(slots=True)
class Counting:
    """Is called with how many are done so far, and remembers it."""

    bar: Progress
    task: TaskID
    done: int = 0

    def __call__(self, done: int) -> None:
        """So many are done."""
        self.done = done
        self.bar.update(self.task, completed=done)


@contextmanager
def counting(what: str, total: int) -> Iterator[Counting]:
    """A bar of so many."""
    with bars() as bar:
        yield Counting(bar, bar.add_task(what, total=total))


def bars(*, hidden: bool = False) -> Progress:
    """Bars on standard error. `hidden` is for where data goes to the same terminal, which they would run into."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn())
    # Else what is printed meanwhile would be taken from standard output, which is for data, and shown with the bars.
    return Progress(*columns, console=console, disable=hidden or not console.is_terminal, redirect_stdout=False)
