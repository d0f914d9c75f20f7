"""The model registry's file: each mistake is named with line, field and fix, and all at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from telemetry.hand_clock import HandClock
from tests.any_json import any_json
from tests.drawn import drawn
from workers.engines.families import families
from workers.engines.models.entries import RateLimits
from workers.engines.models.mistakes import RegistryRefused
from workers.engines.models.registry_file import MOST_BYTES, ModelRegistry, read_registry
from workers.engines.models.served_model import RateGate
from workers.engines.registry import engine_settings

# -- model registry file ---------------------------------------------------------------------------------------------
ENGINES = '[engines.e]\nkind = "openai"\n'
MODEL = '[models.m]\nengine = "e"\n'
GOOD = ENGINES + MODEL
OTHER = '[models.n]\nengine = "e"\n'
MISTAKES = {
    "": "engines: has no table; write [engines.NAME]",
    GOOD + "x = ": "is not TOML",
    "\xff": "",
    "[engines]\ne = 1\n" + MODEL: "line 2: engines.e: must be a table; write [engines.e]",
    "engine = 1\n" + GOOD: 'line 1: engine: is not known here: did you mean "engines"?',
    '[engines.e]\nkind = "opnai"\n' + MODEL: 'line 2: engines.e.kind: is no engine: did you mean "openai"?',
    "[engines.e]\n" + MODEL: "line 1: engines.e.kind: is missing; add it",
    ENGINES + "attemps = 3\n" + MODEL: 'line 3: engines.e.attemps: is not known here: did you mean "attempts"?',
    ENGINES + 'api_key = """\n[a]\n"""\nattemps = 3\n' + MODEL: "line 6: engines.e.attemps: is not known here: did you",
    ENGINES + "attempts = 0\n" + MODEL: "line 3: engines.e.attempts: must be greater than or equal to 1",
    ENGINES + 'api_key = "sk-hush"\n' + MODEL: "line 3: engines.e.api_key: holds the key in clear text; write { env",
    ENGINES + 'api_key = { env = "NO_SUCH" }\n' + MODEL: "line 3: engines.e.api_key: the environment has no variable",
    ENGINES + 'api_key = { env = "BLANK" }\n' + MODEL: "line 3: engines.e.api_key: the variable BLANK is empty",
    ENGINES + 'api_key = { env = "BROKEN" }\n' + MODEL: "the key of BROKEN has characters that no HTTP header takes",
    ENGINES + 'api_key = { file = "/no/such/key" }\n' + MODEL: "the file /no/such/key cannot be read: No such file",
    ENGINES + "api_key = { vault = 1 }\n" + MODEL: "line 3: engines.e.api_key: must be { env =",
    ENGINES + 'addresses = ["ftp://a"]\n' + MODEL: "line 3: engines.e.addresses: entry 1 must be an http or https URL",
    ENGINES + 'addresses = ["http://a", "http://a"]\n' + MODEL: "engines.e.addresses: has one URL twice",
    ENGINES + "addresses = []\n" + MODEL: "engines.e.addresses: must be a list of 1 to 64 URLs",
    ENGINES + 'base_url = "http://a"\n' + MODEL: "engines.e.base_url: stands in `addresses`; move it there",
    ENGINES + 'family = "qwq"\n' + MODEL: "engines.e.family: stands in the tables of the models; move it there",
    ENGINES + 'model = "x"\n' + MODEL: "engines.e.model: stands in the tables of the models; move it there",
    '[engines.e]\nkind = "echo"\naddresses = ["http://a"]\n' + MODEL: "engines.e.addresses: has no meaning",
    ENGINES: "models: has no table; write [models.NAME]",
    ENGINES + "[models.m]\n": "line 3: models.m.engine: is missing; add it",
    ENGINES + '[models.m]\nengine = "f"\n': 'line 4: models.m.engine: is no table of [engines]: there are: "e"',
    ENGINES + "[models.m]\nengine = 1\n": "line 4: models.m.engine: must be a valid string",
    ENGINES + '[models."a b"]\nengine = "e"\n': "line 3: models.a b: is no name that a job can give",
    GOOD + 'alias = ["x"]\n': 'line 5: models.m.alias: is not known here: did you mean "aliases"?',
    GOOD + 'aliases = [\n  "x",\n  "y z",\n]\n': "line 5: models.m.aliases.1: has characters that are not allowed",
    GOOD + OTHER + 'aliases = ["m"]\n': 'line 7: models.n.aliases: "m" is given more than once as a name, by "m", "n"',
    GOOD + 'family = "qwen"\n': "line 5: models.m.family: is no family that Postback knows; there are: deepseek-v3",
    GOOD + 'lane = "batch"\n': "line 5: models.m.lane: must be 1 to 64 letters, digits",
    GOOD + "context_tokens = 3\n": "line 5: models.m.context_tokens: must be greater than or equal to 16",
    GOOD + 'revision = "main"\n': 'line 5: models.m.revision: has no meaning for this engine ("openai"); delete it',
    GOOD + 'adapter = "law"\n': "line 5: models.m.adapter: is none of this model's `adapters`; add its folder there",
    GOOD + '[models.m.adapters]\nlaw = "/a"\n': "line 5: models.m.adapters: has no meaning for this engine",
    '[engines.e]\nkind = "echo"\n' + MODEL + "images = true\n": "models.m.images: has no meaning for this engine",
    GOOD + 'images = "yes"\n': "line 5: models.m.images: must be a valid boolean",
    GOOD + "temperature = nan\n": "line 5: models.m.temperature: must be a finite number",
    GOOD + 'profile = "medicl"\n': 'line 5: models.m.profile: is no profile: did you mean "medical"?',
    GOOD
    + "cost = { prompt = -1, completion = 1 }\n": "line 5: models.m.cost.prompt: must be greater than or equal to 0",
    GOOD + 'cost = { prompt = 1, completion = 1, currency = "usd" }\n': "models.m.cost.currency: must be three capital",
    GOOD + "limits = { requests = 1 }\n": "line 5: models.m.limits.requests: is not known here: there are: ",
    GOOD
    + "limits = { tokens_per_minute = 0 }\n": "models.m.limits.tokens_per_minute: must be greater than or equal to 1",
    GOOD + 'escalate = { to = "m", on = ["failed"] }\n': "line 5: models.m.escalate.to: is the model itself",
    GOOD + 'escalate = { to = "k", on = ["failed"] }\n': 'models.m.escalate.to: is no model: there are: "m"',
    GOOD + 'escalate = { to = "n", on = ["failed"] }\n' + OTHER + 'lane = "l"\n': "is a model of another lane",
    GOOD + 'escalate = { to = "n", on = ["slow"] }\n' + OTHER: "models.m.escalate.on.0: must be 'failed', 'not_json'",
    GOOD + 'escalate = { to = "n", on = ["low_confidence"] }\n' + OTHER: "models.m.escalate.below: is required with",
    'default = "k"\n' + GOOD: 'line 1: default: must be the name of a model; there are: "m"',
    '[engines.e]\nkind = "vllm"\n' + MODEL + OTHER: "line 6: models.n.engine: is the second vLLM model in one worker",
}
"""A file's text, and a part of its error. The test writes the text with a character beyond ASCII as Latin-1."""
FULL = """
default = "small"

[engines.hosted]
kind = "openai"
addresses = ["https://a.example/v1", "https://b.example/v1"]
api_key = { env = "KEY" }
attempts = 2

[engines.local]
kind = "vllm"
hung_seconds = 50

[models.large]
engine = "hosted"
lane = "big"

[models.small]
aliases = ["gpt-4o-mini", "default-small"]
engine = "local"
model = "google/gemma-3-270m-it"
revision = "main"
family = "gemma-3"
context_tokens = 8192
max_tokens = 64
temperature = 0.2
profile = "medical"
cost = { prompt = 0.15, completion = 0.6, currency = "EUR" }
limits = { requests_per_second = 20, tokens_per_minute = 200_000 }
escalate = { to = "medium", on = ["failed", "low_confidence"], below = 0.4 }
[models.small.adapters]
law = "/adapters/law"

[models.medium]
engine = "hosted"
"""
ENVIRONMENT = {"KEY": " sk-secret\n", "BLANK": " ", "BROKEN": "a\x00b"}


