"""Numbers as Grafana writes them on an axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

_SUFFIX: Final = "suffix: "
_SECONDS: Final = (
    (604_800, "week"),
    (86_400, "day"),
    (3_600, "hour"),
    (60, "min"),
    (1, "s"),
    (1e-3, "ms"),
    (1e-6, "µs"),
)
_SHORT: Final = ((1e9, " Bil"), (1e6, " Mil"), (1e3, " K"), (1, ""))


def written(value: float, unit: str) -> str:
    """Return a number with its unit. Raises KeyError for a unit that no dashboard has."""
    if unit.startswith(_SUFFIX):
        return f"{_short(value)} {unit.removeprefix(_SUFFIX)}"
    return _UNITS[unit](value)


def _scaled(value: float, steps: tuple[tuple[float, str], ...], space: str) -> str:
    size = abs(value)
    factor, name = next((step for step in steps if size >= step[0] * (1 - 1e-9)), steps[-1])
    return f"{value / factor:.4g}{space}{name}"


def _seconds(value: float) -> str:
    return _scaled(value, _SECONDS, " ") if value else "0 s"


def _short(value: float) -> str:
    return _scaled(value, _SHORT, "")


_UNITS: Final[dict[str, Callable[[float], str]]] = {
    "short": _short,
    "s": _seconds,
    "ops": lambda value: f"{_short(value)} ops/s",
    "reqps": lambda value: f"{_short(value)} req/s",
    "percent": lambda value: f"{value:.4g}%",
    "percentunit": lambda value: f"{100 * value:.4g}%",
}
