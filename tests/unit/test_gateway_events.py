"""`/v1/events` and `/v1/models`: streams that lose no event, and the models that a tenant may use."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.access.tenant_settings import TenantSettings
from gateway.access.tenants import put_tenant
from gateway.door.event_stream import READ_TOGETHER, event_text
from gateway.door.fleet_models import FRESH_SECONDS, FleetModels, ModelsUnknown
from gateway.store.tables import events
from gateway.view.stored_events import StoredEvent
from producers.errors import BrokerUnreachable
from producers.workers import Announced
from schemas.worker import LIVE_SECONDS
from telemetry.hand_clock import HandClock
from tests.unit.gateway_rig import Rig, gateway_rig

TENANT = "acme"
SUCCEEDED, FAILED, DONE = "inference.succeeded", "inference.failed", "batch.completed"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with gateway_rig(tmp_path) as made:
        yield made


def store(rig: Rig, first: int, *types: str, tenant: str = TENANT) -> None:
    """Store events with numbers from `first` on, as the view does, and wake their readers."""
    rows: list[dict[str, Any]] = [
        {"number": n, "tenant": tenant, "type": kind, "object_id": f"job_{n}", "at": n, "data": b'{"id":"msg_%d"}' % n}
        for n, kind in enumerate(types, first)
    ]
    rig.store.submit(lambda connection: connection.execute(events.insert(), rows) and None).result()
    rig.door.waiting.announce([(tenant, row["object_id"]) for row in rows])


def parsed(content: bytes) -> list[dict[str, str]]:
    """The whole events of a stream, by the rules of WHATWG HTML, section 9.2.6; comments are left out."""
    found = []
    for block in content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n\n")[:-1]:
        event: dict[str, str] = {}
        for line in filter(None, block.decode().split("\n")):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            event[name] = f"{event[name]}\n{value}" if name in event else value
        found.append(event)
    return found


@dataclass
class Reader:
    """A client of a stream, and the answer that the server has sent it so far."""

    status: int = 0
    content: bytes = b""
    whole: bool = False
    leave: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    async def receive(self) -> dict[str, Any]:
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.status = message.get("status", self.status)
        self.content += message.get("body", b"")
        self.whole = message["type"] == "http.response.body" and not message.get("more_body", False)

    @property
    def numbers(self) -> list[int]:
        return [int(event["id"]) for event in parsed(self.content) if "data" in event]

    async def until(self, numbers: Sequence[int]) -> None:
        async with asyncio.timeout(30):
            while self.numbers != [*numbers]:
                assert self.task is not None
                assert not self.task.done(), (self.status, self.content)
                await asyncio.sleep(0.001)


@asynccontextmanager
async def reading(rig: Rig, key: str, query: str = "", **headers: str) -> AsyncIterator[Reader]:
    """A reader of `/v1/events`; it leaves at the block's end."""
    reader = Reader()
    fields = {"authorization": f"Bearer {key}", **{name.replace("_", "-"): value for name, value in headers.items()}}
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/v1/events",
        "raw_path": b"/v1/events",
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in fields.items()],
    }
    reader.task = asyncio.create_task(rig.app(scope, reader.receive, reader.send))
    try:
        yield reader
    finally:
        reader.leave.set()
        await reader.task


async def test_a_stream_begins_where_its_reader_says(rig: Rig) -> None:
    key = rig.key(TENANT)
    store(rig, 1, SUCCEEDED, FAILED, DONE)
    store(rig, 4, SUCCEEDED, tenant="another")

    async with reading(rig, key, "after=0") as whole, reading(rig, key, "after=0", last_event_id="2") as rest:
        await whole.until([1, 2, 3])
        await rest.until([3])
        async with reading(rig, key) as new:
            while b"retry" not in new.content:
                await asyncio.sleep(0.001)
            store(rig, 5, FAILED)
            await new.until([5])
            await whole.until([1, 2, 3, 5])
    assert whole.whole
    assert new.content.startswith(b"id: 3\nretry: 2000\n\n")  # after a cut, the client would ask for the events after 3
    assert whole.content.startswith(b"id: 0\nretry: 2000\n\nid: 1\nevent: inference.succeeded\ndata: {")


