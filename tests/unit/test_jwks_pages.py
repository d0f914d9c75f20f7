"""The pages with public keys: strangers' requests and their answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry.hand_clock import SetClock
from workers.delivery.jwks import fleet_jwks_page, tenant_jwks_page
from workers.delivery.keyring import Keyring

CLOCK = SetClock(1_700_000_000.0)


@pytest.fixture(scope="module")
def keyring(tmp_path_factory: pytest.TempPathFactory) -> Keyring:
    return Keyring.create(tmp_path_factory.mktemp("keys") / "keyring.json", CLOCK)


def test_a_tenants_page_holds_the_public_keys_of_the_file_as_it_is_now(tmp_path: Path) -> None:
    keyring = Keyring.create(tmp_path / "keyring.json", CLOCK)
    before = tenant_jwks_page(keyring, CLOCK, "acme.json")
    Keyring.load(keyring.path).rotate("acme", CLOCK.time())
    page = tenant_jwks_page(keyring, SetClock(CLOCK.time() + 2), "acme.json")
    assert before is not None
    assert page is not None
    keys = json.loads(page.body)["keys"]
    assert keys[1:] == json.loads(before.body)["keys"]
    assert all(set(key) == {"kty", "crv", "x", "kid", "use", "alg"} for key in keys)
    assert (page.content_type, page.max_age_seconds) == ("application/jwk-set+json", 300)


def test_a_new_keyring_has_no_key_for_all_tenants(keyring: Keyring) -> None:
    page = fleet_jwks_page(keyring, CLOCK, "")
    assert (json.loads(page.body), page.max_age_seconds) == ({"keys": []}, 300)


ODD = "acme .json acme.json.json acme.JSON -a.json a%62.json é.json ../acme.json ٣.json"
LONG = ("a" * 64 + ".json", "a" * 100_000 + ".json")


@pytest.mark.parametrize("name", [*ODD.split(), *LONG, "", "a b.json", "acme.json\n", "acme\x00.json"])
def test_a_name_that_is_no_tenants_has_no_page(keyring: Keyring, name: str) -> None:
    assert tenant_jwks_page(keyring, CLOCK, name) is None


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", fullmatch=True), st.text(max_size=80))
def test_every_valid_name_has_a_page_of_the_same_form_and_no_other_text_has_one(
    keyring: Keyring, tenant: str, text: str
) -> None:
    """Every valid name has a page, whether the tenant exists or not, so the pages do not reveal which tenants exist."""
    page = tenant_jwks_page(keyring, CLOCK, f"{tenant}.json")
    assert page is not None
    [key] = json.loads(page.body)["keys"]
    assert key["kid"].startswith(f"{tenant}/1/")
    other = tenant_jwks_page(keyring, CLOCK, text)
    assert other is None or text.endswith(".json")
