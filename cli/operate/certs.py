"""`postback certs`: a private authority, and the certificates of the front door and its clients."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.shared.errors import BAD_INPUT, FAILED, fail, say
from cli.shared.terminal import harmless

if TYPE_CHECKING:
    from cli.operations.certificates import Contents, Issued, IssuedCertificate

app = typer.Typer(
    no_args_is_help=True, help="Make a private authority; issue, renew, revoke and list its certificates."
)


Directory = Annotated[Path, typer.Argument(metavar="DIR", help="The authority's directory.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The name of the certificate and of its files.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


@app.command()
def init(
    directory: Directory,
    name: Annotated[str, typer.Option(help="The authority's common name.")] = "Postback CA",
    days: Annotated[int, typer.Option(help="Days until the authority expires.")] = 3650,
    crl_days: Annotated[int, typer.Option(help="Days until the revocation list has to be signed again.")] = 180,
) -> None:
    """Make a certificate authority in a new or empty directory.

    ca.key signs certificates: keep it secret. Clients trust ca.pem, and the gateway reads crl.pem.
    """
    from cli.operations.certificates import init

    with _telling():
        authority = init(directory, _now(), name, days, crl_days)
    end = _day(authority.certificate.not_valid_after_utc)
    say(f"made an authority in {directory}, valid until {end}; back it up, and keep ca.key secret")


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
    days: Annotated[int, typer.Option(help="Lifetime in days: at most 398 for a server, 825 for a client.")] = 90,
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
    with _telling():
        leaf = Leaf.server(name, tuple(san or ())) if server else Leaf.client(name, tenant or "", _scopes(scopes))
        issued = issue(directory, leaf, _now(), days)
    _write_issued(issued, as_json=as_json)
    _warn(directory)


@app.command()
def renew(
    directory: Directory,
    name: Name,
    days: Annotated[
        int | None, typer.Option(help="Lifetime in days; by default that of the earlier certificate.")
    ] = None,
    keep_key: Annotated[
        bool, typer.Option("--keep-key", help="Keep the private key, instead of making a new one.")
    ] = False,
    revoke: Annotated[bool, typer.Option("--revoke", help="Revoke the earlier certificates of the name.")] = False,
    as_json: AsJson = False,
) -> None:
    """Issue a certificate again, with the same names, a new serial number and a new key.

    The earlier certificate stays valid until it expires, unless --revoke is given.
    """
    from cli.operations.certificates import renew

    with _telling():
        issued = renew(directory, name, _now(), days, keep_key=keep_key, revoke_old=revoke)
    _write_issued(issued, as_json=as_json)
    _say_revoked(issued.revoked)
    _warn(directory)


@app.command()
def revoke(
    directory: Directory,
    name: Annotated[
        str,
        typer.Argument(metavar="NAME|SERIAL", help="A certificate's name, or the serial number of one certificate."),
    ],
    reason: Annotated[
        str, typer.Option(help="A reason of RFC 5280, such as keyCompromise, superseded or cessationOfOperation.")
    ] = "unspecified",
) -> None:
    """Revoke the valid certificates of a name, or one certificate, in crl.pem.

    A gateway that reads crl.pem refuses revoked certificates from then on, without a restart.
    """
    from cli.operations.certificates import Reason, revoke

    reasons = {one.value.lower(): one for one in Reason}
    if reason.lower() not in reasons:
        raise fail(f"--reason: one of {', '.join(one.value for one in Reason)}", BAD_INPUT)
    with _telling():
        revoked = revoke(directory, name, _now(), reasons[reason.lower()])
    if not revoked:
        say(f"{name} has no valid certificate: all were revoked before or have expired")
    _say_revoked(revoked)
    _warn(directory)


@app.command()
def crl(
    directory: Directory,
    days: Annotated[
        int | None, typer.Option(help="Days until the list has to be signed again; by default as many as last time.")
    ] = None,
) -> None:
    """Sign the revocation list crl.pem again.

    Once the list's next update is overdue, the gateway refuses every client certificate. Every other command that signs
    does the same in the last third of the list's life.
    """
    from cli.operations.certificates import renew_crl

    with _telling():
        signed = renew_crl(directory, _now(), days)
    end = signed.next_update_utc
    say(f"signed {directory / 'crl.pem'} with {len(signed)} entries; its next update is due by {_day(end)}")


@app.command("list")
def list_certificates(directory: Directory, as_json: AsJson = False) -> None:
    """List all certificates with their state: valid, expiring (the last third of their life), expired or revoked."""
    from cli.operations.certificates import contents

    now = _now()
    with _telling():
        found = contents(directory)
    if as_json:
        typer.echo(json.dumps(_contents(found, now), indent=2))
    else:
        for one in found.index.certificates:
            _write_line(one, now)
        say(f"{len(found.index.certificates)} certificates")
    _warn(directory)


def _scopes(text: str | None) -> str:
    """Return the scopes of a client's certificate. End the command if `text` names an unknown scope."""
    from gateway.access import Scope
    from gateway.access.principal import DEFAULT_SCOPES

    if text is None:
        return ",".join(DEFAULT_SCOPES)
    known, named = {scope.value for scope in Scope}, set(text.replace(",", " ").split())
    if not named:
        raise fail(f"--scopes: name at least one of {', '.join(sorted(known))}", BAD_INPUT)
    if unknown := sorted(named - known):
        raise fail(
            f"--scopes: no scope is called {', '.join(unknown)}; there are {', '.join(sorted(known))}", BAD_INPUT
        )
    return text


