"""The keyring: tenants' keys, rotation, ends of keys, and the pages with public keys."""

from __future__ import annotations

import base64
import errno
import hmac
import json
import os
import re
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable
from math import inf
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.signature import MalformedKey, NoMatchingSignature, Signer, generate_secret, public_key_of, verify
from telemetry.hand_clock import SetClock
from tests.any_json import any_json
from tests.drawn import drawn
from tests.postback_command import environment_of, postback_here
from workers.delivery.keyring import (
    OVERLAP_SECONDS,
    Keyring,
    KeyringData,
    KeyringError,
    KeyringExists,
    KeyringMissing,
    KeyringRefused,
    KeyringUnreadable,
    jwk,
    tenant_jwks_page,
)

NOW = 1_700_000_000.0
KEY = base64.b64encode(os.urandom(32)).decode()


FILE = Path(__file__).parent / "data" / "keyring.json"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys" / "keyring.json"


@pytest.fixture
def keyring(path: Path) -> Keyring:
    return Keyring.create(path, SetClock(NOW))


def test_a_new_keyring_is_readable_by_its_owner_only_and_is_never_overwritten(keyring: Keyring, path: Path) -> None:
    before = path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(path.parent.iterdir()) == [path]
    loaded = Keyring.load(path)
    assert loaded.secrets("acme", NOW) == keyring.secrets("acme", NOW)
    assert loaded.signing_keys("acme", NOW) == keyring.signing_keys("acme", NOW)
    with pytest.raises(KeyringExists, match="postback keys rotate") as refused:
        Keyring.create(path, SetClock(NOW))
    assert str(path) in str(refused.value)
    assert path.read_bytes() == before


def test_every_tenant_and_every_keyring_has_its_own_secret(keyring: Keyring, tmp_path: Path) -> None:
    other = Keyring.create(tmp_path / "other.json", SetClock(NOW))
    secrets = {keyring.secrets(t, NOW)[0] for t in ("a", "b", "a/1")} | {other.secrets("a", NOW)[0]}
    assert len(secrets) == 4
    for secret in secrets:
        assert len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) == 32


def test_a_tenants_secret_and_key_pair_are_hkdf_sha256_of_the_master(keyring: Keyring, path: Path) -> None:
    master = base64.b64decode(json.loads(path.read_text())["masters"][0]["secret"])
    # Follow RFC 5869 by hand: extract with a zero salt, then expand one block.
    pseudo_random_key = hmac.digest(bytes(32), master, "sha256")
    secret, seed = (
        hmac.digest(pseudo_random_key, b"postback/webhook-%b/acme/1\x01" % purpose, "sha256")
        for purpose in (b"secret", b"ed25519")
    )
    assert secret == HKDF(SHA256(), 32, None, b"postback/webhook-secret/acme/1").derive(master)
    assert keyring.secrets("acme", NOW) == ["whsec_" + base64.b64encode(secret).decode()]
    # A signing key is its seed and its public key.
    pair = seed + Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    assert keyring.signing_keys("acme", NOW) == ["whsk_" + base64.b64encode(pair).decode()]
    assert keyring.public_keys("acme", NOW) == ["whpk_" + base64.b64encode(pair[32:]).decode()]


def test_a_rotated_secret_signs_beside_the_newer_ones_for_a_day(keyring: Keyring) -> None:
    [first] = keyring.secrets("acme", NOW)
    assert keyring.rotate("acme", NOW) == NOW + OVERLAP_SECONDS
    second, kept = keyring.secrets("acme", NOW + 1)
    assert (kept, second != first) == (first, True)
    assert keyring.secrets("acme", NOW + OVERLAP_SECONDS - 1) == [second, first]
    assert keyring.secrets("acme", NOW + OVERLAP_SECONDS) == [second]
    assert len(keyring.secrets("other", NOW + 1)) == 1
    keyring.rotate("acme", NOW + 3600)
    third = keyring.secrets("acme", NOW + 3600)[0]
    assert keyring.secrets("acme", NOW + 3600) == [third, second, first]
    assert keyring.secrets("acme", NOW + OVERLAP_SECONDS) == [third, second]


