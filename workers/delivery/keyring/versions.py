"""Which of a tenant's keys sign: the versions of those that are derived, and the secrets that were imported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from pydantic import FiniteFloat

from workers.delivery.keyring.keys import FileModel, ImportedSecret, Number


class RetiringVersion(FileModel):
    """An old version, which signs until then (Unix seconds)."""

    left_out: ClassVar[frozenset[str]] = frozenset({"master"})

    version: Number
    until: FiniteFloat
    master: Number = 1
    """The newest master's number when this version began."""


class TenantVersions(FileModel):
    """A tenant's current version, those that retire, and imported secrets. All of them newest first."""

    left_out: ClassVar[frozenset[str]] = frozenset({"master", "imported"})

    version: Number = 1
    master: Number = 1
    """The newest master's number when this version began."""
    retiring: tuple[RetiringVersion, ...] = ()
    imported: tuple[ImportedSecret, ...] = ()

    def spans(self, newest_master: int) -> Iterator[tuple[int, float, range]]:
        """Each version with the time until which it signs, and the numbers of the masters that were newest meanwhile.

        A consumer was only ever given a version's key of one of those masters, so that no other has to sign. Without
        this, ten rotations of a master and ten of a tenant would make a hundred signatures.
        """
        yield self.version, float("inf"), range(self.master, newest_master + 1)
        last = self.master
        for old in self.retiring:
            yield old.version, old.until, range(old.master, last + 1)
            last = old.master

    def rotated(self, now: float, until: float, newest_master: int) -> TenantVersions:
        """The next version. Those that sign still do so until their time, and none longer than the one before."""
        before = (RetiringVersion(version=self.version, until=until, master=self.master), *self.retiring)
        ending = (old.model_copy(update={"until": min(old.until, until)}) for old in before)
        return TenantVersions(
            version=self.version + 1,
            master=newest_master,
            retiring=tuple(old for old in ending if old.until > now),
            imported=tuple(one.retiring(until) for one in self.imported if one.retiring(until).signs(now)),
        )
