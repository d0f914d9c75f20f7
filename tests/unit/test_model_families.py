"""Each model family's row, and the names in it that vLLM must know."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.drawn import drawn
from workers.engines.families import are_read_by, families, family_of, marks_in

MODELS: Final[Mapping[str, Mapping[str, str | None]]] = {
    "deepseek-v3": {
        "deepseek-ai/DeepSeek-V3": "DeepseekV3ForCausalLM",
        "deepseek-ai/DeepSeek-V3-0324": "DeepseekV3ForCausalLM",
    },
    "deepseek-v3-1": {
        "deepseek-ai/DeepSeek-V3.1": "DeepseekV3ForCausalLM",
        "deepseek-ai/DeepSeek-V3.1-Terminus": "DeepseekV3ForCausalLM",
    },
    "deepseek-r1": {
        "deepseek-ai/DeepSeek-R1": "DeepseekV3ForCausalLM",
        "deepseek-ai/DeepSeek-R1-0528": "DeepseekV3ForCausalLM",
    },
    "deepseek-r1-distill": {
        "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": "LlamaForCausalLM",
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": "Qwen2ForCausalLM",
        "deepseek-ai/DeepSeek-R1-0528-Qwen3-8B": "Qwen3ForCausalLM",
    },
    "deepseek-v3-2": {
        "deepseek-ai/DeepSeek-V3.2": "DeepseekV32ForCausalLM",
        "deepseek-ai/DeepSeek-V3.2-Exp": "DeepseekV32ForCausalLM",
    },
    "deepseek-v4": {
        "deepseek-ai/DeepSeek-V4-Flash": "DeepseekV4ForCausalLM",
        "deepseek-ai/DeepSeek-V4-Pro": "DeepseekV4ForCausalLM",
    },
    "llama-2": {"meta-llama/Llama-2-7b-chat-hf": "LlamaForCausalLM"},
    "llama-3": {
        "meta-llama/Meta-Llama-3-8B-Instruct": "LlamaForCausalLM",
        "meta-llama/Llama-3.1-8B": "LlamaForCausalLM",
        "meta-llama/Llama-3.3-70B-Instruct": "LlamaForCausalLM",
        "meta-llama/Llama-3.2-11B-Vision-Instruct": "MllamaForConditionalGeneration",
    },
    "llama-4": {"meta-llama/Llama-4-Scout-17B-16E-Instruct": "Llama4ForConditionalGeneration"},
    "qwen-2-5": {
        "Qwen/Qwen2.5-7B-Instruct": "Qwen2ForCausalLM",
        "Qwen/Qwen2.5-VL-7B-Instruct": "Qwen2_5_VLForConditionalGeneration",
        "Qwen/Qwen2.5-Omni-7B": "Qwen2_5OmniModel",
    },
    "qwq": {"Qwen/QwQ-32B": "Qwen2ForCausalLM"},
    "qwen-3": {
        "Qwen/Qwen3-8B": "Qwen3ForCausalLM",
        "Qwen/Qwen3-30B-A3B": "Qwen3MoeForCausalLM",
        "Qwen/Qwen3-Next-80B-A3B-Instruct": "Qwen3NextForCausalLM",
        "Qwen/Qwen3-VL-8B-Thinking": "Qwen3VLForConditionalGeneration",
        "Qwen/Qwen3-VL-30B-A3B-Instruct": "Qwen3VLMoeForConditionalGeneration",
        "Qwen/Qwen3-Omni-30B-A3B-Thinking": "Qwen3OmniMoeForConditionalGeneration",
    },
    "qwen-3-5": {
        "Qwen/Qwen3.5-9B": "Qwen3_5ForConditionalGeneration",
        "Qwen/Qwen3.5-35B-A3B": "Qwen3_5MoeForConditionalGeneration",
    },
    "qwen-3-coder": {
        "Qwen/Qwen3-Coder-30B-A3B-Instruct": "Qwen3MoeForCausalLM",
        "Qwen/Qwen3-Coder-Next": "Qwen3NextForCausalLM",
    },
    "mistral": {
        "mistralai/Mistral-7B-Instruct-v0.3": "MistralForCausalLM",
        "mistralai/Ministral-8B-Instruct-2410": "MistralForCausalLM",
        "mistralai/Mistral-Small-3.1-24B-Instruct-2503": "Mistral3ForConditionalGeneration",
        "mistralai/Ministral-3-8B-Instruct-2512": "Mistral3ForConditionalGeneration",
    },
    "magistral": {
        "mistralai/Magistral-Small-2506": "MistralForCausalLM",
        "mistralai/Magistral-Small-2509": "Mistral3ForConditionalGeneration",
        "mistralai/Ministral-3-8B-Reasoning-2512": "Mistral3ForConditionalGeneration",
    },
    "mixtral": {"mistralai/Mixtral-8x7B-Instruct-v0.1": "MixtralForCausalLM"},
    "gemma-2": {"google/gemma-2-9b-it": "Gemma2ForCausalLM"},
    "gemma-3": {
        "google/gemma-3-270m-it": "Gemma3ForCausalLM",
        "google/gemma-3-4b-it": "Gemma3ForConditionalGeneration",
        "google/gemma-3n-E4B-it": "Gemma3nForConditionalGeneration",
    },
    "gemma-4": {"google/gemma-4-31b-it": "Gemma4ForConditionalGeneration"},
    "phi-3": {
        "microsoft/Phi-3-mini-4k-instruct": "Phi3ForCausalLM",
        "microsoft/Phi-3.5-MoE-instruct": "PhiMoEForCausalLM",
        "microsoft/Phi-3.5-vision-instruct": "Phi3VForCausalLM",
    },
    "phi-4": {"microsoft/phi-4": "Phi3ForCausalLM"},
    "phi-4-mini": {"microsoft/Phi-4-mini-instruct": "Phi3ForCausalLM"},
    "phi-4-reasoning": {
        "microsoft/Phi-4-reasoning": "Phi3ForCausalLM",
        "microsoft/Phi-4-reasoning-plus": "Phi3ForCausalLM",
        "microsoft/Phi-4-mini-reasoning": "Phi3ForCausalLM",
        "microsoft/Phi-4-reasoning-vision-15B": "Phi4ForCausalLMV",
    },
    "glm-4": {"zai-org/GLM-4-9B-0414": "Glm4ForCausalLM", "zai-org/glm-4-9b-chat-hf": "GlmForCausalLM"},
    "glm-z1": {"zai-org/GLM-Z1-9B-0414": "Glm4ForCausalLM"},
    "glm-4-1v": {"zai-org/GLM-4.1V-9B-Thinking": "Glm4vForConditionalGeneration"},
    "glm-4-5": {
        "zai-org/GLM-4.5-Air": "Glm4MoeForCausalLM",
        "zai-org/GLM-4.5V": "Glm4vMoeForConditionalGeneration",
        "zai-org/GLM-4.6": "Glm4MoeForCausalLM",
        "zai-org/GLM-4.6V-Flash": "Glm4vForConditionalGeneration",
        "zai-org/GLM-4.7": "Glm4MoeForCausalLM",
        "zai-org/GLM-4.7-Flash": "Glm4MoeLiteForCausalLM",
        "zai-org/GLM-5": "GlmMoeDsaForCausalLM",
    },
    "chatglm": {"zai-org/chatglm3-6b": "ChatGLMModel"},
    "gpt-oss": {"openai/gpt-oss-20b": "GptOssForCausalLM"},
    "yi": {"01-ai/Yi-1.5-9B-Chat": "LlamaForCausalLM"},
    "internlm": {
        "internlm/internlm2_5-7b-chat": "InternLM2ForCausalLM",
        "internlm/internlm3-8b-instruct": "InternLM3ForCausalLM",
    },
    "command-r": {
        "CohereLabs/c4ai-command-r-v01": "CohereForCausalLM",
        "CohereLabs/c4ai-command-r7b-12-2024": "Cohere2ForCausalLM",
        "CohereLabs/c4ai-command-a-03-2025": "Cohere2ForCausalLM",
    },
    "command-a-reasoning": {"CohereLabs/command-a-reasoning-08-2025": "Cohere2ForCausalLM"},
    "command-a-plus": {"CohereLabs/command-a-plus-05-2026": "Cohere2VisionForConditionalGeneration"},
    "granite": {"ibm-granite/granite-3.3-8b-instruct": "GraniteForCausalLM"},
    "granite-4": {
        "ibm-granite/granite-4.0-h-small": "GraniteMoeHybridForCausalLM",
        "ibm-granite/granite-4.1-3b-vision": "Granite4VisionForConditionalGeneration",
    },
    "olmo": {"allenai/OLMo-2-1124-7B-Instruct": "Olmo2ForCausalLM"},
    "olmo-3": {"allenai/Olmo-3-7B-Think": "Olmo3ForCausalLM"},
    "falcon": {
        "tiiuae/falcon-7b-instruct": "FalconForCausalLM",
        "tiiuae/Falcon3-7B-Instruct": "LlamaForCausalLM",
        "tiiuae/Falcon-H1-34B-Instruct": "FalconH1ForCausalLM",
    },
    "falcon-h1r": {"tiiuae/Falcon-H1R-7B": "FalconH1ForCausalLM"},
    "baichuan": {"baichuan-inc/Baichuan2-7B-Chat": "BaichuanForCausalLM"},
    "minicpm": {"openbmb/MiniCPM3-4B": "MiniCPM3ForCausalLM", "openbmb/MiniCPM-2B-sft-bf16": "MiniCPMForCausalLM"},
    "minicpm-4-1": {"openbmb/MiniCPM4.1-8B": "MiniCPMForCausalLM"},
    "kimi-k2": {
        "moonshotai/Kimi-K2-Instruct": "DeepseekV3ForCausalLM",
        "moonshotai/Kimi-K2-Thinking": "DeepseekV3ForCausalLM",
        "moonshotai/Kimi-K2.5": "KimiK25ForConditionalGeneration",
    },
    "nemotron": {
        "nvidia/NVIDIA-Nemotron-Nano-9B-v2": "NemotronHForCausalLM",
        "nvidia/Llama-3_3-Nemotron-Super-49B-v1": "DeciLMForCausalLM",
        "nvidia/Llama-3.1-Nemotron-Nano-8B-v1": "LlamaForCausalLM",
    },
    "minimax-m2": {"MiniMaxAI/MiniMax-M2": "MiniMaxM2ForCausalLM"},
    "seed-oss": {"ByteDance-Seed/Seed-OSS-36B-Instruct": "SeedOssForCausalLM"},
    "gpt": {"gpt-4o-mini": None, "gpt-4.1": None, "gpt-5": None, "chatgpt-4o-latest": None},
    "o-series": {"o3": None, "o4-mini": None},
    "claude": {"claude-sonnet-4-5": None, "claude-3-5-haiku-latest": None},
    "gemini": {"gemini-2.5-flash": None},
}
"""Published models of each family, and the architecture that vLLM's list of models gives for them or their series.

