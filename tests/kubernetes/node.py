"""A node of the test cluster: it tells the API server that it lives, and runs the pods that the scheduler gives it."""

from __future__ import annotations

import itertools
import os
import subprocess
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import requests

from tests.kubernetes.api import Api, Object, Refused
from tests.kubernetes.pod import Image, Pod
from tests.kubernetes.programs import WAIT_SECONDS
from tests.kubernetes.services import proxying
from tests.product import eventually
from tests.repeating import repeating

_BEAT_SECONDS = 2.0
_WATCH_SECONDS = 2
_CRASH_SECONDS = 0.2
_CAPACITY = {"cpu": "64", "memory": "256Gi", "pods": "100", "ephemeral-storage": "1Ti"}
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"

_LAST_OCTETS = itertools.count(1)


def _address() -> str:
    """A loopback address for one pod alone; its middle parts come from this test run's process id."""
    number = next(_LAST_OCTETS)
    assert number < 255, "this test run has too many pods"
    return f"127.{16 + (os.getpid() >> 8) % 230}.{os.getpid() & 255}.{number}"


class Node:
    """A context manager of a node, whose pods run `program` as their image's entry point.

    Containers with a command of their own reach Services by a proxy, which their environment names. All processes know
    the names in the file `hosts`.
    """

    def __init__(
        self, api: Api, name: str, folder: Path, program: Path, hosts: Path | None = None, gpus: int = 0
    ) -> None:
        self.name = name
        self._api, self._folder = api, folder
        self._image = Image(program, "", hosts)
        self._capacity = {**_CAPACITY, **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
        self._over = threading.Event()
        self._stack = ExitStack()
        self._pods: dict[str, Pod] = {}
        self._threads = [threading.Thread(target=each, name=name, daemon=True) for each in (self._beat, self._follow)]

    def __enter__(self) -> Node:
        labels = {"kubernetes.io/hostname": self.name}
        self._api.create("/api/v1/nodes", {"metadata": {"name": self.name, "labels": labels}})
        self._say_ready()
        self._image = replace(self._image, services=self._stack.enter_context(proxying(self._api)))
        for thread in self._threads:
            thread.start()
        path = f"/api/v1/nodes/{self.name}"
        eventually(lambda: not self._api.get(path)["spec"].get("taints"), WAIT_SECONDS, "the new node gets no pods")
        return self

    def __exit__(self, *error: object) -> None:
        self.lose()

    def lose(self) -> None:
        """End like a machine that loses power: its processes are gone, and it sends the API server nothing more."""
        self._over.set()
        for thread in self._threads:
            thread.join()
        for pod in self._pods.values():
            pod.lose()
        self._stack.close()

    def crashing(self, namespace: str, role: str) -> AbstractContextManager[None]:
        """Kill the processes of a role's pods (SIGKILL) whenever they run, until the block ends."""

        def crash() -> None:
            for pod in list(self._pods.values()):
                metadata = pod.manifest["metadata"]
                of_role = metadata.get("labels", {}).get("app.kubernetes.io/component") == role
                if of_role and metadata["namespace"] == namespace:
                    pod.crash()

        return repeating(_CRASH_SECONDS, crash)

    def execute(self, uid: str, arguments: Sequence[str], given: str) -> subprocess.CompletedProcess[str]:
        """Run `program` in a pod's first container, with its environment."""
        return self._pods[uid].execute(arguments, given)

    def last_lines(self) -> str:
        """The end of each pod's log."""
        logs = sorted(self._folder.glob("*/*.log"), key=lambda log: log.stat().st_mtime)
        return "\n".join(f"--- {log.stem}\n" + "\n".join(log.read_text().splitlines()[-8:]) for log in logs[-12:])

    def _say_ready(self) -> None:
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": ""}
        status = {"capacity": self._capacity, "allocatable": self._capacity, "conditions": [ready]}
        self._api.patch(f"/api/v1/nodes/{self.name}/status", {"status": status})

    def _beat(self) -> None:
        spec: Object = {"holderIdentity": self.name, "leaseDurationSeconds": 40}
        body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": self.name}, "spec": spec}
        for _ in itertools.count():
            spec["renewTime"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            with suppress(Refused, requests.RequestException):  # the next beat tries again
                self._api.apply(f"{_LEASES}/{self.name}", body)
            if self._over.wait(_BEAT_SECONDS):
                return

    def _follow(self) -> None:
        while not self._over.is_set():
            with suppress(Refused, requests.RequestException):  # the next look tries again
                self._look()

    def _look(self) -> None:
        """Start the node's new pods, stop its deleted ones, then follow changes of its pods for a while."""
        ours = {"fieldSelector": f"spec.nodeName={self.name}"}
        listed = self._api.get("/api/v1/pods", **ours)
        for manifest in listed["items"]:
            self._take("MODIFIED", manifest)
        there = {manifest["metadata"]["uid"] for manifest in listed["items"]}
        for uid, pod in self._pods.items():
            if uid not in there:
                pod.stop(pod.manifest)
        since = listed["metadata"]["resourceVersion"]
        for event in self._api.watch("/api/v1/pods", _WATCH_SECONDS, resourceVersion=since, **ours):
            if self._over.is_set() or event["type"] == "ERROR":
                return
            self._take(event["type"], event["object"])

    def _take(self, kind: str, manifest: Object) -> None:
        uid = manifest["metadata"]["uid"]
        if uid not in self._pods:
            if kind == "DELETED":
                return
            folder = self._folder / uid
            folder.mkdir(parents=True)
            self._pods[uid] = Pod(self._api, manifest, _address(), folder, self._image)
            self._pods[uid].start()
        if kind == "DELETED" or "deletionTimestamp" in manifest["metadata"]:
            self._pods[uid].stop(manifest)
