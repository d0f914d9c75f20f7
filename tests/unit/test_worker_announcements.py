"""Workers' announcements of models, their readers, and `submit`'s warning about a model without a worker."""

from __future__ import annotations

import asyncio
import json
import re
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.send.job_warnings import warn_of_unserved
from producers import workers
from producers.errors import BrokerUnreachable
from producers.scan import Stored, StoredPlace
from producers.workers import Announced, live_workers
from schemas.job import Job
from schemas.settings import KafkaSettings
from schemas.worker import (
    LONGEST_ANSWER_SECONDS,
    MAX_MODELS,
    InvalidAnnouncement,
    WorkerAnnouncement,
    announcement,
    read_announcement,
    worker_key,
    write_announcement,
)
from telemetry.clock import SystemClock
from telemetry.hand_clock import SetClock
from workers.inference.announcer import Announcer
from workers.inference.observed import KEPT, AnswerTimes
from workers.inference.routing import Registry, UnknownModel

SINCE = 1_000
WHOLE = {"replica": "w1", "models": ["echo"], "at": 1}
NAMES = st.from_regex(r"\A[\x21-\x7e]{1,256}\Z")
KEYS = (st.none() | st.just(b"w1") | st.binary(max_size=9)).filter(lambda key: key != b"w2")
THINGS = (
    st.none()
    | st.integers()
    | st.floats()
    | st.text(max_size=9)
    | st.lists(st.text(max_size=3) | st.none(), max_size=3)
)
NOISE = st.binary(max_size=60) | st.dictionaries(
    st.sampled_from([*WHOLE, "lane", "more", "adapters", "answer_seconds"]), THINGS
).map(lambda changed: json.dumps(WHOLE | changed).encode())


def stored(value: bytes | None, key: bytes | None = b"w1", at_ms: int = SINCE) -> Stored:
    return Stored("fleet_workers", StoredPlace(0, 0), at_ms, key, value, [])


def said(replica: str = "w1", *models: str, at: int = 0) -> bytes:
    return write_announcement(announcement(replica, None, models, at))


@given(KEYS, NOISE)
def test_a_record_of_any_bytes_is_an_announcement_or_says_that_it_is_none(key: bytes | None, value: bytes) -> None:
    try:
        read = read_announcement(key, value)
    except InvalidAnnouncement:
        return
    assert key == worker_key(read.replica)


@given(st.lists(st.tuples(KEYS, st.none() | NOISE)))
def test_records_of_any_bytes_hide_no_worker_that_announces_itself(
    noise: list[tuple[bytes | None, bytes | None]],
) -> None:
    records = [stored(value, key) for key, value in noise]

    found = live_workers([*records, stored(said("w2", "big"), b"w2"), *records], SINCE)

    assert [worker.models for worker in found if worker.replica == "w2"] == [("big",)]


@given(st.lists(NAMES | st.text(max_size=300), max_size=20), st.sampled_from([0, MAX_MODELS - 5]))
def test_an_announcement_can_be_read_whatever_its_models_are_called_and_however_many_there_are(
    names: list[str], before: int
) -> None:
    made = announcement("w1", "gpu", [*(f"m{number}" for number in range(before)), *names], 7)

    assert read_announcement(b"w1", write_announcement(made)) == made
    possible = {name for name in names if re.fullmatch(r"[\x21-\x7e]{1,256}", name)}
    assert made.more or possible <= set(made.models)
    assert len(made.models) <= MAX_MODELS
    tuned = announcement("w1", "gpu", [], 7, adapters=[*(f"m{number}" for number in range(before)), *names])
    assert read_announcement(b"w1", write_announcement(tuned)) == tuned
    assert (tuned.adapters, tuned.more) == (made.models, made.more)


