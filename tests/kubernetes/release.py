"""A release of the chart in a namespace of its own, installed by Helm."""

from __future__ import annotations

import base64
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.go_tools import HELM, ensure
from tests.integration.deployment import CHART, Manifest
from tests.kubernetes.api import Api, Object
from tests.kubernetes.programs import WAIT_SECONDS
from tests.product import Product, eventually

RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
"""The labels of a namespace with the Pod Security level `restricted`."""


@dataclass(frozen=True, slots=True)
class Release:
    """The release `fleet` in one namespace."""

    api: Api
    kubeconfig: Path
    namespace: str
    values: Manifest
    """Values of every revision; a revision's own values override them."""

    @classmethod
    def prepare(cls, api: Api, kubeconfig: Path, product: Product) -> Release:
        """Make a `restricted` namespace with the keyring's Secret. Nothing is installed yet."""
        namespace = product.kafka.topic_prefix.rstrip(".")
        api.create("/api/v1/namespaces", {"metadata": {"name": namespace, "labels": RESTRICTED}})
        account = f"/api/v1/namespaces/{namespace}/serviceaccounts/default"
        eventually(lambda: api.answers(account), WAIT_SECONDS, "the namespace has no account for pods")
        keyring = base64.b64encode((product.folder / "keyring.json").read_bytes()).decode()
        secret = {"metadata": {"name": "postback-keyring"}, "data": {"keyring.json": keyring}}
        api.create(f"/api/v1/namespaces/{namespace}/secrets", secret)
        return cls(api, kubeconfig, namespace, _values(product))

    def install(self, *values: Manifest) -> None:
        """Install, and wait until every role is ready."""
        self._helm("install", "fleet", str(CHART), "--wait", values=values)

    def upgrade(self, *values: Manifest, wait: bool = True) -> None:
        self._helm("upgrade", "fleet", str(CHART), *(["--wait"] if wait else []), values=values)

    def roll_back(self, revision: int) -> None:
        self._helm("rollback", "fleet", str(revision), "--wait")

    def test(self) -> tuple[int, str]:
        """Run `helm test`; return its status and its output."""
        done = self._run("test", "fleet")
        return done.returncode, done.stdout + done.stderr

    def uninstall(self) -> None:
        """Uninstall, and wait until the last pod is gone."""
        self._helm("uninstall", "fleet", "--wait")
        eventually(
            lambda: not self.pods(), WAIT_SECONDS, lambda: f"pods are left: {[name_of(pod) for pod in self.pods()]}"
        )

    def pods(self, role: str = "") -> list[Object]:
        """The release's pods, sorted by name; only one role's pods if `role` is given."""
        chosen = {"labelSelector": f"app.kubernetes.io/component={role}"} if role else {}
        return sorted(self.api.items(f"{self.path}/pods", **chosen), key=name_of)

    def replicas(self, role: str) -> tuple[int, int]:
        """The number of pods that the role's StatefulSet wants, and the number that is ready."""
        found = self.api.get(f"/apis/apps/v1/namespaces/{self.namespace}/statefulsets/fleet-postback-{role}")
        return found["spec"]["replicas"], found["status"].get("readyReplicas", 0)

    @property
    def path(self) -> str:
        """The namespace's path in the core API."""
        return f"/api/v1/namespaces/{self.namespace}"

    def _helm(self, *arguments: str, values: tuple[Manifest, ...] | None = None) -> None:
        done = self._run(*arguments, values=values)
        assert done.returncode == 0, f"helm {arguments[0]}: {done.stderr[-2000:]}"

    def _run(self, *arguments: str, values: tuple[Manifest, ...] | None = None) -> subprocess.CompletedProcess[str]:
        place = [
            "--namespace",
            self.namespace,
            "--kubeconfig",
            str(self.kubeconfig),
            "--timeout",
            f"{WAIT_SECONDS:.0f}s",
        ]
        return subprocess.run(
            [ensure(HELM), *arguments, *place, *([] if values is None else ["--values", "-"])],
            input="" if values is None else yaml.safe_dump(_merged(self.values, *values)),
            capture_output=True,
            text=True,
            check=False,
            timeout=2 * WAIT_SECONDS,
        )


def name_of(manifest: Object) -> str:
    return str(manifest["metadata"]["name"])


def uids(pods: list[Object]) -> set[str]:
    return {str(pod["metadata"]["uid"]) for pod in pods}


def is_ready(pod: Object) -> bool:
    conditions = {each["type"]: each["status"] for each in pod["status"].get("conditions", [])}
    return conditions.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]


def _values(product: Product) -> Manifest:
    kafka = product.kafka
    return {
        "env": "development",
        "image": {"repository": "postback"},
        "kafka": {
            "bootstrapServers": kafka.bootstrap_servers,
            "topicPrefix": kafka.topic_prefix,
            "partitions": kafka.partitions,
            "replicationFactor": 1,
            "tierDelaysSeconds": list(kafka.tier_delays_seconds),
        },
        "egress": {"allowCallbacks": ["127.0.0.1/32"]},
        "worker": {"replicas": 2, "drainSeconds": 10, "marginSeconds": 5},
        "delivery": {"replicas": 1, "marginSeconds": 5},
    }


def _merged(first: Manifest, *others: Manifest) -> Manifest:
    """Return the first values, overridden by the other values section by section."""
    merged: Manifest = json.loads(json.dumps(first))
    for other in others:
        for name, value in other.items():
            both = isinstance(value, dict) and isinstance(merged.get(name), dict)
            merged[name] = _merged(merged[name], value) if both else value
    return merged
