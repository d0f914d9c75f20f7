"""The pepper: the secret, outside the store, with which the digests of API keys are made.

The store keeps a check value of its pepper (a MAC over a constant). So a gateway whose file is lost or wrong does not
start; otherwise it would refuse clients' valid keys.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from pathlib import Path

from sqlalchemy import Connection, select

from gateway.store.dialects import insert, sqlite_file
from gateway.store.store import Store
from gateway.store.tables import meta
from telemetry.atomic_file import PrivateFileRefused, Replacement, only_writer, read_private, replace_files
from workers.system.errors import ProcessError

LEAST_BYTES = 32
_MOST_BYTES = 4096
_CHECK = "pepper_check"
_VARIABLE = "POSTBACK_ACCESS__PEPPER_FILE"


class PepperProblem(ProcessError):  # noqa: N818 - it names a thing, not a failure
    """The pepper is missing, unusable, or not this store's. The error's text shows no part of the pepper."""


def load_pepper(store: Store, store_url: str, file: Path | None) -> bytes:
    """Return the store's pepper, from the setting's file or from the file beside an SQLite database.

    If the store has no pepper yet, the file is made, and only its owner may read it. Raises PepperProblem, StoreAway.
    """
    path = file or _beside(store_url)
    known = store.read_now(_stored_check)
    pepper = _read(path)
    if pepper is None and known is not None:
        raise PepperProblem(
            f"the pepper's file {path} is missing, and the store has API keys made with it; restore the file from its "
            f"backup, or set {_VARIABLE} to its path"
        )
    if pepper is None:
        pepper = _create(path)
    check = _check_of(pepper)
    stored = known or store.submit(lambda connection: _store_check(connection, check)).result()
    if not hmac.compare_digest(stored, check):
        raise PepperProblem(
            f"the pepper in {path} is not the one that the store's API keys were made with; set {_VARIABLE} to the "
            "right file"
        )
    return pepper


def _beside(store_url: str) -> Path:
    """Return the default file of an SQLite database. Raises PepperProblem for a database without a file."""
    database = sqlite_file(store_url)
    if database is None:
        raise PepperProblem(
            f"set {_VARIABLE} to the file of the pepper for the digests of API keys; "
            "all gateways and commands on this database need the same file, and the first of them makes it"
        )
    return database.with_name(f"{database.name}.pepper")


def _read(path: Path) -> bytes | None:
    try:
        pepper = read_private(path, _MOST_BYTES, by_root=True).strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PepperProblem(f"the pepper's file {path} cannot be read ({error.strerror})") from None
    except PrivateFileRefused as refused:
        raise PepperProblem(f"the pepper's file {path} cannot be used: {refused}") from None
    if not LEAST_BYTES <= len(pepper) <= _MOST_BYTES:
        raise PepperProblem(
            f"the pepper's file {path} needs {LEAST_BYTES} to {_MOST_BYTES} characters; `openssl rand -hex 32` makes it"
        )
    return pepper


def _create(path: Path) -> bytes:
    """Make the file, or read the file that another process has just made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with only_writer(path.parent):
            if not path.exists():
                replace_files(Replacement(path, secrets.token_hex(LEAST_BYTES).encode() + b"\n"))
    except OSError as error:
        raise PepperProblem(
            f"the pepper's file {path} cannot be made ({error.strerror}); set {_VARIABLE} to another path"
        ) from None
    pepper = _read(path)
    if pepper is None:
        raise PepperProblem(f"the pepper's file {path} was removed while it was made; start again")
    return pepper


def _check_of(pepper: bytes) -> bytes:
    return hmac.digest(pepper, b"postback pepper check v1", hashlib.sha256).hex().encode()


def _stored_check(connection: Connection) -> bytes | None:
    found = connection.execute(select(meta.c.value).where(meta.c.name == _CHECK)).scalar()
    return found.encode() if found is not None else None


def _store_check(connection: Connection, check: bytes) -> bytes:
    """Write a check value if the store has none, and return the stored check value."""
    connection.execute(insert(connection, meta).on_conflict_do_nothing(), {"name": _CHECK, "value": check.decode()})
    stored = _stored_check(connection)
    return stored if stored is not None else check
