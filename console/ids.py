"""Checks the ids of jobs and callbacks on a command line."""

from __future__ import annotations

from collections.abc import Mapping

from console.errors import BAD_INPUT, fail, named


def check_whose(tenant: str | None, tenants: Mapping[str, set[str]]) -> None:
    """End the command if `tenant` is None and an id belongs to several tenants, since only one of them can be meant.

    `tenants` maps each id to the tenants that have it.
    """
    for name, whose in sorted(tenants.items()):
        if tenant is None and len(whose) > 1:
            raise fail(
                f"{name} is an id of several tenants; name the tenant with --tenant: {named(sorted(whose))}", BAD_INPUT
            )
