"""Errors that end a stage and come from no single part of the stage."""

from __future__ import annotations


class NothingCompletes(Exception):  # noqa: N818 - it names what happens
    """The process that runs the records died at one record after the other, and completed none."""

    def __init__(self) -> None:
        super().__init__(
            "the engine died each time at jobs that ran alone, and has completed none since: the fault seems to be the "
            "machine's or its GPU's. No job was given up; other workers go on with them. See the engine's log and the "
            "GPU's health before this worker starts again"
        )
