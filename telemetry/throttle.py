"""Rate-limited log lines: at most one line of a kind in each period, however often its event happens."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from threading import Lock


@dataclass(slots=True)
class _Kind:
    admitted_at: float
    held_back: int = 0


class LogThrottle:
    """Admits one line of each kind per `seconds`, and counts the lines that it holds back. Any thread may call it.

    The throttle remembers at most `most_kinds` kinds. A further kind makes the throttle forget all kinds, so some lines
    are logged more often.
    """

    def __init__(self, seconds: float, most_kinds: int = 1000) -> None:
        self._seconds = seconds
        self._most_kinds = most_kinds
        self._kinds: dict[Hashable, _Kind] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        """Number of remembered kinds."""
        return len(self._kinds)

    def admit(self, now: float, kind: Hashable = None) -> int | None:
        """Return the number of lines of this kind that were held back after the last written one.

        None means that this line is held back too. `now` is in seconds, from any clock that does not run backwards.
        """
        with self._lock:
            known = self._kinds.get(kind)
            if known is not None and now - known.admitted_at < self._seconds:
                known.held_back += 1
                return None
            if known is None and len(self._kinds) >= self._most_kinds:
                self._kinds.clear()
            self._kinds[kind] = _Kind(now)
            return known.held_back if known is not None else 0
