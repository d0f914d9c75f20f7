"""Changes of a running engine's LoRA adapters: which are loaded, served and unloaded, and when."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.drawn import drawn
from workers.engines.base import EngineAway, EngineError, EngineRefused, EngineUnavailable, RequestRejected
from workers.engines.vllm import adapters as module
from workers.engines.vllm.adapter_files import CONFIG
from workers.engines.vllm.adapters import Adapters
from workers.engines.vllm.changes import change
from workers.engines.vllm.guardian import Guardian
from workers.engines.vllm.settings import VllmSettings


class Llm:
    """vLLM's side: the adapters in its memory, by number, and the calls in their order."""

    def __init__(self, max_lora_rank: int | None = 16, max_cpu_loras: int = 128) -> None:
        room = SimpleNamespace(max_lora_rank=max_lora_rank, max_cpu_loras=max_cpu_loras)
        self.vllm_config = SimpleNamespace(lora_config=room if max_lora_rank is not None else None)
        self.errored = False
        self.held: dict[int, str] = {}
        self.calls: list[str] = []
        self.broken: set[str] = set()
        self.dies_at: str | None = None

    async def add_lora(self, request: tuple[str, int, str]) -> None:
        name, number, folder = request
        self.calls.append(f"add {name}")
        if Path(folder).name == self.dies_at:
            self.errored = True
            await asyncio.Event().wait()  # vLLM never answers
        self.held[number] = name
        if Path(folder).name in self.broken:
            raise ValueError(f"{folder}: no weights for {name}")

    async def remove_lora(self, number: int) -> bool:
        self.calls.append(f"remove {self.held.get(number)}")
        return self.held.pop(number, None) is not None


@pytest.fixture(autouse=True)
def _plain_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "lora_request", lambda name, number, folder: (name, number, folder))