def test_a_rotation_for_a_leak_ends_the_key_and_those_that_retire_already(keyring: Keyring, path: Path) -> None:
    """Often it is the old key that leaked, and the operator has already rotated it before learning of the leak."""
    leaked = set(keyring.secrets("acme", NOW))
    keyring.rotate("acme", NOW)
    leaked.update(keyring.secrets("acme", NOW))
    keyring.rotate("acme", NOW + 60, overlap_seconds=0)
    assert len({*keyring.secrets("acme", NOW)} - leaked) == len(keyring.secrets("acme", NOW)) == 1
    assert len(keyring.public_keys("acme", NOW)) == len(keyring.jwks("acme", NOW)["keys"]) == 1
    assert json.loads(path.read_bytes())["tenants"]["acme"]["retiring"] == []


def test_a_signer_is_made_anew_when_each_old_key_stops_signing(keyring: Keyring) -> None:
    keyring.rotate_master(NOW - 60)
    keyring.rotate("acme", NOW)
    ends = [NOW - 60 + OVERLAP_SECONDS, NOW + OVERLAP_SECONDS]
    signatures = [keyring.signer("acme", at).sign("msg_1", 1, b"") for end in ends for at in (end - 1, end)]
    assert [signature.count("v1,") for signature in signatures] == [3, 2, 2, 1]


def test_rotations_by_two_processes_are_both_kept_and_seen_after_a_refresh(keyring: Keyring, path: Path) -> None:
    keyring.signer("acme", NOW)
    assert keyring.refresh() is False
    other = Keyring.load(path)
    keyring.rotate("zoo", NOW)
    other.rotate("acme", NOW)
    other.rotate_master(NOW)
    assert keyring.signer("acme", NOW + 2).sign("msg_1", 1, b"").count("v1,") == 3
    other.rotate("acme", NOW + 2)
    assert keyring.refresh() is True
    assert keyring.secrets("acme", NOW) == other.secrets("acme", NOW)
    assert keyring.signing_keys("acme", NOW) == other.signing_keys("acme", NOW)
    assert len(keyring.secrets("zoo", NOW)) == 3


