"""A browser's session or certificate becomes a visitor; a token in each form proves that a console page sent the form.

Three means refuse a request of another site's page:

    the cookie is `SameSite=Strict`
    the browser names the site that made the request (`Sec-Fetch-Site`, else `Origin`)
    each form repeats a token that other sites cannot read

Source: OWASP Cross-Site Request Forgery Prevention Cheat Sheet.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

from starlette.requests import Request
from starlette.responses import Response

from gateway.access import CredentialRefused, Principal, Scope
from gateway.access.sessions import Sessions
from gateway.door.body import read_body
from gateway.door.door import PEER, Door
from gateway.errors import ApiError

TOKEN_FIELD = "form_token"  # noqa: S105 - a field's name
_MOST_FORM_BYTES = 16 * 1024
_MOST_FIELDS = 20
_FORM = "application/x-www-form-urlencoded"


class NotSignedIn(Exception):  # noqa: N818 - it names what is missing
    """The request has neither a session nor a certificate. The error's text is for the visitor, and may be empty."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """An admitted person."""

    principal: Principal
    form_token: str
    """The token that each form repeats."""
    can_leave: bool
    """True for a session, which can be ended."""

    def may(self, scope: str) -> bool:
        """Return whether the visitor has the scope of this name."""
        return self.principal.may(Scope(scope))


class Visitors:
    """Finds the visitor of a request."""

    def __init__(self, door: Door, sessions: Sessions) -> None:
        self._door = door
        self._sessions = sessions

    async def of(self, request: Request, scope: Scope) -> Visitor:
        """Return the visitor. Raises NotSignedIn, ApiError (403, 429) and StoreAway."""
        token = request.cookies.get(cookie_name(request))
        peer = request.scope.get(PEER)
        if token is None and peer is None:
            raise NotSignedIn
        try:
            if token is not None:
                known = self._door.access.beside(peer, await self._sessions.find(token))
                return Visitor(await self._door.known(request, known, scope), self._form_token(token), can_leave=True)
        except CredentialRefused as error:
            if peer is None:
                await self._door.visit(request)
                raise NotSignedIn(f"{error}; sign in again") from None
        try:
            principal = await self._door.principal(request, scope)
        except ApiError as error:
            if error.status == 401:
                raise NotSignedIn(error.message) from None
            raise
        return Visitor(principal, self._form_token(principal.credential), can_leave=False)

    def require_token(self, visitor: Visitor, form: Mapping[str, str]) -> None:
        """Refuse a form without the visitor's token. Raises ApiError (403)."""
        if not hmac.compare_digest(form.get(TOKEN_FIELD, "").encode("utf-8", "replace"), visitor.form_token.encode()):
            raise ApiError(403, "form_refused", "The form is of another session; load its page again, and repeat it.")

    def _form_token(self, session: str) -> str:
        """Return the token of a session's forms.

        The digested text cannot be an API key, so the token is no key's digest.
        """
        return self._door.access.digests.of(f"form token of {session}").hex()


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


def cookie_name(request: Request) -> str:
    """Return the cookie's name. A browser accepts the prefix `__Host-` only over TLS, and only from this host."""
    return "__Host-postback" if _is_tls(request) else "postback"


def set_cookie(request: Request, response: Response, token: str, seconds: int) -> None:
    """Set the cookie to a session's token. An empty token with 0 seconds removes the cookie."""
    response.set_cookie(
        cookie_name(request),
        token,
        max_age=seconds,
        path="/",
        secure=_is_tls(request),
        httponly=True,
        samesite="strict",
    )


def _is_tls(request: Request) -> bool:
    return request.url.scheme == "https"
