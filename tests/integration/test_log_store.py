"""The fleet's log lines in a real log store, brought there by a real Filebeat with the configuration that we ship."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.publish.reference import ROOT
from tests.debian_package import unpacked
from tests.ecs import REQUIRED, problems
from tests.integration.deployment import compose_model
from tests.integration.gateway.gateway_process import Gateway, running_gateway
from tests.log_store import LogStore, filebeat_command, shipping
from tests.otel_collector import OtelCollector, running_collector
from tests.postback_command import POSTBACK
from tests.product import Product, eventually

pytestmark = pytest.mark.timeout(1_800)  # the first test builds Filebeat and VictoriaLogs, which takes minutes

PROMPT = "Which zebrafish swims fastest?"
DEBUG = {"POSTBACK_LOG_LEVEL": "DEBUG"}
OF_A_CONTAINER = (
    '2026-11-27T10:00:00.000000001Z stderr F {"@timestamp": "%s", "message": "In a container.", "log.level": "info"}'
)


def test_filebeat_accepts_the_configuration_as_it_stands(tmp_path: Path) -> None:
    done = subprocess.run(
        filebeat_command(tmp_path, "test", "config", "--strict.perms=false"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "Config OK\n")


@pytest.mark.broker
def test_one_job_is_followed_by_its_id_from_the_door_to_its_callback(
    product: Product, tmp_path: Path, show: Callable[[str], None]
) -> None:
    audit = tmp_path / "audit.jsonl"
    product.callbacks.up()
    product.callbacks.tenants = ("acme",)
    (tmp_path / "collector").mkdir()
    with (
        LogStore(tmp_path / "store") as store,
        running_collector(tmp_path / "collector") as collector,
        running_gateway(product, POSTBACK_GATEWAY__AUDIT_FILE=str(audit), **telling(collector)) as gateway,
        shipping(store, tmp_path / "filebeat", logs=f"{product.folder}/*.log", audit=str(audit)),
    ):
        told = telling(collector)
        roles = [product.worker("w", **told), product.deliver("d", **told), product.exporter("e", **told)]
        job = {"prompt": PROMPT, "callback_url": product.callbacks.url}
        job_id = gateway.post("/v1/jobs", gateway.key(), json=job).json()["id"]

        path = [("gateway", "job-accepted"), ("worker", "job-ended"), ("deliver", "callback-delivered")]
        eventually(
            lambda: [_place(line) for line in store.found(f'"postback.job_id":={job_id}')] == path,
            120,
            lambda: f"{store.found(job_id)}\n{product.last_lines()}",
        )
        eventually(lambda: len(store.found(f'"postback.objects":"{job_id}"')) == 1, 30, "the audit line is not there")
        assert [role.terminate() for role in [*roles, gateway.role]] == [0, 0, 0, 0]

        written = sum(len(role.lines()) for role in product.roles)  # `lines` fails if a line is not ECS
        eventually(
            lambda: len(store.found('"data_stream.dataset":=postback')) == written, 30, "not every line is stored"
        )
        [submitted] = store.found('"data_stream.dataset":="postback.audit" "event.action":=createJobs')
        assert (submitted["organization.id"], submitted["postback.objects"]) == ("acme", f'["{job_id}"]')
        assert [problems(line, REQUIRED) for line in audit.read_text().splitlines()] == [[]]
        assert store.found("zebrafish") == store.found('"error.type":=json') == []

        began = time.monotonic()
        told_by_store, told_by_lines, told_by_spans = followed(job_id, gateway, store, collector)
        show(f"the three commands that follow one job took {time.monotonic() - began:.1f} s together")
        assert f"job        {job_id}, tenant acme, succeeded\n" in told_by_store
        assert "attempt 1 to http://127.0.0.1" in told_by_store
        lines = [json.loads(line) for line in told_by_lines.splitlines()]
        assert {_place(line) for line in lines} >= {*path, ("gateway", "createJobs")}
        assert lines == sorted(lines, key=lambda line: line["_time"])
        spans = [line.split("\t") for line in told_by_spans.splitlines()]
        assert spans[0][1:3] == ["gateway", "POST /v1/jobs"]
        assert {(service, name) for _, service, name, _ in spans} >= {("worker", "infer"), ("deliver", "POST callback")}
        assert min(float(milliseconds) for *_, milliseconds in spans) >= 0


def test_lines_of_containers_arrive_and_a_line_that_is_no_json_is_kept_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "postback.log").write_text(f"{OF_A_CONTAINER % _now()}\n")
    (tmp_path / "crash.log").write_text("Fatal Python error: Segmentation fault\n")
    files = {"containers": f"{tmp_path}/postback.log", "logs": f"{tmp_path}/crash.log"}
    with LogStore(tmp_path / "store") as store, shipping(store, tmp_path / "filebeat", **files):
        eventually(lambda: len(store.found("*")) == 2, 60, lambda: str(store.found("*")))
        assert sorted(line["_msg"] for line in store.found("*")) == [
            "Fatal Python error: Segmentation fault",
            "In a container.",
        ]


def test_compose_ships_the_lines_of_the_roles_containers_and_of_no_other(tmp_path: Path) -> None:
    """Beside each line of a container, Docker writes `attrs`: the labels that the service's `logging` names."""
    services = compose_model()["services"]
    labelled = [name for name, each in services.items() if "labels" in each.get("logging", {}).get("options", {})]
    assert sorted(labelled) == ["delivery", "exporter", "gateway", "worker", "worker-gpu"]
    line = {"stream": "stderr", "time": _now()}
    of_a_role = line | {"attrs": {"com.docker.compose.service": "worker"}}
    (tmp_path / "kafka-json.log").write_text(json.dumps(line | {"log": "Kafka Server started\n"}) + "\n")
    role = tmp_path / "role-json.log"
    role.write_text(json.dumps(of_a_role | {"log": '{"message": "first"}\n'}) + "\n")
    with (
        LogStore(tmp_path / "store") as store,
        shipping(store, tmp_path / "filebeat", *services["filebeat"]["command"], containers=f"{tmp_path}/*-json.log"),
    ):
        eventually(lambda: store.found("first") != [], 60, "no line arrives")
        with role.open("a") as more:  # Kafka's line, if it were sent, would arrive before this one
            more.write(json.dumps(of_a_role | {"log": "Fatal Python error: Aborted\n"}) + "\n")
        eventually(lambda: store.found("Aborted") != [], 60, "the second line does not arrive")
        assert sorted(line["_msg"].strip() for line in store.found("*")) == ["Fatal Python error: Aborted", "first"]


