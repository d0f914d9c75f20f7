"""`postback tenants`: allow-lists, rates and quotas of the gateway's tenants."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from cli.fleet.gateway_store import StoreUrl, opened_store
from cli.shared.audited import audited
from cli.shared.errors import BAD_INPUT, FAILED, fail, say
from cli.shared.settings import checked_tenant

if TYPE_CHECKING:
    from gateway.access.tenant_settings import TenantSettings

app = typer.Typer(no_args_is_help=True, help="Set the allowed models and callbacks, rates and quotas of tenants.")

Name = Annotated[str, typer.Argument(metavar="TENANT", help="The tenant's name.")]
_MOST_BYTES = 1024 * 1024


@app.command()
def put(
    tenant: Name,
    settings: Annotated[str, typer.Argument(metavar="JSON|-", help="The settings as JSON; - reads standard input.")],
    store: StoreUrl = None,
) -> None:
    """Write a tenant's settings, which replace earlier ones. An absent field sets no limit.

    Fields: models, callback_domains (`hooks.example.com`, `*.example.com`), requests_per_second,
    key_requests_per_second, queued_lines, queued_tokens. Running gateways use the settings within
    five seconds.
    """
    from telemetry.clock import SystemClock

    tenant = checked_tenant(tenant)
    with opened_store(store) as opened, audited("putTenant", "change", tenant, [tenant]):
        from gateway.access.tenants import put_tenant

        checked = _checked(sys.stdin.read(_MOST_BYTES) if settings == "-" else settings)
        opened.change(lambda connection: put_tenant(connection, SystemClock(), tenant, checked))
    say(f"wrote the settings of tenant {tenant}")


@app.command()
def show(tenant: Name, store: StoreUrl = None) -> None:
    """Show a tenant's settings as JSON."""
    with opened_store(store) as opened:
        from gateway.access.tenants import find_tenant

        found = opened.read(lambda connection: find_tenant(connection, tenant))
    if found is None:
        raise fail(f"tenant {tenant} has no settings of its own; POSTBACK_ACCESS__TENANT_DEFAULTS applies", FAILED)
    typer.echo(found.model_dump_json(exclude_none=True))


@app.command("list")
def list_tenants(store: StoreUrl = None) -> None:
    """List the tenants that have settings of their own, each with its settings as JSON."""
    with opened_store(store) as opened:
        from gateway.access.tenants import listed_tenants

        after = None
        while page := opened.read(partial(listed_tenants, after=after)):
            after = page[-1][0]
            for name, settings in page:
                typer.echo(f"{name}  {settings.model_dump_json(exclude_none=True)}")


@app.command()
def remove(tenant: Name, store: StoreUrl = None) -> None:
    """Remove a tenant's settings, so that the defaults apply. Its keys and jobs stay."""
    with opened_store(store) as opened, audited("deleteTenant", "deletion", tenant, [tenant]):
        from gateway.access.tenants import remove_tenant

        removed = opened.change(lambda connection: remove_tenant(connection, tenant))
        if not removed:
            raise fail(f"tenant {tenant} has no settings of its own", FAILED)
    say(f"removed the settings of tenant {tenant}; POSTBACK_ACCESS__TENANT_DEFAULTS applies")


def _checked(text: str) -> TenantSettings:
    from pydantic import ValidationError

    from gateway.access.tenant_settings import TenantSettings

    try:
        return TenantSettings.model_validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"])) or "the settings"
        raise fail(f"{place}: {first['msg'].removeprefix('Value error, ')}", BAD_INPUT) from None