class Engine:
    """The adapters of an engine; a test starts the engine with some adapters and then changes them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.llm = Llm()
        self.settings = VllmSettings(model="acme/small")
        self.adapters = Adapters({})

    def made(self, name: str, rank: int = 8) -> str:
        (self.folder / name).mkdir(exist_ok=True)
        (self.folder / name / CONFIG).write_text(json.dumps({"r": rank}))
        return str(self.folder / name)

    async def start(self, **folders: str) -> None:
        self.settings = self.settings.model_copy(update={"adapters": folders})
        self.adapters = Adapters(folders)
        self.adapters.arguments(self.settings)
        await self.adapters.add(self.llm)
        self.llm.calls.clear()

    async def change(self, model: str = "acme/small", **folders: str) -> None:
        new = self.settings.model_copy(update={"adapters": folders, "model": model})
        lock = asyncio.Lock()
        self.settings = await change(self.llm, self.settings, new, self.adapters, Guardian(), lock)

    def state(self) -> tuple[object, ...]:
        return self.adapters.names, dict(self.llm.held), self.settings

    def asked(self, name: str) -> str:
        with self.adapters.in_use(name) as request:
            return str(request[0])

    async def unloaded(self) -> list[str]:
        """Return the calls since the start, once all removed adapters are unloaded."""
        await self.adapters.all_left()
        return self.llm.calls


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    found = Engine(tmp_path)
    yield found
    found.adapters.close()


@pytest.mark.parametrize(
    ("before", "after", "calls"),
    [
        ({"a": "a"}, {"a": "a", "b": "b"}, ["add b#2"]),
        ({"a": "a", "b": "b"}, {"b": "b"}, ["remove a#1"]),
        ({"a": "a", "b": "b"}, {"b": "b", "a": "a"}, []),
        ({"a": "a"}, {"a": "b"}, ["add a#2", "remove a#1"]),
        ({"a": "a"}, {"b": "a"}, ["add b#2", "remove a#1"]),
        ({"a": "a", "b": "b"}, {"a": "b", "b": "a"}, ["add a#3", "add b#4", "remove a#1", "remove b#2"]),
        ({"a": "a"}, {}, ["remove a#1"]),
        ({}, {"a": "a", "b": "b"}, ["add a#1", "add b#2"]),
    ],
    ids=str,
)
async def test_a_change_of_the_file_loads_new_adapters_first_and_unloads_removed_ones_last(
    engine: Engine, before: dict[str, str], after: dict[str, str], calls: list[str]
) -> None:
    await engine.start(**{name: engine.made(folder) for name, folder in before.items()})
    await engine.change(**{name: engine.made(folder) for name, folder in after.items()})
    assert await engine.unloaded() == calls
    assert engine.adapters.names == tuple(after)
    assert sorted(engine.llm.held.values()) == sorted(map(engine.asked, after))
    for name in before.keys() - after.keys():
        with pytest.raises(RequestRejected, match="no adapter of this name"):
            engine.asked(name)


async def test_a_running_job_keeps_its_version_in_memory_and_a_later_job_gets_the_new_one(engine: Engine) -> None:
    await engine.start(a=engine.made("a"))
    with engine.adapters.in_use("a") as first, engine.adapters.in_use("a"):
        await engine.change(a=engine.made("b"))
        assert (first[:2], engine.asked("a")) == (("a#1", 1), "a#2")
        for _ in range(20):
            await asyncio.sleep(0)
        assert engine.llm.held == {1: "a#1", 2: "a#2"}
    assert await engine.unloaded() == ["add a#2", "remove a#1"]
    assert engine.llm.held == {2: "a#2"}


@pytest.mark.parametrize(
    ("rank", "broken", "why"),
    [
        (
            8,
            True,
            "the adapter bad cannot be loaded: bad: no weights for bad; mend its folder, and save the file again",
        ),
        (
            17,
            False,
            "bad cannot be loaded: its rank is 17, and the engine has room for 16; restart the worker, w",
        ),
        (0, False, "bad cannot be loaded: its adapter_config.json has an `r` .* from 1 on; mend its folder, and save"),
        (None, False, "bad cannot be loaded: its folder does not exist, or may not be read; mend its folder, and save"),
    ],
)
async def test_an_adapter_that_cannot_be_loaded_leaves_all_else_as_it_was(
    engine: Engine, rank: int | None, broken: bool, why: str
) -> None:
    await engine.start(a=engine.made("a"), b=engine.made("b"))
    before = engine.state()
    folder = engine.made("bad", rank) if rank is not None else str(engine.folder / "bad")
    engine.llm.broken = {"bad"} if broken else set()
    with pytest.raises(EngineRefused, match=why) as refused:
        await engine.change(a=engine.made("c"), good=engine.made("good"), bad=folder)
    assert str(engine.folder) not in str(refused.value)
    await engine.unloaded()
    assert engine.state() == before
    assert (engine.asked("a"), engine.asked("b")) == ("a#1", "b#2")


async def test_an_adapter_whose_load_fails_at_the_start_keeps_no_place_and_its_jobs_are_rejected(
    engine: Engine,
) -> None:
    engine.llm.broken = {"bad"}
    await engine.start(bad=engine.made("bad"), a=engine.made("a"))
    assert (engine.llm.held, engine.adapters.names) == ({2: "a#2"}, ("a",))
    with pytest.raises(RequestRejected, match="could not be loaded: bad: no weights for bad"):
        engine.asked("bad")
    await engine.change(bad=engine.made("good"), a=engine.made("a"))
    assert await engine.unloaded() == ["add bad#3"]


async def test_the_folder_of_an_unknown_user_is_refused_like_a_missing_one(engine: Engine) -> None:
    """For an unknown user's path, Python raises a RuntimeError, which would end the worker if it were not caught."""
    nowhere = "~no-such-user/law"
    await engine.start(bad=nowhere, a=engine.made("a"))
    assert engine.adapters.names == ("a",)
    with pytest.raises(EngineRefused, match="new cannot be loaded: its folder does not exist"):
        await engine.change(bad=nowhere, a=engine.made("a"), new=nowhere)
    assert engine.adapters.names == ("a",)


async def test_a_mended_adapter_is_loaded_when_the_file_is_saved_again(engine: Engine) -> None:
    await engine.start(a=engine.made("a"))
    with pytest.raises(EngineRefused, match="b cannot be loaded"):
        await engine.change(a=engine.made("a"), b=str(engine.folder / "b"))
    await engine.change(a=engine.made("a"), b=engine.made("b"))
    assert engine.adapters.names == ("a", "b")


