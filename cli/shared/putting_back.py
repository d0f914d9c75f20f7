"""Puts records back for `replay` and `dead-letters redrive`: asks at a terminal, shows a bar, and tells the end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol, TypeVar

import typer

from cli.shared.errors import BAD_INPUT, FAILED, fail, named, say
from cli.shared.progress import INTERRUPTED, counting

DryRun = Annotated[bool, typer.Option("--dry-run", help="Count them, and change nothing.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]


class Counted(Protocol):
    """The counts of a selection of records."""

    @property
    def count(self) -> int:
        """The number of records that can be put back."""
        ...

    @property
    def tenants(self) -> Mapping[str, set[str]]:
        """The tenants of each id that was asked for."""
        ...


Counts = TypeVar("Counts", bound=Counted)


@dataclass(frozen=True, slots=True)
class Asked:
    """The options of a command that puts records back."""

    tenant: str | None
    limit: int | None
    dry_run: bool
    yes: bool

    def put_back(
        self,
        counts: Counts,
        act: Callable[[Callable[[int], None]], Counts],
        *,
        report: Callable[[Counts], None],
        question: str,
        again: str,
        after: str = "",
    ) -> tuple[Counts, int]:
        """Report the counts, ask the question, and run `act`, which gets the callback of the bar.

        Return the counts, those of `act` if it read the whole selection, and the number of records put back. `again`
        says what another run does after Ctrl-C, and `after` what follows the end. `{}` in the question is the number.
        """
        self._check_whose(counts.tenants)
        report(counts)
        expected = self._limited(counts.count)
        if not expected or self.dry_run:
            return counts, 0
        is_asked = not self.yes and sys.stdin.isatty() and sys.stderr.isatty()
        if is_asked and not typer.confirm(question.format(expected), err=True):
            raise fail("nothing was done", FAILED)
        with counting("put back", expected) as told:
            try:
                acted = act(told)
            except KeyboardInterrupt:
                say(f"stopped; {told.done} of {expected} are put back, and {again}")
                raise typer.Exit(INTERRUPTED) from None
        if acted.count != expected:
            before = f"{expected} were counted before the question, and {acted.count} after it"
            say(f"{before}: another process has acted meanwhile")
        say(f"{told.done} of {acted.count} put back{after}")
        return (acted if self.limit is None else counts), told.done  # with a limit, `acted` has only what was read

    def _check_whose(self, tenants: Mapping[str, set[str]]) -> None:
        """End the command if no tenant is named and an id belongs to several, since only one of them can be meant."""
        for name, whose in sorted(tenants.items()):
            if self.tenant is None and len(whose) > 1:
                text = f"{name} is an id of several tenants; name the tenant with --tenant: {named(sorted(whose))}"
                raise fail(text, BAD_INPUT)

    def _limited(self, counted: int) -> int:
        """Return how many records to put back, and print how many are left out."""
        if self.limit is None or counted <= self.limit:
            return counted
        say(f"--limit: {self.limit} of them are put back, and {counted - self.limit} are left as they are")
        return self.limit


def end(*left: tuple[str, Sequence[str]]) -> None:
    """Print the named records that were left, after a text for each kind, and exit with status 1 if there are any."""
    for text, names in left:
        if names:
            say(f"{text}: {named(names)}")
    if any(names for _, names in left):
        raise typer.Exit(FAILED)
