"""The counts of a vLLM server, on its page `/metrics` in Prometheus' text format."""

from __future__ import annotations

import math
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from workers.engines.openai_http.limits import ServerLoad

MOST_BYTES: Final = 4 * 1024 * 1024
"""Limit on the page: a vLLM server's has about 100 KiB for each data-parallel rank."""
_MOST_LINES: Final = 1024
"""Limit on the lines with counts: one for each count, model and rank. Parsing as many takes about 20 ms."""
_LONGEST_LINE: Final = 1024
_MOST_REQUESTS: Final = 2**31 - 1
_RUNNING: Final = "vllm:num_requests_running"
_WAITING: Final = "vllm:num_requests_waiting"


def load_in(page: bytes) -> ServerLoad | None:
    """Return the counts of all ranks together; None for a page without them, and for any other bytes."""
    lines = [line for line in page.decode("utf-8", "replace").split("\n") if line.startswith((_RUNNING, _WAITING))]
    if len(lines) > _MOST_LINES or any(len(line) > _LONGEST_LINE for line in lines):
        return None
    values: dict[str, list[float]] = {_RUNNING: [], _WAITING: []}
    try:
        for family in text_string_to_metric_families("\n".join(lines)):
            for sample in family.samples:
                values.get(sample.name, []).append(float(sample.value))
    except Exception:  # the parser raises errors of many kinds at malformed lines
        return None
    running, waiting = map(_count, (values[_RUNNING], values[_WAITING]))
    return ServerLoad(running, waiting) if running is not None and waiting is not None else None


def _count(values: list[float]) -> int | None:
    """Return the sum; None without values, and for values that count no requests."""
    if not values or not all(math.isfinite(value) and value >= 0 for value in values):
        return None
    total = sum(values)
    return round(total) if total <= _MOST_REQUESTS else None
