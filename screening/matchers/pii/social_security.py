"""Social security numbers of the United States, as the Social Security Administration issues them."""

from __future__ import annotations

import re
from collections.abc import Iterator

_number = re.compile(
    r"(?<![\w])(?<![0-9][.-])(?!000|666|9)[0-9]{3}(?P<between>[ -])(?!00)[0-9]{2}(?P=between)(?!0000)[0-9]{4}"
    r"(?![\w]|[.-][0-9])"
)


def social_security_numbers(text: str) -> Iterator[tuple[int, int]]:
    """Return the places of numbers in three groups, 3-2-4. No area is 000, 666 or 9xx; no group is all zeros."""
    for found in _number.finditer(text):
        yield found.span()
