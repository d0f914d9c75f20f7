"""Enrichment's settings in the documents, and the operator's contact in the user agent."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from workers.enrichment.settings import EnrichmentSettings

DEPLOY = Path(__file__).parents[2] / "docs" / "DEPLOY.md"
ROW = re.compile(r"^\| `POSTBACK_ENRICHMENT__[^|]*\|[^|]*\|$", re.MULTILINE)


@pytest.mark.parametrize("name", EnrichmentSettings.model_fields)
def test_each_setting_stands_in_a_table_with_its_default(name: str) -> None:
    default = EnrichmentSettings.model_fields[name].default
    rows = [row for row in ROW.findall(DEPLOY.read_text()) if f"__{name.upper()}`" in row]
    assert len(rows) == 1
    if default is not None:
        shown = f"{default:g}" if isinstance(default, float) else str(default)
        assert f"`{shown}`".lower() in rows[0].lower()


@pytest.mark.parametrize(
    ("contact", "header"),
    [
        (None, "Postback/0.1"),
        ("ops@example.com", "Postback/0.1 (ops@example.com)"),
        ("https://example.com/bot?x=1", "Postback/0.1 (https://example.com/bot?x=1)"),
    ],
)
def test_the_contact_is_part_of_how_we_name_ourselves(contact: str | None, header: str) -> None:
    assert EnrichmentSettings(contact=contact).named == header


@pytest.mark.parametrize(
    "contact", ["nobody", "a b@example.com", "ftp://example.com", "x@y\r\nHost: z", "(x@y)", "ü@x.y"]
)
def test_a_text_that_is_no_address_is_no_contact(contact: str) -> None:
    with pytest.raises(ValidationError):
        EnrichmentSettings(contact=contact)
