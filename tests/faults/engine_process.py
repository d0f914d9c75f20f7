"""A process with an engine in it, for tests that kill the process or its engine.

`engine_process.py KIND MODEL`. A line on standard input is a request, `{"id", "prompt", "max_tokens"}`; a line on
standard output is its outcome, `{"id", "finish_reason" | "error"}`. `{"ready"}` is written after the start, and
`{"restarts"}` in answer to the line `restarts`. The line `running 3` is answered with `{"running": 3}` as soon as the
engine has three requests.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from tests.asking import request_of
from workers.engines.base import Engine, EngineError
from workers.engines.registry import create, engine_settings


def say(**fields: Any) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


async def answer(engine: Engine, asked: dict[str, Any]) -> None:
    request = request_of(asked["id"], prompt=asked["prompt"], max_tokens=asked["max_tokens"])
    try:
        say(id=asked["id"], finish_reason=(await engine.generate(request)).finish_reason)
    except EngineError as error:
        say(id=asked["id"], error=type(error).__name__)


async def main() -> None:
    kind, model = sys.argv[1:]
    metrics = Metrics()
    engine = create(kind, engine_settings()(), metrics, SystemClock(), model=model)
    await engine.start()
    say(ready=True)
    async with asyncio.TaskGroup() as answering:
        while line := await asyncio.to_thread(sys.stdin.readline):
            if line.startswith("running "):
                wanted = int(line.removeprefix("running "))
                while (load := engine.load()).running + load.waiting < wanted:
                    await asyncio.sleep(0.01)
                say(running=wanted)
            elif line.strip() == "restarts":
                say(restarts=metrics.registry.get_sample_value("postback_engine_restarts_total"))
            else:
                answering.create_task(answer(engine, json.loads(line)))
    await engine.close()


if __name__ == "__main__":
    asyncio.run(main())
