"""The desk serves every page: it admits the visitor, reads forms, and shows errors as pages."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from gateway.access import Scope
from gateway.access.principal import IssuerAway
from gateway.blobs.base import BlobMissing, BlobsAway
from gateway.dependency import DependencyBusy
from gateway.door.noted import note_action, note_reason
from gateway.errors import ApiError
from gateway.page.rendering import HEADERS, link, page
from gateway.page.visitors import NotSignedIn, Visitor, Visitors, read_form
from gateway.store.store import StoreAway

SIGN_IN = "/sign-in"
_MOST_NEXT = 2000


class ShownPage(NamedTuple):
    """A page to show: its template, the values for the template, and the answer's status."""

    template: str
    values: Mapping[str, Any]
    status: int = 200


Form = Mapping[str, str]
Show = Callable[[Request, Visitor], Awaitable[ShownPage | Response]]
Act = Callable[[Request, Visitor, Form], Awaitable[str | ShownPage]]


class Desk:
    """Makes the routes of pages."""

    def __init__(self, visitors: Visitors) -> None:
        self._visitors = visitors

    def shows(self, path: str, scope: Scope, action: str, show: Show) -> Route:
        """Return the route of a page. `action` is the page's name in the audit."""

        async def serve(request: Request) -> Response:
            note_action(request, action)
            visitor = await self._visitors.of(request, scope)
            shown = await show(request, visitor)
            if isinstance(shown, Response):
                return shown
            return _page(shown, visitor, path, _asked(request))

        return Route(link(path), guarded(serve), methods=["GET"])

    def acts(self, path: str, scope: Scope, action: str, act: Act) -> Route:
        """Return the route of a form. `act` returns the address that the browser goes on to, or a page to show.

        A page is for an answer that is shown once, such as a new secret or an error of the form.
        """

        async def serve(request: Request) -> Response:
            note_action(request, action)
            visitor = await self._visitors.of(request, scope)
            form = await read_form(request)
            self._visitors.require_token(visitor, form)
            done = await act(request, visitor, form)
            return _page(done, visitor, path) if isinstance(done, ShownPage) else going_to(done)

        return Route(link(path), guarded(serve), methods=["POST"])


def _page(shown: ShownPage, visitor: Visitor, path: str, here: str = "") -> Response:
    """Return the response with a page. `here` is the address by which the page can be requested again."""
    return page(shown.template, shown.status, visitor=visitor, path=path, here=here, **shown.values)


def _asked(request: Request) -> str:
    return request.url.path + (f"?{request.url.query}" if request.url.query else "")


def going_to(address: str) -> Response:
    """Return the redirect (303) after which the browser requests this address by GET."""
    return RedirectResponse(address, 303, HEADERS)


def guarded(serve: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """Return a handler that calls `serve`, and answers each refusal with a page."""

    async def answer(request: Request) -> Response:
        try:
            return await serve(request)
        except NotSignedIn as error:
            return _to_sign_in(request, str(error))
        except ApiError as error:
            note_reason(request, error.code)
            return _refusal(error.status, error.message, error.headers)
        except BlobMissing:
            return _refusal(404, "The storage has lost the file's content.")
        except (StoreAway, IssuerAway, BlobsAway, DependencyBusy) as error:
            return _refusal(503, f"{error}; load the page again.", {"retry-after": "5"})

    return answer


def _refusal(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    response = page("error", status, code=status, message=message)
    response.headers.update({name: value for name, value in (headers or {}).items() if name == "retry-after"})
    return response


def _to_sign_in(request: Request, reason: str) -> Response:
    """Send the browser to the sign-in form, and back to this page afterwards.

    A page that refreshes a part of itself asks by htmx; the header `hx-redirect` then sends the whole page to the form.
    """
    asked = _asked(request)
    back = asked if request.method in ("GET", "HEAD") and len(asked) <= _MOST_NEXT else None
    address = link(SIGN_IN, next=back, reason="ended" if reason else None)
    if request.headers.get("hx-request") == "true":
        return Response(status_code=401, headers={**HEADERS, "hx-redirect": address})
    return going_to(address)
