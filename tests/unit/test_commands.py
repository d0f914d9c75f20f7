"""The `postback` command: help, audit lines, and the output of commands that need no Kafka."""

from __future__ import annotations

import io
import json
import re
import shlex
import socket
import subprocess
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import EntryPoint, version
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from click.testing import CliRunner
from confluent_kafka import KafkaError
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.progress import Progress
from typer.main import get_command

from cli.develop.received import MAX_SHOWN_CHARACTERS, MAX_SHOWN_IN_LINE, Summary, View
from cli.devkit.receiver import Received
from cli.main import COMMANDS, app
from cli.operate import dead_letters
from cli.operate.dead_letters import ROWS_AT_ONCE, report_counts, write_lines, write_table
from cli.operate.endpoint_deliveries import timeline
from cli.operations.dead_letters import Letter, LetterCounts
from cli.operations.deliveries import CallbackStep
from cli.shared.bar_columns import STANDSTILL_SECONDS, FailedColumn, OutlookColumn
from cli.shared.help import EXAMPLES
from cli.shared.variables import complaints
from gateway.door.server import DoorServer
from gateway.door.settings import GatewaySettings
from producers.errors import BrokerUnreachable
from producers.scan import Stored, StoredPlace
from producers.times import show_time
from schemas import topics
from schemas.broker_hint import broker_hint
from schemas.settings import KafkaSettings
from scripts.play.demo import DemoJob, DemoTally, percentile
from scripts.play.site import Question
from scripts.publish.catalogue import names
from telemetry.clock import SystemClock
from telemetry.hand_clock import HandClock
from telemetry.metrics import Metrics
from tests.integration.gateway.running_parts import running_parts
from tests.postback_command import POSTBACK, environment_of, postback_here
from tests.process_state import state_kept
from tests.unit.gateway_rig import Rig, gateway_rig
from tests.unit.test_model_registry_file import FULL
from workers.kafka.topics import unanswered

MOST_COMMANDS = 30
WIDE = {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}


ROOT: Any = get_command(app)
LOADED = {name: listed.load(name) for name, listed in COMMANDS.items()}


def leaves() -> Iterator[tuple[str, Any]]:
    for name, command in LOADED.items():
        subcommands = getattr(command, "commands", {})
        yield from ((f"{name} {each}", subcommand) for each, subcommand in subcommands.items())
        if not subcommands:
            yield name, command


def opened(*words: str, **settings: Any) -> Any:
    """The context of a command under its group's, which make its help options."""
    context = ROOT.make_context("postback", [], resilient_parsing=True, **settings)
    for word in words:
        command = context.command.get_command(context, word)
        context = command.make_context(word, [], parent=context, resilient_parsing=True)
    return context


def wide_help(*words: str) -> list[str]:
    """Return the lines of the help on a wide terminal; typer's runner has a narrow one."""
    return str(opened(*words, terminal_width=200).get_help()).splitlines()


def test_every_command_has_examples_that_it_parses() -> None:
    commands = dict(leaves())
    assert EXAMPLES.keys() == commands.keys()
    for words, examples in EXAMPLES.items():
        named = words.split()
        for example in examples:
            typed = shlex.split(example)
            start = typed.index("postback") + 1
            assert typed[start : start + len(named)] == named
            arguments = typed[start + len(named) :]
            end = next((place for place, word in enumerate(arguments) if word in "<>"), None)
            commands[words].make_context(words, arguments[:end])  # raises if an option is unknown or missing


def test_the_help_of_every_command_has_a_short_option_and_shows_its_examples() -> None:
    lacking = []
    for words, examples in EXAMPLES.items():
        with state_kept():
            shown = CliRunner().invoke(ROOT, [*words.split(), "--help"], env=WIDE)
        lines = shown.stdout.splitlines()
        lacking += [(words, example) for example in examples if f"    {example}" not in lines]
        assert shown.exit_code == 0, words
        context = opened(*words.split())
        assert set(context.command.get_help_option_names(context)) == {"-h", "--help"}, words
    assert lacking == []


def test_the_short_option_shows_the_same_help_as_the_long_one_in_the_lines_of_a_wide_terminal() -> None:
    for words in ("", "keys", "submit"):
        long, short = (postback_here(*words.split(), option, env=WIDE) for option in ("--help", "-h"))
        assert (short.returncode, short.stdout) == (0, long.stdout)
    shown = "\n".join(wide_help("submit"))
    assert "All lines are checked before the first is sent; an invalid one stops all, unless --skip-invalid" in shown


