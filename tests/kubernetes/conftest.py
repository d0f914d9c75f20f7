"""Fixtures: one control plane with a node, and a release of the chart that runs the real roles.

Control plane and node end with the last test of this package, since the node's threads disturb unit tests that measure
memory or replace the environment.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from schemas.settings import KafkaSettings
from tests.conftest import TIER_DELAYS_SECONDS, SharedBroker
from tests.kubernetes.control_plane import ControlPlane
from tests.kubernetes.keda import Keda
from tests.kubernetes.node import Node
from tests.kubernetes.programs import WAIT_SECONDS
from tests.kubernetes.release import Jobs, Release
from tests.postback_command import POSTBACK
from tests.product import PARTITIONS, Product, eventually, running


@pytest.fixture(scope="package")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """The package's control plane. The first test run builds its executable and keeps it; the build takes minutes."""
    with ControlPlane(tmp_path_factory.mktemp("kubernetes")) as started:
        yield started


@pytest.fixture(scope="package")
def node(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """The package's node, which no test stops."""
    with Node(control_plane.api, "first", tmp_path_factory.mktemp("first"), POSTBACK) as started:
        yield started


@pytest.fixture(scope="package")
def keda(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keda]:
    """The package's KEDA."""
    with Keda(control_plane, tmp_path_factory.mktemp("keda")) as started:
        yield started


@pytest.fixture
def product(broker: SharedBroker, tmp_path: Path) -> Iterator[Product]:
    """A receiver, and queries to Kafka. The chart makes the topics, and the processes are pods."""
    kafka = KafkaSettings(
        bootstrap_servers=broker.bootstrap_servers,
        topic_prefix=f"t{uuid.uuid4().hex[:10]}.",
        partitions=PARTITIONS,
        replication_factor=1,
        tier_delays_seconds=TIER_DELAYS_SECONDS,
    )
    with running(kafka, tmp_path) as started:
        started.callbacks.up()
        yield started
    admin = AdminClient(kafka.client_config())
    ours = [name for name in admin.list_topics(timeout=30).topics if name.startswith(kafka.topic_prefix)]
    for deleted in admin.delete_topics(ours).values() if ours else ():
        deleted.result(30)


@pytest.fixture
def jobs(product: Product) -> Jobs:
    """A sender of jobs that has sent none yet."""
    return Jobs(product)


@pytest.fixture
def release(control_plane: ControlPlane, node: Node, product: Product) -> Iterator[Release]:
    """A release in a namespace of its own, which is deleted with everything in it."""
    prepared = Release.prepare(control_plane.api, control_plane.kubeconfig, product)
    yield prepared
    control_plane.api.delete(prepared.path)
    eventually(lambda: not prepared.pods(), WAIT_SECONDS, "pods outlive their namespace")
