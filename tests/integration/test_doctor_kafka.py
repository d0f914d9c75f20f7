"""`postback doctor` on a real broker: a sound fleet has a line of each check, and each fault is named with its fix."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.operations.doctor import fleet as fleet_checks
from cli.operations.doctor.findings import FindingLevel
from cli.operations.doctor.fleet import check_clock
from cli.operations.topics import create_topics
from producers.connection import admin_client
from schemas.settings import KafkaSettings
from telemetry.clock import SystemClock
from tests.integration.doctor_kafka import CALLBACK, ManyDoors, broken_fleet, empty_fleet, many_doors, put_results
from tests.postback_command import POSTBACK, environment_of, postback_here

pytestmark = pytest.mark.broker

EXTRA = "POSTBACK_KAFKA__EXTRA__"


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManyDoors]:
    with many_doors(tmp_path_factory.mktemp("doors")) as opened:
        yield opened


def fleet_of_topics(doors: ManyDoors) -> KafkaSettings:
    """A new fleet whose topics have no records."""
    kafka = empty_fleet(doors.plain)
    create_topics(kafka)
    return kafka


@pytest.fixture(scope="module")
def fleet(doors: ManyDoors) -> KafkaSettings:
    """A sound fleet without processes, and without records in its topics."""
    return fleet_of_topics(doors)


@pytest.fixture(scope="module")
def report(doors: ManyDoors) -> dict[str, Any]:
    """The doctor's report of a fleet with many faults."""
    env = environment_of(broken_fleet(doors.plain), POSTBACK_KAFKA__REPLICATION_FACTOR="3")
    done = postback_here("doctor", "--json", "--role", "deliver", "--role", "gateway", env=env)
    assert done.returncode == 1
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_each_check_of_a_sound_fleet_prints_a_line(fleet: KafkaSettings, tmp_path: Path) -> None:
    keyring = tmp_path / "keyring.json"
    env = environment_of(fleet, POSTBACK_KEYRING=keyring, POSTBACK_ENRICHMENT__ENTAILMENT="engine")
    assert postback_here("keys", "init", env=env).returncode == 0
    done = postback_here("doctor", "--role", "worker", "--role", "deliver", "--engine", "echo", env=env)
    # The one finding is a warning that this broker keeps the offsets of idle groups for only an hour.
    lines = [line.split()[0] for line in done.stdout.splitlines()]
    assert (len(lines) >= 16, set(lines), lines.count("warning")) == (True, {"ok", "warning"}, 1), done.stdout
    assert "offsets.retention.minutes" in done.stdout
    assert (done.returncode, "checks; faults: 0, warnings: 1" in done.stderr) == (0, True), done.stderr
    assert postback_here("doctor", "--strict", env=env).returncode == 1


def test_a_shell_that_may_open_few_files_is_a_fault(fleet: KafkaSettings) -> None:
    shell = ["bash", "-c", 'ulimit -n 1024 && exec "$@"', "bash", str(POSTBACK), "doctor", "--json"]
    done = subprocess.run(shell, env=environment_of(fleet), capture_output=True, text=True, check=False, timeout=120)
    [found] = [each for each in json.loads(done.stdout)["findings"] if "files" in each["problem"]]

    assert (done.returncode, found["level"]) == (1, "fault")
    assert found["problem"] == "a process here may open 1024 files, and 4096 are needed"
    assert "`ulimit -Hn 65536`" in found["fix"]


