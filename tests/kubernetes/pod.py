"""One pod of a test node, in a thread: containers as processes with probes, folders as volumes, and a grace period."""

from __future__ import annotations

import base64
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import requests

from telemetry.clock import Deadline, SystemClock
from tests.kubernetes.api import Api, Object, Refused


class Volumes:
    """The folders of a pod's volumes. In texts, a folder's path replaces the path at which it is mounted."""

    def __init__(self, api: Api, manifest: Object, folder: Path, address: str) -> None:
        self._api, self._manifest, self._folder, self.address = api, manifest, folder, address
        self._namespace = f"/api/v1/namespaces/{manifest['metadata']['namespace']}"

    def local(self, text: str) -> str:
        """Replace the paths of mounts by their folders, and a server's place on all addresses by the pod's address."""
        paths = {mount: str(folder) for mount, folder in self._paths.items()}
        longest_first = "|".join(re.escape(path) for path in sorted(paths, key=len, reverse=True))
        # Replace in one pass, because a folder's own path may begin with a mount's path, /tmp, and must not be replaced
        # again. The path of a URL without a host, such as SQLite's, follows three slashes.
        path = rf"(?:(?<![\w/])|(?<=:///))({longest_first})(?=/|$)"
        changed = re.sub(path, lambda found: paths[found[1]], text) if paths else text
        return changed.replace("0.0.0.0", self.address).replace("://:", f"://{self.address}:")

    def environment(self, container: Object) -> dict[str, str]:
        """Return the container's environment."""
        told = {entry["name"]: self.local(self._value(entry)) for entry in container.get("env", [])}
        home, scratch = self._paths.get("/var/cache/postback"), self._paths.get("/tmp")
        return {"HOME": str(home or scratch or self._folder), "TMPDIR": str(scratch or self._folder), **told}

    @cached_property
    def _paths(self) -> dict[str, Path]:
        """Maps the path at which the containers mount a folder to the folder, which is filled."""
        folders = {volume["name"]: self._filled(volume) for volume in self._manifest["spec"].get("volumes", [])}
        mounts = [m for each in self._manifest["spec"]["containers"] for m in each.get("volumeMounts", [])]
        return {mount["mountPath"]: folders[mount["name"]] for mount in mounts}

    def _filled(self, volume: Object) -> Path:
        if claim := volume.get("persistentVolumeClaim"):
            return self._claimed(claim["claimName"])
        folder = self._folder / str(volume["name"])
        folder.mkdir(parents=True, exist_ok=True)
        if secret := volume.get("secret"):
            mode = secret.get("defaultMode", 0o644)
            for name, content in self._secret(secret["secretName"]).items():
                (folder / name).write_bytes(content)
                (folder / name).chmod(mode)
        if config := volume.get("configMap"):
            for name, text in self._api.get(f"{self._namespace}/configmaps/{config['name']}")["data"].items():
                (folder / name).write_text(text)
        return folder

    def _claimed(self, name: str) -> Path:
        """The folder of the PersistentVolume that a test has made, and that Kubernetes has bound to the claim."""
        bound = self._api.get(f"{self._namespace}/persistentvolumeclaims/{name}")["spec"]["volumeName"]
        return Path(self._api.get(f"/api/v1/persistentvolumes/{bound}")["spec"]["hostPath"]["path"])

    def _secret(self, name: str) -> dict[str, bytes]:
        data = self._api.get(f"{self._namespace}/secrets/{name}")["data"]
        return {key: base64.b64decode(value) for key, value in data.items()}

    def _value(self, entry: Object) -> str:
        source = entry.get("valueFrom")
        if source is None:
            return str(entry.get("value", ""))
        if reference := source.get("secretKeyRef"):
            return self._secret(reference["name"])[reference["key"]].decode()
        assert source["fieldRef"]["fieldPath"] == "metadata.name", f"this node does not know {source}"
        return str(self._manifest["metadata"]["name"])


_CLOCK = SystemClock()
_IMPATIENT_SECONDS = 0.5
"""The longest time between two probes of a container that does not answer yet, even if its spec says more."""
_LONGEST_BACK_OFF_SECONDS = 8.0


class Probe:
    """An httpGet or tcpSocket probe."""

    def __init__(self, spec: Object, container: Object, address: str) -> None:
        ports = {port.get("name"): port["containerPort"] for port in container.get("ports", [])}
        get = spec.get("httpGet") or spec["tcpSocket"]
        self._place = address, ports.get(get["port"], get["port"])
        self._path = get.get("path", "")
        """Empty for tcpSocket."""
        self._timeout = spec.get("timeoutSeconds", 1)
        self._period = spec.get("periodSeconds", 10)
        self._patience = self._period * spec.get("failureThreshold", 3)
        self._next, self._answered = 0.0, _CLOCK.monotonic()
        self.met = False
        self.failed = False
        """True once no probe has succeeded for the time that the spec allows."""

    def look(self) -> None:
        """Probe the container, if a probe is due."""
        now = _CLOCK.monotonic()
        if now < self._next:
            return
        if self._answers():
            self.met, self.failed, self._answered = True, False, now
        elif now - self._answered >= self._patience:
            self.met, self.failed = False, True
        self._next = now + (self._period if self._answered == now else min(self._period, _IMPATIENT_SECONDS))

    def _answers(self) -> bool:
        host, port = self._place
        try:
            if self._path:
                return requests.get(f"http://{host}:{port}{self._path}", timeout=self._timeout).ok
            socket.create_connection((host, port), self._timeout).close()
        except (OSError, requests.RequestException):
            return False
        return True


