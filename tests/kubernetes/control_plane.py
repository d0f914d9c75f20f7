"""A Kubernetes control plane on loopback: etcd, the API server, the controllers and the scheduler.

The controllers look more often than in a cluster, so that tests wait less: each second for the autoscaler and for
nodes, and a silent node counts as lost after 30 seconds. Everything else has Kubernetes' own defaults.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from cli.devkit.kafka.cluster import free_ports
from tests.integration.certificates import Authority
from tests.kubernetes.api import Api
from tests.kubernetes.build import executable
from tests.kubernetes.programs import WAIT_SECONDS, Programs

_TOKEN = "administrator"


class ControlPlane:
    """A context manager of the four programs. `folder` gets their data, which no later run uses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority.create(folder)
        self.executable = executable()
        self.front_proxy = self.authority.client_file("front-proxy")
        self._etcd, self._etcd_peer, port, *self._ports = free_ports(5)
        self.api = Api(f"https://127.0.0.1:{port}", _TOKEN, self.authority.ca_file)
        self.kubeconfig = folder / "kubeconfig"
        self._programs = Programs(folder)

    def __enter__(self) -> Self:
        self._write_files()
        self._start("etcd", *self._etcd_flags())
        self._start("kube-apiserver", *self._api_flags())
        self._wait_for("/readyz", "the API server is not ready")
        controllers, scheduler = self._ports
        shared = (f"--kubeconfig={self.kubeconfig}", "--leader-elect=false", "--bind-address=127.0.0.1")
        self._start("kube-controller-manager", *shared, f"--secure-port={controllers}", *self._controller_flags())
        self._start("kube-scheduler", *shared, f"--secure-port={scheduler}")
        self._wait_for("/api/v1/namespaces/default/serviceaccounts/default", "the controllers do not work")
        return self

    def __exit__(self, *error: object) -> None:
        self._programs.kill()

    def last_lines(self) -> str:
        """The end of each program's log."""
        return self._programs.last_lines()

    def _write_files(self) -> None:
        # Write the service accounts' key in the traditional format, from which these programs also read the public key.
        key = ec.generate_private_key(ec.SECP256R1())
        private = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
        (self.folder / "accounts.pem").write_bytes(private)
        (self.folder / "tokens.csv").write_text(f"{_TOKEN},admin,admin,system:masters\n")
        cluster = {"server": self.api.url, "certificate-authority": str(self.authority.ca_file)}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "admin", "user": {"token": _TOKEN}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
            "current-context": "test",
        }
        self.kubeconfig.write_text(json.dumps(config))  # the file has to be YAML, and JSON is YAML

    def _etcd_flags(self) -> list[str]:
        client, peer = (f"http://127.0.0.1:{port}" for port in (self._etcd, self._etcd_peer))
        return [
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
        ]

    def _api_flags(self) -> list[str]:
        server = self.authority.chain_file("127.0.0.1", "localhost", "kubernetes.default.svc")
        accounts, ca = self.folder / "accounts.pem", self.authority.ca_file
        return [
            f"--etcd-servers=http://127.0.0.1:{self._etcd}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self.api.url.rpartition(':')[2]}",
            f"--tls-cert-file={server}",
            f"--tls-private-key-file={server}",
            f"--token-auth-file={self.folder / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--endpoint-reconciler-type=none",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={accounts}",
            f"--service-account-signing-key-file={accounts}",
            f"--client-ca-file={ca}",
            f"--requestheader-client-ca-file={ca}",
            "--requestheader-allowed-names=front-proxy",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            f"--proxy-client-cert-file={self.front_proxy}",
            f"--proxy-client-key-file={self.front_proxy}",
            "--default-unreachable-toleration-seconds=1",
            "--default-not-ready-toleration-seconds=1",
        ]

    def _controller_flags(self) -> list[str]:
        return [
            f"--service-account-private-key-file={self.folder / 'accounts.pem'}",
            f"--root-ca-file={self.authority.ca_file}",
            "--horizontal-pod-autoscaler-sync-period=1s",
            "--node-monitor-period=1s",
            "--node-monitor-grace-period=30s",
        ]

    def _start(self, name: str, *flags: str) -> None:
        self._programs.start(name, [self.executable, name, *flags])

    def _wait_for(self, path: str, what: str) -> None:
        self._programs.wait_until_alive_and(lambda: self.api.answers(path), WAIT_SECONDS, what)