@given(st.none() | st.floats(0, 1e12))
def test_an_announcement_can_be_read_however_long_the_worker_s_answers_take(seconds: float | None) -> None:
    made = announcement("w1", None, ["echo"], 7, answer_seconds=seconds)

    assert read_announcement(b"w1", write_announcement(made)).answer_seconds == made.answer_seconds
    assert made.answer_seconds == (seconds if seconds is None else min(seconds, LONGEST_ANSWER_SECONDS))


@given(st.lists(st.floats(0, 1e9), max_size=2 * KEPT), st.randoms())
def test_a_hundredth_of_the_last_answers_took_longer_than_their_99th_percentile(
    earlier: list[float], chance: Random
) -> None:
    times, last = AnswerTimes(), [float(number) for number in range(1, KEPT + 1)]
    assert times.p99() is None
    for seconds in earlier:
        times.add(seconds)
    assert times.p99() in earlier or not earlier

    chance.shuffle(last)
    for seconds in last:
        times.add(seconds)
    assert times.p99() == 0.99 * KEPT


def test_of_few_answers_the_longest_counts() -> None:
    times = AnswerTimes()
    for seconds in (3.0, 7.0, 5.0):
        times.add(seconds)

    assert times.p99() == 7.0


def test_a_worker_counts_by_the_time_of_its_last_record_until_it_withdraws() -> None:
    records = [
        stored(said("w1", "old", at=2**40), at_ms=SINCE - 1),
        stored(said("w2", "new"), b"w2"),
        stored(said("w2", "newer"), b"w2"),
        stored(said("w3", "ended"), b"w3"),
        stored(None, b"w3"),
        stored(said("w4", "of another"), b"w5"),
    ]

    assert [(worker.replica, worker.models) for worker in live_workers(records, SINCE)] == [("w2", ("newer",))]


@given(st.lists(NAMES, max_size=3), st.dictionaries(NAMES, st.sampled_from([None, "gpu"]), max_size=3), NAMES)
def test_a_worker_announces_only_models_that_it_routes_and_never_the_path_of_a_folder(
    served: list[str], models: dict[str, str | None], asked: str
) -> None:
    registry = Registry((*served, "/private/place"), None, models)

    def is_routed(name: str) -> bool:
        try:
            registry.route(name, None)
        except UnknownModel:
            return False
        return True

    assert all(map(is_routed, registry.announced))
    assert {*served[:1], *models} <= set(registry.announced)
    assert {name for name in served if "/" not in name} <= set(registry.announced)
    assert is_routed(asked) or asked not in registry.announced
    assert not served or "/private/place" in (*served, *models) or "/private/place" not in registry.announced


async def test_a_worker_whose_broker_is_away_is_neither_ended_nor_unready_nor_kept_from_ending() -> None:
    nowhere = KafkaSettings(bootstrap_servers="127.0.0.1:1")
    announcer = Announcer(nowhere, "w1", None, lambda: ["echo"], list, AnswerTimes().p99, SystemClock())
    await announcer.close()  # the announcer has not announced anything yet
    running = asyncio.create_task(announcer.ended())
    await asyncio.wait([running], timeout=1.5)

    assert (running.done(), announcer.alive, announcer.reasons()) == (False, True, [])
    running.cancel()
    async with asyncio.timeout(60):
        await announcer.close()


def warnings(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    announced: Announced | Exception | None,
    *models: str | None,
    checking: bool = True,
    adapter: str | None = None,
) -> list[str]:
    def answer(settings: KafkaSettings) -> Announced | None:
        if isinstance(announced, Exception):
            raise announced
        return announced

    monkeypatch.setattr(workers, "announced_models", answer)
    jobs = [(number, Job(prompt="q", model_id=model, adapter=adapter)) for number, model in enumerate(models, 1)]
    warn_of_unserved(jobs, KafkaSettings(), checking=checking)
    return [line.removeprefix("postback: ") for line in capsys.readouterr().err.splitlines()]


