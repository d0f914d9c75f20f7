"""Converts CSS lengths and shares (CSS Values and Units, level 4) to numbers, calculated ones too."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final

NUMBER: Final = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"

_UNITS: Final = {
    "": 1.0, "px": 1.0, "em": 16.0, "rem": 16.0, "ex": 8.0, "ch": 8.0, "pt": 4 / 3, "pc": 16.0, "in": 96.0, "cm": 37.8,
    "mm": 3.78, "q": 0.95, "%": 10.0, "vw": 10.0, "vh": 10.0, "vi": 10.0, "vb": 10.0, "vmin": 10.0, "vmax": 10.0,
    "dvw": 10.0, "dvh": 10.0, "svw": 10.0, "svh": 10.0, "lvw": 10.0, "lvh": 10.0,
}  # fmt: skip
"""CSS pixels of each unit. Percentages and units of the window assume 1000 pixels."""
_LENGTH: Final = re.compile(rf"({NUMBER})([a-z]*|%)")
_UNSIGNED: Final = re.compile(r"(?<![\w.])((?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)([a-z]*|%)")
_CALCULATION: Final = re.compile(r"(?:calc|min|max|clamp)\([^;]*\)")
_MAX_CHARS: Final = 200
_OPERATORS: Final[Mapping[type[ast.operator], Callable[[float, float], float]]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip
_FUNCTIONS: Final[Mapping[str, Callable[..., float]]] = {
    "calc": lambda value: value,
    "min": min,
    "max": max,
    "clamp": lambda low, value, high: max(low, min(value, high)),
}


@lru_cache(maxsize=4096)
def pixels(value: str | None) -> float | None:
    """Convert a length to CSS pixels, or return None for any other value."""
    if not value:
        return None
    length = _LENGTH.fullmatch(value)
    if length is not None:
        scale = _UNITS.get(length.group(2))
        return float(length.group(1)) * scale if scale is not None else None
    return _calculated(value) if _CALCULATION.fullmatch(value) else None


def ratio(value: str | None) -> float | None:
    """Convert a number or a percentage to a share of 1, or return None for any other value."""
    length = _LENGTH.fullmatch(value.strip()) if value else None
    if length is None or length.group(2) not in ("", "%"):
        return _calculated(value) if value and _CALCULATION.fullmatch(value) else None
    return float(length.group(1)) / (100 if length.group(2) == "%" else 1)


def _calculated(value: str) -> float | None:
    if len(value) > _MAX_CHARS:
        return None
    text = _UNSIGNED.sub(lambda found: repr(float(found.group(1)) * _UNITS.get(found.group(2), 1.0)), value)
    try:
        return float(_evaluated(ast.parse(text, mode="eval").body))
    except (SyntaxError, ValueError, TypeError, KeyError, ArithmeticError, RecursionError, AttributeError):
        return None


def _evaluated(node: Any) -> float:
    """Evaluate sums, products and the functions above. Raises TypeError or KeyError for everything else."""
    match node:
        case ast.Constant(value=float(number)):
            return number
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluated(operand)
        case ast.BinOp(left=left, op=sign, right=right):
            return _OPERATORS[type(sign)](_evaluated(left), _evaluated(right))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
            return _FUNCTIONS[name](*map(_evaluated, arguments))
    raise TypeError
