"""Keys of the registry: the file names an environment variable or a file, never the key itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_MOST_BYTES: Final = 64 * 1024
_HOW: Final = '{ env = "VARIABLE" } or { file = "/run/secrets/key" }'


class SecretMistake(Exception):  # noqa: N818 - named after the file's fault
    """A value that is not a reference, or a reference that leads to no key. The error's text has no part of a key."""


def secret(reference: object, environment: Mapping[str, str] = os.environ) -> str:
    """Return the key that a reference leads to, without white space around it. Raises SecretMistake."""
    kind, where = checked_reference(reference)
    if kind == "env":
        found = environment.get(where)
        if found is None:
            raise SecretMistake(f"the environment has no variable {where}; set it, or name another one")
    else:
        found = _content(Path(where))
    if not found.strip():
        raise SecretMistake(f"the {'variable' if kind == 'env' else 'file'} {where} is empty; put the key there")
    if not found.strip().isprintable() or not found.isascii():
        raise SecretMistake(f"the key of {where} has characters that no HTTP header takes; write it as one line")
    return found.strip()


def checked_reference(reference: object) -> tuple[str, str]:
    """Return the kind (`env` or `file`) and the name in a reference, without reading the variable or file.

    Raises SecretMistake.
    """
    if isinstance(reference, str):
        raise SecretMistake(f"holds the key in clear text; write {_HOW}, and replace the key, since files are copied")
    if not isinstance(reference, dict) or len(reference) != 1:
        raise SecretMistake(f"must be {_HOW}")
    [(kind, where)] = reference.items()
    if kind not in ("env", "file") or not isinstance(where, str) or not where.isprintable() or not where:
        raise SecretMistake(f"must be {_HOW}")
    return kind, where


def _content(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise SecretMistake(f"the file {path} cannot be read: {error.strerror}") from None
    if len(content) > _MOST_BYTES:
        raise SecretMistake(f"the file {path} is larger than {_MOST_BYTES} bytes; it should hold the key alone")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise SecretMistake(f"the file {path} is not UTF-8; it should hold the key alone") from None
