"""An EndTxn is applied and its answer is lost: the stage must look up its commit, and not guess.

The members' session outlasts the link's outage. An expelled member would reopen its partitions from the committed
progress and have nothing to look up.
"""

from __future__ import annotations

import asyncio
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from tests.faults.kernel_fleet import Ledgers, StageProcesses

BLACK_SECONDS = 9.0
"""The link's outage: longer than every timeout of the settler."""
END_TXN = 26
"""Kafka's api key of EndTxn."""


class Link:
    """A proxy that clients cannot bypass: it puts its own port into every answer that names the broker's port.

    Once armed, the proxy forwards the next EndTxn, drops its answer, and then passes nothing for a while.
    """

    def __init__(self, broker_port: int) -> None:
        self.broker_port = broker_port
        self.port = 0
        self.lost = 0
        self._armed_for = 0.0
        self._black_until = 0.0
        self._loop = asyncio.new_event_loop()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))

    def __enter__(self) -> Link:
        self._thread.start()
        self._listening.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)
        self._loop.close()

    def lose_an_answer(self, black_seconds: float) -> None:
        """Arm the link, and wait until an answer was lost and the link works again."""
        lost = self.lost
        self._armed_for = black_seconds
        end = time.monotonic() + 60
        while self.lost == lost or time.monotonic() < self._black_until:
            assert time.monotonic() < end, "no transaction was ended"
            time.sleep(0.05)

    async def _serve(self) -> None:
        self._over = asyncio.Event()
        self._connections: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._listening.set()
        await self._over.wait()
        server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            if time.monotonic() >= self._black_until:
                await self._relay(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # a side closed its connection, or the link went down
        finally:
            writer.close()
            self._connections.discard(task)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.broker_port)
        swallow: set[int] = set()
        ways = [
            asyncio.ensure_future(self._up(reader, up_writer, swallow)),
            asyncio.ensure_future(self._down(up_reader, writer, swallow)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            up_writer.close()

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, swallow: set[int]) -> None:
        while time.monotonic() >= self._black_until:
            frame = await _frame(reader)
            api_key, _, correlation = struct.unpack_from(">hhi", frame, 4)
            if api_key == END_TXN and self._armed_for:
                swallow.add(correlation)
            writer.write(frame)
            await writer.drain()

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, swallow: set[int]) -> None:
        theirs, ours = (b"127.0.0.1" + struct.pack(">i", port) for port in (self.broker_port, self.port))
        while time.monotonic() >= self._black_until:
            frame = await _frame(reader)
            if struct.unpack_from(">i", frame, 4)[0] in swallow:
                self._black_until = time.monotonic() + self._armed_for
                self._armed_for = 0.0
                self.lost += 1
                for task in self._connections - {asyncio.current_task()}:
                    task.cancel()
                return
            writer.write(frame.replace(theirs, ours))
            await writer.drain()


async def _frame(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(4)
    return head + await reader.readexactly(struct.unpack(">i", head)[0])


@pytest.fixture
def link(ledgers: Ledgers) -> Iterator[Link]:
    with Link(int(ledgers.kafka.bootstrap_servers.rsplit(":", 1)[1])) as link:
        yield link


def test_a_commit_whose_answer_is_lost_for_longer_than_every_timeout_is_not_made_twice(
    ledgers: Ledgers, processes: StageProcesses, link: Link
) -> None:
    ledgers.set_session(45)
    processes.kafka = processes.kafka.model_copy(update={"bootstrap_servers": f"127.0.0.1:{link.port}"})
    jobs = ledgers.submit({"id": number, "ms": 40} for number in range(800))
    processes.window = 20
    processes.start("a")
    ledgers.wait_for_results(100, 30)
    link.lose_an_answer(BLACK_SECONDS)
    ledgers.wait_for_results(jobs, 90)
    ledgers.assert_each_exactly_once(jobs)
    assert link.lost == 1
    assert "partitions-lost" not in processes.log("a")
    assert processes.terminate("a") == 0
