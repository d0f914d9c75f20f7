"""Admission: a request's credential becomes a principal, and is counted, before the request's body is read.

A TLS client certificate that TLS has verified names a tenant and scopes.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Self

from gateway.access.keys import PREFIX, ApiKey, KeyDigests, find_key, id_of, note_use
from gateway.access.pepper import load_pepper
from gateway.access.principal import DEFAULT_SCOPES, CredentialRefused, Principal, Scope
from gateway.access.rates import Rate, Rates, Taken, network_of
from gateway.access.recent import Recent
from gateway.access.settings import AccessSettings
from gateway.access.tenant_settings import TenantSettings
from gateway.access.tenants import find_tenant
from gateway.errors import ApiError
from gateway.store.store import Store, StoreAway
from gateway.tls import DoorTls, PeerUnreadable, read_peer
from telemetry.clock import Clock

if TYPE_CHECKING:
    from gateway.access.oidc.tokens import Tokens

_SENDABLE = "send an API key: `Authorization: Bearer pk_…`"
_UNKNOWN = "the API key is unknown, expired or revoked"
MOST_TOKEN_BYTES = 8192
DOUBTED_AT_ONCE = 2
"""The maximum number of lookups at once for addresses that sent too many bad credentials."""
_TOKEN_PARTS = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_read_peer = lru_cache(maxsize=1024)(read_peer)
"""Reads are cached, because all requests of a connection come with the same certificate."""


class TooManyRequests(ApiError):  # noqa: N818 - it names what happened
    """A rate is used up. The text names the owner of the rate."""

    def __init__(self, whose: str, taken: Taken) -> None:
        message = f"{whose} sends more than {taken.limit} requests; repeat this one in {taken.reset_seconds} s."
        headers = {**taken.headers, "retry-after": str(taken.reset_seconds)}
        super().__init__(429, "rate_limit_exceeded", message, headers=headers)


@dataclass(frozen=True, slots=True)
class Credential:
    """An `Authorization` header, parsed once for each request."""

    is_given: bool
    """True if the request has the header."""
    text: str
    """The credential of a `Bearer` header (RFC 6750, section 2.1); empty without one."""
    key_id: str | None
    """The id in the API key; None if the text is no API key, or its checksum is wrong."""
    is_token: bool
    """True if the text has the form of a signed token, and the gateway accepts tokens."""


class Access:
    """Admits requests. Each process has one such object, and uses it on its event loop."""

    def __init__(
        self, store: Store, digests: KeyDigests, settings: AccessSettings, clock: Clock, tls: DoorTls | None = None
    ) -> None:
        self.digests = digests
        """Makes the digests of keys, also for the routes of admins."""
        self._tls = tls
        self._store = store
        self._clock = clock
        self._settings = settings
        self._recent = Recent(self._find, settings.key_cache_seconds, clock)
        self._tenants = Recent(self._find_tenant, settings.key_cache_seconds, clock)
        self._tokens = _tokens(settings, clock)
        self._last_use_ms: dict[str, float] = {}
        self.rates = Rates(None if settings.redis_url is None else settings.redis_url.get_secret_value(), clock)
        """Counts requests."""
        self._door = None if settings.requests_per_second is None else Rate(settings.requests_per_second)
        self._strangers = Rate(settings.stranger_requests_per_second)
        self._failures = Rate(settings.failures_per_minute, 60)
        self._doubted = asyncio.Semaphore(DOUBTED_AT_ONCE)

    @classmethod
    def open(
        cls, store: Store, store_url: str, settings: AccessSettings, clock: Clock, tls: DoorTls | None = None
    ) -> Self:
        """Return the access to this store.

        Makes the pepper if the store has none. Raises PepperProblem, StoreAway.

        `tls` refuses client certificates that were revoked after their connections began.
        """
        return cls(store, KeyDigests(load_pepper(store, store_url, settings.pepper_file)), settings, clock, tls)

    def close(self) -> None:
        """End the thread that fetches an issuer's keys."""
        if self._tokens is not None:
            self._tokens.close()

    def parsed(self, authorization: str | None) -> Credential:
        """Parse an `Authorization` header, which may have any content. None stands for an absent header."""
        scheme, _, said = (authorization or "").partition(" ")
        text = said.strip() if scheme.lower() == "bearer" else ""
        return Credential(authorization is not None, text, id_of(text), self._tokens is not None and is_token(text))

    async def visit(self, address: str | None) -> None:
        """Count a request for a page that needs no credential. Raises TooManyRequests."""
        _require("This address", await self.rates.take(self._strangers, "strangers", network_of(address)))

    async def admit(self, authorization: str | None, peer: bytes | None, address: str | None) -> Principal:
        """Return the principal of a request. Raises CredentialRefused, TooManyRequests, StoreAway and IssuerAway.

        `peer` is the TLS client certificate (DER).

        See `counting_failures`.
        """
        credential = self.parsed(authorization)
        look_up = partial(self.principal, credential, peer)
        return await self.counting_failures(look_up, address, is_known=self._knows(credential, peer))

    async def counting_failures(
        self, look_up: Callable[[], Awaitable[Principal]], address: str | None, *, is_known: bool = False
    ) -> Principal:
        """Return the principal that `look_up` returns. Raises TooManyRequests, and the errors of `look_up`.

        Refused credentials are counted for each address; above the rate, they get TooManyRequests. A valid credential
        is admitted however many bad ones its address sent, because many clients may share one address. Of an address
        above the rate, unknown credentials are looked up a few at a time: otherwise guesses would take all threads that
        read the database.
        """
        network = network_of(address)
        try:
            if is_known or not await self.rates.is_spent(self._failures, "failures", network):
                return await look_up()
            async with self._doubted:
                return await look_up()
        except CredentialRefused:
            _require("This address is refused: it", await self.rates.take(self._failures, "failures", network))
            raise

    async def count(self, principal: Principal) -> Taken | None:
        """Count a request of a principal. Raises TooManyRequests and StoreAway.

        The rate of the whole door counts admitted requests only, so that no stranger can use it up. Returns the rate,
        of the credential or of its tenant, that allows the fewest further requests; None if no rate is set.
        """
        if self._door is not None:
            _require("This service gets too many requests: the door", await self.rates.take(self._door, "door"))
        settings = await self.tenant(principal.tenant)
        rates = {
            "The tenant": (settings.requests_per_second, "tenant", principal.tenant),
            "The credential": (settings.key_requests_per_second, "credential", principal.credential),
        }
        asked = {whose: rate for whose, rate in rates.items() if rate[0] is not None}
        if not asked:
            return None
        taken = await asyncio.gather(*(self.rates.take(Rate(rate or 1), *names) for rate, *names in asked.values()))
        for whose, each in zip(asked, taken, strict=True):
            _require(whose, each)
        return min(taken, key=lambda each: each.remaining)

    async def principal(self, credential: Credential, peer: bytes | None) -> Principal:
        """Return the principal of a credential.

        If there is none, return the principal of the TLS client certificate (DER).

        Raises CredentialRefused, StoreAway and IssuerAway.
        """
        shown = certified(peer, self._tls)
        if not credential.is_given and shown is not None:
            return shown
        if credential.is_token and self._tokens is not None:
            return agreed(shown, await self._tokens.principal(credential.text))
        if not credential.text.startswith(PREFIX):
            raise CredentialRefused(_SENDABLE)
        return agreed(shown, await self._by_key(credential))

    def beside(self, peer: bytes | None, found: Principal) -> Principal:
        """Return the principal of a browser's session, unless the connection's certificate (DER) names another tenant.

        Raises CredentialRefused.
        """
        return agreed(certified(peer, self._tls), found)

    async def tenant(self, tenant: str) -> TenantSettings:
        """Return the tenant's settings, or the defaults. Raises StoreAway."""
        return await self._tenants.get(tenant)

    def _knows(self, credential: Credential, peer: bytes | None) -> bool:
        """True if no database is read to check the credential.

        This is so for a certificate, a token, or a key whose id was found lately.
        """
        if credential.is_token or (peer is not None and not credential.is_given):
            return True
        return credential.key_id is not None and self._recent.has(credential.key_id)

    def forget_tenant(self, tenant: str) -> None:
        """Read the tenant's settings again at their next use, because they were changed."""
        self._tenants.forget(tenant)

    def forget_key(self, identifier: str) -> None:
        """Read the key's row again at its next use, because it was changed."""
        self._recent.forget(identifier)

    async def _by_key(self, credential: Credential) -> Principal:
        identifier = credential.key_id
        if identifier is None:
            raise CredentialRefused("the API key has a typo, or its end is missing: its checksum is wrong")
        found = await self._recent.get(identifier)
        now_ms = self._clock.time() * 1000
        if found is None or not self.digests.is_of(credential.text, found[1]) or not found[0].is_valid(now_ms):
            raise CredentialRefused(_UNKNOWN)
        self._note_use(identifier, found[0], now_ms)
        return Principal(found[0].tenant, f"key:{identifier}", "api_key", found[0].scopes)

    async def _find(self, identifier: str) -> tuple[ApiKey, bytes] | None:
        return await self._store.read(lambda connection: find_key(connection, identifier))

    async def _find_tenant(self, tenant: str) -> TenantSettings:
        found = await self._store.read(lambda connection: find_tenant(connection, tenant))
        return found if found is not None else self._settings.tenant_defaults

    def _note_use(self, identifier: str, row: ApiKey, now_ms: float) -> None:
        """Write the time of the key's last use, at most every `last_used_seconds`.

        The request does not wait for the write: if the write fails, only that time is lost.
        """
        noted = self._last_use_ms.get(identifier, row.last_used_at or 0)
        if now_ms - noted >= self._settings.last_used_seconds * 1000:
            self._last_use_ms[identifier] = now_ms
            with suppress(StoreAway):  # a store that is behind must not refuse a valid key
                self._store.submit(lambda connection: note_use(connection, self._clock, identifier))


