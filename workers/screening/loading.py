"""The input filter's settings, its error, and its loading, for processes that need not have the extra `screening`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from schemas.operator_error import OperatorError
from schemas.settings import RoomSettings

if TYPE_CHECKING:
    from workers.screening.screen import Screen


class ScreeningSettings(RoomSettings, env_prefix="POSTBACK_SCREENING__"):
    """The input filter for jobs."""

    rules: Path | None = None
    """Path of a TOML file with the filter's rules; no job is screened without this path. A process reads the file at
    its start, and refuses to start if the file has a mistake. The filter needs the extra `screening`."""


_MOST_MISTAKES: Final = 20


class RulesRefused(OperatorError):  # noqa: N818 - named after the event
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
