"""The input filter's settings, its error, and its loading, for processes that need not have the extra `screening`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic_settings import BaseSettings

from schemas.settings import read_from

if TYPE_CHECKING:
    from workers.screening.screen import Screen


class ScreeningSettings(BaseSettings):
    """The input filter for jobs."""

    model_config = read_from("POSTBACK_SCREENING__")

    rules: Path | None = None
    """Path of a TOML file with the filter's rules; no job is screened without this path. A process reads the file at
    its start, and refuses to start if the file has a mistake. The filter needs the extra `screening`."""


_MOST_MISTAKES: Final = 20


class RulesRefused(Exception):  # noqa: N818 - named after the event
    """The file of rules cannot be used. The text has a line for each mistake, with its place and the fix."""

    def __init__(self, path: Path, mistakes: Sequence[str]) -> None:
        shown = [f"{path}: {mistake}" for mistake in mistakes[:_MOST_MISTAKES]]
        more = len(mistakes) - len(shown)
        super().__init__("\n\t".join(shown + ([f"and {more} more mistakes"] if more else [])))
        self.mistakes = tuple(mistakes)


def load_screen(settings: ScreeningSettings) -> Screen | None:
    """Return the filter of the settings' rules, or None without rules.

    Raises RulesRefused, also if rules are set and the extra is not installed.
    """
    if settings.rules is None:
        return None
    try:
        from workers.screening.screen import Screen
    except ModuleNotFoundError as error:
        needed = f"POSTBACK_SCREENING__RULES needs {error.name}: pip install 'postback[screening]'"
        raise RulesRefused(settings.rules, [needed]) from None
    return Screen.load(settings.rules)
