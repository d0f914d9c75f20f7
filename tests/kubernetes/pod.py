"""One pod of a test node, in a thread: its containers are processes, with the pod's probes and grace period.

The thread does the kubelet's work by the Pod API (kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle). A pod
has a loopback address of its own, which stands in for 0.0.0.0 in arguments. Each mount is a folder of this machine,
whose path stands in for the mount's path in arguments and environment. Init containers, requests and limits are not
simulated.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import requests

from telemetry.clock import Deadline, SystemClock
from tests.kubernetes.api import Api, Object, Refused
from tests.kubernetes.container import Container
from tests.kubernetes.volumes import Volumes

_LOOK_SECONDS = 0.2
_CLOCK = SystemClock()


class Pod(threading.Thread):
    """A pod from its assignment to the node until its end."""

    def __init__(self, api: Api, manifest: Object, address: str, folder: Path, program: Path, services: str) -> None:
        super().__init__(name=manifest["metadata"]["name"], daemon=True)
        self.manifest, self.address, self.folder = manifest, address, folder
        self._api, self._program, self._services = api, program, services
        self._path = f"/api/v1/namespaces/{manifest['metadata']['namespace']}/pods/{manifest['metadata']['name']}"
        self._stop_asked, self._lost = threading.Event(), threading.Event()
        self._containers: list[Container] = []
        self._published: Object = {}

    def stop(self, manifest: Object) -> None:
        """End the pod within its grace period, and remove it from the API."""
        self.manifest = manifest
        self._stop_asked.set()

    def lose(self) -> None:
        """Kill the pod as a dying machine does: the API hears nothing of it."""
        self._lost.set()
        self.join()

    def crash(self) -> None:
        """Kill the processes of the containers, which start again by the pod's restart policy."""
        for container in self._containers:
            container.crash()

    def run(self) -> None:
        volumes = Volumes(self._api, self.manifest, self.folder, self.address)
        spec = self.manifest["spec"]
        for each in spec["containers"]:
            log = self.folder / f"{self.name}.{each['name']}.log"
            self._containers.append(Container(each, volumes, log, self._program, spec["restartPolicy"], self._services))
        try:
            while not (self._stop_asked.is_set() or self._lost.is_set()):
                for container in self._containers:
                    container.look()
                self._publish()
                self._stop_asked.wait(_LOOK_SECONDS)
            if not self._lost.is_set():
                self._end()
        finally:
            for container in self._containers:
                container.kill()

    def _end(self) -> None:
        metadata = self.manifest["metadata"]
        deadline = Deadline.after(_CLOCK, metadata.get("deletionGracePeriodSeconds") or 0)
        for container in self._containers:
            container.terminate()
        while any(container.runs for container in self._containers) and not deadline.passed:
            if self._lost.wait(_LOOK_SECONDS):
                return
        for container in self._containers:
            container.kill()
        ours = {"gracePeriodSeconds": 0, "preconditions": {"uid": self.uid}}
        gone = requests.codes.not_found, requests.codes.conflict  # a conflict means that a later pod has the name
        while not self._told(lambda: self._api.delete(self._path, ours), *gone):
            if self._lost.wait(_LOOK_SECONDS):
                return

    @property
    def uid(self) -> str:
        return str(self.manifest["metadata"]["uid"])

    def _publish(self) -> None:
        """Write the pod's status if it has changed."""
        status = self._status()
        # With the uid, the server refuses a status for a later pod of the same name.
        body = {"metadata": {"uid": self.uid}, "status": status}
        if status != self._published and self._told(
            lambda: self._api.patch(f"{self._path}/status", body), requests.codes.not_found
        ):
            self._published = status

    def _status(self) -> Object:
        ready = all(container.ready for container in self._containers)
        conditions = {"PodScheduled": True, "Initialized": True, "ContainersReady": ready, "Ready": ready}
        return {
            "phase": self._phase(),
            "podIP": self.address,
            "podIPs": [{"ip": self.address}],
            "hostIP": "127.0.0.1",
            "conditions": [{"type": kind, "status": str(value)} for kind, value in conditions.items()],
            "containerStatuses": [container.status() for container in self._containers],
        }

    def _phase(self) -> str:
        if not all(container.is_over for container in self._containers):
            return "Running"
        return "Failed" if any(container.exit_code for container in self._containers) else "Succeeded"

    def _told(self, request: Callable[[], object], *gone: int) -> bool:
        """Send a request about the pod. True if the server accepts it, or answers that the pod is gone."""
        try:
            request()
        except requests.RequestException:
            return False
        except Refused as error:
            return error.code in gone
        return True
