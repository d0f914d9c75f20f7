"""The authority's index: every certificate that it issued, and the state of its revocation list."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from operators.certificates.issuing import Leaf
from operators.certificates.lifetimes import CRL_DAYS, State, state_at
from operators.certificates.revocation import Reason, Revocation

_SLOW_CLOCKS = timedelta(days=1)
_SEPARATORS = re.compile(r"[:\s]")


class IssuedCertificate(Leaf):
    """A certificate that the authority issued."""

    serial: str = Field(pattern=r"^(?:[0-9A-F]{2})+$")
    """The serial number in hexadecimal digits, as `openssl x509 -serial` prints it."""
    days: int
    """The lifetime that was requested. The certificate's own lifetime is shorter if the authority ends earlier."""
    not_before: datetime
    not_after: datetime
    revoked_at: datetime | None = None
    reason: Reason | None = None

    def state(self, now: datetime) -> State:
        """Return the certificate's state."""
        return State.REVOKED if self.revoked_at is not None else state_at(now, self.not_before, self.not_after)

    def is_in_use(self, now: datetime) -> bool:
        """True if the certificate is neither expired nor revoked."""
        return self.state(now) in (State.VALID, State.EXPIRING)

    @property
    def leaf(self) -> Leaf:
        """The content of the certificate that a renewal copies: all but the key and the lifetime."""
        return Leaf.model_validate(self.model_dump(include=set(Leaf.model_fields)))


class Index(BaseModel):
    """The content of the index's file."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    format: Literal[1] = 1
    crl_number: int = 0
    """The number of the newest revocation list."""
    crl_days: int = CRL_DAYS
    """The days from one list to its next update."""
    certificates: tuple[IssuedCertificate, ...] = ()
    """All certificates, the oldest first."""

    def with_issued(self, issued: IssuedCertificate) -> Index:
        """Return the index with one more certificate."""
        return self.model_copy(update={"certificates": (*self.certificates, issued)})

    def with_revoked(self, serials: set[str], at: datetime, reason: Reason) -> Index:
        """Return the index with these certificates revoked."""
        revoked = {"revoked_at": at, "reason": reason}
        return self.model_copy(
            update={
                "certificates": tuple(
                    one.model_copy(update=revoked) if one.serial in serials else one for one in self.certificates
                )
            }
        )

    def with_next_crl(self, days: int | None = None) -> Index:
        """Return the index for one more revocation list."""
        return self.model_copy(update={"crl_number": self.crl_number + 1, "crl_days": days or self.crl_days})

    def of_name(self, name: str) -> list[IssuedCertificate]:
        """Return the certificates of a name, oldest first."""
        return [one for one in self.certificates if one.name == name]

    def of_serial(self, text: str) -> list[IssuedCertificate]:
        """Return the certificate with a serial number, in any common notation: with colons, lower case or `0x`."""
        digits = _SEPARATORS.sub("", text).upper().removeprefix("0X").lstrip("0")
        return [one for one in self.certificates if one.serial.lstrip("0") == digits]

    def newest(self) -> dict[str, IssuedCertificate]:
        """Return the newest certificate of each name."""
        return {one.name: one for one in self.certificates}

    def revocations(self, now: datetime) -> Iterator[Revocation]:
        """Yield the entries of a revocation list. A certificate that expired a day ago needs no entry.

        The day is for servers whose clocks are slow: to them the certificate has not expired yet.
        """
        for one in self.certificates:
            if one.revoked_at is not None and one.not_after + _SLOW_CLOCKS >= now:
                yield Revocation(int(one.serial, 16), one.revoked_at, one.reason or Reason.UNSPECIFIED)
