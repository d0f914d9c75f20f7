"""Warnings of models and adapters that no worker announces: a job for an unannounced one ends as `rejected`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

from console.errors import say
from console.grouped import say_by_line

if TYPE_CHECKING:
    from schemas.job import Job
    from schemas.settings import KafkaSettings


def warn_of_unserved(jobs: Iterable[tuple[int, Job]], kafka: KafkaSettings, *, checking: bool) -> None:
    """Print the lines whose model or adapter no worker announces. `jobs` are pairs of line number and job.

    The command goes on, since a worker with the model may start later. With `checking`, print the reason if models
    could not be checked. Kafka is asked only if a job names a model or an adapter.
    """
    from producers.errors import ProducerError
    from producers.workers import announced_models
    from workers.inference.registry import listed, quoted

    lines: defaultdict[str, list[int]] = defaultdict(list)
    tuned: defaultdict[str, list[int]] = defaultdict(list)
    for number, job in jobs:
        if job.model_id is not None:
            lines[job.model_id].append(number)
        if job.adapter is not None:
            tuned[job.adapter].append(number)
    if not lines and not tuned:
        return
    try:
        announced, unknown = (
            announced_models(kafka),
            "no worker of the shared lanes has announced itself within three minutes",
        )
    except ProducerError as error:
        announced, unknown = None, str(error)
    if announced is not None and announced.more:
        announced, unknown = None, "a worker has more models than it announces"
    if announced is None:
        if checking:
            say(f"models were not checked: {unknown}")
        return
    running = listed(announced.models)
    say_by_line(
        {
            f"model: no worker announces {quoted(model)}; those that run now announce {running}: send with --model any "
            "or one of these, or have the operator add an alias to POSTBACK_WORKER__MODELS or the registry": numbers
            for model, numbers in lines.items()
            if model not in announced.models
        }
    )
    if announced.adapters is None:
        if checking and tuned:
            say("adapters were not checked: a worker of an earlier version does not announce its adapters")
        return
    adapters = listed(announced.adapters) or "none"
    say_by_line(
        {
            f"adapter: no worker announces {quoted(adapter)}; those that run now announce {adapters}: name one of "
            "these or leave it out, or have the operator add the adapter to the model registry": numbers
            for adapter, numbers in tuned.items()
            if adapter not in announced.adapters
        }
    )
