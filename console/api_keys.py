"""`postback api-keys`: the credentials of the HTTP API."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from console.errors import BAD_INPUT, fail, needing, say, telling
from console.settings import checked_settings, checked_tenant

app = typer.Typer(no_args_is_help=True, help="Create, list and revoke the API keys of tenants.")

StoreUrl = Annotated[
    str | None, typer.Option("--store", help="The gateway's database; POSTBACK_STORE__URL by default.")
]


@app.callback()
def group() -> None:
    """Keep `create` a subcommand while it is the only one."""


@app.command()
def create(
    tenant: Annotated[str, typer.Option("--tenant", help="The tenant whose work the key submits and reads.")],
    scopes: Annotated[str | None, typer.Option("--scopes", help="The key's scopes, with commas.")] = None,
    store: StoreUrl = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Create an API key and print it. The key is shown once; the store keeps only its digest."""
    with needing("gateway"):
        from gateway.access.access import Access
        from gateway.access.principal import DEFAULT_SCOPES, Scope
        from gateway.store.settings import StoreSettings
        from gateway.store.store import Store, StoreAway
    from telemetry.clock import SystemClock

    tenant = checked_tenant(tenant)
    try:
        chosen = DEFAULT_SCOPES if scopes is None else frozenset(map(Scope, scopes.split(",")))
    except ValueError:
        raise fail(f"--scopes: choose from {', '.join(Scope)}", BAD_INPUT) from None
    with telling(StoreAway):
        opened = Store.open(store or checked_settings(StoreSettings).url)
        access = Access(opened, SystemClock())
        made = opened.submit(lambda connection: access.create_key(connection, tenant, chosen)).result()
        opened.close()
    if as_json:
        typer.echo(json.dumps({"id": made.id, "key": made.key}))
        return
    say(f"created key {made.id} of tenant {tenant}; it is shown once")
    typer.echo(made.key)
