"""Authentication: a request's credential becomes a principal."""

from __future__ import annotations

from typing import Self

from gateway.access.client_certificates import ClientCertificates, agreed
from gateway.access.key_text import PREFIX, id_of
from gateway.access.keys import ApiKey, KeyDigests, find_key, note_use
from gateway.access.oidc.tokens import Tokens, is_token
from gateway.access.pepper import load_pepper
from gateway.access.principal import CredentialRefused, Principal
from gateway.access.recent import Recent
from gateway.access.settings import AccessSettings
from gateway.access.tenant_settings import TenantSettings
from gateway.access.tenants import find_tenant
from gateway.store.store import Store
from gateway.tls import DoorTls
from telemetry.clock import Clock

_SENDABLE = "send an API key: `Authorization: Bearer pk_…`"
_UNKNOWN = "the API key is unknown, expired or revoked"


class Access:
    """Finds the principal of a request. One object a process, on its event loop."""

    def __init__(
        self, store: Store, digests: KeyDigests, settings: AccessSettings, clock: Clock, tls: DoorTls | None = None
    ) -> None:
        self.digests = digests
        """Makes the digests of keys, also for the routes of admins."""
        self._certificates = ClientCertificates(tls)
        self._store = store
        self._clock = clock
        self._settings = settings
        self._recent = Recent(self._find, settings.key_cache_seconds, clock)
        self._tenants = Recent(self._find_tenant, settings.key_cache_seconds, clock)
        self._tokens = Tokens(settings.oidc, clock)
        self._last_use_ms: dict[str, float] = {}

    @classmethod
    def open(
        cls, store: Store, store_url: str, settings: AccessSettings, clock: Clock, tls: DoorTls | None = None
    ) -> Self:
        """Return the authentication for this store.

        Makes the pepper if the store has none. Raises PepperProblem, StoreAway.

        `tls` knows the revoked client certificates of open connections.
        """
        return cls(store, KeyDigests(load_pepper(store, store_url, settings.pepper_file)), settings, clock, tls)

    async def principal(self, authorization: str | None, peer: bytes | None) -> Principal:
        """Return the principal of an `Authorization` header; without a header, that of a TLS client certificate (DER).

        Raises CredentialRefused, StoreAway and IssuerAway.
        """
        shown = self._certificates.principal(peer) if peer is not None else None
        if authorization is None and shown is not None:
            return shown
        credential = _bearer(authorization)
        if credential is not None and self._is_token(credential):
            return agreed(shown, await self._tokens.principal(credential))
        if credential is None or not credential.startswith(PREFIX):
            raise CredentialRefused(_SENDABLE)
        return agreed(shown, await self._by_key(credential))

    def beside(self, peer: bytes | None, found: Principal) -> Principal:
        """Return the principal of a browser's session, if the connection's certificate (DER) is of the same tenant.

        Raises CredentialRefused.
        """
        return agreed(self._certificates.principal(peer) if peer is not None else None, found)

    async def tenant(self, tenant: str) -> TenantSettings:
        """Return the tenant's settings, or the defaults. Raises StoreAway."""
        return await self._tenants.get(tenant)

    def knows(self, authorization: str | None, peer: bytes | None) -> bool:
        """True if the credential reads no database: a certificate, a token, or a key whose id was found lately."""
        key = _bearer(authorization)
        if (authorization is None and peer is not None) or (key is not None and self._is_token(key)):
            return True
        identifier = id_of(key) if key is not None else None
        return identifier is not None and self._recent.has(identifier)

    def forget_tenant(self, tenant: str) -> None:
        """Read the tenant's settings anew, because they were changed."""
        self._tenants.forget(tenant)

    def forget_key(self, identifier: str) -> None:
        """Read the key's row anew at its next use, because it was changed."""
        self._recent.forget(identifier)

    def _is_token(self, credential: str) -> bool:
        return self._settings.oidc.issuer is not None and is_token(credential)

    async def _by_key(self, key: str) -> Principal:
        identifier = id_of(key)
        if identifier is None:
            raise CredentialRefused("the API key has a typo, or its end is missing: its checksum is wrong")
        found = await self._recent.get(identifier)
        now_ms = self._clock.time() * 1000
        if found is None or not self.digests.is_of(key, found[1]) or not found[0].is_valid(now_ms):
            raise CredentialRefused(_UNKNOWN)
        self._note_use(identifier, found[0], now_ms)
        return Principal(found[0].tenant, f"key:{identifier}", "api_key", found[0].scopes)

    async def _find(self, identifier: str) -> tuple[ApiKey, bytes] | None:
        return await self._store.read(lambda connection: find_key(connection, identifier))

    async def _find_tenant(self, tenant: str) -> TenantSettings:
        found = await self._store.read(lambda connection: find_tenant(connection, tenant))
        return found if found is not None else self._settings.tenant_defaults

    def _note_use(self, identifier: str, row: ApiKey, now_ms: float) -> None:
        """Write the key's last use, seldom, and without waiting: a lost write loses only this time."""
        noted = self._last_use_ms.get(identifier, row.last_used_at or 0)
        if now_ms - noted >= self._settings.last_used_seconds * 1000:
            self._last_use_ms[identifier] = now_ms
            self._store.submit(lambda connection: note_use(connection, self._clock, identifier))


def _bearer(authorization: str | None) -> str | None:
    """Return the credential of an `Authorization: Bearer` header (RFC 6750, section 2.1)."""
    scheme, _, credential = (authorization or "").partition(" ")
    return credential.strip() if scheme.lower() == "bearer" else None
