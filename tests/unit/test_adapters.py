"""LoRA adapters: their ranks and files, changes of a running engine, and a model's default."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from telemetry.metrics import Metrics
from tests.any_json import any_json
from tests.asking import request_of
from tests.drawn import drawn
from tests.handlers import CLOCK
from tests.safetensors_files import safetensors
from workers.engines.base import (
    Completion,
    EngineAway,
    EngineError,
    EngineRefused,
    EngineUnavailable,
    GenerationRequest,
    RequestRejected,
)
from workers.engines.echo import EchoEngine, EchoSettings
from workers.engines.models.registry_file import RegistryModel, read_registry
from workers.engines.models.served_model import ServedModel
from workers.engines.registry import engine_settings
from workers.engines.vllm import adapters as module
from workers.engines.vllm.adapters import CONFIG, WEIGHTS, AdapterRefused, Adapters, base_tensors, rank_of, require_fit
from workers.engines.vllm.guardian import Guardian
from workers.engines.vllm.settings import VllmSettings
from workers.engines.vllm.weights import change

# -- adapters --------------------------------------------------------------------------------------------------------
JSON_VALUES = any_json(st.sampled_from(["a", "r"]))


def adapter(folder: Path, **config: object) -> str:
    folder.mkdir()
    (folder / CONFIG).write_text(json.dumps(config))
    return str(folder)


def arguments(folders: dict[str, str], **settings: Any) -> dict[str, object]:
    return Adapters(folders).arguments(VllmSettings(adapters=folders, **settings))


def test_the_arguments_have_room_for_all_adapters_that_can_be_used(tmp_path: Path) -> None:
    folders = {f"a{rank}": adapter(tmp_path / f"a{rank}", r=rank) for rank in (4, 17, 513)}
    folders["pattern"] = adapter(tmp_path / "pattern", r=8, rank_pattern={"q_proj": 100})
    assert arguments(folders) == {"enable_lora": True, "max_lora_rank": 128, "max_loras": 3, "max_cpu_loras": 128}


def test_a_batch_has_eight_adapters_at_most_and_the_memory_all_of_them_twice(tmp_path: Path) -> None:
    folders = {str(n): adapter(tmp_path / str(n), r=1) for n in range(70)}
    assert arguments(folders) == {"enable_lora": True, "max_lora_rank": 1, "max_loras": 8, "max_cpu_loras": 140}


@pytest.mark.parametrize(
    ("settings", "rank", "in_a_batch"),
    [({"max_lora_rank": 20}, 32, 1), ({"max_loras": 3}, 16, 3), ({"max_lora_rank": 512, "max_loras": 64}, 512, 64)],
)
def test_the_settings_reserve_room_in_a_worker_that_starts_without_adapters(
    settings: dict[str, int], rank: int, in_a_batch: int
) -> None:
    room = {"enable_lora": True, "max_lora_rank": rank, "max_loras": in_a_batch, "max_cpu_loras": 128}
    assert arguments({}, extra=settings) == room
    assert arguments({}) == {"enable_lora": False}


def test_an_adapter_beyond_the_set_rank_is_refused_and_the_others_are_used(tmp_path: Path) -> None:
    folders = {f"a{rank}": adapter(tmp_path / f"a{rank}", r=rank) for rank in (8, 33)}
    adapters = Adapters(folders)
    room = adapters.arguments(VllmSettings(extra={"max_lora_rank": 20, "max_loras": 2}))
    assert room == {"enable_lora": True, "max_lora_rank": 32, "max_loras": 2, "max_cpu_loras": 128}
    assert adapters.names == ("a8",)
    with pytest.raises(RequestRejected, match="its rank is 33, and the engine has room for 32"), adapters.in_use("a33"):
        pass


def test_an_engine_whose_adapters_are_all_refused_has_none(tmp_path: Path) -> None:
    adapters = Adapters({"gone": str(tmp_path / "gone")})
    assert adapters.arguments(VllmSettings()) == {"enable_lora": False}
    with (
        pytest.raises(RequestRejected, match="adapter: this adapter could not be loaded: its folder does not exist"),
        adapters.in_use("gone"),
    ):
        pass


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "is no JSON object"),
        (b'{"r": 8}' + b" " * 2**20, "is no JSON object of at most 1048576 bytes"),
        (b"{}", "without a rank"),
        (b'{"r": 0}', "without a rank"),
        (b'{"r": true}', "without a rank"),
        (b'{"r": 8, "rank_pattern": {"q": "8"}}', "without a rank"),
        (b'{"r": 8, "rank_pattern": [8]}', "without a rank"),
        (None, "cannot be read: No such file"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_an_adapter_is_refused_with_the_reason(tmp_path: Path, content: bytes | None, reason: str) -> None:
    if content is not None:
        (tmp_path / CONFIG).write_bytes(content)
    with pytest.raises(AdapterRefused, match=reason):
        rank_of(tmp_path)


def test_a_configuration_that_is_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / CONFIG)
    with pytest.raises(AdapterRefused, match="is not JSON"):
        rank_of(tmp_path)
    with os.fdopen(os.open(tmp_path / CONFIG, os.O_RDWR), "wb"), pytest.raises(AdapterRefused, match="is not JSON"):
        rank_of(tmp_path)


@given(
    st.binary(max_size=64)
    | st.fixed_dictionaries({"r": JSON_VALUES, "rank_pattern": JSON_VALUES}).map(
        lambda value: json.dumps(value).encode()
    )
)
def test_any_configuration_gives_a_rank_or_a_refusal(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / CONFIG).write_bytes(content)
        try:
            assert rank_of(Path(folder)) >= 1
        except AdapterRefused as refused:
            assert folder not in str(refused)


@given(st.text(max_size=300))
@example("x" * 300)
def test_a_folder_of_any_name_has_a_rank_or_is_refused_and_no_error_ends_the_worker(name: str) -> None:
    with tempfile.TemporaryDirectory() as parent:
        for folder in (Path(parent) / name.lstrip("/"), Path(name)):
            with pytest.raises(AdapterRefused):
                rank_of(folder)
            with suppress(AdapterRefused):
                require_fit(folder, BASE)


BASE = {"model.layers.0.q.weight": ("BF16", (64, 32)), "packed.weight": ("U8", (64, 4)), "norm.weight": ("F32", (32,))}


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("model.layers.0.q.lora_A", (8, 32), None),
        ("model.layers.0.q.lora_B", (64, 8), None),
        ("model.layers.0.q.lora_A", (8, 16), "its layer model.layers.0.q has 16 values, and the model's layer has 32"),
        ("model.layers.0.q.lora_B", (65, 8), "its layer model.layers.0.q has 65 values, and the model's layer has 64"),
        ("model.layers.9.q.lora_A", (8, 16), None),
        ("packed.lora_A", (8, 16), None),
        ("norm.lora_A", (8, 16), None),
    ],
)
def test_an_adapter_of_another_model_is_refused_by_the_shapes_that_are_known(
    tmp_path: Path, name: str, shape: tuple[int, int], reason: str | None
) -> None:
    (tmp_path / WEIGHTS).write_bytes(safetensors({f"base_model.model.{name}.weight": ("F32", shape)}))
    require_fit(tmp_path, {})
    if reason is None:
        require_fit(tmp_path, BASE)
        return
    with pytest.raises(AdapterRefused, match=f"trained for another model: {reason}"):
        require_fit(tmp_path, BASE)


def test_a_file_of_weights_that_is_cut_off_is_refused_and_a_model_without_a_folder_has_no_known_shapes(
    tmp_path: Path,
) -> None:
    (tmp_path / WEIGHTS).write_bytes(safetensors({"base_model.model.a.lora_A.weight": ("F32", (8, 16))})[:-1])
    with pytest.raises(AdapterRefused, match=r"its adapter_model\.safetensors is no safetensors file, or is not"):
        require_fit(tmp_path, BASE)
    assert base_tensors(str(tmp_path)) == base_tensors("acme/small") == base_tensors(None) == {}


@given(st.text(max_size=30), st.lists(st.integers(min_value=0, max_value=70), max_size=3))
def test_any_tensors_of_an_adapter_fit_or_are_refused(name: str, shape: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        names = (name, f"base_model.model.{name}.lora_A.weight", "base_model.model.model.layers.0.q.lora_B.weight")
        (Path(folder) / WEIGHTS).write_bytes(safetensors(dict.fromkeys(names, ("F32", shape))))
        try:
            require_fit(Path(folder), BASE)
        except AdapterRefused as refused:
            assert folder not in str(refused)
            assert len(shape) == 2 and shape[0] != 64
        else:
            assert len(shape) != 2 or shape[0] == 64


# -- adapter changes -------------------------------------------------------------------------------------------------
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
    with pytest.raises(
        EngineRefused, match=r"no room for adapters; restart the worker, with `max_lora_rank` in POSTBACK_"
    ):
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
    monkeypatch.setattr("workers.engines.vllm.loading.DEATH_LOOK_SECONDS", 0.001)
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


# -- default adapter -------------------------------------------------------------------------------------------------
ASKED = request_of(prompt="Hello?", max_tokens=16)
FILE = """
[engines.local]
kind = "vllm"
[models.small]
engine = "local"
model = "/models/small"
adapters = { law = "/adapters/law", tax = "/adapters/tax" }
"""


class AdaptedEcho(EchoEngine):
    """Answers with the name of the request's adapter, and has loaded only the adapters `loaded`."""

    def __init__(self, loaded: tuple[str, ...]) -> None:
        super().__init__(EchoSettings(), Metrics())
        self._loaded = loaded

    @property
    def adapters(self) -> tuple[str, ...]:
        return self._loaded

    async def generate(self, request: GenerationRequest) -> Completion:
        return replace(await super().generate(replace(request, adapter=None)), text=str(request.adapter))


