"""The desk serves every page: it admits the visitor, reads queries and forms, and shows errors as pages.

A browser's session or certificate becomes a visitor. Three means refuse a request of another site's page:

    the cookie is `SameSite=Strict`
    the browser names the site that made the request (`Sec-Fetch-Site`, else `Origin`)
    each form repeats a token that other sites cannot read

Clients with a certificate need no sign-in. Browsers send empty fields too; an empty field counts as absent.
Source: OWASP Cross-Site Request Forgery Prevention Cheat Sheet.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from gateway.access import CredentialRefused, Principal, Scope
from gateway.access.access import TooManyRequests
from gateway.access.sessions import Sessions
from gateway.dependency import DependencyBusy
from gateway.door.body import read_body
from gateway.door.door import PEER, PRINCIPAL, Door, address_of
from gateway.door.endpoint import Body, Call
from gateway.door.handlers import REFUSALS, refusal_of
from gateway.door.noted import note_action, note_objects, note_reason
from gateway.door.routes.jobs import METADATA
from gateway.errors import ApiError, unavailable
from gateway.page.rendering import CONSOLE, HEADERS, link, page
from producers.errors import ProducerError, RequestRefused
from schemas.settings import SettingsRefused
from telemetry.logs import get_logger

TOKEN_FIELD = "form_token"  # noqa: S105 - a field's name
_MOST_FORM_BYTES = 16 * 1024
_MOST_FIELDS = 20
_FORM = "application/x-www-form-urlencoded"


class NotSignedIn(Exception):  # noqa: N818 - it names what is missing
    """The request has neither a session nor a certificate. The error's text is for the visitor, and may be empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit(Call):
    """A request of an admitted person to a page."""

    form_token: str
    """The token that each form repeats."""
    can_leave: bool
    """True for a session, which can be ended."""
    form: Mapping[str, str] = field(default_factory=dict)
    """The fields of the form that was sent; empty for a page."""

    def may(self, scope: str) -> bool:
        """Return whether the visitor has the scope of this name."""
        return self.principal.may(Scope(scope))

    def named(self, kind: str) -> str:
        """Return the field `id`, which the audit line has too. Raises ApiError (404) if it is absent or empty."""
        identifier = self.form.get("id") or self.request.query_params.get("id")
        if not identifier:
            raise ApiError(404, f"{kind}_not_found", f"The address names no {kind}.")
        note_objects(self.request, [identifier])
        return identifier

    def call(self, kind: str, body: Body | None = None, given: Any = None) -> Call:
        """Return the call of the API that the form stands for, to the object that the form names."""
        return Call(self.door, self.request, self.principal, body, {f"{kind}_id": self.named(kind)}, given)


async def read_form(request: Request) -> dict[str, str]:
    """Return the fields of a form that a console page sent. Raises ApiError (400, 403, 413, 415)."""
    _require_own_site(request)
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM:
        raise ApiError(415, "unsupported_content_type", f"Send the form as {_FORM}.")
    body = await read_body(request, _MOST_FORM_BYTES)
    try:
        text = body.decode("ascii")
        return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=_MOST_FIELDS))
    except ValueError:
        raise ApiError(400, "malformed_form", "The form is malformed, or has too many fields.") from None


def _require_own_site(request: Request) -> None:
    """Refuse the form of another site's page (W3C, Fetch Metadata Request Headers; RFC 6454). Raises ApiError (403)."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        own = site in ("same-origin", "none")
    else:
        own = origin is None or _host_of(origin) == request.headers.get("host", "").lower()
    if not own:
        raise ApiError(403, "cross_site_request", "Another site's page sent this form; open the console page itself.")


def _host_of(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


SIGN_IN = "/sign-in"
_MOST_NEXT = 2000


class ShownPage(NamedTuple):
    """A page to show: its template, the values for the template, and the answer's status."""

    template: str
    values: Mapping[str, Any]
    status: int = 200


Show = Callable[[Visit], Awaitable[ShownPage | Response]]
Act = Callable[[Visit], Awaitable[str | ShownPage]]


class Tab(NamedTuple):
    """A link in the head of every page."""

    path: str
    name: str
    scope: Scope
    """Only visitors with this scope see the link."""


