"""`postback doctor` on this machine: wrong files, settings and services are named with their fixes."""

from __future__ import annotations

import json
import os
import resource
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, text

from cli.operate.doctor_checks import Door, check_certificates, check_disk, check_files_limit, check_memory, checks
from cli.operate.doctor_engine import server_findings
from cli.operations.doctor.brokers import broker_findings, parsed_addresses
from cli.operations.doctor.findings import Check, Finding, FindingLevel, examine, fault, in_words
from cli.operations.doctor.topics import NEEDED
from gateway.store.store import Store
from scripts.publish.catalogue import names
from telemetry.clock import SystemClock
from tests.drawn import drawn
from tests.http_handler import handling
from tests.integration.certificates import Authority
from tests.integration.test_acls import documented_names
from tests.postback_command import environment_of, postback_here

NO_KAFKA = "127.0.0.1:9"
SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"


def findings(check: str, *options: str, **variables: str | Path) -> list[tuple[str, str]]:
    """The problems and fixes that the command reports, on a machine without a Kafka."""
    env = environment_of(POSTBACK_KAFKA__BOOTSTRAP_SERVERS=NO_KAFKA, **variables)
    done = postback_here("doctor", "--json", *options, env=env)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert SECRET not in done.stdout + done.stderr
    found = json.loads(done.stdout)["findings"]
    return [(each["problem"], each["fix"]) for each in found if each["check"] == check]


def told(found: list[tuple[str, str]], problem: str, fix: str) -> bool:
    return any(problem in each and fix in mended for each, mended in found)


@pytest.mark.parametrize(
    ("variable", "value", "check", "problem", "fix"),
    [
        ("KEYRINGS", "x", "settings-names", "POSTBACK_KEYRINGS is ignored", "rename it to POSTBACK_KEYRING"),
        ("COLOUR", "x", "settings-names", "POSTBACK_COLOUR is ignored", "docs/reference/settings.md"),
        ("KAFKA__PARTITIONS", "many", "settings-values", "POSTBACK_KAFKA__PARTITIONS: ", "correct it"),
        ("DELIVERY__DRAIN_SECONDS", "9", "settings-values", "POSTBACK_DELIVERY__DRAIN_SECONDS: ", "correct it"),
        ("KEYRING", "/nowhere/k.json", "keyring", "no keyring at /nowhere/k.json", "`postback keys init`"),
        ("TRUST__SECRET_FILE", "/none", "secret-files", "POSTBACK_TRUST__SECRET_FILE cannot", "correct the"),
        ("DELIVERY__CA_FILE", __file__, "certificates", "holds no certificate in PEM", "correct the path"),
        ("ACCESS__REDIS_URL", f"redis://{NO_KAFKA}/0", "redis-access", "fails (ConnectionError)", "start it"),
        ("DELTAS__REDIS_URL", f"redis://{NO_KAFKA}/0", "redis-deltas", "fails (ConnectionError)", "start it"),
        ("CACHE__REDIS_URL", "http://x", "redis-cache", "POSTBACK_CACHE__REDIS_URL is no URL", "redis://HOST"),
        ("STORE__URL", "mysql://x", "store", "the store's URL cannot be used", "write sqlite:///FILE"),
        (
            *("STORE__URL", f"postgresql+psycopg://a:{SECRET}@{NO_KAFKA}/x", "store"),
            *("the store cannot be opened: it cannot be reached", "start the database"),
        ),
        ("STORE__URL", "sqlite:////nowhere/at/all.db", "store", "the store's folder is missing", "make it"),
        (
            *("ENRICHMENT__ENTAILMENT", "/nowhere", "entailment"),
            *("POSTBACK_ENRICHMENT__ENTAILMENT names no file or folder", "set it to engine"),
        ),
        ("ENRICHMENT__OCR", "xyz", "ocr", "POSTBACK_ENRICHMENT__OCR ", "install "),
    ],
)
def test_a_wrong_variable_is_named_with_its_fix(variable: str, value: str, check: str, problem: str, fix: str) -> None:
    found = findings(check, **{f"POSTBACK_{variable}": value})
    assert told(found, problem, fix), found


