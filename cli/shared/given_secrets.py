"""Secrets that a person hands to a command: a text, or @FILE."""

from __future__ import annotations

from pathlib import Path

from cli.shared.errors import BAD_INPUT, fail, refusing

SECRET_HELP = "A secret (whsec_…), or @FILE to read it from a file, since other users can read a command's arguments."  # noqa: S105
_LONGEST_SECRET = 1024
"""The largest number of characters read of a secret. A secret of 64 bytes has 95 characters."""


def checked_secrets(texts: list[str]) -> list[str]:
    """Return the secrets of `--secret`, as `whsec_…`. An invalid secret ends the command, and is never shown."""
    from schemas.signature import MalformedKey, secret_bytes

    secrets = [given_text("--secret", text, _LONGEST_SECRET) for text in texts]
    for secret in secrets:
        try:
            secret_bytes(secret)
        except MalformedKey as error:
            raise fail(f"--secret: {error}", BAD_INPUT) from None
    return secrets


def given_text(option: str, text: str, most_characters: int) -> str:
    """Return the text itself, or the content of @FILE. A file that cannot be read ends the command."""
    if not text.startswith("@"):
        return text
    with refusing(f"{option} {text}"), Path(text[1:]).open(encoding="utf-8") as opened:
        return opened.read(most_characters).strip()
