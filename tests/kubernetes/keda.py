"""KEDA's operator and its metrics adapter beside the cluster."""

from __future__ import annotations

import base64
import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import yaml

from cli.devkit.kafka.cluster import free_ports
from tests.kubernetes.build import keda_definitions
from tests.kubernetes.control_plane import ControlPlane
from tests.kubernetes.programs import WAIT_SECONDS, Programs
from tests.kubernetes.services import proxying

_METRICS = "/apis/external.metrics.k8s.io/v1beta1"
_SERVICES, _SERVICE = "/apis/apiregistration.k8s.io/v1/apiservices", "v1beta1.external.metrics.k8s.io"
_DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


class Keda:
    """A context manager of both programs, which reach the cluster's Services through a proxy."""

    def __init__(self, control_plane: ControlPlane, folder: Path) -> None:
        self._plane, self._api, self._folder = control_plane, control_plane.api, folder
        self._programs = Programs(folder)
        self._stack = ExitStack()
        self._figures, self._metrics, *self._unused = free_ports(6)

    def __enter__(self) -> Self:
        self._write_certificates()
        self._define()
        self._publish_metrics()
        proxy = self._stack.enter_context(proxying(self._api))
        env = {
            **os.environ,
            "KUBECONFIG": str(self._plane.kubeconfig),
            "HTTP_PROXY": proxy,  # the proxy serves only Services, because Go asks no proxy for loopback addresses
            "POD_NAMESPACE": "keda",
            "KEDA_CLUSTER_OBJECT_NAMESPACE": "keda",
            "WATCH_NAMESPACE": "",
        }
        env.pop("NO_PROXY", None)
        env.pop("no_proxy", None)
        self._programs.start("keda-operator", [self._plane.executable, "keda-operator", *self._operator_flags()], env)
        self._programs.start("keda-adapter", [self._plane.executable, "keda-adapter", *self._adapter_flags()], env)
        self._programs.wait_until_alive_and(
            lambda: self._api.answers(_METRICS), WAIT_SECONDS, "KEDA serves no external metrics"
        )
        return self

    def __exit__(self, *error: object) -> None:
        # Remove the metrics API before its server ends: without a server, the API holds up the deletion of namespaces.
        self._api.delete(f"{_SERVICES}/{_SERVICE}")
        self._programs.kill()
        self._stack.close()

    def last_lines(self) -> str:
        """The end of each program's log."""
        return self._programs.last_lines()

    def _write_certificates(self) -> None:
        """Write the files that both programs look for. Go takes key and certificate out of one file."""
        names = ("localhost", "keda-operator.keda.svc", "keda-metrics-apiserver.keda.svc")
        chain = self._plane.authority.chain_file("127.0.0.1", *names)
        shutil.copy(self._plane.authority.ca_file, self._folder / "ca.crt")
        for name in ("tls.crt", "tls.key"):
            shutil.copy(chain, self._folder / name)

    def _define(self) -> None:
        for file in sorted(keda_definitions().glob("*.yaml")):
            definition = yaml.safe_load(file.read_text())
            self._api.apply(f"{_DEFINITIONS}/{definition['metadata']['name']}", definition)

    def _publish_metrics(self) -> None:
        """Let the API server find the adapter, which runs outside the cluster, by a Service of type ExternalName."""
        self._api.create("/api/v1/namespaces", {"metadata": {"name": "keda"}})
        service: dict[str, Any] = {"metadata": {"name": "keda-metrics-apiserver"}}
        service["spec"] = {"type": "ExternalName", "externalName": "localhost"}
        self._api.create("/api/v1/namespaces/keda/services", service)
        spec = {
            "group": "external.metrics.k8s.io",
            "version": "v1beta1",
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
            "service": {"name": "keda-metrics-apiserver", "namespace": "keda", "port": self._metrics},
            "caBundle": base64.b64encode(self._plane.authority.ca_file.read_bytes()).decode(),
        }
        self._api.create(_SERVICES, {"metadata": {"name": _SERVICE}, "spec": spec})

    def _operator_flags(self) -> list[str]:
        probes, own_metrics, *_ = self._unused
        return [
            f"--cert-dir={self._folder}",
            f"--ca-dir={self._folder}",
            "--enable-cert-rotation=false",
            "--enable-webhook-patching=false",
            "--enable-apiservice-patching=false",
            f"--metrics-bind-address=127.0.0.1:{own_metrics}",
            f"--health-probe-bind-address=127.0.0.1:{probes}",
            f"--metrics-service-bind-address=127.0.0.1:{self._figures}",
            "--zap-encoder=console",
        ]

    def _adapter_flags(self) -> list[str]:
        config = self._plane.kubeconfig
        return [
            f"--secure-port={self._metrics}",
            "--bind-address=127.0.0.1",
            f"--port={self._unused[-1]}",
            f"--metrics-service-address=localhost:{self._figures}",
            f"--cert-dir={self._folder}",
            f"--client-ca-file={self._folder / 'ca.crt'}",
            f"--tls-cert-file={self._folder / 'tls.crt'}",
            f"--tls-private-key-file={self._folder / 'tls.key'}",
            f"--authentication-kubeconfig={config}",
            f"--authorization-kubeconfig={config}",
            f"--lister-kubeconfig={config}",
        ]
