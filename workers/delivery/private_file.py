"""The access rule for files with a private key: owned by this process's user or root, and closed to strangers."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple

_ROOT = 0


class AccessProblem(NamedTuple):
    """The reason to refuse a file, and the fix."""

    problem: str
    fix: str


def access_problem(status: os.stat_result, path: Path, *, by_root: bool = False) -> AccessProblem | None:
    """Return the reason to refuse the file with this status; None if the file is fine.

    The owner must be this process's user or root: another owner could put other keys into the file at any time. With
    `by_root`, root may act on another user's file, for example to rotate a service user's keys. Only the owner may use
    the file, but the group may read a file of root's. Kubernetes mounts Secrets in this way for pods that do not run as
    root. libpq has the same rules for private keys (PostgreSQL's documentation, section 34.19.1).
    """
    user = os.geteuid()
    if status.st_uid not in (_ROOT, user) and not (by_root and user == _ROOT):
        problem = f"it belongs to user {status.st_uid}, and this process runs as user {user}"
        return AccessProblem(problem, f"run `chown {user} {path}`, or run the process as the file's owner")
    if is_open_to_others(status.st_mode, status.st_uid):
        return AccessProblem("it is open to other users of this machine", f"run `chmod 600 {path}`")
    return None


def is_open_to_others(mode: int, owner: int) -> bool:
    """True if the mode lets users besides the owner use the file. The group may read a file of root's."""
    allowed = stat.S_IRGRP if owner == _ROOT else 0
    return bool(mode & (stat.S_IRWXG | stat.S_IRWXO) & ~allowed)