async def test_an_engine_without_room_for_adapters_says_that_a_restart_is_needed(engine: Engine) -> None:
    engine.llm = Llm(max_lora_rank=None)
    with pytest.raises(EngineRefused, match=r"no room for adapters; restart the worker, with POSTBACK_.*_RANK"):
        await engine.change(a=engine.made("a"))
    assert engine.state() == ((), {}, VllmSettings(model="acme/small"))


async def test_vllm_s_memory_holds_each_adapter_and_is_not_exceeded(engine: Engine) -> None:
    """If vLLM's memory for adapters is full, vLLM evicts one of them.

    At the next request for an evicted adapter, vLLM reads the adapter's folder again.
    """
    engine.llm = Llm(max_cpu_loras=3)
    await engine.start(a=engine.made("a"), b=engine.made("b"))
    with engine.adapters.in_use("a"):
        await engine.change(a=engine.made("c"), b=engine.made("b"))
        with pytest.raises(EngineRefused, match=r"would hold 4 adapters, .* and has room for 3; save the file again"):
            await engine.change(a=engine.made("c"), b=engine.made("d"))
    await engine.unloaded()
    await engine.change(a=engine.made("c"), b=engine.made("d"))
    await engine.unloaded()
    assert sorted(engine.llm.held.values()) == ["a#3", "b#5"]


async def test_an_engine_that_dies_in_a_change_is_loaded_again_with_its_former_adapters(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.engines.vllm.calls.DEATH_LOOK_SECONDS", 0.001)
    await engine.start(a=engine.made("a"))
    engine.llm.dies_at = "b"
    with pytest.raises(EngineUnavailable, match="ended during the change"):
        await engine.change(a=engine.made("b"))
    await engine.unloaded()
    engine.llm = Llm()
    await engine.adapters.add(engine.llm)
    assert (engine.llm.calls, engine.asked("a")) == (["add a#1"], "a#1")


async def test_weights_and_adapters_are_not_changed_at_once_and_an_engine_that_is_away_changes_nothing(
    engine: Engine,
) -> None:
    await engine.start(a=engine.made("a"))
    with pytest.raises(EngineRefused, match="at once; save one change, then the other"):
        await engine.change(model="acme/large", a=engine.made("b"))
    engine.llm = None  # type: ignore[assignment] # the engine is away
    with pytest.raises(EngineAway, match="the engine is away"):
        await engine.change(a=engine.made("b"))
    assert engine.asked("a") == "a#1"


NAMES = ("a", "b", "c")
FILES = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(("1", "2", "3", "missing", "broken")), max_size=3)


@settings(max_examples=drawn(60))
@given(st.lists(st.tuples(FILES, st.sampled_from(NAMES)), max_size=6), st.booleans())
def test_after_any_files_the_memory_has_the_adapters_of_the_last_usable_one(
    files: list[tuple[dict[str, str], str]], jobs_end: bool
) -> None:
    async def walk(folder: Path) -> None:
        engine = Engine(folder)
        engine.llm.broken = {"broken"}
        for name in ("1", "2", "3", "broken"):
            engine.made(name)
        await engine.start()
        usable: dict[str, str] = {}
        running: list[tuple[Any, Any]] = []
        for content, asked in files:
            try:
                await engine.change(**{name: str(folder / each) for name, each in content.items()})
                usable = content
            except EngineError:
                assert {"missing", "broken"} & {*content.values()}
            assert {*engine.adapters.names} == {*usable}
            if asked in usable:
                job = engine.adapters.in_use(asked)
                request = job.__enter__()
                assert Path(request[2]).name == usable[asked]
                running.append((job, request))
            await asyncio.sleep(0)
            assert {request[1] for _, request in running} <= {*engine.llm.held}
        for job, _ in running if jobs_end else reversed(running):
            job.__exit__(None, None, None)
        await engine.unloaded()
        assert sorted(engine.llm.held.values()) == sorted(map(engine.asked, usable))

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(walk(Path(folder)))
