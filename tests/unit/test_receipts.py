"""Receipts of submissions, and the lock between two runs with the same receipt."""

from __future__ import annotations

import fcntl
import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from producers.jsonl import read_jobs
from producers.receipts import ReceiptRefused, held, read_receipt, receipt_of, write_receipt
from telemetry.hand_clock import SetClock

LINES = [b'{"prompt": "a"}\n', b'{"prompt": "b"}\n']


def test_a_receipt_belongs_to_one_run_at_a_time_even_before_its_file_exists(tmp_path: Path) -> None:
    receipt = tmp_path / "receipt.jsonl"
    with held(receipt):
        with pytest.raises(ReceiptRefused, match="another run uses this receipt"), held(receipt):
            pass
        begun = receipt_of(read_jobs(LINES), "default", SetClock(1.0), read_receipt(receipt))
        write_receipt(receipt, begun.entries)
        with pytest.raises(ReceiptRefused), held(receipt):  # the receipt was replaced, and the lock still holds
            pass
    with held(receipt):
        assert read_receipt(receipt) == begun.entries
    assert list(tmp_path.iterdir()) == [receipt]


def test_a_receipt_is_the_same_by_whatever_name_and_stays_where_a_link_leads(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    receipt, link = tmp_path / "there" / "receipt.jsonl", tmp_path / "link"
    link.symlink_to(receipt)
    with held(link):
        with pytest.raises(ReceiptRefused), held(receipt):
            pass
        write_receipt(link, receipt_of(read_jobs(LINES), "default", SetClock(1.0)).entries)
    assert link.is_symlink()
    assert len(read_receipt(receipt)) == 2


def test_a_lock_file_that_its_former_holder_removed_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    receipt, lock = tmp_path / "receipt.jsonl", fcntl.flock

    def late(descriptor: int, how: int) -> None:
        """Between this run's opening and locking of the file, the run with the lock ends and another run begins."""
        monkeypatch.undo()
        (tmp_path / ".receipt.jsonl.lock").unlink()
        others.enter_context(held(receipt))
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with ExitStack() as others, pytest.raises(ReceiptRefused), held(receipt):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_is_no_file_is_left_as_it_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ReceiptRefused, match="is no file that could be replaced"), held(tmp_path / "pipe"):
        pass
    assert [found.is_fifo() for found in tmp_path.iterdir()] == [True]
