"""The chart's life on a real API server with running jobs: dry run, upgrades, removal, the door, lost pods, scaling."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests
import urllib3

from bench.fleet import shared_evenly
from telemetry.clock import SystemClock
from tests.http_handler import Answering, handling
from tests.integration.certificates import Authority
from tests.integration.deployment import MESHED, SCALED, VALUE_SETS, Manifest, every_value_set, find, render
from tests.kubeconform import definitions
from tests.kubernetes.api import Api, Object, Refused
from tests.kubernetes.build import TEST_SECONDS
from tests.kubernetes.control_plane import ControlPlane
from tests.kubernetes.keda import Keda
from tests.kubernetes.node import Node
from tests.kubernetes.programs import WAIT_SECONDS
from tests.kubernetes.release import RESTRICTED, Jobs, Release, is_ready, name_of, uids
from tests.postback_command import POSTBACK, environment_of, postback
from tests.product import PARTITIONS, Product, eventually

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


_NAMESPACE = "inference"
_DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_PRIORITIES = "/apis/scheduling.k8s.io/v1/priorityclasses"


@pytest.fixture(scope="module")
def server(control_plane: ControlPlane) -> Iterator[Api]:
    """An API server that knows the custom resources and a priority, with the namespace of rendered charts."""
    api = control_plane.api
    for definition in definitions():
        path = f"{_DEFINITIONS}/{definition['metadata']['name']}"
        api.apply(path, definition)
        for version in definition["spec"]["versions"]:
            served = f"/apis/{definition['spec']['group']}/{version['name']}/{definition['spec']['names']['plural']}"
            eventually(partial(api.answers, served), WAIT_SECONDS, f"{served} is not served")
    api.create("/api/v1/namespaces", {"metadata": {"name": _NAMESPACE, "labels": RESTRICTED}})
    priority = MESHED["priorityClassName"]
    api.create(_PRIORITIES, {"metadata": {"name": priority}, "value": 1})
    account = f"/api/v1/namespaces/{_NAMESPACE}/serviceaccounts/default"
    eventually(lambda: api.answers(account), WAIT_SECONDS, "the namespace has no account for pods")
    yield api
    api.delete(f"{_PRIORITIES}/{priority}")
    api.delete(f"/api/v1/namespaces/{_NAMESPACE}")


@every_value_set
def test_the_api_server_takes_every_object_of_the_chart(server: Api, values: Manifest) -> None:
    for manifest in render(values):
        taken = _create(server, manifest)

        assert taken["metadata"]["name"] == manifest["metadata"]["name"]
        assert server.find(f"{server.collection(manifest, _NAMESPACE)}/{taken['metadata']['name']}") is None


def test_the_sets_of_values_have_an_object_of_every_kind_that_the_chart_makes() -> None:
    made = {manifest["kind"] for values in VALUE_SETS.values() for manifest in render(values)}

    assert made == {
        *("StatefulSet", "Deployment", "Job", "Pod", "Service", "ConfigMap", "ServiceAccount", "Ingress"),
        *("PodDisruptionBudget", "NetworkPolicy", "ScaledObject", "PodMonitor", "PrometheusRule", "Certificate"),
        *("ServiceMonitor", "HTTPRoute"),
    }


def test_the_api_server_refuses_an_unknown_field_and_a_value_of_a_wrong_form(server: Api) -> None:
    manifests = render(SCALED)
    misspelt, mistaken = find(manifests, "ScaledObject", "worker"), find(manifests, "PodDisruptionBudget", "worker")
    misspelt["spec"]["maxReplicas"] = 4
    mistaken["spec"]["maxUnavailable"] = "a few"

    for manifest, named in ((misspelt, "maxReplicas"), (mistaken, "a few")):
        with pytest.raises(Refused, match=named):
            _create(server, manifest)


def _create(server: Api, manifest: Manifest) -> Manifest:
    return server.create(server.collection(manifest, _NAMESPACE), manifest, dryRun="All", fieldValidation="Strict")


_DOOR = "fleet-postback-door"
_GATEWAY: Manifest = {"gateway": {"enabled": True, "tls": {"existingSecret": "door"}, "storage": {"size": "1Gi"}}}
_NEW_GATEWAY_LABEL: Manifest = {"gateway": {"podLabels": {"revision": "second"}}}


@dataclass(frozen=True, slots=True)
class Door:
    """A client of the door in the gateway's pod."""

    release: Release
    authority: Authority
    key: str

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Return the status and the JSON of the answer. The door's certificate is for the name of its Service."""
        [pod] = self.release.pods("gateway")
        with urllib3.HTTPSConnectionPool(
            pod["status"]["podIP"],
            8443,
            ca_certs=str(self.authority.ca_file),
            server_hostname=_DOOR,
            assert_hostname=_DOOR,
        ) as pool:
            headers = {"authorization": f"Bearer {self.key}"}
            answer = pool.request(method, path, json=body, headers=headers, retries=False, timeout=60)
        return answer.status, answer.json()

    def answered(self, job_id: str, said: Callable[[], str]) -> Any:
        """Return the job once it is answered."""

        def job() -> Any:
            return self.request("GET", f"/v1/jobs/{job_id}")[1]

        eventually(lambda: job()["status"] == "succeeded", WAIT_SECONDS, lambda: f"{job()}\n{said()}")
        return job()


