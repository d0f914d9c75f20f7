"""The fleet's log lines in a real log store, brought there by a real Filebeat with the configuration that we ship."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.ecs import REQUIRED, problems
from tests.integration.deployment import compose_model
from tests.integration.gateway.gateway_process import gateway_process
from tests.log_store import LogStore, filebeat_command, shipping
from tests.product import Product, eventually

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
def test_one_job_is_followed_by_its_id_from_the_door_to_its_callback(product: Product, tmp_path: Path) -> None:
    audit = tmp_path / "audit.jsonl"
    product.callbacks.up()
    product.callbacks.tenants = ("acme",)
    with (
        LogStore(tmp_path / "store") as store,
        gateway_process(product, POSTBACK_GATEWAY__AUDIT_FILE=str(audit), **DEBUG) as gateway,
        shipping(store, tmp_path / "filebeat", logs=f"{product.folder}/*.log", audit=str(audit)),
    ):
        roles = [product.worker("w", **DEBUG), product.deliver("d", **DEBUG), product.exporter("e", **DEBUG)]
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

        written = sum(len(role.lines()) for role in product.roles)  # each is ECS
        eventually(
            lambda: len(store.found('"data_stream.dataset":=postback')) == written, 30, "not every line is stored"
        )
        [submitted] = store.found('"data_stream.dataset":="postback.audit" "event.action":=createJobs')
        assert (submitted["organization.id"], submitted["postback.objects"]) == ("acme", f'["{job_id}"]')
        assert [problems(line, REQUIRED) for line in audit.read_text().splitlines()] == [[]]
        assert store.found("zebrafish") == store.found('"error.type":=json') == []


def test_lines_of_containers_arrive_and_a_line_that_is_no_json_is_kept_as_it_is(tmp_path: Path) -> None:
    now = "2026-11-27T10:00:00Z"
    (tmp_path / "postback.log").write_text(f"{OF_A_CONTAINER % now}\n")
    (tmp_path / "crash.log").write_text("Fatal Python error: Segmentation fault\n")
    files = {"containers": f"{tmp_path}/postback.log", "logs": f"{tmp_path}/crash.log"}
    with LogStore(tmp_path / "store") as store, shipping(store, tmp_path / "filebeat", **files):
        eventually(lambda: len(store.found("*")) == 2, 60, lambda: str(store.found("*")))
        assert sorted(line["_msg"] for line in store.found("*")) == [
            "Fatal Python error: Segmentation fault",
            "In a container.",
        ]


def test_compose_ships_the_lines_of_the_roles_containers_and_of_no_other(tmp_path: Path) -> None:
    """Docker writes the labels that a service's `logging` names as `attrs` beside each line of its container."""
    services = compose_model()["services"]
    labelled = [name for name, each in services.items() if "labels" in each.get("logging", {}).get("options", {})]
    assert sorted(labelled) == ["delivery", "exporter", "gateway", "worker", "worker-gpu"]
    line = {"stream": "stderr", "time": "2026-11-27T10:00:00.000000001Z"}
    of_a_role = line | {"attrs": {"com.docker.compose.service": "worker"}}
    (tmp_path / "kafka-json.log").write_text(json.dumps(line | {"log": "Kafka Server started\n"}) + "\n")
    role = tmp_path / "role-json.log"
    role.write_text(json.dumps(of_a_role | {"log": '{"message": "first"}\n'}) + "\n")
    with (
        LogStore(tmp_path / "store") as store,
        shipping(store, tmp_path / "filebeat", *services["filebeat"]["command"], containers=f"{tmp_path}/*-json.log"),
    ):
        eventually(lambda: store.found("first") != [], 60, "no line arrives")
        with role.open("a") as more:  # Kafka's line would arrive before this one
            more.write(json.dumps(of_a_role | {"log": "Fatal Python error: Aborted\n"}) + "\n")
        eventually(lambda: store.found("Aborted") != [], 60, "the second line does not arrive")
        assert sorted(line["_msg"].strip() for line in store.found("*")) == ["Fatal Python error: Aborted", "first"]


def _place(line: dict[str, str]) -> tuple[str, str]:
    return line["service.name"], line["event.action"]
