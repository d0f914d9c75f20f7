"""Each model family's row, and the names in it that vLLM must know."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from workers.engines.families import are_read_by, families, family_of

NAMES = {
    "deepseek-v3": ("deepseek-ai/DeepSeek-V3", "deepseek-ai/DeepSeek-V3-0324"),
    "deepseek-v3-1": ("deepseek-ai/DeepSeek-V3.1", "deepseek-ai/DeepSeek-V3.1-Terminus"),
    "deepseek-r1": ("deepseek-ai/DeepSeek-R1", "deepseek-ai/DeepSeek-R1-0528"),
    "deepseek-r1-distill": ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"),
    "deepseek-v3-2": ("deepseek-ai/DeepSeek-V3.2", "deepseek-ai/DeepSeek-V3.2-Exp"),
    "deepseek-v4": ("deepseek-ai/DeepSeek-V4",),
    "llama-2": ("meta-llama/Llama-2-7b-chat-hf",),
    "llama-3": ("meta-llama/Meta-Llama-3-8B-Instruct", "meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.3-70B-Instruct"),
    "llama-4": ("meta-llama/Llama-4-Scout-17B-16E-Instruct",),
    "qwen-2-5": ("Qwen/Qwen2.5-7B-Instruct",),
    "qwq": ("Qwen/QwQ-32B",),
    "qwen-3": ("Qwen/Qwen3-8B", "Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-Next-80B-A3B-Instruct"),
    "qwen-3-coder": ("Qwen/Qwen3-Coder-30B-A3B-Instruct",),
    "mistral": ("mistralai/Mistral-7B-Instruct-v0.3", "mistralai/Ministral-8B-Instruct-2410"),
    "magistral": ("mistralai/Magistral-Small-2506",),
    "mixtral": ("mistralai/Mixtral-8x7B-Instruct-v0.1",),
    "gemma-2": ("google/gemma-2-9b-it",),
    "gemma-3": ("google/gemma-3-270m-it", "google/gemma-3n-E4B-it"),
    "gemma-4": ("google/gemma-4-31b-it",),
    "phi-3": ("microsoft/Phi-3-mini-4k-instruct", "microsoft/Phi-3.5-MoE-instruct"),
    "phi-4": ("microsoft/phi-4",),
    "phi-4-mini": ("microsoft/Phi-4-mini-instruct",),
    "glm-4": ("zai-org/GLM-4-9B-0414",),
    "glm-4-5": ("zai-org/GLM-4.5-Air", "zai-org/GLM-4.6"),
    "chatglm": ("zai-org/chatglm3-6b",),
    "gpt-oss": ("openai/gpt-oss-20b",),
    "yi": ("01-ai/Yi-1.5-9B-Chat",),
    "internlm": ("internlm/internlm3-8b-instruct",),
    "command-r": ("CohereLabs/c4ai-command-r-v01", "CohereLabs/c4ai-command-a-03-2025"),
    "command-a-reasoning": ("CohereLabs/command-a-reasoning-08-2025",),
    "granite": ("ibm-granite/granite-3.3-8b-instruct", "ibm-granite/granite-4.0-h-small"),
    "olmo": ("allenai/OLMo-2-1124-7B-Instruct",),
    "olmo-3": ("allenai/Olmo-3-7B-Think",),
    "falcon": ("tiiuae/Falcon3-7B-Instruct", "tiiuae/falcon-7b-instruct"),
    "baichuan": ("baichuan-inc/Baichuan2-7B-Chat",),
    "minicpm": ("openbmb/MiniCPM3-4B",),
    "kimi-k2": ("moonshotai/Kimi-K2-Instruct", "moonshotai/Kimi-K2-Thinking"),
    "nemotron": ("nvidia/NVIDIA-Nemotron-Nano-9B-v2", "nvidia/Llama-3_3-Nemotron-Super-49B-v1"),
    "minimax-m2": ("MiniMaxAI/MiniMax-M2",),
    "seed-oss": ("ByteDance-Seed/Seed-OSS-36B-Instruct",),
    "gpt": ("gpt-4o-mini", "gpt-4.1", "gpt-5", "chatgpt-4o-latest"),
    "o-series": ("o3", "o4-mini"),
    "claude": ("claude-sonnet-4-5", "claude-3-5-haiku-latest"),
    "gemini": ("gemini-2.5-flash",),
}
"""Published names of models of each family."""
BY_ARCHITECTURE = {
    "Gemma2ForCausalLM": "gemma-2",
    "GptOssForCausalLM": "gpt-oss",
    "InternLM3ForCausalLM": "internlm",
    "DeepseekV32ForCausalLM": "deepseek-v3-2",
    "ChatGLMModel": "chatglm",
    "LlamaForCausalLM": None,
    "UnheardOfForCausalLM": None,
}
READ_IMAGES = {
    "gpt-4o-mini": True,
    "gpt-4.1": True,
    "gpt-5": True,
    "gpt-3.5-turbo": False,
    "gpt-4o-audio-preview": False,
    "o3": True,
    "o4-mini": True,
    "o3-mini": False,
    "claude-sonnet-4-5": True,
    "gemini-2.5-flash": True,
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": True,
    "meta-llama/Llama-3.2-11B-Vision-Instruct": True,
    "meta-llama/Llama-3.3-70B-Instruct": False,
    "Qwen/Qwen2.5-VL-7B-Instruct": True,
    "Qwen/Qwen2.5-7B-Instruct": False,
    "Qwen/Qwen3-VL-8B-Instruct": True,
    "Qwen/Qwen3-8B": False,
    "google/gemma-3-4b-it": True,
    "google/gemma-3n-E4B-it": True,
    "google/gemma-3-1b-it": False,
    "google/gemma-3-270m-it": False,
    "google/gemma-4-31b-it": True,
    "mistralai/Mistral-Small-3.1-24B-Instruct-2503": True,
    "mistralai/Mistral-7B-Instruct-v0.3": False,
    "mistralai/Ministral-8B-Instruct-2410": False,
    "mistralai/Magistral-Small-2509": True,
    "mistralai/Magistral-Small-2506": False,
    "zai-org/GLM-4.5V": True,
    "zai-org/GLM-4.6": False,
    "ibm-granite/granite-3.3-8b-instruct": False,
    "ibm-granite/granite-vision-3.3-2b": False,
    "acme/our-own-vision-model": False,
}
"""Whether models read images, according to their makers' pages."""
NOT_IN_VLLM = {"gpt", "o-series", "claude", "gemini", "baichuan"}
"""Families of online services, and a family that vLLM removed."""


