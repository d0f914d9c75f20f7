"""Authentication by a TLS client certificate that TLS has verified: the certificate names a tenant and scopes."""

from __future__ import annotations

from functools import lru_cache

from gateway.access.principal import DEFAULT_SCOPES, CredentialRefused, Principal, Scope
from gateway.tls import DoorTls, PeerCertificate, PeerUnreadable, read_peer

_KNOWN = {scope.value: scope for scope in Scope}
_read = lru_cache(maxsize=1024)(read_peer)
"""Reads are cached, because all requests of a connection come with the same certificate."""


class ClientCertificates:
    """Finds the principals of client certificates."""

    def __init__(self, tls: DoorTls | None) -> None:
        self._tls = tls

    def principal(self, der: bytes) -> Principal | None:
        """Return the principal of a certificate (DER), or None for one that names no tenant.

        A certificate without scopes, such as one of an authority that is not Postback's, gets the scopes of a new API
        key. Raises CredentialRefused for a certificate that expired or was revoked while its connection was open.
        """
        try:
            peer = _read(der)
        except PeerUnreadable as error:
            raise CredentialRefused(str(error)) from None
        if self._tls is not None and (refusal := self._tls.refusal(peer)) is not None:
            raise CredentialRefused(refusal)
        if peer.tenant is None:
            return None
        return Principal(peer.tenant, f"cert:{peer.serial}", "certificate", _scopes_of(peer))


def agreed(shown: Principal | None, found: Principal) -> Principal:
    """Return the principal of a request that has a certificate and another credential.

    Raises CredentialRefused if the two credentials belong to different tenants.

    So a stolen API key is of no use to another tenant's client.
    """
    if shown is not None and shown.tenant != found.tenant:
        raise CredentialRefused("the API key and the client certificate are of different tenants; send a key of yours")
    return found


def _scopes_of(peer: PeerCertificate) -> frozenset[Scope]:
    if not peer.scopes:
        return DEFAULT_SCOPES
    return frozenset(_KNOWN[scope] for scope in peer.scopes if scope in _KNOWN)