@dataclass(frozen=True, slots=True)
class Image:
    """The files that every container of a node has."""

    program: Path
    """The entry point."""
    services: str
    """URL of a proxy to the cluster's Services, for containers with a command of their own."""
    hosts: Path | None
    """Replaces /etc/hosts, in a mount namespace for each process: this needs root."""

    def command(self, own: Sequence[str] | None, arguments: Sequence[str]) -> list[str]:
        """Return the command of a process: a container's own, or the entry point."""
        command = [*(own or (str(self.program),)), *arguments]
        if self.hosts is None:
            return command
        shell = 'mount --bind "$0" /etc/hosts && exec "$@"'
        return ["unshare", "--mount", "--", "sh", "-c", shell, str(self.hosts), *command]


class Container:
    """One container of a pod. Its pod's thread looks after it."""

    def __init__(self, spec: Object, volumes: Volumes, log: Path, restart_policy: str, image: Image) -> None:
        self._spec, self._volumes, self._log = spec, volumes, log
        self._restart_policy, self._image = restart_policy, image
        self._process: subprocess.Popen[bytes] | None = None
        self._restart_at, self._restarts = 0.0, 0
        self.exit_code: int | None = None
        """The exit status of the last process that has ended."""
        self._startup: Probe | None = None
        self._probes: dict[str, Probe] = {}
        """The probes of liveness and readiness; empty until the startup probe is met."""

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def is_over(self) -> bool:
        """True if the container has ended and is not started again."""
        return self.exit_code is not None and (
            self._restart_policy == "Never" or (self._restart_policy == "OnFailure" and self.exit_code == 0)
        )

    @property
    def started(self) -> bool:
        return self.runs and (self._startup is None or self._startup.met)

    @property
    def ready(self) -> bool:
        readiness = self._probes.get("readinessProbe")
        return self.started and ("readinessProbe" not in self._spec or (readiness is not None and readiness.met))

    def look(self) -> None:
        """Start the process, probe it, and start it again after its end, with a longer pause each time."""
        if self.is_over:
            return
        if self._process is None:
            if _CLOCK.monotonic() >= self._restart_at:
                self._start()
        elif (code := self._process.poll()) is not None:
            self._process, self.exit_code = None, code
            self._restarts += not self.is_over
            self._restart_at = _CLOCK.monotonic() + min(2.0**self._restarts, _LONGEST_BACK_OFF_SECONDS)
        else:
            self._probe()

    def terminate(self) -> None:
        if self.runs and self._process:
            self._process.send_signal(signal.SIGTERM)

    def crash(self) -> None:
        """Send SIGKILL to the process with its children, which the pod's thread then starts again."""
        process = self._process
        if process and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)

    def kill(self) -> None:
        """Kill the process with its children."""
        self.crash()
        if self._process:
            self._process.wait()

    def status(self) -> Object:
        """Return its `containerStatuses` entry."""
        if self.runs:
            state: Object = {"running": {}}
        elif self.is_over:
            state = {"terminated": {"exitCode": self.exit_code}}
        else:
            state = {"waiting": {"reason": "CrashLoopBackOff" if self._restarts else "ContainerCreating"}}
        return {
            "name": self._spec["name"],
            "image": self._spec["image"],
            "imageID": "",
            "ready": self.ready,
            "started": self.started,
            "restartCount": self._restarts,
            "state": state,
        }

    def _start(self) -> None:
        self._probes = {}
        self._startup = self._new_probe("startupProbe") if "startupProbe" in self._spec else None
        own = self._spec.get("command")
        arguments = [self._volumes.local(argument) for argument in self._spec.get("args", [])]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *self._image.command(own, arguments)],
                env=self._environment({"http_proxy": self._image.services} if own else {}),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run(self, arguments: Sequence[str], given: str) -> subprocess.CompletedProcess[str]:
        """Run the image's program beside the container's process, as `kubectl exec` does."""
        command = self._image.command(None, arguments)
        return subprocess.run(
            command, env=self._environment({}), input=given, capture_output=True, text=True, check=False
        )

    def _environment(self, more: dict[str, str]) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], **more, **self._volumes.environment(self._spec)}

    def _probe(self) -> None:
        if self._startup and not self._startup.met:
            self._startup.look()
        else:
            for kind in ("livenessProbe", "readinessProbe"):
                if kind in self._spec and kind not in self._probes:
                    self._probes[kind] = self._new_probe(kind)
            for probe in self._probes.values():
                probe.look()
        liveness = self._probes.get("livenessProbe")
        if (self._startup and self._startup.failed) or (liveness and liveness.failed):
            self.kill()

    def _new_probe(self, kind: str) -> Probe:
        return Probe(self._spec[kind], self._spec, self._volumes.address)


_LOOK_SECONDS = 0.2


class Pod(threading.Thread):
    """A pod from its assignment to the node until its end."""

    def __init__(self, api: Api, manifest: Object, address: str, folder: Path, image: Image) -> None:
        super().__init__(name=manifest["metadata"]["name"], daemon=True)
        self.manifest, self.address, self.folder = manifest, address, folder
        self._api, self._image = api, image
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

    def execute(self, arguments: Sequence[str], given: str) -> subprocess.CompletedProcess[str]:
        """Run the image's program in the first container."""
        return self._containers[0].run(arguments, given)

    def run(self) -> None:
        volumes = Volumes(self._api, self.manifest, self.folder, self.address)
        spec = self.manifest["spec"]
        for each in spec["containers"]:
            log = self.folder / f"{self.name}.{each['name']}.log"
            self._containers.append(Container(each, volumes, log, spec["restartPolicy"], self._image))
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
