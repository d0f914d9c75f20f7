"""The index templates and ILM policies of `deploy/filebeat/`, compared with ECS and with our log lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from telemetry.audit import DATASET, Audit, AuditEvent
from telemetry.clock import SystemClock
from tests.ecs import LOG_REQUIRED, TYPES
from tests.log_store import CONFIGURATION

LOGS = {*LOG_REQUIRED, "log.logger", "process.pid", "event.action", "trace.id", "span.id"} | {
    "error.type",
    "error.message",
    "error.stack_trace",
}
STREAMS = {"logs": "postback", "audit": DATASET}


def file(name: str) -> Any:
    return json.loads((CONFIGURATION / name).read_text())


def mapped(properties: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each field of a mapping, with its type."""
    for name, field in properties.items():
        if "properties" in field:
            yield from mapped(field["properties"], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field["type"]


@pytest.mark.parametrize("kind", STREAMS)
def test_a_template_maps_each_field_to_its_ecs_type_and_our_own_fields_to_one_that_takes_any_value(kind: str) -> None:
    fields = dict(mapped(file(f"{kind}.template.json")["template"]["mappings"]["properties"]))
    assert fields.pop("postback") == "flattened"
    assert fields == {name: TYPES[name] for name in fields}


def test_the_templates_map_every_field_that_our_lines_have(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.jsonl", SystemClock(), "gateway")
    audit.record(AuditEvent("createJobs", "creation", True, "key_1", "acme", ["j"], ["0"], 202, "req_1", "192.0.2.1"))
    audit.close()
    of_the_audit = {
        name for name in json.loads((tmp_path / "audit.jsonl").read_text()) if not name.startswith("postback.")
    }
    for kind, needed in {"logs": LOGS, "audit": of_the_audit}.items():
        fields = dict(mapped(file(f"{kind}.template.json")["template"]["mappings"]["properties"]))
        assert sorted(needed - fields.keys()) == [], kind


@pytest.mark.parametrize(("kind", "dataset"), STREAMS.items())
def test_a_data_stream_has_its_own_template_and_its_own_retention(kind: str, dataset: str) -> None:
    template, policy = file(f"{kind}.template.json"), file(f"{kind}.policy.json")["policy"]
    assert template["index_patterns"] == [f"logs-{dataset}-*"]
    assert template["template"]["settings"]["index.lifecycle.name"] == f"postback-{kind}"
    assert f"dataset: {dataset}, namespace" in (CONFIGURATION / "filebeat.yml").read_text()
    assert policy["phases"]["delete"]["min_age"] == {"logs": "30d", "audit": "400d"}[kind]
    assert "rollover" in policy["phases"]["hot"]["actions"]
