"""A cluster on one machine: its nodes with ports and properties, and the folder that holds its data.

    DIR/cluster.json            the cluster's id and its nodes with their ports
    DIR/node-N/server.properties, kafka.log, pid
    DIR/node-N/data/            Kafka's own files
        DIR/node-N/tmp/             files that the node's process unpacks; each start empties it

Every node is both broker and controller (KRaft), and the quorum is a static list. Unlike a dynamic quorum, the list
stores no ports in the data, so the next start can serve the data on other ports.
"""

from __future__ import annotations

import base64
import json
import random
import shutil
import socket
import subprocess
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cli.devkit.kafka.errors import BrokerError, DataMismatch, PortInUse
from cli.devkit.kafka.jars import class_archive, ensure_jars, java

SMALL_JVM = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xmx512m")
"""JVM flags for a small heap and few compiler and collector threads, because more threads would slow the start on two
cores."""
STEADY_JVM = ("-XX:+UseZGC", "-XX:-ZProactive", "-Xmx12g")
"""JVM flags for a garbage collector that pauses the broker for at most about a millisecond. The heap is large, so that
the collector seldom runs, because each of its runs occupies a core."""

_LOG_CONFIG = Path(__file__).with_name("log4j2.properties")
_EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST_PORT = 15_000
_INTERNAL_PARTITIONS = "4"

SERVER_PROPERTIES = {
    "process.roles": "broker,controller",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "auto.create.topics.enable": "false",
    "offsets.topic.num.partitions": _INTERNAL_PARTITIONS,
    "transaction.state.log.num.partitions": _INTERNAL_PARTITIONS,
    "share.coordinator.state.topic.num.partitions": _INTERNAL_PARTITIONS,
    "group.initial.rebalance.delay.ms": "0",
    # With these timeouts, a group notices a dead member after 6 s instead of 45 s.
    "group.consumer.min.session.timeout.ms": "6000",
    "group.consumer.session.timeout.ms": "6000",
    "group.consumer.min.heartbeat.interval.ms": "1000",
    "group.consumer.heartbeat.interval.ms": "1000",
    # A killed broker can register again only when its old session has expired. With this value, the session expires
    # after 4 s instead of 9 s.
    "broker.session.timeout.ms": "4000",
    "broker.heartbeat.interval.ms": "500",
    # A dead process's open transaction blocks readers until the transaction times out, and then for up to this
    # interval.
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
    # This value equals the longest retention of our topics, because a group's committed offsets must not expire before
    # the records.
    "offsets.retention.minutes": "43200",
    # By default, Kafka reserves 10 MiB for each partition's sparse index files, which is too much for test topics.
    "log.index.size.max.bytes": "1048576",
}
"""Properties of every broker that this module starts. A fleet's own Kafka should have the same timeouts."""


@dataclass(frozen=True, slots=True)
class Node:
    """One Kafka process: its ports and its data folder."""

    id: int
    port: int
    controller_port: int
    home: Path

    @property
    def properties_file(self) -> Path:
        """The properties file that `kafka.Kafka` gets.

        A process with this path in its command line is this node's process.
        """
        return self.home / "server.properties"

    @property
    def log(self) -> Path:
        """The file with the process's output."""
        return self.home / "kafka.log"

    @property
    def scratch(self) -> Path:
        """The folder where the process unpacks its libraries. A killed process leaves the libraries there."""
        return self.home / "tmp"

    @property
    def address(self) -> str:
        """The node's address for clients."""
        return f"127.0.0.1:{self.port}"


@dataclass(frozen=True, slots=True)
class Cluster:
    """The nodes of one Kafka cluster, and the cluster's id."""

    cluster_id: str
    nodes: tuple[Node, ...]

    @property
    def bootstrap_servers(self) -> str:
        """The nodes' addresses for clients, comma-separated."""
        return ",".join(node.address for node in self.nodes)


