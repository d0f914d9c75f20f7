"""Keys of format 2: each tenant's own keys, under rotating masters, and imported secrets of another sender."""

from __future__ import annotations

import base64
import hmac
import json
import tempfile
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.signature import MalformedKey, NoMatchingSignature, generate_secret, verify
from telemetry.hand_clock import SetClock
from tests.drawn import drawn
from workers.delivery.keyring import OVERLAP_SECONDS, Keyring, KeyringError, KeyringRefused
from workers.delivery.keyring.data import KeyringData

NOW = 1_700_000_000.0
TENANTS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", fullmatch=True)
VERSIONS = st.integers(1, 1_000_000)
MASTER = bytes(range(32))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keyring.json"


@pytest.fixture
def keyring(path: Path) -> Keyring:
    return Keyring.create(path, SetClock(NOW))


def data_of(**fields: object) -> KeyringData:
    secret = base64.b64encode(MASTER).decode()
    content = {"format": 2, "created_at": 1, "masters": [{"number": 1, "secret": secret}], **fields}
    return KeyringData.model_validate_json(json.dumps(content))


def test_a_tenants_key_pair_is_derived_from_the_master_for_that_purpose() -> None:
    # Follow RFC 5869 by hand: extract with a zero salt, then expand one block.
    seed = hmac.digest(hmac.digest(bytes(32), MASTER, "sha256"), b"postback/webhook-ed25519/acme/1\x01", "sha256")
    [key] = data_of().derived_keys("acme", NOW)
    assert key.private_bytes == seed + Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


@given(st.lists(st.tuples(TENANTS, VERSIONS), min_size=2, max_size=2, unique=True))
def test_no_two_tenants_or_versions_share_a_key(pairs: list[tuple[str, int]]) -> None:
    keys = [
        key
        for tenant, version in pairs
        for key in data_of(tenants={tenant: {"version": version}}).derived_keys(tenant, NOW)
    ]
    assert len({key.secret for key in keys} | {key.private_bytes[:32] for key in keys}) == 4


