"""Each value of the chart is explained and known to the schema; the reference page is made of the values."""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from console.chart_reference import (
    CHART,
    ChartValue,
    ValueUnexplained,
    chart_values,
    page,
    special_networks,
)
from workers.egress.addresses import SPECIAL_IPV4, SPECIAL_IPV6

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALUES = (CHART / "values.yaml").read_text()
FREE = ("global",)
"""Values that Helm itself defines, which values.yaml need not contain."""


def names_of(schema: dict[str, Any]) -> set[str]:
    """Return the properties that a schema lists, through its references."""
    if "$ref" in schema:
        found: Any = SCHEMA
        for step in schema["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        return names_of(found)
    listed = set(schema.get("properties", {}))
    return listed.union(*(names_of(each) for each in schema.get("allOf", [])))


def property_of(schema: dict[str, Any], name: str) -> dict[str, Any]:
    if "$ref" in schema:
        found: Any = SCHEMA
        for step in schema["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        return property_of(found, name)
    for each in (schema, *schema.get("allOf", [])):
        if each is not schema and name in names_of(each):
            return property_of(each, name)
    own: dict[str, Any] = schema["properties"][name]
    return own


def sections() -> Iterator[tuple[str, dict[str, Any], Any]]:
    """Yield each section of values.yaml with its schema and its defaults."""
    yield "", SCHEMA, yaml.safe_load(VALUES)
    for value in (each for each in chart_values(VALUES) if each.is_section):
        schema = SCHEMA
        for name in value.path:
            schema = property_of(schema, name)
        yield ".".join(value.path), schema, value.default


def test_the_schema_knows_exactly_the_values_that_have_defaults() -> None:
    for where, schema, defaults in sections():
        assert names_of(schema) - set(FREE) == set(defaults), where or "values.yaml"


def test_every_value_stands_on_the_page_once() -> None:
    lines = page(VALUES).splitlines()

    for value in chart_values(VALUES):
        if not value.is_section:
            rows = [line for line in lines if line.startswith(f"| `{'.'.join(value.path)}` |")]
            assert len(rows) == 1, value.path


def test_a_value_without_a_comment_is_an_error() -> None:
    with pytest.raises(ValueUnexplained, match=r"a\.c has no comment"):
        list(chart_values("# A section.\na:\n  # Explained.\n  b: 1\n  c: 2\n"))


def test_a_mapping_without_comments_inside_is_one_value() -> None:
    text = "# Requests.\nresources:\n  requests: {cpu: 1}\n  limits: {cpu: 2}\n"

    [value] = [each for each in chart_values(text) if each.meaning]
    assert value == ChartValue(
        ("resources",), "Requests.", {"requests": {"cpu": 1}, "limits": {"cpu": 2}}, is_section=False
    )


@given(st.ip_addresses(v=4) | st.ip_addresses(v=6))
def test_the_charts_special_networks_hold_each_address_that_the_guards_tables_hold(address: Any) -> None:
    held = any(address in ip_network(cidr) for cidrs in special_networks().values() for cidr in cidrs)
    tabled = any(address in ip_network(cidr) for cidr, _ in (*SPECIAL_IPV4, *SPECIAL_IPV6))

    outside = address.version == 6 and address not in ip_network("2000::/3")
    assert held == (tabled or outside)


@pytest.mark.parametrize("cidr", [cidr for cidr, _ in (*SPECIAL_IPV4, *SPECIAL_IPV6)])
def test_both_ends_of_each_network_of_the_guard_are_closed(cidr: str) -> None:
    network = ip_network(cidr)

    for end in (network[0], network[-1]):
        assert any(ip_address(end) in ip_network(each) for each in special_networks()[f"ipv{network.version}"])
