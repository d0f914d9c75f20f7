"""Helpers for a rig's door: change its parts, keep an audit, limit a tenant, and read lists to their end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from gateway.access.tenant_settings import TenantSettings
from gateway.access.tenants import put_tenant
from gateway.door.app import create_app
from telemetry.audit import Audit
from tests.unit.gateway_rig import Rig


def changed(rig: Rig, *routes: Any, **parts: Any) -> Rig:
    """The rig with these parts of its door instead of the present ones, and with these routes too."""
    door = replace(rig.door, **parts)
    return replace(rig, door=door, app=create_app(door, routes))


@contextmanager
def with_audit(rig: Rig, *routes: Any, **parts: Any) -> Iterator[Rig]:
    """The changed rig, whose requests are lines of `audit.jsonl` in its folder."""
    audit = Audit(rig.folder / "audit.jsonl", rig.clock, "gateway")
    yield changed(rig, *routes, audit=audit, **parts)
    audit.close()


def limit(rig: Rig, tenant: str, **settings: Any) -> None:
    """Write the settings of a tenant."""
    rig.store.write_now(lambda connection: put_tenant(connection, rig.clock, tenant, TenantSettings(**settings)))


async def all_pages(rig: Rig, path: str, key: str, **query: Any) -> list[str]:
    """The ids of a list, read page by page to its end."""
    seen: list[str] = []
    page: dict[str, Any] = {"has_more": True}
    while page["has_more"]:
        after = {"after": page["last_id"]} if seen else {}
        page = (await rig.request("GET", path, key, params={**query, **after})).json()
        seen += [each["id"] for each in page["data"]]
    return seen
