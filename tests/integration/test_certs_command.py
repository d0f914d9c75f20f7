"""`postback certs`, as an operator runs it."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cli.operations.certificates import AUTHORITY_DAYS, CRL_DAYS, LEAF_DAYS, Leaf, init, issue
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
    assert "DNS:web.example, IP:::1" in made.stderr
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
    revoked = certs("revoke", ca, client["serial"], "--reason", "KeyCompromise")
    assert (revoked.returncode, f"serial number {client['serial']}" in revoked.stderr) == (0, True)
    assert "certificate revoked" in verified("acme-1", "sslclient")
    assert "Key Compromise" in openssl("crl", "-in", f"{ca}/crl.pem", "-noout", "-text")
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
        (("issue", "CA", "web", "--client", "--tenant", "acme", "--scopes", "sumbit"), "no scope is called sumbit"),
        (("issue", "CA", "web", "--client", "--tenant", "acme", "--scopes", " ,"), "--scopes: name at least one"),
        (("issue", "CA", "../web", "--server"), "NAME: "),
        (("issue", "CA", "web", "--server", "--san", "a\x1b[2Jb"), "--san: "),
        (("issue", "CA", "web", "--server", "--days", "399"), "--days: 1 to 398 days"),
        (("revoke", "CA", "web", "--reason", "boredom"), "--reason: one of"),
        (("crl", "CA", "--days", "0"), "--days: 1 to"),
        (("init", "CA2", "--days", "0"), "--days: 1 to"),
    ],
)
def test_a_wrong_option_is_named_in_a_line_and_changes_nothing(ca: str, arguments: tuple[str, ...], named: str) -> None:
    before = Path(ca, "index.json").read_bytes()
    done = certs(*(argument.replace("CA", ca) for argument in arguments))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert named in done.stderr
    assert "\x1b" not in done.stderr
    assert Path(ca, "index.json").read_bytes() == before
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


def test_the_list_shows_states_for_people_and_for_programs_and_warns_of_the_next_end(tmp_path: Path) -> None:
    ca = tmp_path / "ca"
    init(ca, NOW - timedelta(days=200))
    issue(ca, Leaf.server("old", ("localhost",)), NOW - timedelta(days=100))
    issue(ca, Leaf.server("soon", ("localhost",)), NOW - timedelta(days=70))
    issue(ca, Leaf.client("acme-1", "acme", "read"), NOW)
    issue(ca, Leaf.client("gone", "acme"), NOW)
    certs("revoke", str(ca), "gone", "--reason", "cessationOfOperation")
    shown = certs("list", str(ca))
    assert [line.split("  ")[0] for line in shown.stdout.splitlines()] == ["expired", "expiring", "valid", "revoked"]
    assert shown.stdout.splitlines()[2].endswith("  acme-1  tenant acme")
    assert f"old expired 10 days ago: `postback certs renew {ca} old`" in shown.stderr
    assert f"soon expires in 19 days: `postback certs renew {ca} soon`" in shown.stderr
    listed = json.loads(certs("list", str(ca), "--json").stdout)
    assert listed["authority"]["state"] == "valid"
    assert (listed["crl"]["number"], listed["crl"]["problem"]) == (2, None)
    assert [(one["name"], one["state"], one["reason"]) for one in listed["certificates"]] == [
        ("old", "expired", None),
        ("soon", "expiring", None),
        ("acme-1", "valid", None),
        ("gone", "revoked", "cessationOfOperation"),
    ]
    assert listed["certificates"][2]["scopes"] == ["read"]
    renewed = certs("renew", str(ca), "soon", "--revoke", "--keep-key", "--days", "30", "--json")
    assert json.loads(renewed.stdout)["state"] == "valid"
    assert "revoked soon, serial number" in renewed.stderr
    assert "soon expires" not in certs("list", str(ca)).stderr


def test_the_defaults_that_the_help_shows_are_those_of_the_operations(ca: str, tmp_path: Path) -> None:
    shown = json.loads(certs("list", ca, "--json").stdout)
    init(tmp_path / "other", NOW)
    bare = json.loads(certs("list", str(tmp_path / "other"), "--json").stdout)
    for field, days in ((("authority", "not_after"), AUTHORITY_DAYS), (("crl", "next_update"), CRL_DAYS)):
        ends = [datetime.fromisoformat(found[field[0]][field[1]]) for found in (shown, bare)]
        assert abs(ends[0] - ends[1]) < timedelta(hours=1)
        assert abs(ends[1] - NOW - timedelta(days=days)) < timedelta(hours=1)
    made = json.loads(certs("issue", ca, "web", "--server", "--san", "::1", "--json").stdout)
    assert abs(datetime.fromisoformat(made["not_after"]) - NOW - timedelta(days=LEAF_DAYS)) < timedelta(hours=1)


def test_a_certificate_that_would_outlive_its_authority_is_shortened_with_a_notice(tmp_path: Path) -> None:
    ca = str(tmp_path / "short")
    assert certs("init", ca, "--days", "30").returncode == 0
    made = certs("issue", ca, "web", "--server", "--san", "::1")
    assert (made.returncode, "with its authority" in made.stderr) == (0, True)


def test_the_revocation_list_is_signed_again_by_its_command(ca: str) -> None:
    done = certs("crl", ca, "--days", "10")
    assert (done.returncode, "with 0 entries" in done.stderr) == (0, True)
    assert json.loads(certs("list", ca, "--json").stdout)["crl"]["number"] == 1
