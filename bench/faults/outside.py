"""The world around the fleet, on one thread: the clients with their jobs, the model server, and the receiver."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal, Self, TypeVar

import aiohttp
from aiohttp import web

from bench.faults.judge import Job
from schemas.signature import ID_HEADER, VerificationError, verify
from tests.integration.name_server import NameServer
from workers.delivery.keyring import Keyring

Mode = Literal["well", "away", "hung", "5xx", "garbage", "slow", "redirecting", "huge"]
ANSWER_SECONDS = 0.1
"""Time that the model server takes for an answer."""
SLOW_SECONDS = 8.0
HUGE_BYTES = 64 * 1024 * 1024
POST_SECONDS = 5.0
"""The client's timeout for one request; it then asks the other gateway with the same idempotency key."""
TRIES = 4
MODEL = "echo-1"
_USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
T = TypeVar("T")


class Server:
    """An HTTP server on a loopback port whose `mode` is its illness."""

    def __init__(self, well: Callable[[web.Request], Coroutine[Any, Any, web.StreamResponse]]) -> None:
        self.mode: Mode = "well"
        self.port = 0
        self._well = well
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen, on the same port as before."""
        app = web.Application(client_max_size=16 * 1024 * 1024)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Close the port and all connections."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        match self.mode:
            case "hung":
                await asyncio.sleep(3600)
            case "5xx":
                return web.Response(status=500, text="broken")
            case "garbage":
                return web.Response(text='{"choices": [{"mess', content_type="application/json")
            case "redirecting":
                return web.Response(status=307, headers={"location": f"http://127.0.0.1:{self.port}/elsewhere"})
            case "huge":
                return web.Response(status=500, body=b"x" * HUGE_BYTES)
            case "slow":
                await asyncio.sleep(SLOW_SECONDS)
        return await self._well(request)


class Outside:
    """Clients, model server and receiver. `jobs` has the samples of each job by its number."""

    def __init__(self, keyring: Keyring) -> None:
        self.jobs: dict[int, Job] = {}
        self.model = Server(self._complete)
        self.endpoint = Server(self._receive)
        self.weight = 0
        """Further bytes of each prompt and answer."""
        self._names: NameServer | None = None
        self._keyring = keyring
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._posting: set[asyncio.Task[None]] = set()
        self._load: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self.model.start())
        self._call(self.endpoint.start())
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_load()
        self._call(self.model.stop())
        self._call(self.endpoint.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def job_of(self, custom_id: str | None) -> Job | None:
        """Return the job of the load that has this `custom_id`; None for others, such as hostile ones."""
        number = (custom_id or "").removeprefix("case-")
        return self.jobs.get(int(number)) if number.isdecimal() and number != custom_id else None

    def set(self, name: Literal["model", "endpoint"], mode: Mode) -> None:
        """Make the model server or the receiver ill or well."""
        server = self.model if name == "model" else self.endpoint
        if "away" in (mode, server.mode):
            self._call(server.stop() if mode == "away" else server.start())
        server.mode = mode

    def serve_names(self, address: str, host: str) -> None:
        """Serve the name of the receiver on port 53 of an address; needs root."""
        self._names = names = NameServer({host: [["127.0.0.1"]]})
        self._call(self._loop.create_datagram_endpoint(lambda: names, local_addr=(address, 53)))
        self._host = host

    def answer_names(self, answered: bool) -> None:
        """Answer questions for the receiver's name, or say that there is no such name."""
        assert self._names is not None
        self._names.answers = {self._host: [["127.0.0.1"]]} if answered else {}

    @contextmanager
    def lying(self, port: int) -> Iterator[None]:
        """Answer each command of Redis with `+OK` on a port during the block."""
        clients: set[asyncio.StreamWriter] = set()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            clients.add(writer)
            with suppress(OSError):
                while await reader.read(65_536):
                    writer.write(b"+OK\r\n")
            writer.close()

        async def stop() -> None:
            server.close()
            for client in clients:
                client.transport.abort()

        server = self._call(asyncio.start_server(answer, "127.0.0.1", port))
        yield
        self._call(stop())

    def start_load(self, doors: list[str], key: str, rate: float, host: str, authority: str | None) -> None:
        """Post `rate` jobs a second, in turns to the doors' URLs. `host` is the receiver's name in callback URLs."""
        self._load = self._call(self._begin(doors, key, rate, host, authority))

    def stop_load(self) -> None:
        """Post no new jobs, and wait for those that clients still try to post."""
        if self._load is not None:
            self._loop.call_soon_threadsafe(self._load.cancel)
            self._call(self._all_posted())
            self._load = None

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(120)

    async def _begin(self, *how: Any) -> asyncio.Task[None]:
        return asyncio.ensure_future(self._posts(*how))

    async def _all_posted(self) -> None:
        if self._posting:
            await asyncio.wait(self._posting)

    async def _posts(self, doors: list[str], key: str, rate: float, host: str, authority: str | None) -> None:
        """Post at an open-loop rate until cancelled."""
        tls = ssl.create_default_context(cafile=authority) if authority else True
        url = f"http://{host}:{self.endpoint.port}/hook"
        # A session of its own for the life of the load; requests under way end with it only after `_all_posted`.
        # Over TLS, each request makes a connection, because a kept one needs no valid certificate.
        connections = aiohttp.TCPConnector(ssl=tls, force_close=authority is not None)
        session = aiohttp.ClientSession(headers={"authorization": f"Bearer {key}"}, connector=connections)
        first, begin = len(self.jobs), self._loop.time()
        number = first
        try:
            while True:
                job = self.jobs[number] = Job(time.time())
                order = [doors[(number + turn) % len(doors)] for turn in range(TRIES)]
                body = {
                    "prompt": f"Case {number}?" + "x" * self.weight,
                    "callback_url": url,
                    "custom_id": f"case-{number}",
                }
                task = asyncio.ensure_future(_post(session, order, f"job-{number}", body, job))
                self._posting.add(task)
                task.add_done_callback(self._posting.discard)
                number += 1
                await asyncio.sleep(max(0.0, begin + (number - first) / rate - self._loop.time()))
        finally:
            await asyncio.shield(self._all_posted())
            await session.close()

    async def _complete(self, request: web.Request) -> web.Response:
        """Answer as a server of OpenAI's protocol."""
        if request.path.endswith("/models"):
            return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model"}]})
        if not request.path.endswith("/chat/completions"):
            return web.Response(status=404)
        await asyncio.sleep(ANSWER_SECONDS)
        message = {"role": "assistant", "content": "yes" + "x" * self.weight}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        return web.json_response({"object": "chat.completion", "model": MODEL, "choices": [choice], "usage": _USAGE})

    async def _receive(self, request: web.Request) -> web.Response:
        """Count a callback if its signature is good."""
        body, now = await request.read(), time.time()
        for tenant in ("bench", "default"):
            keys = self._keyring.secrets(tenant, now), self._keyring.public_keys(tenant, now)
            with suppress(VerificationError):
                verify(request.headers, body, *keys, now)
                break
        else:
            return web.Response(status=401)
        if (job := self.job_of(json.loads(body)["data"].get("custom_id"))) is not None:
            job.callbacks.append((now, request.headers[ID_HEADER]))
        answer = web.Response()
        if self._names is not None:
            answer.force_close()  # a kept connection would need no name
        return answer


async def _post(session: aiohttp.ClientSession, doors: list[str], key: str, body: Any, job: Job) -> None:
    """Try the doors in turn until one accepts the job."""
    for turn, door in enumerate(doors):
        with suppress(aiohttp.ClientError, TimeoutError):
            timeout = aiohttp.ClientTimeout(total=POST_SECONDS)
            headers = {"idempotency-key": key}
            async with session.post(f"{door}/v1/jobs", json=body, headers=headers, timeout=timeout) as answer:
                if answer.status == 202:
                    job.accepted = time.time()
                    return
        await asyncio.sleep(0.2 * 2**turn)
