"""`postback worker`: an engine that answers jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cli.fleet.roles import HOST, METRICS_PORT, announce, run, starting
from cli.shared.errors import BAD_INPUT, fail
from cli.shared.settings import checked_settings
from workers.engines import ENGINES

if TYPE_CHECKING:
    Engine = str
else:
    Engine = Literal[tuple(ENGINES)]  # typer takes the choices of `--engine` from this type, and shows them in the help


def worker(
    engine: Annotated[
        Engine | None,
        typer.Option(help="The engine that generates the answers; POSTBACK_WORKER__REGISTRY may name several."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The model's name or folder. The engine `echo` needs no model.")
    ] = None,
    with_delivery: Annotated[
        bool, typer.Option("--with-delivery", help="Deliver callbacks in this process too.")
    ] = False,
    shadow: Annotated[
        bool,
        typer.Option("--shadow", help="Answer a rollout's copied jobs as its candidate, and no other jobs."),
    ] = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="Load the engine, let each model answer one prompt, and exit. Needs no Kafka."),
    ] = False,
    host: Annotated[str, HOST] = "127.0.0.1",
    metrics_port: Annotated[int, METRICS_PORT] = 0,
) -> None:
    """Answer jobs from model_requests until SIGTERM; then drain and exit with status 0.

    The engine is loaded first; then the worker joins its group. Settings: POSTBACK_WORKER__…, POSTBACK_ENGINE__…,
    POSTBACK_ENRICHMENT__…, POSTBACK_EGRESS__…, and POSTBACK_REPLICA, which must stay the same across restarts.

    With --shadow the worker answers copies of other workers' jobs, and writes comparisons instead of results: see
    `postback rollout`.

    With --check the exit status is 0 if every model answered, 1 if the engine does not load or does not answer.
    """
    fleet = starting()
    from workers.enrichment.settings import EnrichmentSettings
    from workers.roles.engine_check import check_engine
    from workers.roles.process import Listen
    from workers.roles.worker import run_worker

    if shadow and (with_delivery or check):
        raise fail("--shadow goes with neither --with-delivery nor --check", BAD_INPUT)
    _require_engine(engine, model)
    checked_settings(EnrichmentSettings)
    if check:
        run("worker", check_engine(engine, model, typer.echo))
        return
    listen = Listen(host, metrics_port)
    run("worker", run_worker(fleet, engine, model, listen, announce, with_delivery=with_delivery, shadow=shadow))


def _require_engine(engine: str | None, model: str | None) -> None:
    """End the command unless either an engine with its model or a model registry is named."""
    from workers.engines.registry import engine_settings
    from workers.inference.settings import WorkerSettings

    registry = checked_settings(WorkerSettings).registry
    if (engine is None) == (registry is None):
        both = "both an engine and a model registry are named" if registry is not None else "no engine is named"
        raise fail(f"{both}: give --engine or POSTBACK_WORKER__REGISTRY, one of the two", BAD_INPUT)
    if engine is None:
        if model is not None:
            raise fail("--model goes with --engine; the model registry names the models itself", BAD_INPUT)
        return
    section = checked_settings(engine_settings()).section(engine)
    if section.needs_model and not (model or section.model):
        variable = f"POSTBACK_ENGINE__{engine.upper()}__MODEL"
        raise fail(f"--engine {engine} needs a model: name it with --model, or set {variable}", BAD_INPUT)
