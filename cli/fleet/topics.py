"""`postback topics`: creates the fleet's topics, configures its consumer groups, and counts the records that wait."""

from __future__ import annotations

import json
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.shared.errors import BAD_INPUT, FAILED, fail, say
from cli.shared.settings import fleet_settings
from cli.shared.terminal import table
from schemas.groups import INFERENCE_GROUP
from workers.stage.progress import done_offsets

if TYPE_CHECKING:
    from cli.operations.backlog import GroupProgress
    from cli.operations.topics import GroupsReport, TopicsReport

app = typer.Typer(no_args_is_help=True, help="Create and configure the topics; count the jobs and callbacks that wait.")

_NAMES = 2
"""The number of leading columns that hold names; the other columns hold numbers."""
_COLUMNS = ("topic", "group", "committed", "end", "backlog")


@app.command()
def create(
    partitions: Annotated[
        int | None,
        typer.Option(
            min=1, max=10_000, help="Number of partitions of each topic, instead of POSTBACK_KAFKA__PARTITIONS."
        ),
    ] = None,
    replication_factor: Annotated[
        int | None,
        typer.Option(
            min=1, max=10, help="Number of copies of each record, instead of POSTBACK_KAFKA__REPLICATION_FACTOR."
        ),
    ] = None,
    engine: Annotated[
        list[str] | None, typer.Option(help="Also create lanes for this engine alone; may be repeated.")
    ] = None,
    raise_partitions: Annotated[
        bool, typer.Option("--raise-partitions", help="Add partitions to topics that have fewer than wanted.")
    ] = False,
    fix_config: Annotated[
        bool, typer.Option("--fix-config", help="Give existing topics the configuration of new topics.")
    ] = False,
) -> None:
    """Create the topics that are missing and set up the consumer groups. The command may be run again.

    Exit status: 0 done, 1 failed, or the configuration of an existing topic may lose records.
    """
    from cli.operations.topics import configure_groups, create_topics
    from schemas.topics import is_engine_lane

    if not all(map(is_engine_lane, engine or ())):
        raise fail("--engine: 1 to 64 letters, digits, `_` or `-`, and none of batch, shadow and spare", BAD_INPUT)
    changes = {"partitions": partitions, "replication_factor": replication_factor}
    kafka = fleet_settings().kafka.model_copy(update={name: value for name, value in changes.items() if value})
    report = create_topics(kafka, engines=engine or (), raise_partitions=raise_partitions, fix_config=fix_config)
    _report_topics(report)
    _report_groups(configure_groups(kafka))
    if not report.is_sound:
        raise typer.Exit(FAILED)


@app.command()
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

    topics = [_summary(list(each)) for _, each in groupby(standings(fleet_settings().kafka), _topic)]
    jobs = sum(each["backlog"] for each in topics if each["group"] == INFERENCE_GROUP)
    total = sum(each["backlog"] for each in topics)
    if as_json:
        said = {"jobs": jobs, "callbacks": total - jobs, "total": total, "topics": topics}
        typer.echo(json.dumps(said, indent=1))
        return
    for line in table([_COLUMNS, *([str(each[column]) for column in _COLUMNS] for each in topics)], _NAMES):
        typer.echo(line)
    typer.echo(f"{total} in all: {jobs} jobs, {total - jobs} results and callbacks")


def _report_topics(report: TopicsReport) -> None:
    for name in report.created:
        typer.echo(f"created {name}")
    for raised in report.raised:
        typer.echo(f"raised {raised.topic} from {raised.found} to {raised.wanted} partitions")
    for fixed in report.fixed:
        typer.echo(f"set {fixed.name} of {fixed.topic} from {fixed.found} to {fixed.wanted}")
    for difference in report.differences:
        fix = "--raise-partitions raises it" if difference.wanted > difference.found else "partitions cannot be lowered"
        say(f"{difference.topic} has {difference.found} partitions, not {difference.wanted}; {fix}")
    for thin in report.thin:
        say(
            f"{thin.topic} has {thin.found} of {thin.wanted} copies: add them with kafka-reassign-partitions.sh, or "
            f"set POSTBACK_KAFKA__REPLICATION_FACTOR={thin.found} if that is intended"
        )
    for wrong in report.misconfigured:
        say(f"{wrong.topic} has {wrong.name}={wrong.found}, not {wrong.wanted}; --fix-config sets it")
    for name in report.unseen:
        say(f"the configuration of {name} was not compared: the broker does not show it (DescribeConfigs)")
    copies = "one copy" if report.replicas == 1 else f"{report.replicas} copies"
    say(f"{len(report.created)} topics created with {copies} of each record, {len(report.existing)} were there")


def _report_groups(report: GroupsReport) -> None:
    if report.session_timeout_ms is not None:
        say(f"a killed worker's partitions go to other workers after {report.session_timeout_ms / 1000:g} s")
    for problem in report.problems:
        say(f"consumer groups keep the broker's session timeout, 45 s unless changed: {problem}")


def _topic(standing: GroupProgress) -> str:
    return standing.topic


def _summary(partitions: list[GroupProgress]) -> dict[str, Any]:
    said = [
        {"partition": each.partition, "committed": each.base, "end": each.end, "backlog": each.undone(done_offsets)}
        for each in partitions
    ]
    sums = {column: sum(each[column] for each in said) for column in ("committed", "end", "backlog")}
    return {"topic": partitions[0].topic, "group": partitions[0].group, **sums, "partitions": said}
