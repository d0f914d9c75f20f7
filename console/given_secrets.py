"""Webhook secrets that a person hands to a command."""

from __future__ import annotations

from pathlib import Path

from console.errors import BAD_INPUT, fail

SECRET_HELP = "A secret (whsec_…), or @FILE to read it from a file, since other users can read a command's arguments."  # noqa: S105
LONGEST_SECRET = 1024
"""The largest number of characters read of a secret. A secret of 64 bytes has 95 characters."""


def checked_secrets(texts: list[str]) -> list[str]:
    """Return the secrets of `--secret`, as `whsec_…`. An invalid secret ends the command, and is never shown."""
    from schemas.signature import MalformedKey, secret_bytes

    secrets = [_from_file(text[1:]) if text.startswith("@") else text for text in texts]
    for secret in secrets:
        try:
            secret_bytes(secret)
        except MalformedKey as error:
            raise fail(f"--secret: {error}", BAD_INPUT) from None
    return secrets


def _from_file(name: str) -> str:
    try:
        with Path(name).open(encoding="utf-8") as opened:
            return opened.read(LONGEST_SECRET).strip()
    except OSError as error:
        raise fail(f"--secret @{name}: {error.strerror}", BAD_INPUT) from None
    except UnicodeDecodeError:
        raise fail(f"--secret @{name}: the file is not text", BAD_INPUT) from None
