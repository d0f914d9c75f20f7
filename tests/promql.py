"""The metrics, label values and groupings of a PromQL expression, as promql-parser reads them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from promql_parser import AggModifierType, AggregateExpr, Expr, VectorSelector, parse, walk


@dataclass(frozen=True, slots=True)
class Selector:
    """A metric, and the label values that an expression asks for."""

    metric: str
    values: dict[str, str]


def selectors(query: str) -> list[Selector]:
    """The selectors of an expression. Raises ValueError if it is not PromQL, also if a function gets a wrong type."""
    return [
        Selector(node.name or "", {each.name: each.value for each in node.matchers.matchers})
        for node in _nodes(query)
        if isinstance(node, VectorSelector)
    ]


def kept_labels(query: str) -> set[str] | None:
    """The labels that the outermost aggregation keeps, None if the expression aggregates nothing."""
    for node in _nodes(query):
        if isinstance(node, AggregateExpr):
            assert node.modifier is None or node.modifier.type == AggModifierType.By, query
            return set(node.modifier.labels if node.modifier else ())
    return None


def _nodes(query: str) -> Iterator[Expr]:
    """The nodes, from the outside to the inside."""
    found: list[Expr] = []
    walk(parse(query), found.append)
    return iter(found)
