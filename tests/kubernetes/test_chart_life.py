"""The chart's life on a real API server: install, upgrades, rollback and removal, with running jobs."""

from __future__ import annotations

import pytest

from tests.integration.deployment import Manifest
from tests.kubernetes.api import Refused
from tests.kubernetes.build import TEST_SECONDS
from tests.kubernetes.jobs import Jobs
from tests.kubernetes.node import Node
from tests.kubernetes.programs import WAIT_SECONDS
from tests.kubernetes.release import Release, is_ready, name_of, uids
from tests.product import eventually

pytestmark = [pytest.mark.broker, pytest.mark.timeout(TEST_SECONDS)]

_NEW_LABEL: Manifest = {"worker": {"podLabels": {"revision": "second"}}}
_BAD_SETTING: Manifest = {"worker": {"extraEnv": [{"name": "POSTBACK_WORKER__WINDOW_RECORDS", "value": "many"}]}}


def test_a_fleet_is_installed_upgraded_rolled_back_and_removed_while_it_answers(
    release: Release, node: Node, jobs: Jobs
) -> None:
    with pytest.raises(Refused, match="restricted"):
        release.api.create(f"{release.path}/pods", _careless_pod())
    release.install()
    jobs.submit(8)
    jobs.all_are_answered(node.last_lines)

    first = release.pods("worker")
    with jobs.keep_coming():
        release.upgrade(_NEW_LABEL)
    second = release.pods("worker")
    assert [name_of(pod) for pod in second] == [name_of(pod) for pod in first]
    assert not uids(first) & uids(second)
    assert {pod["metadata"]["labels"]["revision"] for pod in second} == {"second"}

    release.upgrade(_NEW_LABEL, _BAD_SETTING, wait=False)
    eventually(lambda: _crashes(release) == ["fleet-postback-worker-1"], WAIT_SECONDS, node.last_lines)
    jobs.submit(8)
    jobs.all_are_answered(node.last_lines)
    untouched, _ = release.pods("worker")
    assert untouched["metadata"]["uid"] in uids(second)
    assert is_ready(untouched)

    with jobs.keep_coming():
        release.roll_back(2)
    third = release.pods("worker")
    assert all(is_ready(pod) for pod in third)
    assert untouched["metadata"]["uid"] in uids(third)
    jobs.all_are_answered(node.last_lines)

    release.uninstall()


def test_helms_test_passes_on_a_healthy_release_and_fails_while_a_role_is_away(release: Release, node: Node) -> None:
    release.install({"test": {"waitSeconds": 20}})
    status, said = release.test()
    assert status == 0, f"{said}\n{node.last_lines()}"
    assert "Phase:          Succeeded" in said

    exporter = f"/apis/apps/v1/namespaces/{release.namespace}/deployments/fleet-postback-exporter"
    release.api.patch(exporter, {"spec": {"replicas": 0}})
    eventually(lambda: not release.pods("exporter"), WAIT_SECONDS, node.last_lines)
    status, said = release.test()
    assert status == 1, f"{said}\n{node.last_lines()}"
    away = f"http://fleet-postback-exporter.{release.namespace}.svc:9464/readyz answered 502: the Service has no ready"
    assert away in node.last_lines()
    assert "fleet-postback-delivery." not in node.last_lines(), "delivery is ready"


def _crashes(release: Release) -> list[str]:
    """Names of the workers whose container was started again."""
    workers = release.pods("worker")
    return [
        name_of(pod)
        for pod in workers
        if any(each["restartCount"] for each in pod["status"].get("containerStatuses", []))
    ]


def _careless_pod() -> Manifest:
    """A pod that may run as root, which a `restricted` namespace refuses."""
    return {"metadata": {"name": "careless"}, "spec": {"containers": [{"name": "c", "image": "postback"}]}}
