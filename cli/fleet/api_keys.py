"""`postback api-keys`: the credentials of the HTTP API."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.fleet.gateway_store import StoreUrl, opened_store
from cli.shared.audited import audited
from cli.shared.errors import BAD_INPUT, FAILED, fail, say
from cli.shared.settings import checked_scopes, checked_tenant
from cli.shared.times import DURATION_HELP, checked_duration

if TYPE_CHECKING:
    from gateway.access.keys import ApiKey

app = typer.Typer(no_args_is_help=True, help="Create, list and revoke the API keys of tenants.")

_LONGEST_LABEL = 256


@app.command()
def create(
    tenant: Annotated[str, typer.Option("--tenant", help="The tenant whose work the key submits and reads.")],
    scopes: Annotated[
        str | None,
        typer.Option(
            "--scopes", help="The key's scopes, separated by commas; by default all scopes of a tenant's key."
        ),
    ] = None,
    expires: Annotated[
        str | None, typer.Option("--expires", help=f"Time for which the key is valid. {DURATION_HELP}")
    ] = None,
    label: Annotated[str | None, typer.Option("--label", help="A name for people, shown in the list.")] = None,
    store: StoreUrl = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Create an API key and print it. The key is shown once: the store keeps only its digest."""
    from telemetry.clock import SystemClock

    tenant, chosen, label = checked_tenant(tenant), checked_scopes(scopes), _checked_label(label)
    seconds = checked_duration("--expires", expires) if expires is not None else None
    clock = SystemClock()
    expires_at = round((clock.time() + seconds) * 1000) if seconds is not None else None
    with opened_store(store) as opened, audited("createKey", "creation", tenant) as objects:
        from gateway.access.keys import create_key

        digests = opened.digests()
        made = opened.change(
            lambda connection: create_key(connection, digests, clock, tenant, chosen, label, expires_at)
        )
        objects.append(made.id)
    if as_json:
        typer.echo(json.dumps({"id": made.id, "key": made.key}))
        return
    say(f"created key {made.id} of tenant {tenant}; it is shown once")
    typer.echo(made.key)


@app.command("list")
def list_keys(
    tenant: Annotated[str | None, typer.Option("--tenant", help="List only this tenant's keys.")] = None,
    store: StoreUrl = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line, for programs.")] = False,
) -> None:
    """List the API keys: id, tenant, scopes, state and last use. The keys themselves are not known to the store."""
    from telemetry.clock import SystemClock

    if tenant is not None:
        tenant = checked_tenant(tenant)
    now_ms = SystemClock().time() * 1000
    with opened_store(store) as opened:
        from gateway.access.keys import listed_keys

        after = None
        while page := opened.read(partial(listed_keys, tenant=tenant, after=after)):
            after = page[-1].id
            for key in page:
                typer.echo(json.dumps(_fields(key)) if as_json else _line(key, now_ms))


@app.command()
def revoke(
    identifier: Annotated[str, typer.Argument(metavar="ID", help="The key's id, as `create` and `list` print it.")],
    store: StoreUrl = None,
) -> None:
    """Revoke an API key for good. Running gateways refuse the key within five seconds."""
    from telemetry.clock import SystemClock

    with opened_store(store) as opened, audited("revokeKey", "deletion", None, [identifier]):
        from gateway.access.keys import revoke_key

        revoked = opened.change(lambda connection: revoke_key(connection, SystemClock(), identifier))
        if revoked is None:
            raise fail(f"no API key has the id {identifier}; `postback api-keys list` shows all ids", FAILED)
    say(f"revoked key {revoked.id} of tenant {revoked.tenant}")


def _checked_label(label: str | None) -> str | None:
    if label is not None and len(label) > _LONGEST_LABEL:
        raise fail(f"--label: at most {_LONGEST_LABEL} characters", BAD_INPUT)
    return label


def _fields(key: ApiKey) -> dict[str, Any]:
    times = {name: getattr(key, name) for name in ("created_at", "expires_at", "revoked_at", "last_used_at")}
    return {"id": key.id, "tenant": key.tenant, "scopes": sorted(key.scopes), "label": key.label, **times}


def _line(key: ApiKey, now_ms: float) -> str:
    from producers.times import show_time

    used = f"used {show_time(key.last_used_at)}" if key.last_used_at is not None else "never used"
    label = f"  {key.label}" if key.label else ""
    return f"{key.id}  {key.tenant}  {key.state(now_ms)}  {','.join(sorted(key.scopes))}  {used}{label}"
