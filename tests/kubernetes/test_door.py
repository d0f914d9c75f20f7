"""The chart's gateway on a real API server: its door over TLS, and its store on a claim that outlives the pod."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import urllib3

from tests.integration.certificates import Authority
from tests.integration.deployment import Manifest
from tests.kubernetes.build import TEST_SECONDS
from tests.kubernetes.control_plane import ControlPlane
from tests.kubernetes.node import Node
from tests.kubernetes.programs import WAIT_SECONDS
from tests.kubernetes.release import Release, uids
from tests.postback_command import environment_of, postback
from tests.product import Product, eventually

pytestmark = [pytest.mark.broker, pytest.mark.timeout(TEST_SECONDS)]

_DOOR = "fleet-postback-door"
_GATEWAY: Manifest = {"gateway": {"enabled": True, "tls": {"existingSecret": "door"}, "storage": {"size": "1Gi"}}}
_NEW_LABEL: Manifest = {"gateway": {"podLabels": {"revision": "second"}}}


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
    release.upgrade(_GATEWAY, _NEW_LABEL)
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
