"""A delivery process stays within its container's memory limit while large results wait for a dead endpoint."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import yaml

from schemas import topics as names
from schemas.codec import write_result
from schemas.outcome import Outcome
from schemas.result import Result
from tests.product import Product, eventually
from workers.system.memory_limit import BESIDE_WINDOW, COPIES, MIB

pytestmark = pytest.mark.broker

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
