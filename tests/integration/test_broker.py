"""The embedded Kafka: its promises, `postback broker`, and the archive of its classes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from confluent_kafka import Consumer, Message, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from cli.devkit.broker import Broker, Scratch, start_detached, stop_detached
from cli.devkit.class_archive import make_class_archive
from cli.devkit.kafka import cluster, jars
from cli.devkit.kafka.cluster import Node
from cli.devkit.kafka.errors import BrokerDied, DataMismatch, MissingPrerequisite, PortInUse
from cli.devkit.kafka.jars import class_archive
from cli.devkit.kafka.process import Detached
from schemas.settings import KafkaSettings
from tests.postback_command import environment_of, postback

TOPIC = "notes"


@pytest.fixture
def own_broker(clean_processes: None) -> Iterator[Broker]:
    with Broker.start() as broker:
        yield broker


@pytest.fixture
def data(tmp_path: Path, clean_processes: None) -> Iterator[Path]:
    """A folder for detached brokers, which are stopped at the test's end in any case."""
    folder = tmp_path / "broker"
    yield folder
    stop_detached(folder)


def create_topic(bootstrap_servers: str, replicas: int = 1) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    admin.create_topics([NewTopic(TOPIC, 1, replicas)])[TOPIC].result(30)


def write(bootstrap_servers: str, *values: str) -> None:
    producer = Producer({"bootstrap.servers": bootstrap_servers, "enable.idempotence": True, "compression.type": "lz4"})
    failures: list[object] = []
    for value in values:
        producer.produce(TOPIC, value, on_delivery=lambda error, _: failures.append(error) if error else None)
    assert producer.flush(60) == 0
    assert failures == []


def read(bootstrap_servers: str, count: int) -> list[str]:
    consumer = Consumer(
        {"bootstrap.servers": bootstrap_servers, "group.id": "readers", "auto.offset.reset": "earliest"}
    )
    consumer.subscribe([TOPIC])
    try:
        return [value_of(message) for message in consumer.consume(count, timeout=60)]
    finally:
        consumer.close()


def value_of(message: Message) -> str:
    assert message.error() is None
    return (message.value() or b"").decode()


def processes_of(data: Path) -> list[psutil.Process]:
    return [process for process in psutil.process_iter(["cmdline"]) if str(data) in str(process.info["cmdline"])]


def test_every_topic_of_a_fleet_can_be_made_and_found(fleet: KafkaSettings) -> None:
    listed = AdminClient(fleet.client_config()).list_topics(timeout=30).topics

    assert {spec.name: spec.partitions for spec in fleet.topics.specs(4)} == {
        name: len(topic.partitions) for name, topic in listed.items() if name.startswith(fleet.topic_prefix)
    }


def test_a_killed_broker_comes_back_on_its_port_with_its_records(own_broker: Broker) -> None:
    address, first_pid = own_broker.bootstrap_servers, own_broker.pids[0]
    create_topic(address)
    write(address, "before")

    own_broker.kill()
    assert not psutil.pid_exists(first_pid)
    own_broker.restart()
    write(address, "after")

    assert own_broker.bootstrap_servers == address
    assert own_broker.pids[0] != first_pid
    assert read(address, 2) == ["before", "after"]


def test_a_paused_broker_answers_nothing_until_it_is_resumed(own_broker: Broker) -> None:
    create_topic(own_broker.bootstrap_servers)
    producer = Producer({"bootstrap.servers": own_broker.bootstrap_servers})

    own_broker.pause()
    producer.produce(TOPIC, "held")
    still_queued = producer.flush(1)
    own_broker.resume()

    assert still_queued == 1
    assert producer.flush(60) == 0
    assert read(own_broker.bootstrap_servers, 1) == ["held"]


def test_three_brokers_survive_the_loss_of_one(clean_processes: None) -> None:
    with Broker.start(brokers=3) as broker:
        create_topic(broker.bootstrap_servers, replicas=3)
        write(broker.bootstrap_servers, "by three")

        broker.kill(1)
        write(broker.bootstrap_servers, "by two")

        assert len(set(broker.pids)) == 3
        assert read(broker.bootstrap_servers, 2) == ["by three", "by two"]


def test_temporary_data_is_thrown_away(clean_processes: None) -> None:
    with Broker.start() as broker:
        create_topic(broker.bootstrap_servers)
        write(broker.bootstrap_servers, "one " * 1000)  # the value is large enough to be compressed
        # The broker unpacks native libraries within its data folder, because a killed broker cannot remove them itself.
        assert list(broker.data.glob("node-1/tmp/liblz4*"))

    assert not broker.data.exists()


