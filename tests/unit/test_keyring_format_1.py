"""Keyrings of format 1, made by earlier versions: they still work unchanged, and can be migrated."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from schemas.signature import Signer, public_key_of
from telemetry.hand_clock import SetClock
from workers.delivery.jwks import fleet_jwks_page, tenant_jwks_page
from workers.delivery.keyring import (
    MIGRATION_OVERLAP_SECONDS,
    OVERLAP_SECONDS,
    Keyring,
    KeyringFormatOld,
    KeyringRefused,
    KeyringUnreadable,
)
from workers.delivery.keyring.keyring import JwkSet

OLD_FILE = Path(__file__).parent / "data" / "keyring_format_1.json"
NOW = 1_700_000_100.0
"""In the day before this time, the keys of the file's tenant `acme` were rotated twice, the fleet's key pair once."""

# The last version that knew only format 1 made these secrets and keys from OLD_FILE.
SECRETS = {
    "acme": [
        "whsec_3prGZuYtif03LrcW30/dnTAzIKA13kODsPvtTaLKROA=",
        "whsec_WFRsLmloa47B798GM8pYSsmHHs45Nbf7tEE5tgeI6R4=",
        "whsec_1YwCCW9xKfVdkRuuhj/qu0csvnzfilr8hwjuRTQ9q3I=",
    ],
    "default": ["whsec_MFRNuhZOMZvsyNUTv6uAmaFgJJ7yW8D4Rrh4bLx5HJ4="],
    "victim": ["whsec_rIvkdzjT7YtgbFTK993Rq6Arz7vgHLKETUuUI5btq88="],
}
SIGNING_KEYS = [
    "whsk_QEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBnenTZZOSoT/pQJai1U3tcSjetbRRuhUeDrHNGhKIHxA==",
    "whsk_ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8prLrhQbzK8LIuGpTTTQvHNh5SbQv+EsiXlLyTIpZt1w==",
]
PUBLIC_KEYS = [public_key_of(key) for key in SIGNING_KEYS]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    copy = Path(shutil.copy(OLD_FILE, tmp_path / "keyring.json"))
    copy.chmod(0o600)
    return copy


@pytest.fixture
def keyring(path: Path) -> Keyring:
    return Keyring.load(path)


def secrets_of(keyring: Keyring, now: float = NOW) -> dict[str, list[str]]:
    return {tenant: keyring.secrets(tenant, now) for tenant in SECRETS}


def xs(keys: JwkSet) -> list[str]:
    return [key["x"] for key in keys["keys"]]


def test_a_keyring_of_format_1_still_signs_for_every_tenant(keyring: Keyring) -> None:
    assert keyring.format == 1
    assert secrets_of(keyring) == SECRETS
    for tenant, secrets in SECRETS.items():
        assert keyring.signing_keys(tenant, NOW) == SIGNING_KEYS
        assert keyring.public_keys(tenant, NOW) == PUBLIC_KEYS
        expected = Signer(secrets, SIGNING_KEYS).sign("msg_1", int(NOW), b"{}")
        assert keyring.signer(tenant, NOW).sign("msg_1", int(NOW), b"{}") == expected


def test_both_pages_hold_the_fleets_keys_so_that_a_consumer_can_change_its_url_before_the_migration(
    keyring: Keyring,
) -> None:
    clock = SetClock(NOW)
    fleet, tenant = fleet_jwks_page(keyring, clock, ""), tenant_jwks_page(keyring, clock, "victim.json")
    assert tenant is not None
    assert fleet.body == tenant.body
    assert len(json.loads(fleet.body)["keys"]) == 2


def test_a_rotation_leaves_the_file_readable_by_the_version_that_made_it(keyring: Keyring, path: Path) -> None:
    keyring.rotate("victim", NOW)
    keyring.rotate_fleet(NOW)
    content = json.loads(path.read_text())
    assert set(content) == {"format", "created_at", "master", "tenants", "fleet"}
    assert content["format"] == 1
    assert all(set(versions) == {"version", "retiring"} for versions in content["tenants"].values())
    assert all(set(one) == {"version", "until"} for one in content["tenants"]["acme"]["retiring"])
    assert all(set(key) == {"seed", "until"} for key in content["fleet"])


def test_a_rotated_fleet_key_signs_beside_the_new_one_for_a_day(keyring: Keyring) -> None:
    assert keyring.rotate_fleet(NOW) == NOW + OVERLAP_SECONDS
    new, *kept = keyring.public_keys("acme", NOW)
    assert kept == PUBLIC_KEYS
    assert keyring.public_keys("zoo", NOW + OVERLAP_SECONDS) == [new]
    assert keyring.rotate_fleet(NOW, overlap_seconds=0) == NOW
    assert len(keyring.signing_keys("acme", NOW)) == 1
    assert secrets_of(keyring) == SECRETS


def test_a_reload_is_logged_with_the_public_keys_that_sign_now(
    keyring: Keyring, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keyring.follow(NOW)
    with caplog.at_level("INFO", logger="postback"):
        Keyring.load(path).rotate_fleet(NOW)
        keyring.follow(NOW + 2)
        keyring.follow(NOW + 4)
    [record] = caplog.records
    assert "keyring-reloaded" in record.getMessage()
    kids = [key["kid"] for key in keyring.fleet_jwks(NOW)["keys"]]
    assert len(kids) == 3
    assert all(kid in record.getMessage() for kid in kids)


@pytest.mark.parametrize("damage", [{"master": None}, {"master": "c2hvcnQ="}, {"fleet": []}, {"format": 2}])
def test_a_damaged_keyring_of_format_1_is_refused_without_showing_its_content(
    path: Path, damage: dict[str, object]
) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **damage}))
    with pytest.raises(KeyringUnreadable, match=next(iter(damage))) as refused:
        Keyring.load(path)
    assert content["master"] not in str(refused.value)


def test_an_operation_that_needs_format_2_is_refused_with_the_command_and_changes_nothing(
    keyring: Keyring, path: Path
) -> None:
    before = path.read_bytes()
    for change in (
        lambda: keyring.rotate_master(NOW),
        lambda: keyring.replace_all(NOW),
        lambda: keyring.add_secret("victim", SECRETS["default"][0].replace("M", "N"), NOW),
    ):
        with pytest.raises(KeyringFormatOld, match="postback keys migrate"):
            change()
    assert path.read_bytes() == before


def test_a_migration_keeps_every_secret_and_gives_each_tenant_a_key_pair_of_its_own(
    keyring: Keyring, path: Path
) -> None:
    access = path.stat()
    assert keyring.migrate(NOW) == NOW + MIGRATION_OVERLAP_SECONDS
    assert (keyring.format, secrets_of(keyring)) == (2, SECRETS)
    assert secrets_of(Keyring.load(path), NOW + OVERLAP_SECONDS) == {t: s[:1] for t, s in SECRETS.items()}
    own = {tenant: keyring.public_keys(tenant, NOW) for tenant in SECRETS}
    assert [len(keys) for keys in own.values()] == [3, 1, 1]
    assert len({key for keys in own.values() for key in keys} | set(PUBLIC_KEYS)) == 7
    after = path.stat()
    assert (after.st_uid, after.st_gid, after.st_mode) == (access.st_uid, access.st_gid, access.st_mode)
    assert sorted(path.parent.iterdir()) == [path]


def test_after_a_migration_the_fleets_key_pair_signs_until_the_overlap_ends_or_its_own_end_came(
    keyring: Keyring,
) -> None:
    keyring.migrate(NOW, overlap_seconds=2 * OVERLAP_SECONDS)
    ended = 1_700_086_400.0
    assert keyring.signing_keys("victim", NOW)[1:] == SIGNING_KEYS
    assert keyring.signing_keys("victim", ended)[1:] == SIGNING_KEYS[:1]
    assert len(keyring.fleet_jwks(ended)["keys"]) == 1
    assert keyring.next_change("victim", ended) == NOW + 2 * OVERLAP_SECONDS
    assert len(keyring.signing_keys("victim", NOW + 2 * OVERLAP_SECONDS)) == 1
    assert keyring.fleet_jwks(NOW + 2 * OVERLAP_SECONDS) == {"keys": []}


def test_after_a_migration_a_tenants_set_holds_only_its_own_key(keyring: Keyring) -> None:
    before = xs(keyring.jwks("victim", NOW))
    keyring.migrate(NOW)
    assert xs(keyring.fleet_jwks(NOW)) == before
    assert not set(xs(keyring.jwks("victim", NOW))) & set(before)


def test_migrating_twice_changes_nothing(keyring: Keyring, path: Path) -> None:
    keyring.migrate(NOW)
    before, inode = path.read_bytes(), path.stat().st_ino
    assert keyring.migrate(NOW + 1) is None
    assert (path.read_bytes(), path.stat().st_ino) == (before, inode)


def test_a_migration_that_the_disk_refuses_leaves_the_old_file(
    keyring: Keyring, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeyringUnreadable, match="no space"):
        keyring.migrate(NOW)
    assert path.read_bytes() == OLD_FILE.read_bytes()


def test_a_leaked_fleet_key_pair_can_be_ended_after_the_migration_and_no_new_one_is_made(keyring: Keyring) -> None:
    keyring.migrate(NOW)
    with pytest.raises(KeyringRefused, match="--fleet --leaked"):
        keyring.rotate_fleet(NOW)
    assert len(keyring.fleet_jwks(NOW)["keys"]) == 2
    keyring.rotate_fleet(NOW, overlap_seconds=0)
    assert keyring.fleet_jwks(NOW) == {"keys": []}
    assert len(keyring.signing_keys("victim", NOW)) == 1
