"""The ranks of LoRA adapters, as read from their folders, and the reasons for refusing adapters."""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.safetensors_files import safetensors
from workers.engines.base import RequestRejected
from workers.engines.vllm.adapter_files import CONFIG, WEIGHTS, AdapterRefused, base_tensors, rank_of, require_fit
from workers.engines.vllm.adapters import Adapters
from workers.engines.vllm.settings import VllmSettings

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "r"]), inner, max_size=3),
    max_leaves=6,
)


def adapter(folder: Path, **config: object) -> str:
    folder.mkdir()
    (folder / CONFIG).write_text(json.dumps(config))
    return str(folder)


def arguments(folders: dict[str, str], **settings: int) -> dict[str, object]:
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
    assert arguments({}, **settings) == room
    assert arguments({}) == {"enable_lora": False}


def test_an_adapter_beyond_the_set_rank_is_refused_and_the_others_are_used(tmp_path: Path) -> None:
    folders = {f"a{rank}": adapter(tmp_path / f"a{rank}", r=rank) for rank in (8, 33)}
    adapters = Adapters(folders)
    room = adapters.arguments(VllmSettings(max_lora_rank=20, max_loras=2))
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