def test_a_broker_ends_with_a_process_that_is_killed_even_when_it_is_stopped(clean_processes: None) -> None:
    program = (
        "from cli.devkit.broker import Broker\n"
        "broker = Broker.start()\n"
        "broker.pause()\n"
        "print(broker.pids[0], broker.data, flush=True)\n"
        "input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        pid, data = owner.stdout.readline().split()
        assert psutil.Process(int(pid)).status() == psutil.STATUS_STOPPED
        owner.kill()

    psutil.wait_procs(processes_of(Path(data)), timeout=10)
    assert processes_of(Path(data)) == []

    # A new scratch folder removes the folders of dead processes, and keeps those of live ones.
    next_one, another = Scratch(), Scratch()
    assert not Path(data).exists()
    assert next_one.path.is_dir()
    next_one.remove()
    another.remove()


def test_detached_brokers_keep_their_data_from_one_start_to_the_next(data: Path) -> None:
    first = start_detached(data, port=0)
    create_topic(first.bootstrap_servers)
    write(first.bootstrap_servers, "kept")

    again = start_detached(data, port=0)
    assert (first.was_running, again.was_running) == (False, True)
    assert (again.bootstrap_servers, again.pids) == (first.bootstrap_servers, first.pids)
    with pytest.raises(DataMismatch, match=r"1 broker\(s\), not 3"):
        Broker.start(data=data, brokers=3)

    assert stop_detached(data) is True
    assert processes_of(data) == []
    assert stop_detached(data) is False

    second = start_detached(data, port=0)
    assert second.was_running is False
    assert read(second.bootstrap_servers, 1) == ["kept"]


def test_the_pid_of_another_process_is_not_taken_for_a_detached_broker(tmp_path: Path) -> None:
    node = Node(id=1, port=1, controller_port=2, home=tmp_path)
    (tmp_path / "pid").write_text(f"{os.getpid()}\n")

    assert Detached.find(node) is None


@pytest.mark.parametrize("start", [Broker.start, start_detached])
def test_a_port_in_use_is_named_and_nothing_is_left_over(start: Callable[..., object], data: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=f"Port {port} on 127.0.0.1 is in use"):
            start(port=port, data=data)

    assert processes_of(data) == []


def test_a_broker_that_dies_at_its_start_says_why(data: Path) -> None:
    with Broker.start(data=data):
        pass
    (data / "node-1" / "data" / "meta.properties").write_text("version=1\nnode.id=7\n")

    with pytest.raises(BrokerDied, match=r"No readable meta\.properties files found"):
        Broker.start(data=data)


def test_missing_java_is_named_with_the_ways_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)

    with pytest.raises(MissingPrerequisite) as raised:
        Broker.start()

    assert "java is needed" in str(raised.value)
    assert "apt-get install default-jre-headless" in str(raised.value)
    assert "POSTBACK_KAFKA__BOOTSTRAP_SERVERS" in str(raised.value)


def test_missing_maven_is_named_with_the_ways_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "java").symlink_to(jars.java())
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    with pytest.raises(MissingPrerequisite, match="mvn is needed"):
        jars.ensure_jars()


def test_on_debian_as_root_a_missing_java_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    package_manager(monkeypatch, tmp_path, f'echo "$@" >> {calls}; [ $1 = update ] || ln -s /bin/true {tmp_path}/java')

    assert jars.java() == str(tmp_path / "java")
    assert calls.read_text().splitlines() == ["update", "install -y --no-install-recommends default-jre-headless"]


def test_the_error_has_the_package_managers_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package_manager(monkeypatch, tmp_path, "echo E: no route to the archive; exit 100")

    with pytest.raises(MissingPrerequisite, match="Installing it failed:\nE: no route to the archive"):
        jars.java()


def package_manager(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """Pretend to be root on a Debian without Java, with this script as apt-get: tests must not install packages."""
    (folder / "debian_version").touch()
    (folder / "apt-get").write_text(f"#!/bin/sh\nPATH=/bin:/usr/bin\n{script}\n")
    (folder / "apt-get").chmod(0o755)
    monkeypatch.setattr(jars, "_DEBIAN", folder / "debian_version")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("JAVA_HOME", raising=False)


# -- `postback broker`: two commands start and stop a Kafka --------------------------------------------------------


@pytest.mark.broker
@pytest.mark.usefixtures("clean_processes")
def test_a_broker_starts_serves_a_fleet_and_stops(tmp_path: Path) -> None:
    start = ("broker", "start", "--port", "0", "--data", tmp_path / "kafka")
    stop = ("broker", "stop", "--data", tmp_path / "kafka")
    first = postback(*start, env=environment_of())
    try:
        assert first.returncode == 0, first.stderr
        env = environment_of(KafkaSettings(bootstrap_servers=first.stdout.strip(), partitions=1))
        assert postback("topics", "create", env=env).returncode == 0
        done = postback("submit", "-", env=env, given=b'{"prompt": "Why?"}')
        assert (done.returncode, done.stderr) == (0, "postback: 1 of 1 jobs accepted\n")
        again = postback(*start, env=environment_of())
        assert (again.returncode, again.stdout) == (0, first.stdout)
        assert "was running already" in again.stderr
        for told in (first.stderr, again.stderr):
            assert f"export POSTBACK_KAFKA__BOOTSTRAP_SERVERS={first.stdout}" in told
            assert told.endswith(f"stop it: postback broker stop --data {tmp_path}/kafka\n")
    finally:
        stopped = postback(*stop, env=environment_of())
    start_again = f"postback broker start --data {tmp_path}/kafka"
    told = f"postback: Kafka has stopped; start it again with its data: {start_again}\n"
    assert (stopped.returncode, stopped.stderr) == (0, told)
    told = f"postback: no Kafka was running on the data in {tmp_path}/kafka\n"
    assert postback(*stop, env=environment_of()).stderr == told


@pytest.mark.broker
@pytest.mark.usefixtures("clean_processes")
def test_a_busy_port_is_one_line_with_the_fix(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = postback("broker", "start", "--port", port, "--data", tmp_path / "kafka", env=environment_of())
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"postback: port {port} on 127.0.0.1 is in use; stop its listener, or run: "
        f"postback broker start --data {tmp_path}/kafka --port 0\n"
    )


# -- the archive of classes ----------------------------------------------------------------------------------------


def mapped_files(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


def test_a_broker_maps_kafkas_classes_from_the_archive() -> None:
    make_class_archive()

    with Broker.start() as broker:
        assert str(class_archive()) in mapped_files(broker.pids[0])


def test_a_broker_starts_although_the_archive_is_of_another_java(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = tmp_path / "classes.jsa"
    other.write_bytes(bytes(100_000))
    monkeypatch.setattr(cluster, "class_archive", lambda: other)

    with Broker.start() as broker:
        assert str(other) not in mapped_files(broker.pids[0])
