"""An upgrade and its rollback under load: the last release's processes run beside this program's on the same topics."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient
from jsonschema import Draft202012Validator

from devkit.broker import Broker
from devkit.receiver import Behaviour
from tests import last_release
from tests.conftest import ExternalBroker
from tests.integration.doctor_kafka import empty_fleet
from tests.messages import value_of
from tests.postback_command import environment_of, postback, postback_here
from tests.product import Product, Role, eventually

pytestmark = [pytest.mark.broker, pytest.mark.timeout(600)]

OUTSTANDING = 40
"""With the next 20 jobs, fewer callbacks are outstanding than the 64 attempts that a breaker looks at.

Each callback's first attempt fails. If 64 of these attempts came in a row, the breaker would open, and each of its
probes would be a further first attempt."""
NARROW = {"POSTBACK_WORKER__WINDOW_RECORDS": "8"}
PATIENT = {"POSTBACK_DELIVERY__BREAKER_FAILURES": "10000", "POSTBACK_DELIVERY__BREAKER_FAILURE_SHARE": "1"}
"""The receiver fails each callback once; with these settings, a breaker opens only if its last 64 attempts failed."""


class JobsUnderWay:
    """Sends jobs until a condition holds, so that some are always under way."""

    def __init__(self, product: Product) -> None:
        self.product = product
        self.names: list[str] = []

    def until(self, condition: Callable[[], bool]) -> None:
        """Keep some jobs under way until the condition holds."""

        def reached() -> bool:
            if len(self.names) - len(self.product.callbacks.events) < OUTSTANDING:
                self._send()
            return condition()

        eventually(reached, 150, lambda: f"{len(self.product.callbacks.events)} callbacks\n{self.product.last_lines()}")

    def goes_on(self) -> None:
        """Wait until a job that is sent after this moment has been called back."""
        sent = len(self.names)
        self.until(lambda: sent < len(self.names) and self.names[sent] in self.product.callbacks.events)

    def _send(self) -> None:
        more = [f"job-{len(self.names) + number}" for number in range(20)]
        # Every tenth job is slow, so that done offsets lie above the base.
        url, seconds = self.product.callbacks.url, [2, *[0.1] * 9]
        self.product.submit(
            {"job_id": name, "prompt": f"[[sleep {seconds[number % 10]}]] {name}", "callback_url": url}
            for number, name in enumerate(more)
        )
        self.names += more


def test_an_upgrade_and_its_rollback_under_load_lose_nothing_and_answer_nothing_twice(
    product: Product, tmp_path: Path
) -> None:
    source = last_release.unpacked(tmp_path / "last_release")
    old = {"PYTHONPATH": str(source)}
    assert place_of_program(old).is_relative_to(source)
    # The first attempt fails, so that each callback waits in a tier, from which the other program reads it.
    product.callbacks.up(Behaviour(fail_first=1))
    jobs = JobsUnderWay(product)
    last = pair(product, "1", old)
    jobs.until(lambda: len(product.callbacks.events) >= 30)
    this = worker, delivery = pair(product, "2", {})
    jobs.until(lambda: counted(worker, "postback_jobs_total{succeeded}") > 0)
    jobs.until(lambda: counted(delivery, "postback_callbacks_total{delivered}") > 0)

    # Killed processes leave open ledgers, from which the other program's processes go on.
    kill(last)
    jobs.goes_on()
    last = pair(product, "1", old)
    kill(this)
    jobs.goes_on()

    product.wait_for_callbacks(len(jobs.names), 120)
    product.wait_until_nothing_is_left()
    product.assert_each_is_answered_once_and_called_back(jobs.names)
    assert set(product.outcomes().values()) == {"succeeded"}
    assert product.dead_letters() == []
    assert_the_last_release_knows(product, source)
    for role in last:
        assert role.terminate() == 0


def test_topics_of_the_last_release_are_completed_and_configured_for_this_one(
    broker: Broker | ExternalBroker, tmp_path: Path
) -> None:
    old = {"PYTHONPATH": str(last_release.unpacked(tmp_path))}
    fleet = empty_fleet(broker.bootstrap_servers)
    made = postback("topics", "create", env=environment_of(fleet, **old))
    assert made.returncode == 0, made.stderr
    env = environment_of(fleet)
    completed = postback_here("topics", "create", "--fix-config", env=env)
    assert completed.returncode == 0, completed.stderr
    report = json.loads(postback_here("doctor", "--json", env=env).stdout)
    assert [each for each in report["findings"] if each["check"] == "topics"] == []
    admin = AdminClient(fleet.client_config())
    for deleted in admin.delete_topics([spec.name for spec in fleet.topics.specs(fleet.partitions)]).values():
        deleted.result(30)


def place_of_program(settings: dict[str, str]) -> Path:
    """The folder of the program that a process with these settings runs."""
    command = [sys.executable, "-P", "-c", "import workers; print(workers.__path__[0])"]
    return Path(subprocess.check_output(command, env=environment_of(**settings), text=True).strip())


def pair(product: Product, number: str, program: dict[str, str]) -> tuple[Role, Role]:
    """A worker and a delivery process."""
    return product.worker(f"w{number}", **NARROW, **program), product.deliver(f"d{number}", **PATIENT, **program)


def counted(role: Role, metric: str) -> float:
    """Return a counter's value, or 0 as long as the process serves no metrics."""
    return role.metrics().get(metric, 0) if "metrics and health on port" in role.said() else 0


def kill(roles: tuple[Role, Role]) -> None:
    for role in roles:
        role.kill()


def assert_the_last_release_knows(product: Product, source: Path) -> None:
    """Assert that the last release's published schemas describe every result and event of the run."""
    published = source / "schemas" / "published"
    result, event = (
        Draft202012Validator(json.loads((published / f"{name}.json").read_text())) for name in ("result", "event")
    )
    for message in product.read(product.kafka.topics.results):
        result.validate(json.loads(value_of(message)))
    for [callback, *_] in product.callbacks.events.values():
        event.validate(callback.event)