def test_the_help_lists_every_command_in_a_section_with_the_first_sentence_of_its_own_help() -> None:
    lines = wide_help()
    titles = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert titles == ["Options:", "Run a fleet:", "Send work:", "Take results:", "Operate a fleet:", "Develop:"]
    listed = [line.split(maxsplit=1) for line in lines[lines.index("Run a fleet:") :] if line.startswith("  ")]
    assert listed == [[name, command.get_short_help_str(1_000)] for name, command in LOADED.items()]


def test_the_help_lists_few_commands() -> None:
    assert len(COMMANDS) <= MOST_COMMANDS, "move a verb about one noun into the noun's group"


def test_a_misspelt_command_gets_the_nearest_names() -> None:
    done = postback_here("wrker", env=WIDE)
    said = "Error: No such command 'wrker'. Did you mean 'worker', 'broker'?"
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, said)


def test_the_version_is_that_of_the_installed_package() -> None:
    done = postback_here("--version", env={})
    assert (done.returncode, done.stdout, done.stderr) == (0, f"postback {version('postback')}\n", "")


def test_standard_output_on_a_full_disk_ends_the_command_with_one_line() -> None:
    with Path("/dev/full").open("wb", buffering=0) as full:
        done = subprocess.run((POSTBACK, "--version"), stdout=full, stderr=subprocess.PIPE, text=True)
    fix = "free space where standard output goes, and run the command again"
    said = f"postback: standard output: No space left on device; {fix}\n"
    assert (done.returncode, done.stderr) == (1, said)


# -- audit lines of commands -------------------------------------------------------------------------------------------


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return environment_of(
        POSTBACK_STORE__URL=f"sqlite:///{tmp_path / 'store.db'}",
        POSTBACK_GATEWAY__AUDIT_FILE=tmp_path / "audit.jsonl",
    )


def test_changes_of_keys_and_tenants_are_lines_with_the_user_and_no_key(env: dict[str, str], tmp_path: Path) -> None:
    made = json.loads(postback_here("api-keys", "create", "--tenant", "acme", "--json", env=env).stdout)
    wanted = [(0, "createKey", ["creation"], "success", [made["id"]])]
    for status, action, kind, outcome, *words in (
        (0, "revokeKey", "deletion", "success", "api-keys", "revoke", made["id"]),
        (1, "revokeKey", "deletion", "failure", "api-keys", "revoke", "none"),
        (0, "putTenant", "change", "success", "tenants", "put", "acme", "{}"),
        (2, "putTenant", "change", "failure", "tenants", "put", "acme", "["),
        (0, "deleteTenant", "deletion", "success", "tenants", "remove", "acme"),
    ):
        assert postback_here(*words, env=env).returncode == status
        wanted.append((status, action, [kind], outcome, [words[2]]))
    audit = (tmp_path / "audit.jsonl").read_text()
    lines = [json.loads(line) for line in audit.splitlines()]
    names = ("event.action", "event.type", "event.outcome", "postback.objects")
    assert [tuple(line[name] for name in names) for line in lines] == [each[1:] for each in wanted]
    assert all(line["user.id"].startswith("os:") for line in lines)
    assert lines[0]["organization.id"] == "acme"
    assert made["key"] not in audit


def test_a_command_changes_nothing_where_its_line_cannot_be_written(env: dict[str, str], tmp_path: Path) -> None:
    broken = {**env, "POSTBACK_GATEWAY__AUDIT_FILE": str(tmp_path)}
    done = postback_here("api-keys", "create", "--tenant", "acme", env=broken)
    assert (done.returncode, done.stdout) == (1, "")
    assert "POSTBACK_GATEWAY__AUDIT_FILE cannot be opened (Is a directory); nothing was changed" in done.stderr
    assert postback_here("api-keys", "list", env=env).stdout == ""


# -- `postback models` -------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "models.toml"
    path.write_text(FULL)
    return str(path)


@pytest.fixture
def registry_env(file: str) -> dict[str, str]:
    return environment_of(POSTBACK_WORKER__REGISTRY=file, KEY="sk-secret")


def test_the_list_names_each_model_as_a_table_and_with_every_field_as_json(registry_env: dict[str, str]) -> None:
    listed = postback_here("models", "list", env=registry_env)
    assert listed.returncode == 0
    header, large, small, medium = (line.split("  ") for line in listed.stdout.splitlines())
    assert header[0] == "model"
    assert [each.strip() for each in small if each] == [
        "small*", "gpt-4o-mini, default-small", "local (vllm)", "google/gemma-3-270m-it", "-", "gemma-3", "medium",
    ]  # fmt: skip
    assert [each.strip() for each in large if each][:5] == ["large", "-", "hosted (openai)", "large", "big"]
    assert [each.strip() for each in medium if each][-1] == "-"

    as_json = postback_here("models", "list", "--json", env=registry_env).stdout
    found = next(each for each in json.loads(as_json) if each["name"] == "small")
    assert found["default"] is True
    assert found["cost"] == {"prompt": 0.15, "completion": 0.6, "currency": "EUR"}
    assert found["escalate"] == {"to": "medium", "on": ["failed", "low_confidence"], "below": 0.4}
    assert (found["family"]["name"], found["family"]["fences"]) == ("gemma-3", True)
    assert "sk-secret" not in as_json