class Desk:
    """Makes the routes of pages, finds the visitor of each request, and signs visitors in and out."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self._tabs: list[Tab] = []
        self._sessions = Sessions(door.store, door.clock, door.settings.session_seconds)

    async def visit(self, request: Request, scope: Scope) -> Visit:
        """Return the visit of an admitted person. Raises NotSignedIn, ApiError (403, 429) and StoreAway."""
        token, peer = request.cookies.get(self._cookie_name(request)), request.scope.get(PEER)
        if token is None and peer is None:
            raise NotSignedIn
        try:
            if token is not None:
                access = self.door.access
                found = await access.counting_failures(partial(self._sessions.find, token), address_of(request))
                known = await self.door.known(request, access.beside(peer, found), scope)
                return self._visit(request, known, token)
        except CredentialRefused as error:
            if peer is None:
                raise NotSignedIn(f"{error}; sign in again") from None
        try:
            return self._visit(request, await self.door.principal(request, scope))
        except ApiError as error:
            if error.status == 401:
                raise NotSignedIn(error.message) from None
            raise

    def _visit(self, request: Request, principal: Principal, session: str | None = None) -> Visit:
        """Return the visit, by a session or a certificate.

        The digested text of the forms' token cannot be an API key, so the token is no key's digest.
        """
        named = f"form token of {principal.credential if session is None else session}"
        token, can_leave = self.door.access.digests.of(named).hex(), session is not None
        return Visit(door=self.door, request=request, principal=principal, form_token=token, can_leave=can_leave)

    async def _with_form(self, request: Request, scope: Scope) -> Visit:
        """Return the visit with its form. Raises what `visit` raises, and ApiError for another site's form."""
        visit = await self.visit(request, scope)
        form = await read_form(request)
        if not hmac.compare_digest(form.get(TOKEN_FIELD, "").encode("utf-8", "replace"), visit.form_token.encode()):
            raise ApiError(403, "form_refused", "The form is of another session; load its page again, and repeat it.")
        return replace(visit, form=form)

    def shows(self, path: str, scope: Scope, action: str, show: Show, *, tab: str | None = None) -> Route:
        """Return the route of a page. `action` is the page's name in the audit.

        With `tab`, the head of every page links to this page by that name, for visitors with its scope.
        """
        if tab is not None:
            self._tabs.append(Tab(path, tab, scope))

        async def serve(request: Request) -> Response:
            note_action(request, action)
            visit = await self.visit(request, scope)
            shown = await show(visit)
            return shown if isinstance(shown, Response) else self._page(shown, visit, path, _asked(request))

        return Route(link(path), guarded(serve), methods=["GET"])

    def acts(self, path: str, scope: Scope, action: str, act: Act) -> Route:
        """Return the route of a form. `act` returns the address that the browser goes on to, or a page to show.

        A page is for an answer that is shown once, such as a new secret or an error of the form.
        """

        async def serve(request: Request) -> Response:
            note_action(request, action)
            visit = await self._with_form(request, scope)
            done = await act(visit)
            return self._page(done, visit, path) if isinstance(done, ShownPage) else going_to(done)

        return Route(link(path), guarded(serve), methods=["POST"])

    def routes(self) -> list[Route]:
        """Return the routes of the sign-in form."""
        return [
            Route(link(SIGN_IN), guarded(self._show_form), methods=["GET"]),
            Route(link(SIGN_IN), guarded(self._enter), methods=["POST"]),
            Route(link("/sign-out"), guarded(self._leave), methods=["POST"]),
        ]

    def _page(self, shown: ShownPage, visit: Visit, path: str, here: str = "") -> Response:
        """Return the response with a page. `here` is the address by which the page can be requested again."""
        values = {"visitor": visit, "pages": self._tabs, "path": path, "here": here}
        return page(shown.template, shown.status, **values, **shown.values)

    async def _show_form(self, request: Request) -> Response:
        """Show the form; a visitor who is signed in already gets the console."""
        await self.door.visit(request)
        try:
            await self.visit(request, Scope.READ)
        except NotSignedIn:
            reason = _ENDED if request.query_params.get("reason") == "ended" else ""
            return _form(200, reason, request.query_params.get("next", ""))
        return going_to(_own(request.query_params.get("next", "")))

    async def _enter(self, request: Request) -> Response:
        """Begin a session."""
        note_action(request, "signIn")
        form = await read_form(request)
        wanted = form.get("next", "")
        credential = form.get("credential", "").strip()
        try:
            access, peer = self.door.access, request.scope.get(PEER)
            found = await access.admit(f"Bearer {credential}", peer, address_of(request))
            await access.count(found)
        except CredentialRefused:
            return _form(
                401, "The key or token is unknown, expired or revoked. Check that you pasted the whole text.", wanted
            )
        except TooManyRequests as error:
            return _form(429, error.message, wanted, error.headers)
        request.scope["state"][PRINCIPAL] = found
        if not found.may(Scope.READ):
            raise ApiError(403, "insufficient_permissions", "The credential lacks the scope `read`; use another one.")
        former = request.cookies.get(self._cookie_name(request))
        if former is not None:
            await self._sessions.end(former)
        response = going_to(_own(wanted))
        token = await self._sessions.begin(found)
        self._set_cookie(request, response, token, self.door.settings.session_seconds)
        return response

    async def _leave(self, request: Request) -> Response:
        """End the session."""
        note_action(request, "signOut")
        await self._with_form(request, Scope.READ)
        await self._sessions.end(request.cookies.get(self._cookie_name(request), ""))
        response = going_to(link(SIGN_IN))
        self._set_cookie(request, response, "", 0)
        return response

    def _cookie_name(self, request: Request) -> str:
        """Return the cookie's name. A browser accepts the prefix `__Host-` only over TLS, and only from this host."""
        return "__Host-postback" if self._is_tls(request) else "postback"

    def _set_cookie(self, request: Request, response: Response, token: str, seconds: int) -> None:
        """Set the cookie to a session's token. An empty token with 0 seconds removes the cookie."""
        response.set_cookie(
            self._cookie_name(request),
            token,
            max_age=seconds,
            path="/",
            secure=self._is_tls(request),
            httponly=True,
            samesite="strict",
        )

    def _is_tls(self, request: Request) -> bool:
        """True if the browser speaks TLS, with the door or with the proxy in front of it."""
        return self.door.settings.plain_http or request.url.scheme == "https"


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
        except REFUSALS as error:
            refusal = refusal_of(error)
            note_reason(request, refusal.code)
            response = page("error", refusal.status, code=refusal.status, message=refusal.message)
            response.headers.update({name: value for name, value in refusal.headers.items() if name == "retry-after"})
            return response

    return answer


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


