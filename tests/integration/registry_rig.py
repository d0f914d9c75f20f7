"""A model registry over scripted servers on real sockets, for tests."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from telemetry.metrics import Metrics
from tests.asking import request_of
from tests.handlers import CLOCK
from tests.integration.openai_http.servers import Server, lists, openai_server
from workers.engines.models.registry_engine import RegistryEngine
from workers.engines.models.registry_file import ModelRegistry, read_registry
from workers.engines.registry import engine_settings

ASKED = request_of(prompt="Hello?", max_tokens=16)


class Rig:
    """A registry's engine over scripted servers. `{name}` in the file's text becomes the URL of that server."""

    def __init__(self, path: Path, urls: dict[str, str]) -> None:
        self.file = path / "models.toml"
        self.urls = urls
        self.metrics = Metrics()

    def read(self, text: str | None = None) -> ModelRegistry:
        if text is not None:
            for name, url in self.urls.items():
                text = text.replace("{" + name + "}", json.dumps(url))
            self.file.write_text(text)
        return read_registry(self.file, engine_settings()())

    def engine(self, text: str, lane: str | None = None) -> RegistryEngine:
        return RegistryEngine(self.read(text), lane, CLOCK, self.metrics)

    def sample(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def rig(path: Path, **servers: Server) -> AsyncIterator[Rig]:
    async with AsyncExitStack() as stack:
        models = [{"id": name} for name in ("m1", "small", "large")]
        urls = {
            name: await stack.enter_async_context(openai_server(server, Server(lists(*models))))
            for name, server in servers.items()
        }
        yield Rig(path, urls)


@asynccontextmanager
async def started(engine: RegistryEngine) -> AsyncIterator[RegistryEngine]:
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


ESCALATING = """
[engines.a]
kind = "openai"
addresses = [{a}]
attempts = 1
[engines.b]
kind = "openai"
addresses = [{b}]
attempts = 1
[models.small]
engine = "a"
max_tokens = 7
temperature = 0.5
cost = { prompt = 1000, completion = 1000 }
escalate = { to = "large", on = ["not_json", "low_confidence"], below = 0.5 }
[models.large]
engine = "b"
cost = { prompt = 2000, completion = 2000 }
escalate = { to = "small", on = ["failed"] }
"""
