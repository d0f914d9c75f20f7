"""URLs in a job, as a pattern that other programs can check too."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import StringConstraints

_HOST: Final = r'(?:\[[0-9A-Fa-f:.]+\]|[^\s\x00-\x20\x7f/?#@:%<>"\\\[\]]+)'
_PORT: Final = r"(?:6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[0-9]{1,4})"
_REST: Final = r"(?:[/?#][^\s\x00-\x20\x7f\\]*)?"
Url = Annotated[
    str,
    StringConstraints(min_length=1, max_length=2048, pattern=rf"^[Hh][Tt][Tt][Pp][Ss]?://{_HOST}(?::{_PORT})?{_REST}$"),
]
"""An http or https URL (RFC 3986) without credentials. The egress guard decides if the URL's address may be reached."""