_OWN_PAGE = re.compile(rf"{CONSOLE}(/[\x21-\x5b\x5d-\x7e]*|\?[\x21-\x5b\x5d-\x7e]*)?")
"""An address of a console page, without backslashes: browsers read them as slashes, which could lead to another
host.
"""
_ENDED = "The session has ended. Sign in again."


def _form(status: int, problem: str, wanted: str, headers: Any = None) -> Response:
    response = page("sign_in", status, problem=problem, next=_own(wanted))
    response.headers.update(headers or {})
    return response


def _own(wanted: str) -> str:
    """Return the wanted address if it is a console page, else the first page."""
    return wanted if _OWN_PAGE.fullmatch(wanted) else CONSOLE


_LABEL = "metadata"


def asked(request: Request) -> Request:
    """Return the request with a query as the API takes it: no empty fields, and one parameter for each metadata key."""
    said: list[tuple[str, str]] = []
    for name, value in request.query_params.multi_items():
        if not value:
            continue
        if name == _LABEL:
            key, equals, wanted = value.partition("=")
            if not equals:
                raise ApiError(400, "invalid_parameter", "metadata: write the key and its value as `key=value`.")
            name, value = f"{METADATA}{key}", wanted
        said.append((name, value))
    return Request({**request.scope, "query_string": urlencode(said).encode()})


T = TypeVar("T")

log = get_logger()


async def answered(search: Awaitable[T]) -> T:
    """Return the result of a search. Raises its errors.

    Raises ApiError (503) for ProducerError, DependencyBusy, and settings that the search reads and that are refused.
    """
    try:
        return await search
    except DependencyBusy:
        raise unavailable("busy", "Other pages search Kafka now; try again.") from None
    except SettingsRefused as error:
        raise unavailable(
            "settings_refused", f"The gateway's environment has a setting that is refused: {error}."
        ) from None
    except RequestRefused as error:
        raise unavailable("kafka_refuses", f"Kafka cannot be read: {error}.") from None
    except ProducerError as error:  # the text names Kafka's address and settings, so only the log gets the text
        log.warning(
            "A page could not read Kafka; the visitor is told to try again.",
            action="page-search-failed",
            reason=str(error),
        )
        raise unavailable("kafka_away", "Kafka cannot be read now; try again.") from None
