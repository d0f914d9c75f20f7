"""The program of `scripts/demo`: options, exit status, and an orderly end at a signal."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Annotated, Literal

import typer

from cli.shared.errors import FAILED, fail, quiet_clients, say, telling
from producers.errors import ProducerError
from scripts.play.demo import SystemFailed, play

_INTERRUPTED = 130


def demo(
    jobs: Annotated[int, typer.Option(min=1, max=100_000, help="The number of questions.")] = 20,
    engine: Annotated[
        Literal["vllm", "echo"],
        typer.Option(help="The engine: vllm runs a small real model, echo answers with the prompt."),
    ] = "vllm",
) -> None:
    """Run Kafka, a worker, delivery, a web site and a receiver, ask questions, and check every callback.

    Then the gateway takes a batch from OpenAI's SDK. Only the web site has the answers to the questions. `postback dev`
    runs everything else, and ends with the demo.
    POSTBACK_KAFKA__BOOTSTRAP_SERVERS names a Kafka to use; by default one is started.

    Exit status: 0 every callback came, with a valid signature and the right answer; 1 some did not.
    """
    quiet_clients()
    _end_alike_on_all_signals()
    try:
        with telling(ProducerError, SystemFailed):
            well = play(jobs, engine)
    except KeyboardInterrupt:
        raise fail("interrupted; everything that was started has ended", _INTERRUPTED) from None
    if not well:
        say("the demo failed")
        raise typer.Exit(FAILED)


def _end_alike_on_all_signals() -> None:
    """Let SIGTERM end the demo like Ctrl-C. Also restore SIGINT, which a shell disables for background jobs."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.raise_signal(signal.SIGINT)


if __name__ == "__main__":
    typer.run(demo)