def _require(whose: str, taken: Taken) -> None:
    if not taken.allowed:
        raise TooManyRequests(whose, taken)


def _tokens(settings: AccessSettings, clock: Clock) -> Tokens | None:
    """Return the verifier of tokens; None without an issuer."""
    if settings.oidc.issuer is None:
        return None
    from gateway.access.oidc.tokens import Tokens  # requests and joserfc are not imported without an issuer

    return Tokens(settings.oidc, clock)


def certified(der: bytes | None, tls: DoorTls | None) -> Principal | None:
    """Return the principal of a client certificate (DER); None without one, or for one that names no tenant.

    A certificate without scopes, such as one of an authority that is not Postback's, gets the scopes of a new API key.
    Raises CredentialRefused for a certificate that expired or was revoked while its connection was open.
    """
    if der is None:
        return None
    try:
        peer = _read_peer(der)
    except PeerUnreadable as error:
        raise CredentialRefused(str(error)) from None
    if tls is not None and (refusal := tls.refusal(peer)) is not None:
        raise CredentialRefused(refusal)
    if peer.tenant is None:
        return None
    scopes = frozenset(scope for scope in Scope if scope in peer.scopes) if peer.scopes else DEFAULT_SCOPES
    return Principal(peer.tenant, f"cert:{peer.serial}", "certificate", scopes)


def agreed(shown: Principal | None, found: Principal) -> Principal:
    """Return the principal of a request that has a certificate and another credential.

    Raises CredentialRefused if the two credentials belong to different tenants.

    So a stolen API key is of no use to another tenant's client.
    """
    if shown is not None and shown.tenant != found.tenant:
        raise CredentialRefused("the API key and the client certificate are of different tenants; send a key of yours")
    return found


def is_token(credential: str) -> bool:
    """True if the text has the three parts of a signed token. An unsigned token lacks the third, the signature."""
    return len(credential) <= MOST_TOKEN_BYTES and _TOKEN_PARTS.fullmatch(credential) is not None
