"""`postback certs`: a private authority, and the certificates of the front door and its clients."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.shared.errors import BAD_INPUT, fail, say
from cli.shared.settings import checked_scopes
from cli.shared.terminal import harmless

if TYPE_CHECKING:
    from cli.operations.certificates import Issued, IssuedCertificate

app = typer.Typer(
    no_args_is_help=True, help="Make a private authority; issue, renew, revoke and list its certificates."
)


MOST_DAYS = 398
"""Browsers accept a server's certificate only if it is valid for at most 398 days (CA/Browser Forum, ballot SC31)."""
Directory = Annotated[Path, typer.Argument(metavar="DIR", help="The authority's directory.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The name of the certificate and of its files.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


@app.command()
def init(
    directory: Directory,
    name: Annotated[str, typer.Option(help="The authority's common name.")] = "Postback CA",
    days: Annotated[int, typer.Option(min=1, max=7300, help="Days until the authority expires.")] = 3650,
) -> None:
    """Make a certificate authority in a new or empty directory.

    ca.key signs certificates: keep it secret. Clients trust ca.pem, and the gateway reads crl.pem.
    """
    from cli.operations.certificates import init

    authority = init(directory, _now(), name, days)
    end = authority.certificate.not_valid_after_utc
    say(f"made an authority in {directory}, valid until {end:%Y-%m-%d}; back it up, and keep ca.key secret")


@app.command()
def issue(
    directory: Directory,
    name: Name,
    server: Annotated[bool, typer.Option("--server", help="Issue a certificate for a server.")] = False,
    client: Annotated[bool, typer.Option("--client", help="Issue a certificate for a client.")] = False,
    san: Annotated[
        list[str] | None,
        typer.Option(help="A DNS name, a wildcard or an IP address of the server; by default NAME. May be repeated."),
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="The client's tenant.")] = None,
    scopes: Annotated[
        str | None, typer.Option(help="The client's scopes, separated by commas; by default those of a new API key.")
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=MOST_DAYS, help="Lifetime in days.")] = 90,
    as_json: AsJson = False,
) -> None:
    """Issue a certificate with a new key, as NAME.pem and NAME.key.

    No certificate ends after its authority.
    """
    from cli.operations.certificates import Leaf, issue

    if server == client:
        raise fail("choose one of --server and --client", BAD_INPUT)
    if server and (tenant is not None or scopes is not None):
        raise fail("--tenant, --scopes: these are for --client", BAD_INPUT)
    if client and (tenant is None or san):
        raise fail("--client: needs --tenant, and takes no --san", BAD_INPUT)
    leaf = Leaf.server(name, san or ()) if server else Leaf.client(name, tenant or "", checked_scopes(scopes))
    issued = issue(directory, leaf, _now(), days)
    _write_issued(issued, as_json=as_json)


@app.command()
def renew(
    directory: Directory,
    name: Name,
    days: Annotated[
        int | None,
        typer.Option(min=1, max=MOST_DAYS, help="Lifetime in days; by default that of the earlier certificate."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Issue a certificate again, with the same names, a new serial number and a new key.

    The earlier certificate stays valid until it expires or is revoked.
    """
    from cli.operations.certificates import renew

    issued = renew(directory, name, _now(), days)
    _write_issued(issued, as_json=as_json)


@app.command()
def revoke(directory: Directory, name: Name) -> None:
    """Revoke all valid certificates of a name in crl.pem.

    A gateway that reads crl.pem refuses revoked certificates from then on, without a restart.
    """
    from cli.operations.certificates import revoke

    revoked = revoke(directory, name, _now())
    if not revoked:
        say(f"{name} has no valid certificate: all were revoked before or have expired")
    for one in revoked:
        say(f"revoked {name}, serial number {one.serial}; give the new crl.pem to every server")


@app.command("list")
def list_certificates(directory: Directory, as_json: AsJson = False) -> None:
    """List the authority and all certificates with their state: valid, expiring, expired or revoked.

    A certificate is expiring in the last third of its life; the authority, in its last half year.
    """
    from cli.operations.certificates import contents, state_at

    now = _now()
    found = contents(directory)
    begin, end = found.authority.not_valid_before_utc, found.authority.not_valid_after_utc
    state, subject = state_at(now, begin, end).value, found.authority.subject.rfc4514_string()
    listed = [_certificate(one, now) for one in found.issued]
    if as_json:
        authority = {"subject": subject, "not_after": _time(end), "state": state}
        typer.echo(json.dumps({"authority": authority, "certificates": listed}, indent=2))
        return
    _write_line((state, f"{end:%Y-%m-%d}", "authority", subject))
    for one in listed:
        named = (one["state"], one["not_after"][:10], one["kind"], one["serial"], one["name"])
        _write_line((*named, _whose(one["tenant"], one["sans"])))


def _write_issued(issued: Issued, *, as_json: bool) -> None:
    one = _certificate(issued.entry, _now())
    if as_json:
        typer.echo(json.dumps({**one, "certificate": str(issued.certificate), "key": str(issued.key)}))
        return
    typer.echo(f"{issued.certificate}\n{issued.key}")
    whose, end = _whose(one["tenant"], one["sans"]), one["not_after"][:10]
    say(f"issued {one['kind']} certificate {one['serial']} for {whose}; it expires on {end}")


def _write_line(fields: Sequence[str]) -> None:
    typer.echo(harmless("  ".join(fields)))


def _whose(tenant: str | None, sans: Sequence[str]) -> str:
    return f"tenant {tenant}" if tenant is not None else ", ".join(sans)


def _certificate(one: IssuedCertificate, now: datetime) -> dict[str, Any]:
    from cli.operations.certificates import identity_of

    identity = identity_of(one.certificate)
    return {
        "name": one.leaf.name,
        "kind": one.leaf.kind.value,
        "sans": one.leaf.sans,
        "tenant": identity.tenant,
        "scopes": sorted(identity.scopes),
        "serial": one.serial,
        "not_before": _time(one.certificate.not_valid_before_utc),
        "not_after": _time(one.certificate.not_valid_after_utc),
        "state": one.state(now).value,
    }


def _now() -> datetime:
    from telemetry.clock import SystemClock

    return datetime.fromtimestamp(SystemClock().time(), UTC)


def _time(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")
