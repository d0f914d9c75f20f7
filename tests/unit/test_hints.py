"""Commands that messages tell people to type."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from confluent_kafka import KafkaError

from console.demo.next_steps import commands, next_steps
from producers.errors import BrokerUnreachable
from schemas.broker_hint import broker_hint
from schemas.settings import KafkaSettings
from workers.kafka.topics import unanswered


@pytest.mark.parametrize(
    ("servers", "command"),
    [
        ("127.0.0.1:9092", "`postback broker start`"),
        ("localhost:9092", "`postback broker start`"),
        ("127.0.0.1:9100", "`postback broker start --port 9100`"),
        ("[::1]:9100,127.0.0.1:9101", "`postback broker start --port 9100`"),
    ],
)
def test_the_hint_about_an_absent_local_broker_has_the_command_that_starts_it(servers: str, command: str) -> None:
    hint = broker_hint(servers)
    assert hint.startswith(f"start one with {command}, or name yours with `export POSTBACK_KAFKA__BOOTSTRAP_SERVERS=")


@pytest.mark.parametrize("servers", ["kafka:9092", "10.1.2.3:9092,10.1.2.4:9092", "127.0.0.1", "", ":", "localhost:x"])
def test_the_hint_about_a_remote_broker_names_the_check_and_the_variable(servers: str) -> None:
    hint = broker_hint(servers)
    assert hint.startswith("check that it runs")
    assert hint.endswith(
        "start one with `postback broker start` and name it with "
        "`export POSTBACK_KAFKA__BOOTSTRAP_SERVERS=127.0.0.1:9092`"
    )


def test_producers_and_workers_give_the_same_hint() -> None:
    kafka = KafkaSettings(bootstrap_servers="127.0.0.1:9100")
    hint = broker_hint(kafka.bootstrap_servers)
    assert str(BrokerUnreachable(kafka.bootstrap_servers)) == f"no Kafka broker answers at 127.0.0.1:9100: {hint}"
    assert str(unanswered(kafka, KafkaError(KafkaError._TRANSPORT))).endswith(f"; {hint}")


@pytest.mark.parametrize("own_kafka", [True, False])
def test_a_command_that_the_shell_does_not_find_is_printed_with_its_path_as_a_shell_takes_it(
    own_kafka: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    postback = tmp_path / "a b" / "postback"
    steps = [shlex.split(step) for step in commands(postback, own_kafka=own_kafka)]
    assert [words.count(str(postback)) for words in steps] == [1 + own_kafka, 1, 1]
    assert steps[0][-3:] == [str(postback), "topics", "create"]
    assert steps[0][:3] == ([str(postback), "broker", "start"] if own_kafka else steps[0][-3:])


def test_a_command_that_the_shell_finds_is_printed_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    postback = tmp_path / "postback"
    postback.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert next_steps(postback, own_kafka=True)[1:4] == [
        "    postback broker start && postback topics create",
        "    postback worker --engine echo &",
        """    echo '{"prompt": "What is a webhook?"}' | postback submit - --wait""",
    ]
