"""Folders that an operator names."""

from __future__ import annotations

from pathlib import Path


def expanded(folder: str | Path) -> Path:
    """Return the folder, with the home of its `~`. The `~name` of an unknown user stays, as the name of no folder."""
    try:
        return Path(folder).expanduser()
    except RuntimeError:
        return Path(folder)
