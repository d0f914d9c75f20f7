"""Rewrites `schemas/published/`: `python -m schemas.publish`. A development tool: PyYAML is in the dev extra."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from schemas import asyncapi
from schemas.control import JobControl
from schemas.endpoint import EndpointRecord
from schemas.event import Event
from schemas.job import Job, WireModel
from schemas.result import Result
from schemas.worker import WorkerAnnouncement

FOLDER = Path(__file__).parent / "published"

_MODELS: dict[str, type[WireModel]] = {
    "job": Job,
    "result": Result,
    "event": Event,
    "endpoint": EndpointRecord,
    "control": JobControl,
    "worker": WorkerAnnouncement,
}
_NULL: dict[str, Any] = {"type": "null"}
_ONE_QUESTION = [
    {
        "required": ["prompt"],
        "properties": {"prompt": {"type": "string"}, "messages": _NULL, "embed": _NULL, "dimensions": _NULL},
    },
    {
        "required": ["messages"],
        "properties": {"messages": {"type": "array"}, "prompt": _NULL, "embed": _NULL, "dimensions": _NULL},
    },
    {
        "required": ["embed"],
        "properties": {
            "embed": {"type": "array"},
            **dict.fromkeys(("prompt", "messages", "sources", "response_format", "reasoning"), _NULL),
            "stop": {"maxItems": 0},
            "raw": {"const": False},
        },
    },
]
"""Job's validator as JSON Schema: exactly one of three fields is set, and `embed` allows few other fields."""


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


class _PlainDumper(yaml.SafeDumper):
    """Writes repeated values out, without YAML's anchors."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _schema(name: str, model: type[WireModel]) -> dict[str, Any]:
    extra: dict[str, Any] = {"oneOf": _ONE_QUESTION} if model is Job else {}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:postback:schema:{name}:1",
        **model.model_json_schema(),
        **extra,
    }


if __name__ == "__main__":
    main()
