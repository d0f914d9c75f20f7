"""Keeps processes that parse pages, because a page can make its parser hang, grow or crash.

A member does one task at a time. The pool kills a member that is late or whose job is cancelled, and starts another one
on demand. The other members and the worker go on. Members start when they are first needed.

Jobs take turns at reading. One more member only ranks, so that ranking never waits for the reading of a page. Otherwise
a job could run out of time after its pages are read.

The pool does not use `pebble` or `concurrent.futures`. These libraries import the worker's own main module into each
member, and unpickle answers from a process that has read hostile bytes. Here a member imports only its own modules, has
an address-space limit, gets no secrets from the worker's environment, and answers in JSON.

`Recognition` reads pictures of text, with a process for each document instead of the pool.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

from telemetry.logs import get_logger
from telemetry.metrics import Metrics
from workers.enrichment.evidence import Page, Unreadable
from workers.enrichment.processes.tesseract import Tesseract
from workers.enrichment.settings import EnrichmentSettings
from workers.enrichment.turns import Asker, Turns
from workers.processes.child import Child, ChildLost

log = get_logger()

_RETIRE_KIB = 300 * 1024
"""A member that has grown beyond this size is replaced, because a process seldom returns freed memory to the system."""
_START_SECONDS = 30.0
"""Timeout of a member's start, which takes a third of a second on an idle machine."""


