"""The shapes of docs/howto/gpus.md, read by the installed vLLM, which builds only its configuration, without a GPU."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from math import prod
from pathlib import Path
from typing import Any

import pytest

from scripts.play.model import tiny_model
from workers.engines.vllm.arguments import engine_arguments, prepare_environment
from workers.engines.vllm.settings import VllmSettings

# vLLM imports torch, which warns of its own old functions.
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1_200), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

PAGE = (Path(__file__).parents[2] / "docs" / "howto" / "gpus.md").read_text()
SIZES = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
SHAPES = re.findall(r"^\| [^|]+ \| [^|]+ \| `vllm` \| (\d+) \| `?(\{.*\}|not set)`? \|$", PAGE, re.MULTILINE)
SERVERS = re.findall(r"^vllm serve (.*)$", PAGE, re.MULTILINE)
DENSE = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 8,
    "num_hidden_layers": 4,
    "intermediate_size": 64,
    "vocab_size": 512,
    "max_position_embeddings": 512,
    "torch_dtype": "float32",
}
OF_EXPERTS = DENSE | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}


def parallel_config(folder: Path, extra: dict[str, Any]) -> Any:
    """Return vLLM's configuration for a worker with these settings, and a dense model or a model of experts."""
    prepare_environment(str(folder))
    from vllm import AsyncEngineArgs

    shutil.copytree(tiny_model(), folder, dirs_exist_ok=True)
    (folder / "config.json").write_text(json.dumps(OF_EXPERTS if "enable_expert_parallel" in extra else DENSE))
    arguments = engine_arguments(VllmSettings(model=str(folder), extra=extra), {})
    return AsyncEngineArgs(**arguments).create_engine_config().parallel_config


@pytest.mark.parametrize(("gpus", "written"), SHAPES)
def test_vllm_takes_each_shape_and_uses_as_many_gpus_as_the_page_says(gpus: str, written: str, tmp_path: Path) -> None:
    extra = {} if written == "not set" else json.loads(written)
    config = parallel_config(tmp_path, extra)
    assert {size: getattr(config, size) for size in SIZES} == {size: extra.get(size, 1) for size in SIZES}
    assert config.enable_expert_parallel is extra.get("enable_expert_parallel", False)
    assert prod(getattr(config, size) for size in SIZES) == int(gpus)


def test_an_argument_that_vllm_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="tensor_parallel"):
        parallel_config(tmp_path, {"tensor_parallel": 2})


def test_the_page_has_every_shape() -> None:
    assert [int(gpus) for gpus, _ in SHAPES] == [1, 4, 2, 8, 8, 8]
    assert len(SERVERS) == 2


@pytest.mark.parametrize(("rank", "command"), [*enumerate(SERVERS)])
def test_vllm_serve_takes_the_commands_for_several_machines(rank: int, command: str) -> None:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())  # type: ignore[no-untyped-call]
    read = parser.parse_args(shlex.split(command))
    assert (read.nnodes, read.node_rank, read.master_addr, read.headless) == (2, rank, "10.0.0.1", rank == 1)
    assert (read.tensor_parallel_size, read.pipeline_parallel_size) == (8, 2)
