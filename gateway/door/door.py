"""The parts that the routes share, and the principal of a request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import Request

from gateway.access import CredentialRefused, Principal, Scope
from gateway.access.access import Access
from gateway.batches.shelf import Shelf
from gateway.door.errors import ApiError
from gateway.door.settings import GatewaySettings
from gateway.store.store import Store
from gateway.view.waiting import Waiting
from schemas.settings import FleetSettings
from telemetry.clock import Clock
from telemetry.metrics import Metrics
from workers.egress import EgressPolicy

PEER = "postback.peer_certificate"
"""The key of the peer's certificate (DER) in the ASGI scope; the server sets it."""

_OWN_SITE = ("none", "same-origin")
"""Values of `Sec-Fetch-Site` for requests that no other site's page has made. A browser shows its certificate to each
of them, as it sends cookies (W3C, Fetch Metadata Request Headers)."""


def nothing() -> None:
    """Do nothing: the clerk of another process finds changed batches by itself."""


@dataclass(frozen=True, slots=True)
class Door:
    """Everything that a route needs. One object a process."""

    fleet: FleetSettings
    settings: GatewaySettings
    callbacks: EgressPolicy
    """The policy by which a callback's URL is checked before its job is accepted."""
    store: Store
    access: Access
    waiting: Waiting
    """Wakes the requests that wait for a result."""
    shelf: Shelf
    """Files with their contents."""
    clock: Clock
    metrics: Metrics
    batches_changed: Callable[[], None] = nothing
    """Tells the clerk of batches, if it works in this process, that one was created or cancelled."""

    async def principal(self, request: Request, scope: Scope) -> Principal:
        """Return the request's principal. Raises ApiError: 401, 403, and 503 while no work can be accepted."""
        try:
            found = await self.access.principal(request.headers.get("authorization"), request.scope.get(PEER))
        except CredentialRefused as error:
            raise ApiError(401, "invalid_api_key", str(error), headers={"www-authenticate": "Bearer"}) from None
        if found.kind == "certificate" and request.headers.get("sec-fetch-site", "none") not in _OWN_SITE:
            raise ApiError(403, "cross_site_request", "Another site's page may not use the browser's certificate.")
        if not found.may(scope):
            raise ApiError(403, "insufficient_permissions", f"The credential lacks the scope `{scope}`.")
        if scope is Scope.SUBMIT and (reason := self.store.hold.refusal):
            raise ApiError(503, "not_accepting", f"No work is accepted now: {reason}.", headers={"retry-after": "5"})
        return found
