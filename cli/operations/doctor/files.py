"""Checks files of secrets that others may read, and certificates that expire. No finding shows a file's content."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from cli.operations.certificates import State, authority_state, days_left, state_at
from cli.operations.doctor.findings import Finding, fault, warning
from telemetry.clock import Clock, SystemClock
from telemetry.private_file import access_problem

_LARGEST_BYTES = 16 * 1024 * 1024
_CLOCK = SystemClock()


def check_secret_files(files: Mapping[str, Path]) -> Iterator[Finding]:
    """Yield the faults of files of secrets: missing, unreadable or open to others.

    `files` maps each variable's name to a path.
    """
    for variable, path in files.items():
        try:
            with path.open("rb"):
                problem = access_problem(path.stat(), path, by_root=True)
        except (OSError, ValueError) as error:
            reason = (getattr(error, "strerror", None) or "no path of a file").lower()
            yield fault(f"the file of {variable} cannot be read ({reason})", f"correct the path in {variable}")
            continue
        if problem is not None:
            yield fault(f"the file of {variable}: {problem.problem}", problem.fix)


def check_certificates(files: Mapping[str, Path], clock: Clock = _CLOCK) -> Iterator[Finding]:
    """Yield the certificates that are expired or expire soon.

    `files` maps each variable or option to the path of a PEM file.
    """
    now = datetime.fromtimestamp(clock.time(), UTC)
    for name, path in files.items():
        certificates = _certificates(path)
        if certificates is None:
            yield fault(f"the file of {name} holds no certificate in PEM", f"correct the path in {name}")
            continue
        for certificate in certificates:
            yield from _lifetime(name, certificate, now)


def _certificates(path: Path) -> list[x509.Certificate] | None:
    """Return the file's certificates; None if it cannot be read or has none."""
    try:
        with path.open("rb") as file:
            return x509.load_pem_x509_certificates(file.read(_LARGEST_BYTES))
    except (OSError, ValueError):
        return None


def _lifetime(name: str, certificate: x509.Certificate, now: datetime) -> Iterator[Finding]:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    state = (authority_state if _is_authority(certificate) else state_at)(now, begin, end)
    about = f"a certificate of {name} ({_common_name(certificate)})"
    renew = f"replace the file of {name}; `postback certs renew` does so for certificates of `postback certs`"
    if begin > now:
        yield fault(f"{about} is not valid yet, or this machine's clock is slow", renew)
    elif state is State.EXPIRED:
        yield fault(f"{about} expired {days_left(now, end)}", renew)
    elif state is State.EXPIRING:
        yield warning(f"{about} expires {days_left(now, end)}", renew)


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False


def _common_name(certificate: x509.Certificate) -> str:
    try:
        names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    except ValueError:
        names = []
    return str(names[0].value) if names else "without a name"
