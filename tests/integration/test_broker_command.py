"""`postback broker`: two commands start and stop a real Kafka."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from schemas.settings import KafkaSettings
from tests.postback_command import environment_of, postback

pytestmark = [pytest.mark.broker, pytest.mark.usefixtures("clean_processes")]


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


def test_a_busy_port_is_one_line_with_the_fix(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = postback("broker", "start", "--port", port, "--data", tmp_path / "kafka", env=environment_of())
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"postback: port {port} on 127.0.0.1 is in use; stop its listener, or run: "
        f"postback broker start --data {tmp_path}/kafka --port 0\n"
    )
