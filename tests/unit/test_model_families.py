"""The model families: the models that each finds, the names in its row that vLLM must know, and its quirks."""

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

from schemas.job import Message
from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from tests.asking import request_of
from tests.drawn import drawn
from workers.engines import ENGINES
from workers.engines.address import with_quirks, without_fence
from workers.engines.base import Completion
from workers.engines.body import text_of, user_message
from workers.engines.families import are_read_by, families, family_of, marks_in
from workers.engines.registry import create, engine_settings

PUBLISHED: Final = """\
deepseek-v3          DeepseekV3ForCausalLM                  deepseek-ai/DeepSeek-V3 deepseek-ai/DeepSeek-V3-0324
deepseek-v3-1        DeepseekV3ForCausalLM                  deepseek-ai/DeepSeek-V3.1
deepseek-v3-1        DeepseekV3ForCausalLM                  deepseek-ai/DeepSeek-V3.1-Terminus
deepseek-r1          DeepseekV3ForCausalLM                  deepseek-ai/DeepSeek-R1 deepseek-ai/DeepSeek-R1-0528
deepseek-r1-distill  LlamaForCausalLM                       deepseek-ai/DeepSeek-R1-Distill-Llama-8B
deepseek-r1-distill  Qwen2ForCausalLM                       deepseek-ai/DeepSeek-R1-Distill-Qwen-7B
deepseek-r1-distill  Qwen3ForCausalLM                       deepseek-ai/DeepSeek-R1-0528-Qwen3-8B
deepseek-v3-2        DeepseekV32ForCausalLM                 deepseek-ai/DeepSeek-V3.2 deepseek-ai/DeepSeek-V3.2-Exp
deepseek-v4          DeepseekV4ForCausalLM                  deepseek-ai/DeepSeek-V4-Flash deepseek-ai/DeepSeek-V4-Pro
llama-2              LlamaForCausalLM                       meta-llama/Llama-2-7b-chat-hf
llama-3              LlamaForCausalLM                       meta-llama/Meta-Llama-3-8B-Instruct
llama-3              LlamaForCausalLM                       meta-llama/Llama-3.1-8B meta-llama/Llama-3.3-70B-Instruct
llama-3              MllamaForConditionalGeneration         meta-llama/Llama-3.2-11B-Vision-Instruct
llama-4              Llama4ForConditionalGeneration         meta-llama/Llama-4-Scout-17B-16E-Instruct
qwen-2-5             Qwen2ForCausalLM                       Qwen/Qwen2.5-7B-Instruct
qwen-2-5             Qwen2_5_VLForConditionalGeneration     Qwen/Qwen2.5-VL-7B-Instruct
qwen-2-5             Qwen2_5OmniModel                       Qwen/Qwen2.5-Omni-7B
qwq                  Qwen2ForCausalLM                       Qwen/QwQ-32B
qwen-3               Qwen3ForCausalLM                       Qwen/Qwen3-8B
qwen-3               Qwen3MoeForCausalLM                    Qwen/Qwen3-30B-A3B
qwen-3               Qwen3NextForCausalLM                   Qwen/Qwen3-Next-80B-A3B-Instruct
qwen-3               Qwen3VLForConditionalGeneration        Qwen/Qwen3-VL-8B-Thinking
qwen-3               Qwen3VLMoeForConditionalGeneration     Qwen/Qwen3-VL-30B-A3B-Instruct
qwen-3               Qwen3OmniMoeForConditionalGeneration   Qwen/Qwen3-Omni-30B-A3B-Thinking
qwen-3-5             Qwen3_5ForConditionalGeneration        Qwen/Qwen3.5-9B
qwen-3-5             Qwen3_5MoeForConditionalGeneration     Qwen/Qwen3.5-35B-A3B
qwen-3-coder         Qwen3MoeForCausalLM                    Qwen/Qwen3-Coder-30B-A3B-Instruct
qwen-3-coder         Qwen3NextForCausalLM                   Qwen/Qwen3-Coder-Next
mistral              MistralForCausalLM                     mistralai/Mistral-7B-Instruct-v0.3
mistral              MistralForCausalLM                     mistralai/Ministral-8B-Instruct-2410
mistral              Mistral3ForConditionalGeneration       mistralai/Mistral-Small-3.1-24B-Instruct-2503
mistral              Mistral3ForConditionalGeneration       mistralai/Ministral-3-8B-Instruct-2512
magistral            MistralForCausalLM                     mistralai/Magistral-Small-2506
magistral            Mistral3ForConditionalGeneration       mistralai/Magistral-Small-2509
magistral            Mistral3ForConditionalGeneration       mistralai/Ministral-3-8B-Reasoning-2512
mixtral              MixtralForCausalLM                     mistralai/Mixtral-8x7B-Instruct-v0.1
gemma-2              Gemma2ForCausalLM                      google/gemma-2-9b-it
gemma-3              Gemma3ForCausalLM                      google/gemma-3-270m-it
gemma-3              Gemma3ForConditionalGeneration         google/gemma-3-4b-it
gemma-3              Gemma3nForConditionalGeneration        google/gemma-3n-E4B-it
gemma-4              Gemma4ForConditionalGeneration         google/gemma-4-31b-it
phi-3                Phi3ForCausalLM                        microsoft/Phi-3-mini-4k-instruct
phi-3                PhiMoEForCausalLM                      microsoft/Phi-3.5-MoE-instruct
phi-3                Phi3VForCausalLM                       microsoft/Phi-3.5-vision-instruct
phi-4                Phi3ForCausalLM                        microsoft/phi-4
phi-4-mini           Phi3ForCausalLM                        microsoft/Phi-4-mini-instruct
phi-4-reasoning      Phi3ForCausalLM                        microsoft/Phi-4-reasoning microsoft/Phi-4-reasoning-plus
phi-4-reasoning      Phi3ForCausalLM                        microsoft/Phi-4-mini-reasoning
phi-4-reasoning      Phi4ForCausalLMV                       microsoft/Phi-4-reasoning-vision-15B
glm-4                Glm4ForCausalLM                        zai-org/GLM-4-9B-0414
glm-4                GlmForCausalLM                         zai-org/glm-4-9b-chat-hf
glm-z1               Glm4ForCausalLM                        zai-org/GLM-Z1-9B-0414
glm-4-1v             Glm4vForConditionalGeneration          zai-org/GLM-4.1V-9B-Thinking
glm-4-5              Glm4MoeForCausalLM                     zai-org/GLM-4.5-Air zai-org/GLM-4.6 zai-org/GLM-4.7
glm-4-5              Glm4vMoeForConditionalGeneration       zai-org/GLM-4.5V
glm-4-5              Glm4vForConditionalGeneration          zai-org/GLM-4.6V-Flash
glm-4-5              Glm4MoeLiteForCausalLM                 zai-org/GLM-4.7-Flash
glm-4-5              GlmMoeDsaForCausalLM                   zai-org/GLM-5
chatglm              ChatGLMModel                           zai-org/chatglm3-6b
gpt-oss              GptOssForCausalLM                      openai/gpt-oss-20b
yi                   LlamaForCausalLM                       01-ai/Yi-1.5-9B-Chat
internlm             InternLM2ForCausalLM                   internlm/internlm2_5-7b-chat
internlm             InternLM3ForCausalLM                   internlm/internlm3-8b-instruct
command-r            CohereForCausalLM                      CohereLabs/c4ai-command-r-v01
command-r            Cohere2ForCausalLM                     CohereLabs/c4ai-command-r7b-12-2024
command-r            Cohere2ForCausalLM                     CohereLabs/c4ai-command-a-03-2025
command-a-reasoning  Cohere2ForCausalLM                     CohereLabs/command-a-reasoning-08-2025
command-a-plus       Cohere2VisionForConditionalGeneration  CohereLabs/command-a-plus-05-2026
granite              GraniteForCausalLM                     ibm-granite/granite-3.3-8b-instruct
granite-4            GraniteMoeHybridForCausalLM            ibm-granite/granite-4.0-h-small
granite-4            Granite4VisionForConditionalGeneration ibm-granite/granite-4.1-3b-vision
olmo                 Olmo2ForCausalLM                       allenai/OLMo-2-1124-7B-Instruct
olmo-3               Olmo3ForCausalLM                       allenai/Olmo-3-7B-Think
falcon               FalconForCausalLM                      tiiuae/falcon-7b-instruct
falcon               LlamaForCausalLM                       tiiuae/Falcon3-7B-Instruct
falcon               FalconH1ForCausalLM                    tiiuae/Falcon-H1-34B-Instruct
falcon-h1r           FalconH1ForCausalLM                    tiiuae/Falcon-H1R-7B
baichuan             BaichuanForCausalLM                    baichuan-inc/Baichuan2-7B-Chat
minicpm              MiniCPM3ForCausalLM                    openbmb/MiniCPM3-4B
minicpm              MiniCPMForCausalLM                     openbmb/MiniCPM-2B-sft-bf16
minicpm-4-1          MiniCPMForCausalLM                     openbmb/MiniCPM4.1-8B
kimi-k2              DeepseekV3ForCausalLM                  moonshotai/Kimi-K2-Instruct moonshotai/Kimi-K2-Thinking
kimi-k2              KimiK25ForConditionalGeneration        moonshotai/Kimi-K2.5
nemotron             NemotronHForCausalLM                   nvidia/NVIDIA-Nemotron-Nano-9B-v2
nemotron             DeciLMForCausalLM                      nvidia/Llama-3_3-Nemotron-Super-49B-v1
nemotron             LlamaForCausalLM                       nvidia/Llama-3.1-Nemotron-Nano-8B-v1
minimax-m2           MiniMaxM2ForCausalLM                   MiniMaxAI/MiniMax-M2
seed-oss             SeedOssForCausalLM                     ByteDance-Seed/Seed-OSS-36B-Instruct
gpt                  -                                      gpt-4o-mini gpt-4.1 gpt-5 chatgpt-4o-latest
o-series             -                                      o3 o4-mini
claude               -                                      claude-sonnet-4-5 claude-3-5-haiku-latest
gemini               -                                      gemini-2.5-flash
"""
"""Each family's published models with the architecture that vLLM's list has for them or their series.

Online services have no architecture.
"""
MODELS: Final = [
    (family, architecture, model)
    for family, architecture, *models in map(str.split, PUBLISHED.splitlines())
    for model in models
]
READ_IMAGES = {
    **dict.fromkeys(
        ("gpt-4o-mini", "gpt-4.1", "gpt-5", "o3", "o4-mini", "claude-sonnet-4-5", "gemini-2.5-flash"), True
    ),
    "Qwen/Qwen3-VL-8B-Instruct": True,
    **dict.fromkeys(("gpt-3.5-turbo", "gpt-4o-audio-preview", "o3-mini", "google/gemma-3-1b-it"), False),
    **dict.fromkeys(("ibm-granite/granite-vision-3.3-2b", "acme/our-own-vision-model"), False),
}
"""True for the models that read images, according to their makers' pages; vLLM's own list tells it of all others."""
BY_ARCHITECTURE = [
    ("acme/our-own-model", "Gemma2ForCausalLM", "gemma-2"),
    ("acme/our-own-model", "Qwen3VLForConditionalGeneration", "qwen-3"),
    ("acme/our-own-model", "Qwen3_5ForConditionalGeneration", "qwen-3-5"),
    ("acme/our-own-model", "Glm4vMoeForConditionalGeneration", "glm-4-5"),
    ("acme/our-own-model", "GptOssForCausalLM", "gpt-oss"),
    ("acme/our-own-model", "InternLM3ForCausalLM", "internlm"),
    ("acme/our-own-model", "DeepseekV32ForCausalLM", "deepseek-v3-2"),
    ("acme/our-own-model", "ChatGLMModel", "chatglm"),
    ("acme/our-own-model", "LlamaForCausalLM", None),
    ("acme/our-own-model", "Glm4ForCausalLM", None),
    ("acme/our-own-model", "UnheardOfForCausalLM", None),
    ("Qwen/Qwen3-Future-8B", "Qwen3FutureForConditionalGeneration", "qwen-3"),
    ("zai-org/GLM-4.5V", "UnheardOfForCausalLM", "glm-4-5"),
    ("acme/llama-3-gemma-merge", "Gemma2ForCausalLM", "gemma-2"),
    ("acme/qwen3-style-merge", "LlamaForCausalLM", None),
    ("acme/llama-3-like-Qwen3", "Qwen3ForCausalLM", "qwen-3"),
]
NO_LONGER_IN_VLLM = {"MllamaForConditionalGeneration", "BaichuanForCausalLM"}
"""Architectures of published models that earlier versions of vLLM had."""
FORMERLY_MULTIMODAL = "MllamaForConditionalGeneration"
"""The multimodal one of these architectures."""
NOT_IN_VLLM = {"gpt", "o-series", "claude", "gemini", "baichuan"}
"""Families of online services, and a family that vLLM removed."""
FENCE_JSON = {
    *("deepseek-v3", "deepseek-v3-1", "deepseek-r1", "deepseek-r1-distill", "llama-2", "qwen-2-5", "qwq", "mistral"),
    *("magistral", "mixtral", "gemma-2", "gemma-3", "phi-3", "phi-4", "phi-4-mini", "chatglm", "yi", "internlm"),
    *("command-r", "olmo", "falcon", "falcon-h1r", "baichuan", "minicpm", "minicpm-4-1", "claude"),
    "phi-4-reasoning",
}
REFUSE_SYSTEM_MESSAGES = {"gemma-2"}
ASKED = request_of(
    messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}],
    response_format={"type": "json_object"},
)
AN_ANSWER = st.text() | st.text("` \n\t\rab{}", max_size=40)