def test_a_model_is_shown_by_its_name_or_alias_without_its_key(registry_env: dict[str, str]) -> None:
    for asked, line in (
        ("medium", "name: medium"),
        ("medium", "  addresses: https://a.example/v1, https://b.example/v1"),
        ("gpt-4o-mini", "name: small"),
    ):
        shown = postback_here("models", "show", asked, env=registry_env)
        assert shown.returncode == 0
        assert "sk-secret" not in shown.stdout
        assert line in shown.stdout.splitlines()
    unknown = postback_here("models", "show", "smal", env=registry_env)
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert 'the registry has no model of this name: did you mean "small"?' in unknown.stderr


def test_a_valid_file_passes_the_check(registry_env: dict[str, str], file: str) -> None:
    checked = postback_here("models", "check", env=registry_env)
    assert (checked.returncode, checked.stdout) == (0, "")
    assert "the registry is valid: 3 models with 5 names" in checked.stderr
    bare = environment_of()
    assert postback_here("models", "check", "--file", file, env=bare).returncode == 1  # KEY is not set
    assert postback_here("models", "check", "--file", file, "--without-secrets", env=bare).returncode == 0


def test_the_check_names_each_mistake_with_status_1_and_asks_for_an_absent_file(tmp_path: Path) -> None:
    wrong, field, reason = tmp_path / "wrong.toml", "models.m.temperature", "must be less than or equal to 2"
    wrong.write_text('[engines.e]\nkind = "echo"\n[models.m]\nengine = "e"\ntemperature = 9\n')
    checked = postback_here("models", "check", "--file", str(wrong), env=environment_of())
    assert (checked.returncode, checked.stdout) == (1, "")
    assert f"line 5: {field}: {reason}" in checked.stderr
    as_json = postback_here("models", "check", "--json", "--file", str(wrong), env=environment_of())
    assert as_json.returncode == 1
    assert json.loads(as_json.stdout)["mistakes"] == [{"line": 5, "field": field, "reason": reason}]
    unnamed = postback_here("models", "list", env=environment_of())
    assert unnamed.returncode == 2
    assert "POSTBACK_WORKER__REGISTRY" in unnamed.stderr


def test_the_page_for_operators_has_a_valid_file_and_commands_that_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "howto" / "models.md").read_text()
    file, with_adapters = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    [console] = re.findall(r"```console\n(.*?)```", page, re.DOTALL)
    (tmp_path / "key").write_text("sk-of-a-file")
    (tmp_path / "models.toml").write_text(file.replace("/run/secrets/anthropic", str(tmp_path / "key")))
    monkeypatch.chdir(tmp_path)
    for command in console.splitlines():
        program, *arguments = shlex.split(command)
        done = postback_here(*arguments, env=environment_of(HOSTED_KEY="sk-hosted", OPENAI_KEY="sk-openai"))
        assert (program, done.returncode) == ("postback", 0), done.stderr
        assert "sk-" not in done.stdout + done.stderr
    (tmp_path / "models.toml").write_text(with_adapters)
    shown = postback_here("models", "show", "small", "--file", "models.toml", env=environment_of())
    assert "law: /adapters/law-3" in shown.stdout, shown.stderr


# -- `postback status` -------------------------------------------------------------------------------------------------


@contextmanager
def served(rig: Rig) -> Iterator[str]:
    """The rig's application on a free port."""
    bound = socket.create_server(("127.0.0.1", 0))
    with running_parts(DoorServer(rig.app, bound, None, GatewaySettings(), SystemClock(), Metrics())):
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with gateway_rig(tmp_path) as made:
        yield made


