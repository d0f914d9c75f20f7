"""`scripts/sbom`: a valid bill of materials that names each pinned package of the images."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

ROOT = Path(__file__).parents[2]
PINNED = re.compile(r"^([a-z0-9-]+)(?:\[[a-z,]*\])?==([^ ;]+)", re.MULTILINE)


def printed() -> str:
    return subprocess.run([ROOT / "scripts" / "sbom"], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def text() -> str:
    return printed()


def test_each_pinned_package_is_named_with_its_hashes_in_a_valid_document(text: str) -> None:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    document = json.loads(text)
    pinned = dict(PINNED.findall((ROOT / "requirements" / "worker.txt").read_text()))
    assert pinned
    assert {each["name"]: each["version"] for each in document["components"]} == pinned
    assert all(each["externalReferences"][0]["hashes"] for each in document["components"])
    assert document["metadata"]["component"]["name"] == "postback"


def test_the_same_commit_gives_the_same_bytes(text: str) -> None:
    assert printed() == text
