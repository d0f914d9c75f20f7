"""Ids of jobs and callbacks that a command is given."""

from __future__ import annotations

from collections.abc import Mapping

from console.errors import BAD_INPUT, fail, named


def check_whose(tenant: str | None, tenants: Mapping[str, set[str]]) -> None:
    """An id is a tenant's own: two may have the same, and whoever names one means one. Ends the command where not.

    `tenant`: who was named beside the ids. `tenants`: whose each of them was found to be.
    """
    for name, whose in sorted(tenants.items()):
        if tenant is None and len(whose) > 1:
            raise fail(
                f"{name} is an id of several tenants, so say whose with --tenant: {named(sorted(whose))}", BAD_INPUT
            )
