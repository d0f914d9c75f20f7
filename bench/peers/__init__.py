"""Other systems on the same work as Postback, each in a folder of its own that holds its packages."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.result import ROOT, used

FOLDER = ROOT / "build" / "peers"
NONE = "–"  # noqa: RUF001 - as in the tables of docs/
"""The cell of a figure that a system cannot have; a table of reasons says why."""


def installed(name: str, packages: Sequence[str]) -> Path:
    """Return the folder of a peer's programs, whose packages the first call installs from PyPI.

    Keeps the packages' versions with the figures. Raises CalledProcessError if they cannot be installed.
    """
    folder = FOLDER / name
    stamp = folder / "installed"
    wanted = " ".join(packages)
    if not stamp.exists() or stamp.read_text() != wanted:
        uv = str(Path(sys.executable).with_name("uv"))
        subprocess.run((uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)), check=True)
        install = (uv, "pip", "install", "--quiet", "--python", str(folder / "bin" / "python"), *packages)
        subprocess.run(install, check=True)
        stamp.write_text(wanted)
    for package in packages:
        used(*package.split("=="))
    return folder / "bin"


def with_best(rows: Sequence[Sequence[str]], best: Sequence[int | None]) -> list[list[str]]:
    """Return the rows of a table with the best figure of each column in bold; a tie has several.

    `best` has a sign for each column: 1 if more is better, -1 if less is, None for a column without figures.
    """
    columns = [list(column) for column in zip(*rows, strict=True)]
    for column, sign in zip(columns, best, strict=True):
        numbers = [_number(cell) for cell in column]
        known = [sign * number for number in numbers if number is not None] if sign else []
        for place, number in enumerate(numbers):
            if sign and number is not None and sign * number == max(known):
                column[place] = f"**{column[place]}**"
    return [list(row) for row in zip(*columns, strict=True)]


def _number(cell: str) -> float | None:
    try:
        return float(cell.replace(",", ""))
    except ValueError:
        return None
