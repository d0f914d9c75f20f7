"""Credentials of requests: API keys with their pepper, tokens of an issuer, and client certificates."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st
from joserfc.errors import SecurityWarning
from joserfc.jwk import ECKey, OctKey, RSAKey
from pydantic import ValidationError

from cli.operations.certificates import Leaf, init, issue, revoke
from gateway.access.access import Access, agreed, certified
from gateway.access.keys import (
    PATTERN,
    KeyDigests,
    NewKey,
    checksum,
    create_key,
    find_key,
    id_of,
    listed_keys,
    new_key,
    revoke_key,
)
from gateway.access.oidc.settings import OidcSettings
from gateway.access.oidc.tokens import Tokens
from gateway.access.pepper import PepperProblem, load_pepper
from gateway.access.principal import DEFAULT_SCOPES, CredentialRefused, IssuerAway, Principal, Scope
from gateway.access.recent import Recent
from gateway.access.settings import AccessSettings
from gateway.store.store import Store
from gateway.tls import LOOK_SECONDS, DoorTls, TlsFiles
from telemetry.clock import SystemClock
from telemetry.hand_clock import HandClock, SetClock
from tests.integration.certificates import Authority
from tests.oidc_issuer import AUDIENCE, CONFIGURATION, KEYS, Issuer
from tests.postback_command import environment_of, postback_here
from tests.unit.gateway_rig import gateway_rig

NOW = 1_700_000_000.0
PEPPER = b"p" * 32
BASE62 = st.sampled_from("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")


@pytest.fixture
def store_url(tmp_path: Path) -> str:
    """One database is enough here."""
    return f"sqlite:///{tmp_path / 'store.db'}"


@pytest.fixture
def tokens(issuer: Issuer, clock: SetClock) -> Tokens:
    return Tokens(issuer.settings(), clock)


@pytest.fixture
def clock() -> SetClock:
    return SetClock(NOW)


@pytest.fixture
def access(store: Store, clock: SetClock) -> Access:
    return Access(store, KeyDigests(PEPPER), AccessSettings(), clock)


def made(store: Store, clock: SetClock, tenant: str = "acme", pepper: bytes = PEPPER, **more: object) -> NewKey:
    return store.submit(lambda connection: create_key(connection, KeyDigests(pepper), clock, tenant, **more)).result()  # type: ignore[arg-type]


async def principal(access: Access, key: str) -> Principal:
    return await access.principal(access.parsed(f"Bearer {key}"), None)


async def refused(access: Access, *keys: str) -> bool:
    """True if the door refuses each of these keys."""
    for key in keys:
        with pytest.raises(CredentialRefused):
            await principal(access, key)
    return True


def test_a_key_has_its_id_256_bits_and_a_checksum_that_stays_the_same() -> None:
    identifier, key = new_key()
    assert PATTERN.fullmatch(key)
    assert key.startswith(f"pk_{identifier}_")
    assert id_of(key) == identifier
    assert len({new_key()[1] for _ in range(100)}) == 100
    assert checksum("pk_0000000000000000_" + 43 * "0") == "03uKLv"


@given(
    place=st.integers(0, 68),
    other=BASE62,
    text=st.text(max_size=100) | st.from_regex(PATTERN, fullmatch=True),
)
def test_a_key_with_one_wrong_character_and_noise_have_no_id(place: int, other: str, text: str) -> None:
    _, key = new_key()
    typo = key[:place] + other + key[place + 1 :]
    assert id_of(typo) == (id_of(key) if typo == key else None)
    assert id_of(text) is None or text.endswith(checksum(text[:-6]))


async def test_a_key_names_its_tenant_and_scopes(store: Store, access: Access, clock: SetClock) -> None:
    key = made(store, clock, scopes=[Scope.READ])
    assert await principal(access, key.key) == Principal("acme", f"key:{key.id}", "api_key", frozenset({Scope.READ}))
    assert await access.principal(access.parsed(f"bEaReR  {key.key} "), None) == await principal(access, key.key)


async def test_a_request_without_a_key_is_refused(access: Access) -> None:
    for header in (None, "", "Bearer", "Bearer ", "Basic pk_x", "pk_x", "Bearer pk_", "Bearer x.y.z"):
        with pytest.raises(CredentialRefused):
            await access.principal(access.parsed(header), None)


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    opened = Store.open(f"sqlite:///{tmp_path_factory.mktemp('empty') / 'store.db'}")
    yield opened
    opened.close()


@given(header=st.text(max_size=200) | st.from_regex(PATTERN, fullmatch=True).map(lambda key: f"Bearer {right(key)}"))
def test_noise_in_the_header_is_refused_without_being_repeated(header: str, empty_store: Store) -> None:
    access = Access(empty_store, KeyDigests(PEPPER), AccessSettings(), SetClock(0))
    with pytest.raises(CredentialRefused) as refused:
        asyncio.run(access.principal(access.parsed(header), None))
    assert len(header) < 30 or header not in str(refused.value)


def right(key: str) -> str:
    """The key with its right checksum."""
    return key[:-6] + checksum(key[:-6])


async def test_the_id_of_another_key_and_a_key_of_another_pepper_open_nothing(
    store: Store, access: Access, clock: SetClock
) -> None:
    first, second = made(store, clock), made(store, clock, "globex")
    start = f"pk_{first.id}_{second.key[20:63]}"
    assert await refused(access, start + checksum(start), made(store, clock, pepper=b"q" * 32).key)


async def test_a_key_ends_at_its_expiry_and_within_the_setting_once_it_is_revoked(
    store: Store, access: Access, clock: SetClock
) -> None:
    expiring = made(store, clock, expires_at=int((clock.now + 60) * 1000))
    revoked, forgotten = made(store, clock), made(store, clock)
    for key in (expiring, revoked, forgotten):
        await principal(access, key.key)
    for key in (revoked, forgotten):
        store.submit(partial(revoke_key, clock=clock, identifier=key.id)).result()
    access.forget_key(forgotten.id)  # its own gateway revoked it
    assert await refused(access, forgotten.key)
    first = store.read_now(lambda connection: find_key(connection, revoked.id))
    clock.now += AccessSettings().key_cache_seconds
    again = store.submit(partial(revoke_key, clock=clock, identifier=revoked.id)).result()  # it keeps the first time
    assert (first is not None and first[0]) == again
    assert store.submit(partial(revoke_key, clock=clock, identifier="unknown")).result() is None
    assert await refused(access, revoked.key)
    await principal(access, expiring.key)
    clock.now += 60 - AccessSettings().key_cache_seconds
    assert await refused(access, expiring.key)


async def test_the_last_use_is_written_seldom(store: Store, access: Access, clock: SetClock) -> None:
    key, uses = made(store, clock), []
    for seconds in (0, 299, 1):
        clock.now += seconds
        await principal(access, key.key)
        # The writer makes changes in order: once this empty change is made, the use is written.
        store.submit(lambda connection: None).result()
        found = store.read_now(lambda connection: find_key(connection, key.id))
        assert found is not None
        uses.append(found[0].last_used_at)
    store.close()  # a known key reads no database
    assert (await principal(access, key.key)).tenant == "acme"
    start = 1_700_000_000_000
    assert uses == [start, start, start + 300_000]


def test_keys_are_listed_page_by_page_with_equal_times_too(store: Store, clock: SetClock) -> None:
    ids = [made(store, clock, tenant).id for tenant in ("acme", "globex") * 3]
    seen: list[str] = []
    while page := store.read_now(partial(listed_keys, limit=2, after=seen[-1] if seen else None)):
        seen += [key.id for key in page]
    assert sorted(seen) == sorted(ids)
    assert {key.tenant for key in store.read_now(lambda c: listed_keys(c, "globex")) or ()} == {"globex"}
    assert store.read_now(lambda c: listed_keys(c, after="unknown")) is None


async def test_readers_of_one_key_share_one_reading() -> None:
    reads, gate = [], asyncio.Event()

    async def read(key: str) -> str | None:
        reads.append(key)
        await gate.wait()
        return key.upper() if key != "absent" else None

    clock = SetClock()
    recent = Recent(read, 5, clock)
    waiting = [asyncio.create_task(recent.get("a")) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    gate.set()
    assert await asyncio.gather(*waiting[1:]) == ["A", "A"]
    assert await recent.get("a") == "A"
    assert [await recent.get("absent"), await recent.get("absent")] == [None, None]
    assert reads == ["a", "absent", "absent"]
    clock.now += 5
    await recent.get("a")
    assert reads[-1] == "a"


async def test_a_value_that_changes_while_it_is_read_or_that_cannot_be_read_is_read_again() -> None:
    answers: Iterator[str | OSError] = iter(["old", "new", OSError("away"), "here"])
    gate = asyncio.Event()

    async def read(_key: str) -> str:
        answer = next(answers)
        await gate.wait()
        if isinstance(answer, OSError):
            raise answer
        return answer

    recent = Recent(read, 5, SetClock())
    first = asyncio.create_task(recent.get("a"))
    await asyncio.sleep(0)
    recent.forget("a")
    gate.set()
    assert [await recent.get("a"), await first, await recent.get("a")] == ["new", "old", "new"]
    with pytest.raises(OSError, match="away"):
        await recent.get("b")
    assert await recent.get("b") == "here"


def test_the_pepper_is_made_once_beside_the_database(store: Store, store_url: str, tmp_path: Path) -> None:
    pepper = load_pepper(store, store_url, None)
    file = tmp_path / "store.db.pepper"
    assert (file.stat().st_mode & 0o777, len(pepper)) == (0o600, 64)
    assert load_pepper(store, store_url, None) == load_pepper(store, store_url, file) == pepper
    assert [path.name for path in tmp_path.glob("*pepper*")] == [file.name]


def test_a_lost_or_foreign_pepper_is_noticed_at_the_start(store: Store, store_url: str, tmp_path: Path) -> None:
    load_pepper(store, store_url, None)
    (tmp_path / "store.db.pepper").unlink()
    with pytest.raises(PepperProblem, match="restore the file"):
        load_pepper(store, store_url, None)
    other = tmp_path / "other"
    other.write_bytes(PEPPER)
    other.chmod(0o600)
    with pytest.raises(PepperProblem, match="not the one"):
        load_pepper(store, store_url, other)


def test_a_database_without_a_folder_needs_the_setting_and_an_unusable_pepper_is_refused(
    store: Store, store_url: str, tmp_path: Path
) -> None:
    file, elsewhere = tmp_path / "pepper", "postgresql+psycopg://localhost/postback"
    for content, mode in ((b"short", 0o600), (b"", 0o600), (PEPPER, 0o644), (b"x" * 5000, 0o600)):
        file.write_bytes(content)
        file.chmod(mode)
        with pytest.raises(PepperProblem):
            load_pepper(store, store_url, file)
    with pytest.raises(PepperProblem, match="POSTBACK_ACCESS__PEPPER_FILE"):
        load_pepper(store, elsewhere, None)
    with pytest.raises(PepperProblem, match="cannot be made"):
        load_pepper(store, "sqlite://", Path("/proc/none/pepper"))
    assert len(load_pepper(store, elsewhere, tmp_path / "new" / "pepper")) == 64


def test_the_command_creates_lists_and_revokes_keys(store_url: str) -> None:
    env = environment_of(POSTBACK_STORE__URL=store_url)
    create = ("api-keys", "create", "--tenant", "acme", "--scopes", "read, submit", "--label", "ci", "--expires", "7d")
    key = json.loads(postback_here(*create, "--json", env=env).stdout)
    assert key.keys() == {"id", "key"}
    assert id_of(key["key"]) == key["id"]
    shown = postback_here("api-keys", "create", "--tenant", "globex", env=env)
    assert id_of(shown.stdout.strip()) is not None

    listed = postback_here("api-keys", "list", "--json", env=env).stdout
    assert {json.loads(line)["tenant"] for line in listed.splitlines()} == {"acme", "globex"}
    assert key["key"] not in listed
    line = postback_here("api-keys", "list", "--tenant", "acme", env=env).stdout
    assert line == f"{key['id']}  acme  valid  read,submit  never used  ci\n"

    assert postback_here("api-keys", "revoke", key["id"], env=env).returncode == 0
    assert "  revoked  " in postback_here("api-keys", "list", "--tenant", "acme", env=env).stdout
    unknown = postback_here("api-keys", "revoke", "0" * 16, env=env)
    assert (unknown.returncode, unknown.stderr.startswith("postback: no API key has the id")) == (1, True)


def test_the_command_refuses_wrong_options_and_names_a_store_that_is_away(store_url: str) -> None:
    wrong = [("--tenant", "-x"), ("--scopes", "read,all"), ("--scopes", ""), ("--expires", "soon")]
    env = environment_of(POSTBACK_STORE__URL=store_url)
    for options in (*wrong, ("--label", "x" * 257)):
        done = postback_here("api-keys", "create", "--tenant", "acme", *options, env=env)
        assert (done.returncode, done.stdout) == (2, ""), options
    away = postback_here("api-keys", "list", env=environment_of(POSTBACK_STORE__URL="sqlite:////proc/none/store.db"))
    assert away.returncode == 1
    assert "POSTBACK_STORE__URL" in away.stderr


# -- tokens of an issuer -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("issuer"))


@pytest.fixture
def issuer(authority: Authority) -> Iterator[Issuer]:
    with Issuer(authority) as running:
        yield running


def part(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def unsigned(header: dict[str, Any], claims: dict[str, Any], signature: bytes = b"") -> str:
    return ".".join(map(part, (json.dumps(header).encode(), json.dumps(claims).encode(), signature)))


def decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


@pytest.mark.parametrize("rsa", [False, True])
async def test_a_valid_token_names_tenant_subject_and_scopes(rsa: bool, issuer: Issuer, tokens: Tokens) -> None:
    issuer.rotate("one", rsa=rsa)
    principal = await tokens.principal(issuer.token(NOW, aud=["other", AUDIENCE]))
    assert principal == Principal("acme", "jwt:alice", "jwt", frozenset({Scope.SUBMIT, Scope.READ}))


async def test_only_this_services_scopes_count_and_the_names_of_claims_are_settings(
    issuer: Issuer, tokens: Tokens, clock: SetClock
) -> None:
    for said, scopes in (
        (["postback:read", 5, "postback:unknown", "admin"], {Scope.READ}),
        ("postback:admin", {Scope.ADMIN}),
        *((other, set()) for other in ("read submit", None, {"postback:read": True}, 5)),
    ):
        assert (await tokens.principal(issuer.token(NOW, scope=said))).scopes == scopes
    settings = issuer.settings(tenant_claim="org", scope_claim="roles", scope_prefix="")
    principal = await Tokens(settings, clock).principal(issuer.token(NOW, org="globex", roles=["read"]))
    assert (principal.tenant, set(principal.scopes)) == ("globex", {Scope.READ})
    subject = "a\nb" * 60  # it cannot be printed
    principal = await tokens.principal(issuer.token(NOW, sub=subject))
    assert principal.credential == f"jwt:sha256-{hashlib.sha256(subject.encode()).hexdigest()[:32]}"


def hostile(issuer: Issuer) -> dict[str, str]:
    """Tokens that must be refused, by the name of the attack."""
    key_id, key = next(iter(issuer.keys.items()))
    assert isinstance(key, ECKey)
    good, stranger, pem = issuer.token(NOW), ECKey.generate_key("P-256"), key.as_pem(private=False)
    claims = json.loads(decoded(good.split(".")[1]))
    public = json.dumps(key.as_dict(private=False)).encode()
    start, _, signature = good.rpartition(".")
    of_hmac = unsigned({"alg": "HS256", "kid": key_id}, claims)[:-1]
    elsewhere = {"jku": "https://evil.example/keys", "x5u": "https://evil.example/cert"}
    return {
        "no signature": unsigned({"alg": "none", "kid": key_id}, claims),
        "none with a signature": unsigned({"alg": "none", "kid": key_id}, claims, decoded(signature)),
        "none in capitals": unsigned({"alg": "NONE", "kid": key_id}, claims, b"x"),
        "HMAC by the public key as JSON": f"{of_hmac}.{part(hmac.digest(public, of_hmac.encode(), 'sha256'))}",
        "HMAC by the public key as PEM": f"{of_hmac}.{part(hmac.digest(pem, of_hmac.encode(), 'sha256'))}",
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


async def test_every_hostile_token_is_refused_and_no_url_of_it_is_asked(issuer: Issuer, tokens: Tokens) -> None:
    # The leeway allows for clocks that differ.
    for good in (issuer.token(NOW), issuer.token(NOW, exp=NOW - 29), issuer.token(NOW, nbf=NOW + 29)):
        await tokens.principal(good)
    for attack, token in hostile(issuer).items():
        with pytest.raises(CredentialRefused) as refused:
            await tokens.principal(token)
            pytest.fail(f"{attack} is taken")
        assert token not in str(refused.value)
    assert set(issuer.asked) == {CONFIGURATION, KEYS}


HEADERS = st.dictionaries(
    st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jwk"]), st.text(max_size=5) | st.booleans()
)


@given(
    noise=st.text(max_size=80) | st.lists(st.binary(max_size=40).map(part), min_size=3, max_size=3).map(".".join),
    header=HEADERS,
    claims=st.dictionaries(st.text(max_size=5), st.text(max_size=5)),
    signature=st.binary(max_size=70),
)
def test_noise_is_refused(
    noise: str,
    header: dict[str, Any],
    claims: dict[str, Any],
    signature: bytes,
    shared: tuple[Issuer, Tokens, asyncio.Runner],
) -> None:
    issuer, tokens, runner = shared
    for token in (noise, unsigned({"alg": "ES256", "kid": next(iter(issuer.keys)), **header}, claims, signature)):
        with pytest.raises(CredentialRefused):
            runner.run(tokens.principal(token))


@pytest.fixture(scope="module")
def shared(authority: Authority) -> Iterator[tuple[Issuer, Tokens, asyncio.Runner]]:
    with Issuer(authority) as issuer, asyncio.Runner() as runner:
        yield issuer, Tokens(issuer.settings(), HandClock(NOW)), runner


# -- the issuer's keys -------------------------------------------------------------------------------------------------


async def test_rotated_keys_are_fetched_once_for_all_who_wait(issuer: Issuer, clock: SetClock) -> None:
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


async def test_unknown_keys_make_no_more_than_one_request_in_the_cooldown(issuer: Issuer, clock: SetClock) -> None:
    tokens = Tokens(issuer.settings(jwks_url=f"{issuer.url}{KEYS}"), clock)
    for times in (1, 2):
        for number in range(10):
            with pytest.raises(CredentialRefused):
                await tokens.principal(issuer.token(NOW, header={"kid": str(number)}))
        assert issuer.asked == [KEYS] * times
        clock.now += 30


async def test_a_withdrawn_key_is_refused_once_the_keys_are_too_old(issuer: Issuer, clock: SetClock) -> None:
    tokens = Tokens(issuer.settings(keys_seconds=60), clock)
    old = issuer.token(NOW, exp=NOW + 3600)
    await tokens.principal(old)
    issuer.rotate("second")
    clock.now += 59
    await tokens.principal(old)
    clock.now += 1
    with pytest.raises(CredentialRefused):
        await tokens.principal(old)


@pytest.mark.parametrize(
    "answer",
    [
        *((500, b""), (302, b""), (200, b"<html>"), (200, b"[]"), (200, b'{"keys": 5}')),
        (200, b"[" + b" " * 300_000 + b"]"),  # too much
    ],
)
async def test_the_last_keys_count_while_the_issuer_fails(
    answer: tuple[int, bytes], issuer: Issuer, clock: SetClock, caplog: pytest.LogCaptureFixture
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


async def test_an_issuer_with_another_authority_or_without_https_is_refused(issuer: Issuer, clock: SetClock) -> None:
    with pytest.raises(IssuerAway):
        await Tokens(issuer.settings(ca_file=None), clock).principal(issuer.token(NOW))
    for configuration in (
        {"issuer": "https://evil.example"},
        {"jwks_uri": "http://127.0.0.1/keys"},
        {"jwks_uri": None},
    ):
        issuer.says(CONFIGURATION, {"issuer": issuer.url, "jwks_uri": f"{issuer.url}{KEYS}", **configuration})
        with pytest.raises(IssuerAway):
            await Tokens(issuer.settings(), clock).principal(issuer.token(NOW))


async def test_unusable_keys_of_a_set_leave_the_others_usable(issuer: Issuer, clock: SetClock) -> None:
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
    # A key counts only for the algorithm that the issuer states.
    issuer.rotate("rsa", rsa=True)
    issuer.publish([{**issuer.keys["rsa"].as_dict(private=False), "kid": "rsa", "alg": "PS256"}])
    tokens = Tokens(issuer.settings(algorithms=["RS256", "PS256"]), clock)
    await tokens.principal(issuer.token(NOW, header={"alg": "PS256"}))
    with pytest.raises(CredentialRefused):
        await tokens.principal(issuer.token(NOW))


def test_settings_that_would_admit_every_token_are_refused() -> None:
    usable = {"issuer": "https://issuer.example", "audience": "a"}
    OidcSettings.model_validate(usable)
    algorithms: tuple[list[str], ...] = (["HS256"], ["none"])
    for name, wrong in (
        *(("issuer", "http://issuer.example"), ("audience", None)),
        *(("algorithms", chosen) for chosen in algorithms),
    ):
        with pytest.raises(ValidationError):
            OidcSettings.model_validate({**usable, name: wrong})


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


# -- client certificates -----------------------------------------------------------------------------------------------


TODAY = datetime.fromtimestamp(SystemClock().time(), UTC)


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    directory = tmp_path / "ca"
    init(directory, TODAY)
    issue(directory, Leaf.server("web", ("localhost",)), TODAY)
    return directory


def client(ca: Path, scopes: Iterable[str] = ("read", "submit"), name: str = "one") -> bytes:
    pem = issue(ca, Leaf.client(name, "acme", scopes), TODAY).certificate.read_bytes()
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


def test_a_certificate_gives_its_tenant_and_the_scopes_that_the_gateway_knows(ca: Path) -> None:
    found = certified(client(ca, ("read", "submit", "future:scope")), None)
    assert found is not None
    assert (found.tenant, found.kind) == ("acme", "certificate")
    assert found.scopes == {Scope.READ, Scope.SUBMIT}
    serial = x509.load_pem_x509_certificate((ca / "one.pem").read_bytes()).serial_number
    assert int(found.credential.removeprefix("cert:"), 16) == serial


def test_a_certificate_without_scopes_has_those_of_a_new_key_and_one_without_a_tenant_gives_no_principal(
    ca: Path,
) -> None:
    found = certified(client(ca, ()), None)
    assert found is not None
    assert found.scopes == DEFAULT_SCOPES
    unknown = certified(client(ca, ["future:scope"], "two"), None)
    assert unknown is not None
    assert unknown.scopes == frozenset()
    server = x509.load_pem_x509_certificate((ca / "web.pem").read_bytes()).public_bytes(Encoding.DER)
    assert certified(server, None) is None


def test_a_certificate_is_refused_once_it_is_revoked_or_has_expired_on_an_open_connection(ca: Path) -> None:
    clock, der, other = SetClock(TODAY.timestamp()), client(ca), client(ca, name="two")
    tls = DoorTls(TlsFiles(ca / "web.pem", ca / "web.key", ca / "ca.pem"), clock)
    assert certified(der, tls) is not None
    revoke(ca, "one", TODAY)
    clock.now += LOOK_SECONDS
    with pytest.raises(CredentialRefused, match="revoked"):
        certified(der, tls)
    assert certified(other, tls) is not None
    clock.now += timedelta(days=90).total_seconds()
    with pytest.raises(CredentialRefused, match="expired"):
        certified(other, tls)


def test_a_key_and_a_certificate_are_of_one_tenant_and_bytes_that_are_no_certificate_are_refused() -> None:
    def of(tenant: str, kind: str) -> Principal:
        return Principal(tenant, f"{kind}:1", "api_key", frozenset())

    assert agreed(None, of("acme", "key")) == of("acme", "key")
    assert agreed(of("acme", "cert"), of("acme", "key")) == of("acme", "key")
    with pytest.raises(CredentialRefused, match="different tenants"):
        agreed(of("acme", "cert"), of("globex", "key"))
    for der in (b"", b"noise", b"0" * 100):
        with pytest.raises(CredentialRefused, match="cannot be read"):
            certified(der, None)
