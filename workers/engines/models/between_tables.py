"""Checks of the registry's tables against each other.

They read the raw tables, so that a mistake inside a table hides no mistake between that table and other tables. Values
of a wrong type are skipped here, since the table's own check reports them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from workers.engines import ENGINES
from workers.engines.models.mistakes import listed, nearest, quoted
from workers.engines.settings import EngineSettings

Found = tuple[tuple[str, ...], str]
"""A mistake's path in the file, and its text."""


def mistakes_between(
    engines: Mapping[str, Any],
    models: Mapping[str, Any],
    settings: EngineSettings,
    profiles: Collection[str] | None,
) -> Iterator[Found]:
    """Yield a mistake for each value of `[models]` that does not fit the other tables.

    `profiles` are the known profiles; with None, the tables' profiles are not checked.
    """
    tables = {name: table for name, table in models.items() if isinstance(table, dict)}
    for name, table in tables.items():
        yield from _names_unknown(name, table, engines, profiles)
        yield from _unsupported(name, table, engines, settings)
        yield from _escalation(name, table, models)
    yield from _shared_names(tables)
    yield from _second_in_process(tables, engines)


def _names_unknown(
    name: str, table: Mapping[str, Any], engines: Mapping[str, Any], profiles: Collection[str] | None
) -> Iterator[Found]:
    engine, profile = table.get("engine"), table.get("profile")
    if isinstance(engine, str) and engine not in engines:
        yield ("models", name, "engine"), f"is no table of [engines]: {nearest(engine, engines)}"
    if isinstance(profile, str) and profiles is not None and profile not in profiles:
        yield ("models", name, "profile"), f"is no profile: {nearest(profile, profiles)}"


def _unsupported(
    name: str, table: Mapping[str, Any], engines: Mapping[str, Any], settings: EngineSettings
) -> Iterator[Found]:
    kind = _kind(table, engines)
    if kind is not None:
        for field in settings.section(kind).unsupported(table):
            yield ("models", name, field), f"has no meaning for this engine ({quoted(kind)}); delete it"


def _escalation(name: str, table: Mapping[str, Any], models: Mapping[str, Any]) -> Iterator[Found]:
    escalate = table.get("escalate")
    to = escalate.get("to") if isinstance(escalate, dict) else None
    if not isinstance(to, str):
        return
    path = ("models", name, "escalate", "to")
    if to == name:
        yield path, "is the model itself; name another model"
    elif to not in models:
        yield path, f"is no model: {nearest(to, models)}"
    elif isinstance(models[to], dict) and table.get("lane") != models[to].get("lane"):
        yield path, "is a model of another lane, which this model's workers do not serve; name one of the same lane"


def _shared_names(tables: Mapping[str, Mapping[str, Any]]) -> Iterator[Found]:
    """Yield a mistake for each name that several models claim."""
    claims: defaultdict[str, list[str]] = defaultdict(list)
    for name, table in tables.items():
        aliases = table.get("aliases")
        for claimed in (name, *(aliases if isinstance(aliases, list) else ())):
            if isinstance(claimed, str):
                claims[claimed].append(name)
    for claimed, owners in claims.items():
        if len(owners) > 1:
            reason = (
                f"{quoted(claimed)} is given more than once as a name, by {listed(dict.fromkeys(owners))}; give it once"
            )
            yield ("models", owners[-1], "aliases"), reason


def _second_in_process(tables: Mapping[str, Mapping[str, Any]], engines: Mapping[str, Any]) -> Iterator[Found]:
    """Yield a mistake for each vLLM model after the first of its lane.

    One worker's process would run all vLLM models of the lane on one GPU.
    """
    first: dict[str | None, str] = {}
    for name, table in tables.items():
        lane = table.get("lane")
        if _kind(table, engines) == "vllm" and (lane is None or isinstance(lane, str)):
            owner = first.setdefault(lane, name)
            if owner != name:
                reason = f"is the second vLLM model in one worker, beside {quoted(owner)}; give one another lane"
                yield ("models", name, "engine"), reason


def _kind(table: Mapping[str, Any], engines: Mapping[str, Any]) -> str | None:
    """Return the kind of the engine that a model's table names; None if the file names no known kind."""
    engine = table.get("engine")
    named = engines.get(engine) if isinstance(engine, str) else None
    kind = named.get("kind") if isinstance(named, dict) else None
    return kind if isinstance(kind, str) and kind in ENGINES else None
