"""Loads the filter where the settings ask for one, so that other processes need not have the extra `screening`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.screening.refused import RulesRefused
from workers.screening.settings import ScreeningSettings

if TYPE_CHECKING:
    from workers.screening.screen import Screen


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