def test_a_worker_without_a_judge_is_told_which_profiles_it_cannot_answer() -> None:
    found = findings("entailment", "--role", "worker")
    assert told(found, "finance and medical fail as profile_unavailable", "a cross-encoder's folder or to engine")
    assert findings("entailment", "--role", "worker", POSTBACK_ENRICHMENT__ENTAILMENT="engine") == []


def test_a_keyring_that_others_may_read_or_that_is_invalid_is_named(tmp_path: Path) -> None:
    path = tmp_path / "keyring.json"
    env = environment_of(POSTBACK_KEYRING=path)
    assert postback_here("keys", "init", env=env).returncode == 0
    assert findings("keyring", POSTBACK_KEYRING=path) == []
    path.chmod(0o644)
    [(problem, fix)] = findings("keyring", POSTBACK_KEYRING=path)
    assert problem.endswith("it is open to other users of this machine")
    assert fix == f"run `chmod 600 {path}`"
    path.write_text('{"format": 2, "masters": []}')
    path.chmod(0o600)
    [(problem, fix)] = findings("keyring", POSTBACK_KEYRING=path)
    assert "it is not a keyring" in problem
    assert fix == "put the file back from a backup"
    assert told(findings("keyring", "--role", "deliver"), "POSTBACK_KEYRING is not set", "the keyring's path")


def test_a_file_of_a_secret_that_others_may_read_is_named(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{SECRET}{SECRET}")
    file.chmod(0o640)
    found = findings("secret-files", POSTBACK_TRUST__SECRET_FILE=file)
    assert told(found, "POSTBACK_TRUST__SECRET_FILE: it is open to other users", f"`chmod 600 {file}`") == (
        os.geteuid() != 0
    )
    file.chmod(0o604)
    found = findings("secret-files", POSTBACK_TRUST__SECRET_FILE=file)
    assert told(found, "POSTBACK_TRUST__SECRET_FILE: it is open to other users", f"`chmod 600 {file}`")


def test_certificates_that_are_expired_or_expire_soon_are_named(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path)
    expired = authority.chain_file(expired=True)
    [(problem, fix)] = findings("certificates", "--certificate", str(expired))
    assert problem == f"a certificate of --certificate {expired} (without a name) expired 1 day ago"
    assert "`postback certs renew`" in fix

    class Later(SystemClock):
        @staticmethod
        def time() -> float:
            return SystemClock.time() + 12 * 3600

    [soon] = check_certificates({"door": authority.client_file("acme")}, Later())
    assert (soon.level, soon.problem) == (
        FindingLevel.WARNING,
        "a certificate of door (acme) expires in less than a day",
    )


def test_a_key_or_a_name_that_is_not_the_certificates_is_named(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path)
    ours, other = authority.chain_file("10.0.0.7", "gateway.example", "*.fleet.example"), authority.client_file("other")
    door = ("--certificate", str(ours))
    for host in ("gateway.example", "Gateway.Example.", "10.0.0.7", "eu.fleet.example"):
        assert findings("door", *door, "--key", str(ours), "--host", host) == []
    [(problem, fix)] = findings("door", *door, "--key", str(other))
    assert problem == "the key of --key cannot be used: the key is not the certificate's"
    for host in ("other.example", "a.eu.fleet.example", "fleet.example", "10.0.0.8"):
        [(problem, fix)] = findings("door", *door, "--host", host)
        names = "gateway.example, *.fleet.example, 10.0.0.7"
        assert problem == f"the certificate of --certificate {ours} is for {names}, and not for {host}"
        assert fix.endswith(f"`postback certs issue DIR NAME --server --san {host}`")
    refused = postback_here("doctor", "--host", "gateway.example", env=environment_of())
    assert (refused.returncode, "--host: needs --certificate" in refused.stderr) == (2, True)


def test_a_key_of_kafkas_certificate_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path)
    kept, other = authority.client_file("kept", b"right"), authority.client_file("other")
    extra = "POSTBACK_KAFKA__EXTRA__SSL"

    def problems(key: Path, passphrase: str = "") -> list[str]:
        given = {f"{extra}_CERTIFICATE_LOCATION": kept, f"{extra}_KEY_LOCATION": key}
        found = findings("kafka-key", **given, **({f"{extra}_KEY_PASSWORD": passphrase} if passphrase else {}))
        return [problem.partition("cannot be used: ")[2] for problem, _ in found]

    assert problems(kept, "right") == []
    assert problems(kept, "wrong") == ["the passphrase of its key is wrong"]
    assert problems(kept) == ["its key has a passphrase"]
    assert problems(other) == ["the key is not the certificate's"]
    assert problems(authority.ca_file) == ["it lacks the expected content in PEM (unreadable)"]
    assert problems(tmp_path / "missing") == []


