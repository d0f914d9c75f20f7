"""Settings of commands that work through a gateway, from `POSTBACK_GATEWAY_…` variables."""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr

from schemas.settings import RoomSettings


class GatewayClientSettings(RoomSettings, env_prefix="POSTBACK_GATEWAY_"):
    """The credential of commands with `--gateway`."""

    key: SecretStr | None = None
    """The API key. Other users of the machine can read a command's arguments, but not this variable."""
    key_file: Path | None = None
    """The file that contains the API key. The file is not read if the key itself is given."""
    ca_file: Path | None = None
    """A PEM file with the certificates of the private CA that issued the gateway's certificate."""
