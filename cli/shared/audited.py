"""Appends a line to POSTBACK_GATEWAY__AUDIT_FILE for each command that changes keys, tenants, jobs or dead letters.

Without that setting, a command writes no audit line, since its standard output is for data.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cli.shared.errors import FAILED, fail
from cli.shared.settings import checked_settings

if TYPE_CHECKING:
    from telemetry.audit import Audit, Type

MOST_OBJECTS = 1_000
"""The largest number of ids in one audit line."""


@contextmanager
def audited(action: str, kind: Type, tenant: str | None, objects: Sequence[str] = ()) -> Iterator[list[str]]:
    """Write one audit line when the block ends. The line records a failure if the block raises.

    The block may append further ids of objects to the yielded list. The audit file is opened before the block runs, so
    a command whose line cannot be written changes nothing.
    """
    named, audit = list(objects), _opened()
    succeeded = False
    try:
        yield named
        succeeded = True
    finally:
        if audit is not None:
            from telemetry.audit import AuditEvent

            audit.record(AuditEvent(action, kind, succeeded, _user(), tenant, named[:MOST_OBJECTS]))
            audit.close()


def _opened() -> Audit | None:
    """Return the audit log; None if no file is set for it. Ends the command if the file cannot be opened."""
    from gateway.door.settings import GatewaySettings
    from telemetry.audit import Audit
    from telemetry.clock import SystemClock

    path = checked_settings(GatewaySettings).audit_file
    if path is None:
        return None
    try:
        return Audit(path, SystemClock(), "postback")
    except OSError as error:
        text = f"POSTBACK_GATEWAY__AUDIT_FILE cannot be opened ({error.strerror}); nothing was changed"
        raise fail(text, FAILED) from None


def _user() -> str:
    """Return the name of the process's user, as the audit names a credential: `os:` and the name or the number."""
    try:
        return f"os:{pwd.getpwuid(os.getuid()).pw_name}"
    except KeyError:
        return f"os:{os.getuid()}"
