"""The gate of the door: a request's credential and its rates are checked before its body is read."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from gateway.access.access import Access, Credential
from gateway.access.principal import CredentialRefused, Principal
from gateway.access.rates import Rates, Taken, network_of, per_minute, per_second
from gateway.access.settings import AccessSettings
from gateway.errors import ApiError

DOUBTED_AT_ONCE = 2
"""The maximum number of lookups at once for addresses that sent too many bad credentials."""


class TooManyRequests(ApiError):  # noqa: N818 - it names what happened
    """A rate is used up. The text names the owner of the rate."""

    def __init__(self, whose: str, taken: Taken) -> None:
        message = f"{whose} sends more than {taken.limit} requests; repeat this one in {taken.reset_seconds} s."
        headers = {**taken.headers, "retry-after": str(taken.reset_seconds)}
        super().__init__(429, "rate_limit_exceeded", message, headers=headers)


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that the gate has admitted."""

    principal: Principal
    rate: Taken | None
    """The rate, of the credential or of its tenant, that allows the fewest further requests; None if no rate is set."""


class Gate:
    """Admits requests. Each process has one such object, and uses it on its event loop."""

    def __init__(self, access: Access, rates: Rates, settings: AccessSettings) -> None:
        self._access = access
        self._rates = rates
        self._door = None if settings.requests_per_second is None else per_second(settings.requests_per_second)
        self._strangers = per_second(settings.stranger_requests_per_second)
        self._failures = per_minute(settings.failures_per_minute)
        self._doubted = asyncio.Semaphore(DOUBTED_AT_ONCE)

    async def visit(self, address: str | None) -> None:
        """Count a request for a page that needs no credential. Raises TooManyRequests."""
        _require("This address", await self._rates.take(self._strangers, "strangers", network_of(address)))

    async def admit(self, authorization: str | None, peer: bytes | None, address: str | None) -> Admitted:
        """Return the principal of a request. Raises CredentialRefused, TooManyRequests and StoreAway.

        Refused credentials are counted for each address; above the rate, they get TooManyRequests. A valid credential
        is admitted however many bad ones its address sent, because many clients may share one address.
        """
        credential, network = self._access.parsed(authorization), network_of(address)
        try:
            principal = await self._principal(credential, peer, network)
        except CredentialRefused:
            _require("This address is refused: it", await self._rates.take(self._failures, "failures", network))
            raise
        return await self.admit_known(principal)

    async def admit_known(self, principal: Principal) -> Admitted:
        """Count a request of a known principal, such as a browser's session. Raises TooManyRequests and StoreAway.

        The rate of the whole door counts admitted requests only, so that no stranger can use it up.
        """
        if self._door is not None:
            _require("This service gets too many requests: the door", await self._rates.take(self._door, "door"))
        return Admitted(principal, await self._within_rates(principal))

    async def _principal(self, credential: Credential, peer: bytes | None, network: str) -> Principal:
        """Return the principal. Unknown credentials of an address above the rate are looked up a few at a time.

        Otherwise guesses would take all threads that read the database.
        """
        if self._access.knows(credential, peer) or not await self._rates.is_spent(self._failures, "failures", network):
            return await self._access.principal(credential, peer)
        async with self._doubted:
            return await self._access.principal(credential, peer)

    async def _within_rates(self, principal: Principal) -> Taken | None:
        settings = await self._access.tenant(principal.tenant)
        rates = {
            "The tenant": (settings.requests_per_second, "tenant", principal.tenant),
            "The credential": (settings.key_requests_per_second, "credential", principal.credential),
        }
        asked = {whose: rate for whose, rate in rates.items() if rate[0] is not None}
        if not asked:
            return None
        taken = await asyncio.gather(
            *(self._rates.take(per_second(rate or 1), *names) for rate, *names in asked.values())
        )
        for whose, each in zip(asked, taken, strict=True):
            _require(whose, each)
        return min(taken, key=lambda each: each.remaining)


def _require(whose: str, taken: Taken) -> None:
    if not taken.allowed:
        raise TooManyRequests(whose, taken)
