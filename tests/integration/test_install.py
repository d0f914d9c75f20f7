"""The base install needs neither vLLM nor a compiled Kafka client; the bill of materials names each pinned package."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tests.postback_command import environment_of

ABSENT = (
    *("aiohttp", "confluent_kafka", "protego", "resiliparse", "selectolax", "Stemmer", "torch", "uvloop", "vllm"),
    *("fastapi", "httptools", "joserfc", "psycopg", "sqlalchemy", "starlette", "uvicorn"),
)


def without_extras(code: str, *arguments: str, **variables: str | Path) -> subprocess.CompletedProcess[str]:
    """Run code in a Python that cannot import the extras."""
    hidden = f"import sys\nfor name in {ABSENT}: sys.modules[name] = None\n"
    return subprocess.run(
        [sys.executable, "-c", hidden + code, *arguments],
        env=environment_of(**variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def command(*arguments: str, **variables: str | Path) -> subprocess.CompletedProcess[str]:
    return without_extras("from cli.main import run; run()", *arguments, **variables)


@pytest.mark.parametrize(
    "arguments",
    [
        *((), ("submit",), ("receive",), ("keys", "init"), ("topics", "create"), ("broker",), ("exporter",)),
        *(
            ("replay",),
            ("dead-letters", "redrive"),
            ("endpoints", "deliveries"),
            ("topics", "backlog"),
            ("results",),
            ("certs", "issue"),
        ),
    ],
)
def test_every_help_text_is_there(arguments: tuple[str, ...]) -> None:
    shown = command(*arguments, "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "Usage: " in shown.stdout


def test_help_imports_no_client_and_no_engine() -> None:
    code = "import cli.main, sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = set(without_extras(code).stdout.split())
    assert "typer" in loaded
    assert loaded.isdisjoint({"kafka", "cryptography", "nacl", "opentelemetry", "pydantic", "pydantic_settings"})


def test_the_producer_can_be_imported() -> None:
    modules = (
        "producers.client",
        "producers.receipts",
        "producers.results",
        "cli.operations.topics",
        "cli.operations.replay",
    )
    others = ("cli.operations.dead_letters", "cli.operations.deliveries", "cli.operations.backlog")
    done = without_extras("\n".join(f"import {name}" for name in modules + others))
    assert (done.returncode, done.stderr) == (0, "")


def test_an_authority_issues_without_the_gateways_libraries(tmp_path: Path) -> None:
    assert command("certs", "init", str(tmp_path / "ca")).returncode == 0
    issued = command("certs", "issue", str(tmp_path / "ca"), "one", "--client", "--tenant", "acme", "--scopes", "read")
    assert (issued.returncode, issued.stdout) == (0, f"{tmp_path}/ca/one.pem\n{tmp_path}/ca/one.key\n")


def test_the_backlog_is_read_with_the_done_offsets_of_the_ledgers() -> None:
    modules = "cli.fleet.topics, cli.operations.exporter.exporter, cli.operations.exporter.reading"
    done = without_extras(f"import {modules}, workers.stage.progress")
    assert (done.returncode, done.stderr) == (0, "")


def test_keys_can_be_made_and_a_command_that_needs_more_says_what_to_install(tmp_path: Path) -> None:
    keyring = tmp_path / "keyring.json"
    assert command("keys", "init", POSTBACK_KEYRING=keyring).returncode == 0
    done = command("receive", "--port", "0", POSTBACK_KEYRING=keyring)
    assert done.returncode == 2
    assert done.stderr == "postback: this command needs aiohttp: pip install 'postback[worker]'\n"


def test_a_producer_is_warned_of_plain_http_unless_its_environment_says_that_workers_allow_it() -> None:
    code = """
from cli.send.job_warnings import warn_of_refused
from cli.shared.settings import fleet_settings
from schemas.job import Job
urls = ("http://a.example/?token=secret", "https://a.example:9/", "https://[2001:db8::1::2]/hook")
warn_of_refused(enumerate((Job(prompt="q", callback_url=url) for url in urls), start=1), fleet_settings())
"""
    warned = without_extras(code).stderr.splitlines()
    assert warned[0] == "postback: line 1: callback_url: http://a.example: https is required; use https"
    unreadable = "postback: line 3: callback_url: not a URL that can be read; correct its host, port or brackets"
    assert warned[1] == unreadable
    assert without_extras(code, POSTBACK_ENV="development").stderr.splitlines()[0] == unreadable
    listed = without_extras(code, POSTBACK_EGRESS__ALLOW_CALLBACKS="a.example").stderr
    assert listed.splitlines()[0] == unreadable


# -- `scripts/sbom` ------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[2]
PINNED = re.compile(r"^([a-z0-9-]+)(?:\[[a-z,]*\])?==([^ ;]+)", re.MULTILINE)


def printed() -> str:
    return subprocess.run([ROOT / "scripts" / "sbom"], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def text() -> str:
    return printed()


def test_each_pinned_package_is_named_with_its_hashes_in_a_valid_document(text: str) -> None:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    document = json.loads(text)
    pinned = dict(PINNED.findall((ROOT / "requirements" / "worker.txt").read_text()))
    assert pinned
    assert {each["name"]: each["version"] for each in document["components"]} == pinned
    assert all(each["externalReferences"][0]["hashes"] for each in document["components"])
    assert document["metadata"]["component"]["name"] == "postback"


def test_the_same_commit_gives_the_same_bytes(text: str) -> None:
    assert printed() == text
