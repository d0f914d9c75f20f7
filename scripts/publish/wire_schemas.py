"""Rewrites `schemas/published/`: `python -m scripts.publish`. A development tool: PyYAML is in the dev extra."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from schemas.bounded import WireModel
from schemas.control import JobControl
from schemas.endpoint import EndpointRecord
from schemas.event import Event
from schemas.job import OF_A_QUESTION, Job
from schemas.kinds import BY_REFERENCE, KINDS, QUESTIONS
from schemas.result import Result
from schemas.worker import WorkerAnnouncement
from scripts.publish import asyncapi
from scripts.publish.client_shapes import client_shapes

FOLDER = Path(__file__).parents[2] / "schemas" / "published"
CLIENT = Path(__file__).parents[2] / "producers" / "postback_client" / "postback_client" / "wire.py"
"""The module of the client library that is made from the schemas."""

_MODELS: dict[str, type[WireModel]] = {
    "job": Job,
    "result": Result,
    "event": Event,
    "endpoint": EndpointRecord,
    "control": JobControl,
    "worker": WorkerAnnouncement,
}
_NULL: dict[str, Any] = {"type": "null"}
_RULES = [
    {
        "if": {"required": ["top_logprobs"], "properties": {"top_logprobs": {"type": "integer"}}},
        "then": {"required": ["logprobs"], "properties": {"logprobs": {"const": True}}},
    },
    {
        "if": {"required": ["n"], "properties": {"n": {"minimum": 2}}},
        "then": {"properties": {"temperature": {"not": {"const": 0}}}},
    },
    {
        "if": {"properties": {"tools": _NULL}},
        "then": {"properties": {"tool_choice": _NULL, "parallel_tool_calls": _NULL}},
        "else": {"properties": {"raw": {"const": False}}},
    },
]
"""The rules of `Job` that span several fields.

JSON Schema cannot state the bound on a product, nor forbid two functions of the same name.
"""


def one_question() -> list[dict[str, Any]]:
    """Return Job's validator as JSON Schema: one of QUESTIONS is set, and a job with texts sets few other fields."""
    properties = Job.model_json_schema()["properties"]
    options = {option: kind.field for kind in KINDS for option in kind.options} | {"payload_sha256": BY_REFERENCE}
    choices = []
    for asked in QUESTIONS:
        absent = [name for name in QUESTIONS if name != asked]
        if asked != BY_REFERENCE:  # a document's question is checked by the worker that reads it
            absent += [option for option, field in options.items() if field != asked]
            absent += OF_A_QUESTION if asked not in ("prompt", "messages") else ()
            absent += ["raw"] if asked != "prompt" else []
        kind = properties[asked]["anyOf"][0].get("type", "object")
        constants = {name: Job.model_fields[name].get_default(call_default_factory=True) for name in absent}
        others = {name: {"const": default} for name, default in constants.items()}
        choices.append({"required": [asked], "properties": {asked: {"type": kind}, **others}})
    return choices


def documents() -> dict[str, str]:
    """Return every published file's text by its name. Equal models always give equal texts."""
    texts = {
        f"{name}.json": json.dumps(_schema(name, model), indent=2, ensure_ascii=False) + "\n"
        for name, model in _MODELS.items()
    }
    return {**texts, "asyncapi.yaml": yaml.dump(asyncapi.document(), Dumper=_PlainDumper, sort_keys=False, width=120)}


def main() -> None:
    """Write the files."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in documents().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    CLIENT.write_text(client_shapes(), encoding="utf-8")


class _PlainDumper(yaml.SafeDumper):
    """Writes repeated values out, without YAML's anchors."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _schema(name: str, model: type[WireModel]) -> dict[str, Any]:
    extra: dict[str, Any] = {"oneOf": one_question(), "allOf": _RULES} if model is Job else {}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:postback:schema:{name}:1",
        **model.model_json_schema(),
        **extra,
    }


if __name__ == "__main__":
    main()
