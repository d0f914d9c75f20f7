"""Settings of the issuer of tokens, from `POSTBACK_ACCESS__OIDC__…` variables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from schemas.settings import Constants

Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "Ed25519", "EdDSA"]
"""Signature algorithms that sign with a private key.

HMAC is left out, because each party that can verify an HMAC can also sign.
"""

Claim = Annotated[str, StringConstraints(min_length=1, max_length=128)]
HttpsUrl = Annotated[str, StringConstraints(pattern=r"^https://[^\s?#]+$", max_length=2048)]


class OidcConstants(Constants):
    """Times, algorithms and names of the checks of tokens."""

    algorithms: tuple[Algorithm, ...] = get_args(Algorithm)
    """The signature algorithms that are accepted, if the issuer's key fits them."""
    scope_prefix: str = "postback:"
    """The prefix of this service's scopes in tokens, so that the `read` of another service is no scope here."""
    leeway_seconds: int = 30
    """Largest difference between the issuer's clock and this machine's clock that the checks of `exp` and `nbf`
    allow."""
    keys_seconds: float = 600.0
    """Time for which fetched keys are valid. A key that the issuer withdraws is accepted for this time at most."""
    cooldown_seconds: float = 30.0
    """Shortest time between two requests to the issuer, however many tokens name unknown keys."""
    stale_seconds: float = 86_400.0
    """Time for which the last keys stay valid while the issuer does not answer, in addition to `keys_seconds`."""


class OidcSettings(OidcConstants):
    """The OpenID Connect issuer whose tokens (JWT) the gateway accepts besides API keys."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    issuer: HttpsUrl | None = None
    """The issuer's URL, exactly as in the `iss` of its tokens. Without an issuer, no token is accepted."""
    audience: str | None = Field(default=None, min_length=1, max_length=512)
    """This service's name in the `aud` of tokens; required with an issuer."""
    jwks_url: HttpsUrl | None = None
    """The URL of the issuer's keys; by default the one in the issuer's `/.well-known/openid-configuration`."""
    ca_file: Path | None = None
    """Authorities (PEM) of the issuer's certificate; by default those of Python's `certifi`."""
    tenant_claim: Claim = "tenant"
    """The claim with the tenant's name."""
    scope_claim: Claim = "scope"
    """The claim with the scopes: a list, or a text with a space between two scopes. `postback:read` is the scope
    `read`; scopes without the prefix `postback:` are ignored."""

    @model_validator(mode="after")
    def _have_an_audience(self) -> Self:
        if self.issuer is not None and self.audience is None:
            raise ValueError(
                "an issuer needs an audience: without one, its tokens for other services would be valid here"
            )
        return self
