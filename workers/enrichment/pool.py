"""Processes in which pages are parsed, because a parser can be made to hang, to grow or to crash.

A member does one task at a time. One that is late, or whose asker has gone, is killed and another takes its place; its
neighbours and the worker notice nothing. Members start when they are first needed.

Not `pebble` or `concurrent.futures`: those import the worker's own main module into each member and unpickle what comes
back from a process that has read hostile bytes. Here a member imports what it needs, gets an address-space limit and
none of the worker's environment, and answers in JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from typing import Any, cast

from telemetry.logs import get_logger
from workers.enrichment.evidence import Unreadable
from workers.enrichment.settings import EnrichmentSettings

log = get_logger()

_INHERITED = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")
"""All of the environment that a member gets: the worker's holds secrets."""

_ANSWER_BYTES = 64 * 1024 * 1024
_RETIRE_KIB = 300 * 1024
"""A member that has grown beyond this is replaced: freed memory seldom goes back to the system."""


class _MemberLost(Exception):  # noqa: N818 - it names what happened
    """The member ended without an answer."""


class Pool:
    """At most `settings.members` processes, each reading one thing at a time."""

    def __init__(self, settings: EnrichmentSettings) -> None:
        self._settings = settings
        self._room = asyncio.Semaphore(settings.members)
        self._members: set[_Member] = set()
        self._idle: list[_Member] = []
        self._growing: set[asyncio.Task[None]] = set()
        self._warming: asyncio.Task[None] | None = None

    def warm(self) -> None:
        """Start the first member already, since a page that will need it is on its way."""
        if not self._members and not self._growing:
            self._warming = self._start_growing()

    async def ask(self, task: dict[str, Any], body: bytes) -> dict[str, Any]:
        """The answer of a member to `task`, which names its `kind`. Raises Unreadable.

        Cancelled, it kills the member: what runs there cannot be interrupted otherwise.
        """
        async with self._room:
            member = await self._take()
            answer: dict[str, Any] | None = None
            try:
                async with asyncio.timeout(self._settings.member_seconds):
                    answer = await member.ask(task, body)
            except TimeoutError:
                raise Unreadable(f"reading it took more than {self._settings.member_seconds:g} s") from None
            except (_MemberLost, OSError):
                raise Unreadable("reading it needed more memory than allowed, or crashed the reader") from None
            finally:
                await self._give_back(member, fit=answer is not None and answer.get("peak_kib", 0) < _RETIRE_KIB)
            return _understood(answer)

    async def close(self) -> None:
        """Kill all members."""
        await asyncio.gather(*self._growing, return_exceptions=True)
        await asyncio.gather(*(self._dismiss(member) for member in list(self._members)))
        self._idle.clear()

    async def _take(self) -> _Member:
        """A living idle member. A new one comes through the idle ones: who wanted it may be gone when it is ready."""
        while True:
            if not self._idle:
                await self._more()
            elif (member := self._idle.pop()).alive:
                return member
            else:
                await self._dismiss(member)

    async def _more(self) -> None:
        try:
            growing, self._warming = self._warming or self._start_growing(), None
            await asyncio.shield(growing)
        except (_MemberLost, OSError):
            log.error("A reader process did not start.", action="reader-not-started")
            raise Unreadable("the reader could not be started", is_lasting=False) from None

    def _start_growing(self) -> asyncio.Task[None]:
        task = asyncio.create_task(self._grow(), name="pool-member")
        self._growing.add(task)
        task.add_done_callback(self._grown)
        return task

    async def _grow(self) -> None:
        member = await _Member.start(self._settings)
        self._members.add(member)
        self._idle.append(member)

    def _grown(self, task: asyncio.Task[None]) -> None:
        self._growing.discard(task)
        if not task.cancelled():
            task.exception()  # seen: whoever needs the member tries again and reports it

    async def _give_back(self, member: _Member, *, fit: bool) -> None:
        if fit and len(self._members) <= self._settings.members:
            self._idle.append(member)
        else:
            await self._dismiss(member)

    async def _dismiss(self, member: _Member) -> None:
        self._members.discard(member)
        await asyncio.shield(member.kill())


def _understood(answer: dict[str, Any]) -> dict[str, Any]:
    if "unreadable" in answer:
        raise Unreadable(str(answer["unreadable"]))
    return answer


class _Member:
    """One process, and how to talk to it."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._input = cast("asyncio.StreamWriter", process.stdin)
        self._output = cast("asyncio.StreamReader", process.stdout)

    @property
    def alive(self) -> bool:
        """Whether the process has not ended, as far as is known."""
        return self._process.returncode is None

    @classmethod
    async def start(cls, settings: EnrichmentSettings) -> _Member:
        """A process that is ready. Raises _MemberLost and OSError."""
        limits = (str(settings.member_seconds), str(settings.member_bytes))
        environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "workers.enrichment.member", *limits,
            stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=environment, start_new_session=True,
        )  # fmt: skip
        member = cls(process)
        try:
            await member._answer()
        except BaseException:
            await member.kill()
            raise
        return member

    async def ask(self, task: dict[str, Any], body: bytes) -> dict[str, Any]:
        """Send a task and its bytes, and read the answer. Raises _MemberLost and OSError."""
        head = json.dumps(task).encode()
        self._input.write(len(head).to_bytes(4) + len(body).to_bytes(4) + head + body)
        await self._input.drain()
        return await self._answer()

    async def kill(self) -> None:
        """End the process and wait until it is gone."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        self._input.close()
        await self._process.wait()

    async def _answer(self) -> dict[str, Any]:
        try:
            size = int.from_bytes(await self._output.readexactly(4))
            if size > _ANSWER_BYTES:
                raise _MemberLost
            answer = json.loads(await self._output.readexactly(size))
        except (asyncio.IncompleteReadError, ValueError):
            raise _MemberLost from None
        if not isinstance(answer, dict):
            raise _MemberLost
        return answer