None for online services, which have no architecture.
"""
BY_ARCHITECTURE = {
    "Gemma2ForCausalLM": "gemma-2",
    "Qwen3VLForConditionalGeneration": "qwen-3",
    "Qwen3_5ForConditionalGeneration": "qwen-3-5",
    "Glm4vMoeForConditionalGeneration": "glm-4-5",
    "GptOssForCausalLM": "gpt-oss",
    "InternLM3ForCausalLM": "internlm",
    "DeepseekV32ForCausalLM": "deepseek-v3-2",
    "ChatGLMModel": "chatglm",
    "LlamaForCausalLM": None,
    "Glm4ForCausalLM": None,
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
    "Qwen/Qwen3.5-9B": True,
    "microsoft/Phi-3.5-vision-instruct": True,
    "microsoft/Phi-3-mini-4k-instruct": False,
    "microsoft/Phi-4-reasoning-vision-15B": True,
    "microsoft/Phi-4-reasoning": False,
    "mistralai/Ministral-3-8B-Reasoning-2512": True,
    "moonshotai/Kimi-K2.5": True,
    "moonshotai/Kimi-K2-Thinking": False,
    "zai-org/GLM-4.1V-9B-Thinking": True,
    "CohereLabs/command-a-plus-05-2026": True,
    "ibm-granite/granite-4.1-3b-vision": True,
    "ibm-granite/granite-4.0-h-small": False,
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
"""True for the models that read images, according to their makers' pages."""
NO_LONGER_IN_VLLM = {"MllamaForConditionalGeneration", "BaichuanForCausalLM"}
"""Architectures of published models that earlier versions of vLLM had."""
FORMERLY_MULTIMODAL = "MllamaForConditionalGeneration"
"""The multimodal one of these architectures."""
NOT_IN_VLLM = {"gpt", "o-series", "claude", "gemini", "baichuan"}
"""Families of online services, and a family that vLLM removed."""


