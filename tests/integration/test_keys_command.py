"""`postback keys rotate` and `import`, as an operator runs them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from schemas.signature import generate_secret
from tests.postback_command import environment_of, postback_here


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keyring.json"


@pytest.fixture
def env(path: Path) -> dict[str, str]:
    return environment_of(POSTBACK_KEYRING=path)


@pytest.fixture
def made(env: dict[str, str]) -> None:
    assert postback_here("keys", "init", env=env).returncode == 0


def keys_of(env: dict[str, str], tenant: str = "acme") -> dict[str, Any]:
    shown = postback_here("keys", "show", "--tenant", tenant, "--reveal", "--json", env=env)
    return dict(json.loads(shown.stdout))


def imported(env: dict[str, str], tenant: str, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return postback_here("keys", "import", "--tenant", tenant, *arguments, env=env, given=text)


def test_a_tenant_and_the_master_are_rotated_with_an_overlap_and_a_leak_leaves_one_key(
    made: None, env: dict[str, str]
) -> None:
    first = keys_of(env)
    assert "sign until" in postback_here("keys", "rotate", "--tenant", "acme", "--overlap", "2h", env=env).stderr
    assert "sign until" in postback_here("keys", "rotate", "--master", "--overlap", "24h", env=env).stderr
    both = keys_of(env)
    for name in ("secrets", "public_keys"):
        assert len(both[name]) == 3
        assert both[name][2:] == first[name]
    others = keys_of(env, "victim")
    assert len(others["secrets"]) == 2
    jwks = json.loads(postback_here("keys", "show", "--tenant", "acme", "--jwks", env=env).stdout)
    assert [key["kid"].rsplit("/", 1)[0] for key in jwks["keys"]] == ["acme/2", "acme/2", "acme/1"]
    assert postback_here("keys", "rotate", "--master", "--leaked", env=env).returncode == 0
    for tenant, before in (("acme", both), ("victim", others)):
        after = keys_of(env, tenant)
        for name in ("secrets", "public_keys"):
            assert len(after[name]) == 1
            assert after[name][0] not in before[name]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("rotate", "--overlap", "soon"), "--overlap"),
        (("rotate", "--overlap", "400d"), "--overlap"),
        (("rotate", "--overlap", "-1h"), "--overlap"),
    ],
)
def test_a_wrong_option_is_named_in_a_line_and_changes_nothing(
    made: None, env: dict[str, str], path: Path, arguments: tuple[str, ...], named: str
) -> None:
    before = path.read_bytes()
    done = postback_here("keys", *arguments, env=env)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert named in done.stderr
    assert path.read_bytes() == before


def test_a_secret_is_imported_from_standard_input_or_a_file_and_signs_beside_the_derived_one(
    made: None, env: dict[str, str], tmp_path: Path
) -> None:
    [derived], secret, other = keys_of(env)["secrets"], generate_secret(), generate_secret()
    done = imported(env, "acme", f"{secret}\n")
    assert (done.returncode, done.stdout) == (0, "")
    assert secret not in done.stderr
    (tmp_path / "secret").write_text(f"{other}\n")
    assert imported(env, "acme", "", "--file", str(tmp_path / "secret")).returncode == 0
    assert keys_of(env)["secrets"] == [other, secret, derived]
    assert postback_here("keys", "rotate", "--tenant", "acme", "--overlap", "1h", env=env).returncode == 0
    new, *rest = keys_of(env)["secrets"][::-1]
    assert {new, *rest} > {secret, other, derived}


def test_a_secret_that_cannot_be_imported_is_refused_in_a_line_that_does_not_show_it(
    made: None, env: dict[str, str], path: Path, tmp_path: Path
) -> None:
    secret = generate_secret()
    assert imported(env, "acme", secret).returncode == 0
    before = path.read_bytes()
    (tmp_path / "binary").write_bytes(b"\xff\xfe" * 50)
    for code, done in (
        (2, imported(env, "victim", "hush")),
        (2, imported(env, "victim", "")),
        (2, imported(env, "victim", "whsec_hush")),
        (2, imported(env, "victim", "", "--file", str(tmp_path / "absent"))),
        (2, imported(env, "victim", "", "--file", str(tmp_path / "binary"))),
        (1, imported(env, "victim", secret)),
    ):
        assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
        assert "hush" not in done.stderr
        assert secret.removeprefix("whsec_") not in done.stderr
    assert path.read_bytes() == before


def test_a_secret_is_never_an_argument(made: None, env: dict[str, str]) -> None:
    done = postback_here("keys", "import", generate_secret(), env=env)
    assert done.returncode == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_root_rotates_the_keys_of_deliverys_user_and_does_not_sign_with_them(
    made: None, env: dict[str, str], path: Path
) -> None:
    os.chown(path, 10001, 10001)
    assert postback_here("keys", "rotate", env=env).returncode == 0
    assert path.stat().st_uid == 10001
    refused = postback_here("receive", "--port", "0", env=env)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "belongs to user 10001" in refused.stderr
    assert "chown 0" in refused.stderr
