"""The door's application in the test's process: a new SQLite store, a folder for files, a clock moved by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from sqlalchemy import Engine, event

from gateway.access.access import Access
from gateway.access.keys import create_key
from gateway.access.principal import DEFAULT_SCOPES, Scope
from gateway.access.settings import AccessSettings
from gateway.batches.files import Shelf
from gateway.blobs.folder import FolderBlobs
from gateway.blobs.settings import FilesSettings
from gateway.door.app import create_app
from gateway.door.door import Door
from gateway.door.fleet import Announcements, FleetModels
from gateway.door.settings import GatewaySettings
from gateway.store.store import Store
from gateway.view.waiting import Waiting
from producers.errors import BrokerUnreachable
from schemas.settings import FleetSettings
from telemetry.hand_clock import HandClock
from telemetry.metrics import Metrics
from workers.egress import EgressPolicy

NOW = 1_800_000_000.0


UNLIMITED = AccessSettings(requests_per_second=1_000_000, failures_per_minute=1_000_000)


def without_kafka() -> Announcements:
    """Stand for the question about models while Kafka is away."""
    raise BrokerUnreachable("away")


@dataclass
class Rig:
    """The parts of one door, and requests to it."""

    door: Door
    store: Store
    shelf: Shelf
    clock: HandClock
    folder: Path
    app: Any

    def key(self, tenant: str = "acme", *scopes: Scope) -> str:
        chosen = scopes or tuple(DEFAULT_SCOPES)
        digests = self.door.access.digests
        made = self.store.submit(lambda connection: create_key(connection, digests, self.clock, tenant, chosen))
        return made.result().key

    async def request(self, method: str, path: str, key: str | None = None, **arguments: Any) -> httpx.Response:
        headers = {**arguments.pop("headers", {}), **({} if key is None else {"authorization": f"Bearer {key}"})}
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://door") as client:
            response = await client.request(method, path, headers=headers, **arguments)
        await asyncio.sleep(0)  # in this turn of the loop, the audit's lines are written
        return response

    async def upload(self, content: bytes, key: str, filename: str = "in.jsonl", **fields: str) -> httpx.Response:
        files = {"file": (filename, content)}
        return await self.request("POST", "/v1/files", key, files=files, data={"purpose": "batch", **fields})

    @property
    def blobs(self) -> list[str]:
        """The names of everything in the folder of files."""
        return sorted(path.name for path in (self.folder / "blobs").iterdir())


@cache
def empty_store() -> bytes:
    """The file of a new SQLite store, made once: its tables take longer to make than most tests run."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "store.db"
        Store.open(f"sqlite:///{path}").close()
        return path.read_bytes()


@contextmanager
def gateway_rig(
    folder: Path,
    limits: AccessSettings = UNLIMITED,
    store_url: str | None = None,
    announced: Callable[[], Announcements] = without_kafka,
    **settings: Any,
) -> Iterator[Rig]:
    """Yield a door, on SQLite unless `store_url` is given; `settings` are fields of `FilesSettings`."""
    clock = HandClock(NOW)
    file = folder / "store.db"
    if not file.exists():
        file.write_bytes(empty_store())
    url = f"sqlite:///{file}"
    store = Store.open(store_url or url)
    shelf = Shelf(store, FolderBlobs(folder / "blobs"), FilesSettings(**settings), clock)
    access = Access.open(store, url, limits, clock)
    door = Door(
        fleet=FleetSettings(),
        settings=GatewaySettings(),
        callbacks=EgressPolicy(),
        store=store,
        access=access,
        waiting=Waiting(clock),
        shelf=shelf,
        models=FleetModels(announced, store, clock),
        clock=clock,
        metrics=Metrics(),
    )
    try:
        yield Rig(door, store, shelf, clock, folder, create_app(door))
    finally:
        door.close()
        access.close()
        shelf.close()
        store.close()


@contextmanager
def statements() -> Iterator[dict[str, Any]]:
    """The statements that are executed, each with the parameters of one row."""
    seen: dict[str, Any] = {}

    def note(_connection: Any, _cursor: Any, statement: str, values: Any, _context: Any, many: bool) -> None:
        seen[statement] = values[0] if many else values

    event.listen(Engine, "before_cursor_execute", note)
    yield seen
    event.remove(Engine, "before_cursor_execute", note)
