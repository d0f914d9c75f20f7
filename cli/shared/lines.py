"""Lines of a command's input file, or of standard input: jobs, or ids of jobs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from cli.shared.errors import BAD_INPUT, fail, refusing
from cli.shared.settings import checked_tenant, checked_text

if TYPE_CHECKING:
    from producers.receipts import NamedJobs

IDS = "The file that names the jobs: a receipt of `postback submit`, or one id a line; - is standard input."
"""The help of `--ids`."""


@contextmanager
def lines_of(file: str) -> Iterator[BinaryIO]:
    """Open a file to read its lines; `-` is standard input."""
    if file == "-":
        yield sys.stdin.buffer
        return
    with refusing(file), Path(file).open("rb") as opened:
        yield opened


def named_jobs(file: str | None, ids: list[str]) -> NamedJobs:
    """Return the jobs that `--ids` and the command line name."""
    from producers.receipts import NamedJobs, ReceiptRefused, read_ids

    named = NamedJobs({}, None, 0)
    if file is not None:
        try:
            with lines_of(file) as lines:
                named = read_ids(lines)
        except ReceiptRefused as refused:
            raise fail(f"--ids {file}: {refused}", BAD_INPUT) from None
    for job_id in ids:
        named.entries.setdefault(_checked_id(job_id), None)
    return named


def tenant_of(named: NamedJobs, tenant: str | None) -> str:
    """Return the jobs' tenant: the option's value, else the receipt's tenant, else `default`."""
    if tenant is None:
        return named.tenant or "default"
    if named.tenant not in (None, tenant):
        raise fail(f"--tenant: the receipt is of {named.tenant}", BAD_INPUT)
    return checked_tenant(tenant)


def _checked_id(job_id: str) -> str:
    from schemas.job import Identifier

    return checked_text(Identifier, job_id, "ID: 1 to 256 characters of printable ASCII without spaces")
