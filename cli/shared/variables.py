"""Finds environment variables that look like settings and that no process reads: misspelt names.

A process would silently ignore a misspelt setting and run with the default, perhaps on another Kafka. A file lists the
valid names, so that commands need not import every settings class. (The base install lacks packages that some of the
classes need.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic_settings import BaseSettings

PREFIX = "POSTBACK_"
_PUBLISHED = Path(__file__).with_name("published") / "variables.txt"
_LIKE_ENOUGH = 0.75
_OF_A_SERVICE = re.compile(r"(?P<service>POSTBACK_.+?)_(SERVICE_HOST|SERVICE_PORT|PORT)(_[A-Z0-9_]+)?")
"""The variables that Kubernetes sets in every pod for a Service whose name begins with `postback-`."""

ROOMS = {
    "schemas.settings:FleetSettings": "every process and command",
    "workers.inference.settings:WorkerSettings": "workers",
    "workers.engines.registry:engine_settings": "workers",
    "workers.enrichment.settings:EnrichmentSettings": "workers",
    "workers.enrichment.settings:SearchSettings": "workers",
    "workers.enrichment.settings:PayloadSettings": "workers",
    "workers.enrichment.settings:CacheSettings": "workers and `postback cache`",
    "workers.screening.loading:ScreeningSettings": "workers and the gateway",
    "workers.system.deltas:DeltaSettings": "workers and the gateway",
    "workers.egress.settings:EgressSettings": "workers and delivery",
    "workers.delivery.settings:DeliverySettings": "delivery, also in a worker `--with-delivery`",
    "cli.operations.exporter.replicas:ExporterSettings": "the exporter",
    "gateway.door.settings:GatewaySettings": "the gateway",
    "gateway.store.settings:StoreSettings": "the gateway",
    "gateway.access.settings:AccessSettings": "the gateway",
    "gateway.blobs.settings:FilesSettings": "the gateway",
    "cli.shared.gateway_settings:GatewayClientSettings": "commands with `--gateway`",
}
"""Each settings class, or the function that makes it, with the processes that read it, as text."""


def settings_class(room: str) -> type[BaseSettings]:
    """Import a settings class of ROOMS. Raises ModuleNotFoundError if the extra that it needs is not installed."""
    module, _, name = room.partition(":")
    made = getattr(import_module(module), name)
    found: type[BaseSettings] = made if isinstance(made, type) else made()
    return found


def known_variables() -> list[str]:
    """The names of all settings; a name that ends in `*` is a prefix."""
    return _PUBLISHED.read_text(encoding="utf-8").split()


def complaints(environment: Mapping[str, str]) -> list[str]:
    """Return a line for each variable with Postback's prefix that no process reads. The line shows no value."""
    ours = sorted(name for name in environment if name.upper().startswith(PREFIX))
    known = known_variables() if ours else []
    names = {name for name in known if not name.endswith("*")}
    beginnings = (*(name.removesuffix("*") for name in known if name.endswith("*")), *_of_other_packages(ours))
    return [
        f"{name} is ignored: {_meant(name.upper(), names)}"
        for name in ours
        if name.upper() not in names
        and not name.upper().startswith(beginnings)
        and not _is_of_a_service(name, environment)
    ]


def _meant(name: str, names: set[str]) -> str:
    from difflib import get_close_matches

    tails = {each.removeprefix(PREFIX): each for each in names}
    near = get_close_matches(name.removeprefix(PREFIX), tails, 1, _LIKE_ENOUGH)
    return f"no setting has that name; {tails[near[0]]} may be meant" if near else "no setting has that name"


def _of_other_packages(ours: list[str]) -> list[str]:
    """Prefixes of the variables that other packages' search providers read."""
    if not any(name.startswith("POSTBACK_SEARCH__") for name in ours):
        return []
    from importlib.metadata import entry_points

    return [f"POSTBACK_SEARCH__{point.name.upper()}__" for point in entry_points(group="postback.search")]


def _is_of_a_service(name: str, environment: Mapping[str, str]) -> bool:
    found = _OF_A_SERVICE.fullmatch(name)
    return found is not None and f"{found['service']}_SERVICE_HOST" in environment
