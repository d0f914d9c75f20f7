"""The comparison of two models' folders, before a running engine gets new weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.safetensors_files import safetensors
from workers.engines.base import EngineRefused
from workers.engines.vllm.tensors import header_of
from workers.engines.vllm.weights import require_same_model

TENSORS = {"embed": ("F32", [4, 2]), "head": ("F32", [2, 4])}
CONFIG = {"model_type": "llama", "hidden_size": 2}


def model(folder: Path, **files: bytes) -> Path:
    folder.mkdir()
    written = {
        "config.json": json.dumps({**CONFIG, "_name_or_path": str(folder)}).encode(),
        "tokenizer.json": b'{"model": {}}',
        "chat_template.jinja": b"{{ messages }}",
        "model.safetensors": safetensors(TENSORS),
        "README.md": str(folder).encode(),
        **{name.replace("__", "."): content for name, content in files.items()},
    }
    for name, content in written.items():
        (folder / name).write_bytes(content)
    return folder


def test_folders_that_differ_only_in_the_values_of_their_tensors_hold_the_same_model(tmp_path: Path) -> None:
    one = model(tmp_path / "one")
    shards = {f"s{number}__safetensors": safetensors({name: TENSORS[name]}) for number, name in enumerate(TENSORS)}
    other = model(tmp_path / "two", **shards, model__safetensors__index__json=b'{"weight_map": {}}')
    (other / "model.safetensors").unlink()
    require_same_model(one, other)
    require_same_model(one, model(tmp_path / "three", model__safetensors=safetensors(TENSORS, b"\7")))


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"config__json": b'{"model_type": "llama", "hidden_size": 4}'}, r"config\.json of the new folder differs"),
        ({"config__json": b"{"}, r"config\.json cannot be read"),
        ({"tokenizer__json": b'{"model": {"vocab": {}}}'}, r"tokenizer\.json of the new folder differs"),
        ({"chat_template__jinja": b"{{ messages[0] }}"}, r"chat_template\.jinja of the new folder differs"),
        ({"generation_config__json": b"{}"}, r"generation_config\.json of the new folder differs"),
        ({"model__safetensors": safetensors({**TENSORS, "head": ("F32", [4, 2])})}, "the tensor head has another"),
        ({"model__safetensors": safetensors({**TENSORS, "head": ("BF16", [2, 4])})}, "the tensor head has another"),
        ({"model__safetensors": safetensors({"embed": ("F32", [4, 2])})}, "the tensor head .* missing there"),
        ({"model__safetensors": safetensors(TENSORS)[:-1]}, r"model\.safetensors is no .* not complete"),
        ({"model__safetensors": safetensors({"embed": ("F32", [float("inf")])})}, r"model\.safetensors is no safet"),
        ({"model__safetensors": b""}, r"model\.safetensors is no safetensors file"),
    ],
)
def test_each_other_difference_is_named(tmp_path: Path, files: dict[str, bytes], why: str) -> None:
    with pytest.raises(EngineRefused, match=why):
        require_same_model(model(tmp_path / "one"), model(tmp_path / "two", **files))


def test_a_model_that_is_no_folder_or_has_no_safetensors_needs_a_restart(tmp_path: Path) -> None:
    one, other = model(tmp_path / "one"), model(tmp_path / "two")
    with pytest.raises(EngineRefused, match="only from a folder to a folder"):
        require_same_model(one, tmp_path / "missing")
    with pytest.raises(EngineRefused, match=r"cannot be read \(File name too long\)"):
        require_same_model(one, tmp_path / ("x" * 300))
    (other / "model.safetensors").unlink()
    with pytest.raises(EngineRefused, match="no safetensors files"):
        require_same_model(one, other)


@pytest.mark.parametrize(("more", "is_read"), [(0, True), (1, False)])
def test_a_header_that_would_fill_the_memory_is_not_read(tmp_path: Path, more: int, *, is_read: bool) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(_file(b"{}" + b" " * (32 * 1024 * 1024 - 2 + more)))
    if is_read:
        assert header_of(path) == {}
        return
    with pytest.raises(
        EngineRefused, match=r"^model\.safetensors has a header of 33554433 bytes, and at most 33554432"
    ):
        header_of(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "dtype", "shape"]), inner),
    max_leaves=8,
)


@given(st.binary(max_size=200) | json_values.map(lambda value: _file(json.dumps(value).encode())))
def test_a_file_of_any_content_has_a_header_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(content)
    try:
        header_of(path)
    except EngineRefused as refused:
        assert str(refused) == "any.safetensors is no safetensors file, or is not complete"


def _file(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header