def load(data: Path) -> Cluster | None:
    """Return the cluster whose data is in the folder; None if there is none. Raises DataMismatch."""
    try:
        kept = json.loads((data / "cluster.json").read_text())
        return Cluster(kept["cluster_id"], tuple(Node(**node, home=_home(data, node["id"])) for node in kept["nodes"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise DataMismatch(f"{data / 'cluster.json'} cannot be read. Remove {data} to start over.") from error


def prepare(data: Path, brokers: int | None, port: int) -> Cluster:
    """Prepare the folder for a start, and return its cluster. Existing data stays, and ports are chosen again.

    If `brokers` is None, the cluster has as many brokers as have data in the folder, or 1 if there is no data. `port`
    is the first broker's port, and the other brokers get the next ports. If `port` is 0, free ports are chosen. Raises
    DataMismatch, PortInUse, MissingPrerequisite, DownloadFailed.
    """
    kept = load(data)
    if kept and brokers not in (None, len(kept.nodes)):
        raise DataMismatch(
            f"{data} holds the data of {len(kept.nodes)} broker(s), not {brokers}. "
            f"Start that number of brokers, or remove {data} to start over."
        )
    if kept is None and data.is_dir() and any(entry.name.startswith("node-") for entry in data.iterdir()):
        raise DataMismatch(f"{data} holds nodes without a cluster.json. Remove {data} to start over.")
    cluster = Cluster(kept.cluster_id if kept else _new_cluster_id(), _nodes(data, brokers or _count(kept), port))
    _write(data, cluster)
    _format(cluster)
    return cluster


def serve_command(node: Node, jvm: Sequence[str]) -> list[str]:
    """Return the command that runs the node in a JVM with these flags until a signal ends it."""
    return [*_java_command(*jvm, f"-Djava.io.tmpdir={node.scratch}"), "kafka.Kafka", str(node.properties_file)]


def check_free(port: int) -> None:
    """Raise PortInUse if a process listens on the port."""
    with socket.socket() as probe:
        # A port whose old connections are still closing counts as free, as it does for Kafka.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise PortInUse(port) from error


def free_ports(count: int) -> list[int]:
    """Choose ports without a listener, below the range from which the kernel gives ports to clients.

    From that range, the kernel could give a dead broker's port to a client that reconnects to the broker. The client
    would then be connected to itself, and the restarted broker would find its port taken.
    """
    limit = int(_EPHEMERAL_RANGE.read_text().split()[0])
    chosen: list[int] = []
    for port in random.sample(range(min(_FIRST_PORT, limit // 2), limit), k=200):
        if len(chosen) == count:
            break
        try:
            check_free(port)
        except PortInUse:
            continue
        chosen.append(port)
    return chosen


def _nodes(data: Path, count: int, port: int) -> tuple[Node, ...]:
    taken = free_ports(2 * count)
    clients = [port + index for index in range(count)] if port else taken[:count]
    for client in clients:
        check_free(client)
    controllers = taken[count:]
    return tuple(Node(index + 1, clients[index], controllers[index], _home(data, index + 1)) for index in range(count))


def _count(kept: Cluster | None) -> int:
    return len(kept.nodes) if kept else 1


def _home(data: Path, node_id: int) -> Path:
    return data / f"node-{node_id}"


def _new_cluster_id() -> str:
    """Return a Kafka Uuid: 22 characters of base64.

    The text starts with A, because Kafka's tools would read a leading dash as the start of an option.
    """
    return "A" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[1:22]


def _write(data: Path, cluster: Cluster) -> None:
    for node in cluster.nodes:
        shutil.rmtree(node.scratch, ignore_errors=True)
        node.scratch.mkdir(parents=True)
        lines = (f"{name}={value}\n" for name, value in node_properties(node, cluster.nodes).items())
        node.properties_file.write_text("".join(lines))
    nodes = [{key: value for key, value in asdict(node).items() if key != "home"} for node in cluster.nodes]
    content = json.dumps({"cluster_id": cluster.cluster_id, "nodes": nodes}, indent=2)
    (data / "cluster.json").write_text(content + "\n")


def node_properties(node: Node, quorum: Sequence[Node]) -> dict[str, str]:
    """Return the `server.properties` of one node."""
    replicas, in_sync = ("3", "2") if len(quorum) >= 3 else ("1", "1")
    return {
        **SERVER_PROPERTIES,
        "node.id": str(node.id),
        "log.dirs": str(node.home / "data"),
        "listeners": f"PLAINTEXT://{node.address},CONTROLLER://127.0.0.1:{node.controller_port}",
        "advertised.listeners": f"PLAINTEXT://{node.address}",
        "controller.quorum.voters": ",".join(f"{peer.id}@127.0.0.1:{peer.controller_port}" for peer in quorum),
        "default.replication.factor": replicas,
        "min.insync.replicas": in_sync,
        "offsets.topic.replication.factor": replicas,
        "transaction.state.log.replication.factor": replicas,
        "transaction.state.log.min.isr": in_sync,
        "share.coordinator.state.topic.replication.factor": replicas,
        "share.coordinator.state.topic.min.isr": in_sync,
    }


def _format(cluster: Cluster) -> None:
    """Format the storage of new nodes in parallel, because each formatting runs a JVM for a second or two."""
    running = [
        subprocess.Popen(
            [
                *_java_command(*SMALL_JVM),
                "kafka.tools.StorageTool",
                "format",
                "-t",
                cluster.cluster_id,
                "-c",
                node.properties_file,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for node in cluster.nodes
        if not (node.home / "data" / "meta.properties").exists()
    ]
    outputs = [process.communicate()[0] for process in running]
    for process, output in zip(running, outputs, strict=True):
        if process.returncode != 0:
            raise BrokerError(f"Kafka's storage tool failed:\n{output.rstrip()}")


def _java_command(*flags: str) -> list[str]:
    archive = class_archive()
    mapped = [f"-XX:SharedArchiveFile={archive}"] if archive.is_file() else []
    return [java(), *mapped, *flags, f"-Dlog4j2.configurationFile={_LOG_CONFIG}", "-cp", f"{ensure_jars()}/*"]
