"""The lifetimes of authorities, certificates and revocation lists, and the times at which they need renewal."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType

from operators.certificates.errors import InputRefused

AUTHORITY_DAYS = 3650
LEAF_DAYS = 90
CRL_DAYS = 180
"""Days from a revocation list to its next update. Operations that sign also sign an expiring list again, so renewals
every 90 days keep the list valid. If the list is overdue, no client certificate is accepted.
"""
MOST_DAYS = MappingProxyType({"authority": 7300, "server": 398, "client": 825, "crl": 3650})
"""Limits in days. Browsers accept a server's certificate only if it is valid for at most 398 days (CA/Browser Forum,
ballot SC31)."""

SKEW = timedelta(minutes=5)
"""The validity of certificates and lists begins this long before they are signed, so that a machine whose clock is slow
accepts them."""
_AUTHORITY_NOTICE = timedelta(days=180)
_SECOND = timedelta(seconds=1)


class State(StrEnum):
    """The state of a certificate, an authority or a revocation list at some time."""

    VALID = "valid"
    EXPIRING = "expiring"
    """The object is in the last third of its life, and should be renewed."""
    EXPIRED = "expired"
    REVOKED = "revoked"


def checked_days(option: str, days: int, kind: str) -> int:
    """Return the days if they are within the limit of this kind. Raises InputRefused."""
    if not 1 <= days <= MOST_DAYS[kind]:
        raise InputRefused(f"{option}: 1 to {MOST_DAYS[kind]} days, not {days}")
    return days


def validity(days: int, now: datetime, end: datetime | None = None) -> tuple[datetime, datetime]:
    """Return the first and the last second of a certificate for `days` days.

    The certificate ends with its authority at the latest. Both seconds belong to the lifetime (RFC 5280, section
    4.1.2.5).
    """
    begin = now.replace(microsecond=0) - SKEW
    last = begin + timedelta(days=days) - _SECOND
    return begin, last if end is None else min(last, end)


def state_at(now: datetime, begin: datetime, end: datetime, notice: timedelta | None = None) -> State:
    """Return the state of an object with this lifetime.

    By default, notice is given in the last third of the lifetime.
    """
    if end < now:
        return State.EXPIRED
    return State.EXPIRING if end - now <= (notice or (end - begin) / 3) else State.VALID


def authority_state(now: datetime, begin: datetime, end: datetime) -> State:
    """Return an authority's state.

    It is `EXPIRING` in the last half year, because its leaves must be replaced before its end.
    """
    return state_at(now, begin, end, min(_AUTHORITY_NOTICE, (end - begin) / 3))


def days_left(now: datetime, end: datetime) -> str:
    """Return the time to the end as text for people, such as `in 12 days` or `3 days ago`."""
    days = abs(end - now).days
    count = "less than a day" if days == 0 else "1 day" if days == 1 else f"{days} days"
    return f"{count} ago" if end < now else f"in {count}"