def test_the_state_of_each_job_is_shown_and_an_unknown_job_is_reported(rig: Rig) -> None:
    with served(rig) as url:
        env = environment_of(POSTBACK_GATEWAY_KEY=rig.key())
        ids = postback_here("submit", "-", "--gateway", url, env=env, given='{"prompt": "a"}\n{"prompt": "b"}\n')
        first, second = ids.stdout.split()
        assert postback_here("cancel", second, "--gateway", url, env=env).returncode == 0

        shown = postback_here("status", second, first, "--gateway", url, env=env)
        assert (shown.returncode, shown.stdout.splitlines()) == (0, [f"{second}  cancelling", f"{first}  queued"])
        listed = postback_here("status", "--ids", "-", "--json", "--gateway", url, env=env, given=f"{first}\nno-such\n")
        states = [{"id": first, "status": "queued"}, {"id": "no-such", "status": "never seen"}]
        assert (listed.returncode, [json.loads(line) for line in listed.stdout.splitlines()]) == (1, states)

        rig.clock.now = SystemClock().time()
        day = show_time(1000 * (round(rig.clock.now) + 86_400))
        asked = ["submit", "-", "--gateway", url, "--not-before", day]
        later = postback_here(*asked, env=env, given='{"prompt": "c"}\n').stdout.strip()
        shown = postback_here("status", later, "--gateway", url, env=env)
        assert shown.stdout == f"{later}  queued, scheduled for {day}\n"

        another = environment_of(POSTBACK_GATEWAY_KEY=rig.key("another"))
        foreign = postback_here("status", first, "--gateway", url, env=another)
        assert (foreign.returncode, foreign.stdout) == (1, f"{first}  never seen\n")


def test_a_gateway_that_is_away_is_named_on_standard_error_while_the_command_goes_on_trying() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nothing listens, and no other program gets the port
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        asked = (POSTBACK, "status", "job-1", "--json", "--gateway", url)
        env = environment_of(POSTBACK_GATEWAY_KEY="k")
        with subprocess.Popen(asked, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            line = process.stderr.readline()
            is_trying = process.poll() is None
            process.kill()
            assert process.stdout.read() == ""
    said = rf"postback: the gateway at {url} does not answer; trying again until \d\d:\d\d:\d\d UTC\n"
    assert re.fullmatch(said, line)
    assert is_trying


# -- unknown variables -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rest"),
    [
        ("KAFKA__BOOTSTRAP_SERVER", "no setting has that name; POSTBACK_KAFKA__BOOTSTRAP_SERVERS may be meant"),
        ("KAFKA_BOOTSTRAP_SERVERS", "no setting has that name; POSTBACK_KAFKA__BOOTSTRAP_SERVERS may be meant"),
        ("KAFKA__PARTITION", "no setting has that name; POSTBACK_KAFKA__PARTITIONS may be meant"),
        ("EGRESS__ALLOW_CALLBACK", "no setting has that name; POSTBACK_EGRESS__ALLOW_CALLBACKS may be meant"),
        ("DELIVERY__DISABLE_AFTER", "no setting has that name; POSTBACK_DELIVERY__DISABLE_AFTER_SECONDS may be meant"),
        ("LOGLEVEL", "no setting has that name; POSTBACK_LOG_LEVEL may be meant"),
        ("keyrings", "no setting has that name; POSTBACK_KEYRING may be meant"),
        ("COLOUR", "no setting has that name"),
    ],
)
def test_a_variable_that_no_setting_reads_is_reported_with_the_name_that_may_be_meant(name: str, rest: str) -> None:
    for spelt in (f"POSTBACK_{name}", f"postback_{name}"):
        assert complaints({spelt: "s3cret"}) == [f"{spelt} is ignored: {rest}"]


def test_every_setting_is_known_however_it_is_spelt_and_other_programs_variables_are_left_alone() -> None:
    settings = [name.replace("*", "SASL_PASSWORD") for name in names()]
    assert {"POSTBACK_REPLICA", "POSTBACK_KAFKA"} <= {*settings}  # the latter gives the whole section as JSON
    assert complaints(dict.fromkeys((*settings, *map(str.lower, settings)), "x")) == []
    of_kubernetes = {
        "POSTBACK_WORKER_SERVICE_HOST": "10.0.0.7",
        "POSTBACK_WORKER_SERVICE_PORT": "9100",
        "POSTBACK_WORKER_SERVICE_PORT_METRICS": "9100",
        "POSTBACK_WORKER_PORT": "tcp://10.0.0.7:9100",
        "POSTBACK_WORKER_PORT_9100_TCP_ADDR": "10.0.0.7",
    }
    assert complaints({"PATH": "/bin", "POSTBACKLOG": "1", **of_kubernetes}) == []


def test_a_provider_of_another_package_has_settings_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = [EntryPoint("acme", "acme:provider", "postback.search")]
    monkeypatch.setattr(
        "importlib.metadata.entry_points", lambda group: installed if group == "postback.search" else []
    )

    assert complaints({"POSTBACK_SEARCH__ACME__KEY": "s3cret"}) == []
    assert len(complaints({"POSTBACK_SEARCH__ACNE__KEY": "s3cret"})) == 1