@lru_cache
def vllm_names(file: str, *dictionaries: str) -> frozenset[str]:
    """The keys of dictionaries in a file of the installed vLLM, whose import would take half a minute."""
    found = importlib.util.find_spec("vllm")
    assert found is not None and found.submodule_search_locations is not None
    module = ast.parse((Path(found.submodule_search_locations[0]) / file).read_text())
    names: dict[str, list[str]] = {}
    for node in module.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and isinstance(value, ast.Dict):
            names[target.id] = [str(key.value) for key in value.keys if isinstance(key, ast.Constant)]
    return frozenset(name for dictionary in dictionaries for name in names[dictionary])


def architectures_of_vllm() -> frozenset[str]:
    tables = ("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS", "_TRANSFORMERS_SUPPORTED_MODELS")
    return vllm_names("model_executor/models/registry.py", *tables)


def name_of(model: str, architecture: str = "-") -> str | None:
    found = family_of(model, [architecture] if architecture != "-" else [])
    return found.name if found is not None else None


def completion(text: str) -> Completion:
    return Completion(text, "stop", 3, 2)


def fence_removed(text: str, family: str = "gemma-2") -> str:
    return without_fence(completion(text), ASKED, families()[family]).text


# -- finding a model's family --------------------------------------------------------------------------------------


