"""AsyncAPI's own parser checks the published AsyncAPI document, and the schemas of all payloads."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.publish.wire_schemas import FOLDER
from tests.node_tools import ASYNCAPI, modules, node

# The first run installs the parser, which takes minutes.
pytestmark = pytest.mark.timeout(1800)

_PROGRAM = Path(__file__).parents[1] / "asyncapi.mjs"
_NEWER_VERSION = "asyncapi-latest-version"
"""The parser's hint that AsyncAPI 3.1 exists."""


def _findings(document: Path) -> list[str]:
    done = subprocess.run(
        [node(), _PROGRAM, modules(ASYNCAPI), document], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return [
        f"{'.'.join(map(str, each['path']))}: {each['message']}" for each in found if each["code"] != _NEWER_VERSION
    ]


def test_asyncapis_own_parser_finds_nothing_in_the_published_document() -> None:
    assert _findings(FOLDER / "asyncapi.yaml") == []


def test_asyncapis_own_parser_finds_a_lost_message_and_a_schema_of_an_unknown_type(tmp_path: Path) -> None:
    document = yaml.safe_load((FOLDER / "asyncapi.yaml").read_text())
    [name, *_] = document["components"]["messages"]
    document["components"]["messages"][name]["payload"] = {"type": "text"}
    [operation, *_] = document["operations"].values()
    operation["messages"] = [{"$ref": "#/components/messages/lost"}]
    for schema in FOLDER.glob("*.json"):
        (tmp_path / schema.name).write_bytes(schema.read_bytes())
    (tmp_path / "asyncapi.yaml").write_text(yaml.safe_dump(document))

    found = "\n".join(_findings(tmp_path / "asyncapi.yaml"))

    assert f"components.messages.{name}.payload.type" in found
    assert "messages.0" in found
