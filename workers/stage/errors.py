"""Errors that end a stage and come from no single part of the stage."""

from __future__ import annotations


class NothingCompletes(Exception):  # noqa: N818 - it names what happens
    """The process that runs the records died at several records in a row, and completed none."""

    def __init__(self) -> None:
        super().__init__(
            "the engine died each time at jobs that ran alone, and completed no job in between: the machine or its GPU "
            "seems to be at fault. No job was given up; other workers take the jobs over. Check the engine's log and "
            "the GPU's health before you start this worker again"
        )