def test_a_published_model_finds_one_family_by_its_name_with_and_without_its_architecture() -> None:
    found = []
    for _, architecture, model in MODELS:
        fits = [each.name for each in families().values() if re.search(each.ids, model.lower().split("/")[-1])]
        found.append((model, fits, name_of(model), name_of(model, architecture)))
    assert found == [(model, [family], family, family) for family, _, model in MODELS]
    assert {*families()} == {family for family, _, _ in MODELS}


def test_an_architecture_overrules_the_name_only_if_it_is_known_as_another_familys() -> None:
    assert [(model, built, name_of(model, built)) for model, built, _ in BY_ARCHITECTURE] == BY_ARCHITECTURE


def test_a_models_name_tells_whether_it_reads_images() -> None:
    multimodal = vllm_names("model_executor/models/registry.py", "_MULTIMODAL_MODELS") | {FORMERLY_MULTIMODAL}
    expected = READ_IMAGES | {model: built in multimodal for _, built, model in MODELS if built != "-"}
    assert {model: are_read_by(family_of(model), model) for model in expected} == expected
    reading = {name_of(model) for model, reads in expected.items() if reads}
    assert reading == {name for name, family in families().items() if family.images is not None}


def test_vllm_has_every_architecture_and_parser_of_a_family() -> None:
    known = architectures_of_vllm()
    used = {name for family in families().values() for name in family.architectures}
    assert used - known == set()
    assert {built for _, built, _ in MODELS} - known == NO_LONGER_IN_VLLM | {"-"}
    assert {name for name, family in families().items() if not family.architectures} == NOT_IN_VLLM
    reasoning = [family.reasoning for family in families().values() if family.reasoning is not None]
    parsers = vllm_names("reasoning/__init__.py", "_REASONING_PARSERS_TO_REGISTER")
    assert {marks.parser for marks in reasoning} - parsers == set()
    assert [marks for marks in reasoning if marks.opening == marks.closing] == []
    callers = {family.tools for family in families().values()} - {None}
    assert callers - vllm_names("tool_parsers/__init__.py", "_TOOL_PARSERS_TO_REGISTER") == set()