# -- commands to type --------------------------------------------------------------------------------------------------


def test_the_hint_about_an_absent_broker_has_the_command_that_starts_a_local_one() -> None:
    for servers, port in (
        ("127.0.0.1:9092", ""),
        ("localhost:9092", ""),
        ("127.0.0.1:9100", " --port 9100"),
        ("[::1]:9100,127.0.0.1:9101", " --port 9100"),
    ):
        local = f"start one with `postback broker start{port}`, or name yours with `export POSTBACK_KAFKA__BOOTSTRAP_"
        assert broker_hint(servers).startswith(local), servers
    for servers in ("kafka:9092", "10.1.2.3:9092,10.1.2.4:9092", "127.0.0.1", "", ":", "localhost:x"):
        assert broker_hint(servers).startswith("check that it runs"), servers
        assert broker_hint(servers).endswith(
            "start one with `postback broker start` and name it with "
            "`export POSTBACK_KAFKA__BOOTSTRAP_SERVERS=127.0.0.1:9092`"
        )


def test_producers_and_workers_give_the_same_hint() -> None:
    kafka = KafkaSettings(bootstrap_servers="127.0.0.1:9100")
    hint = broker_hint(kafka.bootstrap_servers)
    assert str(BrokerUnreachable(kafka.bootstrap_servers)) == f"no Kafka broker answers at 127.0.0.1:9100: {hint}"
    assert str(unanswered(kafka, KafkaError(KafkaError._TRANSPORT))).endswith(f"; {hint}")


# -- progress bars -----------------------------------------------------------------------------------------------------


def test_a_bar_shows_the_time_left_while_it_moves_and_what_it_waits_for_when_it_stands_still() -> None:
    watch, column = HandClock(0.0), OutlookColumn()
    progress = Progress(column, get_time=lambda: watch.now, auto_refresh=False, disable=True)
    bar = progress.add_task("accepted", total=10)
    [task] = progress.tasks
    shown = []
    for seconds, done in ((0.0, 0), (1.0, 2), (2.0, 4), (2.0 + STANDSTILL_SECONDS, 4), (12.0, 6)):
        watch.now = seconds
        progress.update(bar, completed=done)
        shown.append(str(column.render(task)))
    assert shown[:4] == ["ETA -:--:--", "ETA -:--:--", "ETA 0:00:03", "waiting for Kafka"]
    assert shown[4].startswith("ETA 0:00:")
    watch.now += STANDSTILL_SECONDS
    progress.update(bar, awaits="answers")
    assert str(column.render(task)) == "waiting for answers"
    progress.update(bar, completed=10)
    assert str(column.render(task)) == str(FailedColumn().render(task)) == ""
    progress.update(bar, failed=3)
    assert str(FailedColumn().render(task)) == "3 failed"


# -- strangers' text ---------------------------------------------------------------------------------------------------


EVIL = "\x1b]0;p\x07\n\u202e"
SHOWN = "\\u001b]0;p\\u0007\\n\\u202e"


def test_no_header_of_a_dead_letter_steers_the_terminal_or_makes_a_second_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    headers = [(name, EVIL.encode()) for name in ("tenant", "job-id", "reason", "reason-detail")]
    letter = Letter(Stored("dead_letters", StoredPlace(0, 7), 0, None, b"{}", headers), "job", None)
    write_lines([letter.summary()])
    report_counts(LetterCounts(Counter({("job", EVIL): 1})))
    out, err = capsys.readouterr()
    assert out == f"0:7  1970-01-01T00:00:00.000Z  job  {SHOWN}  {SHOWN}  {SHOWN}  -\n"
    assert "\\u001b]0;p\\u0007" in err


def test_nothing_that_is_kept_of_a_callback_steers_the_terminal_or_makes_a_second_line() -> None:
    said = {"reason": EVIL, "detail": EVIL, "id": "0:7"}
    steps = [CallbackStep(0, "dead_letter", tenant, "job", None, said) for tenant in ("acme", EVIL)]
    assert timeline(steps) == [
        f"1970-01-01T00:00:00.000Z  {tenant}/job  given up: {SHOWN}, {SHOWN} (dead letter 0:7)"
        for tenant in ("acme", SHOWN)
    ]


# -- the table of dead letters -----------------------------------------------------------------------------------------


HEADERS = (topics.REASON, topics.REASON_DETAIL, topics.TENANT, topics.JOB_ID, topics.CALLBACK_URL)


