"""LoRA adapters: their ranks from their folders, and the reasons for refusing them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.engines.base import RequestRejected
from workers.engines.vllm.adapters import CONFIG, AdapterRefused, Adapters, rank_of

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "r"]), inner, max_size=3),
    max_leaves=6,
)


def adapter(folder: Path, **config: object) -> str:
    folder.mkdir()
    (folder / CONFIG).write_text(json.dumps(config))
    return str(folder)


def test_the_arguments_have_room_for_all_adapters_that_can_be_used(tmp_path: Path) -> None:
    folders = {f"a{rank}": adapter(tmp_path / f"a{rank}", r=rank) for rank in (4, 17, 513)}
    folders["pattern"] = adapter(tmp_path / "pattern", r=8, rank_pattern={"q_proj": 100})
    arguments = Adapters(folders).arguments()
    assert arguments == {"enable_lora": True, "max_lora_rank": 128, "max_loras": 3, "max_cpu_loras": 3}


def test_a_batch_has_eight_adapters_at_most_and_the_memory_all_of_them(tmp_path: Path) -> None:
    arguments = Adapters({str(n): adapter(tmp_path / str(n), r=1) for n in range(20)}).arguments()
    assert arguments == {"enable_lora": True, "max_lora_rank": 1, "max_loras": 8, "max_cpu_loras": 20}


def test_an_engine_whose_adapters_are_all_refused_has_none(tmp_path: Path) -> None:
    adapters = Adapters({"gone": str(tmp_path / "gone")})
    assert adapters.arguments() == {"enable_lora": False}
    with pytest.raises(RequestRejected, match="adapter: this adapter could not be loaded: its folder does not exist"):
        adapters.requested("gone")


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
