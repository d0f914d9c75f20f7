"""The rule for a file with a private key: open to its owner, who is this process's user or root, and to no stranger."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple

_ROOT = 0


class AccessProblem(NamedTuple):
    """Why a file is refused, and the fix."""

    problem: str
    fix: str


def access_problem(status: os.stat_result, path: Path, *, by_root: bool = False) -> AccessProblem | None:
    """Why this process refuses the file with that status; None where nothing is wrong.

    Its owner has to be this process's user or root: another owner could put other keys into it at any time. With
    `by_root` root may act on another user's file, as an administrator who rotates the keys of a service's user does.
    Only the owner may use the file, and the group may read a file of root's: a Secret is mounted like that into a pod
    that does not run as root. libpq has the same rules for its keys (PostgreSQL's documentation, section 34.19.1).
    """
    user = os.geteuid()
    if status.st_uid not in (_ROOT, user) and not (by_root and user == _ROOT):
        problem = f"it belongs to user {status.st_uid}, and this process runs as user {user}"
        return AccessProblem(problem, f"run `chown {user} {path}`, or run the process as the file's owner")
    if is_open_to_others(status.st_mode, status.st_uid):
        return AccessProblem("it is open to other users of this machine", f"run `chmod 600 {path}`")
    return None


def is_open_to_others(mode: int, owner: int) -> bool:
    """Whether the mode lets anyone use the file besides its owner, and its group reading a file of root's."""
    allowed = stat.S_IRGRP if owner == _ROOT else 0
    return bool(mode & (stat.S_IRWXG | stat.S_IRWXO) & ~allowed)