@settings(deadline=None)
@given(st.lists(TENANTS, min_size=2, max_size=2, unique=True))
def test_a_signature_for_one_tenant_never_verifies_as_another_tenants(tenants: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        keyring = Keyring.create(Path(folder) / "keyring.json", SetClock(NOW))
    attacker, victim = tenants
    headers = keyring.signer(attacker, NOW).headers("msg_1", int(NOW), b"{}")
    verify(headers, b"{}", [], keyring.public_keys(attacker, NOW), NOW)
    with pytest.raises(NoMatchingSignature):
        verify(headers, b"{}", keyring.secrets(victim, NOW), keyring.public_keys(victim, NOW), NOW)


def test_a_kid_names_tenant_and_version_and_no_two_keys_have_the_same(keyring: Keyring) -> None:
    keyring.rotate("acme", NOW)
    keyring.rotate_master(NOW)
    kids = [key["kid"] for tenant in ("acme", "victim") for key in keyring.jwks(tenant, NOW)["keys"]]
    assert [kid.rsplit("/", 1)[0] for kid in kids] == ["acme/2", "acme/2", "acme/1", "victim/1", "victim/1"]
    assert len(set(kids)) == len(kids)


def test_a_jwk_set_is_made_once_until_the_keys_change(keyring: Keyring, monkeypatch: pytest.MonkeyPatch) -> None:
    keyring.rotate("acme", NOW)
    first = keyring.jwks("acme", NOW)
    assert len(first["keys"]) == 2
    assert all(keyring.jwks("acme", NOW + later) is first for later in (1, OVERLAP_SECONDS - 1))
    second = keyring.jwks("acme", NOW + OVERLAP_SECONDS)
    assert len(second["keys"]) == 1
    assert keyring.jwks("acme", NOW + OVERLAP_SECONDS) is second


def test_a_stranger_who_asks_for_many_sets_takes_a_bounded_part_of_the_cache_and_none_of_the_signers(
    keyring: Keyring,
) -> None:
    signer = keyring.signer("acme", NOW)
    sets = [keyring.jwks(f"t{number}", NOW) for number in range(2_500)]
    # A kept set is returned as the same object. Ask for the newest sets first, because a set that is made anew evicts
    # old sets.
    kept = [number for number in reversed(range(2_500)) if keyring.jwks(f"t{number}", NOW) is sets[number]]
    assert 0 < len(kept) <= 1_000
    assert keyring.signer("acme", NOW) is signer


def test_signers_take_a_bounded_place_too(keyring: Keyring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.delivery.keyring.keyring.MOST_SIGNERS", 10)
    keyring.rotate_master(NOW)  # reloads the file, with caches of the new size
    signers = [keyring.signer(f"t{number}", NOW) for number in range(35)]
    kept = [number for number in reversed(range(35)) if keyring.signer(f"t{number}", NOW) is signers[number]]
    assert 0 < len(kept) <= 10


def test_a_rotated_master_changes_every_tenants_keys_and_the_old_ones_sign_for_the_overlap(keyring: Keyring) -> None:
    before = {t: (keyring.secrets(t, NOW), keyring.public_keys(t, NOW)) for t in ("acme", "victim")}
    assert keyring.rotate_master(NOW, overlap_seconds=3600) == NOW + 3600
    for tenant, (secrets, public_keys) in before.items():
        assert keyring.secrets(tenant, NOW)[1:] == secrets
        assert keyring.public_keys(tenant, NOW)[1:] == public_keys
        assert keyring.secrets(tenant, NOW + 3600) == keyring.secrets(tenant, NOW)[:1]
    signature = keyring.signer("acme", NOW).sign("msg_1", int(NOW), b"{}")
    assert [part.split(",")[0] for part in signature.split(" ")] == ["v1", "v1", "v1a", "v1a"]
    assert keyring.signer("acme", NOW + 3600).sign("msg_1", 1, b"{}").count("v1,") == 1


STEPS = st.lists(
    st.tuples(st.sampled_from(["tenant", "master", "other"]), st.integers(1, 50), st.integers(0, 120)), max_size=12
)


@settings(deadline=None)
@given(STEPS, st.integers(0, 200))
def test_the_keys_that_sign_are_those_that_were_current_once_and_have_not_ended(
    steps: list[tuple[str, int, int]], later: int
) -> None:
    """The naive model keeps the end of each master and of each tenant version, and each pair that was once current."""
    data, now = KeyringData.generate(NOW), NOW
    place = {"master": 1, "tenant": 1}
    ends: dict[tuple[str, int], float] = {}
    current = {(1, 1): data.derived_keys("acme", now)[0].secret}
    for whose, seconds, overlap in steps:
        now += seconds
        until = now + overlap
        if whose == "other":
            data = data.with_tenant_rotated("other", now, until)
            continue
        data = (
            data.with_master_rotated(now, until) if whose == "master" else data.with_tenant_rotated("acme", now, until)
        )
        for number in range(1, place[whose] + 1):
            ends[whose, number] = min(until, ends.get((whose, number), until))
        place[whose] += 1
        current[place["master"], place["tenant"]] = data.derived_keys("acme", now)[0].secret
    now += later
    never = float("inf")
    expected = {
        secret
        for (master, version), secret in current.items()
        if min(ends.get(("master", master), never), ends.get(("tenant", version), never)) > now
    }
    signing = [key.secret for key in data.derived_keys("acme", now)]
    assert signing[0] == current[place["master"], place["tenant"]]
    assert set(signing) == expected
    assert len(signing) == len(expected)


def test_an_imported_secret_signs_beside_the_derived_one_and_is_shown_first(keyring: Keyring) -> None:
    imported, [derived] = generate_secret(), keyring.secrets("acme", NOW)
    keyring.add_secret("acme", imported, NOW)
    assert keyring.secrets("acme", NOW) == [imported, derived]
    assert keyring.secrets("acme", NOW + 10 * 366 * 86_400) == [imported, derived]
    assert keyring.secrets("victim", NOW) == Keyring.load(keyring.path).secrets("victim", NOW)
    headers = keyring.signer("acme", NOW).headers("msg_1", int(NOW), b"{}")
    for secret in (imported, derived):
        verify(headers, b"{}", [secret], [], NOW)


def test_a_rotation_retires_an_imported_secret_for_the_overlap_and_a_leak_ends_it(keyring: Keyring) -> None:
    first, second = generate_secret(), generate_secret()
    keyring.add_secret("acme", first, NOW)
    keyring.rotate("acme", NOW, overlap_seconds=3600)
    assert first in keyring.secrets("acme", NOW + 3599)
    assert first not in keyring.secrets("acme", NOW + 3600)
    assert keyring.next_change("acme", NOW) == NOW + 3600
    keyring.add_secret("acme", second, NOW)
    assert keyring.secrets("acme", NOW)[:2] == [second, first]
    keyring.rotate("acme", NOW, overlap_seconds=0)
    assert not {first, second} & set(keyring.secrets("acme", NOW))


def test_importing_a_secret_twice_keeps_it_once_and_without_an_end(keyring: Keyring) -> None:
    imported = generate_secret()
    keyring.add_secret("acme", imported, NOW)
    keyring.rotate("acme", NOW)
    keyring.add_secret("acme", imported, NOW)
    assert keyring.secrets("acme", NOW).count(imported) == 1
    assert imported in keyring.secrets("acme", NOW + OVERLAP_SECONDS)


def test_a_master_rotation_leaves_imported_secrets_and_a_file_that_leaked_keeps_no_key(keyring: Keyring) -> None:
    imported = generate_secret()
    keyring.add_secret("acme", imported, NOW)
    keyring.rotate("victim", NOW)
    keyring.rotate_master(NOW)
    before = {t: {*keyring.secrets(t, NOW), *keyring.public_keys(t, NOW)} for t in ("acme", "victim", "new")}
    assert imported in before["acme"]
    assert imported in keyring.secrets("acme", NOW + OVERLAP_SECONDS)
    keyring.replace_all(NOW)
    for tenant, keys in before.items():
        after = [*keyring.secrets(tenant, NOW), *keyring.public_keys(tenant, NOW)]
        assert len(after) == 2
        assert not keys & set(after)
    assert KeyringData.model_validate_json(keyring.path.read_bytes()).masters[0].number == 3


def test_two_tenants_never_have_one_secret(keyring: Keyring) -> None:
    imported = generate_secret()
    keyring.add_secret("acme", imported, NOW)
    before = keyring.path.read_bytes()
    with pytest.raises(KeyringRefused, match="acme") as refused:
        keyring.add_secret("victim", imported, NOW)
    assert imported.removeprefix("whsec_") not in str(refused.value)
    keyring.rotate("victim", NOW)
    [current, *_] = keyring.secrets("victim", NOW)
    with pytest.raises(KeyringRefused, match="victim"):
        keyring.add_secret("acme", current, NOW)
    assert json.loads(before)["tenants"]["acme"] == json.loads(keyring.path.read_bytes())["tenants"]["acme"]


@pytest.mark.parametrize("text", ["", "whsec_", "whsec_c2hvcnQ=", "whsk_AAAA", "c2VjcmV0", "whsec_é", "whsec_AA AA"])
def test_a_text_that_is_no_secret_is_not_imported_and_not_shown(keyring: Keyring, text: str) -> None:
    before = keyring.path.read_bytes()
    with pytest.raises(MalformedKey) as refused:
        keyring.add_secret("acme", text, NOW)
    assert not text.removeprefix("whsec_") or text not in str(refused.value)
    assert keyring.path.read_bytes() == before


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
KEY = base64.b64encode(MASTER).decode()
NUMBERS = st.integers() | st.floats() | st.sampled_from([1, 2, 10**400, -1])
TIMED = {"until": NUMBERS | st.none()}
MASTERS = st.fixed_dictionaries({"number": NUMBERS, "secret": st.just(KEY)}, optional=TIMED)
RETIRING = st.fixed_dictionaries({"version": NUMBERS, "until": NUMBERS}, optional={"master": NUMBERS})
IMPORTED = st.fixed_dictionaries({"secret": st.just(KEY)}, optional=TIMED)
TENANT = st.fixed_dictionaries(
    {},
    optional={
        "version": NUMBERS,
        "master": NUMBERS,
        "retiring": st.lists(RETIRING, max_size=2),
        "imported": st.lists(IMPORTED, max_size=2),
    },
)
CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "format": st.sampled_from([1, 2, 3, "1"]),
        "created_at": NUMBERS,
        "master": JSON,
        "masters": st.lists(MASTERS, max_size=3) | JSON,
        "tenants": st.dictionaries(st.sampled_from(["acme", "\u00e9", "a/1"]), TENANT) | JSON,
        "fleet": st.lists(st.fixed_dictionaries({"seed": st.just(KEY)}, optional=TIMED), max_size=2) | JSON,
    },
)
WHOLE = st.sampled_from(
    [
        {"format": 1, "created_at": 1, "master": KEY, "fleet": [{"seed": KEY}]},
        {"format": 2, "created_at": 1, "masters": [{"number": 1, "secret": KEY}]},
    ]
)
CHANGED = st.tuples(WHOLE, CHANGES).map(lambda parts: {**parts[0], **parts[1]})
FILES = st.binary(max_size=200) | (JSON | CHANGED).map(lambda value: json.dumps(value).encode())


@settings(deadline=None, max_examples=drawn(300))
@given(FILES)
def test_a_file_of_anything_is_refused_as_a_keyring_or_signs_for_every_tenant(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "keyring.json"
        path.touch(mode=0o600)
        path.write_bytes(content)
        try:
            keyring = Keyring.load(path)
        except KeyringError as error:
            assert KEY not in str(error)
            return
        for tenant in ("acme", "default"):
            headers = keyring.signer(tenant, NOW).headers("msg_1", int(NOW), b"{}")
            verify(headers, b"{}", keyring.secrets(tenant, NOW)[:1], [], NOW)
            verify(headers, b"{}", [], keyring.public_keys(tenant, NOW)[:1], NOW)
            assert keyring.jwks(tenant, NOW)["keys"]
        if keyring.format == 1:
            before = keyring.secrets("acme", NOW)
            keyring.migrate(NOW)
            assert keyring.secrets("acme", NOW) == before
        keyring.rotate("acme", NOW)
        keyring.rotate_master(NOW)
