"""The parts that the routes share, and the principal of a request."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.requests import Request

from gateway.access import CredentialRefused, Principal, Scope
from gateway.access.access import Access
from gateway.batches.files import Shelf
from gateway.batches.uploads import Uploads
from gateway.dependency import Dependency
from gateway.door.fleet import FleetFrames, FleetModels
from gateway.door.noted import note_refused_key
from gateway.door.settings import GatewaySettings
from gateway.errors import ApiError, unavailable
from gateway.store.store import Store
from gateway.view.waiting import Waiting
from gateway.webhooks.fan_out import Sending
from schemas.settings import FleetSettings
from telemetry.audit import Audit
from telemetry.clock import Clock
from telemetry.metrics import Metrics
from workers.egress import EgressPolicy
from workers.system.deltas import DeltaListeners

if TYPE_CHECKING:
    from workers.screening.screen import Screen

PEER = "postback.peer_certificate"
"""The key of the peer's certificate (DER) in the ASGI scope; the server sets it."""
PRINCIPAL = "principal"
"""The key of the principal in the ASGI scope's state, for the audit."""
ANSWER_HEADERS = "answer_headers"
"""The key, in the ASGI scope's state, of header fields that the response gets."""

REQUEST_ID = "x-request-id"

SECURITY: tuple[tuple[bytes, bytes], ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
)
"""Default fields, which keep browsers and caches from misusing a response (OWASP REST Security Cheat Sheet).

Fields that a route sets take precedence.
"""

SEARCHES_AT_ONCE = 2

_OWN_SITE = ("none", "same-origin")
"""Values of `Sec-Fetch-Site` for requests that no other site's page has made.

Other values are refused, because a browser sends its client certificate with requests from any site's page, as it sends
cookies (W3C, Fetch Metadata Request Headers).
"""


def nothing() -> None:
    """Do nothing. Without a clerk in this process, the clerk of another process finds changed batches by itself."""


@dataclass(frozen=True, slots=True)
class Door:
    """Everything that a route needs. Each process has one such object."""

    fleet: FleetSettings
    settings: GatewaySettings
    callbacks: EgressPolicy
    """The policy by which a callback's URL is checked before its job is accepted."""
    store: Store
    access: Access
    """Admits requests by credential and rate, and knows the settings of tenants."""
    waiting: Waiting
    """Wakes the requests that wait for a result."""
    shelf: Shelf
    """Files with their contents."""
    models: FleetModels
    """The models of the fleet's workers."""
    clock: Clock
    metrics: Metrics
    screen: Screen | None = None
    """The operator's input filter; None without rules."""
    screening: Dependency = field(default_factory=lambda: Dependency("the input filter", 4, 512))
    """Runs the filter's checks."""
    searches: Dependency = field(default_factory=lambda: Dependency("Kafka", SEARCHES_AT_ONCE, 0))
    """Runs the searches of pages in Kafka."""
    alerts: Dependency = field(default_factory=lambda: Dependency("Prometheus", 1, 2))
    """Asks Prometheus for alerts."""
    audit: Audit | None = None
    """Writes the audit lines. If None, no audit lines are written."""
    webhooks: Sending | None = None
    """Keys of webhook endpoints; None if the operator has set no keyring."""
    deltas: DeltaListeners | None = None
    """Hears answers while they are generated; None without a Redis for it."""
    batches_changed: Callable[[], None] = nothing
    """Tells the clerk of batches, if it works in this process, that a batch was created or cancelled."""
    streams: Counter[str] = field(default_factory=Counter)
    """The open streams of events of each tenant."""
    frames: FleetFrames = field(init=False)
    """Reads the state of the fleet."""
    uploads: Uploads = field(init=False)
    """Joins uploads to files on the shelf."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "frames", FleetFrames(self.fleet.kafka, self.clock))
        object.__setattr__(self, "uploads", Uploads(self.shelf))

    async def principal(self, request: Request, scope: Scope) -> Principal:
        """Return the request's principal. Raises ApiError: 401, 403, 429, and 503 while no work can be accepted."""
        authorization, peer = request.headers.get("authorization"), request.scope.get(PEER)
        try:
            found = await self.access.admit(authorization, peer, address_of(request))
        except CredentialRefused as error:
            note_refused_key(request, self.access.parsed(authorization).key_id)
            raise ApiError(401, "invalid_api_key", str(error), headers={"www-authenticate": "Bearer"}) from None
        return await self.known(request, found, scope)

    def close(self) -> None:
        """End the threads."""
        for each in (self.screening, self.searches, self.alerts, self.models, self.frames):
            each.close()

    async def visit(self, request: Request) -> None:
        """Count a request that needs no credential. Raises ApiError (429)."""
        await self.access.visit(address_of(request))

    async def known(self, request: Request, principal: Principal, scope: Scope) -> Principal:
        """Return a known principal, such as that of a browser's session. Raises ApiError: 403, 429 and 503."""
        rate = await self.access.count(principal)
        request.scope["state"][PRINCIPAL] = principal
        if rate is not None:
            request.scope["state"][ANSWER_HEADERS] = rate.headers
        if principal.kind == "certificate" and request.headers.get("sec-fetch-site", "none") not in _OWN_SITE:
            raise ApiError(403, "cross_site_request", "Another site's page may not use the browser's certificate.")
        if not principal.may(scope):
            raise ApiError(403, "insufficient_permissions", f"The credential lacks the scope `{scope}`.")
        if scope is Scope.SUBMIT and (reason := self.store.hold.refusal):
            raise unavailable("not_accepting", f"No work is accepted now: {reason}.")
        return principal


def address_of(request: Request) -> str | None:
    """Return the client's address: the one behind trusted proxies."""
    return request.client.host if request.client is not None else None


def new_request_id() -> str:
    """Return an id for a request. A client's `x-request-id` is never used: it could be another client's."""
    return f"req_{random.getrandbits(96):024x}"
