"""A token (JWT, RFC 7519) becomes a principal. Best practices: RFC 8725.

The header of a token chooses only one of the issuer's published keys. Its `jku`, `x5u`, `jwk` and `x5c` are never read;
its `alg` must be on the operator's list and fit the key. The keys (JWKS, RFC 7517) are fetched over HTTPS.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Mapping
from typing import Any

import requests
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey
from joserfc.jws import JWSRegistry
from pydantic_core import from_json

from gateway.access.access import is_token
from gateway.access.bounded_get import NotRead, get_json
from gateway.access.oidc.settings import OidcSettings
from gateway.access.principal import CredentialRefused, IssuerAway, Principal, Scope
from gateway.access.recent import Recent
from gateway.dependency import Dependency
from schemas.job import TENANT_PATTERN
from telemetry.clock import Clock
from telemetry.logs import get_logger

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


FETCH_SECONDS = 5.0
"""Longest time of one fetch, of the configuration or of the keys."""
MOST_BYTES = 256 * 1024
MOST_KEYS = 100
LEAST_RSA_BITS = 2048
_KINDS: dict[str, type[RSAKey | ECKey | OKPKey]] = {"RSA": RSAKey, "EC": ECKey, "OKP": OKPKey}
"""Keys of other kinds are skipped, because any reader of a published symmetric key could sign."""

log = get_logger()


class IssuerKeys:
    """The keys of one issuer, by key id. Each process has one such object, and uses it on its event loop."""

    def __init__(self, settings: OidcSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._keys: Mapping[str, Key] = {}
        self._fetched_at = -math.inf
        self._fetched = Recent(self._fetch, settings.cooldown_seconds, clock)
        self._away = False
        self._threads = Dependency("issuer of tokens", 1, 0)

    def close(self) -> None:
        """End the thread."""
        self._threads.close()

    async def find(self, key_id: str | None) -> Key | None:
        """Return the key with this id; without an id, return the only key. Returns None if the issuer has no such key.

        Keys are fetched again if they are too old, or if the id is unknown, and at most once in the cooldown. Raises
        IssuerAway.
        """
        if self._age >= self._settings.keys_seconds:
            await self._fetched.get(None)
        if self._age >= self._settings.keys_seconds + self._settings.stale_seconds:
            raise IssuerAway("the issuer of the token does not answer")
        found = self._known(key_id)
        if found is None:
            await self._fetched.get(None)
            found = self._known(key_id)
        return found

    @property
    def _age(self) -> float:
        return self._clock.monotonic() - self._fetched_at

    def _known(self, key_id: str | None) -> Key | None:
        if key_id is None:
            return next(iter(self._keys.values())) if len(self._keys) == 1 else None
        return self._keys.get(key_id)

    async def _fetch(self, _: None) -> bool:
        """Fetch the keys, and say when the issuer goes away and comes back. Returns True if the issuer answered."""
        started = self._clock.monotonic()
        try:
            self._keys = await self._threads.run_anyway(fetch_keys, self._settings, self._clock)
        except IssuerAway as away:
            self._away = True
            log.warning(
                "The issuer's keys cannot be fetched; the last ones count for a day.",
                action="issuer-away",
                reason=str(away),
            )
            return False
        self._fetched_at = started
        if self._away:
            self._away = False
            log.info("The issuer's keys are fetched again.", action="issuer-back")
        return True


def fetch_keys(settings: OidcSettings, clock: Clock) -> Mapping[str, Key]:
    """Return the issuer's usable keys by their id. Blocks for little more than 2 * FETCH_SECONDS. Raises IssuerAway."""
    with requests.Session() as session:
        session.trust_env = False  # ignore a .netrc, which could give the operator's passwords to the issuer
        session.verify = str(settings.ca_file) if settings.ca_file is not None else True
        url = settings.jwks_url
        if url is None:
            found = _get(session, f"{settings.issuer}".rstrip("/") + "/.well-known/openid-configuration", clock)
            url = found.get("jwks_uri")
            if found.get("issuer") != settings.issuer or not isinstance(url, str) or not url.startswith("https://"):
                raise IssuerAway("its configuration names another issuer, or no https URL of keys")
        keys = _get(session, url, clock).get("keys")
    if not isinstance(keys, list):
        raise IssuerAway("its answer is no JWK set")
    usable = {}
    for document in keys[:MOST_KEYS]:
        key = _usable(document)
        if key is not None:
            usable[str(document.get("kid", ""))] = key
    return usable


def _get(session: requests.Session, url: str, clock: Clock) -> dict[str, Any]:
    """Return a JSON object. Raises IssuerAway."""
    try:
        document = get_json(session, url, clock, seconds=FETCH_SECONDS, most_bytes=MOST_BYTES)
    except NotRead as reason:
        raise IssuerAway(str(reason)) from None
    if not isinstance(document, dict):
        raise IssuerAway("its answer is no JSON object")
    return document


def _usable(document: object) -> Key | None:
    """Return a public key for signatures; None for any other content.

    An unusable key must not make the issuer's other keys unusable.
    """
    if not isinstance(document, dict) or document.get("use", "sig") != "sig" or "d" in document:
        return None
    kind = _KINDS.get(str(document.get("kty")))
    if kind is None or (kind is RSAKey and 6 * len(str(document.get("n"))) < LEAST_RSA_BITS):
        return None
    try:
        key = kind.import_key(document)
        too_short = isinstance(key, RSAKey) and key.public_key.key_size < LEAST_RSA_BITS
    except (JoseError, ValueError, TypeError, KeyError, OverflowError):
        return None
    return None if too_short else key
