"""A pod is evicted and a node is lost on a real API server, with running jobs."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests

from tests.integration.deployment import Manifest
from tests.kubernetes.api import Object, Refused
from tests.kubernetes.build import TEST_SECONDS
from tests.kubernetes.control_plane import ControlPlane
from tests.kubernetes.jobs import Jobs
from tests.kubernetes.node import Node
from tests.kubernetes.programs import WAIT_SECONDS
from tests.kubernetes.release import Release, name_of, uids
from tests.postback_command import POSTBACK
from tests.product import eventually

pytestmark = [pytest.mark.broker, pytest.mark.timeout(TEST_SECONDS)]

_SLOW: Manifest = {"worker": {"extraEnv": [{"name": "POSTBACK_ENGINE__ECHO__LATENCY_SECONDS", "value": "1"}]}}


def test_one_pod_is_evicted_at_a_time_and_its_jobs_are_answered_once(release: Release, node: Node, jobs: Jobs) -> None:
    release.install(_SLOW)
    budget = f"/apis/policy/v1/namespaces/{release.namespace}/poddisruptionbudgets/fleet-postback-worker"
    eventually(lambda: release.api.get(budget)["status"].get("disruptionsAllowed") == 1, WAIT_SECONDS, node.last_lines)
    before = release.pods("worker")

    with jobs.keep_coming():
        eventually(lambda: len(jobs.ids) >= 8, WAIT_SECONDS, "no jobs come")
        _evict(release, "fleet-postback-worker-0")
        with pytest.raises(Refused) as refused:
            _evict(release, "fleet-postback-worker-1")
        assert refused.value.code == requests.codes.too_many_requests
        eventually(
            lambda: len(uids(release.pods("worker")) - uids(before)) == 1 and release.replicas("worker") == (2, 2),
            WAIT_SECONDS,
            node.last_lines,
        )
    jobs.all_are_answered(node.last_lines)
    assert release.pods("worker")[1]["metadata"]["uid"] in uids(before)


def test_the_jobs_of_a_lost_node_are_answered_once_and_its_pods_come_back_elsewhere(
    control_plane: ControlPlane, node: Node, release: Release, jobs: Jobs, tmp_path: Path
) -> None:
    api = control_plane.api

    def on_it() -> list[Object]:
        return [pod for pod in release.pods() if pod["spec"].get("nodeName") == lost.name]

    with Node(api, "second", tmp_path / "second", POSTBACK) as lost:
        release.install(_SLOW)
        assert [pod for pod in on_it() if name_of(pod).startswith("fleet-postback-worker")], "no worker is on the node"
        with jobs.keep_coming():
            eventually(lambda: len(jobs.ids) >= 8, WAIT_SECONDS, "no jobs come")
            lost.lose()
            # The node controller sees the expired lease, and evicts the pods, but no kubelet is left to end them.
            eventually(
                lambda: all("deletionTimestamp" in pod["metadata"] for pod in on_it()), WAIT_SECONDS, node.last_lines
            )
            for pod in on_it():
                # An operator deletes such pods like this.
                api.delete(f"{release.path}/pods/{name_of(pod)}", {"gracePeriodSeconds": 0})
            eventually(lambda: release.replicas("worker") == (2, 2) and not on_it(), WAIT_SECONDS, node.last_lines)
        jobs.all_are_answered(node.last_lines)
    api.delete(f"/api/v1/nodes/{lost.name}")


def _evict(release: Release, pod: str) -> None:
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
    release.api.create(f"{release.path}/pods/{pod}/eviction", eviction)
