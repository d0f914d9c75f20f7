"""Searches of Kafka for pages: a few at once, each in a thread. Further searches are refused with a 503."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from gateway.dependency import Dependency, DependencyBusy
from gateway.errors import unavailable
from producers.errors import ProducerError, RequestRefused
from schemas.settings import SettingsRefused
from telemetry.logs import get_logger

T = TypeVar("T")

log = get_logger()


class KafkaSearches:
    """Runs the searches of all pages of one process, a few at a time."""

    def __init__(self, threads: Dependency) -> None:
        self._threads = threads

    async def run(self, search: Callable[[], T]) -> T:
        """Return the result of a function that blocks. Raises its errors, and ApiError (503) for a ProducerError."""
        return await answered(self._threads.run(search))


async def answered(search: Awaitable[T]) -> T:
    """Return the result of a search. Raises its errors.

    Raises ApiError (503) for ProducerError, DependencyBusy, and settings that the search reads and that are refused.
    """
    try:
        return await search
    except DependencyBusy:
        raise unavailable("busy", "Other pages search Kafka now; try again.") from None
    except SettingsRefused as error:
        raise unavailable(
            "settings_refused", f"The gateway's environment has a setting that is refused: {error}."
        ) from None
    except RequestRefused as error:
        raise unavailable("kafka_refuses", f"Kafka cannot be read: {error}.") from None
    except ProducerError as error:  # the text names Kafka's address and settings, so only the log gets the text
        log.warning(
            "A page could not read Kafka; the visitor is told to try again.",
            action="page-search-failed",
            reason=str(error),
        )
        raise unavailable("kafka_away", "Kafka cannot be read now; try again.") from None
