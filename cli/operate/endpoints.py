"""`postback endpoints`: lists, enables, disables and tests endpoints, and shows the timeline of a callback.

URLs are shown whole, with path and query, because a whole URL identifies an endpoint, and only an operator sees it.
Logs have origins only.
"""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.operate.endpoint_deliveries import deliveries
from cli.operate.endpoint_test import checked_url, test_endpoint
from cli.shared.errors import fail, say
from cli.shared.settings import checked_tenant, fleet_settings
from cli.shared.terminal import harmless

if TYPE_CHECKING:
    from schemas.endpoint import EndpointRecord, EndpointState

app = typer.Typer(no_args_is_help=True, help="List, enable, disable and test endpoints; show a callback's timeline.")

Tenant = Annotated[str, typer.Option(help="The tenant of the endpoint.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Urls = Annotated[
    list[str], typer.Argument(metavar="URL...", help="Whole URLs, as `postback endpoints list` shows them.")
]


@app.command("list")
def list_endpoints(
    tenant: Annotated[str | None, typer.Option(help="Only endpoints of this tenant.")] = None, as_json: AsJson = False
) -> None:
    """List the endpoints that are disabled, that fail, or that were enabled again.

    Postback calls every endpoint that is not in the list.
    """
    from cli.operations.endpoints import known_endpoints

    wanted = checked_tenant(tenant) if tenant is not None else None
    known = known_endpoints(fleet_settings().kafka).values()
    found = [record for record in known if wanted in (None, record.tenant)]
    if as_json:
        typer.echo(json.dumps([endpoint_summary(record) for record in found], indent=2))
        return
    for record in found:
        _write_line(record)
    say(f"{len(found)} endpoints")


@app.command()
def enable(urls: Urls, tenant: Tenant = "default", as_json: AsJson = False) -> None:
    """Call disabled endpoints again. Kept events stay dead letters until `dead-letters redrive` puts them back."""
    from cli.operations.endpoints import disabled_endpoints
    from schemas.endpoint import EndpointState

    tenant, kafka = checked_tenant(tenant), fleet_settings().kafka
    disabled = disabled_endpoints(kafka)
    others = [url for url in urls if (tenant, url) not in disabled]
    if others:
        raise fail(f"not disabled, as `postback endpoints list` shows: {', '.join(map(harmless, others))}")
    _put(tenant, urls, EndpointState.ENABLED, as_json=as_json)
    for url in urls:
        say(f"kept events are put back by: {_redrive(tenant, url)}")


@app.command()
def disable(urls: Urls, tenant: Tenant = "default", as_json: AsJson = False) -> None:
    """Stop calling endpoints: their events become dead letters until the endpoints are enabled."""
    from schemas.endpoint import EndpointState

    _put(checked_tenant(tenant), [checked_url(url) for url in urls], EndpointState.DISABLED, as_json=as_json)


app.command("test")(test_endpoint)
app.command()(deliveries)


def _put(tenant: str, urls: list[str], state: EndpointState, *, as_json: bool) -> None:
    from cli.operations.endpoints import put_endpoints
    from schemas.endpoint import DisabledBecause, EndpointRecord, EndpointState
    from telemetry.clock import SystemClock

    reason = DisabledBecause.OPERATOR if state is EndpointState.DISABLED else None
    at = round(SystemClock().time() * 1000)
    records = [EndpointRecord(tenant=tenant, url=url, state=state, at=at, reason=reason) for url in urls]
    put_endpoints(fleet_settings().kafka, records)
    for record in records:
        if as_json:
            typer.echo(json.dumps(endpoint_summary(record)))
        else:
            _write_line(record)


def _redrive(tenant: str, url: str) -> str:
    """Return the command, quoted for a shell, that puts back the endpoint's events from the dead letters."""
    reasons = ("--reason", "endpoint_disabled", "--reason", "endpoint_gone")
    return shlex.join(
        ["postback", "dead-letters", "redrive", *reasons, "--tenant", tenant, "--endpoint", harmless(url)]
    )


def endpoint_summary(record: EndpointRecord) -> dict[str, Any]:
    """Return an endpoint's record as `--json` prints it."""
    from producers.times import show_time

    return {
        "tenant": record.tenant,
        "url": record.url,
        "state": str(record.state),
        "reason": str(record.reason) if record.reason is not None else None,
        "since": show_time(record.at),
        "webhook_id": record.webhook_id,
    }


def _write_line(record: EndpointRecord) -> None:
    """Write one line per endpoint, with two spaces between fields."""
    said = endpoint_summary(record)
    fields = (said[name] for name in ("state", "reason", "since", "tenant", "url"))
    # A URL may contain anything that a producer wrote, such as escape sequences.
    typer.echo(harmless("  ".join("-" if value is None else str(value) for value in fields)))