def test_a_rotation_keeps_the_link_and_leaves_the_file_to_its_owner_and_group_in_its_mode(
    keyring: Keyring, path: Path, tmp_path: Path
) -> None:
    """If root rotates another user's keys, that user must still be able to read the file."""
    link = tmp_path / "linked.json"
    link.symlink_to(path)
    Keyring.load(link).rotate("acme", NOW)
    assert link.is_symlink()
    assert len(Keyring.load(path).secrets("acme", NOW)) == 2
    if os.geteuid() == 0:
        os.chown(path, 10001, 10002)
    path.chmod(0o400)
    before = path.stat()
    keyring.rotate("acme", NOW)
    after = path.stat()
    assert after.st_ino != before.st_ino
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_text('{"format": 1, "master": "'), ""),
        (lambda path: path.unlink(), ""),
        (lambda path: path.chmod(0o666), "open to other users"),
    ],
)
def test_signing_goes_on_while_the_file_is_broken_and_the_problem_is_logged_once(
    keyring: Keyring, path: Path, damage: Callable[[Path], object], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    signature = keyring.signer("acme", NOW).sign("msg_1", 1, b"")
    damage(path)
    with pytest.raises(KeyringError):
        keyring.refresh()
    for later in (2, 4, 6):
        assert keyring.signer("acme", NOW + later).sign("msg_1", 1, b"") == signature
    [record] = caplog.records
    assert record.levelname == "ERROR"
    assert said in record.getMessage()


def test_a_signer_signs_with_every_current_key_and_is_made_once_until_these_change(keyring: Keyring) -> None:
    keyring.rotate("acme", NOW)
    signer = keyring.signer("acme", NOW)
    expected = Signer(keyring.secrets("acme", NOW), keyring.signing_keys("acme", NOW)).sign("msg_1", int(NOW), b"{}")
    assert signer.sign("msg_1", int(NOW), b"{}") == expected
    assert [part.split(",")[0] for part in expected.split(" ")] == ["v1", "v1", "v1a", "v1a"]
    assert keyring.signer("acme", NOW + 100) is signer
    assert keyring.signer("acme", NOW + OVERLAP_SECONDS).sign("msg_1", 1, b"").count("v1,") == 1


def test_an_absent_keyring_and_one_that_every_user_can_read_are_refused_with_the_fix(path: Path) -> None:
    with pytest.raises(KeyringMissing, match="postback keys init") as missing:
        Keyring.load(path)
    assert str(path) in str(missing.value)
    assert isinstance(missing.value, KeyringError)
    Keyring.create(path, SetClock(NOW))
    path.chmod(0o644)
    with pytest.raises(KeyringUnreadable, match="chmod 600"):
        Keyring.load(path)


def test_no_reader_ever_meets_half_a_rotation(keyring: Keyring, path: Path) -> None:
    rotated = threading.Event()
    found: list[int] = []

    def read() -> None:
        while not rotated.is_set():
            found.append(len(Keyring.load(path).secrets("acme", NOW)))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(20):
            keyring.rotate("acme", NOW)
    finally:
        rotated.set()
        reader.join()
    # If the thread raises, pytest warns, and the warning fails the test, since warnings are errors here.
    assert found == sorted(found)
    assert len(Keyring.load(path).secrets("acme", NOW)) == 21


def test_a_change_that_the_disk_refuses_leaves_the_keys_and_no_litter(
    keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    path = keyring.path
    before, files = path.read_bytes(), sorted(path.parent.iterdir())
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeyringUnreadable, match="no space left on device"):
        keyring.rotate("acme", NOW)
    assert path.read_bytes() == before
    assert sorted(path.parent.iterdir()) == files


def test_a_signer_that_another_thread_makes_of_older_keys_is_not_kept_with_the_newer(
    keyring: Keyring, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The JWKS page reloads the keys on its own thread, at any moment while a signer is being made."""
    made = KeyringData.secrets

    def reloaded_meanwhile(data: KeyringData, tenant: str, now: float) -> dict[bytes, float]:
        secrets = made(data, tenant, now)
        keyring.refresh()
        return secrets

    keyring.signer("zoo", NOW)
    Keyring.load(path).rotate("acme", NOW)
    with monkeypatch.context() as patched:
        patched.setattr(KeyringData, "secrets", reloaded_meanwhile)
        keyring.signer("acme", NOW + 0.5)
    assert keyring.signer("acme", NOW + 0.6).sign("msg_1", 1, b"").count("v1,") == 2


@pytest.mark.parametrize(
    "damage",
    [
        {"masters": [{"number": 1, "secret": "c2hvcnQ="}]},
        {"masters": [{"number": 1, "secret": "not base64 \u00e9"}]},
        {"masters": []},
        {"masters": [{"number": 1, "secret": KEY, "until": 1.0}]},
        {"masters": [{"number": 1, "secret": KEY}, {"number": 1, "secret": KEY, "until": 1.0}]},
        {"masters": [{"number": 1, "secret": KEY}, {"number": 2, "secret": KEY, "until": 1.0}]},
        {"masters": [{"number": 2, "secret": KEY}, {"number": 1, "secret": KEY}]},
        {"masters": [{"number": 1_000_001, "secret": KEY}]},
        {"master": KEY},
        {"format": 1},
        {"format": 3},
        {"tenants": {"acme": {"version": 0}}},
        {"tenants": {"acme": {"version": 2, "master": 2}}},
        {"tenants": {"acme": {"imported": [{"secret": "c2hvcnQ="}]}}},
    ],
)
def test_a_damaged_keyring_is_refused_without_showing_what_is_in_it(
    keyring: Keyring, path: Path, damage: dict[str, object]
) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **damage}))
    with pytest.raises(KeyringUnreadable) as refused:
        Keyring.load(path)
    shown = str(refused.value) + repr(refused.value.__cause__)
    assert next(iter(damage)) in shown
    assert KEY not in shown
    assert content["masters"][0]["secret"] not in shown


def test_no_key_is_in_a_repr(keyring: Keyring, path: Path) -> None:
    content = json.loads(path.read_text())
    data = KeyringData.model_validate_json(path.read_text())
    shown = repr(keyring) + repr(vars(keyring)) + repr(data) + str(data)
    assert content["masters"][0]["secret"] not in shown
    assert str(path) in repr(keyring)


def test_the_jwk_of_rfc_8037_has_its_thumbprint() -> None:
    # The key and the thumbprint are those of RFC 8037, appendix A.2 and A.3.
    x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
    public = base64.urlsafe_b64decode(x + "=")
    assert jwk(public, "") == {
        "kty": "OKP",
        "crv": "Ed25519",
        "x": x,
        "kid": "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
        "use": "sig",
        "alg": "EdDSA",
    }


# -- the file ----------------------------------------------------------------------------------------------------------


SHOWN = 1_700_000_100.0
"""In the hours before this time, all masters and tenant versions of FILE sign."""
# Another version of the program wrote FILE, and showed these keys.
SECRETS = {
    "acme": [
        "whsec_QEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEA=",
        "whsec_9fSJD8Qp6vEniNLJCVlgyhXNc046p5I+162ZrNZrzNs=",
        "whsec_pJzQRdCISHZo9YE6e+FnYZt9JfLrMYqg3NZb4uueKyk=",
        "whsec_WFRsLmloa47B798GM8pYSsmHHs45Nbf7tEE5tgeI6R4=",
        "whsec_1YwCCW9xKfVdkRuuhj/qu0csvnzfilr8hwjuRTQ9q3I=",
    ],
    "victim": [
        "whsec_ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=",
        "whsec_u63lsaqsOqk3vBf7mo3wyhtsDoWgefGX/HOrHDOR/Ts=",
        "whsec_rIvkdzjT7YtgbFTK993Rq6Arz7vgHLKETUuUI5btq88=",
    ],
}
PUBLIC_KEYS = {
    "acme": [
        "whpk_Du6BH3xwBqFc56hiHoxpfdTTOff1jV7eRY5Aj+fWjFY=",
        "whpk_/3CR80lXJjVRPDu8ElYx6ys560hVF0sjgYy4QDk32i8=",
        "whpk_PxrFIuYw766GuGwKIjlMMRj4HTqJ7Atlpe9oayP5L0U=",
        "whpk_4ArPAX0EFI9fiTSdAOiDZDF80oF+VCX6Hmc5tElZwUU=",
    ],
    "victim": [
        "whpk_2rpZfCX4a68vM9WDIfGUirXeGG1eS+An86QzPHAoFl0=",
        "whpk_f3+uqwdI3w4Pij1k50dbhhOZ83lzkpWscWyZc64z8SE=",
    ],
}
ENDPOINT_SECRETS = {
    "acme": "whsec_h5AZBTW3BTfNJG1K5dgyu4I4mmAX+k+HbGy7Pz0EP/M=",
    "victim": "whsec_Ujk8Ybm+1+jGTk24HavHttAdNLlWkaJnZESCpR8z+bY=",
}


def test_a_file_of_this_format_keeps_its_keys_also_after_it_is_written_again(tmp_path: Path) -> None:
    copy = Path(shutil.copy(FILE, tmp_path / "keyring.json"))
    copy.chmod(0o600)
    for change in (repr, lambda keyring: keyring.rotate("zoo", SHOWN)):
        keyring = Keyring.load(copy)
        change(keyring)
        assert {tenant: keyring.secrets(tenant, SHOWN) for tenant in SECRETS} == SECRETS
        assert {tenant: keyring.public_keys(tenant, SHOWN) for tenant in SECRETS} == PUBLIC_KEYS
        assert {tenant: keyring.endpoint_secret(tenant, "we_1", 1, SHOWN) for tenant in SECRETS} == ENDPOINT_SECRETS
    written = json.loads(copy.read_text())
    assert (set(written), written["format"]) == ({"format", "created_at", "masters", "tenants"}, 2)


@pytest.mark.parametrize("number", [1, 3, "2", None])
def test_a_file_of_another_format_is_refused_with_a_clear_error(keyring: Keyring, path: Path, number: object) -> None:
    path.write_text(json.dumps({"format": number, "created_at": 1, "master": KEY}))
    with pytest.raises(KeyringUnreadable) as refused:
        Keyring.load(path)
    problem = f"keyring {path}: its `format` is not 2, the only one that this version reads"
    assert str(refused.value) == f"{problem}; put the file back from a backup"


def test_a_reload_is_logged_with_the_numbers_of_the_masters_that_sign_now(
    keyring: Keyring, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keyring.follow(NOW)
    with caplog.at_level("INFO", logger="postback"):
        Keyring.load(path).rotate_master(NOW)
        keyring.follow(NOW + 2)
        keyring.follow(NOW + 4)
    [record] = caplog.records
    assert "keyring-reloaded" in record.getMessage()
    assert "[2, 1]" in record.getMessage()


# -- tenants' keys -----------------------------------------------------------------------------------------------------


TENANTS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", fullmatch=True)
VERSIONS = st.integers(1, 1_000_000)


MASTER = bytes(range(32))


def data_of(**fields: object) -> KeyringData:
    secret = base64.b64encode(MASTER).decode()
    content = {"format": 2, "created_at": 1, "masters": [{"number": 1, "secret": secret}], **fields}
    return KeyringData.model_validate_json(json.dumps(content))


def test_an_imported_secret_of_the_file_may_end_before_every_other_key() -> None:
    ends = {"imported": [{"secret": KEY, "until": NOW + 1}], "retiring": [{"version": 1, "until": NOW + 2}]}
    data = data_of(tenants={"acme": {"version": 2, **ends}})
    assert [data.next_change("acme", NOW + later) for later in (0, 1, 2)] == [NOW + 1, NOW + 2, inf]


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


def test_a_jwk_set_has_the_keys_that_sign_at_its_time(keyring: Keyring) -> None:
    keyring.rotate("acme", NOW)
    sets = [keyring.jwks("acme", NOW + later)["keys"] for later in (0, OVERLAP_SECONDS - 1, OVERLAP_SECONDS)]
    assert sets == [sets[0], sets[0], sets[0][:1]]
    assert len(sets[0]) == 2


def test_signers_take_a_bounded_memory_and_sets_of_strangers_evict_none(
    keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.delivery.keyring.MOST_SIGNERS", 10)
    made = [keyring.signer(f"t{number}", NOW) for number in range(35)]
    for number in range(100):
        keyring.jwks(f"s{number}", NOW)
    # The newest are asked for first, as a new signer may evict others.
    kept = sum(keyring.signer(f"t{number}", NOW) is made[number] for number in reversed(range(35)))
    assert 0 < kept <= 10


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
    expected = {
        secret
        for (master, version), secret in current.items()
        if min(ends.get(("master", master), inf), ends.get(("tenant", version), inf)) > now
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
    keyring.rotate("acme", NOW)
    keyring.add_secret("acme", imported, NOW)  # a second import keeps it once and without an end
    assert keyring.secrets("acme", NOW).count(imported) == 1
    assert imported in keyring.secrets("acme", NOW + OVERLAP_SECONDS)


def test_a_rotation_retires_an_imported_secret_for_the_overlap_and_a_leak_ends_it(keyring: Keyring) -> None:
    first, second = generate_secret(), generate_secret()
    keyring.add_secret("acme", first, NOW)
    keyring.rotate("acme", NOW, overlap_seconds=3600)
    assert first in keyring.secrets("acme", NOW + 3599)
    assert first not in keyring.secrets("acme", NOW + 3600)
    signatures = [keyring.signer("acme", NOW + later).sign("msg_1", 1, b"") for later in (3599, 3600)]
    assert [signature.count("v1,") for signature in signatures] == [3, 1]
    keyring.add_secret("acme", second, NOW)
    assert keyring.secrets("acme", NOW)[:2] == [second, first]
    keyring.rotate("acme", NOW, overlap_seconds=0)
    assert not {first, second} & set(keyring.secrets("acme", NOW))


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


def test_a_text_that_is_no_secret_is_not_imported_and_not_shown(keyring: Keyring) -> None:
    before = keyring.path.read_bytes()
    for text in ("", "whsec_", "whsec_c2hvcnQ=", "whsk_AAAA", "c2VjcmV0", "whsec_é", "whsec_AA AA"):
        with pytest.raises(MalformedKey) as refused:
            keyring.add_secret("acme", text, NOW)
        assert not text.removeprefix("whsec_") or text not in str(refused.value)
        assert keyring.path.read_bytes() == before


JSON = any_json(st.text(), st.none() | st.booleans() | st.integers() | st.floats() | st.text(), leaves=12)
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
    },
)
WHOLE = {"format": 2, "created_at": 1, "masters": [{"number": 1, "secret": KEY}]}
CHANGED = CHANGES.map(lambda changes: {**WHOLE, **changes})
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
        keyring.rotate("acme", NOW)
        keyring.rotate_master(NOW)


# -- ends of keys ------------------------------------------------------------------------------------------------------


def rotated(keyring: Keyring) -> None:
    keyring.rotate("acme", NOW - 50, 3600)
    keyring.rotate_master(NOW - 20, 7200)


def imported(keyring: Keyring) -> None:
    keyring.add_secret("acme", generate_secret(), NOW - 60)
    keyring.rotate("acme", NOW - 50, 3600)
    keyring.add_secret("acme", generate_secret(), NOW - 40)


def imported_as_derived(keyring: Keyring) -> None:
    keyring.add_secret("acme", keyring.secrets("acme", NOW)[0], NOW - 60)
    keyring.rotate("acme", NOW - 50, 3600)


@pytest.mark.parametrize("change", [repr, rotated, imported, imported_as_derived])
def test_each_key_signs_until_its_end(keyring: Keyring, change: Callable[[Keyring], object]) -> None:
    change(keyring)
    ends = keyring.key_ends("acme", NOW)
    assert list(ends.secrets) == keyring.secrets("acme", NOW)
    assert list(ends.public_keys) == [public_key_of(key) for key in keyring.signing_keys("acme", NOW)]
    for each, end in {**ends.secrets, **ends.public_keys}.items():
        before, after = (
            {*keyring.secrets("acme", at), *map(public_key_of, keyring.signing_keys("acme", at))}
            for at in (min(end - 1, NOW + 10**9), min(end, NOW + 10**9))
        )
        assert each in before
        assert end == inf or each not in after
    assert "whsec_" not in repr(ends)


def test_the_command_shows_each_end_and_hides_the_secrets(tmp_path: Path) -> None:
    env = environment_of(POSTBACK_KEYRING=tmp_path / "keyring.json")
    postback_here("keys", "init", env=env)
    postback_here("keys", "rotate", "--tenant", "acme", "--overlap", "2h", env=env)
    tenant, *lines = postback_here("keys", "show", "--tenant", "acme", env=env).stdout.splitlines()
    assert tenant == "tenant      acme"
    hidden, public = r"secret      whsec_… \(--reveal shows it\)", r"public key  whpk_\S+"
    until = r"signs until \d{4}-\d\d-\d\d \d\d:\d\d UTC"
    wanted = [f"{hidden}  signs until it is rotated", f"{hidden}  {until}"]
    wanted += [f"{public}  signs until it is rotated", f"{public}  {until}"]
    for line, pattern in zip(lines, wanted, strict=True):
        assert re.fullmatch(pattern, line), line


# -- pages with public keys --------------------------------------------------------------------------------------------


CLOCK = SetClock(1_700_000_000.0)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Keyring:
    return Keyring.create(tmp_path_factory.mktemp("keys") / "keyring.json", CLOCK)


def test_a_tenants_page_holds_the_public_keys_of_the_file_as_it_is_now(keyring: Keyring) -> None:
    before = tenant_jwks_page(keyring, SetClock(NOW), "acme.json")
    Keyring.load(keyring.path).rotate("acme", NOW)
    page = tenant_jwks_page(keyring, SetClock(NOW + 2), "acme.json")
    assert before is not None
    assert page is not None
    keys = json.loads(page.body)["keys"]
    assert keys[1:] == json.loads(before.body)["keys"]
    assert all(set(key) == {"kty", "crv", "x", "kid", "use", "alg"} for key in keys)
    assert (page.content_type, page.max_age_seconds) == ("application/jwk-set+json", 300)


def test_a_name_that_is_no_tenants_has_no_page(shown: Keyring) -> None:
    odd = ["acme", ".json", "acme.json.json", "acme.JSON", "-a.json", "a%62.json", "é.json", "../acme.json", "٣.json"]
    odd += ["a" * 64 + ".json", "a" * 100_000 + ".json", "", "a b.json", "acme.json\n", "acme\x00.json"]
    assert [name for name in odd if tenant_jwks_page(shown, CLOCK, name) is not None] == []


@given(TENANTS, st.text(max_size=80))
def test_every_valid_name_has_a_page_of_the_same_form_and_no_other_text_has_one(
    shown: Keyring, tenant: str, text: str
) -> None:
    """Every valid name has a page, whether the tenant exists or not, so the pages do not reveal which tenants exist."""
    page = tenant_jwks_page(shown, CLOCK, f"{tenant}.json")
    assert page is not None
    [key] = json.loads(page.body)["keys"]
    assert key["kid"].startswith(f"{tenant}/1/")
    other = tenant_jwks_page(shown, CLOCK, text)
    assert other is None or text.endswith(".json")
