"""`postback backlog`: counts the jobs and callbacks that wait in Kafka, also while no worker or delivery runs."""

from __future__ import annotations

import json
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.shared.errors import asking_kafka
from cli.shared.settings import fleet_settings
from schemas.groups import INFERENCE_GROUP
from workers.stage.progress import done_offsets

if TYPE_CHECKING:
    from cli.operations.backlog import GroupProgress

_NAMES = 2
"""The number of leading columns that hold names; the other columns hold numbers."""
_COLUMNS = ("topic", "group", "committed", "end", "backlog")


def backlog(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON that lists each partition, for programs.")
    ] = False,
) -> None:
    """Show the backlog: jobs in the lanes, and results and callbacks for delivery.

    The command only reads Kafka, so it works without running workers. A topic's offsets are the sums over its
    partitions. The backlog also counts transaction markers, until the partition's reader has passed them.
    """
    from cli.operations.backlog import standings

    with asking_kafka():
        topics = [_summary(list(each)) for _, each in groupby(standings(fleet_settings().kafka), _topic)]
    jobs = sum(each["backlog"] for each in topics if each["group"] == INFERENCE_GROUP)
    total = sum(each["backlog"] for each in topics)
    if as_json:
        said = {"jobs": jobs, "callbacks": total - jobs, "total": total, "topics": topics}
        typer.echo(json.dumps(said, indent=1))
        return
    for line in _table(topics):
        typer.echo(line)
    typer.echo(f"{total} in all: {jobs} jobs, {total - jobs} results and callbacks")


def _table(topics: list[dict[str, Any]]) -> list[str]:
    rows = [_COLUMNS, *(tuple(str(each[column]) for column in _COLUMNS) for each in topics)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([*map(str.ljust, row[:_NAMES], widths[:_NAMES]), *map(str.rjust, row[_NAMES:], widths[_NAMES:])])
        for row in rows
    ]


def _topic(standing: GroupProgress) -> str:
    return standing.topic


def _summary(partitions: list[GroupProgress]) -> dict[str, Any]:
    said = [
        {"partition": each.partition, "committed": each.base, "end": each.end, "backlog": each.undone(done_offsets)}
        for each in partitions
    ]
    sums = {column: sum(each[column] for each in said) for column in ("committed", "end", "backlog")}
    return {"topic": partitions[0].topic, "group": partitions[0].group, **sums, "partitions": said}
