"""Warnings in the log about unknown fields of jobs. Each job's result names its unknown fields too."""

from __future__ import annotations

from schemas.unknown import UnknownFields
from telemetry.logs import get_logger

_REMEMBERED = 1024

log = get_logger()


class UnknownFieldWarnings:
    """Warns once for each set of field names, since a producer repeats the same fields in all its jobs."""

    def __init__(self) -> None:
        self._warned_of: set[tuple[str, ...]] = set()

    def warn(self, unknown: UnknownFields | None) -> None:
        """Log the unknown fields' names, unless a warning named the same set before. None means no unknown fields."""
        if unknown is None or unknown.names in self._warned_of:
            return
        if len(self._warned_of) >= _REMEMBERED:
            self._warned_of.clear()
        self._warned_of.add(unknown.names)
        log.warning(
            "Jobs have unknown fields; ignoring the fields and naming them in each result.",
            action="fields-unknown",
            fields=list(unknown.names),
            count=unknown.count,
        )
