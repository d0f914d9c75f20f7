"""Settings from the environment. A wrong value ends the command with a line that names the variable."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.shared.errors import BAD_INPUT, fail

if TYPE_CHECKING:
    from gateway.access.principal import Scope
    from schemas.settings import FleetSettings, Settings


def fleet_settings() -> FleetSettings:
    """Read `POSTBACK_…`. A refused value is never shown."""
    from schemas.settings import FleetSettings

    return checked_settings(FleetSettings)


def checked_settings(kind: type[Settings]) -> Settings:
    """Read the settings of this class. A refused value is never shown. Raises SettingsRefused."""
    from schemas.settings import read_settings

    return read_settings(kind)


def keyring_path(settings: FleetSettings) -> Path:
    """Return the path of the keyring file, which may not exist yet."""
    if not settings.keyring:
        raise fail("set POSTBACK_KEYRING to the file of the keys, which `postback keys init` makes", BAD_INPUT)
    return Path(settings.keyring)


def checked_text(kind: Any, text: str, refusal: str) -> str:
    """Return the text if it is valid as this type of `schemas.job`, else end the command with the refusal."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter[str](kind).validate_python(text)
    except ValidationError:
        raise fail(refusal, BAD_INPUT) from None


def checked_tenant(tenant: str) -> str:
    """Return the tenant's name if it is valid in headers and topics, else end the command."""
    from schemas.identifiers import Tenant

    return checked_text(Tenant, tenant, "--tenant: 1 to 63 letters, digits, `_` or `-`, a letter or digit first")


def checked_scopes(scopes: str | None) -> frozenset[Scope]:
    """Return the scopes of `--scopes`, which commas separate; by default those of a new API key."""
    from gateway.access.principal import DEFAULT_SCOPES, Scope

    if scopes is None:
        return DEFAULT_SCOPES
    try:
        return frozenset(Scope(scope.strip()) for scope in scopes.split(","))
    except ValueError:
        raise fail(f"--scopes: choose from {', '.join(Scope)}, with commas", BAD_INPUT) from None


def checked_endpoint(endpoint: str | None) -> str | None:
    """Return the value of `--endpoint`, a URL or an origin.

    Any other text ends the command, because it would match nothing.
    """
    from telemetry.logs import origin_of

    if endpoint is None or origin_of(endpoint).startswith(("http://", "https://")):
        return endpoint
    raise fail("--endpoint: a whole URL, as https://hooks.example/in, or its origin, https://hooks.example", BAD_INPUT)