@given(st.text(), st.text(), st.sampled_from(["<think>", "</think>"]))
@settings(max_examples=drawn(50))
def test_a_template_with_a_mark_shows_that_its_model_reasons(before: str, after: str, mark: str) -> None:
    marks = marks_in(f"{before}{mark}{after}")
    assert marks is not None
    assert (marks.opening, marks.closing) == ("<think>", "</think>")
    assert marks_in(before.replace("think", "")) is None
    assert marks_in(None) is None


# -- quirks --------------------------------------------------------------------------------------------------------


def test_each_engine_of_the_command_line_has_the_family_of_its_model() -> None:
    first: Mapping[str, str] = {family: model for family, _, model in reversed(MODELS)}
    engines = [(kind, family) for kind in ENGINES for family in first]
    made = [create(kind, engine_settings()(), Metrics(), SystemClock(), model=first[name]) for kind, name in engines]
    assert [engine.family for engine in made] == [families()[name] for _, name in engines]


def test_an_engine_whose_model_is_of_no_family_changes_nothing() -> None:
    made = create("echo", engine_settings()(), Metrics(), SystemClock())
    assert made.family is None
    assert with_quirks(ASKED, None) is ASKED
    fenced = completion("```\n{}\n```")
    assert without_fence(fenced, ASKED, None) is fenced