def read(path: Path, text: str | bytes, environment: Mapping[str, str] = ENVIRONMENT) -> ModelRegistry:
    file = path / "models.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode("latin-1" if "\xff" in text else "utf-8"))
    return read_registry(file, engine_settings()(), profiles=("default", "medical"), environment=environment)


def refused(path: Path, text: str | bytes) -> RegistryRefused:
    with pytest.raises(RegistryRefused) as caught:
        read(path, text)
    return caught.value


@pytest.mark.parametrize(
    ("option", "images"),
    [("", None), ("images = true\n", True), ("images = false\n", False), ('family = "claude"\n', True)],
)
def test_a_models_table_may_say_whether_it_reads_images(tmp_path: Path, option: str, images: bool | None) -> None:
    """If a model's table has no `images` and its family reads no images, the engine's own setting decides."""
    for settings_of_engine, kept in (("", images), ("images = true\n", True if images is None else images)):
        registry = read(tmp_path, ENGINES + settings_of_engine + MODEL + option)
        [section] = registry.models["m"].sections
        assert section.model_dump()["images"] is kept


def test_the_engine_gets_the_family_that_a_models_table_names(tmp_path: Path) -> None:
    """The engine separates the reasoning by the family's marks.

    An earlier version chose the marks by the model's name alone.
    """
    model = read(tmp_path, GOOD + 'family = "deepseek-r1"\n').models["m"]
    assert [section.model_family() for section in model.sections] == [families()["deepseek-r1"]]
    assert model.family == families()["deepseek-r1"]
    assert read(tmp_path, GOOD).models["m"].family is None


