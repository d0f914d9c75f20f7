"""Runs the commands of docs/howto/certificates.md as the page has them, and clients with and without certificates."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fleet_here import FleetHere
from tests.integration.gateway.gateway_process import Gateway, running_gateway
from tests.postback_command import POSTBACK, environment_of, postback_here
from tests.product import eventually

pytestmark = pytest.mark.broker
PAGE = (Path(__file__).parents[3] / "docs" / "howto" / "certificates.md").read_text()
MAKE, SERVE, LET_IN, REVOKE = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def run(commands: str, folder: Path, port: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a block of the page in the folder, against the gateway on this port."""
    environment = {**environment_of(), "PATH": f"{POSTBACK.parent}:{environment_of()['PATH']}"}
    text = commands.replace(":8443", f":{port}")
    return subprocess.run(
        ["bash", "-e", "-c", text], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.fixture(scope="module")
def folder(module_fleet_here: FleetHere) -> Path:
    """The folder in which an operator runs the page's commands."""
    made = run(MAKE, module_fleet_here.folder)
    assert made.returncode == 0, made.stderr
    return module_fleet_here.folder


@pytest.fixture(scope="module")
def served(module_fleet_here: FleetHere, folder: Path) -> Iterator[Gateway]:
    """The page's gateway, on a free port."""
    _, _, *options = shlex.split(SERVE)
    here = [str(folder / option) if option.startswith("ca/") else option for option in options]
    with running_gateway(module_fleet_here, *here, POSTBACK_ENV="production") as started:
        yield started


def curl(gateway: Gateway, folder: Path, name: str | None, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Request the models with the certificate of this name; return the status, or 0 without an answer, and the body."""
    ca, url = folder / "ca", f"{gateway.url}/v1/models"
    shown = () if name is None else ("--cert", ca / f"{name}.pem", "--key", ca / f"{name}.key")
    done = subprocess.run(
        ["curl", "-s", "--cacert", ca / "ca.pem", *shown, *arguments, "-w", "\n%{http_code}", url],
        capture_output=True,
        text=True,
        timeout=60,
    )
    body, _, status = done.stdout.rpartition("\n")
    return int(status), json.loads(body or "{}")


def test_the_commands_of_the_page_admit_a_client_and_revoke_it_while_the_gateway_serves(
    served: Gateway, folder: Path
) -> None:
    let_in = run(LET_IN, folder, served.port)
    assert let_in.returncode == 0, let_in.stderr
    assert json.loads(let_in.stdout.splitlines()[-1])["object"] == "list"
    assert curl(served, folder, "acme-1")[0] == 200
    revoked = run(REVOKE, folder)
    assert revoked.returncode == 0, revoked.stderr
    eventually(lambda: curl(served, folder, "acme-1")[0] == 0, 30, "the revoked client still gets in")
    assert curl(served, folder, None)[0] == 401  # any answer shows that curl trusts the renewed server


def test_another_authoritys_list_is_named_by_an_option(module_fleet_here: FleetHere, folder: Path) -> None:
    issued(folder, "leaver", "acme")
    for name in ("ca.pem", "crl.pem"):
        shutil.copy(folder / "ca" / name, folder / f"clients-{name}")
    assert postback_here("certs", "revoke", str(folder / "ca"), "leaver", env={}).returncode == 0
    _, _, *options = shlex.split(SERVE.replace("ca/ca.pem", "clients-ca.pem"))
    files = [str(folder / option) if option.endswith((".pem", ".key")) else option for option in options]
    named = ("--client-crl", str(folder / "ca" / "crl.pem"))
    for crl, status in (((), 200), (named, 0)):
        with running_gateway(module_fleet_here, *files, *crl, POSTBACK_ENV="production") as started:
            assert curl(started, folder, "leaver")[0] == status


def issued(folder: Path, name: str, tenant: str, *options: str) -> None:
    made = postback_here("certs", "issue", str(folder / "ca"), name, "--client", "--tenant", tenant, *options, env={})
    assert made.returncode == 0, made.stderr


def test_the_scopes_and_the_tenant_of_a_certificate_are_those_of_its_requests(served: Gateway, folder: Path) -> None:
    issued(folder, "writer", "acme", "--scopes", "submit")
    issued(folder, "all", "acme")
    status, body = curl(served, folder, "writer")
    assert (status, body["error"]["code"]) == (403, "insufficient_permissions")
    assert curl(served, folder, "all")[0] == 200
    for tenant, expected in (("acme", 200), ("globex", 401)):
        header = f"authorization: Bearer {served.key(tenant)}"
        assert curl(served, folder, "all", "-H", header)[0] == expected
        assert curl(served, folder, None, "-H", header)[0] == 200


def test_another_sites_page_cannot_use_the_certificate_of_a_browser(served: Gateway, folder: Path) -> None:
    issued(folder, "browser", "acme")
    for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)):
        assert curl(served, folder, "browser", "-H", f"sec-fetch-site: {site}")[0] == status