def letter(offset: int = 7, redriven_ms: int | None = None, **said: str) -> Letter:
    headers = [(name.replace("_", "-"), value.encode("utf-8", "surrogatepass")) for name, value in said.items()]
    return Letter(Stored("dead_letters", StoredPlace(0, offset), 0, b"job_1", b"{}", headers), "callback", redriven_ms)


def table_of(*letters: Letter) -> tuple[str, int, dict[str, int]]:
    screen = io.StringIO()
    count, reasons = write_table(Console(file=screen, width=200, no_color=True), (one.summary() for one in letters))
    return screen.getvalue(), count, dict(reasons)


def test_a_row_has_the_reason_and_its_detail_and_no_more_of_a_url_than_its_origin() -> None:
    why: dict[str, Any] = {
        "reason": "callback_exhausted",
        "reason_detail": "the last attempt: timeout",
        "attempts": "10",
    }
    shown, count, reasons = table_of(
        letter(tenant="acme", job_id="job_1", callback_url="https://hooks.example/in?token=secret", **why),
        letter(8, redriven_ms=1, reason="rejected"),
        Letter(letter(9, reason="endpoint_disabled").record, "callback", None, disabled=True),
    )
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    at = lines.index("0:7 1970-01-01 00:00 callback callback_exhausted, 10 tries acme/job_1")
    assert lines[at + 1] == "the last attempt: timeout https://hooks.example"
    assert "secret" not in shown
    assert "rejected, put back" in shown
    assert "endpoint_disabled, held: endpoint_disabled" in shown
    assert (count, reasons) == (3, {"callback_exhausted": 1, "rejected": 1, "endpoint_disabled": 1})


def test_many_letters_are_written_in_tables_of_bounded_length_with_room_in_80_columns() -> None:
    shown, count, reasons = table_of(*(letter(number, reason="rejected") for number in range(ROWS_AT_ONCE + 1)))
    assert (count, reasons) == (ROWS_AT_ONCE + 1, {"rejected": ROWS_AT_ONCE + 1})
    assert shown.count("given up") == 2
    assert f"0:{ROWS_AT_ONCE} " in shown
    screen = io.StringIO()
    job_id, detail = "job_" + "7" * 32, "callback_url: the address is not public"
    wide = letter(reason="callback_exhausted", reason_detail=detail, attempts="10", job_id=job_id)
    write_table(Console(file=screen, width=80, no_color=True), [wide.summary()])
    lines = screen.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[2].startswith("0:7   1970-01-01 00:00   callback   callback_exhausted")


@given(st.lists(st.text(max_size=400), min_size=len(HEADERS), max_size=len(HEADERS)))
def test_no_header_steers_the_terminal(values: list[str]) -> None:
    said: dict[str, Any] = {name.replace("-", "_"): value for name, value in zip(HEADERS, values, strict=True)}
    shown, _, _ = table_of(letter(**said))
    written = {unicodedata.category(character) for character in shown.replace("\n", "")}
    assert written.isdisjoint({"Cc", "Cf", "Cs", "Zl", "Zp"})


@pytest.mark.parametrize("on_terminal", [True, False])
def test_a_terminal_gets_the_table_and_a_pipe_the_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], on_terminal: bool
) -> None:
    found: Any = MagicMock()
    found.letters.return_value = iter([letter(reason="rejected")])

    @contextmanager
    def opened() -> Iterator[Any]:
        yield found

    monkeypatch.setattr(dead_letters, "opened_letters", opened)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: on_terminal)
    dead_letters.list_letters()
    out, err = capsys.readouterr()
    line = "0:7  1970-01-01T00:00:00.000Z  callback  rejected  default  -  -\n"
    assert (out == line) is not on_terminal
    assert ("given up" in out) is on_terminal
    assert err == f"postback: 1 dead letters{': 1 rejected' if on_terminal else ''}\n"


# -- received callbacks ------------------------------------------------------------------------------------------------


NOW = 1_700_000_000.0
EVENT = {"id": "msg_1", "type": "inference.succeeded", "data": {"id": "job_1", "text": "Überall “blau”"}}
WEBHOOK_HEADERS = {
    "webhook-id": "msg_1",
    "webhook-timestamp": "1699999998",
    "webhook-signature": "v1,AAAA v1a,BBBB",
}
RECEIVED = Received("msg_1", True, None, WEBHOOK_HEADERS, EVENT, b"", NOW, 200)
JSON = st.none() | st.integers() | st.text(max_size=600) | st.lists(st.text(max_size=5))


def received(event: Any = EVENT, **changed: Any) -> Received:
    return replace(RECEIVED, event=event, **changed)


