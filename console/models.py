"""Warns of models and adapters that no worker announces, because a job that names one of them ends as `rejected`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from console.errors import say
from console.grouped import say_by_line

if TYPE_CHECKING:
    from producers.workers import Announced
    from schemas.job import Job
    from schemas.settings import KafkaSettings

Lines = defaultdict[str, list[int]]
"""Maps each name of a model or adapter to the numbers of the lines that use it."""


def warn_of_unserved(jobs: Iterable[tuple[int, Job]], kafka: KafkaSettings, *, checking: bool) -> None:
    """Print the lines whose model or adapter no worker announces. `jobs` are pairs of line number and job.

    The command goes on, since a worker with the model may start later. With `checking`, print the reason if models
    could not be checked. Kafka is asked only if a job names a model or an adapter.
    """
    models: Lines = defaultdict(list)
    adapters: Lines = defaultdict(list)
    for number, job in jobs:
        if job.model_id is not None:
            models[job.model_id].append(number)
        if job.adapter is not None:
            adapters[job.adapter].append(number)
    if not models and not adapters:
        return
    announced = _announced(kafka)
    if isinstance(announced, str):
        if checking:
            say(f"models were not checked: {announced}")
        return
    _warn_of_models(models, announced.models)
    if announced.adapters is not None:
        _warn_of_adapters(adapters, announced.adapters)
    elif checking and adapters:
        say("adapters were not checked: a worker of an earlier version does not announce its adapters")


def _announced(kafka: KafkaSettings) -> Announced | str:
    """Return the names that workers announce, or the reason why the names cannot be read."""
    from producers.errors import ProducerError
    from producers.workers import announced_models

    try:
        announced = announced_models(kafka)
    except ProducerError as error:
        return str(error)
    if announced is None:
        return "no worker of the shared lanes has announced itself within three minutes"
    return announced if not announced.more else "a worker has more models or adapters than it announces"


def _warn_of_models(lines: Lines, announced: Sequence[str]) -> None:
    from workers.inference.routing import listed, quoted

    running = listed(announced)
    say_by_line(
        {
            f"model: no worker announces {quoted(model)}; those that run now announce {running}: send with --model any "
            "or one of these, or have the operator add an alias to POSTBACK_WORKER__MODELS or the registry": numbers
            for model, numbers in lines.items()
            if model not in announced
        }
    )


def _warn_of_adapters(lines: Lines, announced: Sequence[str]) -> None:
    from workers.inference.routing import listed, quoted

    running = listed(announced) or "none"
    say_by_line(
        {
            f"adapter: no worker announces {quoted(adapter)}; those that run now announce {running}: name one of "
            "these or leave it out, or have the operator add the adapter to the model registry": numbers
            for adapter, numbers in lines.items()
            if adapter not in announced
        }
    )
