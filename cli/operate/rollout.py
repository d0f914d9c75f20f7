"""`postback rollout`: tries a candidate model on copies of jobs, then on a growing share of the jobs themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.shared.errors import fail, say
from cli.shared.output import written
from cli.shared.settings import checked_text, fleet_settings
from cli.shared.terminal import harmless

if TYPE_CHECKING:
    from cli.operations.rollouts import JudgedRollout
    from schemas.rollout.facts import Rollout, Step
    from schemas.settings import KafkaSettings

app = typer.Typer(no_args_is_help=True, help="Try a candidate model, and promote or abort it.")

Alias = Annotated[
    str | None, typer.Option(help="The rollout's alias; may be left out if only one alias has a rollout.")
]


@app.command()
def start(
    alias: Annotated[
        str, typer.Option(help="The name that jobs have as `model_id`; `default` means jobs without `model_id`.")
    ],
    candidate: Annotated[
        str, typer.Option(help="The model that takes over the alias if it proves good, by its name in the registry.")
    ],
    sample: Annotated[float, typer.Option(min=0.0001, max=1, help="The share of the alias's jobs to compare.")] = 0.1,
    max_jobs: Annotated[
        int,
        typer.Option(min=1, max=1_000_000, help="Abort the rollout if it is undecided after this many compared jobs."),
    ] = 2000,
    canary_jobs: Annotated[
        int,
        typer.Option(min=1, max=1_000_000, help="The number of the candidate's jobs to watch before its share grows."),
    ] = 50,
    per_second: Annotated[
        float, typer.Option(min=0.001, max=10_000, help="Each worker copies at most this many jobs per second.")
    ] = 20.0,
    slower: Annotated[
        float,
        typer.Option(
            min=1,
            max=1000,
            help="An answer is slow if it takes more than this multiple of the primary's 95th percentile.",
        ),
    ] = 1.5,
) -> None:
    """Begin a rollout: workers copy a sample of the alias's jobs, and a shadow worker lets the candidate answer them.

    Start the candidate with `postback worker --shadow`. Workers then abort the rollout by themselves, or give the
    candidate 1, 10, 50 and 100 % of the alias's jobs, and at last the alias.
    """
    from cli.operations.rollouts import new_order
    from cli.operations.rollouts import start as begin
    from schemas.job import Identifier

    for option, name in (("--alias", alias), ("--candidate", candidate)):
        checked_text(Identifier, name, f"{option}: 1 to 256 printable ASCII characters without spaces")
    bounds = {"max_jobs": max_jobs, "canary_jobs": canary_jobs, "per_second": per_second, "slower": slower}
    wanted = new_order(alias=alias, candidate=candidate, sample=sample, **bounds)
    kafka = fleet_settings().kafka
    begun = begin(kafka, wanted)
    typer.echo(begun.order.id)
    say(f"the rollout of {candidate} for {alias} has begun; `postback rollout status` shows it")
    _warn_of_unserved(kafka, candidate)


@app.command()
def status(
    alias: Alias = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write an HTML page with charts and differing answers, but without prompts."),
    ] = None,
) -> None:
    """Show rollouts with their evidence.

    The page of --report has answers of jobs: protect the page as you protect results.
    """
    from cli.operations.rollouts import judged

    kafka = fleet_settings().kafka
    found = [judged(kafka, each) for each in _rollouts(kafka).values() if alias in (None, each.order.alias)]
    if report is not None:
        from cli.operate.rollout_report import page

        with written("--report", report) as out:
            if out is not None:
                out.write(page(found))
    if as_json:
        typer.echo(json.dumps([summary(each) for each in found], indent=1))
        return
    for each in found:
        for line in _lines(summary(each)):
            typer.echo(harmless(line))
    say(f"{len(found)} rollouts")


@app.command()
def promote(alias: Alias = None) -> None:
    """Give the candidate the alias at once, whatever the evidence says."""
    from schemas.rollout.facts import Step

    _end(alias, Step.PROMOTED)


@app.command()
def abort(alias: Alias = None) -> None:
    """Give the alias back to the primary, from any step; a promotion can be taken back too."""
    from schemas.rollout.facts import Step

    _end(alias, Step.ABORTED)


def _end(alias: str | None, step: Step) -> None:
    from cli.operations.rollouts import end

    kafka = fleet_settings().kafka
    rollout = _named(_rollouts(kafka), alias)
    end(kafka, rollout, step)
    say(f"the rollout of {rollout.order.candidate} for {rollout.order.alias} is {step}")


def _rollouts(kafka: KafkaSettings) -> dict[str, Rollout]:
    from cli.operations.rollouts import rollouts

    return dict(sorted(rollouts(kafka).by_alias.items()))


def _named(found: dict[str, Rollout], alias: str | None) -> Rollout:
    """Return the alias's rollout or, without an alias, the only one that runs, else the only one known.

    End the command if there is no such rollout.
    """
    if alias is not None:
        if alias not in found:
            raise fail(f"{alias} has no rollout; `postback rollout start` begins one")
        return found[alias]
    running = [each for each in found.values() if not each.step.is_over]
    for choice in (running, list(found.values())):
        if len(choice) == 1:
            return choice[0]
    raise fail("name the rollout with --alias" if found else "there is no rollout; `postback rollout start` begins one")


def _warn_of_unserved(kafka: KafkaSettings, candidate: str) -> None:
    """Warn if no worker can answer jobs with the candidate: the canary would wait until one can."""
    from producers.errors import ProducerError
    from producers.workers import announced_models

    try:
        announced = announced_models(kafka)
    except ProducerError:
        return
    if announced is None or announced.more or candidate in announced.models:
        return
    say(
        f"no worker announces {candidate}: samples are compared, "
        "but the canary begins only when the workers' model registry has this model"
    )


def summary(found: JudgedRollout) -> dict[str, Any]:
    """Return a rollout as `--json` prints it."""
    from producers.times import show_time
    from schemas.rollout.e_process import DECIDED

    order, judge = found.rollout.order, found.judge
    return {
        "id": order.id,
        "alias": order.alias,
        "primary": order.primary,
        "candidate": order.candidate,
        "step": found.rollout.step.value,
        "share": found.rollout.step.share,
        "started": show_time(order.at),
        "compared": judge.compared,
        "decides_at": DECIDED,
        "profiles": {
            name: {
                "compared": each.difference.count,
                "differs": round(each.difference.mean, 4),
                "e_equal": float(f"{each.difference.below:.4g}"),
                "e_different": float(f"{each.difference.above:.4g}"),
                "passed": each.has_passed,
                "guards": list(each.tripped),
            }
            for name, each in sorted(judge.profiles.items())
        },
        "canary": {step.value: number for step, number in judge.canary.items() if number},
        "steps": [
            {"step": each.step.value, "at": show_time(each.at), "by": each.by, "why": each.why}
            for each in found.rollout.steps
        ],
    }


def _lines(said: dict[str, Any]) -> list[str]:
    """Return a rollout as lines for a person."""
    share = f", {said['share']:.0%} of the jobs" if said["share"] else ""
    lines = [
        f"{said['alias']}: candidate {said['candidate']}, {said['step']}{share}, "
        f"{said['compared']} jobs compared since {said['started']}"
    ]
    for name, each in said["profiles"].items():
        guards = f", against it: {', '.join(each['guards'])}" if each["guards"] else ""
        verdict = "passed" if each["passed"] else "open"
        lines.append(
            f"  profile {name}: {verdict}, {each['differs']:.1%} differ in {each['compared']} jobs, "
            f"e-values: equal {each['e_equal']:g}, different {each['e_different']:g}{guards}"
        )
    lines += [f"  {each['at']}  {each['step']}: {each['why']} ({each['by']})" for each in said["steps"]]
    return lines
