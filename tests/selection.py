"""Chooses and orders the tests of a run: long parts that are due, and the longest files first.

A long part is a set of test files that takes minutes, and protects few paths: `long.toml` lists both. After a part has
passed, the digest of its tests and of these paths stands in `long.passed.json`, which is committed. The default run
includes exactly the parts whose digest differs: nothing lands untested, and an untouched part costs nothing.
"""

from __future__ import annotations

import ast
import hashlib
import json
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PARTS = Path(__file__).with_name("long.toml")
PASSED = Path(__file__).with_name("long.passed.json")
SECONDS = Path(__file__).with_name("seconds.json")
PINS = "requirements/dev.txt"
"""The pinned libraries: each part's digest contains them."""

_MARK_OF_VLLM = "pytest.mark.vllm"
_IGNORED = frozenset({"__pycache__", ".hypothesis"})


@dataclass(frozen=True, slots=True)
class Part:
    """A long part of the suite."""

    name: str
    tests: tuple[str, ...]
    """Globs of the test files, from the repository's root, and single tests as FILE::NAME."""
    protects: tuple[str, ...]
    """Files and folders whose changes make the part due."""

    def places(self, root: Path = ROOT) -> list[str]:
        """Return the test files and the single tests, sorted. Raises ValueError if a place does not exist."""
        found = set[str]()
        for pattern in self.tests:
            file, _, test = pattern.partition("::")
            matched = {path.relative_to(root).as_posix() for path in root.glob(file) if path.name.startswith("test_")}
            if not matched or (test and f"def {test}(" not in (root / file).read_text()):
                raise ValueError(f"long.toml: the part {self.name} names {pattern}, which does not exist")
            found |= {pattern} if test else matched
        return sorted(found)

    def digest(self, root: Path = ROOT) -> str:
        """Return a digest of the tests with the helpers that they import, the protected paths and the pins.

        Raises ValueError if a protected path does not exist: a renamed path would protect nothing.
        """
        digest = hashlib.sha256()
        for file in sorted({*with_helpers(map(file_of, self.places(root)), root), *self._protected(root), PINS}):
            digest.update(f"{file}\0{hashlib.sha256((root / file).read_bytes()).hexdigest()}\n".encode())
        return digest.hexdigest()

    def _protected(self, root: Path) -> Iterator[str]:
        for name in self.protects:
            path = root / name
            if not path.exists():
                raise ValueError(f"long.toml: the part {self.name} protects {name}, which does not exist")
            for file in path.rglob("*") if path.is_dir() else [path]:
                if file.is_file() and not _IGNORED & set(file.parts):
                    yield file.relative_to(root).as_posix()


def with_helpers(files: Iterable[str], root: Path = ROOT) -> set[str]:
    """Return these files and all modules of `tests` that they import, directly or not."""
    found, open_files = set[str](), list(files)
    while open_files:
        file = open_files.pop()
        if file not in found:
            found.add(file)
            open_files += _imported(root, file)
    return found