def vllm_file(name: str) -> ast.Module:
    """A file of the installed vLLM as a syntax tree: an import of vLLM would take half a minute."""
    found = importlib.util.find_spec("vllm")
    assert found is not None and found.submodule_search_locations is not None
    return ast.parse((Path(found.submodule_search_locations[0]) / name).read_text())


def keys_of(module: ast.Module, dictionary: str) -> Mapping[str, ast.expr]:
    for node in module.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and target.id == dictionary and isinstance(value, ast.Dict):
            pairs = zip(value.keys, value.values, strict=True)
            return {
                key.value: item for key, item in pairs if isinstance(key, ast.Constant) and isinstance(key.value, str)
            }
    raise AssertionError(f"vLLM has no {dictionary}")


def test_the_table_has_at_least_24_families_each_with_names_that_this_test_tries() -> None:
    assert len(families()) >= 24
    assert {*families()} == {*NAMES}


@pytest.mark.parametrize(("model", "family"), [(model, name) for name, models in NAMES.items() for model in models])
def test_a_published_name_finds_its_family_and_no_other(model: str, family: str) -> None:
    name = model.lower().split("/")[-1]
    found = [each.name for each in families().values() if re.search(each.ids, name)]
    first = family_of(model)
    assert first is not None and first.name == family
    assert found == [family] or family == "nemotron"  # NVIDIA's names contain the base model's name too


@pytest.mark.parametrize(("architecture", "family"), BY_ARCHITECTURE.items())
def test_a_model_of_another_name_is_found_by_an_architecture_of_one_family(
    architecture: str, family: str | None
) -> None:
    found = family_of("acme/our-own-model", [architecture])
    assert (found.name if found is not None else None) == family


def test_a_name_counts_only_with_one_of_the_familys_architectures() -> None:
    found = family_of("acme/llama-3-gemma-merge", ["Gemma2ForCausalLM"])
    assert found is not None and found.name == "gemma-2"


@pytest.mark.parametrize(("model", "reads"), READ_IMAGES.items())
def test_a_models_name_tells_whether_it_reads_images(model: str, reads: bool) -> None:
    assert are_read_by(family_of(model), model) is reads


def test_each_pattern_of_images_finds_a_name_of_the_table() -> None:
    tried = {family.name for model, reads in READ_IMAGES.items() if reads and (family := family_of(model)) is not None}
    assert {name for name, family in families().items() if family.images is not None} == tried


@pytest.mark.parametrize("name", families())
def test_vllm_has_every_architecture_and_parser_of_a_family(name: str) -> None:
    family = families()[name]
    registry = vllm_file("model_executor/models/registry.py")
    known = {*keys_of(registry, "_TEXT_GENERATION_MODELS"), *keys_of(registry, "_MULTIMODAL_MODELS")}
    known |= {*keys_of(registry, "_TRANSFORMERS_SUPPORTED_MODELS")}
    assert {*family.architectures} <= known
    assert bool(family.architectures) is (name not in NOT_IN_VLLM)
    if family.reasoning is not None:
        parsers = keys_of(vllm_file("reasoning/__init__.py"), "_REASONING_PARSERS_TO_REGISTER")
        assert family.reasoning.parser in parsers
        assert family.reasoning.opening != family.reasoning.closing
    if family.tools is not None:
        assert family.tools in keys_of(vllm_file("tool_parsers/__init__.py"), "_TOOL_PARSERS_TO_REGISTER")
