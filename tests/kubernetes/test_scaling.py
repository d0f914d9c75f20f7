"""KEDA scales the workers by the chart's ScaledObject and the exporter's figures, on a real backlog."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bench.fleet import shared_evenly
from tests.http_handler import handling
from tests.integration.deployment import Manifest
from tests.kubernetes.build import TEST_SECONDS
from tests.kubernetes.control_plane import ControlPlane
from tests.kubernetes.jobs import Jobs
from tests.kubernetes.keda import Keda
from tests.kubernetes.node import Node
from tests.kubernetes.programs import WAIT_SECONDS
from tests.kubernetes.release import Release
from tests.kubernetes.steered_engine import SteeredEngine
from tests.product import PARTITIONS, Product, eventually

pytestmark = [pytest.mark.broker, pytest.mark.timeout(TEST_SECONDS)]

_MOST = 3
_BACKLOG = 400
_BEHIND = 200
_LONGEST_SECONDS, _DRAIN_SECONDS = 1, 15
_FALLBACK_LOOKS = 3
"""Number of KEDA's failed reads of the exporter before the chart's fallback applies."""
_HOLDING_LOOKS = 3 * (_LONGEST_SECONDS + _DRAIN_SECONDS)
"""Number of further failed reads, one a second: more seconds than in the autoscaler's window for scaling down."""

_LANES: Manifest = {"worker": {"pools": {"small": {"lane": "small"}, "big": {"lane": "big"}}}}


@pytest.fixture(scope="module")
def keda(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keda]:
    with Keda(control_plane, tmp_path_factory.mktemp("keda")) as started:
        yield started


def test_workers_go_from_none_to_three_and_back_by_the_open_jobs_and_stay_while_the_exporter_is_killed(
    keda: Keda, node: Node, release: Release, jobs: Jobs, product: Product
) -> None:
    engine = SteeredEngine()

    def said() -> str:
        return f"workers: {release.replicas('worker')}\n{keda.last_lines()}\n{node.last_lines()}"

    def workers_are(wanted: int) -> None:
        eventually(lambda: release.replicas("worker") == (wanted, wanted), WAIT_SECONDS, said)

    with handling(engine.handler) as url:
        release.install(_scaled(f"{url}/v1"))
        workers_are(0)

        engine.seconds = 4.0  # makes the backlog outlast the start of all workers
        jobs.submit(_BACKLOG)
        workers_are(_MOST)
        eventually(lambda: shared_evenly(product.kafka, "inference", _MOST), WAIT_SECONDS, said)

        # Without the exporter's figures no worker is removed, not even after the last job.
        with node.crashing(release.namespace, "exporter"):
            eventually(lambda: _failures(release) > _FALLBACK_LOOKS, WAIT_SECONDS, said)
            engine.seconds = 0.0
            jobs.all_are_answered(said)
            _workers_are_held(release, _HOLDING_LOOKS, said)

            # A slow job is at the head of each partition. So Kafka's lag counts all jobs behind it, although they are
            # done.
            jobs.submit(PARTITIONS, engine.held)
            jobs.are_called_back(jobs.submit(_BEHIND), said)
            assert _lag(product) > _BEHIND
        eventually(lambda: release.replicas("worker")[0] < _MOST, WAIT_SECONDS, said)
        engine.release.set()  # a stopping worker finishes the jobs that it has begun

        workers_are(0)
        jobs.all_are_answered(said)
        assert len(engine.asked) == len(set(engine.asked)) == len(jobs.ids)
        release.uninstall()


def test_a_lanes_jobs_start_the_workers_of_this_lane_only(keda: Keda, node: Node, release: Release, jobs: Jobs) -> None:
    engine, lanes = SteeredEngine(), ("small", "big")

    def said() -> str:
        workers = {lane: release.replicas(f"worker-{lane}") for lane in lanes}
        return f"workers: {workers}\n{keda.last_lines()}\n{node.last_lines()}"

    def big_are(fits: Callable[[int], bool]) -> None:
        eventually(lambda: fits(release.replicas("worker-big")[0]), WAIT_SECONDS, said)

    with handling(engine.handler) as url:
        release.install(_scaled(f"{url}/v1"), _LANES)
        eventually(lambda: all(release.replicas(f"worker-{lane}") == (0, 0) for lane in lanes), WAIT_SECONDS, said)
        idle = _scalings(release, "small")

        jobs.submit(PARTITIONS, lane="big")
        big_are(lambda count: count > 0)
        jobs.all_are_answered(said)
        big_are(lambda count: count == 0)
        assert _scalings(release, "small") == idle
        release.uninstall()


def _scaled(engine_url: str) -> Manifest:
    """Values with which the backlog needs all three workers, and one job per partition needs a single worker."""
    autoscaling = {
        "enabled": True,
        "minReplicas": 0,
        "maxReplicas": _MOST,
        "longestJobSeconds": _LONGEST_SECONDS,
        "startSeconds": 0,
        "downPeriodSeconds": 1,
        "pollingSeconds": 1,
    }
    worker = {"POSTBACK_WORKER__WINDOW_RECORDS": "4", "POSTBACK_ENGINE__OPENAI__BASE_URL": engine_url}
    exporter = {
        "POSTBACK_EXPORTER__INTERVAL_SECONDS": "1",
        "POSTBACK_EXPORTER__DOWN_SECONDS": "0",
        "POSTBACK_EXPORTER__TIME_SHARE": "0.01",
    }
    return {
        "worker": {
            "engine": "openai",
            "model": "m",
            "autoscaling": autoscaling,
            "drainSeconds": _DRAIN_SECONDS,
            "extraEnv": _entries(worker),
        },
        "exporter": {"extraEnv": _entries(exporter)},
    }


def _entries(variables: dict[str, str]) -> list[Manifest]:
    return [{"name": name, "value": value} for name, value in variables.items()]


def _lag(product: Product) -> int:
    return sum(product.lag("inference", [product.kafka.topics.requests()]).values())


def _workers_are_held(release: Release, looks: int, said: Callable[[], str]) -> None:
    """Wait until KEDA has failed `looks` times more to read the exporter, and assert that no worker is removed."""
    looked = _failures(release)

    def held() -> bool:
        wanted, _ = release.replicas("worker")
        assert wanted == _MOST, f"without figures the replicas have to stay\n{said()}"
        return _failures(release) >= looked + looks

    eventually(held, WAIT_SECONDS, said)


def _failures(release: Release) -> int:
    """The number of reads in a row in which KEDA's trigger got no figures."""
    path = f"/apis/keda.sh/v1alpha1/namespaces/{release.namespace}/scaledobjects/fleet-postback-worker"
    health: dict[str, Any] = release.api.get(path)["status"].get("health", {})
    return max((each.get("numberOfFailures") or 0 for each in health.values()), default=0)


def _scalings(release: Release, lane: str) -> int:
    """Return how often the specification of a lane's StatefulSet has changed; each scaling by KEDA changes it once."""
    found = release.api.get(f"/apis/apps/v1/namespaces/{release.namespace}/statefulsets/fleet-postback-worker-{lane}")
    return int(found["metadata"]["generation"])
