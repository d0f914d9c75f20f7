"""Delivery as in production: over https, with certificates from its environment, within its container's memory."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.operations.topics import create_topics
from schemas import topics as names
from schemas.codec import write_result
from schemas.outcome import Outcome
from schemas.result import Result
from schemas.signature import verify
from tests.fleet_here import FleetHere
from tests.integration.certificates import Authority
from tests.product import CLOCK, Callbacks, Product, Role, eventually
from workers.system.memory_limit import BESIDE_WINDOW, COPIES, MIB

pytestmark = pytest.mark.broker

PUBLIC = "http://93.184.215.14/hook"
"""Plain http to a public address, which only development allows."""


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return new_authority(tmp_path, "authority")


def new_authority(folder: Path, name: str) -> Authority:
    (folder / name).mkdir()
    return Authority.create(folder / name)


def put_result(fleet_here: FleetHere, name: str, tenant: str, url: str) -> None:
    result = Result(job_id=name, outcome=Outcome.SUCCEEDED, text="Paris", created_at=1_700_000_000)
    headers = {"tenant": tenant, "webhook-id": f"msg_{name}", "job-id": name, "callback-url": url}
    encoded = [(header, value.encode()) for header, value in headers.items()]
    fleet_here.put([write_result(result)], encoded, topic=fleet_here.kafka.topics.results)


def deliver(fleet_here: FleetHere, ca_file: Path, **certificates: Path) -> Role:
    return fleet_here.deliver(
        "d1",
        POSTBACK_ENV="production",
        POSTBACK_DELIVERY__CA_FILE=str(ca_file),
        POSTBACK_DELIVERY__CLIENT_CERTIFICATES=json.dumps({name: str(path) for name, path in certificates.items()}),
    )


def said_of(fleet_here: FleetHere, name: str) -> list[dict[str, Any]]:
    """The attempts at an event, in order."""
    return sorted((one for one in fleet_here.attempts() if one["job_id"] == name), key=lambda one: int(one["attempt"]))


def test_an_endpoint_that_asks_for_a_certificate_gets_the_events_of_the_tenant_that_has_it(
    fleet_here: FleetHere, authority: Authority, tmp_path: Path
) -> None:
    stranger = new_authority(tmp_path, "stranger")
    fleet_here.callbacks.tenants = ("globex", "initech", "acme")
    fleet_here.callbacks.up(tls=authority.server(asks_for_client=True))
    plain = Callbacks(fleet_here.keyring)
    plain.tenants = ("acme",)
    plain.up()
    try:
        deliver(
            fleet_here, authority.ca_file, acme=authority.client_file("acme"), globex=stranger.client_file("globex")
        )
        for tenant in ("globex", "initech", "acme"):
            put_result(fleet_here, tenant, tenant, fleet_here.callbacks.url)
        put_result(fleet_here, "public", "acme", PUBLIC)
        put_result(fleet_here, "listed", "acme", plain.url)
        eventually(lambda: len(fleet_here.dead_letters()) == 3, 60, lambda: f"there is {fleet_here.dead_letters()}")
        eventually(lambda: len(said_of(fleet_here, "acme")) == 1, 30, "the event of the tenant is not delivered")
        eventually(lambda: len(plain.received) == 1, 30, "an address that the operator lists is not called")
    finally:
        plain.end()

    [received] = fleet_here.callbacks.received
    assert (received.webhook_id, received.status) == ("msg_acme", 200)
    verify(received.headers, received.body, fleet_here.keyring.secrets("acme", CLOCK.time()), [], CLOCK.time())
    assert [(one["attempt"], one["status"]) for one in said_of(fleet_here, "acme")] == [(1, 200)]
    letters = {letter["job-id"]: letter for letter in fleet_here.dead_letters()}
    assert {name: (letter["reason"], letter["attempts"]) for name, letter in letters.items()} == {
        "globex": ("callback_exhausted", "3"),
        "initech": ("callback_exhausted", "3"),
        "public": ("callback_refused", "1"),
    }
    assert letters["public"]["reason-detail"] == "callback_url: https is required"
    for name in ("globex", "initech"):
        # In TLS 1.3, the server may refuse the client's certificate after the client has sent the request.
        assert {one["error"] for one in said_of(fleet_here, name)} <= {"tls_failed", "connection_closed"}


def test_new_authorities_are_trusted_without_a_restart(
    fleet_here: FleetHere, authority: Authority, tmp_path: Path
) -> None:
    """Delivery checks the file every ten seconds; the event waits in the tiers meanwhile."""
    fleet_here.kafka = fleet_here.kafka.model_copy(update={"tier_delays_seconds": (2.0,) * 20})
    create_topics(fleet_here.kafka)
    fleet_here.callbacks.tenants = ("acme",)
    fleet_here.callbacks.up(tls=authority.server(asks_for_client=True))
    ca_file = tmp_path / "ca.pem"
    ca_file.write_text(new_authority(tmp_path, "former").ca_file.read_text())
    role = deliver(fleet_here, ca_file, acme=authority.client_file("acme"))
    put_result(fleet_here, "acme", "acme", fleet_here.callbacks.url)
    eventually(lambda: bool(said_of(fleet_here, "acme")), 60, "no attempt is made")
    assert fleet_here.callbacks.received == []

    renewed = tmp_path / "renewed.pem"
    renewed.write_text(authority.ca_file.read_text())
    renewed.replace(ca_file)
    eventually(lambda: said_of(fleet_here, "acme")[-1]["status"] == 200, 60, lambda: str(said_of(fleet_here, "acme")))
    *failed, delivered = said_of(fleet_here, "acme")
    assert {one["error"] for one in failed} == {"tls_failed"}
    assert (delivered["error"], delivered["attempt"]) == (None, len(failed) + 1)
    [received] = fleet_here.callbacks.received
    assert received.verified
    assert role.ended() is None


# -- memory, while large results wait for a dead endpoint ----------------------------------------------------------

VALUES = Path(__file__).parents[2] / "helm" / "postback" / "values.yaml"
LIMIT = int(yaml.safe_load(VALUES.read_text())["delivery"]["resources"]["limits"]["memory"].removesuffix("Gi")) * 2**30
RESULTS = 300
"""Number of results: together they have more bytes than the window holds."""
DEAD = "http://127.0.0.1:9/hook"
GROUPS = (("sys/fs/cgroup", "memory.max"), ("sys/fs/cgroup/memory", "memory.limit_in_bytes"))


def is_empty(group: Path) -> bool:
    """True if the control group has no process left."""
    return not (group / "cgroup.procs").read_text()


@contextmanager
def limited(limit: int) -> Iterator[Path | None]:
    """A control group with this memory limit; None if the test may not make one."""
    for place, file in GROUPS:
        group = Path("/") / place / f"postback-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        if not (group / file).exists():  # this folder has no memory controller
            group.rmdir()
            continue
        (group / file).write_text(str(limit))
        try:
            yield group
        finally:
            eventually(partial(is_empty, group), 30, "the group is not empty")
            group.rmdir()
        return
    yield None


def large(number: int) -> bytes:
    """A result of 900 kB that does not compress well."""
    text = os.urandom(450_000).hex()[:890_000]
    return write_result(Result(job_id=f"job_{number}", outcome=Outcome.SUCCEEDED, text=text, created_at=1_700_000_000))


def test_results_of_900_kb_for_a_dead_endpoint_stay_below_the_chart_s_limit(product: Product) -> None:
    results = product.kafka.topics.results
    headers = {names.TENANT: b"acme", names.CALLBACK_URL: DEAD.encode()}
    for number in range(RESULTS):
        own = {names.JOB_ID: f"job_{number}".encode(), names.WEBHOOK_ID: f"msg_{number:032x}".encode()}
        product.put([large(number)], [*headers.items(), *own.items()], topic=results)
    with limited(LIMIT) as group:
        settings = {}
        if group is not None:
            product.through = ("sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$0" "$@"')
        else:
            settings["POSTBACK_DELIVERY__WINDOW_BYTES"] = str((LIMIT - BESIDE_WINDOW) // COPIES)
        role = product.deliver("d1", **settings)
        try:
            eventually(lambda: not product.lag("delivery", [results]), 240, lambda: role.said()[-2000:])
            assert role.process.poll() is None
            status = Path(f"/proc/{role.process.pid}/status").read_text()
        finally:
            role.kill()
    peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
    assert f'"postback.bytes": {(LIMIT - BESIDE_WINDOW) // COPIES}' in role.said()
    assert 0 < peak < LIMIT, f"{peak / MIB:.0f} MiB"
