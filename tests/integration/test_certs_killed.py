"""An authority whose command was killed before a file operation, and one that several commands use at once."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from cli.operations.certificates import CertificatesError, Leaf, State, contents, init, issue, renew, revoke
from tests.integration.killed_certificates import NOW, OPERATIONS
from tests.postback_command import POSTBACK, environment_of


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Directories after a kill, each named after its operation and the number of file operations before the kill."""
    template, folder = tmp_path_factory.mktemp("template") / "ca", tmp_path_factory.mktemp("killed")
    init(template, NOW)
    issue(template, Leaf.client("old", "acme"), NOW)
    command: list[str | Path] = [sys.executable, "-m", "tests.integration.killed_certificates", template, folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    kills = json.loads(done.stdout)
    assert kills.keys() == OPERATIONS.keys()
    assert min(kills.values()) > 5
    return [folder / f"{name}-{count}" for name, most in kills.items() for count in range(most)]


def listed_serials(ca: Path) -> set[int]:
    return {one.serial_number for one in x509.load_pem_x509_crl((ca / "crl.pem").read_bytes())}


def check_is_usable(ca: Path) -> None:
    """Every certificate on the disk can be revoked, and the next commands mend the rest."""
    issued = {one.certificate.serial_number for one in contents(ca).issued}
    for path in ca.glob("*.pem"):
        if path.name not in ("ca.pem", "crl.pem"):
            assert x509.load_pem_x509_certificate(path.read_bytes()).serial_number in issued
    issue(ca, Leaf.server("another", ("localhost",)), NOW)
    for name in ("old", "new"):
        with suppress(CertificatesError):  # the kill came before the certificate's issue, or after its revocation
            renewed = renew(ca, name, NOW)
            certificate = x509.load_pem_x509_certificate(renewed.certificate.read_bytes())
            key = load_pem_private_key(renewed.key.read_bytes(), None)
            assert certificate.public_key() == key.public_key()
        if contents(ca).of_name(name):
            revoke(ca, name, NOW)
    states = {one.certificate.serial_number: one.state(NOW) for one in contents(ca).issued}
    assert listed_serials(ca) == {serial for serial, state in states.items() if state is State.REVOKED}
    assert list(states.values()).count(State.VALID) == 1
    assert not list(ca.glob("**/*unfinished*"))


def test_an_authority_is_usable_after_a_kill_before_any_file_operation(killed: list[Path]) -> None:
    for ca in killed:
        if ca.name.startswith("init"):
            with suppress(CertificatesError):  # a kill after the last file leaves a complete authority
                init(ca, NOW)
        check_is_usable(ca)


def test_no_certificate_that_was_issued_at_the_same_time_is_lost(tmp_path: Path) -> None:
    ca = tmp_path / "ca"
    init(ca, NOW)
    names = [f"client-{number}" for number in range(24)]
    with ThreadPoolExecutor(8) as threads:  # each thread opens the directory's lock for itself, as a process does
        list(threads.map(lambda name: issue(ca, Leaf.client(name, "acme"), NOW), names))
        list(threads.map(lambda name: revoke(ca, name, NOW), names[:12]))
    found = contents(ca)
    assert sorted(one.leaf.name for one in found.issued) == sorted(names)
    assert listed_serials(ca) == {int(one.serial, 16) for name in names[:12] for one in found.of_name(name)}
    assert found.crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 12


def test_two_commands_at_once_make_one_authority_and_two_certificates(tmp_path: Path) -> None:
    def at_once(*commands: list[str]) -> list[int]:
        started = [
            subprocess.Popen([POSTBACK, "certs", *command], env=environment_of(), stdout=subprocess.DEVNULL)
            for command in commands
        ]
        return sorted(process.wait(60) for process in started)

    ca = str(tmp_path / "ca")
    assert at_once(["init", ca], ["init", ca]) == [0, 1]
    assert at_once(["issue", ca, "a", "--server", "--san", "::1"], ["issue", ca, "b", "--server", "--san", "::1"]) == [
        0,
        0,
    ]
    assert {one.leaf.name for one in contents(Path(ca)).issued} == {"a", "b"}
