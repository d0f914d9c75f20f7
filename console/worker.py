"""`postback worker`: an engine that answers jobs."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from console.errors import BAD_INPUT, fail, needing
from console.roles import HOST, METRICS_PORT, announce, run, starting
from console.settings import checked_settings

Engine = Literal["echo", "vllm", "openai"]


def worker(
    engine: Annotated[Engine, typer.Option(help="What generates the answers.")],
    model: Annotated[str | None, typer.Option(help="The model's name or folder; echo needs none.")] = None,
    with_delivery: Annotated[
        bool, typer.Option("--with-delivery", help="Deliver callbacks in this process too.")
    ] = False,
    host: Annotated[str, HOST] = "127.0.0.1",
    metrics_port: Annotated[int, METRICS_PORT] = 0,
) -> None:
    """Answer jobs from model_requests until SIGTERM, which drains and exits 0.

    The engine is loaded first; then the worker joins its group. Settings: POSTBACK_WORKER__…, POSTBACK_ENGINE__…,
    POSTBACK_ENRICHMENT__…, POSTBACK_EGRESS__…, and POSTBACK_REPLICA, which has to stay the same over restarts.
    """
    fleet = starting("worker")
    with needing("worker"):
        from workers.roles.process import Listen
        from workers.roles.worker import run_worker

    _check_model(engine, model)
    run("worker", run_worker(fleet, engine, model, Listen(host, metrics_port), announce, with_delivery=with_delivery))


def _check_model(engine: Engine, model: str | None) -> None:
    """That an engine which needs a model has one."""
    from workers.engines import EngineSettings

    settings = checked_settings(EngineSettings)
    configured = {"echo": "it needs none", "vllm": settings.vllm.model, "openai": settings.openai.model}
    if not (model or configured[engine]):
        variable = f"POSTBACK_ENGINE__{engine.upper()}__MODEL"
        raise fail(f"--engine {engine} needs a model: name it with --model, or set {variable}", BAD_INPUT)