@contextmanager
def _telling() -> Iterator[None]:
    """End the command if the block raises CertificatesError; the exit status is 2 if an argument is wrong."""
    from cli.operations.certificates import CertificatesError, InputRefused

    try:
        yield
    except CertificatesError as error:
        raise fail(str(error), BAD_INPUT if isinstance(error, InputRefused) else FAILED) from None


def _warn(directory: Path) -> None:
    """Warn if the authority, the revocation list or a certificate is expired or expires soon."""
    from cli.operations.certificates import contents, warnings_of

    with _telling():
        found = contents(directory)
    for warning in warnings_of(found, directory, _now()):
        say(warning)


def _write_issued(issued: Issued, *, as_json: bool) -> None:
    entry = issued.entry
    if as_json:
        paths = {"certificate": str(issued.certificate), "key": str(issued.key)}
        typer.echo(json.dumps({**_certificate(entry, _now()), **paths}))
        return
    typer.echo(f"{issued.certificate}\n{issued.key}")
    shortened = ", with its authority" if issued.is_shortened else ""
    names = f"tenant {entry.tenant}" if entry.tenant is not None else ", ".join(entry.sans)
    say(f"issued {entry.kind} certificate {entry.serial} for {names}; it expires on {_day(entry.not_after)}{shortened}")


def _say_revoked(revoked: Sequence[IssuedCertificate]) -> None:
    for one in revoked:
        say(f"revoked {one.name}, serial number {one.serial}; give the new crl.pem to every server")


def _write_line(one: IssuedCertificate, now: datetime) -> None:
    """Write one line per certificate, with two spaces between fields."""
    whose = f"tenant {one.tenant}" if one.tenant is not None else ", ".join(one.sans)
    fields = (one.state(now).value, f"{one.not_after:%Y-%m-%d}", one.kind.value, one.serial, one.name, whose)
    typer.echo(harmless("  ".join(fields)))


def _contents(found: Contents, now: datetime) -> dict[str, Any]:
    from cli.operations.certificates import authority_state, crl_problem

    certificate, crl = found.authority, found.crl
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return {
        "authority": {
            "subject": certificate.subject.rfc4514_string(),
            "not_after": _time(end),
            "state": authority_state(now, begin, end),
        },
        "crl": {
            "number": found.index.crl_number,
            "next_update": _time(crl.next_update_utc) if crl is not None else None,
            "problem": crl_problem(crl, found.index, now),
        },
        "certificates": [_certificate(one, now) for one in found.index.certificates],
    }


def _certificate(one: IssuedCertificate, now: datetime) -> dict[str, Any]:
    return {**one.model_dump(mode="json", exclude={"days"}), "state": one.state(now)}


def _now() -> datetime:
    from telemetry.clock import SystemClock

    return datetime.fromtimestamp(SystemClock().time(), UTC)


def _time(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat().replace("+00:00", "Z")


def _day(at: datetime | None) -> str:
    return f"{at:%Y-%m-%d}" if at is not None else "-"
