"""`postback keys`: the keys that callbacks are signed with."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from console.errors import say, telling
from console.settings import checked_tenant, fleet_settings, keyring_path

if TYPE_CHECKING:
    from workers.delivery.keyring import Keyring

app = typer.Typer(no_args_is_help=True, help="Make, show and rotate the keys that callbacks are signed with.")

Tenant = Annotated[str, typer.Option(help="Whose secret.")]


@app.command()
def init() -> None:
    """Make a keyring at POSTBACK_KEYRING. One that is there already is left as it is."""
    from telemetry.clock import SystemClock
    from workers.delivery.keyring import Keyring, KeyringError, KeyringExists

    path = keyring_path(fleet_settings())
    with telling(KeyringError):
        try:
            Keyring.create(path, SystemClock())
        except KeyringExists as exists:
            say(str(exists))
            Keyring.load(path)
            return
    say(f"made {path}; back it up: whoever has it can sign in your name, and without it nobody can")


@app.command()
def show(
    tenant: Tenant = "default",
    reveal: Annotated[bool, typer.Option("--reveal", help="Show the secrets themselves, with --json too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    jwks: Annotated[bool, typer.Option("--jwks", help="Only the public keys, as a JWK set (RFC 7517).")] = False,
) -> None:
    """Show what a consumer needs to verify callbacks: its secret, or the fleet's public keys."""
    from telemetry.clock import SystemClock

    tenant, keyring, now = checked_tenant(tenant), _load(), SystemClock().time()
    if jwks:
        typer.echo(json.dumps(keyring.jwks(now), indent=2))
        return
    secrets, public_keys = keyring.secrets(tenant, now), keyring.public_keys(now)
    if as_json:
        # No sentence in the place of a secret: a script would keep it as one.
        said = {"tenant": tenant, "secrets": secrets if reveal else [], "public_keys": public_keys}
        typer.echo(json.dumps(said))
        return
    typer.echo(f"tenant      {tenant}")
    for secret in secrets:
        typer.echo(f"secret      {secret if reveal else 'whsec_… (--reveal shows it)'}")
    for key in public_keys:
        typer.echo(f"public key  {key}")


@app.command()
def rotate(
    tenant: Tenant = "default",
    fleet: Annotated[bool, typer.Option("--fleet", help="Rotate the fleet's key pair, not a tenant's secret.")] = False,
    leaked: Annotated[bool, typer.Option("--leaked", help="Stop signing with all earlier keys at once.")] = False,
) -> None:
    """Put a new key beside the old one, which signs on for 24 hours so that consumers can change over.

    With --leaked the new key signs alone at once: keys that were rotated within the last 24 hours end with the old one.
    """
    from telemetry.clock import SystemClock
    from workers.delivery.keyring import OVERLAP_SECONDS, KeyringError

    tenant, keyring, now = checked_tenant(tenant), _load(), SystemClock().time()
    with telling(KeyringError):
        until = keyring.rotate(None if fleet else tenant, now, 0.0 if leaked else OVERLAP_SECONDS)
    whose = "the fleet's key pair" if fleet else f"the secret of tenant {tenant}"
    until_then = f"the old one signs until {datetime.fromtimestamp(until, UTC):%Y-%m-%d %H:%M} UTC"
    say(f"rotated {whose}; {'all earlier ones sign no more' if leaked else until_then}")


def _load() -> Keyring:
    from workers.delivery.keyring import Keyring, KeyringError

    path = keyring_path(fleet_settings())
    with telling(KeyringError):
        return Keyring.load(path)