def _imported(root: Path, file: str) -> list[str]:
    names = set[str]()
    for node in ast.walk(ast.parse((root / file).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "tests":
            names |= {node.module, *(f"{node.module}.{each.name}" for each in node.names)}
    paths = [Path(*name.split(".")).with_suffix(".py") for name in names]
    return [path.as_posix() for path in paths if (root / path).is_file()]


@cache
def parts() -> dict[str, Part]:
    """Return the long parts by name."""
    listed = tomllib.loads(PARTS.read_text())
    return {name: Part(name, tuple(one["tests"]), tuple(one["protects"])) for name, one in listed.items()}


def passed() -> dict[str, str]:
    """Return the digest with which each part passed last."""
    read: dict[str, str] = json.loads(PASSED.read_text()) if PASSED.exists() else {}
    return read


def due() -> list[str]:
    """Return the names of the parts whose digest is not the one that passed last."""
    known = passed()
    return [name for name, part in parts().items() if known.get(name) != part.digest()]


def write_passed(digests: Mapping[str, str]) -> None:
    """Add the digests of parts that have passed."""
    known = {name: digest for name, digest in {**passed(), **digests}.items() if name in parts()}
    PASSED.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")


@dataclass(frozen=True, slots=True)
class Selection:
    """The parts of a run."""

    included: tuple[str, ...]
    alone: bool
    """True if the run has only the tests of the included parts."""

    def leaves_out_file(self, file: str) -> bool:
        """True if the run has no test of this file, a path from the root."""
        home = _homes().get(file)
        if home or not self.alone:
            return home not in (None, *self.included)
        return file not in {file_of(place) for name in self.included for place in parts()[name].places()}

    def leaves_out(self, nodeid: str) -> bool:
        """True if the run does not have this test."""
        home = _homes().get(_without_parameters(nodeid)) or _homes().get(file_of(nodeid))
        return home not in self.included if home else self.alone


def file_of(place: str) -> str:
    """Return the file of a test file's or a test's name."""
    return place.partition("::")[0]


def _without_parameters(nodeid: str) -> str:
    return nodeid.partition("[")[0]


@cache
def _homes() -> dict[str, str]:
    """Map each test file and each single test of a long part to the part."""
    homes = dict[str, str]()
    for part in parts().values():
        for place in part.places():
            if place in homes:
                raise ValueError(f"long.toml: {place} is in {homes[place]} and in {part.name}")
            homes[place] = part.name
    return homes


class Outcomes:
    """The outcomes and seconds of a run's tests, by file."""

    def __init__(self) -> None:
        self._seconds = defaultdict[str, float](float)
        self._ran = set[str]()
        self._bad = set[str]()

    def add(self, nodeid: str, outcome: str, seconds: float) -> None:
        """Note a phase of a test: its setup, its call or its teardown."""
        places = {file_of(nodeid), _without_parameters(nodeid)}
        self._seconds[file_of(nodeid)] += seconds
        self._ran |= places
        if outcome != "passed":
            self._bad |= places

    def whole(self, places: Iterable[str]) -> bool:
        """True if each of these files and tests ran, and all of them passed."""
        return self._ran.issuperset(places) and self._bad.isdisjoint(places)

    def write_seconds(self) -> None:
        """Replace the seconds of the files that ran, and drop files that are gone."""
        known = {**seconds(), **{file: round(taken, 1) for file, taken in self._seconds.items()}}
        kept = {file: taken for file, taken in known.items() if taken >= 1 and (ROOT / file).exists()}
        SECONDS.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n")


def seconds() -> dict[str, float]:
    """Return the seconds that each slow file took in the run that wrote them; other files took less than one."""
    read: dict[str, float] = json.loads(SECONDS.read_text()) if SECONDS.exists() else {}
    return read


@cache
def scope(file: str) -> str:
    """Return the name of the group of files that one pytest process runs: usually the file itself.

    All files with vLLM are one group: an engine takes 4 GB, and two tests with two engines each, beside the one that
    many tests share, would take all of a machine's memory. Kubernetes' tests share a control plane.
    """
    if file.startswith("tests/kubernetes/"):
        return "kubernetes"
    return "vllm" if _MARK_OF_VLLM in (ROOT / file).read_text() else file


def longest_first(files: Sequence[str]) -> list[int]:
    """Return the order in which to run tests, given the file of each: groups by falling seconds.

    Within a group, tests keep their order. A group that was never timed counts as a second.
    """
    known, taken, first = seconds(), defaultdict[str, float](float), dict[str, int]()
    for index, file in enumerate(files):
        if scope(file) not in first:
            first[scope(file)] = index
    for file in dict.fromkeys(files):
        taken[scope(file)] += known.get(file, 1.0)
    return sorted(range(len(files)), key=lambda index: (-taken[scope(files[index])], first[scope(files[index])], index))