def test_a_store_of_another_schema_is_named(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    assert findings("store", POSTBACK_STORE__URL=url) == []
    assert list(tmp_path.iterdir()) == []  # the check creates no file
    Store.open(url).close()
    assert findings("store", POSTBACK_STORE__URL=url) == []
    engine = create_engine(url)
    for change, problem, fix in (
        ("UPDATE meta SET value = '0' WHERE name = 'schema'", "older than this program's", "`postback store upgrade`"),
        (
            "UPDATE meta SET value = '9' WHERE name = 'schema'",
            "newer than this program's",
            "install the newer Postback",
        ),
        ("DELETE FROM meta", "of another program", "correct POSTBACK_STORE__URL"),
    ):
        with engine.begin() as connection:
            connection.execute(text(change))
        assert told(findings("store", POSTBACK_STORE__URL=url), problem, fix)
    engine.dispose()


def test_a_model_that_is_not_on_the_disk_is_named(tmp_path: Path) -> None:
    engine = ("--engine", "vllm", "--model")
    missing, empty = tmp_path / "missing", tmp_path / "empty"
    empty.mkdir()
    for folder in (str(missing), "~nobody-here/tiny"):
        assert told(findings("engine", *engine, folder), "cannot be read (no such file", "POSTBACK_ENGINE__VLLM__MODEL")
    assert told(findings("engine", *engine, str(empty)), f"the model is empty: {empty}", "download the model again")
    (empty / "config.json").write_text("{}")
    assert told(findings("engine", *engine, str(empty)), "holds no weights", "download the model again")
    (empty / "model.safetensors").write_bytes(b"")
    assert not told(findings("engine", *engine, str(empty)), "model", "")
    hub: dict[str, str | Path] = {"HF_HUB_CACHE": tmp_path, "HF_HUB_OFFLINE": "1"}
    assert told(findings("engine", *engine, "acme/tiny", **hub), "HF_HUB_OFFLINE forbids", "`hf download acme/tiny`")
    assert told(findings("engine", "--engine", "vllm"), "the engine vllm has no model", "--model")


def test_an_engine_whose_package_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    found = findings("engine", "--engine", "vllm", "--model", "/nowhere")
    assert told(found, "needs the package vllm", "`pip install 'postback[vllm]'`")
    monkeypatch.setitem(sys.modules, "starlette", None)
    assert told(findings("packages", "--role", "gateway"), "`postback gateway` needs starlette", "postback[gateway]")


class Models(BaseHTTPRequestHandler):
    """A server with models for the right key. Some paths redirect, answer without HTTP, or with too deep JSON."""

    keys: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        key = self.headers["Authorization"]
        Models.keys.append(key)
        if self.path == "/raw/models":
            self.wfile.write(b"no status line\r\n")
            return
        statuses = {f"Bearer {SECRET}": 200, "Bearer restricted": 403}
        body = b"[" * 100_000 if self.path == "/deep/models" else json.dumps({"data": [{"id": "small"}]}).encode()
        self.send_response({"/moved/models": 302, "/deep/models": 200}.get(self.path, statuses.get(key or "", 401)))
        self.send_header("Location", "/thief")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Write no line for a request."""


@pytest.fixture
def server() -> Iterator[str]:
    with handling(Models) as url:
        yield url


def test_a_server_of_models_that_is_away_or_refuses_is_named(server: str) -> None:
    away = f"http://{NO_KAFKA}"
    for model, url, key, problem, fix in (
        ("big", server, SECRET, "does not serve the model big", "one of its models: small"),
        ("small", server, "other", f"{server} refuses the key (401)", "OPENAI__API_KEY"),
        ("small", server, "restricted", "does not let this key list its models (403)", "that right"),
        ("small", away, SECRET, f"{away} does not answer", "OPENAI__BASE_URL"),
        ("small", server, SECRET, None, ""),
    ):
        settings = {"BASE_URL": f"{url}/v1", "API_KEY": key}
        variables = {f"POSTBACK_ENGINE__OPENAI__{name}": value for name, value in settings.items()}
        found = findings("engine", "--engine", "openai", "--model", model, **variables)
        assert found == [] if problem is None else told(found, problem, fix), found


def test_a_callback_that_delivery_would_not_reach_is_named_without_its_path() -> None:
    for url, problem, fix in (
        ("https://10.1.2.3/hook?t=token", "callbacks to https://10.1.2.3: the address is not public", "CALLBACKS"),
        ("http://example.com/", "callbacks to http://example.com: https is required", "use https"),
        ("https://example.com:22/", "this port is not allowed", "POSTBACK_EGRESS__PORTS"),
        ("https://nowhere.invalid/hook", "the name of https://nowhere.invalid does not resolve", "this machine's DNS"),
        ("ftp://x", "the guard refuses callbacks to", "https"),
    ):
        found = findings("callback-1", "--callback-url", url)
        assert told(found, problem, fix), found
        assert "hook" not in str(found)
    allowed = {"POSTBACK_EGRESS__ALLOW_CALLBACKS": "127.0.0.1/32"}
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert findings("callback-1", "--callback-url", f"http://127.0.0.1:{port}/", **allowed) == []
    found = findings("callback-1", "--callback-url", f"http://127.0.0.1:{port}/", **allowed)
    assert told(found, "cannot be reached: 127.0.0.1 refuses connections", "start it")


def test_low_limits_of_the_machine_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(check_memory()) == []
    for name, content in (("sys/fs/cgroup/memory.max", str(128 * 1024 * 1024)), ("proc/self/cgroup", "0::/\n")):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1024))
    assert [found.problem for found in (*check_memory(tmp_path), *check_files_limit())] == [
        "the memory limit is 128 MiB, and a process needs 320 MiB",
        "a process here may open 1024 files, and 4096 are needed",
    ]
    for free, level in ((100, FindingLevel.FAULT), (1024, FindingLevel.WARNING)):
        bytes_free = free * 1024 * 1024
        [found] = check_disk({"POSTBACK_STORE__URL": tmp_path / "none"}, {tmp_path: bytes_free}.__getitem__)
        assert (found.level, found.problem) == (level, f"the disk of POSTBACK_STORE__URL has {free} MiB free")
        assert str(tmp_path) in found.fix
    assert list(check_disk({"x": tmp_path}, lambda _: 1 << 40)) == []


def test_an_old_broker_and_its_settings_are_named() -> None:
    assert list(broker_findings(1, (4, 3), {"offsets.retention.minutes": "20160"})) == []
    config = {"offsets.retention.minutes": "60", "group.coordinator.rebalance.protocols": "classic"}
    [old, classic, forgetful] = broker_findings(1, (3, 9), config)
    assert old == fault(
        "broker 1 runs Kafka 3.9, whose groups cannot be joined", "upgrade it to Apache Kafka 4.0 or later"
    )
    assert classic.fix == "set group.coordinator.rebalance.protocols=classic,consumer on the brokers"
    assert forgetful.fix == "set offsets.retention.minutes=10080 on the brokers"


def test_a_check_that_hangs_or_raises_is_a_finding_and_holds_up_no_other() -> None:
    def raise_secret() -> list[Finding]:
        raise ValueError(SECRET)

    def hang() -> list[Finding]:
        threading.Event().wait(30)
        return []

    done = examine(
        [
            *(Check("hangs", hang), Check("raises", raise_secret), Check("sound", list)),
            *(Check("later", list, needs="sound"), Check("skipped", list, needs="raises")),
        ],
        seconds=0.5,
    )
    said = {each.check: [finding.problem for finding in each.findings] for each in done}
    assert said == {
        "hangs": ["this check had no end after 0.5 s"],
        "raises": ["this check itself failed (ValueError)"],
        "sound": [],
        "later": [],
        "skipped": [],
    }
    assert [each.check for each in done if each.skipped] == ["skipped"]


def test_every_role_needs_the_acls_of_the_document() -> None:
    by_role = {"worker": "worker", "delivery": "deliver", "gateway": "gateway", "exporter": "exporter"}
    named = {
        (by_role[each.role], each.name, frozenset(may.upper() for may in each.operations))
        for each in documented_names()
        if each.on == "topic" and each.role in by_role
    }
    assert named == {(role, topic, may) for role, topics in NEEDED.items() for topic, may in topics.items()}


NOISE = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)
LOCAL = [name for name in names() if not name.endswith("*") and "BOOTSTRAP" not in name and "REDIS" not in name]


@given(st.dictionaries(st.sampled_from(LOCAL), NOISE, max_size=6), st.binary(max_size=300), NOISE)
@settings(max_examples=drawn(20), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_noise_in_variables_and_files_is_a_finding_and_never_a_defect(
    tmp_path: Path, variables: dict[str, str], content: bytes, url: str
) -> None:
    file = tmp_path / "noise"
    file.write_bytes(content)
    files = {
        "POSTBACK_KEYRING": str(file),
        "POSTBACK_TRUST__SECRET_FILE": str(file),
        "POSTBACK_DELIVERY__CA_FILE": str(file),
        "POSTBACK_STORE__URL": f"sqlite:///{file}",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("POSTBACK_")]:
            patch.delenv(name)
        for name, value in {**files, **variables}.items():
            patch.setenv(name, value)
        every = checks(("worker", "deliver", "gateway"), (url,), Door((file,), file, url), "vllm", url or None)
        local = [check for check in every if check.needs is None and check.name != "brokers"]
        problems = [finding.problem for each in examine(local) for finding in each.findings]
    assert not [problem for problem in problems if "this check" in problem]


def test_the_key_of_an_engine_does_not_follow_a_redirect_and_any_answer_is_a_finding(server: str) -> None:
    Models.keys.clear()
    [moved] = server_findings(f"{server}/moved", "key-1", "m")
    assert (Models.keys, moved.problem) == (["Bearer key-1"], f"the server at {server} lists no models (302)")
    for path, error in (("deep", "RecursionError"), ("raw", "BadStatusLine")):
        [finding] = server_findings(f"{server}/{path}", None, "m")
        assert finding.problem == f"the server at {server} does not answer ({error})"


def test_an_online_service_without_a_key_is_named() -> None:
    for engine in ("anthropic", "gemini", "responses"):
        variable = f"POSTBACK_ENGINE__{engine.upper()}__API_KEY"
        found = findings("engine", "--engine", engine, "--model", "some")
        assert told(found, f"the engine {engine} has no key", variable), found
        assert findings("engine", "--engine", engine, "--model", "some", **{variable: SECRET}) == []


def test_each_mistake_of_a_model_registry_is_named(tmp_path: Path) -> None:
    path = tmp_path / "models.toml"
    path.write_text('[engines.here]\nkind = "echo"\n[models.small]\nengine = "there"\n[models.big]\nengines = "here"\n')
    found = findings("models", POSTBACK_WORKER__REGISTRY=path)
    assert told(found, "models.small.engine", "`postback models check`"), found
    assert told(found, "models.big", "`postback models check`"), found
    path.write_text('[engines.here]\nkind = "echo"\n[models.small]\nengine = "here"\n')
    assert findings("models", POSTBACK_WORKER__REGISTRY=path) == []
    assert told(findings("models", POSTBACK_WORKER__REGISTRY=tmp_path / "none"), "cannot be read", "correct the file")


# -- words -------------------------------------------------------------------------------------------------------------


def test_a_length_of_time_has_the_unit_that_shows_it() -> None:
    words = {0.2: "0 s", 59.0: "59 s", 60.0: "1.0 min", 3590.0: "59.8 min", 9000.0: "2.5 h"}
    assert {seconds: in_words(seconds) for seconds in words} == words


@given(NOISE)
def test_any_text_of_addresses_is_read_or_refused(text: str) -> None:
    for address in parsed_addresses(text) or []:
        assert 0 < address.port < 65_536