@pytest.mark.parametrize(
    ("check", "level", "problem", "fix"),
    [
        ("brokers", "warning", "forgets the offsets of an idle group after 60 minutes", "offsets.retention.minutes="),
        ("topics", "fault", "topics are missing: {prefix}model_requests.shadow", "`postback topics create`"),
        ("topics", "fault", "1 instead of 2 partitions: {prefix}callback_events", "--raise-partitions"),
        ("topics", "fault", "retention.ms=1000 instead of 604800000", "`postback topics create --fix-config`"),
        ("topics", "fault", "cleanup.policy=delete instead of compact", "`postback topics create --fix-config`"),
        ("topics", "fault", "1 copies, and no write succeeds with fewer than 2", "min.insync.replicas=1"),
        ("topics", "fault", "topics with 1 instead of 3 copies", "POSTBACK_KAFKA__REPLICATION_FACTOR=1"),
        ("access", "fault", "ACLs deny Write on {prefix}callback_retries.500ms to User:ANONYMOUS", "kafka-acls.sh"),
        ("topics", "fault", "ACLs deny DescribeConfigs to this user", "grant DescribeConfigs"),
        ("access", "fault", "ACLs deny Read on the group {prefix}expansion", "--group {prefix}expansion"),
        (
            *("access", "fault", "ACLs deny Write on the transactional id {prefix}expansion"),
            "--transactional-id {prefix}expansion --resource-pattern-type prefixed",
        ),
        ("workers", "fault", "two workers have the name w3, or one ends again and again: 3 announcements", "REPLICA"),
        ("groups", "fault", "no offsets of the group {prefix}inference", "kafka-consumer-groups.sh"),
        ("workers", "fault", "the clock of worker w2 is 3", "timedatectl"),
        ("workers", "warning", "different versions: 1.0 on w1, w3; 2.0 on w2", "finish the upgrade"),
        ("dead-letters", "warning", "given up within the last day: 1 timeout", "postback dead-letters list"),
        ("endpoints", "warning", "endpoints are disabled, and their callbacks", "postback endpoints enable"),
        ("keyring", "fault", "POSTBACK_KEYRING is not set", "the keyring's path"),
    ],
)
def test_each_fault_of_a_fleet_is_named_with_its_fix(
    report: dict[str, Any], check: str, level: str, problem: str, fix: str
) -> None:
    prefix = next(each["problem"] for each in report["findings"] if "are missing" in each["problem"])
    prefix = prefix.removeprefix("topics are missing: ").removesuffix("model_requests.shadow")
    found = [each for each in report["findings"] if each["check"] == check]
    told = [
        each
        for each in found
        if problem.format(prefix=prefix) in each["problem"] and fix.format(prefix=prefix) in each["fix"]
    ]
    assert [each["level"] for each in told] == [level], found


def test_no_finding_shows_a_callbacks_path_and_each_is_one_line(report: dict[str, Any]) -> None:
    assert "s3cret" not in json.dumps(report)
    assert all("\n" not in each["problem"] + each["fix"] for each in report["findings"])
    assert report["skipped"] == []


def test_a_fleet_without_delivery_has_a_fault_only_once_a_result_has_a_callback(
    doors: ManyDoors, monkeypatch: pytest.MonkeyPatch
) -> None:
    kafka = fleet_of_topics(doors)
    put_results(kafka)
    assert list(fleet_checks.check_groups(kafka)) == []
    with monkeypatch.context() as impatient:
        impatient.setattr(fleet_checks, "SHORT", 0)
        impatient.setattr(fleet_checks, "READ_SECONDS", 0.0)
        [found] = fleet_checks.check_groups(kafka)
    assert (found.level, "others were not read" in found.problem) == (FindingLevel.WARNING, True)
    put_results(kafka, ("callback-url", CALLBACK))
    [found] = fleet_checks.check_groups(kafka)
    assert (found.level, f"records of {kafka.topics.results} wait" in found.problem) == (FindingLevel.FAULT, True)


@pytest.mark.parametrize("header", [("callback-url", CALLBACK), ("lane", b"model_requests")], ids=["callback", "job"])
def test_a_callback_or_job_in_a_tier_is_found_though_time_is_too_short_for_the_results(
    doors: ManyDoors, monkeypatch: pytest.MonkeyPatch, header: tuple[str, bytes]
) -> None:
    kafka = fleet_of_topics(doors)
    put_results(kafka)
    put_results(kafka)
    tiers = kafka.topics.tiers if header[0] == "callback-url" else kafka.topics.later
    tier = next(iter(tiers.values()))
    put_results(kafka, header, topic=tier)
    monkeypatch.setattr(fleet_checks, "READ_SECONDS", 0.0)
    [found] = fleet_checks.check_groups(kafka)
    assert (found.level, f"records of {tier} wait" in found.problem) == (FindingLevel.FAULT, True)


