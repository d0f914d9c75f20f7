"""An operator's mistakes: each gets one line that names the mistake and the fix, and never a traceback."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import typer

from cli.fleet.roles import run
from cli.shared.errors import ending
from schemas.settings import KafkaSettings
from tests.ecs import log_lines
from tests.postback_command import environment_of, postback, postback_here
from workers.engines.base import EngineUnavailable

REFUSED = "the Kafka client refuses a property of POSTBACK_KAFKA__EXTRA__…: "
ECHO = ("worker", "--engine", "echo")


@pytest.mark.parametrize(
    ("arguments", "variables", "said"),
    [
        (("worker", "--engine", "vllm"), {}, "--engine vllm needs a model: name it with --model, or set POSTBACK_"),
        (("worker", "--engine", "openai"), {}, "--engine openai needs a model"),
        (ECHO, {"POSTBACK_EGRESS__PORTS": "https"}, "POSTBACK_EGRESS__PORTS: "),
        (ECHO, {"POSTBACK_WORKER__MODELS": "{"}, "POSTBACK_WORKER__MODELS: is not JSON, as this variable has to be"),
        (ECHO, {"POSTBACK_ENRICHMENT__MEMBERS": "0"}, "POSTBACK_ENRICHMENT__MEMBERS: "),
        (("deliver",), {"POSTBACK_DELIVERY__DRAIN_SECONDS": "2"}, "POSTBACK_DELIVERY__DRAIN_SECONDS: "),
        (ECHO, {"POSTBACK_KAFKA__EXTRA__FOO_BAR": "s3cret"}, REFUSED + 'No such configuration property: "foo.bar"'),
        (
            ECHO,
            {"POSTBACK_KAFKA__EXTRA__SECURITY_PROTOCOL": "s3cret"},
            REFUSED + 'Invalid value … for configuration property "security.protocol"',
        ),
        (("deliver",), {"POSTBACK_LOG_LEVEL": "verbose"}, "POSTBACK_LOG_LEVEL is none of DEBUG, INFO"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_wrong_option_ends_with_2_and_a_line_that_names_it(
    arguments: tuple[str, ...], variables: dict[str, str], said: str
) -> None:
    done = postback_here(*arguments, env=environment_of(**variables))
    [line] = [line for line in log_lines(done.stderr) if line.get("event.action") != "health-served"]
    assert (done.returncode, done.stdout) == (2, "")
    assert (line["log.level"], line["event.action"]) == ("error", "command-failed")
    assert line["message"].startswith(said)
    assert "s3cret" not in done.stderr


def test_a_port_that_is_taken_ends_with_1_and_a_line_that_names_it() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = postback_here("deliver", "--metrics-port", str(port), env=environment_of())
    assert (done.returncode, done.stdout) == (1, "")
    said = f"metrics and health cannot be served on port {port} of 127.0.0.1 (Address already in use); choose"
    [line] = log_lines(done.stderr)
    assert line["message"].startswith(said)


def test_an_engine_that_does_not_come_up_ends_with_1_and_its_own_words(capsys: pytest.CaptureFixture[str]) -> None:
    async def away() -> None:
        raise EngineUnavailable("no server answered")

    with pytest.raises(typer.Exit) as ended, ending():
        run("worker", away())
    assert ended.value.exit_code == 1
    assert capsys.readouterr().err == "postback: no server answered\n"


COMMANDS = {
    ("cancel", "a-job"): "job_control",
    ("cancel", "--undo", "a-job"): "job_control",
    ("endpoints", "disable", "https://hook.example/"): "callback_endpoints",
    ("submit", "-"): "model_requests",
    ("topics", "backlog"): "model_requests",
    ("results", "--since", "-1h", "--output", "results.jsonl"): "model_results",
}
"""Commands, and the topic that each asks for first."""


@pytest.mark.broker
@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_command_under_a_wrong_prefix_names_the_missing_topic_and_changes_no_file(
    arguments: tuple[str, ...], fleet: KafkaSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results.jsonl").write_text("kept")
    elsewhere = fleet.model_copy(update={"topic_prefix": "nowhere."})
    done = postback_here(*arguments, env=environment_of(elsewhere), given=b'{"prompt": "q"}')
    said = f"postback: the topic nowhere.{COMMANDS[arguments]} does not exist: run `postback topics create`\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)
    assert (tmp_path / "results.jsonl").read_text() == "kept"


@pytest.mark.parametrize("arguments", [("submit", "-"), ("topics", "backlog"), ("topics", "create")], ids=" ".join)
def test_no_broker_is_one_line_that_says_what_to_do(arguments: tuple[str, ...]) -> None:
    env = environment_of(KafkaSettings(bootstrap_servers="127.0.0.1:1"))
    done = postback(*arguments, env=env, given=b'{"prompt": "q"}')
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(
        "postback: no Kafka broker answers at 127.0.0.1:1: start one with `postback broker start --port 1`"
    )


def test_every_command_reports_a_misspelt_setting_before_it_begins_and_goes_on(tmp_path: Path) -> None:
    env = environment_of(POSTBACK_KEYRING=tmp_path / "keyring.json", POSTBACK_KEYRINGS="s3cret")
    made = postback_here("keys", "init", env=env)
    told = "POSTBACK_KEYRINGS is ignored: no setting has that name; POSTBACK_KEYRING may be meant"

    assert (made.returncode, made.stderr.splitlines()[0]) == (0, f"postback: {told}")
    assert "s3cret" not in made.stderr
    unreachable = {**env, "POSTBACK_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1"}
    assert postback("topics", "create", env=unreachable).stderr.splitlines()[0] == f"postback: {told}"
    role = log_lines(postback_here("worker", "--engine", "vllm", env=unreachable).stderr)[0]
    assert (role["log.level"], role["event.action"], role["message"]) == ("warning", "setting-unread", told)
