"""Marks around the sources in a prompt: letters that no page can foresee. Equal sources have equal marks.

A mark is a MAC over the sources (HMAC-SHA256, RFC 2104) with a secret of the fleet. Equal sources thus give equal
prompts up to the question, and the engine finds their tokens in its prefix cache, whichever worker asks.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import secrets
from typing import Final

_LETTERS: Final = "bcdfghjklmnpqrstvwxz"
"""Only consonants, since a small model could take a mark with vowels or digits for a word or number of the page."""
_LENGTH: Final = 8
_DOMAIN: Final = b"postback sources mark v1"
"""Separates marks from other uses of the secret."""
_PROCESS_SECRET: Final = secrets.token_bytes(32)


def fleet_secret(signing_secret: bytes | None, topic_id: str) -> bytes:
    """Return the secret of a fleet's marks: the secret that signs jobs, else the UUID of a topic of the fleet.

    Each worker knows the topic's UUID without any setting, so all workers before one server give equal prompts to equal
    sources. Kafka draws the UUID at random, and the authors of pages never see it. Clients of the fleet's Kafka may see
    it. So use the signing secret if such clients may also write pages.
    """
    return signing_secret if signing_secret is not None else topic_id.encode()


def mark_for(sources: bytes, shown: str, secret: bytes | None = None) -> str:
    """Return the mark for these sources. The text `shown` does not contain the mark, in small or in capital letters.

    `sources` is any encoding of the sources. Without `secret`, the mark comes from a random secret of this process. A
    page's author may have learned the mark from earlier jobs. So if `shown` contains the mark, the next MAC gives
    another mark.
    """
    key = hmac.digest(secret or _PROCESS_SECRET, _DOMAIN, hashlib.sha256)
    digest = hashlib.sha256(sources).digest()
    macs = (hmac.digest(key, digest + number.to_bytes(8, "big"), hashlib.sha256) for number in itertools.count())
    lowered = shown.lower()
    return next(mark for mark in map(_letters, macs) if mark not in lowered)


def _letters(mac: bytes) -> str:
    """Encode the beginning of the MAC as letters: one letter for every two bytes."""
    numbers = (int.from_bytes(mac[at : at + 2], "big") for at in range(0, 2 * _LENGTH, 2))
    return "".join(_LETTERS[number % len(_LETTERS)] for number in numbers)
