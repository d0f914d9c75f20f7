"""One budget for the bytes of pages that a worker has in memory, over all jobs.

A page takes bytes as they arrive, and keeps them until its text is extracted. A slow server so holds only the bytes
that it has sent. If the budget is used up, pages wait, and their connections with them.

Pages that hold bytes and wait for more could wait for each other. So a part of the budget, as large as the largest
page, is set apart for one page at a time: the first in line gets this part when no other bytes are left, and can then
be read to its end. If the budget is smaller than the largest page, the whole budget is that part, and pages are read
one by one.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from workers.enrichment.turns import Asker

_TENANT_SHARE: Final = 0.75
"""The share of the common part that one tenant's pages may hold, so that hung servers of one tenant leave some to the
others."""


@dataclass(slots=True, eq=False)
class HeldPage:
    """The bytes that one page holds."""

    _budget: PageBytes
    tenant: str
    held: int = 0

    async def take(self, count: int) -> None:
        """Wait until `count` more bytes are free, and hold them too."""
        await self._budget.take(self, count)


@dataclass(slots=True, eq=False)
class _Request:
    page: HeldPage
    count: int
    granted: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class PageBytes:
    """The budget of `most` bytes; `largest` is the size of the largest page that is read."""

    def __init__(self, most: int, largest: int) -> None:
        self._common = max(0, most - largest)
        """The bytes that all pages share, besides the one page that has the part set apart."""
        self._alone: HeldPage | None = None
        """The page that has the part set apart."""
        self._used: Counter[str] = Counter()
        """The bytes of the common part that each tenant's pages hold."""
        self._waiting: list[_Request] = []
        """The requests in the order of their arrival."""

    @contextmanager
    def page(self, asker: Asker) -> Iterator[HeldPage]:
        """Yield a page that holds no bytes yet. All that it takes is free again when the context ends."""
        page = HeldPage(self, asker.tenant)
        try:
            yield page
        finally:
            if page is self._alone:
                self._alone = None
            else:
                self._leave_common(page)
            self._give()

    async def take(self, page: HeldPage, count: int) -> None:
        """Wait until the page may hold `count` more bytes. Requests that are cancelled leave the line at once."""
        request = _Request(page, count)
        self._waiting.append(request)
        self._give()
        try:
            await request.granted
        finally:
            if request in self._waiting:
                self._waiting.remove(request)
                self._give()

    def _give(self) -> None:
        """Grant requests as long as the first in line fits; a tenant with fewer bytes goes before one with more."""
        while self._waiting:
            request = min(self._waiting, key=self._order)
            page = request.page
            if page is not self._alone and not self._fits(request):
                if self._alone is not None:
                    return
                self._leave_common(page)
                self._alone = page
            elif page is not self._alone:
                self._used[page.tenant] += request.count
            page.held += request.count
            self._waiting.remove(request)
            if not request.granted.done():
                request.granted.set_result(None)

    def _order(self, request: _Request) -> tuple[bool, int]:
        """The page that is alone is first, since it is what others wait for."""
        return request.page is not self._alone, self._used[request.page.tenant]

    def _fits(self, request: _Request) -> bool:
        of_tenant = self._used[request.page.tenant] + request.count
        return self._used.total() + request.count <= self._common and of_tenant <= self._common * _TENANT_SHARE

    def _leave_common(self, page: HeldPage) -> None:
        self._used[page.tenant] -= page.held
        if not self._used[page.tenant]:
            del self._used[page.tenant]
