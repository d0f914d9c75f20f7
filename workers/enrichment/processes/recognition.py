"""Reads pictures of text by tesseract (OCR), for all jobs of a worker."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

from telemetry.logs import get_logger
from telemetry.metrics import Metrics
from workers.enrichment.evidence import Page, Unreadable
from workers.enrichment.processes.child import Child, ChildLost, understood
from workers.enrichment.processes.tesseract import Tesseract
from workers.enrichment.settings import EnrichmentSettings
from workers.enrichment.turns import Asker, Turns

log = get_logger()


class Recognition:
    """Starts a process for each document, and ends it afterwards, because a run of tesseract reads only one input."""

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

        `seconds` bounds the wait in line behind other documents and the reading together. The setting `ocr_seconds`
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
