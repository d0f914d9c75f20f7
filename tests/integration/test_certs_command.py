"""`postback certs`, as an operator runs it."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cli.operations.certificates import AUTHORITY_DAYS, LEAF_DAYS, Leaf, init, issue
from telemetry.clock import SystemClock
from tests.postback_command import environment_of, postback_here

NOW = datetime.fromtimestamp(SystemClock().time(), UTC)


@pytest.fixture
def ca(tmp_path: Path) -> str:
    directory = tmp_path / "ca"
    assert certs("init", str(directory), "--name", "Acme CA").returncode == 0
    return str(directory)


def certs(*arguments: str) -> subprocess.CompletedProcess[str]:
    return postback_here("certs", *arguments, env=environment_of())


def openssl(*arguments: str | Path) -> str:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


def test_openssl_accepts_issued_certificates_by_its_strict_rules_until_they_are_revoked(
    ca: str, tmp_path: Path
) -> None:
    made = certs("issue", ca, "web", "--server", "--san", "web.example", "--san", "::1")
    assert (made.returncode, made.stdout) == (0, f"{ca}/web.pem\n{ca}/web.key\n")
    assert "for web.example, ::1; it expires on" in made.stderr
    client = json.loads(certs("issue", ca, "acme-1", "--client", "--tenant", "acme", "--json").stdout)
    both = tmp_path / "both.pem"

    def verified(name: str, purpose: str, *options: str) -> str:
        both.write_text(Path(ca, "ca.pem").read_text() + Path(ca, "crl.pem").read_text())
        checks: tuple[str | Path, ...] = ("-x509_strict", "-crl_check", "-CAfile", both, "-purpose", purpose, *options)
        return openssl("verify", *checks, Path(ca, f"{name}.pem"))

    assert verified("web", "sslserver", "-verify_ip", "::1").endswith(": OK\n")
    assert verified("web", "sslserver", "-verify_hostname", "web.example").endswith(": OK\n")
    assert "hostname mismatch" in verified("web", "sslserver", "-verify_hostname", "other.example")
    assert verified("acme-1", "sslclient").endswith(": OK\n")
    assert "certificate purpose" in verified("acme-1", "sslserver")
    revoked = certs("revoke", ca, "acme-1")
    assert (revoked.returncode, f"serial number {client['serial']}" in revoked.stderr) == (0, True)
    assert "certificate revoked" in verified("acme-1", "sslclient")
    again = certs("revoke", ca, "acme-1")
    assert (again.returncode, "has no valid certificate" in again.stderr) == (0, True)


def test_a_client_has_the_scopes_of_a_new_key_unless_some_are_named(ca: str) -> None:
    def scopes(name: str, *options: str) -> list[str]:
        made = certs("issue", ca, name, "--client", "--tenant", "acme", "--json", *options)
        return list(json.loads(made.stdout)["scopes"])

    assert scopes("all") == ["cancel", "read", "redrive", "submit", "webhooks"]
    assert scopes("some", "--scopes", "submit, read") == ["read", "submit"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("issue", "CA", "web"), "--server and --client"),
        (("issue", "CA", "web", "--server", "--client"), "--server and --client"),
        (("issue", "CA", "web", "--server", "--tenant", "acme"), "--tenant, --scopes"),
        (("issue", "CA", "web", "--client"), "needs --tenant"),
        (("issue", "CA", "web", "--client", "--tenant", "acme", "--san", "a"), "takes no --san"),
        (("issue", "CA", "web", "--client", "--tenant", "a b"), "--tenant: 1 to 63"),
        (("issue", "CA", "web", "--client", "--tenant", "acme", "--scopes", "sumbit"), "--scopes: choose from"),
        (("issue", "CA", "web", "--client", "--tenant", "acme", "--scopes", " ,"), "--scopes: choose from"),
        (("issue", "CA", "../web", "--server"), "NAME: "),
        (("issue", "CA", "web", "--server", "--san", "a\x1b[2Jb"), "--san: "),
    ],
)
def test_a_wrong_option_is_named_in_a_line_and_changes_nothing(ca: str, arguments: tuple[str, ...], named: str) -> None:
    before = sorted(Path(ca).rglob("*"))
    done = certs(*(argument.replace("CA", ca) for argument in arguments))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert named in done.stderr
    assert "\x1b" not in done.stderr
    assert sorted(Path(ca).rglob("*")) == before


def test_days_beyond_the_limits_are_refused_before_anything_is_made(ca: str) -> None:
    for arguments in (("issue", ca, "web", "--server", "--days", "399"), ("init", f"{ca}2", "--days", "0")):
        done = certs(*arguments)
        assert (done.returncode, "--days" in done.stderr) == (2, True)
    assert not Path(ca, "web.pem").exists()
    assert not Path(f"{ca}2").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("init", "CA"),
        ("renew", "CA", "web"),
        ("revoke", "CA", "web"),
        ("list", "CA/absent"),
        ("issue", "CA/absent", "web", "--server"),
        ("issue", "CA/ca.pem", "web", "--server"),
    ],
)
def test_an_operation_that_cannot_be_done_ends_with_status_1_and_a_line(ca: str, arguments: tuple[str, ...]) -> None:
    done = certs(*(argument.replace("CA", ca) for argument in arguments))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr


def test_the_list_shows_states_for_people_and_for_programs(tmp_path: Path) -> None:
    ca = tmp_path / "ca"
    init(ca, NOW - timedelta(days=200))
    issue(ca, Leaf.server("old", ("localhost",)), NOW - timedelta(days=100))
    issue(ca, Leaf.server("soon", ("localhost",)), NOW - timedelta(days=70))
    issue(ca, Leaf.client("acme-1", "acme", ["read"]), NOW)
    issue(ca, Leaf.client("gone", "acme"), NOW)
    certs("revoke", str(ca), "gone")
    lines = certs("list", str(ca)).stdout.splitlines()
    assert [line.split("  ")[0] for line in lines[:3]] == ["valid", "expired", "expiring"]
    assert lines[0].endswith("  authority  CN=Postback CA")
    ends = {"valid": "  acme-1  tenant acme", "revoked": "  gone  tenant acme"}
    assert all(any(line.startswith(state) and line.endswith(end) for line in lines[3:]) for state, end in ends.items())
    listed = json.loads(certs("list", str(ca), "--json").stdout)
    assert listed["authority"]["state"] == "valid"
    states = {"old": "expired", "soon": "expiring", "acme-1": "valid", "gone": "revoked"}
    assert {one["name"]: one["state"] for one in listed["certificates"]} == states
    assert [one["scopes"] for one in listed["certificates"] if one["name"] == "acme-1"] == [["read"]]
    renewed = json.loads(certs("renew", str(ca), "soon", "--days", "30", "--json").stdout)
    assert (renewed["state"], renewed["sans"]) == ("valid", ["localhost"])


def test_the_defaults_that_the_help_shows_are_those_of_the_operations(ca: str, tmp_path: Path) -> None:
    shown = json.loads(certs("list", ca, "--json").stdout)
    init(tmp_path / "other", NOW)
    bare = json.loads(certs("list", str(tmp_path / "other"), "--json").stdout)
    ends = [datetime.fromisoformat(found["authority"]["not_after"]) for found in (shown, bare)]
    assert abs(ends[0] - ends[1]) < timedelta(hours=1)
    assert abs(ends[1] - NOW - timedelta(days=AUTHORITY_DAYS)) < timedelta(hours=1)
    made = json.loads(certs("issue", ca, "web", "--server", "--san", "::1", "--json").stdout)
    assert abs(datetime.fromisoformat(made["not_after"]) - NOW - timedelta(days=LEAF_DAYS)) < timedelta(hours=1)