@lru_cache
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
    assert {*families()} == {*MODELS}


@pytest.mark.parametrize(
    ("model", "architecture", "family"),
    [(model, built, name) for name, models in MODELS.items() for model, built in models.items()],
)
def test_a_published_model_finds_its_family_by_its_name_with_and_without_its_architecture(
    model: str, architecture: str | None, family: str
) -> None:
    by_name, by_both = family_of(model), family_of(model, [architecture] if architecture is not None else [])
    assert by_name is not None and by_both is not None
    assert (by_name.name, by_both.name) == (family, family)


@pytest.mark.parametrize("model", [model for models in MODELS.values() for model in models])
def test_a_published_name_fits_one_family_alone(model: str) -> None:
    name = model.lower().split("/")[-1]
    assert len([each.name for each in families().values() if re.search(each.ids, name)]) == 1


@pytest.mark.parametrize(("architecture", "family"), BY_ARCHITECTURE.items())
def test_a_model_of_another_name_is_found_by_an_architecture_of_one_family(
    architecture: str, family: str | None
) -> None:
    found = family_of("acme/our-own-model", [architecture])
    assert (found.name if found is not None else None) == family


@pytest.mark.parametrize(
    ("model", "architecture", "family"),
    [
        ("Qwen/Qwen3-Future-8B", "Qwen3FutureForConditionalGeneration", "qwen-3"),
        ("zai-org/GLM-4.5V", "UnheardOfForCausalLM", "glm-4-5"),
        ("acme/llama-3-gemma-merge", "Gemma2ForCausalLM", "gemma-2"),
        ("acme/qwen3-style-merge", "LlamaForCausalLM", None),
        ("acme/llama-3-like-Qwen3", "Qwen3ForCausalLM", "qwen-3"),
    ],
)
def test_an_architecture_overrules_the_name_only_if_it_is_known_as_another_familys(
    model: str, architecture: str, family: str | None
) -> None:
    found = family_of(model, [architecture])
    assert (found.name if found is not None else None) == family


