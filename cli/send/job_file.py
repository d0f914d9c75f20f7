"""Reads the file of jobs for `postback submit`, checks its lines, and reports their problems."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from cli.shared.errors import BAD_INPUT, fail, say
from cli.shared.failures import SHOWN, lines_named, say_by_line, say_more
from cli.shared.lines import lines_of
from cli.shared.output import GO_ON, written
from cli.shared.settings import checked_text
from cli.shared.times import checked_time

if TYPE_CHECKING:
    from producers.jsonl import JobFile
    from schemas.problems import Problem

_SKIPPING = "--skip-invalid"


def checked_jobs(
    file: str, callback_url: str | None, model: str | None, skipped: Path | None, not_before: str | None = None
) -> JobFile:
    """Read and check every line, and print the problems. End the command if no job can be sent.

    Invalid lines go to the file `skipped`, each with its reasons; without that file one invalid line ends the command.
    """
    from producers.jsonl import read_jobs
    from schemas.unknown import described

    begins_ms = checked_time("--not-before", not_before)
    begins = None if begins_ms is None else begins_ms / 1000
    url, model = _checked_url(callback_url), _checked_model(model)
    name = "standard input" if file == "-" else file
    with lines_of(file) as lines, _skipped_to(skipped) as writer:
        read = read_jobs(lines, url, model, writer, begins)
    _say_problems(name, read)
    say_by_line({f"unknown field {described(field)}, ignored": numbers for field, numbers in read.unknown.items()})
    if skipped is None and read.problems:
        raise fail(f"{len(read.problems)} problems; nothing was sent", BAD_INPUT)
    if not read.jobs:
        raise fail(f"{name} holds no {'valid ' if read.invalid else ''}job; nothing was sent", BAD_INPUT)
    if read.invalid:
        say(f"skipped {lines_counted(read.invalid)}; {skipped} has each with its reasons")
    return read


def lines_counted(count: int) -> str:
    """Return the number of invalid lines as text."""
    return f"{count} invalid line{'s' if count > 1 else ''}"


def _say_problems(name: str, read: JobFile) -> None:
    """Print each problem once, with its lines. A single line is named `FILE:LINE`, a form that editors can open."""
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for found in read.problems:
        groups[str(found.problem)].append(found.line)
    for problem, numbers in list(groups.items())[:SHOWN]:
        place = f"{name}:{numbers[0]}" if len(numbers) == 1 else f"{name}: {lines_named(numbers)}"
        say(f"{place}: {problem}")
    say_more(len(groups))


class _InvalidLines:
    """Writes invalid lines as JSON Lines: `line` (its number), `error` (the reasons) and `input` (the line)."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def __call__(self, number: int, content: bytes, problems: Sequence[Problem]) -> None:
        """Write one line. Bytes that are not UTF-8 become escapes, since JSON holds text only."""
        written_as = {
            "line": number,
            "error": "; ".join(map(str, problems)),
            "input": content.decode("utf-8", "backslashreplace"),
        }
        self._out.write(json.dumps(written_as, ensure_ascii=False) + "\n")


@contextmanager
def _skipped_to(path: Path | None) -> Iterator[_InvalidLines | None]:
    """Yield a writer to the file for invalid lines, whole before the first job is sent; None without a path."""
    with written(_SKIPPING, path, f"nothing was sent; {GO_ON}", BAD_INPUT) as out:
        yield None if out is None else _InvalidLines(out)


def _checked_url(url: str | None) -> str | None:
    from schemas.job import Url

    if url is None:
        return None
    return checked_text(Url, url, "--callback-url: is not an http or https URL without credentials")


def _checked_model(model: str | None) -> str | None:
    from schemas.job import Identifier

    if model is None:
        return None
    refusal = "--model: is not a name of 1 to 256 characters of printable ASCII without spaces"
    return checked_text(Identifier, model, refusal)