def test_models_of_one_folder_may_differ_in_their_adapter_and_in_settings_of_vllm(tmp_path: Path) -> None:
    """The example file of the page about rollouts has such candidates."""
    page = Path(__file__).parents[2] / "docs" / "howto" / "rollout.md"
    models = read(tmp_path, page.read_text().partition("```toml\n")[2].partition("```")[0]).models
    sections = {name: model.sections[0].model_dump() for name, model in models.items()}
    common: dict[str, Any] = {"model": "/models/small", "adapters": {}, "extra": {}}
    options = {name: {option: section[option] for option in common} for name, section in sections.items()}
    assert options == {
        "small": common,
        "small-law": {**common, "adapters": {"law": "/adapters/law-3"}},
        "small-eager": {**common, "extra": {"enforce_eager": True}},
    }
    assert [model.entry.adapter for model in models.values()] == [None, "law", None]


def test_a_complete_file_gives_each_model_its_engine_with_its_settings(tmp_path: Path) -> None:
    registry = read(tmp_path, FULL)
    assert registry.default == "small"
    assert [*registry.of_lane(None)] == ["small", "medium"]
    assert [*registry.of_lane("big")] == ["large"]
    assert registry.lanes() == {
        "small": None, "gpt-4o-mini": None, "default-small": None, "medium": None, "large": "big",
    }  # fmt: skip
    small, medium = registry.models["small"], registry.models["medium"]
    [section] = small.sections
    assert section.model_dump(include={"model", "revision", "context_tokens", "adapters", "hung_seconds"}) == {
        "model": "google/gemma-3-270m-it",
        "revision": "main",
        "context_tokens": 8192,
        "adapters": {"law": "/adapters/law"},
        "hung_seconds": 50,
    }
    both = [each.model_dump(include={"model", "base_url", "attempts"}) for each in medium.sections]
    assert both == [{"model": "medium", "base_url": f"https://{host}.example/v1", "attempts": 2} for host in ("a", "b")]
    keys = [each.model_dump()["api_key"].get_secret_value() for each in medium.sections]
    assert keys == ["sk-secret", "sk-secret"]
    assert small.entry.cost is not None and small.entry.cost.of(1_000_000, 500_000) == pytest.approx(0.45)


