"""The input filter's settings, read from `POSTBACK_SCREENING__…`."""

from __future__ import annotations

from pathlib import Path

from schemas.settings import RoomSettings


class ScreeningSettings(RoomSettings, env_prefix="POSTBACK_SCREENING__"):
    """The input filter for jobs."""

    rules: Path | None = None
    """Path of a TOML file with the filter's rules; no job is screened without this path. A process reads the file at
    its start, and refuses to start if the file has a mistake. The filter needs the extra `screening`."""
