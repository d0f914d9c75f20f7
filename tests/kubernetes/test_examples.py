"""The chart's examples on a real API server, installed by the commands at their heads; `helm test` without a role."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from cli.devkit.kafka.jars import ensure_jars, java
from tests.go_tools import HELM, ensure
from tests.integration.certificates import Authority
from tests.integration.deployment import EXAMPLES, ROOT, Manifest
from tests.kubeconform import definitions
from tests.kubernetes.api import Api, Object
from tests.kubernetes.build import TEST_SECONDS
from tests.kubernetes.control_plane import ControlPlane
from tests.kubernetes.keda import Keda
from tests.kubernetes.node import Node
from tests.kubernetes.programs import WAIT_SECONDS
from tests.kubernetes.release import RESTRICTED, name_of
from tests.postback_command import POSTBACK, environment_of, postback
from tests.product import eventually

pytestmark = [pytest.mark.broker, pytest.mark.timeout(TEST_SECONDS)]

_DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_GPUS = 8
_MODELS = """default = "small"
[engines.local]
kind = "vllm"
[models.small]
engine = "local"
lane = "small"
model = "Qwen/Qwen3-0.6B"
[models.large]
engine = "local"
lane = "large"
model = "Qwen/Qwen3-32B"
"""
_KAFKA_OR_POSTBACK = """#!/bin/bash
# The entry points of two images. By the rule of Kafka's image, the variable KAFKA_A_B becomes a.b.
set -e
[ -n "$KAFKA_NODE_ID" ] || exec {postback} "$@"
env | sed -n '/^KAFKA_HEAP_OPTS/d; s/^KAFKA_//p' | while IFS='=' read -r name value; do
  echo "$(tr A-Z_ a-z. <<< "$name")=$value"
done > "$HOME/properties"
echo "log.dirs=$HOME/data" >> "$HOME/properties"
{java} -cp '{jars}/*' kafka.tools.StorageTool format --ignore-formatted -t MkU3OEVBNTcwNTJENDM2Qk -c "$HOME/properties"
exec {java} $KAFKA_HEAP_OPTS -cp '{jars}/*' kafka.Kafka "$HOME/properties"
"""
_IDLE = """#!/bin/sh
case "$1" in topics) exit 0 ;; *) exec sleep infinity ;; esac
"""
"""The entry point of pods whose place is the point: no Kafka, database or GPU is there."""


@dataclass(frozen=True, slots=True)
class Operator:
    """A shell with kubectl and Helm, in a folder with the checkout's `helm` and the files that the commands name."""

    api: Api
    namespace: str
    folder: Path
    nodes: ExitStack
    """The namespace's nodes: they outlive its pods, which no other process can end."""

    @classmethod
    def at(cls, plane: ControlPlane, namespace: str, folder: Path, nodes: ExitStack) -> Operator:
        """Make a `restricted` namespace, in which kubectl and Helm work."""
        made = {"metadata": {"name": namespace, "labels": RESTRICTED}}
        plane.api.create("/api/v1/namespaces", made)
        (folder / "bin").mkdir()
        (folder / "bin" / "helm").symlink_to(ensure(HELM))
        kubectl = folder / "bin" / "kubectl"
        kubectl.write_text(f'#!/bin/sh\nexec {plane.executable} kubectl "$@"\n')
        kubectl.chmod(0o755)
        (folder / "helm").symlink_to(ROOT / "helm")
        (folder / "models.toml").write_text(_MODELS)
        (folder / "kubeconfig").write_bytes(plane.kubeconfig.read_bytes())
        keys = postback("keys", "init", env=environment_of(POSTBACK_KEYRING=folder / "keyring.json"))
        assert keys.returncode == 0, keys.stderr
        operator = cls(plane.api, namespace, folder, nodes)
        operator.run(f"kubectl config set-context --current --namespace {namespace}")
        eventually(lambda: operator.api.answers(f"{operator.path}/serviceaccounts/default"), WAIT_SECONDS, "no account")
        return operator

    def node(self, name: str, program: str, hosts: Path | None = None, gpus: int = 0) -> Node:
        """Start a node, whose pods run the shell script `program`."""
        folder = self.folder / name
        folder.mkdir()
        script = folder / "program"
        script.write_text(program)
        script.chmod(0o755)
        node = Node(self.api, f"{self.namespace}-{name}", folder, script, hosts, gpus)
        self.nodes.callback(self.api.delete, f"/api/v1/nodes/{node.name}")
        return self.nodes.enter_context(node)

    def run(self, command: str) -> str:
        """Run a command of a page; return its output. Fails the test if the command fails."""
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env={**os.environ, "PATH": path, "KUBECONFIG": str(self.folder / "kubeconfig")},
            capture_output=True,
            text=True,
            check=False,
            timeout=WAIT_SECONDS,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def pods(self, **query: str) -> list[Object]:
        return self.api.items(f"{self.path}/pods", **query)

    def has_no_pod_of(self, role: str) -> bool:
        return not self.pods(labelSelector=f"app.kubernetes.io/component={role}")

    @property
    def path(self) -> str:
        """The namespace's path in the core API."""
        return f"/api/v1/namespaces/{self.namespace}"