def faults(doors: ManyDoors, servers: str, **more: str | Path) -> list[tuple[str, str]]:
    """The problems and fixes that the command names for the connection to Kafka."""
    env = environment_of(empty_fleet(doors.plain).model_copy(update={"bootstrap_servers": servers}), **more)
    done = postback_here("doctor", "--json", env=env)
    report = json.loads(done.stdout)
    found = [each for each in report["findings"] if each["check"] == "brokers"]
    assert (done.returncode, report["ok"], [each["level"] for each in found]) == (1, False, ["fault"]), report
    assert "topics" in report["skipped"]
    return [(each["problem"], each["fix"]) for each in found]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the wait for a Kafka that never answers."""
    monkeypatch.setattr("producers.connection.BOOTSTRAP_SECONDS", 0.5)
    monkeypatch.setattr("cli.operations.doctor.brokers.PROBE_SECONDS", 1.0)


@pytest.mark.parametrize(
    ("servers", "problem", "fix"),
    [
        (
            "127.0.0.1:9",
            "127.0.0.1:9 refuses connections: no process listens there",
            "`postback broker start --port 9`",
        ),
        ("kafka.invalid:9092", "kafka.invalid:9092 has a name that does not resolve", "its name resolves here"),
        (
            "kafka",
            "POSTBACK_KAFKA__BOOTSTRAP_SERVERS is no list of HOST:PORT",
            "export POSTBACK_KAFKA__BOOTSTRAP_SERVERS=",
        ),
        ("kafka:http", "POSTBACK_KAFKA__BOOTSTRAP_SERVERS is no list of HOST:PORT", "=kafka-1:9092"),
    ],
)
def test_an_address_without_a_kafka_is_named_by_the_step_that_fails(
    doors: ManyDoors, servers: str, problem: str, fix: str
) -> None:
    [(told, mended)] = faults(doors, servers)
    assert problem in told
    assert fix in mended


@pytest.mark.usefixtures("impatient")
def test_a_refused_password_is_named_by_its_settings_and_never_shown(doors: ManyDoors) -> None:
    sasl = {"SECURITY_PROTOCOL": "SASL_PLAINTEXT", "SASL_MECHANISM": "PLAIN", "SASL_USERNAME": "ann"}
    credentials = {f"{EXTRA}{name}": value for name, value in sasl.items()}
    [(problem, fix)] = faults(doors, doors.sasl, **credentials, **{f"{EXTRA}SASL_PASSWORD": "wr0ng"})
    assert problem == f"{doors.sasl} does not let this user in over SASL_PLAINTEXT"
    assert f"{EXTRA}SASL_PASSWORD" in fix
    assert "wr0ng" not in problem + fix


@pytest.mark.usefixtures("impatient")
def test_the_wrong_protocol_is_named_with_the_right_one(doors: ManyDoors) -> None:
    [(problem, fix)] = faults(doors, doors.tls)
    assert (problem, fix) == (
        f"{doors.tls} speaks TLS, and the protocol is set to PLAINTEXT",
        f"set {EXTRA}SECURITY_PROTOCOL=SSL",
    )
    [(problem, fix)] = faults(doors, doors.plain, **{f"{EXTRA}SECURITY_PROTOCOL": "SSL"})
    assert (problem, fix) == (
        f"{doors.plain} speaks no TLS, and the protocol is set to SSL",
        f"set {EXTRA}SECURITY_PROTOCOL=PLAINTEXT",
    )
    [(problem, fix)] = faults(doors, doors.sasl)
    assert problem == f"{doors.sasl} accepts connections and answers no Kafka request over PLAINTEXT"
    assert f"set {EXTRA}SECURITY_PROTOCOL=SASL_PLAINTEXT" in fix


@pytest.mark.usefixtures("impatient")
def test_an_untrusted_certificate_of_a_broker_is_named_with_the_setting_of_the_authority(doors: ManyDoors) -> None:
    tls: dict[str, str | Path] = {f"{EXTRA}SECURITY_PROTOCOL": "SSL"}
    [(problem, fix)] = faults(doors, doors.tls, **tls)
    assert problem.startswith(f"TLS with {doors.tls} fails (unable to get local issuer certificate")
    assert f"set {EXTRA}SSL_CA_LOCATION" in fix


@pytest.mark.usefixtures("impatient")
def test_a_certificate_of_a_broker_with_another_name_is_named(doors: ManyDoors) -> None:
    tls: dict[str, str | Path] = {f"{EXTRA}SECURITY_PROTOCOL": "SSL", f"{EXTRA}SSL_CA_LOCATION": doors.ca_file}
    address = doors.tls.replace("127.0.0.1", "localhost")
    [(problem, fix)] = faults(doors, address, **tls)
    assert problem.startswith(f"TLS with {address} fails (Hostname mismatch, certificate is not valid for 'localhost'")
    assert "name the broker as the certificate does" in fix


def test_a_trusted_certificate_leads_to_the_broker(doors: ManyDoors) -> None:
    tls = {f"{EXTRA}SECURITY_PROTOCOL": "SSL", f"{EXTRA}SSL_CA_LOCATION": str(doors.ca_file)}
    env = environment_of(empty_fleet(doors.tls), **tls)
    report = json.loads(postback_here("doctor", "--json", env=env).stdout)
    [missing] = [each["problem"] for each in report["findings"] if each["level"] == "fault"]
    assert missing.startswith("topics are missing: ")


@pytest.mark.usefixtures("impatient")
def test_a_process_that_accepts_and_never_answers_is_named(doors: ManyDoors) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        [(problem, fix)] = faults(doors, address)
    assert problem == f"{address} accepts connections and answers no Kafka request over PLAINTEXT"
    assert "else look at its log" in fix


def test_an_advertised_address_that_nothing_listens_at_is_named(doors: ManyDoors) -> None:
    [(problem, fix)] = faults(doors, doors.elsewhere)
    assert problem.startswith("broker 1 sends clients to 127.0.0.1:")
    assert problem.endswith("which refuses connections: no process listens there")
    assert fix.startswith("set advertised.listeners of broker 1")


def test_a_fleet_under_another_prefix_is_named_with_that_prefix(doors: ManyDoors, fleet: KafkaSettings) -> None:
    other = fleet.model_copy(update={"topic_prefix": "other."})
    report = json.loads(postback_here("doctor", "--json", env=environment_of(other)).stdout)
    [missing] = [each for each in report["findings"] if each["level"] == "fault"]
    assert (missing["check"], "groups" in report["skipped"]) == ("topics", True)
    with admin_client(fleet) as admin:
        prefixes = [
            name.removesuffix("model_requests") for name in admin.list_topics() if name.endswith("model_requests")
        ]
    assert (
        missing["fix"]
        == f"set POSTBACK_KAFKA__TOPIC_PREFIX={min(prefixes)}, whose topics exist, or run `postback topics create`"
    )


class Ahead(SystemClock):
    """A clock that is an hour ahead."""

    @staticmethod
    def time() -> float:
        return SystemClock.time() + 3600


def test_a_wrong_clock_of_this_machine_is_named_by_the_brokers_time(fleet: KafkaSettings) -> None:
    assert list(check_clock(fleet)) == []
    [found] = check_clock(fleet, Ahead())
    assert (found.level, found.problem.startswith("this machine's clock is 3600 s ahead of the broker's")) == (
        FindingLevel.FAULT,
        True,
    )