def test_a_file_may_hold_the_key(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-of-a-file\n")
    reference = f"api_key = {{ file = {json.dumps(str(tmp_path / 'key'))} }}\n"
    [section] = read(tmp_path, ENGINES + reference + MODEL).models["m"].sections
    assert section.model_dump()["api_key"].get_secret_value() == "sk-of-a-file"


def test_the_environments_key_goes_to_no_server_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTBACK_ENGINE__OPENAI__API_KEY", "sk-of-another-server")
    monkeypatch.setenv("POSTBACK_ENGINE__OPENAI__ATTEMPTS", "7")
    [section] = read(tmp_path, GOOD).models["m"].sections
    assert section.model_dump(include={"api_key", "attempts"}) == {"api_key": None, "attempts": 7}


@pytest.mark.parametrize(("text", "message"), MISTAKES.items())
def test_each_mistake_is_named_with_its_line_its_field_and_the_fix(text: str, message: str, tmp_path: Path) -> None:
    error = str(refused(tmp_path, text))
    assert message in error
    assert "sk-" not in error


def test_all_mistakes_of_a_file_are_named_at_once_in_the_order_of_their_lines(tmp_path: Path) -> None:
    text = (
        'default = "k"\n[engines.e]\nkind = "openai"\nattempts = 0\n'
        '[engines.f]\nkind = "echo"\n'
        '[models.m]\nengine = "f"\nfamily = "x"\ntemperature = 3\n'
        '[models.n]\nengine = "g"\n[models.o]\nengine = "f"\naliases = ["p"]\n[models.p]\nengine = "f"\n'
    )
    assert [(each.line, each.field) for each in refused(tmp_path, text).mistakes] == [
        (1, "default"),
        (4, "engines.e.attempts"),
        (9, "models.m.family"),
        (10, "models.m.temperature"),
        (12, "models.n.engine"),
        (16, "models.p.aliases"),
    ]


HIDING = """
default = "smal"

[engines.hosted]
kind = "openai"
attempts = 0
addresses = ["ftp://a"]

[engines.local]
kind = "vllm"
dtype = "int3"

[engines.odd]
kind = "antropic"
api_key = "sk-hush"
addresses = []

[models.small]
aliases = ["fast"]
engine = "hostd"
temperature = 3
profile = "medicl"
escalate = { to = "small", on = ["slow"] }

[models.large]
aliases = ["fast"]
engine = "hosted"
max_tokens = 0
revision = "main"
escalate = { to = "lrge", on = ["failed"], below = 2 }
[models.large.adapters]
law = "/a"

[models.first]
engine = "local"
context_tokens = 3

[models.second]
engine = "local"
limits = { tokens_per_minute = 0 }
escalate = { to = "third", on = ["low_confidence"] }

[models.third]
engine = "hosted"
lane = "big"
family = "x"

[models."a b"]
engine = "local"
lane = "batch"
"""
"""More than ten kinds of mistakes. Mistakes within one table must not hide mistakes between two tables."""


def test_no_mistake_of_a_table_hides_another_mistake(tmp_path: Path) -> None:
    error = refused(tmp_path, HIDING)
    assert all(each.line for each in error.mistakes)
    assert "sk-hush" not in str(error)
    assert sorted(each.field for each in error.mistakes) == [
        "default",
        "engines.hosted.addresses",
        "engines.hosted.attempts",
        "engines.local.dtype",
        "engines.odd.addresses",
        "engines.odd.api_key",
        "engines.odd.kind",
        "models.a b",
        "models.a b.lane",
        "models.first.context_tokens",
        "models.large.adapters",
        "models.large.aliases",
        "models.large.escalate.below",
        "models.large.escalate.to",
        "models.large.max_tokens",
        "models.large.revision",
        "models.second.engine",
        "models.second.escalate.below",
        "models.second.escalate.to",
        "models.second.limits.tokens_per_minute",
        "models.small.engine",
        "models.small.escalate.on.0",
        "models.small.escalate.to",
        "models.small.profile",
        "models.small.temperature",
        "models.third.family",
    ]


def test_a_missing_a_large_and_a_deeply_nested_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RegistryRefused, match="cannot be read"):
        read_registry(tmp_path / "none.toml", engine_settings()())
    assert "is larger than" in str(refused(tmp_path, "#" * (MOST_BYTES + 1)))
    for text in ("x = " + "[\n" * 50_000, "x = " + "[" * 4000, "[" + ".".join("a" * 2000) + "]", "x = " + "1" * 4090):
        assert refused(tmp_path, text)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
