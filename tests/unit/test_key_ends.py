"""The ends of keys that `postback keys show` prints: each key signs just before its end, and not at it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from math import inf
from pathlib import Path

import pytest

from schemas.signature import generate_secret, public_key_of
from telemetry.hand_clock import HandClock
from tests.postback_command import environment_of, postback_here
from workers.delivery.keyring import Keyring

NOW = 1_700_000_000.0
OLD_FILE = Path(__file__).parent / "data" / "keyring_format_1.json"


def unchanged(_: Keyring) -> None: ...


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


def migrated(keyring: Keyring) -> None:
    keyring.migrate(NOW - 50, 3600)


def kept(path: Path, change: Callable[[Keyring], None], *, old: bool) -> Keyring:
    if old:
        shutil.copy(OLD_FILE, path)
        path.chmod(0o600)
    keyring = Keyring.load(path) if old else Keyring.create(path, HandClock())
    change(keyring)
    return keyring


@pytest.mark.parametrize(
    ("change", "old"),
    [
        *((unchanged, False), (rotated, False), (imported, False), (imported_as_derived, False)),
        *((unchanged, True), (migrated, True)),
    ],
)
def test_each_key_signs_until_its_end(tmp_path: Path, change: Callable[[Keyring], None], old: bool) -> None:
    keyring = kept(tmp_path / "keyring.json", change, old=old)
    ends = keyring.key_ends("acme", NOW)
    assert list(ends.secrets) == keyring.secrets("acme", NOW)
    assert [*ends.public_keys, *ends.fleet_keys] == [public_key_of(key) for key in keyring.signing_keys("acme", NOW)]
    for secret, end in ends.secrets.items():
        assert secret in keyring.secrets("acme", min(end - 1, NOW + 10**9))
        assert end == inf or secret not in keyring.secrets("acme", end)
    for key, end in {**ends.public_keys, **ends.fleet_keys}.items():
        signing = [public_key_of(one) for one in keyring.signing_keys("acme", min(end - 1, NOW + 10**9))]
        assert key in signing
        assert end == inf or key not in [public_key_of(one) for one in keyring.signing_keys("acme", end)]
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
