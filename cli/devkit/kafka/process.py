"""A node's process, and the wait until it serves: a broker listens on its port before it answers as a member.

A leashed process ends with the process that started it; a detached process outlives its starter.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from cli.devkit.kafka.cluster import SMALL_JVM, Node, serve_command
from cli.devkit.kafka.errors import BrokerDied, MissingPrerequisite, NotServing, PortInUse
from telemetry.clock import Clock, Deadline

START_TIMEOUT_SECONDS = 90.0
_POLL_SECONDS = 0.1
_ANSWER_TIMEOUT_MS = 2000
_LOG_LINES = 15
_LOG_TAIL_BYTES = 16 * 1024

_LEASH = ThreadPoolExecutor(max_workers=1, thread_name_prefix="broker-leash")
"""The thread that starts leashed processes. The kernel sends the parent-death signal when the *thread* that forked ends
(prctl(2), PR_SET_PDEATHSIG). So this thread must live as long as the JVMs that it started; threads that call
`Broker.start` may end earlier."""


class NodeProcess(Protocol):
    """The process that runs a node."""

    @property
    def pid(self) -> int:
        """The JVM's process id."""
        ...

    @property
    def alive(self) -> bool:
        """True if the process still exists, even if SIGSTOP has stopped it."""
        ...

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; do nothing if the process has ended."""
        ...


class Leashed:
    """A child process that the kernel kills when this process ends, in whatever way.

    A killed test run cannot stop its brokers, and a JVM stopped by SIGSTOP handles no SIGTERM. So `setpriv`
    (util-linux) asks the kernel for SIGKILL on the parent's death, and then executes the JVM.
    """

    def __init__(self, node: Node, jvm: Sequence[str]) -> None:
        if not shutil.which("setpriv"):
            raise MissingPrerequisite("setpriv", "util-linux")
        command = ["setpriv", "--pdeathsig", "KILL", "--", *serve_command(node, jvm)]
        self._process = _LEASH.submit(_popen, command, node.log).result()

    @property
    def pid(self) -> int:
        """The JVM's process id. It is also the process id of setpriv, because setpriv is replaced by the JVM (exec)."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """True if the process still runs; reaps it if it has ended."""
        return self._process.poll() is None

    @property
    def frozen(self) -> bool:
        """True if SIGSTOP has stopped every thread of the process."""
        try:
            statuses = [status.read_text() for status in Path(f"/proc/{self.pid}/task").glob("*/stat")]
        except (FileNotFoundError, ProcessLookupError):
            return False  # a thread ended between listing and reading, so not all threads are stopped
        return all(status.rpartition(")")[2].split()[0] == "T" for status in statuses)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, but never to another process that got the same pid later."""
        self._process.send_signal(number)


class Detached:
    """A process that outlives this one, identified by its pid file.

    Another process may have got the pid later. So the command line must also name the node's properties file.
    """

    def __init__(self, node: Node, pid: int) -> None:
        self._node = node
        self._pid = pid

    @classmethod
    def launch(cls, node: Node) -> Detached:
        """Start the node in its own session as a child of init, so that this process need not reap it."""
        command = ["sh", "-c", '"$@" >&2 & echo $!', "sh", *serve_command(node, SMALL_JVM)]
        with node.log.open("ab") as log:
            started = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                check=True,
            )
        pid = int(started.stdout)
        _pid_file(node).write_text(f"{pid}\n")
        return cls(node, pid)

    @classmethod
    def find(cls, node: Node) -> Detached | None:
        """Return the process that runs the node now; None if there is none."""
        try:
            found = cls(node, int(_pid_file(node).read_text()))
        except (FileNotFoundError, ValueError):
            return None
        return found if found.alive else None

    @property
    def pid(self) -> int:
        """The JVM's process id."""
        return self._pid

    @property
    def alive(self) -> bool:
        """True if the pid still belongs to the node. A zombie has no command line, so it is treated as ended."""
        try:
            arguments = Path(f"/proc/{self._pid}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            return False
        return os.fsencode(self._node.properties_file) in arguments

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; do nothing if the process has ended."""
        if self.alive:
            os.kill(self._pid, number)


def _popen(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C in a terminal then reaches only the test run, which stops its brokers
        )


def _pid_file(node: Node) -> Path:
    return node.home / "pid"


# -- serving ---------------------------------------------------------------------------------------------------------


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