FIELDS = st.sampled_from(
    ("default", "engines", "models", "e", "m", "kind", "addresses", "api_key", "engine", "aliases", "cost", "escalate")
)
VALUES = any_json(
    FIELDS | st.text(max_size=4), SCALARS | st.sampled_from(("openai", "echo", "vllm", "e", "m")), leaves=12
)


def toml(value: object) -> str:
    """The value as TOML; all tables except the top one are inline."""
    match value:
        case None:
            return "''"
        case dict():
            return "{" + ", ".join(f"{json.dumps(key)} = {toml(each)}" for key, each in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value).replace("Infinity", "inf").replace("NaN", "nan")


NOISE = st.binary(max_size=300) | st.text(max_size=200).map(lambda text: text.encode(errors="replace"))
TABLES = st.dictionaries(FIELDS, VALUES, max_size=5).map(
    lambda table: "\n".join(f"{name} = {toml(value)}" for name, value in table.items()).encode()
)
CUT = st.integers(0, len(FULL)).flatmap(
    lambda at: st.binary(max_size=6).map(lambda noise: FULL[:at].encode() + noise + FULL[at:].encode())
)


@settings(max_examples=drawn(150), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(NOISE | TABLES | CUT)
def test_any_bytes_give_a_registry_or_a_clear_error(tmp_path: Path, content: bytes) -> None:
    try:
        read(tmp_path, content)
    except RegistryRefused as error:
        assert error.mistakes
        assert all(each.reason for each in error.mistakes)
        assert "sk-secret" not in str(error)


# -- rate limits -----------------------------------------------------------------------------------------------------
@given(st.lists(st.tuples(st.floats(0, 3), st.integers(1, 500)), min_size=1, max_size=60))
def test_requests_never_exceed_their_limits_beyond_one_burst(asked: list[tuple[float, int]]) -> None:
    clock = HandClock()
    gate = RateGate(RateLimits(requests_per_second=4, tokens_per_minute=6000), clock)
    sent: list[tuple[float, int]] = []
    for pause, tokens in asked:
        clock.now += pause
        sent.append((clock.now + gate.reserve(tokens), tokens))
    for start, _ in sent:
        within = [(at, tokens) for at, tokens in sent if start <= at < start + 60]
        last = max(tokens for _, tokens in within)
        assert len(within) <= 4 * 60 + 4 + 1
        assert sum(tokens for _, tokens in within) <= 6000 + 600 + last + 1e-6


def test_the_real_cost_of_a_request_counts_once_it_is_known() -> None:
    clock = HandClock()
    gate = RateGate(RateLimits(tokens_per_minute=600), clock)
    assert gate.reserve(1000) == 0
    assert gate.reserve(1) == pytest.approx(94)
    gate.settle(1001, 11)
    assert gate.reserve(1) == 0
