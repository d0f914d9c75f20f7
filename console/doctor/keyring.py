"""Checks the keyring, which may be missing, unreadable, open to other users, or no keyring."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from operators.doctor.findings import Finding, fault


def check_keyring(path: str | None, *, required: bool) -> Iterator[Finding]:
    """Yield the faults of the keyring. A missing path is a fault only if a role requires a keyring."""
    from workers.delivery.keyring import Keyring, KeyringError, KeyringMissing

    if not path:
        if required:
            yield fault("POSTBACK_KEYRING is not set, and delivery signs with its keys", "set it to the keyring's path")
        return
    try:
        Keyring.load(Path(path), by_root=True)
    except KeyringMissing:
        yield fault(f"there is no keyring at {path}", "run `postback keys init`, or correct POSTBACK_KEYRING")
    except KeyringError as error:
        problem, _, fix = str(error).rpartition("; ")
        yield fault(problem, fix)
