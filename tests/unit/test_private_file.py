"""Permissions of a file with a private key."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from workers.delivery.private_file import access_problem

PATH = Path("/etc/postback/keys")


def status(mode: int, owner: int, group: int = 10001) -> os.stat_result:
    return os.stat_result((stat.S_IFREG | mode, 1, 1, 1, owner, group, 1, 0, 0, 0))


@pytest.mark.parametrize(
    ("user", "mode", "owner", "refused_for"),
    [
        (10001, 0o600, 10001, None),
        (10001, 0o400, 10001, None),
        (10001, 0o440, 0, None),  # the chart's Secret, with defaultMode 0440 and the pod's fsGroup
        (10001, 0o640, 0, None),
        (10001, 0o600, 0, None),
        (0, 0o600, 0, None),
        (0, 0o440, 0, None),
        (10001, 0o644, 0, "chmod 600"),  # a Secret with Kubernetes' default mode
        (10001, 0o444, 0, "chmod 600"),
        (10001, 0o660, 0, "chmod 600"),
        (10001, 0o640, 10001, "chmod 600"),
        (10001, 0o604, 10001, "chmod 600"),
        (10001, 0o600, 1000, "chown 10001"),
        (10001, 0o440, 1000, "chown 10001"),
        (0, 0o600, 1000, "chown 0"),
    ],
)
def test_a_file_is_refused_that_a_stranger_owns_or_may_use(
    monkeypatch: pytest.MonkeyPatch, user: int, mode: int, owner: int, refused_for: str | None
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    problem = access_problem(status(mode, owner), PATH)
    assert (problem is None) == (refused_for is None)
    assert problem is None or (refused_for or "") in problem.fix


def test_root_may_administer_another_users_file_and_no_one_else_may(monkeypatch: pytest.MonkeyPatch) -> None:
    for user, allowed in ((0, True), (1000, False)):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        assert (access_problem(status(0o600, 10001), PATH, by_root=True) is None) is allowed
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert access_problem(status(0o644, 10001), PATH, by_root=True) is not None
