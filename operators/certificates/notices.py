"""Warnings about an authority, its revocation list and its certificates, each with the command to run."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509

from operators.certificates.index import Index
from operators.certificates.lifetimes import State, authority_state, days_left, state_at
from operators.certificates.revocation import crl_number


@dataclass(frozen=True, slots=True)
class Contents:
    """The public content of an authority's directory."""

    authority: x509.Certificate
    index: Index
    crl: x509.CertificateRevocationList | None
    """The revocation list; None if the list is missing or cannot be read."""


def crl_problem(crl: x509.CertificateRevocationList | None, index: Index, now: datetime) -> str | None:
    """Return the reason why the revocation list must be signed again; None if the list is good."""
    if crl is None:
        return "the revocation list is missing or unreadable, and a gateway needs it to start"
    if crl_number(crl) != index.crl_number:
        return "the revocation list is not the index's newest, as after an interrupted command"
    end = crl.next_update_utc
    if end is None or end < now:
        return "the revocation list is past its next update, and the gateway refuses every client certificate"
    if state_at(now, crl.last_update_utc, end) is State.EXPIRING:
        return f"the revocation list's next update is due {days_left(now, end)}"
    return None


def warnings_of(contents: Contents, directory: Path, now: datetime) -> Iterator[str]:
    """Yield the warnings about an authority's directory at this time.

    If a name has several certificates, only the newest one can cause a warning.
    """
    certificate, where = contents.authority, shlex.quote(str(directory))
    end = certificate.not_valid_after_utc
    state = authority_state(now, certificate.not_valid_before_utc, end)
    if state is not State.VALID:
        verb = "expired" if state is State.EXPIRED else "expires"
        yield (
            f"the authority {verb} {days_left(now, end)}: make a new one with `postback certs init` in another "
            "directory, and replace every certificate"
        )
    if state is State.EXPIRED:
        return  # an expired authority can sign no list and no certificate
    if (problem := crl_problem(contents.crl, contents.index, now)) is not None:
        yield f"{problem}: sign it again with `postback certs crl {where}`"
    for name, newest in contents.index.newest().items():
        if (state := newest.state(now)) in (State.EXPIRED, State.EXPIRING):
            verb = "expired" if state is State.EXPIRED else "expires"
            yield f"{name} {verb} {days_left(now, newest.not_after)}: `postback certs renew {where} {name}`"