@pytest.fixture
def screen() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def view(screen: io.StringIO) -> View:
    return View(Console(file=screen, width=160, no_color=True), verbose=True)


@pytest.fixture
def brief(screen: io.StringIO) -> View:
    return View(Console(file=screen, width=60, no_color=True))


def test_a_callback_is_shown_with_the_facts_that_people_look_at_first(view: View, screen: io.StringIO) -> None:
    view.show(received())
    head, *facts = screen.getvalue().splitlines()
    assert head.endswith("inference.succeeded  verified  answered 200")
    assert [" ".join(line.split()) for line in facts[:3]] == [
        "webhook-id msg_1",
        "signed 2 s before it came",
        "signatures v1 v1a",
    ]
    assert json.loads("\n".join(facts[3:])) == EVENT
    assert "Überall “blau”" in screen.getvalue()


def test_a_repeat_of_an_event_is_shown_as_its_next_attempt(view: View, screen: io.StringIO) -> None:
    for webhook_id, status in [("msg_1", 503), ("msg_2", 503), ("msg_1", 200)]:
        view.show(received(webhook_id=webhook_id, status=status))
    heads = [line for line in screen.getvalue().splitlines() if "answered" in line]
    assert [line.partition("answered ")[2] for line in heads] == ["503", "503", "200  attempt 2 of this event"]


def test_a_forged_callback_and_a_timestamp_of_another_clock_are_shown_with_the_reason(
    view: View, screen: io.StringIO
) -> None:
    for _ in range(2):
        view.show(received(verified=False, problem="the webhook-id header is missing", status=401, headers={}))
    assert "not verified  answered 401" in screen.getvalue()
    assert "problem     the webhook-id header is missing" in screen.getvalue()
    assert "attempt" not in screen.getvalue()  # a forged callback counts as none
    view.show(received(headers={"webhook-timestamp": "1700000060"}))
    view.show(received(headers={"webhook-timestamp": "yesterday"}))
    assert "60 s in the future; check both clocks" in screen.getvalue()
    assert "at yesterday, which is no Unix second" in screen.getvalue()


def test_nothing_that_comes_in_can_steer_the_terminal(view: View, screen: io.StringIO) -> None:
    evil = "\x1b]0;owned\x07 \x9b2J \u202e \u2028 \x7f \ud800 [bold]"
    headers = {"webhook-timestamp": evil}
    view.show(received({"type": evil, "text": evil}, webhook_id=evil, problem=evil, headers=headers))
    view.show(received(None, body=evil.encode("utf-8", "surrogatepass")))
    shown = screen.getvalue()
    assert {*shown}.isdisjoint("\x1b\x07\x9b\u202e\u2028\x7f\ud800")
    for escaped in ("\\u001b]0;owned\\u0007", "\\u009b2J", "\\u202e", "\\u2028", "\\u007f", "\\ud800", "[bold]"):
        assert escaped in shown


def test_a_long_event_is_cut_and_a_deep_one_shown_on_a_line(view: View, screen: io.StringIO) -> None:
    view.show(received({"type": "inference.succeeded", "text": "x" * 50_000}))
    assert len(screen.getvalue()) < MAX_SHOWN_CHARACTERS + 1_000
    assert "`--out FILE` keeps them" in screen.getvalue()
    deep: list[Any] = []
    for _ in range(5_000):
        deep = [deep]
    view.show(received(deep, body=b"[" * 100))
    assert "[" * 100 in screen.getvalue()


def test_a_callback_takes_one_line_with_its_job_or_the_reason_of_its_refusal(brief: View, screen: io.StringIO) -> None:
    event = {"type": "inference.failed", "data": {"job_id": "job_" + "7" * 40}}
    brief.show(received(event))
    brief.show(received(event, status=503))
    brief.show(received(verified=False, problem="the webhook-id header is missing", status=401))
    first, second, third = screen.getvalue().splitlines()
    assert first.endswith("inference.failed  verified  answered 200  job_" + "7" * 40)
    assert "answered 503  attempt 2 of this event  job_" in second
    assert third.endswith("not verified  answered 401  the webhook-id header is missing")


@given(text=st.text(max_size=600), job_id=JSON, kind=JSON)
def test_any_text_of_a_stranger_takes_one_line_without_control_characters(text: str, job_id: Any, kind: Any) -> None:
    screen = io.StringIO()
    brief = View(Console(file=screen, width=60, no_color=True))
    brief.show(received({"type": kind, "data": {"job_id": job_id}}, problem=None))
    brief.show(received({"type": text, "data": text}, problem=text, verified=False))
    brief.show(received([text]))
    shown = screen.getvalue()
    assert shown.count("\n") == 3
    assert {unicodedata.category(one) for one in shown.replace("\n", "")}.isdisjoint({"Cc", "Cf", "Cs", "Zl", "Zp"})
    assert len(shown) < 4 * 6 * MAX_SHOWN_IN_LINE


