"""Signing in with an API key or a token, and signing out. Clients with a certificate need no sign-in."""

from __future__ import annotations

import re
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.access import CredentialRefused, Scope
from gateway.access.gate import TooManyRequests
from gateway.access.sessions import Sessions
from gateway.door.door import PEER, PRINCIPAL, Door, address_of
from gateway.door.noted import note_action
from gateway.errors import ApiError
from gateway.page.desk import SIGN_IN, going_to, guarded
from gateway.page.rendering import CONSOLE, link, page
from gateway.page.visitors import NotSignedIn, Visitors, cookie_name, read_form, set_cookie

_OWN_PAGE = re.compile(rf"{CONSOLE}(/[\x21-\x5b\x5d-\x7e]*|\?[\x21-\x5b\x5d-\x7e]*)?")
"""An address of a console page, without backslashes: browsers read them as slashes, which could lead to another
host.
"""
_ENDED = "The session has ended. Sign in again."


class SignIn:
    """The handlers of the form."""

    def __init__(self, door: Door, sessions: Sessions, visitors: Visitors) -> None:
        self._door = door
        self._sessions = sessions
        self._visitors = visitors

    async def show(self, request: Request) -> Response:
        """Show the form; a visitor who is signed in already gets the console."""
        await self._door.visit(request)
        try:
            await self._visitors.of(request, Scope.READ)
        except NotSignedIn:
            reason = _ENDED if request.query_params.get("reason") == "ended" else ""
            return _form(200, reason, request.query_params.get("next", ""))
        return going_to(_own(request.query_params.get("next", "")))

    async def enter(self, request: Request) -> Response:
        """Begin a session."""
        note_action(request, "signIn")
        form = await read_form(request)
        wanted = form.get("next", "")
        credential = form.get("credential", "").strip()
        try:
            admitted = await self._door.gate.admit(f"Bearer {credential}", request.scope.get(PEER), address_of(request))
        except CredentialRefused:
            return _form(
                401, "The key or token is unknown, expired or revoked. Check that you pasted the whole text.", wanted
            )
        except TooManyRequests as error:
            return _form(429, error.message, wanted, error.headers)
        request.scope["state"][PRINCIPAL] = admitted.principal
        if not admitted.principal.may(Scope.READ):
            raise ApiError(403, "insufficient_permissions", "The credential lacks the scope `read`; use another one.")
        former = request.cookies.get(cookie_name(request))
        if former is not None:
            await self._sessions.end(former)
        response = going_to(_own(wanted))
        token = await self._sessions.begin(admitted.principal)
        set_cookie(request, response, token, self._door.settings.session_seconds)
        return response

    async def leave(self, request: Request) -> Response:
        """End the session."""
        note_action(request, "signOut")
        visitor = await self._visitors.of(request, Scope.READ)
        self._visitors.require_token(visitor, await read_form(request))
        await self._sessions.end(request.cookies.get(cookie_name(request), ""))
        response = going_to(link(SIGN_IN))
        set_cookie(request, response, "", 0)
        return response


def _form(status: int, problem: str, wanted: str, headers: Any = None) -> Response:
    response = page("sign_in", status, problem=problem, next=_own(wanted))
    response.headers.update(headers or {})
    return response


def _own(wanted: str) -> str:
    """Return the wanted address if it is a console page, else the first page."""
    return wanted if _OWN_PAGE.fullmatch(wanted) else CONSOLE


def sign_in_routes(door: Door, sessions: Sessions, visitors: Visitors) -> list[Route]:
    """Return the routes of the form."""
    handlers = SignIn(door, sessions, visitors)
    return [
        Route(link(SIGN_IN), guarded(handlers.show), methods=["GET"]),
        Route(link(SIGN_IN), guarded(handlers.enter), methods=["POST"]),
        Route(link("/sign-out"), guarded(handlers.leave), methods=["POST"]),
    ]