@pytest.fixture
def volume(release: Release, tmp_path: Path) -> Iterator[Path]:
    """The folder of a PersistentVolume, to which Kubernetes binds the claim of the gateway's first pod."""
    name, folder = f"{release.namespace}-store", tmp_path / "volume"
    folder.mkdir()
    spec = {
        "capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteOnce"],
        "hostPath": {"path": str(folder)},
        "claimRef": {"namespace": release.namespace, "name": "store-fleet-postback-gateway-0"},
    }
    release.api.create("/api/v1/persistentvolumes", {"metadata": {"name": name}, "spec": spec})
    yield folder
    release.api.delete(f"/api/v1/persistentvolumes/{name}")


def test_a_job_that_is_posted_to_the_door_is_answered_and_its_answer_outlives_the_gateways_pod(
    control_plane: ControlPlane, release: Release, node: Node, product: Product, volume: Path
) -> None:
    _write_certificate(release, control_plane.authority)
    release.install(_GATEWAY)
    store = {"POSTBACK_ENV": "development", "POSTBACK_STORE__URL": f"sqlite:///{volume / 'gateway.db'}"}
    made = postback("api-keys", "create", "--tenant", "acme", env=environment_of(product.kafka, **store))
    assert made.returncode == 0, made.stderr
    door = Door(release, control_plane.authority, made.stdout.strip())
    stranger = Door(release, control_plane.authority, "pb_unknown")

    assert stranger.request("POST", "/v1/jobs", {"prompt": "Why?"})[0] == 401
    assert door.request("POST", "/v1/jobs", {"job_id": "first", "prompt": "Why?"})[0] == 202
    first = door.answered("first", node.last_lines)

    before = release.pods("gateway")
    release.upgrade(_GATEWAY, _NEW_GATEWAY_LABEL)
    assert not uids(before) & uids(release.pods("gateway"))
    assert door.request("GET", "/v1/jobs/first") == (200, first)
    assert door.request("POST", "/v1/jobs", {"job_id": "second", "prompt": "And why?"})[0] == 202
    door.answered("second", node.last_lines)
    assert list(product.outcomes().values()) == ["succeeded", "succeeded"]
    release.uninstall()
    [claim] = release.api.items(f"{release.path}/persistentvolumeclaims")
    assert claim["status"]["phase"] == "Bound", "an uninstalled release keeps its store"


def _write_certificate(release: Release, authority: Authority) -> None:
    """Make the Secret of the door's certificate, in the form of `kubectl create secret tls`."""
    pem = base64.b64encode(authority.chain_file("127.0.0.1", _DOOR).read_bytes()).decode()
    secret = {"metadata": {"name": "door"}, "type": "kubernetes.io/tls", "data": {"tls.crt": pem, "tls.key": pem}}
    release.api.create(f"{release.path}/secrets", secret)


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


_MOST = 3
_BACKLOG = 400
_BEHIND = 200
_LONGEST_SECONDS, _DRAIN_SECONDS = 1, 15
_FALLBACK_LOOKS = 3
"""Number of KEDA's failed reads of the exporter before the chart's fallback applies."""
_HOLDING_LOOKS = 3 * (_LONGEST_SECONDS + _DRAIN_SECONDS)
"""Number of further failed reads, one a second: more seconds than in the autoscaler's window for scaling down."""

_LANES: Manifest = {"worker": {"pools": {"small": {"lane": "small"}, "big": {"lane": "big"}}}}


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


_CLOCK = SystemClock()
_HELD_SECONDS = 600.0
"""A held answer is sent after this time at the latest, so that the server's threads end."""


class SteeredEngine:
    """The server's handler class, and the state by which a test directs the server."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        """The prompt of each request."""
        self.seconds = 0.0
        """The seconds that each answer takes, unless it is held."""
        self.held = "Ponder"
        """The beginning of prompts that get no answer before `release`."""
        self.release = threading.Event()
        engine = self

        class Handler(Answering):
            def do_GET(self) -> None:
                self.answer_json(200, {"object": "list", "data": [{"id": "m", "object": "model"}]})

            def do_POST(self) -> None:
                body = json.loads(self.body())
                engine.answer(body["messages"][-1]["content"])
                self.answer_json(
                    200, {"choices": [{"message": {"role": "assistant", "content": "So."}, "finish_reason": "stop"}]}
                )

        self.handler = Handler

    def answer(self, prompt: str) -> None:
        """Note the prompt, and wait until it may be answered."""
        self.asked.append(prompt)
        if prompt.startswith(self.held):
            self.release.wait(_HELD_SECONDS)
        else:
            _CLOCK.sleep(self.seconds)
