"""Tokens of an OpenID Connect issuer: a valid one is a principal, every other text is refused."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc.errors import SecurityWarning
from joserfc.jwk import ECKey, Key, OctKey, RSAKey
from pydantic import ValidationError

from gateway.access import CredentialRefused, Principal, Scope
from gateway.access.oidc.issuer_keys import IssuerAway
from gateway.access.oidc.settings import OidcSettings
from gateway.access.oidc.tokens import Tokens
from gateway.access.settings import AccessSettings
from telemetry.hand_clock import HandClock
from tests.integration.certificates import Authority
from tests.oidc_issuer import AUDIENCE, CONFIGURATION, KEYS, Issuer
from tests.unit.gateway_rig import gateway_rig

NOW = 1_700_000_000.0


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("issuer"))


@pytest.fixture
def issuer(authority: Authority) -> Iterator[Issuer]:
    with Issuer(authority) as running:
        yield running


@pytest.fixture
def clock() -> HandClock:
    return HandClock(NOW)


def unsigned(header: dict[str, Any], claims: dict[str, Any], signature: bytes = b"") -> str:
    parts = [json.dumps(header).encode(), json.dumps(claims).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def hmac_signed(issuer: Issuer, secret: bytes) -> str:
    """A token that is signed with the public key as if it were a shared secret."""
    key_id, claims = next(iter(issuer.keys)), json.loads(decoded(issuer.token(NOW).split(".")[1]))
    start = unsigned({"alg": "HS256", "kid": key_id}, claims)[:-1]
    return start + "." + base64.urlsafe_b64encode(hmac.digest(secret, start.encode(), "sha256")).rstrip(b"=").decode()


def public_pem(key: Key) -> bytes:
    assert not isinstance(key, OctKey)
    return key.as_pem(private=False)


def decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


@pytest.mark.parametrize("rsa", [False, True])
async def test_a_valid_token_names_tenant_subject_and_scopes(rsa: bool, issuer: Issuer, clock: HandClock) -> None:
    issuer.rotate("one", rsa=rsa)
    principal = await Tokens(issuer.settings(), clock).principal(issuer.token(NOW, aud=["other", AUDIENCE]))
    assert principal == Principal("acme", "jwt:alice", "jwt", frozenset({Scope.SUBMIT, Scope.READ}))


@pytest.mark.parametrize(
    ("claims", "scopes"),
    [
        ({"scope": ["postback:read", 5, "postback:unknown", "admin"]}, {Scope.READ}),
        ({"scope": "postback:admin"}, {Scope.ADMIN}),
        ({"scope": "read submit"}, set()),
        ({"scope": None}, set()),
        ({"scope": {"postback:read": True}}, set()),
        ({"scope": 5}, set()),
    ],
)
async def test_only_this_services_scopes_count(
    claims: dict[str, Any], scopes: set[Scope], issuer: Issuer, clock: HandClock
) -> None:
    principal = await Tokens(issuer.settings(), clock).principal(issuer.token(NOW, **claims))
    assert principal.scopes == scopes


async def test_the_names_of_claims_are_settings(issuer: Issuer, clock: HandClock) -> None:
    settings = issuer.settings(tenant_claim="org", scope_claim="roles", scope_prefix="")
    principal = await Tokens(settings, clock).principal(issuer.token(NOW, org="globex", roles=["read"]))
    assert (principal.tenant, set(principal.scopes)) == ("globex", {Scope.READ})


async def test_an_unprintable_subject_is_shown_by_its_hash(issuer: Issuer, clock: HandClock) -> None:
    principal = await Tokens(issuer.settings(), clock).principal(issuer.token(NOW, sub="a\nb" * 60))
    assert principal.credential == f"jwt:sha256-{hashlib.sha256(('a' + chr(10) + 'b').encode() * 60).hexdigest()[:32]}"


def hostile(issuer: Issuer) -> dict[str, str]:
    """Tokens that must be refused, by the name of the attack."""
    key_id, key = next(iter(issuer.keys.items()))
    good, stranger = issuer.token(NOW), ECKey.generate_key("P-256")
    claims = json.loads(decoded(good.split(".")[1]))
    public = key.as_dict(private=False)
    start, _, signature = good.rpartition(".")
    elsewhere = {"jku": "https://evil.example/keys", "x5u": "https://evil.example/cert"}
    return {
        "no signature": unsigned({"alg": "none", "kid": key_id}, claims),
        "none with a signature": unsigned({"alg": "none", "kid": key_id}, claims, decoded(signature)),
        "none in capitals": unsigned({"alg": "NONE", "kid": key_id}, claims, b"x"),
        "HMAC by the public key as JSON": hmac_signed(issuer, json.dumps(public).encode()),
        "HMAC by the public key as PEM": hmac_signed(issuer, public_pem(key)),
        "HMAC by a shared key": issuer.token(NOW, header={"alg": "HS256"}, key=OctKey.generate_key(256)),
        "a stranger's key": issuer.token(NOW, key=stranger),
        "a stranger's key in the header": issuer.token(
            NOW, key=stranger, header={"jwk": stranger.as_dict(private=False), **elsewhere}
        ),
        "an algorithm that is not listed": issuer.token(NOW, header={"alg": "ES384"}, key=ECKey.generate_key("P-384")),
        "a listed algorithm of another kind of key": issuer.token(
            NOW, header={"alg": "RS256"}, key=RSAKey.generate_key(2048)
        ),
        "an unknown key": issuer.token(NOW, header={"kid": "unknown"}),
        "a path for a key": issuer.token(NOW, header={"kid": "../../../../dev/null"}),
        "SQL for a key": issuer.token(NOW, header={"kid": "x' UNION SELECT 'key' --"}),
        "a long key id": issuer.token(NOW, header={"kid": "k" * 257}),
        "a key id of another type": unsigned({"alg": "ES256", "kid": [key_id]}, claims, decoded(signature)),
        "other claims": f"{start[:-3]}AAA.{signature}",
        "no signature bytes": f"{start}.",
        "expired": issuer.token(NOW, exp=NOW - 31),
        "no expiry": issuer.token(NOW, exp=None),
        "an expiry of another type": issuer.token(NOW, exp="tomorrow"),
        "not yet valid": issuer.token(NOW, nbf=NOW + 31),
        "another issuer": issuer.token(NOW, iss="https://evil.example"),
        "the issuer with a slash": issuer.token(NOW, iss=f"{issuer.url}/"),
        "no issuer": issuer.token(NOW, iss=None),
        "another audience": issuer.token(NOW, aud="another"),
        "many other audiences": issuer.token(NOW, aud=["postback.example", "x"]),
        "no audience": issuer.token(NOW, aud=None),
        "no subject": issuer.token(NOW, sub=None),
        "a subject of another type": issuer.token(NOW, sub=5),
        "no tenant": issuer.token(NOW, tenant=None),
        "a tenant of another type": issuer.token(NOW, tenant=["acme"]),
        "a tenant that is no name": issuer.token(NOW, tenant="../acme"),
        "huge": issuer.token(NOW, padding="x" * 8192),
        "a huge header": issuer.token(NOW, header={"padding": "x" * 1024}),
        "claims that are no object": unsigned({"alg": "ES256", "kid": key_id}, []),  # type: ignore[arg-type]
        "encrypted": "a.b.c.d.e",
        "empty parts": "..",
    }


async def test_every_hostile_token_is_refused_and_no_url_of_it_is_asked(issuer: Issuer, clock: HandClock) -> None:
    tokens = Tokens(issuer.settings(), clock)
    await tokens.principal(issuer.token(NOW))
    for attack, token in hostile(issuer).items():
        with pytest.raises(CredentialRefused) as refused:
            await tokens.principal(token)
            pytest.fail(f"{attack} is taken")
        assert token not in str(refused.value)
    assert set(issuer.asked) == {CONFIGURATION, KEYS}


async def test_the_leeway_allows_for_clocks_that_differ(issuer: Issuer, clock: HandClock) -> None:
    tokens = Tokens(issuer.settings(), clock)
    await tokens.principal(issuer.token(NOW, exp=NOW - 29))
    await tokens.principal(issuer.token(NOW, nbf=NOW + 29))


NOISE = st.text(max_size=80) | st.lists(st.binary(max_size=40), min_size=3, max_size=3).map(
    lambda parts: ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)
)


@given(token=NOISE)
def test_noise_is_refused(token: str, authority: Authority) -> None:
    settings = OidcSettings(issuer="https://127.0.0.1:1", audience=AUDIENCE, ca_file=authority.ca_file)
    with pytest.raises((CredentialRefused, IssuerAway)):
        asyncio.run(Tokens(settings, HandClock(NOW)).principal(token))


HEADERS = st.dictionaries(
    st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jwk"]), st.text(max_size=5) | st.booleans()
)


@given(
    header=HEADERS, claims=st.dictionaries(st.text(max_size=5), st.text(max_size=5)), signature=st.binary(max_size=70)
)
def test_noise_in_the_form_of_a_token_is_refused(
    header: dict[str, Any], claims: dict[str, Any], signature: bytes, shared: tuple[Issuer, Tokens, asyncio.Runner]
) -> None:
    issuer, tokens, runner = shared
    token = unsigned({"alg": "ES256", "kid": next(iter(issuer.keys)), **header}, claims, signature)
    with pytest.raises(CredentialRefused):
        runner.run(tokens.principal(token))


@pytest.fixture(scope="module")
def shared(authority: Authority) -> Iterator[tuple[Issuer, Tokens, asyncio.Runner]]:
    with Issuer(authority) as issuer, asyncio.Runner() as runner:
        yield issuer, Tokens(issuer.settings(), HandClock(NOW)), runner


# -- the issuer's keys -------------------------------------------------------------------------------------------------


async def test_rotated_keys_are_fetched_once_for_all_who_wait(issuer: Issuer, clock: HandClock) -> None:
    tokens = Tokens(issuer.settings(), clock)
    await asyncio.gather(*(tokens.principal(issuer.token(NOW)) for _ in range(5)))
    assert issuer.asked == [CONFIGURATION, KEYS]
    old = issuer.token(NOW)
    issuer.rotate("second")
    clock.now += 30
    await asyncio.gather(*(tokens.principal(issuer.token(NOW)) for _ in range(5)))
    assert issuer.asked == [CONFIGURATION, KEYS] * 2
    with pytest.raises(CredentialRefused):
        await tokens.principal(old)


async def test_unknown_keys_make_no_more_than_one_request_in_the_cooldown(issuer: Issuer, clock: HandClock) -> None:
    tokens = Tokens(issuer.settings(jwks_url=f"{issuer.url}{KEYS}"), clock)
    for number in range(10):
        with pytest.raises(CredentialRefused):
            await tokens.principal(issuer.token(NOW, header={"kid": str(number)}))
    assert issuer.asked == [KEYS]
    clock.now += 30
    for number in range(10):
        with pytest.raises(CredentialRefused):
            await tokens.principal(issuer.token(NOW, header={"kid": str(number)}))
    assert issuer.asked == [KEYS] * 2


async def test_a_withdrawn_key_is_refused_once_the_keys_are_too_old(issuer: Issuer, clock: HandClock) -> None:
    tokens = Tokens(issuer.settings(keys_seconds=60), clock)
    old = issuer.token(NOW, exp=NOW + 3600)
    await tokens.principal(old)
    issuer.rotate("second")
    clock.now += 59
    await tokens.principal(old)
    clock.now += 1
    with pytest.raises(CredentialRefused):
        await tokens.principal(old)


BROKEN = {
    "an error": (500, b""),
    "a redirect": (302, b""),
    "no JSON": (200, b"<html>"),
    "no object": (200, b"[]"),
    "no keys": (200, b'{"keys": 5}'),
    "too much": (200, b"[" + b" " * 300_000 + b"]"),
}


@pytest.mark.parametrize("answer", BROKEN.values(), ids=BROKEN)
async def test_the_last_keys_count_while_the_issuer_fails(
    answer: tuple[int, bytes], issuer: Issuer, clock: HandClock, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = Tokens(issuer.settings(keys_seconds=60, stale_seconds=600), clock)
    token = issuer.token(NOW, exp=NOW + 3600)
    await tokens.principal(token)
    issuer.pages[KEYS] = lambda: answer
    clock.now += 60
    await tokens.principal(token)
    assert "cannot be fetched" in caplog.text
    clock.now += 600
    with pytest.raises(IssuerAway):
        await tokens.principal(token)
    issuer.publish([{**next(iter(issuer.keys.values())).as_dict(private=False), "kid": "first"}])
    clock.now += 30
    await tokens.principal(token)


@pytest.mark.parametrize(
    "configuration", [{"issuer": "https://evil.example"}, {"jwks_uri": "http://127.0.0.1/keys"}, {"jwks_uri": None}]
)
async def test_a_configuration_of_another_issuer_or_without_https_is_refused(
    configuration: dict[str, Any], issuer: Issuer, clock: HandClock
) -> None:
    issuer.says(CONFIGURATION, {"issuer": issuer.url, "jwks_uri": f"{issuer.url}{KEYS}", **configuration})
    with pytest.raises(IssuerAway):
        await Tokens(issuer.settings(), clock).principal(issuer.token(NOW))


async def test_an_issuer_with_another_authority_is_not_trusted(issuer: Issuer, clock: HandClock) -> None:
    with pytest.raises(IssuerAway):
        await Tokens(issuer.settings(ca_file=None), clock).principal(issuer.token(NOW))


async def test_unusable_keys_of_a_set_leave_the_others_usable(issuer: Issuer, clock: HandClock) -> None:
    good = {**next(iter(issuer.keys.values())).as_dict(private=False), "kid": "first"}
    secret = OctKey.generate_key(256)
    with pytest.warns(SecurityWarning):
        weak = {**RSAKey.generate_key(1024).as_dict(private=False), "kid": "weak"}
    shared = {**secret.as_dict(private=True), "kid": "shared"}
    for_encryption = {**ECKey.generate_key("P-256").as_dict(private=False), "kid": "enc", "use": "enc"}
    broken = {"kty": "EC", "kid": "broken", "crv": "P-256", "x": "!", "y": 5}
    issuer.publish([5, {}, {"kty": ["EC"]}, broken, weak, shared, for_encryption, good])
    tokens = Tokens(issuer.settings(algorithms=["ES256", "RS256"]), clock)
    await tokens.principal(issuer.token(NOW))
    for key_id in ("weak", "shared", "enc", "broken"):
        with pytest.raises(CredentialRefused):
            await tokens.principal(issuer.token(NOW, header={"kid": key_id}))


async def test_a_key_counts_only_for_the_algorithm_that_the_issuer_states(issuer: Issuer, clock: HandClock) -> None:
    issuer.rotate("rsa", rsa=True)
    issuer.publish([{**issuer.keys["rsa"].as_dict(private=False), "kid": "rsa", "alg": "PS256"}])
    tokens = Tokens(issuer.settings(algorithms=["RS256", "PS256"]), clock)
    await tokens.principal(issuer.token(NOW, header={"alg": "PS256"}))
    with pytest.raises(CredentialRefused):
        await tokens.principal(issuer.token(NOW))


@pytest.mark.parametrize(
    "settings",
    [
        {"issuer": "http://issuer.example", "audience": "a"},
        {"issuer": "https://issuer.example"},
        {"issuer": "https://issuer.example", "audience": "a", "algorithms": ["HS256"]},
        {"issuer": "https://issuer.example", "audience": "a", "algorithms": ["none"]},
        {"issuer": "https://issuer.example", "audience": "a", "algorithms": []},
    ],
)
def test_settings_that_would_admit_every_token_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        OidcSettings.model_validate(settings)


async def test_the_door_takes_tokens_as_well_as_keys(issuer: Issuer, tmp_path: Path) -> None:
    with gateway_rig(tmp_path, AccessSettings(oidc=issuer.settings())) as rig:
        now = rig.clock.time()
        assert (await rig.request("GET", "/v1/jobs", issuer.token(now))).status_code == 200
        assert (await rig.request("GET", "/v1/jobs", rig.key())).status_code == 200
        assert (await rig.request("GET", "/v1/jobs", issuer.token(now, exp=now - 60))).status_code == 401
        assert (await rig.request("GET", "/v1/jobs", issuer.token(now, scope=None))).status_code == 403
    with gateway_rig(tmp_path, AccessSettings()) as rig:
        assert (await rig.request("GET", "/v1/jobs", issuer.token(now))).status_code == 401
    issuer.says(KEYS, {}, 500)
    with gateway_rig(tmp_path, AccessSettings(oidc=issuer.settings())) as rig:
        away = await rig.request("GET", "/v1/jobs", issuer.token(now))
        assert (away.status_code, away.json()["error"]["code"], away.headers["retry-after"]) == (
            503,
            "issuer_away",
            "30",
        )
