"""API keys: their text, their rows, the pepper, and the principal of a request that has one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.access import CredentialRefused, Principal, Scope
from gateway.access.access import Access
from gateway.access.key_text import PATTERN, checksum, id_of, new_key
from gateway.access.keys import KeyDigests, NewKey, create_key, find_key, listed_keys, revoke_key
from gateway.access.pepper import PepperProblem, load_pepper
from gateway.access.recent import Recent
from gateway.access.settings import AccessSettings
from gateway.store.store import Store
from telemetry.hand_clock import SetClock
from tests.postback_command import environment_of, postback_here

PEPPER = b"p" * 32
BASE62 = st.sampled_from("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'store.db'}"


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    opened = Store.open(url)
    yield opened
    opened.close()


@pytest.fixture
def clock() -> SetClock:
    return SetClock(1_700_000_000)


@pytest.fixture
def access(store: Store, clock: SetClock) -> Access:
    return Access(store, KeyDigests(PEPPER), AccessSettings(), clock)


def made(store: Store, clock: SetClock, tenant: str = "acme", **more: object) -> NewKey:
    return store.submit(lambda connection: create_key(connection, KeyDigests(PEPPER), clock, tenant, **more)).result()  # type: ignore[arg-type]


async def principal(access: Access, key: str) -> Principal:
    return await access.principal(access.parsed(f"Bearer {key}"), None)


def test_a_key_has_its_id_256_bits_and_a_checksum() -> None:
    identifier, key = new_key()
    assert PATTERN.fullmatch(key)
    assert key.startswith(f"pk_{identifier}_")
    assert id_of(key) == identifier
    assert len({new_key()[1] for _ in range(100)}) == 100


def test_the_checksum_of_a_known_text_stays_the_same() -> None:
    assert checksum("pk_0000000000000000_" + 43 * "0") == "03uKLv"


@given(place=st.integers(0, 68), other=BASE62)
def test_no_key_with_one_wrong_character_has_an_id(place: int, other: str) -> None:
    _, key = new_key()
    typo = key[:place] + other + key[place + 1 :]
    assert id_of(typo) == (id_of(key) if typo == key else None)


@given(text=st.text(max_size=100) | st.from_regex(PATTERN, fullmatch=True))
def test_noise_is_no_key(text: str) -> None:
    assert id_of(text) is None or text.endswith(checksum(text[:-6]))


async def test_a_key_names_its_tenant_and_scopes(store: Store, access: Access, clock: SetClock) -> None:
    key = made(store, clock, scopes=[Scope.READ])
    assert await principal(access, key.key) == Principal("acme", f"key:{key.id}", "api_key", frozenset({Scope.READ}))
    assert await access.principal(access.parsed(f"bEaReR  {key.key} "), None) == await principal(access, key.key)


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic pk_x", "pk_x", "Bearer pk_", "Bearer x.y.z"])
async def test_a_request_without_a_key_is_refused(header: str | None, access: Access) -> None:
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


async def test_the_id_of_another_key_opens_nothing(store: Store, access: Access, clock: SetClock) -> None:
    first, second = made(store, clock), made(store, clock, "globex")
    start = f"pk_{first.id}_{second.key[20:63]}"
    with pytest.raises(CredentialRefused):
        await principal(access, start + checksum(start))


async def test_a_key_of_another_pepper_is_refused(store: Store, access: Access, clock: SetClock) -> None:
    change = store.submit(lambda connection: create_key(connection, KeyDigests(b"q" * 32), clock, "acme"))
    with pytest.raises(CredentialRefused):
        await principal(access, change.result().key)


async def test_a_key_ends_at_its_expiry(store: Store, access: Access, clock: SetClock) -> None:
    key = made(store, clock, expires_at=int((clock.now + 60) * 1000))
    await principal(access, key.key)
    clock.now += 60
    with pytest.raises(CredentialRefused):
        await principal(access, key.key)


async def test_a_revoked_key_stops_within_the_setting(store: Store, access: Access, clock: SetClock) -> None:
    key = made(store, clock)
    await principal(access, key.key)
    store.submit(lambda connection: revoke_key(connection, clock, key.id)).result()
    clock.now += AccessSettings().key_cache_seconds
    with pytest.raises(CredentialRefused):
        await principal(access, key.key)


async def test_a_key_that_its_own_gateway_revoked_stops_at_once(store: Store, access: Access, clock: SetClock) -> None:
    key = made(store, clock)
    await principal(access, key.key)
    store.submit(lambda connection: revoke_key(connection, clock, key.id)).result()
    access.forget_key(key.id)
    with pytest.raises(CredentialRefused):
        await principal(access, key.key)


async def test_a_known_key_reads_no_database(store: Store, access: Access, clock: SetClock) -> None:
    key = made(store, clock)
    await principal(access, key.key)
    store.close()
    assert (await principal(access, key.key)).tenant == "acme"


def last_use(store: Store, key: NewKey) -> int | None:
    found = store.read_now(lambda connection: find_key(connection, key.id))
    return found[0].last_used_at if found else None


async def test_the_last_use_is_written_seldom(store: Store, access: Access, clock: SetClock) -> None:
    key, uses = made(store, clock), []
    for seconds in (0, 299, 1):
        clock.now += seconds
        await principal(access, key.key)
        # The writer makes changes in order: once this empty change is made, the use is written.
        store.submit(lambda connection: None).result()
        uses.append(last_use(store, key))
    start = 1_700_000_000_000
    assert uses == [start, start, start + 300_000]


async def test_revoking_again_keeps_the_first_time(store: Store, clock: SetClock) -> None:
    key = made(store, clock)
    first = store.submit(lambda connection: revoke_key(connection, clock, key.id)).result()
    clock.now += 60
    assert store.submit(lambda connection: revoke_key(connection, clock, key.id)).result() == first
    assert store.submit(lambda connection: revoke_key(connection, clock, "unknown")).result() is None


def test_keys_are_listed_page_by_page_with_equal_times_too(store: Store, clock: SetClock) -> None:
    ids = [made(store, clock, tenant).id for tenant in ("acme", "globex") * 3]
    seen: list[str] = []
    while page := store.read_now(partial(listed_keys, limit=2, after=seen[-1] if seen else None)):
        seen += [key.id for key in page]
    assert sorted(seen) == sorted(ids)
    assert {key.tenant for key in store.read_now(lambda c: listed_keys(c, "globex"))} == {"globex"}
    assert store.read_now(lambda c: listed_keys(c, after="unknown")) == []


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


async def test_a_value_that_changes_while_it_is_read_is_read_again() -> None:
    answers, gate = iter(["old", "new"]), asyncio.Event()

    async def read(_key: str) -> str:
        answer = next(answers)
        await gate.wait()
        return answer

    recent = Recent(read, 5, SetClock())
    first = asyncio.create_task(recent.get("a"))
    await asyncio.sleep(0)
    recent.forget("a")
    gate.set()
    assert [await recent.get("a"), await first, await recent.get("a")] == ["new", "old", "new"]


async def test_a_failed_reading_is_tried_again() -> None:
    tries = []

    async def read(key: str) -> str:
        tries.append(key)
        if len(tries) == 1:
            raise OSError("away")
        return "here"

    recent = Recent(read, 5, SetClock())
    with pytest.raises(OSError, match="away"):
        await recent.get("a")
    assert await recent.get("a") == "here"


def test_the_pepper_is_made_once_beside_the_database(store: Store, url: str, tmp_path: Path) -> None:
    pepper = load_pepper(store, url, None)
    file = tmp_path / "store.db.pepper"
    assert (file.stat().st_mode & 0o777, len(pepper)) == (0o600, 64)
    assert load_pepper(store, url, None) == load_pepper(store, url, file) == pepper
    assert [path.name for path in tmp_path.glob("*pepper*")] == [file.name]


def test_a_lost_or_foreign_pepper_is_noticed_at_the_start(store: Store, url: str, tmp_path: Path) -> None:
    load_pepper(store, url, None)
    (tmp_path / "store.db.pepper").unlink()
    with pytest.raises(PepperProblem, match="restore the file"):
        load_pepper(store, url, None)
    other = tmp_path / "other"
    other.write_bytes(PEPPER)
    other.chmod(0o600)
    with pytest.raises(PepperProblem, match="not the one"):
        load_pepper(store, url, other)


@pytest.mark.parametrize(("content", "mode"), [(b"short", 0o600), (b"", 0o600), (PEPPER, 0o644), (b"x" * 5000, 0o600)])
def test_an_unusable_pepper_is_refused(content: bytes, mode: int, store: Store, url: str, tmp_path: Path) -> None:
    file = tmp_path / "pepper"
    file.write_bytes(content)
    file.chmod(mode)
    with pytest.raises(PepperProblem):
        load_pepper(store, url, file)


def test_a_database_without_a_folder_needs_the_setting(store: Store, tmp_path: Path) -> None:
    with pytest.raises(PepperProblem, match="POSTBACK_ACCESS__PEPPER_FILE"):
        load_pepper(store, "postgresql+psycopg://localhost/postback", None)
    with pytest.raises(PepperProblem, match="cannot be made"):
        load_pepper(store, "sqlite://", Path("/proc/none/pepper"))
    assert len(load_pepper(store, "postgresql+psycopg://localhost/postback", tmp_path / "new" / "pepper")) == 64


def test_the_command_creates_lists_and_revokes_keys(url: str) -> None:
    env = environment_of(POSTBACK_STORE__URL=url)
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


@pytest.mark.parametrize(
    "options",
    [("--tenant", "-x"), ("--scopes", "read,all"), ("--scopes", ""), ("--expires", "soon"), ("--label", "x" * 257)],
)
def test_the_command_refuses_wrong_options(options: tuple[str, str], url: str) -> None:
    done = postback_here(
        "api-keys", "create", "--tenant", "acme", *options, env=environment_of(POSTBACK_STORE__URL=url)
    )
    assert (done.returncode, done.stdout) == (2, "")


def test_the_command_names_a_store_that_is_away() -> None:
    env = environment_of(POSTBACK_STORE__URL="sqlite:////proc/none/store.db")
    done = postback_here("api-keys", "list", env=env)
    assert done.returncode == 1
    assert "POSTBACK_STORE__URL" in done.stderr
