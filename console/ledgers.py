"""Reads the stage's ledgers for commands of `operators`, a package that may not import the stage."""

from __future__ import annotations


def done_offsets(base: int, metadata: str) -> int:
    """Return a commit's bitmap of done offsets: bit i stands for offset base + i.

    An unreadable ledger gives an empty bitmap, because the stage then handles every record from the base on again.
    """
    from workers.stage.progress import Progress, UndecodableLedger

    try:
        return Progress.decode(base, metadata).done
    except UndecodableLedger:
        return 0
