"""Files with private keys: their permissions, and their replacement in one step."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from telemetry.private_file import Replacement, access_problem, only_writer, replace_files

PATH = Path("/etc/postback/keys")


def status(mode: int, owner: int, group: int = 10001) -> os.stat_result:
    return os.stat_result((stat.S_IFREG | mode, 1, 1, 1, owner, group, 1, 0, 0, 0))


@pytest.mark.parametrize(
    ("user", "mode", "owner", "refused_for"),
    [
        (10001, 0o600, 10001, None),
        (10001, 0o400, 10001, None),
        (10001, 0o440, 0, None),  # the chart's Secret has this mode by its defaultMode 0440 and the pod's fsGroup
        (10001, 0o640, 0, None),
        (10001, 0o600, 0, None),
        (0, 0o600, 0, None),
        (0, 0o440, 0, None),
        (10001, 0o644, 0, "chmod 600"),  # a Secret has this mode by Kubernetes' default
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


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_a_new_file_is_private_or_public_under_any_umask(tmp_path: Path, umask: int) -> None:
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    before = os.umask(umask)
    try:
        replace_files(Replacement(key, b"k"), Replacement(certificate, b"c", private=False))
    finally:
        os.umask(before)
    assert (mode_of(key), mode_of(certificate)) == (0o600, 0o644)


@pytest.mark.parametrize(
    ("before", "private", "after"),
    [(0o400, True, 0o400), (0o644, True, 0o600), (0o666, True, 0o600), (0o640, False, 0o640), (0o444, False, 0o444)],
)
def test_a_replaced_file_keeps_its_mode_unless_others_could_use_a_private_one(
    tmp_path: Path, before: int, private: bool, after: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(before)
    replace_files(Replacement(path, b"new", private=private))
    assert (path.read_bytes(), mode_of(path)) == (b"new", after)


def test_a_link_is_followed_so_that_the_file_behind_it_is_replaced(tmp_path: Path) -> None:
    path, link = tmp_path / "file", tmp_path / "link"
    path.write_bytes(b"old")
    link.symlink_to(path)
    replace_files(Replacement(link, b"new"))
    assert link.is_symlink()
    assert path.read_bytes() == b"new"


def test_no_file_changes_if_one_of_them_cannot_be_written(tmp_path: Path) -> None:
    first = tmp_path / "first"
    first.write_bytes(b"old")
    with pytest.raises(OSError, match="No such file"):
        replace_files(Replacement(first, b"new"), Replacement(tmp_path / "absent" / "second", b"new"))
    assert first.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [first]


def test_a_file_that_a_crash_left_unfinished_is_removed_by_the_next_writer(tmp_path: Path) -> None:
    left, other = tmp_path / ".key.abc.unfinished", tmp_path / ".hidden"
    left.write_bytes(b"half a key")
    other.write_bytes(b"another program's file")
    with only_writer(tmp_path):
        assert list(tmp_path.iterdir()) == [other]
