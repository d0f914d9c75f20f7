"""The versions of a tenant's derived keys, and the tenant's imported secrets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from pydantic import FiniteFloat

from workers.delivery.keyring.keys import FileModel, ImportedSecret, Number


class RetiringVersion(FileModel):
    """An old version of a tenant's keys, which signs until `until` (Unix seconds)."""

    left_out: ClassVar[frozenset[str]] = frozenset({"master"})

    version: Number
    until: FiniteFloat
    master: Number = 1
    """The newest master's number when this version began."""


class TenantVersions(FileModel):
    """A tenant's current version, retiring versions and imported secrets, each newest first."""

    left_out: ClassVar[frozenset[str]] = frozenset({"master", "imported"})

    version: Number = 1
    master: Number = 1
    """The newest master's number when this version began."""
    retiring: tuple[RetiringVersion, ...] = ()
    imported: tuple[ImportedSecret, ...] = ()

    def spans(self, newest_master: int) -> Iterator[tuple[int, float, range]]:
        """Yield each version, the Unix second at which it stops signing, and the numbers of its masters.

        A version's masters are the masters that were newest while the version was current. Consumers never got
        keys that other masters derive for this version, so those keys need not sign. Without this limit, ten rotations
        of a master and ten of a tenant would make a hundred signatures.
        """
        yield self.version, float("inf"), range(self.master, newest_master + 1)
        last = self.master
        for old in self.retiring:
            yield old.version, old.until, range(old.master, last + 1)
            last = old.master

    def rotated(self, now: float, until: float, newest_master: int) -> TenantVersions:
        """Return the state with the next version. Older keys sign until `until`, or until their own earlier end."""
        before = (RetiringVersion(version=self.version, until=until, master=self.master), *self.retiring)
        ending = (old.model_copy(update={"until": min(old.until, until)}) for old in before)
        return TenantVersions(
            version=self.version + 1,
            master=newest_master,
            retiring=tuple(old for old in ending if old.until > now),
            imported=tuple(one.retiring(until) for one in self.imported if one.retiring(until).signs(now)),
        )
