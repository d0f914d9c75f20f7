from __future__ import annotations

import base64
import errno
import hmac
import json
import os
import stat
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from schemas.signature import Signer
from telemetry.hand_clock import SetClock
from telemetry.private_file import is_open_to_others
from workers.delivery.keyring import (
    OVERLAP_SECONDS,
    Keyring,
    KeyringError,
    KeyringExists,
    KeyringMissing,
    KeyringUnreadable,
)
from workers.delivery.keyring.data import KeyringData
from workers.delivery.keyring.jwk import jwk

NOW = 1_700_000_000.0
KEY = base64.b64encode(os.urandom(32)).decode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys" / "keyring.json"


@pytest.fixture
def keyring(path: Path) -> Keyring:
    return Keyring.create(path, SetClock(NOW))


def test_a_new_keyring_is_readable_by_its_owner_only(keyring: Keyring, path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(path.parent.iterdir()) == [path]


def test_create_never_overwrites_keys(keyring: Keyring, path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(KeyringExists, match="postback keys rotate") as refused:
        Keyring.create(path, SetClock(NOW))
    assert str(path) in str(refused.value)
    assert path.read_bytes() == before


def test_a_loaded_keyring_has_the_keys_that_were_created(keyring: Keyring, path: Path) -> None:
    loaded = Keyring.load(path)
    assert loaded.secrets("acme", NOW) == keyring.secrets("acme", NOW)
    assert loaded.signing_keys("acme", NOW) == keyring.signing_keys("acme", NOW)


def test_every_tenant_and_every_keyring_has_its_own_secret(keyring: Keyring, tmp_path: Path) -> None:
    other = Keyring.create(tmp_path / "other.json", SetClock(NOW))
    secrets = {keyring.secrets(t, NOW)[0] for t in ("a", "b", "a/1")} | {other.secrets("a", NOW)[0]}
    assert len(secrets) == 4
    for secret in secrets:
        assert len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) == 32


def test_a_tenant_secret_is_hkdf_sha256_of_the_master(keyring: Keyring, path: Path) -> None:
    master = base64.b64decode(json.loads(path.read_text())["masters"][0]["secret"])
    # Follow RFC 5869 by hand: extract with a zero salt, then expand one block.
    pseudo_random_key = hmac.digest(bytes(32), master, "sha256")
    expected = hmac.digest(pseudo_random_key, b"postback/webhook-secret/acme/1\x01", "sha256")
    assert expected == HKDF(SHA256(), 32, None, b"postback/webhook-secret/acme/1").derive(master)
    assert keyring.secrets("acme", NOW) == ["whsec_" + base64.b64encode(expected).decode()]


def test_a_signing_key_is_its_seed_and_its_public_key(keyring: Keyring) -> None:
    [signing], [public] = keyring.signing_keys("acme", NOW), keyring.public_keys("acme", NOW)
    raw = base64.b64decode(signing.removeprefix("whsk_"), validate=True)
    assert Ed25519PrivateKey.from_private_bytes(raw[:32]).public_key().public_bytes_raw() == raw[32:]
    assert public == "whpk_" + base64.b64encode(raw[32:]).decode()


def test_a_rotated_secret_signs_beside_the_new_one_for_a_day(keyring: Keyring) -> None:
    [old] = keyring.secrets("acme", NOW)
    assert keyring.rotate("acme", NOW) == NOW + OVERLAP_SECONDS
    new, kept = keyring.secrets("acme", NOW + 1)
    assert (kept, new != old) == (old, True)
    assert keyring.secrets("acme", NOW + OVERLAP_SECONDS - 1) == [new, old]
    assert keyring.secrets("acme", NOW + OVERLAP_SECONDS) == [new]
    assert len(keyring.secrets("other", NOW + 1)) == 1


def test_two_rotations_in_a_day_keep_three_secrets_newest_first(keyring: Keyring) -> None:
    [first] = keyring.secrets("acme", NOW)
    keyring.rotate("acme", NOW)
    second = keyring.secrets("acme", NOW)[0]
    keyring.rotate("acme", NOW + 3600)
    third = keyring.secrets("acme", NOW + 3600)[0]
    assert keyring.secrets("acme", NOW + 3600) == [third, second, first]
    assert keyring.secrets("acme", NOW + OVERLAP_SECONDS) == [third, second]


def test_a_leaked_key_stops_signing_at_once_when_no_overlap_is_asked_for(keyring: Keyring) -> None:
    [leaked] = keyring.secrets("acme", NOW)
    keyring.rotate("acme", NOW, overlap_seconds=0)
    assert leaked not in keyring.secrets("acme", NOW)


def test_a_rotation_for_a_leak_ends_the_keys_that_retire_already_too(keyring: Keyring, path: Path) -> None:
    """Often it is the old key that leaked, and the operator has already rotated it before learning of the leak."""
    keyring.rotate("acme", NOW)
    keyring.rotate("acme", NOW + 60, overlap_seconds=0)
    assert len(keyring.secrets("acme", NOW)) == 1
    assert len(keyring.public_keys("acme", NOW)) == len(keyring.jwks("acme", NOW)["keys"]) == 1
    assert json.loads(path.read_bytes())["tenants"]["acme"]["retiring"] == []


def test_the_next_change_is_when_the_first_old_key_stops_signing(keyring: Keyring) -> None:
    assert keyring.next_change("acme", NOW) == float("inf")
    keyring.rotate_master(NOW - 60)
    keyring.rotate("acme", NOW)
    assert keyring.next_change("acme", NOW) == NOW - 60 + OVERLAP_SECONDS
    assert keyring.next_change("acme", NOW + OVERLAP_SECONDS - 1) == NOW + OVERLAP_SECONDS


def test_a_rotation_by_another_process_is_seen_after_a_refresh(keyring: Keyring, path: Path) -> None:
    assert keyring.refresh() is False
    other = Keyring.load(path)
    other.rotate("acme", NOW)
    other.rotate_master(NOW)
    assert keyring.refresh() is True
    assert keyring.secrets("acme", NOW) == other.secrets("acme", NOW)
    assert keyring.signing_keys("acme", NOW) == other.signing_keys("acme", NOW)


def test_rotations_by_two_processes_are_both_kept(keyring: Keyring, path: Path) -> None:
    other = Keyring.load(path)
    keyring.rotate("acme", NOW)
    other.rotate("zoo", NOW)
    assert [len(Keyring.load(path).secrets(t, NOW)) for t in ("acme", "zoo")] == [2, 2]


def test_a_rotation_through_a_link_keeps_the_link(keyring: Keyring, path: Path, tmp_path: Path) -> None:
    link = tmp_path / "linked.json"
    link.symlink_to(path)
    Keyring.load(link).rotate("acme", NOW)
    assert link.is_symlink()
    assert len(Keyring.load(path).secrets("acme", NOW)) == 2
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_broken_file_leaves_the_keys_that_were_loaded(keyring: Keyring, path: Path) -> None:
    before = keyring.secrets("acme", NOW)
    path.write_text('{"format": 1, "master": "')
    with pytest.raises(KeyringUnreadable):
        keyring.refresh()
    assert keyring.secrets("acme", NOW) == before


def test_a_signer_signs_with_every_current_key(keyring: Keyring) -> None:
    keyring.rotate("acme", NOW)
    expected = Signer(keyring.secrets("acme", NOW), keyring.signing_keys("acme", NOW)).sign("msg_1", int(NOW), b"{}")
    assert keyring.signer("acme", NOW).sign("msg_1", int(NOW), b"{}") == expected
    assert [part.split(",")[0] for part in expected.split(" ")] == ["v1", "v1", "v1a", "v1a"]


def test_a_signer_is_made_once_until_its_keys_change(keyring: Keyring) -> None:
    keyring.rotate("acme", NOW)
    signer = keyring.signer("acme", NOW)
    assert keyring.signer("acme", NOW + 100) is signer
    later = keyring.signer("acme", NOW + OVERLAP_SECONDS)
    assert later.sign("msg_1", 1, b"").count("v1,") == 1


def test_a_signer_follows_a_rotation_by_another_process(keyring: Keyring, path: Path) -> None:
    keyring.signer("acme", NOW)
    Keyring.load(path).rotate("acme", NOW)
    assert keyring.signer("acme", NOW + 2).sign("msg_1", 1, b"").count("v1,") == 2


def test_signing_goes_on_while_the_file_is_broken_and_the_problem_is_logged_once(
    keyring: Keyring, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    signature = keyring.signer("acme", NOW).sign("msg_1", 1, b"")
    path.unlink()
    for later in (2, 4, 6):
        assert keyring.signer("acme", NOW + later).sign("msg_1", 1, b"") == signature
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_an_error_names_the_path_and_the_fix(path: Path) -> None:
    with pytest.raises(KeyringMissing, match="postback keys init") as missing:
        Keyring.load(path)
    assert str(path) in str(missing.value)
    assert isinstance(missing.value, KeyringError)


def test_a_keyring_that_every_user_can_read_is_refused(keyring: Keyring, path: Path) -> None:
    path.chmod(0o644)
    with pytest.raises(KeyringUnreadable, match="chmod 600"):
        Keyring.load(path)


@pytest.mark.parametrize(
    ("mode", "owner", "open_to_others"),
    [
        (0o600, 1000, False),
        (0o400, 1000, False),
        (0o640, 1000, True),
        (0o660, 1000, True),
        (0o604, 1000, True),
        (0o440, 0, False),  # a Secret has this mode in a pod that does not run as root
        (0o640, 0, False),
        (0o660, 0, True),
        (0o444, 0, True),
    ],
)
def test_only_the_owner_may_use_the_file_and_the_group_may_read_a_file_of_root(
    mode: int, owner: int, open_to_others: bool
) -> None:
    assert is_open_to_others(stat.S_IFREG | mode, owner) is open_to_others


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


def test_a_rotation_that_the_disk_refuses_leaves_the_keys_and_no_litter(
    keyring: Keyring, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeyringUnreadable, match="no space left on device"):
        keyring.rotate("acme", NOW)
    assert path.read_bytes() == before
    assert sorted(path.parent.iterdir()) == [path]


def test_a_file_that_is_opened_to_others_later_is_noticed_and_the_keys_in_hand_sign_on(
    keyring: Keyring, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    signature = keyring.signer("acme", NOW).sign("msg_1", 1, b"")
    path.chmod(0o666)
    assert keyring.signer("acme", NOW + 2).sign("msg_1", 1, b"") == signature
    [record] = caplog.records
    assert record.levelname == "ERROR"
    assert "open to other users" in record.getMessage()


def test_a_rotation_leaves_the_file_to_its_owner_and_group_in_its_mode(keyring: Keyring, path: Path) -> None:
    """If root rotates another user's keys, that user must still be able to read the file."""
    if os.geteuid() == 0:
        os.chown(path, 10001, 10002)
    path.chmod(0o400)
    before = path.stat()
    keyring.rotate("acme", NOW)
    after = path.stat()
    assert after.st_ino != before.st_ino
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)


def test_a_signer_that_another_thread_makes_of_older_keys_is_not_kept_with_the_newer(
    keyring: Keyring, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The JWKS page reloads the keys on its own thread, at any moment while a signer is being made."""
    made = Keyring.signing_keys

    def reloaded_meanwhile(self: Keyring, tenant: str, now: float) -> list[str]:
        keys = made(self, tenant, now)
        self.refresh()
        return keys

    keyring.signer("zoo", NOW)
    Keyring.load(path).rotate("acme", NOW)
    with monkeypatch.context() as patched:
        patched.setattr(Keyring, "signing_keys", reloaded_meanwhile)
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
        {"fleet": [{"seed": KEY}]},
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
    content = {**json.loads(path.read_text()), **damage}
    path.write_text(json.dumps(content))
    with pytest.raises(KeyringUnreadable) as refused:
        Keyring.load(path)
    shown = str(refused.value) + repr(refused.value.__cause__)
    assert next(iter(damage)) in shown
    assert KEY not in shown


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
    assert jwk(public) == {
        "kty": "OKP",
        "crv": "Ed25519",
        "x": x,
        "kid": "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
        "use": "sig",
        "alg": "EdDSA",
    }
