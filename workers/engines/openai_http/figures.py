"""The counts of a vLLM server, on its page `/metrics` in Prometheus' text format."""

from __future__ import annotations

import math
import re
from itertools import islice
from typing import Final

from workers.engines.openai_http.limits import ServerLoad

MOST_BYTES: Final = 4 * 1024 * 1024
"""Limit on the page; the page of a vLLM server has about 100 KiB for each data-parallel rank."""
_MOST_LINES: Final = 1024
"""Limit on the lines with counts: one for each count, model and rank."""
_MOST_REQUESTS: Final = 2**31 - 1
_START: Final = rb"^vllm:num_requests_(?:running|waiting)(?:[ \t{]|$)"
_LINE: Final = re.compile(_START, re.MULTILINE)
_COUNT: Final = re.compile(
    rb"^vllm:num_requests_(running|waiting)[ \t]*+(?:\{[^\n]{0,1000}\}[ \t]*+|(?<=[ \t]))"
    rb"([0-9.eE+-]{1,32})(?:[ \t]++-?[0-9]{1,20})?+[ \t\r]*+$",
    re.MULTILINE,
)
"""Matches a line with a count, and a timestamp if the line has one.

The expression skips the labels. It replaces prometheus_client's parser, whose time grows with the square of a line's
length: that parser takes half a second of CPU time for a page whose labels are full of quotation marks.
"""


def load_in(page: bytes) -> ServerLoad | None:
    """Return the counts of all ranks together; None for bytes that are no page with these counts."""
    lines = sum(1 for _ in islice(_LINE.finditer(page), _MOST_LINES + 1))
    counts = [found.groups() for found in islice(_COUNT.finditer(page), _MOST_LINES + 1)]
    if lines > _MOST_LINES or len(counts) != lines:
        return None
    running, waiting = (_count([value for name, value in counts if name == kind]) for kind in (b"running", b"waiting"))
    return ServerLoad(running, waiting) if running is not None and waiting is not None else None


def _count(values: list[bytes]) -> int | None:
    """Return the sum of the values; None without values, and for values that cannot be numbers of requests."""
    try:
        total = sum(map(float, values))
    except ValueError:
        return None
    is_count = bool(values) and all(float(value) >= 0 for value in values) and math.isfinite(total)
    return round(total) if is_count and total <= _MOST_REQUESTS else None
