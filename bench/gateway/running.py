"""Runs a gateway for measurements, with a store, a certificate and a tenant's key. Also has the measurements' sizes."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench.fleet import POSTBACK, Command
from cli.operations.certificates import Leaf, init, issue
from schemas.settings import KafkaSettings

PARTITIONS = 12
TENANT = "bench"


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of all measurements."""

    lines: int = 50_000
    """Lines of a batch."""
    large_line_bytes: int = 4_100
    """50,000 of these lines are 200 MB, almost OpenAI's bound for a file."""
    slices: int = 5
    """Number of time slices of the door; the empty handler gets as many, in turn."""
    slice_seconds: float = 4.0
    connections: int = 64
    readable_jobs: int = 500
    stored_jobs: int = 1_000_000
    traces: int = 9


SMOKE = Sizes(200, 1_000, 1, 0.3, 8, 3, 2_000, 1)


def store_url(folder: Path) -> str:
    """Return the URL of the folder's SQLite store."""
    return f"sqlite:///{folder}/store.db"


def gateway_command(
    kafka: KafkaSettings, folder: Path, certificate: Path | None = None, variables: Mapping[str, str] | None = None
) -> Command:
    """Return a gateway with all roles and these variables, over TLS if a certificate is given (NAME.pem, NAME.key)."""
    tls = ("--tls-cert", str(certificate), "--tls-key", str(certificate.with_suffix(".key"))) if certificate else ()
    return Command(
        kafka,
        "gateway",
        "--port",
        "0",
        *tls,
        POSTBACK_STORE__URL=store_url(folder),
        POSTBACK_REPLICA="door",
        POSTBACK_ACCESS__REQUESTS_PER_SECOND="1000000",
        POSTBACK_GATEWAY__AUDIT_FILE=str(folder / "audit.jsonl"),
        **(variables or {}),
    )


def url_of(gateway: Command) -> str:
    """Return the announced URL, without `/v1`."""
    found: list[str] = re.findall(r"the API is at (https?://\S+) under /v1", gateway.output())
    return found[0]


def new_key(folder: Path) -> str:
    """Return a new API key of TENANT."""
    command = [str(POSTBACK), "api-keys", "create", "--tenant", TENANT, "--json", "--store", store_url(folder)]
    made = subprocess.run(command, capture_output=True, check=True, text=True)
    return str(json.loads(made.stdout)["key"])


def new_certificate(folder: Path) -> Path:
    """Make an authority in a new folder, and return a server's certificate for 127.0.0.1."""
    now = datetime.now(UTC)
    init(folder, now)
    return issue(folder, Leaf.server("door", ("127.0.0.1",)), now).certificate