def test_only_the_families_that_fence_json_lose_the_fence_and_those_that_refuse_system_messages_the_message() -> None:
    fenced, joined = '```json\n{"a": 1}\n```', [user_message("Be brief.\n\nHello?")]
    assert {name for name in families() if fence_removed(fenced, name) == '{"a": 1}'} == FENCE_JSON
    assert {name for name in families() if fence_removed(fenced, name) != fenced} == FENCE_JSON
    messages = {name: with_quirks(ASKED, family).messages for name, family in families().items()}
    assert {name for name, changed in messages.items() if changed == joined} == REFUSE_SYSTEM_MESSAGES
    assert {name for name, changed in messages.items() if changed != ASKED.messages} == REFUSE_SYSTEM_MESSAGES


@pytest.mark.parametrize(
    ("text", "inside"),
    {
        "```\n{}\n```": "{}",
        " \n```json \r\n{}\n  ```\n": "{}",
        "```json\n{}```": "{}",
        "```json\n```": "",
        '```json\n{"a": "```"}\n```': '{"a": "```"}',
        "```json\n{}": None,
        "```": None,
        "```json {}```": None,
        "Here it is:\n```json\n{}\n```": None,
        "```json\n{}\n```\nThat is all.": None,
        "{}": None,
        **{f"```\n{run * 1_000_000}x": None for run in (" ", "\n", "`", "\n ", "```\n")},
    }.items(),
    ids=lambda text: repr(text)[:20],
)
def test_only_a_fence_around_the_whole_answer_is_removed_and_in_linear_time(text: str, inside: str | None) -> None:
    """A regular expression that backtracks would take hours for a long run of one text."""
    assert fence_removed(text) == (text if inside is None else inside)


@given(AN_ANSWER, st.sampled_from(["", "json", "JSON", "c++"]))
@settings(max_examples=drawn(100))
def test_any_answer_comes_out_of_its_fence_and_is_a_part_of_it(text: str, language: str) -> None:
    assert fence_removed(f"```{language}\n{text}|\n```") == f"{text}|"
    inside = fence_removed(text)
    assert inside == text or (text.strip().startswith("```") and inside in text)


MESSAGES = st.lists(
    st.builds(
        lambda role, content: Message(role=role, content=content),
        st.sampled_from(["system", "developer", "user", "assistant"]),
        st.text(min_size=1),
    ),
    min_size=1,
    max_size=6,
)


@given(MESSAGES)
@settings(max_examples=drawn(100))
def test_no_system_message_is_left_and_no_text_is_lost(messages: list[Message]) -> None:
    asked = request_of(messages=messages, max_tokens=16, temperature=None)
    changed = with_quirks(asked, families()["gemma-2"]).messages
    roles = [message["role"] for message in changed]
    assert not {"system", "developer"} & {*roles}
    assert "user" in roles or not {"system", "developer"} & {message.role for message in messages}
    said = "\n".join(map(text_of, changed))
    assert all(message.text in said for message in messages)
