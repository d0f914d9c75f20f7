"""`postback keys`: the keys that callbacks are signed with."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.shared.errors import BAD_INPUT, fail, refusing, say
from cli.shared.settings import checked_tenant, fleet_settings, keyring_path
from cli.shared.times import DURATION_HELP, checked_duration

if TYPE_CHECKING:
    from workers.delivery.keyring import Keyring

app = typer.Typer(no_args_is_help=True, help="Make, show and rotate the keys that callbacks are signed with.")

Tenant = Annotated[str, typer.Option(help="The tenant of the keys.")]
_LONGEST_SECRET = 1024
"""The largest number of characters read of a secret. A secret of 64 bytes has 95 characters."""


@app.command()
def init() -> None:
    """Make a keyring at POSTBACK_KEYRING. An existing keyring is left unchanged."""
    from telemetry.clock import SystemClock
    from workers.delivery.keyring import Keyring, KeyringExists

    path = keyring_path(fleet_settings())
    try:
        Keyring.create(path, SystemClock())
    except KeyringExists as exists:
        say(str(exists))
        Keyring.load(path, by_root=True)
        return
    say(f"made {path}; back it up, and keep it secret: anyone who can read it can sign in your name")


@app.command()
def show(
    tenant: Tenant = "default",
    reveal: Annotated[bool, typer.Option("--reveal", help="Show the secrets themselves, also with --json.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
    jwks: Annotated[bool, typer.Option("--jwks", help="Show only the public keys, as a JWK set (RFC 7517).")] = False,
) -> None:
    """Show the secrets and public keys that verify a tenant's callbacks, with the end of each key's use."""
    from telemetry.clock import SystemClock

    tenant, keyring, now = checked_tenant(tenant), _load(), SystemClock().time()
    if jwks:
        typer.echo(json.dumps(keyring.jwks(tenant, now), indent=2))
        return
    ends = keyring.key_ends(tenant, now)
    if as_json:
        # Hidden secrets are left out, because a script would mistake a placeholder for a secret.
        said = {
            "tenant": tenant,
            "secrets": list(ends.secrets) if reveal else [],
            "public_keys": list(ends.public_keys),
        }
        typer.echo(json.dumps(said))
        return
    typer.echo(f"tenant      {tenant}")
    for secret, until in ends.secrets.items():
        typer.echo(f"secret      {secret if reveal else 'whsec_… (--reveal shows it)'}  {_until(until)}")
    for key, until in ends.public_keys.items():
        typer.echo(f"public key  {key}  {_until(until)}")


@app.command()
def rotate(
    tenant: Tenant = "default",
    master: Annotated[
        bool, typer.Option("--master", help="Rotate the master secret, and so every tenant's keys.")
    ] = False,
    leaked: Annotated[bool, typer.Option("--leaked", help="Stop signing with all earlier keys at once.")] = False,
    overlap: Annotated[str, typer.Option(help=f"Time for which the old keys still sign. {DURATION_HELP}")] = "24h",
) -> None:
    """Add new keys. The old keys keep signing for the overlap, so that consumers can change over.

    A tenant's imported secrets count as old keys. With --leaked all earlier keys stop signing at once, also those of
    earlier rotations. --master --leaked is for a leaked file: every key in the file stops signing.
    """
    from telemetry.clock import SystemClock

    tenant, seconds = checked_tenant(tenant), 0.0 if leaked else checked_duration("--overlap", overlap)
    keyring, now = _load(), SystemClock().time()
    if master and leaked:
        keyring.replace_all(now)
    elif master:
        keyring.rotate_master(now, seconds)
    else:
        keyring.rotate(tenant, now, seconds)
    whose = "the master" if master else f"the keys of tenant {tenant}"
    ends = f"the old ones sign until {_minute(now + seconds)}" if seconds else "all earlier ones have stopped signing"
    say(f"rotated {whose}; {ends}")


@app.command("import")
def import_secret(
    tenant: Tenant = "default",
    file: Annotated[Path | None, typer.Option(help="The file with the secret; by default standard input.")] = None,
) -> None:
    """Import another sender's secret (whsec_…). The secret then signs a tenant's callbacks beside the derived keys.

    Consumers that have the secret need no change. `postback keys rotate --tenant TENANT` retires the secret: give
    consumers the tenant's new secret within the overlap. No argument takes the secret: other users can read arguments.
    """
    from schemas.signature import MalformedKey
    from telemetry.clock import SystemClock

    tenant, keyring = checked_tenant(tenant), _load()
    secret = _secret_from(file)
    try:
        keyring.add_secret(tenant, secret, SystemClock().time())
    except MalformedKey as error:
        raise fail(f"the secret: {error}", BAD_INPUT) from None
    say(f"imported a secret of tenant {tenant}; it signs beside the derived one until the tenant's keys are rotated")


def _secret_from(file: Path | None) -> str:
    """Read the secret from the file, from standard input, or from a hidden prompt at a terminal."""
    if file is None and sys.stdin.isatty():
        return str(typer.prompt("secret", hide_input=True, err=True)).strip()
    with refusing("the secret" if file is None else f"--file {file}"):
        if file is None:
            return sys.stdin.read(_LONGEST_SECRET).strip()
        with file.open(encoding="utf-8") as opened:
            return opened.read(_LONGEST_SECRET).strip()


def _until(end: float) -> str:
    return "signs until it is rotated" if end == float("inf") else f"signs until {_minute(end)}"


def _minute(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"


def _load() -> Keyring:
    from workers.delivery.keyring import Keyring

    return Keyring.load(keyring_path(fleet_settings()), by_root=True)
