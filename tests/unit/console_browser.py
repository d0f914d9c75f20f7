"""A browser without a screen for the console page: it keeps cookies, and reads forms from pages."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
from selectolax.lexbor import LexborHTMLParser

from gateway.door.app import create_app
from gateway.page.routes import page_routes
from tests.unit.gateway_rig import Rig, gateway_rig


@contextmanager
def console_rig(folder: Path) -> Iterator[Rig]:
    """A door with the console page."""
    with gateway_rig(folder) as made:
        yield replace(made, app=create_app(made.door, [page_routes]))


@dataclass
class Browser:
    """Requests of one browser."""

    rig: Rig
    scheme: str = "http"
    cookies: httpx.Cookies = field(default_factory=httpx.Cookies)

    def ask(self, method: str, path: str, **arguments: object) -> httpx.Response:
        """Send one request; follow no redirect."""
        return asyncio.run(self._ask(method, path, **arguments))

    async def _ask(self, method: str, path: str, **arguments: object) -> httpx.Response:
        transport = httpx.ASGITransport(self.rig.app)
        async with httpx.AsyncClient(
            transport=transport, base_url=f"{self.scheme}://door", cookies=self.cookies
        ) as client:
            answer = await client.request(method, path, **arguments)  # type: ignore[arg-type]
            self.cookies = client.cookies
            return answer

    def get(self, path: str, **arguments: object) -> httpx.Response:
        return self.ask("GET", path, **arguments)

    def sign_in(self, key: str, **fields: str) -> httpx.Response:
        """Sign in by the form."""
        return self.ask("POST", "/console/sign-in", data={"credential": key, **fields})

    def page(self, path: str) -> LexborHTMLParser:
        """The page at this path, which must exist."""
        answer = self.get(path)
        assert answer.status_code == 200, answer.text
        return LexborHTMLParser(answer.text)

    def token(self) -> str:
        """The token of this session's forms."""
        found = self.page("/console").css_first("input[name=form_token]")
        assert found is not None
        return found.attributes["value"] or ""

    def send(self, path: str, fields: Mapping[str, str], token: str | None = None) -> httpx.Response:
        """Send a form with `token`, or with the session's token if `token` is None."""
        return self.ask("POST", path, data={"form_token": self.token() if token is None else token, **fields})


def signed_in(rig: Rig, tenant: str = "acme") -> Browser:
    """A browser with a session of this tenant."""
    browser = Browser(rig)
    assert browser.sign_in(rig.key(tenant)).status_code == 303
    return browser
