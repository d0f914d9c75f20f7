"""A release of the chart in a namespace of its own, installed by Helm, and jobs for it."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.go_tools import HELM, ensure
from tests.integration.deployment import CHART, Manifest
from tests.kubernetes.api import Api, Object
from tests.kubernetes.programs import WAIT_SECONDS
from tests.product import Product, eventually
from tests.repeating import repeating

_TTL_SECONDS = 3600


class Jobs:
    """Sends jobs with unique ids. Only one thread may submit at a time."""

    def __init__(self, product: Product) -> None:
        self._product = product
        self.ids: list[str] = []

    def submit(self, count: int, verb: str = "Explain", lane: str | None = None) -> list[str]:
        """Submit jobs, spread over the lane's partitions, and return their ids. Each prompt begins with the verb."""
        ids = [f"job-{len(self.ids) + number}" for number in range(count)]
        url = self._product.callbacks.url
        self._product.submit(
            (
                {"job_id": each, "prompt": f"{verb} {each}.", "callback_url": url, "ttl_seconds": _TTL_SECONDS}
                for each in ids
            ),
            self._product.kafka.topics.requests(lane),
        )
        self.ids += ids
        return ids

    def keep_coming(self) -> AbstractContextManager[None]:
        """Submit jobs, a few at a time, until the block ends."""
        return repeating(0.5, lambda: self.submit(4))

    def are_called_back(self, ids: list[str], said: Callable[[], str]) -> None:
        """Wait until each of these jobs is called back."""
        wanted = set(ids)
        eventually(
            lambda: set(self._product.callbacks.events) >= wanted,
            WAIT_SECONDS,
            lambda: f"not called back: {sorted(wanted - set(self._product.callbacks.events))}\n{said()}",
        )

    def all_are_answered(self, said: Callable[[], str]) -> None:
        """Wait until each job is called back, and assert one result and one event for each."""
        self.are_called_back(self.ids, said)
        self._product.assert_each_is_answered_once_and_called_back(self.ids)


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
