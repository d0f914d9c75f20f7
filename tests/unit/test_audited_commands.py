"""Commands that change keys and tenants write an audit line, and change nothing if this line cannot be written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.postback_command import environment_of, postback_here


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return environment_of(
        POSTBACK_STORE__URL=f"sqlite:///{tmp_path / 'store.db'}",
        POSTBACK_GATEWAY__AUDIT_FILE=tmp_path / "audit.jsonl",
    )


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]


def test_changes_of_keys_and_tenants_are_lines_with_the_user_and_no_key(env: dict[str, str], tmp_path: Path) -> None:
    made = json.loads(postback_here("api-keys", "create", "--tenant", "acme", "--json", env=env).stdout)
    for words, status in (
        (("api-keys", "revoke", made["id"]), 0),
        (("api-keys", "revoke", "none"), 1),
        (("tenants", "put", "acme", "{}"), 0),
        (("tenants", "put", "acme", "["), 2),
        (("tenants", "remove", "acme"), 0),
    ):
        assert postback_here(*words, env=env).returncode == status
    assert [
        (line["event.action"], line["event.type"], line["event.outcome"], line["postback.objects"])
        for line in lines(tmp_path)
    ] == [
        ("createKey", ["creation"], "success", [made["id"]]),
        ("revokeKey", ["deletion"], "success", [made["id"]]),
        ("revokeKey", ["deletion"], "failure", ["none"]),
        ("putTenant", ["change"], "success", ["acme"]),
        ("putTenant", ["change"], "failure", ["acme"]),
        ("deleteTenant", ["deletion"], "success", ["acme"]),
    ]
    assert all(line["user.id"].startswith("os:") for line in lines(tmp_path))
    assert lines(tmp_path)[0]["organization.id"] == "acme"
    assert made["key"] not in (tmp_path / "audit.jsonl").read_text()


def test_a_command_changes_nothing_where_its_line_cannot_be_written(env: dict[str, str], tmp_path: Path) -> None:
    broken = {**env, "POSTBACK_GATEWAY__AUDIT_FILE": str(tmp_path)}
    done = postback_here("api-keys", "create", "--tenant", "acme", env=broken)
    assert (done.returncode, done.stdout) == (1, "")
    assert "POSTBACK_GATEWAY__AUDIT_FILE cannot be opened (Is a directory); nothing was changed" in done.stderr
    assert postback_here("api-keys", "list", env=env).stdout == ""