@given(st.text(), st.text(), st.sampled_from(["<think>", "</think>"]))
@settings(max_examples=drawn(50))
def test_a_template_with_a_mark_shows_that_its_model_reasons(before: str, after: str, mark: str) -> None:
    marks = marks_in(f"{before}{mark}{after}")
    assert marks is not None
    assert (marks.opening, marks.closing) == ("<think>", "</think>")
    assert marks_in(before.replace("think", "")) is None
    assert marks_in(None) is None


@pytest.mark.parametrize(("model", "reads"), READ_IMAGES.items())
def test_a_models_name_tells_whether_it_reads_images(model: str, reads: bool) -> None:
    assert are_read_by(family_of(model), model) is reads


@pytest.mark.parametrize(
    ("model", "architecture"),
    [(model, built) for models in MODELS.values() for model, built in models.items() if built is not None],
)
def test_a_published_model_reads_images_if_vllm_lists_its_architecture_as_multimodal(
    model: str, architecture: str
) -> None:
    multimodal = {*keys_of(vllm_file("model_executor/models/registry.py"), "_MULTIMODAL_MODELS"), FORMERLY_MULTIMODAL}
    assert are_read_by(family_of(model), model) is (architecture in multimodal)


def test_each_pattern_of_images_finds_a_name_of_the_table() -> None:
    tried = {family.name for model, reads in READ_IMAGES.items() if reads and (family := family_of(model)) is not None}
    assert {name for name, family in families().items() if family.images is not None} == tried


def architectures_of_vllm() -> set[str]:
    registry = vllm_file("model_executor/models/registry.py")
    tables = ("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS", "_TRANSFORMERS_SUPPORTED_MODELS")
    return {name for table in tables for name in keys_of(registry, table)}


@pytest.mark.parametrize("name", families())
def test_vllm_has_every_architecture_and_parser_of_a_family(name: str) -> None:
    family = families()[name]
    known = architectures_of_vllm()
    assert {*family.architectures} <= known
    assert {*MODELS[name].values()} - known <= NO_LONGER_IN_VLLM | {None}
    assert bool(family.architectures) is (name not in NOT_IN_VLLM)
    if family.reasoning is not None:
        parsers = keys_of(vllm_file("reasoning/__init__.py"), "_REASONING_PARSERS_TO_REGISTER")
        assert family.reasoning.parser in parsers
        assert family.reasoning.opening != family.reasoning.closing
    if family.tools is not None:
        assert family.tools in keys_of(vllm_file("tool_parsers/__init__.py"), "_TOOL_PARSERS_TO_REGISTER")