def test_compose_ships_the_audit_to_a_store_of_its_own_and_nowhere_else(tmp_path: Path) -> None:
    services = compose_model()["services"]
    said = {"stream": "stderr", "time": _now(), "attrs": {"com.docker.compose.service": "gateway"}}
    of_the_audit = {"message": "audit line", "event.dataset": "postback.audit"}
    lines = [{"message": "log line", "event.dataset": "postback"}, of_the_audit, {"message": "last line"}]
    text = "".join(json.dumps(said | {"log": json.dumps(line) + "\n"}) + "\n" for line in lines)
    (tmp_path / "gateway-json.log").write_text(text)
    (tmp_path / "other-json.log").write_text(json.dumps(said | {"log": json.dumps(of_the_audit) + "\n"}) + "\n")
    containers = f"{tmp_path}/*-json.log"
    with (
        LogStore(tmp_path / "logs") as logs,
        LogStore(tmp_path / "audit") as audit,
        shipping(logs, tmp_path / "f", *services["filebeat"]["command"], containers=containers),
        shipping(audit, tmp_path / "fa", *services["filebeat-audit"]["command"], containers=containers),
    ):
        eventually(lambda: len(logs.found("*")) == 2, 60, lambda: str(logs.found("*")))
        eventually(lambda: len(audit.found("*")) == 2, 60, lambda: str(audit.found("*")))
        assert sorted(line["_msg"] for line in logs.found("*")) == ["last line", "log line"]
        assert [line["_msg"] for line in audit.found("*")] == 2 * ["audit line"]


def _now() -> str:
    """The present time: `found` asks the store for the lines of the last day."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def telling(collector: OtelCollector) -> dict[str, str]:
    """The variables of a process that logs every step, and sends its spans to this collector."""
    return {**DEBUG, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}


def followed(job_id: str, gateway: Gateway, store: LogStore, collector: OtelCollector) -> list[str]:
    """Follow a job by the commands of docs/OPERATIONS.md; return their outputs, and the `trace.id` of the log lines."""
    page = (ROOT / "docs" / "OPERATIONS.md").read_text()
    [block] = re.findall(r"^Follow one job .*?^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    here = {"http://127.0.0.1:9428": store.url, "JOB": job_id, "spans.jsonl": str(collector.file)}
    env, outputs = gateway.environment() | with_programs(), list[str]()
    for command in re.split(r"^(?=postback |curl |jq )", block, flags=re.MULTILINE)[1:]:
        for name, value in here.items():
            command = command.replace(name, value)
        done = subprocess.run(["bash", "-o", "pipefail", "-c", command], env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        outputs.append(done.stdout)
        if found := re.findall(r'"trace.id":"([0-9a-f]{32})"', done.stdout):
            [here["TRACE"]] = set(found)
    return outputs


def with_programs() -> dict[str, str]:
    """The environment in which a shell finds `postback` and `jq`, which comes from Debian's packages if need be."""
    folders = [str(POSTBACK.parent), os.environ["PATH"]]
    if shutil.which("jq"):
        return {"PATH": ":".join(folders)}
    packages = [unpacked(name) for name in ("jq", "libjq1", "libonig5")]
    libraries = [str(folder) for package in packages for folder in package.glob("usr/lib/*-linux-gnu")]
    return {"PATH": ":".join([str(packages[0] / "usr" / "bin"), *folders]), "LD_LIBRARY_PATH": ":".join(libraries)}


def _place(line: dict[str, str]) -> tuple[str, str]:
    return line["service.name"], line["event.action"]
