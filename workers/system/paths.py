"""Folders that an operator names."""

from __future__ import annotations

from pathlib import Path


def expanded(folder: str | Path) -> Path:
    """Return the folder with its `~` expanded. The `~name` of an unknown user stays unexpanded."""
    try:
        return Path(folder).expanduser()
    except RuntimeError:
        return Path(folder)