def test_each_model_that_no_worker_announces_is_named_once_with_its_lines_and_the_fix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models = ["gpt-4o-mini", None, "echo", *["gpt-4o-mini"] * 3, "<b>" + "x" * 200]

    first, second = warnings(monkeypatch, capsys, Announced(("small", "echo"), more=False), *models)

    assert first == (
        'lines 1, 4, 5 and 1 more: model: no worker announces "gpt-4o-mini"; those that run now announce "small", '
        '"echo": send with --model any or one of these, or have the operator add an alias to POSTBACK_WORKER__MODELS '
        "or the registry"
    )
    assert second.startswith(f'line 7: model: no worker announces "?b?{"x" * 61}…"; ')


@pytest.mark.parametrize(
    ("adapters", "expected"),
    [
        (("law", "art"), None),
        (("art",), 'lines 1, 2: adapter: no worker announces "law"; those that run now announce "art": name one of'),
        ((), 'lines 1, 2: adapter: no worker announces "law"; those that run now announce none: name one of'),
    ],
)
def test_an_adapter_that_no_worker_announces_is_named_with_its_lines_and_the_fix(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    adapters: tuple[str, ...],
    expected: str | None,
) -> None:
    announced = Announced(("echo",), more=False, adapters=adapters)
    said = warnings(monkeypatch, capsys, announced, "echo", None, adapter="law")
    assert [line[: len(expected or "")] for line in said] == ([expected] if expected is not None else [])
    unchecked = warnings(monkeypatch, capsys, announced, "echo", None, adapter="law", checking=False)
    assert unchecked == said


@pytest.mark.parametrize(
    ("announced", "why"),
    [
        (None, "no worker of the shared lanes has announced itself within three minutes"),
        (Announced(("echo",), more=True), "a worker has more models or adapters than it announces"),
        (BrokerUnreachable("k:9092"), "no Kafka broker answers at k:9092: "),
    ],
)
def test_if_models_cannot_be_checked_a_check_says_why_and_a_submission_is_silent(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    announced: Announced | Exception | None,
    why: str,
) -> None:
    [line] = warnings(monkeypatch, capsys, announced, "gpt-4o-mini")

    assert line.startswith(f"models were not checked: {why}")
    assert warnings(monkeypatch, capsys, announced, "gpt-4o-mini", checking=False) == []
    assert warnings(monkeypatch, capsys, announced, None) == []


def test_only_the_workers_that_judge_a_submitted_job_count(monkeypatch: pytest.MonkeyPatch) -> None:
    of_an_engine = write_announcement(announcement("w2", "gpu", ["big"], 1))
    found: list[Stored] = [stored(of_an_engine, b"w2", at_ms=10**15)]

    class Reader:
        def __init__(self, *_: object) -> None: ...
        def __enter__(self) -> Reader:
            return self

        def __exit__(self, *_: object) -> None: ...
        def ranges(self, *_: object) -> None: ...
        def read(self, _: object) -> list[Stored]:
            return found

    monkeypatch.setattr(workers, "Scanner", Reader)
    assert workers.announced_models(KafkaSettings(), SetClock()) is None
    found.append(stored(said("w1", "echo"), at_ms=10**15))
    assert workers.announced_models(KafkaSettings(), SetClock()) == Announced(("echo",), more=False)

    tuned = {"w1": (None, ["law"]), "w2": ("gpu", ["art", "law"])}
    for replica, (lane, names) in tuned.items():
        value = write_announcement(announcement(replica, lane, ["echo"], 1, adapters=names))
        found.append(stored(value, worker_key(replica), at_ms=10**15))
    assert workers.announced_models(KafkaSettings(), SetClock()) == Announced(("echo",), False, ("law", "art"))


def test_an_announcement_says_what_the_published_schema_says() -> None:
    assert json.loads(said("w1", "echo", at=3)) == {
        "replica": "w1",
        "models": ["echo"],
        "adapters": [],
        "more": False,
        "at": 3,
    }
    assert WorkerAnnouncement.model_validate(WHOLE).lane is None
