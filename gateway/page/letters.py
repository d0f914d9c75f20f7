"""Dead letters: jobs and callbacks that the fleet gave up, read from Kafka, and the form that puts one back.

Clients' mistakes stand apart from the fleet's, so that many of one side hide none of the other.

A visitor sees the letters of its own tenant; with the scope `admin`, those of all tenants. The page's redrive and
`postback dead-letters redrive` together put each letter back only once. If two redrives run at the same time, the later
one ends the earlier one. The letters that the earlier one did not reach then need another redrive.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from starlette.routing import Route

from gateway.access import Scope
from gateway.access.recent import Recent
from gateway.door.door import Door
from gateway.errors import conflict, not_found
from gateway.page.callbacks import require_may_call
from gateway.page.desk import Desk, ShownPage, Visit, answered
from gateway.page.rendering import link
from producers.errors import RequestRefused
from schemas import topics
from schemas.codec import Origin, read_address
from schemas.codes import CLIENTS_MISTAKES
from schemas.settings import KafkaSettings
from telemetry.clock import Clock, Deadline, unix_ms

if TYPE_CHECKING:  # kafka-python is imported by the first search, since it takes as long as the whole door
    from cli.operations.dead_letters import Letter
    from producers.scan import StoredPlace

DAYS: Final = 7
"""The page searches the letters of this many days."""
FRESH_SECONDS: Final = 2.0
"""Time for which the letters that were read are shown again."""
MOST_SHOWN: Final = 100
MOST_SECONDS: Final = 60.0
"""Longest search. Without a limit, other tenants' many letters could make a page take for ever."""
_DAY_MS: Final = 24 * 3_600_000
_PER_SECOND: Final = 100.0
_PUT_BACK: Final = "The letter is put back."
OBSTACLES: Final = {
    "expired": "it is too old to be put back",
    "endpoint_disabled": "its endpoint is disabled",
    "too_large": "it is too large to be kept whole",
    "empty": "it has no content",
    "lane_gone": "its lane is gone",
    "cancelled": "its job is cancelled",
    "source_unknown": "it is neither a job nor a callback",
}
"""For each `Letter.obstacle`, the reason why a redrive cannot put the letter back."""


class ShownLetters:
    """The open letters of the last days that have one side's reasons."""

    def __init__(self) -> None:
        self.found = 0
        """The number of all these letters, including those beyond MOST_SHOWN."""
        self._newest: list[tuple[int, int, dict[str, Any]]] = []

    def add(self, letter: Letter) -> None:
        """Count a letter, and keep it if it is among the newest."""
        self.found += 1
        heapq.heappush(self._newest, (letter.record.at_ms, self.found, shown_letter(letter)))
        if len(self._newest) > MOST_SHOWN:
            heapq.heappop(self._newest)

    @property
    def shown(self) -> list[dict[str, Any]]:
        """The `shown_letter` of each letter, the newest first. A letter's value is left out: it may have a megabyte."""
        return [shown for *_, shown in sorted(self._newest, reverse=True)]


@dataclass(frozen=True, slots=True)
class NewestLetters:
    """The open letters of the last days, by the side whose mistake they are."""

    fleets: ShownLetters = field(default_factory=ShownLetters)
    clients: ShownLetters = field(default_factory=ShownLetters)

    def add(self, letter: Letter) -> None:
        """Add a letter to its side."""
        (self.clients if letter.reason in CLIENTS_MISTAKES else self.fleets).add(letter)


