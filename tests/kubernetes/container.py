"""A container of a test pod: a process, its probes and its restarts."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import requests

from telemetry.clock import SystemClock
from tests.kubernetes.api import Object
from tests.kubernetes.volumes import Volumes

_CLOCK = SystemClock()
_IMPATIENT_SECONDS = 0.5
"""The longest time between two probes of a container that does not answer yet, even if its spec says more."""
_LONGEST_BACK_OFF_SECONDS = 8.0


class Probe:
    """An httpGet probe."""

    def __init__(self, spec: Object, container: Object, address: str) -> None:
        ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
        get = spec["httpGet"]
        self._url = f"http://{address}:{ports.get(get['port'], get['port'])}{get['path']}"
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
        try:
            return requests.get(self._url, timeout=self._timeout).ok
        except requests.RequestException:
            return False


class Container:
    """One container of a pod. Its pod's thread looks after it."""

    def __init__(
        self, spec: Object, volumes: Volumes, log: Path, program: Path, restart_policy: str, services: str
    ) -> None:
        """`services` is the URL of a proxy to the cluster's Services."""
        self._spec, self._volumes, self._log, self._program = spec, volumes, log, program
        self._restart_policy, self._services = restart_policy, services
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
        command, proxied = (own, {"http_proxy": self._services}) if own else ([str(self._program)], {})
        arguments = [self._volumes.local(argument) for argument in self._spec.get("args", [])]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *command, *arguments],
                env={"PATH": os.environ["PATH"], **proxied, **self._volumes.environment(self._spec)},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

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
