"""Distributes the test files over pytest's processes, so that one of them runs all files with vLLM."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from xdist.scheduler import LoadFileScheduling

ROOT = Path(__file__).parents[1]
MARK = "pytest.mark.vllm"


class OneVllm(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
    """Gives all files with a test of vLLM to one process, and each other file to the next free process.

    A vLLM takes 4 GB of memory. Two tests with two of them each, beside the engine that many tests share, would take
    all of a machine's 24 GB, and Linux would kill one of them.
    """

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return "vllm" if uses_vllm(file) else file


@cache
def uses_vllm(file: str) -> bool:
    """True if a test in this file, a path from the repository's root, has the mark `vllm`."""
    return MARK in (ROOT / file).read_text()
