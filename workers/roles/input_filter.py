"""The operator's input filter, for the processes that accept jobs or answer jobs."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from schemas.settings import read_settings
from workers.screening.loading import ScreeningSettings, load_screen

if TYPE_CHECKING:
    from workers.screening.screen import Screen


async def open_screen(stack: AsyncExitStack) -> Screen | None:
    """Return the input filter with its models loaded, or None without rules. Raises RulesRefused, SettingsRefused."""
    screen = load_screen(read_settings(ScreeningSettings))
    if screen is not None:
        stack.callback(screen.close)
        await asyncio.to_thread(screen.start)
    return screen
