"""The log's warning about fields that no job has. The jobs' own results name them too."""

from __future__ import annotations

from schemas.unknown import UnknownFields
from telemetry.logs import get_logger

_REMEMBERED = 1024

log = get_logger()


class UnknownFieldWarnings:
    """Warns once for each set of field names, since a producer repeats the same ones in all its jobs."""

    def __init__(self) -> None:
        self._warned_of: set[tuple[str, ...]] = set()

    def warn(self, unknown: UnknownFields | None) -> None:
        """Log the names, unless the same ones were logged before. None is a job without unknown fields."""
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
