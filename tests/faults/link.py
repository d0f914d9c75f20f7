"""A link to the broker that spoils chosen answers."""

from __future__ import annotations

import asyncio
import struct
import threading
import time

OFFSET_FETCH = 9
END_TXN = 26
"""Kafka's api keys."""
NOT_COORDINATOR = 16
"""Kafka's code for this error."""


class Link:
    """A proxy that clients cannot bypass: it puts its own port into every answer that names the broker's port.

    - `lose_an_answer`: it forwards the next EndTxn, drops its answer, and then passes nothing for a while.
    - `refused_offsets`: the number of answers to OffsetFetch that it turns into NOT_COORDINATOR.
    """

    def __init__(self, broker_port: int) -> None:
        self.broker_port = broker_port
        self.port = 0
        self.lost = 0
        self.refused_offsets = 0
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
        spoiled: dict[int, int] = {}  # the api keys of requests whose answers are spoiled, by correlation id
        ways = [
            asyncio.ensure_future(self._up(reader, up_writer, spoiled)),
            asyncio.ensure_future(self._down(up_reader, writer, spoiled)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            up_writer.close()

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, spoiled: dict[int, int]) -> None:
        while time.monotonic() >= self._black_until:
            frame = await _frame(reader)
            api_key, _, correlation = struct.unpack_from(">hhi", frame, 4)
            if (api_key == END_TXN and self._armed_for) or (api_key == OFFSET_FETCH and self.refused_offsets):
                spoiled[correlation] = api_key
            writer.write(frame)
            await writer.drain()

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, spoiled: dict[int, int]) -> None:
        theirs, ours = (b"127.0.0.1" + struct.pack(">i", port) for port in (self.broker_port, self.port))
        while time.monotonic() >= self._black_until:
            frame = await _frame(reader)
            api_key = spoiled.pop(struct.unpack_from(">i", frame, 4)[0], None)
            if api_key == OFFSET_FETCH:
                frame = (
                    frame[:-4] + NOT_COORDINATOR.to_bytes(2) + frame[-2:]
                )  # the group's error, before two empty tags
                self.refused_offsets -= 1
            if api_key == END_TXN:
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