async def test_a_stream_reads_all_of_many_events_and_those_of_its_types(rig: Rig) -> None:
    key, many = rig.key(TENANT), 2 * READ_TOGETHER + 7
    store(rig, 1, *([SUCCEEDED, DONE] * many)[:many], FAILED)

    async with reading(rig, key, "after=0") as whole, reading(rig, key, f"after=0&types={FAILED}") as failed:
        await whole.until(range(1, many + 2))
        await failed.until([many + 1])
        store(rig, many + 2, DONE, FAILED)
        await failed.until([many + 1, many + 3])
    async with reading(rig, key, "after=0&types=batch.*") as batches:
        await batches.until([*range(2, many, 2), many + 2])


async def test_a_quiet_stream_sends_comments(rig: Rig) -> None:
    async with reading(rig, rig.key(TENANT)) as reader:
        while b": heartbeat\n\n" not in reader.content:
            rig.clock.sleep(rig.door.settings.heartbeat_seconds)
            await asyncio.sleep(0.01)
        assert reader.numbers == []


async def test_a_stream_that_the_server_ends_is_a_whole_response(rig: Rig) -> None:
    async with reading(rig, rig.key(TENANT)) as reader:
        while not reader.content:
            await asyncio.sleep(0.001)
        assert reader.task is not None
        reader.task.cancel()
        await asyncio.wait([reader.task])
        assert reader.whole


async def test_a_tenant_has_a_limited_number_of_streams(rig: Rig) -> None:
    key, most = rig.key(TENANT), rig.door.settings.event_streams
    async with AsyncExitStack() as stack:
        begun = [await stack.enter_async_context(reading(rig, key)) for _ in range(most)]
        while not all(stream.content for stream in begun):
            await asyncio.sleep(0.001)
        async with reading(rig, key) as refused:
            while not refused.whole:
                await asyncio.sleep(0.001)
            assert (refused.status, json.loads(refused.content)["error"]["code"]) == (429, "too_many_streams")
    async with reading(rig, key, "after=0") as again:
        store(rig, 1, DONE)
        await again.until([1])


@pytest.mark.parametrize(
    "query", ["after=-1", "after=x", "after=9999999999999999999", "types=A", "types=a..b", "from=1"]
)
async def test_a_stream_that_cannot_begin_is_refused(rig: Rig, query: str) -> None:
    assert (await rig.request("GET", f"/v1/events?{query}", rig.key(TENANT))).status_code == 400


@given(st.integers(1, 10**18), st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=3), st.booleans())
def test_any_event_is_read_back(number: int, content: dict[str, str], spaced: bool) -> None:
    data = json.dumps(content, indent=2 if spaced else None).encode()
    (read,) = parsed(event_text(StoredEvent(number, DONE, data)))
    assert (read["id"], read["event"], json.loads(read["data"])) == (str(number), DONE, content)


async def test_a_tenant_sees_the_announced_models_that_it_may_use(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.door.routes.models.announced_models", lambda *_: Announced(("b/large", "a"), False))
    key, limited = rig.key(TENANT), rig.key("limited")
    settings = TenantSettings(models=["a", "gone"])
    rig.store.submit(lambda connection: put_tenant(connection, rig.clock, "limited", settings)).result()

    async def names(key: str) -> list[str]:
        return [model["id"] for model in (await rig.request("GET", "/v1/models", key)).json()["data"]]

    assert (await names(key), await names(limited)) == (["a", "b/large"], ["a"])
    assert (await rig.request("GET", "/v1/models/b%2Flarge", key)).json()["id"] == "b/large"
    assert (await rig.request("GET", "/v1/models/b%2Flarge", limited)).status_code == 404
    assert (await rig.request("GET", "/v1/models/nope", key)).json()["error"]["code"] == "model_not_found"


async def test_models_are_asked_once_for_all_and_kept_while_kafka_is_away() -> None:
    clock, answers = HandClock(), iter([Announced(("a",), False), None])
    asked = 0

    def ask() -> Announced | None:
        nonlocal asked
        asked += 1
        try:
            return next(answers)
        except StopIteration:
            raise BrokerUnreachable("away") from None

    fleet = FleetModels(ask, clock)
    assert set(await asyncio.gather(*(fleet.names() for _ in range(9)))) == {("a",)}
    assert asked == 1
    clock.sleep(FRESH_SECONDS + 1)
    assert (await fleet.names(), asked) == ((), 2)
    clock.sleep(FRESH_SECONDS + 1)
    assert (await fleet.names(), asked) == ((), 3)
    clock.sleep(LIVE_SECONDS)
    with pytest.raises(ModelsUnknown):
        await fleet.names()