class Pool:
    """At most `settings.members` processes that read pages, and one more process that ranks."""

    def __init__(self, settings: EnrichmentSettings, metrics: Metrics) -> None:
        """Raises ProcessError if the settings ask for OCR, but tesseract is missing."""
        self.recognition = Recognition(settings, settings.ocr, metrics) if settings.ocr is not None else None
        """The processes that read pictures of text; None without OCR."""
        self._settings = settings
        self._limit = settings.members + 1
        self._reading = Turns(settings.members)
        self._ranking = Turns(1)
        self._members: set[Child] = set()
        self._idle: list[Child] = []
        self._growing: set[asyncio.Task[None]] = set()
        self._wanting = 0

    async def warm(self) -> None:
        """Wait until the pool has a member, and start the first one. A failed start is reported by `ask`.

        A job calls this before its time for sources begins, or else the first jobs of a worker lose their sources.
        """
        if not self._members and not self._growing:
            self._start_growing()
        if not self._members:
            await asyncio.wait(self._growing, return_when=asyncio.FIRST_COMPLETED)

    async def ask(self, task: dict[str, Any], body: bytes, asker: Asker) -> dict[str, Any]:
        """Wait for this job's turn, and return a member's answer to `task`. Raises Unreadable.

        `task` must have an entry `kind`. A cancellation kills the member, because a running task cannot be interrupted.
        """
        turns = self._ranking if task["kind"] == "rank" else self._reading
        async with turns.place(asker):
            member = await self._take()
            answer: dict[str, Any] | None = None
            try:
                async with asyncio.timeout(self._settings.member_seconds):
                    answer = await member.ask(task, body)
            except TimeoutError:
                late = f"reading it took more than {self._settings.member_seconds:g} s"
                raise Unreadable(late, is_ours=True) from None
            except (ChildLost, OSError):
                lost = "reading it needed more memory than allowed, or crashed the reader"
                raise Unreadable(lost, is_ours=True) from None
            finally:
                await self._give_back(member, fit=answer is not None and answer.get("peak_kib", 0) < _RETIRE_KIB)
            return understood(answer)

    async def close(self) -> None:
        """Kill all members, including those that are starting."""
        for growing in self._growing:
            growing.cancel()
        await asyncio.gather(*self._growing, return_exceptions=True)
        await asyncio.gather(*(self._dismiss(member) for member in list(self._members)))
        self._idle.clear()

    async def _take(self) -> Child:
        """Wait for an idle member that is alive, remove it from the idle ones, and return it. Raises Unreadable.

        A new member is added to the idle ones, not handed to the job that waited for it, because that job may be
        cancelled.
        """
        while True:
            if not self._idle:
                await self._more()
            elif (member := self._idle.pop()).alive:
                return member
            else:
                await self._dismiss(member)

    async def _more(self) -> None:
        """Wait until a member is ready; start a new one if too few are starting. Raises Unreadable."""
        self._wanting += 1
        try:
            if self._wanting > len(self._growing) and len(self._members) + len(self._growing) < self._limit:
                self._start_growing()
            ready, _ = await asyncio.wait(self._growing, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._wanting -= 1
        if not self._idle and any(task.cancelled() or task.exception() for task in ready):
            log.error("A reader process did not start.", action="reader-not-started")
            raise Unreadable("the reader could not be started", is_lasting=False, is_ours=True)

    def _start_growing(self) -> None:
        task = asyncio.create_task(self._grow(), name="pool-member")
        self._growing.add(task)
        task.add_done_callback(self._grown)

    async def _grow(self) -> None:
        settings = self._settings
        arguments = (str(settings.member_seconds), str(settings.member_bytes), settings.extractor)
        async with asyncio.timeout(_START_SECONDS):
            member = await Child.start("workers.enrichment.processes.member", *arguments)
        self._members.add(member)
        self._idle.append(member)

    def _grown(self, task: asyncio.Task[None]) -> None:
        self._growing.discard(task)
        if not task.cancelled():
            task.exception()  # marks the error as retrieved; `_more` reports it

    async def _give_back(self, member: Child, *, fit: bool) -> None:
        if fit and len(self._members) <= self._limit:
            self._idle.append(member)
        else:
            await self._dismiss(member)

    async def _dismiss(self, member: Child) -> None:
        self._members.discard(member)
        await asyncio.shield(member.kill())


class Recognition:
    """Reads pictures of text by tesseract (OCR), for all jobs of a worker.

    Starts a process for each document, and ends it afterwards, because a run of tesseract reads only one input.
    """

    def __init__(self, settings: EnrichmentSettings, languages: str, metrics: Metrics) -> None:
        """Raises ProcessError if tesseract or a language is missing."""
        tesseract = Tesseract.find(languages)
        self._settings = settings
        self._turns = Turns(settings.ocr_documents)
        self._waits = metrics.ocr_wait_seconds
        self._arguments = (
            str(settings.member_bytes), str(settings.ocr_pages), languages,
            tesseract.program, tesseract.data, *tesseract.libraries,
        )  # fmt: skip

    async def read(self, page: Page, asker: Asker, seconds: float) -> dict[str, Any]:
        """Start a process for this page, and return its answer, with the text of the page's pictures.

        `seconds` bounds the wait in line behind other documents and the reading together. `ocr_seconds`
        bounds only the reading.
        Raises Unreadable.
        """
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        until = asked_at + seconds
        late = f"other documents were before it in line for OCR, for more than {round(seconds, 1):g} s"
        try:
            async with asyncio.timeout_at(until) as limit, AsyncExitStack() as stack:
                try:
                    await stack.enter_async_context(self._turns.place(asker))
                finally:
                    self._waits.observe(loop.time() - asked_at)
                seconds = max(0.1, min(until - loop.time(), self._settings.ocr_seconds))
                late = f"reading its pictures took more than {round(seconds, 1):g} s"
                limit.reschedule(loop.time() + seconds)
                return understood(await self._answer(page, seconds))
        except TimeoutError:
            raise Unreadable(late, is_ours=True) from None

    async def _answer(self, page: Page, seconds: float) -> dict[str, Any]:
        try:
            child = await Child.start("workers.enrichment.processes.ocr", str(seconds), *self._arguments)
        except (ChildLost, OSError):
            log.error("A process for OCR did not start; leaving the source out.", action="reader-not-started")
            raise Unreadable("the reader of pictures could not be started", is_lasting=False, is_ours=True) from None
        task = {"kind": "read", "media_type": page.media_type, "charset": page.charset, "url": page.url}
        try:
            return await child.ask(task, page.body)
        except (ChildLost, OSError):
            lost = "reading its pictures needed more memory than allowed, or crashed the reader"
            raise Unreadable(lost, is_ours=True) from None
        finally:
            await asyncio.shield(child.kill())


def understood(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the answer. Raises Unreadable if the process could not read the page."""
    if "unreadable" in answer:
        raise Unreadable(str(answer["unreadable"]))
    return answer