def test_the_summary_counts_events_answers_and_refused_signatures() -> None:
    summary = Summary()
    assert str(summary) == "events: 0; requests: 0; refused signatures: 0"
    for one in (
        received(status=503),
        received(),
        received({"type": "inference.failed"}, webhook_id="msg_2"),
        received({"type": "inference.failed"}, webhook_id="msg_3", verified=False, problem="x", status=401),
        received(None, webhook_id=None, verified=False, problem="x", status=401),
    ):
        summary.add(one)
    assert str(summary) == (
        "events: 2 (1 inference.failed, 1 inference.succeeded); "
        "requests: 5 (2 answered 200, 2 answered 401, 1 answered 503); refused signatures: 2"
    )


# -- the demo's verdict ------------------------------------------------------------------------------------------------


PAGE = "http://127.0.0.1:1/bridge"


@pytest.fixture
def tally() -> DemoTally:
    return DemoTally(
        {"demo-1": DemoJob("demo-1", Question("When did it open?", "/bridge", "1987"), PAGE, sent_at=10.0)}
    )


def callback(*, verified: bool = True, webhook_id: str = "msg_1", **changed: Any) -> Received:
    data = {"id": "demo-1", "outcome": "succeeded", "text": "In 1987.", "sources": [PAGE]} | changed
    event = {"type": f"inference.{data['outcome']}", "data": data}
    problem = None if verified else "no matching signature"
    return Received(webhook_id, verified, problem, {}, event, b"", 10.5, 200 if verified else 401)


def ended(tally: DemoTally, results: int = 1) -> list[str]:
    tally.settled(Counter({"demo-1": results}))
    return list(tally.summary("vllm"))


def test_a_right_answer_from_its_page_passes(tally: DemoTally) -> None:
    verdict = tally.add(callback(text="it was in 1987, they say"))
    assert verdict is not None
    assert (verdict.problems, verdict.seconds) == ((), 0.5)
    assert ended(tally) == [
        "1 of 1 answered, 1 right with the right source, 1 signatures verified",
        "Kafka has exactly one settled result for each job",
        "from submit to callback: p50 0.50 s, p99 0.50 s, with all jobs submitted at once",
    ]
    assert tally.well
    hundred = [float(number) for number in range(1, 101)]
    assert (percentile(hundred, 0.5), percentile(hundred, 0.99), percentile([7.0], 0.99)) == (50.0, 99.0, 7.0)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"text": "In 19870."}, 'the answer lacks "1987"'),
        ({"text": None}, 'the answer lacks "1987"'),
        ({"sources": ["http://127.0.0.1:1/mine"]}, f"{PAGE} is not among the sources"),
        ({"outcome": "failed", "error": {"message": "too large"}}, "the outcome is failed: too large"),
    ],
)
def test_a_wrong_callback_is_named_and_fails(tally: DemoTally, changed: dict[str, Any], problem: str) -> None:
    verdict = tally.add(callback(**changed))
    assert verdict is not None
    assert verdict.problems == (problem,)
    assert list(verdict.lines("1/1"))[-1] == f"     WRONG: {problem}"
    ended(tally)
    assert not tally.well


def test_a_missing_or_unverified_callback_is_named(tally: DemoTally) -> None:
    assert "WRONG: demo-1 has had no callback" in ended(tally)
    assert not tally.well
    assert tally.add(callback(verified=False)) is None
    assert "WRONG: a callback was not verified: no matching signature" in ended(tally)
    assert not tally.complete
    tally.add(callback())
    assert not tally.well


@pytest.mark.parametrize("results", [0, 2])
def test_a_job_without_exactly_one_settled_result_is_named(tally: DemoTally, results: int) -> None:
    tally.add(callback())
    assert f"WRONG: demo-1 has {results} results in Kafka instead of one" in ended(tally, results)
    assert not tally.well


@pytest.mark.parametrize(("webhook_id", "well"), [("msg_1", True), ("msg_2", False)])
def test_a_repeat_is_fine_under_the_same_webhook_id_only(tally: DemoTally, webhook_id: str, well: bool) -> None:
    tally.add(callback())
    assert tally.add(callback(webhook_id=webhook_id)) is None
    ended(tally)
    assert (tally.repeats, tally.well) == (1, well)
