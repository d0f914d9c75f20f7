"""Waits until a broker serves. A broker listens on its port before it answers clients as a member of the cluster."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path

from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from devkit.kafka.cluster import Node
from devkit.kafka.errors import BrokerDied, NotServing, PortInUse
from devkit.kafka.process import NodeProcess
from telemetry.clock import Clock, Deadline

START_TIMEOUT_SECONDS = 90.0
_POLL_SECONDS = 0.1
_ANSWER_TIMEOUT_MS = 2000
_LOG_LINES = 15
_LOG_TAIL_BYTES = 16 * 1024


def wait_until_serving(started: Mapping[Node, NodeProcess], clock: Clock) -> None:
    """Return when all nodes serve. Raises BrokerDied, PortInUse, or NotServing after 90 s."""
    deadline = Deadline.after(clock, START_TIMEOUT_SECONDS)
    waiting = list(started)
    while waiting:
        waiting = [node for node in waiting if not _serves(node)]
        for node in waiting:
            if not started[node].alive:
                raise _cause_of_death(node)
        if waiting and deadline.passed:
            raise NotServing([node.id for node in waiting], START_TIMEOUT_SECONDS)
        if waiting:
            clock.sleep(_POLL_SECONDS)


def _serves(node: Node) -> bool:
    """True if the node answers, and the quorum has admitted it (has not fenced it)."""
    if not _listens(node):
        return False  # make no client, because a client would log an error for the refused connection
    try:
        client = KafkaAdminClient(
            bootstrap_servers=node.address,
            bootstrap_timeout_ms=_ANSWER_TIMEOUT_MS,
            request_timeout_ms=_ANSWER_TIMEOUT_MS,
        )
    except KafkaError:
        return False
    try:
        return any(broker["broker_id"] == node.id for broker in client.describe_cluster()["brokers"])
    except KafkaError:
        return False
    finally:
        client.close()


def _listens(node: Node) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", node.port), timeout=1):
            return True
    except OSError:
        return False


def _cause_of_death(node: Node) -> BrokerDied | PortInUse:
    tail = _tail(node.log)
    for port in (node.port, node.controller_port):
        if "Address already in use" in tail and f":{port}" in tail:
            return PortInUse(port)
    return BrokerDied(node.id, tail)


def _tail(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    said = [
        line for line in lines if line.strip() and not line.startswith("\tat ")
    ]  # leaves out stack traces, which would push the reason out of the last lines
    return "\n".join(said[-_LOG_LINES:])