@pytest.fixture
def operator(request: pytest.FixtureRequest, control_plane: ControlPlane, tmp_path: Path) -> Iterator[Operator]:
    """An operator with a namespace of its own. No pod of it gets to the nodes that are there already."""
    api, name = control_plane.api, f"example-{os.getpid()}-{abs(hash(request.node.name)) % 10_000}"
    others = [f"/api/v1/nodes/{each['metadata']['name']}" for each in api.items("/api/v1/nodes")]
    for node in others:
        api.patch(node, {"spec": {"unschedulable": True}})
    with ExitStack() as nodes:
        made = Operator.at(control_plane, name, tmp_path, nodes)
        yield made
        api.delete(made.path)
        eventually(lambda: not api.answers(made.path), WAIT_SECONDS, "the namespace is not gone")
    for node in others:
        api.patch(node, {"spec": {"unschedulable": False}})


def _commands(example: str) -> list[str]:
    """Return the commands at the head of an example."""
    return re.findall(r"^#   (.+)$", (EXAMPLES / f"{example}.yaml").read_text(), re.MULTILINE)


def test_the_demo_without_a_gpu_answers_a_job_and_helms_test_passes_with_each_role_at_0(
    operator: Operator, tmp_path: Path
) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n")
    commands = _commands("cpu-demo")
    assert [each.split()[0] for each in commands] == ["docker", "docker", "kubectl", "kubectl", "helm", "kubectl"]
    keyring, kafka, install, submit = commands[2:]
    node = operator.node("demo", _KAFKA_OR_POSTBACK.format(postback=POSTBACK, java=java(), jars=ensure_jars()), hosts)
    operator.run(keyring)
    operator.run(kafka)
    [broker] = operator.pods(labelSelector="app=kafka")
    with hosts.open("a") as file:
        file.write(f"{broker['status']['podIP']} kafka\n")
    operator.run(install)

    words = re.fullmatch(r"kubectl exec -i statefulset/(\S+) -- postback (.+) <<< '(.+)'", submit)
    assert words is not None
    [worker] = [pod for pod in operator.pods() if name_of(pod) == f"{words[1]}-0"]
    done = node.execute(worker["metadata"]["uid"], words[2].split(), f"{words[3]}\n")
    assert done.returncode == 0, f"{done.stderr}\n{node.last_lines()}"
    answer = json.loads(done.stdout.splitlines()[-1])
    assert (answer["outcome"], answer["text"]) == ("succeeded", "Hello"), answer

    for nothing in ("worker.replicas=0", "delivery.replicas=0", "exporter.enabled=false"):
        operator.run(f"{install.replace('install', 'upgrade')} --set {nothing}")
        eventually(partial(operator.has_no_pod_of, nothing.partition(".")[0]), WAIT_SECONDS, node.last_lines)
        assert "Phase:          Succeeded" in operator.run("helm test fleet"), node.last_lines()


