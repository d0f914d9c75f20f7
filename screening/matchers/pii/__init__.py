"""Personal data: one module for each kind, each with a check such as a check digit, so that few order numbers match."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

from screening.matchers.base import Match
from screening.matchers.pii.addresses import addresses
from screening.matchers.pii.cards import cards
from screening.matchers.pii.emails import emails
from screening.matchers.pii.ibans import ibans
from screening.matchers.pii.phones import phones
from screening.matchers.pii.social_security import social_security_numbers

PiiKind = Literal["card", "iban", "email", "phone", "ip", "ssn"]
Spans = Callable[[str], Iterator[tuple[int, int]]]


class Pii:
    """Finds personal data of the given kinds. `regions` are countries whose phone numbers need no `+`."""

    def __init__(self, kinds: tuple[PiiKind, ...], regions: tuple[str, ...] = ()) -> None:
        finders: dict[PiiKind, Spans] = {
            "card": cards,
            "iban": ibans,
            "email": emails,
            "phone": partial(phones, regions=regions),
            "ip": addresses,
            "ssn": social_security_numbers,
        }
        self._finders = [(kind, finders[kind]) for kind in kinds]

    def matches(self, text: str) -> Iterator[Match]:
        """Yield the places of personal data in the text."""
        for kind, finder in self._finders:
            for start, end in finder(text):
                yield Match(start, end, kind)
