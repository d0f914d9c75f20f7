"""The fleet's settings, or the one line that says which variable is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from console.errors import BAD_INPUT, fail

if TYPE_CHECKING:
    from schemas.settings import FleetSettings


def fleet_settings() -> FleetSettings:
    """Read `POSTBACK_…`. A value that is refused is never shown."""
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from schemas.settings import FleetSettings

    try:
        return FleetSettings()
    except ValidationError as error:
        raise refused(error) from None
    except SettingsError as error:
        # Its text names the field ("kafka"), which may have several variables, and not the value.
        raise fail(f"a POSTBACK_… variable that should hold JSON does not: {error}", BAD_INPUT) from None


def refused(error: Exception) -> typer.Exit:
    """The end of the command for a pydantic ValidationError of settings."""
    from pydantic import ValidationError

    assert isinstance(error, ValidationError)  # noqa: S101 - pydantic is imported here only, so the signature cannot say it
    problems = []
    for details in error.errors(include_input=False, include_url=False, include_context=False):
        variable = "POSTBACK_" + "__".join(str(part).upper() for part in details["loc"])
        problems.append(f"{variable}: {details['msg']}")
    return fail("; ".join(problems), BAD_INPUT)


def keyring_path(settings: FleetSettings) -> Path:
    """Where the keyring is, or is to be made."""
    if not settings.keyring:
        raise fail("set POSTBACK_KEYRING to the file that holds the keys, or is to hold them", BAD_INPUT)
    return Path(settings.keyring)


def checked_tenant(tenant: str) -> str:
    """A tenant's name as it may stand in headers and topics."""
    from pydantic import TypeAdapter, ValidationError

    from schemas.job import Tenant

    try:
        return TypeAdapter[str](Tenant).validate_python(tenant)
    except ValidationError:
        raise fail("--tenant: 1 to 63 letters, digits, `_` or `-`, no sign first", BAD_INPUT) from None