@contextmanager
def _what_the_cluster_has(operator: Operator, keys: Authority) -> Iterator[None]:
    """Make what the heads of the examples take for granted, and the Secret that cert-manager would make."""
    api, folder = operator.api, operator.folder
    for definition in definitions():
        api.apply(f"{_DEFINITIONS}/{definition['metadata']['name']}", definition)
        for version in definition["spec"]["versions"]:
            group, plural = definition["spec"]["group"], definition["spec"]["names"]["plural"]
            served = f"/apis/{group}/{version['name']}/{plural}"
            eventually(partial(api.answers, served), WAIT_SECONDS, f"{served} is not served")
    pem = base64.b64encode(keys.chain_file("127.0.0.1").read_bytes()).decode()
    certificate = {"metadata": {"name": "fleet-postback-gateway-tls"}, "data": {"tls.crt": pem, "tls.key": pem}}
    api.create(f"{operator.path}/secrets", {**certificate, "type": "kubernetes.io/tls"})
    made: list[tuple[str, str, Manifest]] = [
        ("/apis/scheduling.k8s.io/v1/priorityclasses", "inference", {"value": 1}),
        (
            "/apis/storage.k8s.io/v1/storageclasses",
            "local-nvme",
            {"provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer"},
        ),
        *((_VOLUMES, f"{operator.namespace}-{name}", {"spec": _volume(folder / name, name)}) for name in _DISKS),
    ]
    for collection, name, body in made:
        api.create(collection, {"metadata": {"name": name}, **body})
    yield
    for collection, name, _ in made:
        api.delete(f"{collection}/{name}")


_VOLUMES = "/api/v1/persistentvolumes"
_DISKS = {"first": "", "second": "local-nvme", "third": "local-nvme"}
"""Storage classes of the volumes for models, by name."""


def _volume(folder: Path, name: str) -> Manifest:
    folder.mkdir()
    return {
        "capacity": {"storage": "200Gi"},
        "accessModes": ["ReadWriteOnce"],
        "hostPath": {"path": str(folder)},
        "storageClassName": _DISKS[name],
    }


@pytest.mark.parametrize(
    ("example", "on_gpus", "elsewhere"),
    [
        ("one-gpu", {"worker-0"}, {"delivery-0", "delivery-1"}),
        (
            "many-gpus",
            {"worker-small-0", "worker-large-0"},
            {
                *(f"delivery-{number}" for number in range(4)),
                *(f"gateway-door-{number}" for number in range(3)),
                *(f"gateway-background-{number}" for number in range(2)),
            },
        ),
    ],
)
def test_an_example_on_gpus_is_installed_as_printed_and_each_pod_gets_its_place(
    control_plane: ControlPlane,
    keda: Keda,
    operator: Operator,
    example: str,
    on_gpus: set[str],
    elsewhere: set[str],
) -> None:
    places: dict[str, str] = {}

    def all_have_a_place() -> bool:
        pods = operator.pods()
        places.update({name_of(pod): pod["spec"]["nodeName"] for pod in pods if "nodeName" in pod["spec"]})
        return all("nodeName" in pod["spec"] for pod in pods) and wanted <= places.keys()

    def said() -> str:
        waiting = [(name_of(pod), pod["status"].get("conditions")) for pod in operator.pods()]
        return f"{places}\n{waiting}\n{keda.last_lines()}"

    wanted = {f"fleet-postback-{name}" for name in on_gpus | elsewhere}
    plain, with_gpus = operator.node("plain", _IDLE), operator.node("gpus", _IDLE, gpus=_GPUS)
    taint = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
    operator.api.patch(f"/api/v1/nodes/{with_gpus.name}", {"spec": {"taints": [taint]}})
    with _what_the_cluster_has(operator, control_plane.authority):
        for command in _commands(example):
            operator.run(command)
        eventually(all_have_a_place, WAIT_SECONDS, said)
        operator.run("helm uninstall fleet")
    assert {name for name, place in places.items() if place == with_gpus.name} == {
        f"fleet-postback-{name}" for name in on_gpus
    }
    [exporter] = {name for name in places.keys() - wanted if "-topics-" not in name}
    assert exporter.startswith("fleet-postback-exporter-")
    assert places[exporter] == plain.name
