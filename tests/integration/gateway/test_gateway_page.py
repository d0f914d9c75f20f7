"""Runs the commands and the program of docs/howto/gateway.md as the page has them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet_here import FleetHere
from tests.integration.gateway.gateway_process import Gateway, running_gateway
from tests.postback_command import POSTBACK
from tests.postgres_server import PostgresServer

pytestmark = pytest.mark.broker
PAGE = (Path(__file__).parents[3] / "docs" / "howto" / "gateway.md").read_text()
START, KEY, JOB, BATCH, EVENTS, POSTGRESQL, TRACE = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
[PROGRAM] = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def served(module_fleet_here: FleetHere) -> Iterator[Gateway]:
    """The page's gateway on a free port, beside an echo worker."""
    module_fleet_here.worker("w")
    with running_gateway(module_fleet_here) as started:
        yield started


def run(gateway: Gateway, *blocks: str) -> str:
    """Run blocks of the page in one shell, against this gateway; return the output of the last block."""
    text = f"\necho {'-' * 20}\n".join(blocks).replace("http://127.0.0.1:8080", gateway.url)
    environment = gateway.environment()
    environment["PATH"] = f"{POSTBACK.parent}:{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", text],
        cwd=gateway.product.folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout.rpartition("-" * 20)[2]


def test_the_page_starts_the_gateway_that_the_contract_names() -> None:
    assert "postback gateway --port 8080" in START


@pytest.mark.postgresql
def test_the_gateway_starts_on_postgresql_with_the_page_s_variables(
    module_fleet_here: FleetHere, postgres: PostgresServer
) -> None:
    store, folder = postgres.new_database(), module_fleet_here.folder
    page = POSTGRESQL.replace("postgresql+psycopg://postback:PASSWORD@db.example/postback", store)
    variables = dict(re.findall(r"(POSTBACK_\w+)=(\S+)", page.replace("=pepper", f"={folder / 'pepper'}")))
    assert variables["POSTBACK_STORE__URL"] == store
    gateway = Gateway(module_fleet_here.gateway("postgresql", "--port", "0", **variables), module_fleet_here, store)
    gateway.wait_until_ready()
    _, read = run(gateway, KEY, JOB.replace("sky-1", "sky-2")).replace("}{", "}\n{").strip().splitlines()
    assert json.loads(read)["id"] == "sky-2"
    gateway.role.end()


def test_a_job_is_accepted_read_streamed_and_traced(served: Gateway) -> None:
    accepted, read = run(served, KEY, JOB).replace("}{", "}\n{").strip().splitlines()
    assert (json.loads(accepted)["id"], json.loads(read)["id"]) == ("sky-1", "sky-1")
    assert "event: inference.succeeded" in run(served, KEY, EVENTS)
    assert run(served, TRACE).startswith("job        sky-1, tenant acme, succeeded")


def test_a_batch_is_uploaded_run_and_downloaded(served: Gateway) -> None:
    lines = run(served, KEY, BATCH).strip().splitlines()
    assert [json.loads(line)["custom_id"] for line in lines] == ["a", "b"]


def test_openais_sdk_needs_two_variables_only(served: Gateway) -> None:
    program = f"python - <<'PROGRAM'\n{PROGRAM}PROGRAM\n"
    assert "Why is the sky blue?" in run(served, KEY, program)