def letter_routes(desk: Desk) -> list[Route]:
    """Return the routes of dead letters."""
    door, kafka, clock = desk.door, desk.door.fleet.kafka, desk.door.clock

    async def read_newest(tenant: str | None) -> NewestLetters:
        return await answered(door.searches.run(partial(newest_letters, kafka, clock, tenant)))

    # A reading may take a minute, and every open page asks each half minute: they share one.
    recent = Recent(read_newest, FRESH_SECONDS, clock)

    async def several(visit: Visit) -> ShownPage:
        found = await recent.get(_whose(visit))
        said = _PUT_BACK if visit.request.query_params.get("done") == "redriven" else ""
        values = {"found": found, "days": DAYS, "said": said, "obstacles": OBSTACLES}
        return ShownPage("letters", {**values, "all_tenants": _whose(visit) is None})

    async def redrive(visit: Visit) -> str:
        from producers.scan import StoredPlace

        identifier = visit.named("letter")
        place, tenant = StoredPlace.parse(identifier), _whose(visit)
        if place is None:
            raise not_found("letter", identifier)
        letter = await answered(door.searches.run(partial(find_letter, kafka, clock, tenant, place)))
        if letter is None:
            raise not_found("letter", identifier)
        await _require_possible(door, letter)
        if not await answered(door.searches.run(partial(put_letter_back, kafka, clock, tenant, letter.place))):
            raise conflict("letter_redriven", "The letter was put back meanwhile.")
        for shown_to in {tenant, letter.record.tenant, None}:
            recent.forget(shown_to)
        return link("/letters", done="redriven")

    return [
        desk.shows("/letters", Scope.READ, "listDeadLetters", several, tab="Dead letters"),
        desk.acts("/letters/redrive", Scope.REDRIVE, "redriveDeadLetter", redrive),
    ]


def newest_letters(kafka: KafkaSettings, clock: Clock, tenant: str | None) -> NewestLetters:
    """Return the letters of a tenant, or of all, that are not put back. Blocks.

    Raises ProducerError, also if reading the letters of all tenants would take longer than MOST_SECONDS.
    """
    from cli.operations.dead_letters import DeadLetters, LetterFilter
    from producers.scan import Scanner

    since_ms, deadline = unix_ms(clock) - DAYS * _DAY_MS, Deadline.after(clock, MOST_SECONDS)
    newest = NewestLetters()
    with Scanner(kafka, clock) as scanner:
        wanted, every = LetterFilter(tenant=tenant), LetterFilter(since_ms=since_ms, redriven_too=True)
        for letter in DeadLetters(kafka, scanner, clock, since_ms).letters(every):
            if deadline.passed:
                raise RequestRefused("the letters are too many for a page; `postback dead-letters list` shows them")
            if wanted.takes(letter):
                newest.add(letter)
    return newest


def shown_letter(letter: Letter) -> dict[str, Any]:
    """Return the values of a letter that the page shows."""
    return {**letter.summary(), "at_ms": letter.record.at_ms}


def find_letter(kafka: KafkaSettings, clock: Clock, tenant: str | None, place: StoredPlace) -> Letter | None:
    """Return the letter at this place; None if the letter is another tenant's, absent or already put back.

    Blocks. Raises ProducerError.
    """
    from cli.operations.dead_letters import DeadLetters, LetterFilter
    from producers.scan import Scanner

    with Scanner(kafka, clock) as scanner:
        return next(DeadLetters(kafka, scanner, clock, place=place).letters(LetterFilter(tenant=tenant)), None)


def put_letter_back(kafka: KafkaSettings, clock: Clock, tenant: str | None, place: StoredPlace) -> bool:
    """Put one letter back; False if another redrive was faster. Blocks. Raises ProducerError."""
    from cli.operations.dead_letters import REDRIVE, DeadLetters, LetterFilter
    from cli.operations.put_back import PutBack
    from producers.scan import Scanner

    with Scanner(kafka, clock) as scanner:
        # The letter is found by its place, since the job of another letter may have the same id.
        letters = DeadLetters(kafka, scanner, clock, place=place)
        with PutBack(kafka, REDRIVE, clock=clock) as back:
            return letters.redrive(LetterFilter(tenant=tenant), back, _PER_SECOND, lambda _: None).count > 0


def callback_of(letter: Letter) -> str | None:
    """Return the URL that is called after a redrive.

    The URL is in a header of a callback's record, or in the value of a job's record.
    """
    record = letter.record
    if letter.kind == "callback":
        return record.header(topics.CALLBACK_URL)
    return read_address(record.value, record.headers, Origin("", *record.place)).callback_url


async def _require_possible(door: Door, letter: Letter) -> None:
    """Refuse a letter that cannot be put back. Raises ApiError (403, 409) and StoreAway."""
    if letter.obstacle is not None:
        raise conflict("letter_held", f"The letter cannot be put back: {OBSTACLES[letter.obstacle]}.")
    url = callback_of(letter)
    if url is not None:
        await require_may_call(door, letter.record.tenant, url)


def _whose(visit: Visit) -> str | None:
    """Return the tenant whose letters the visitor sees; None for all tenants."""
    return None if visit.principal.may(Scope.ADMIN) else visit.tenant