def model_of(folder: Path, more: str) -> RegistryModel:
    file = folder / "models.toml"
    file.write_text(FILE + more)
    return read_registry(file, engine_settings()()).models["small"]


def served(model: RegistryModel, *loaded: str) -> ServedModel:
    return ServedModel(model, [AdaptedEcho(loaded)], CLOCK, Metrics())


@pytest.mark.parametrize(
    ("table", "asked", "used"),
    [
        ('adapter = "law"\n', None, "law"),
        ('adapter = "law"\n', "tax", "tax"),
        ("", None, "None"),
        ("", "tax", "tax"),
    ],
)
async def test_a_job_gets_its_own_adapter_or_else_that_of_its_model(
    tmp_path: Path, table: str, asked: str | None, used: str
) -> None:
    small = served(model_of(tmp_path, table), "law", "tax")
    await small.start()
    assert (await small.generate(replace(ASKED, adapter=asked))).text == used
    await small.close()


async def test_a_changed_file_changes_the_default_adapter_of_later_jobs(tmp_path: Path) -> None:
    small = served(model_of(tmp_path, 'adapter = "law"\n'), "law", "tax")
    await small.start()
    small.change(model_of(tmp_path, 'adapter = "tax"\n'))
    assert (await small.generate(ASKED)).text == "tax"
    await small.close()


async def test_a_model_whose_default_adapter_was_not_loaded_does_not_start(tmp_path: Path) -> None:
    model = model_of(tmp_path, 'adapter = "law"\n')
    with pytest.raises(EngineRefused, match="small cannot use its default adapter law"):
        await served(model, "tax").start()
    with pytest.raises(EngineRefused, match="default adapter law"):
        served(model_of(tmp_path, ""), "tax").require_adapter(model)
