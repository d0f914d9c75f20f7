"""A token (JWT, RFC 7519) becomes a principal. Best practices: RFC 8725.

The header of a token chooses only one of the issuer's published keys. Its `jku`, `x5u`, `jwk` and `x5c` are never read;
its `alg` must be on the operator's list and fit the key.
"""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Any

from joserfc import jwt
from joserfc.jwk import Key
from joserfc.jws import JWSRegistry
from pydantic_core import from_json

from gateway.access.access import is_token
from gateway.access.oidc.issuer_keys import IssuerKeys
from gateway.access.oidc.settings import OidcSettings
from gateway.access.principal import CredentialRefused, Principal, Scope
from schemas.job import TENANT_PATTERN
from telemetry.clock import Clock

MOST_HEADER_BYTES = 1024
MOST_KEY_ID = 256
_REFUSED = "the token is expired, or not signed by the issuer for this service"
_NO_TENANT = "the token names no tenant of this service"
_TENANT = re.compile(TENANT_PATTERN)
_SHOWABLE = re.compile(r"[\x21-\x7e]{1,100}")


class Tokens:
    """Verifies tokens of one issuer."""

    def __init__(self, settings: OidcSettings, clock: Clock, keys: IssuerKeys | None = None) -> None:
        self._settings = settings
        self._clock = clock
        self._keys = keys or IssuerKeys(settings, clock)
        self._registry = JWSRegistry(algorithms=list(settings.algorithms), strict_check_header=False)
        self._scopes = {f"{settings.scope_prefix}{scope}": scope for scope in Scope}

    def close(self) -> None:
        """End the thread that fetches keys."""
        self._keys.close()

    async def principal(self, token: str) -> Principal:
        """Return the principal of a token. Raises CredentialRefused and IssuerAway."""
        header = _header(token)
        key = await self._keys.find(_key_id(header))
        if key is None or header.get("alg") not in self._settings.algorithms or not _fits(key, header["alg"]):
            raise CredentialRefused(_REFUSED)
        return self._principal(self._claims(token, key))

    def _claims(self, token: str, key: Key) -> dict[str, Any]:
        """Return the claims of a valid token. Raises CredentialRefused."""
        rules = jwt.JWTClaimsRegistry(
            now=int(self._clock.time()),
            leeway=self._settings.leeway_seconds,
            iss={"essential": True, "value": self._settings.issuer or ""},
            aud={"essential": True, "value": self._settings.audience or ""},
            exp={"essential": True},
            sub={"essential": True},
        )
        try:
            claims = jwt.decode(token, key, registry=self._registry).claims
            rules.validate(claims)
            claims["exp"] = int(claims["exp"])
        except Exception:  # a token may be any text, and is refused if reading it raises any error
            raise CredentialRefused(_REFUSED) from None
        return claims

    def _principal(self, claims: dict[str, Any]) -> Principal:
        tenant = claims.get(self._settings.tenant_claim)
        if not isinstance(tenant, str) or _TENANT.fullmatch(tenant) is None:
            raise CredentialRefused(_NO_TENANT)
        said = claims.get(self._settings.scope_claim, ())
        names = said.split(" ") if isinstance(said, str) else said if isinstance(said, list) else ()
        scopes = frozenset(self._scopes[name] for name in names if isinstance(name, str) and name in self._scopes)
        return Principal(tenant, f"jwt:{_shown(claims['sub'])}", "jwt", scopes, claims["exp"])


def _header(token: str) -> dict[str, Any]:
    """Return the token's header. Raises CredentialRefused."""
    start = token.partition(".")[0]
    if not is_token(token) or len(start) > MOST_HEADER_BYTES:
        raise CredentialRefused(_REFUSED)
    try:
        header = from_json(_decoded(start))
    except ValueError:
        raise CredentialRefused(_REFUSED) from None
    if not isinstance(header, dict):
        raise CredentialRefused(_REFUSED)
    return header


def _decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def _key_id(header: dict[str, Any]) -> str | None:
    """Return the key's id, which is compared with the issuer's ids and used for nothing else.

    Raises CredentialRefused.
    """
    key_id = header.get("kid")
    if key_id is not None and (not isinstance(key_id, str) or len(key_id) > MOST_KEY_ID):
        raise CredentialRefused(_REFUSED)
    return key_id


def _fits(key: Key, algorithm: object) -> bool:
    """True unless the issuer says that the key is for another algorithm (RFC 7517, section 4.4)."""
    return key.get("alg") in (None, algorithm)


def _shown(subject: str) -> str:
    """Return the subject for logs and rows: the subject itself, or the hash of a long or unprintable subject."""
    if _SHOWABLE.fullmatch(subject):
        return subject
    return "sha256-" + hashlib.sha256(subject.encode("utf-8", "surrogatepass")).hexdigest()[:32]
