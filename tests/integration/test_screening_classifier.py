"""A classifier of the operator's: a real small model in its process, which may die, hang or be refused."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from schemas.job import Job, Message
from schemas.screening import ScreeningFinding, Verdict
from tests.screening_rules import found_in, screen_of
from workers.processes.model_process import ModelAway
from workers.screening.classifier_process import Classifier
from workers.screening.loading import RulesRefused
from workers.screening.rules import ClassifierRule, RegexRule
from workers.screening.rules_file import compiled
from workers.screening.screen import Screen

pytestmark = pytest.mark.usefixtures("trapped")

CONFIG = {
    "model_type": "bert", "architectures": ["BertForSequenceClassification"], "vocab_size": 5, "hidden_size": 8,
    "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "max_position_embeddings": 40,
    "id2label": {"0": "fine", "1": "toxic"}, "label2id": {"fine": 0, "toxic": 1}, "pad_token_id": 0,
}  # fmt: skip
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 32, "pad_token": "[PAD]", "unk_token": "[UNK]",
    "cls_token": "[CLS]", "sep_token": "[SEP]",
}  # fmt: skip
LAYER = "bert.encoder.layer.0"
SHAPES: dict[str, tuple[int, ...]] = {
    "bert.embeddings.word_embeddings.weight": (5, 8),
    "bert.embeddings.position_embeddings.weight": (40, 8),
    "bert.embeddings.token_type_embeddings.weight": (2, 8),
    "classifier.weight": (2, 8),
    "classifier.bias": (2,),
}
for part in ("query", "key", "value"):
    SHAPES |= {f"{LAYER}.attention.self.{part}.weight": (8, 8), f"{LAYER}.attention.self.{part}.bias": (8,)}
for part in (f"{LAYER}.attention.output", f"{LAYER}.intermediate", f"{LAYER}.output", "bert.pooler"):
    SHAPES |= {f"{part}.dense.weight": (8, 8), f"{part}.dense.bias": (8,)}
for part in ("bert.embeddings", f"{LAYER}.attention.output", f"{LAYER}.output"):
    SHAPES |= {f"{part}.LayerNorm.weight": (8,), f"{part}.LayerNorm.bias": (8,)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two labels and one layer that calls a text toxic if it has the word `bad`, in windows of 32 tokens."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG))
    tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "bad": 4}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"))
    weights = {name: numpy.zeros(shape, numpy.float32) for name, shape in SHAPES.items()}
    for name in weights:
        if name.endswith("LayerNorm.weight"):
            weights[name][:] = 1
    # Attention is uniform. The values carry the share of `bad` to [CLS] in the second of eight dimensions.
    weights["bert.embeddings.word_embeddings.weight"][:] = numpy.eye(8)[[0, 0, 0, 0, 1]]
    weights[f"{LAYER}.attention.self.value.weight"][:] = numpy.eye(8)
    weights[f"{LAYER}.attention.output.dense.weight"][:] = 40 * numpy.eye(8)
    weights["bert.pooler.dense.weight"][0, 1:3] = 10, -10
    weights["classifier.weight"][1, 0] = 40
    weights["classifier.bias"][1] = -10
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def rule(folder: Path, more: str = 'on_failure = "reject"', verdict: str = "flag") -> str:
    return (
        f'name = "model"\nkind = "classifier"\nfolder = "{folder}"\nverdict = "{verdict}"\n'
        f"labels = {{toxic = 0.5}}\nseconds = 60\n{more}"
    )


@pytest.fixture(scope="module")
def classifier(model: Path) -> Iterator[Classifier]:
    """One process for all tests, since each start imports PyTorch."""
    classifier = Classifier(model, grace_seconds=1)
    yield classifier
    classifier.close()


@pytest.fixture
def screen(classifier: Classifier, tmp_path: Path) -> Screen:
    rule = ClassifierRule(
        name="model",
        kind="classifier",
        verdict=Verdict.FLAG,
        folder=str(classifier.folder),
        labels={"toxic": 0.5},
        seconds=60,
        on_failure="reject",
    )
    reject = compiled(RegexRule(name="project", kind="regex", verdict=Verdict.REJECT, patterns=("falcon",)), tmp_path)
    screen = Screen([reject], [(rule, classifier)])
    screen.start()
    return screen


def test_a_text_is_judged_in_every_window(screen: Screen) -> None:
    assert screen.waits
    assert screen.check("acme", Job(prompt="a good day")).verdict is Verdict.PASS
    assert screen.check("acme", Job(prompt="a bad day")).findings == (
        ScreeningFinding(rule="model", kind="classifier", verdict=Verdict.FLAG, field="prompt", count=1),
    )
    long = "good " * 5000
    assert screen.check("acme", Job(prompt=long)).verdict is Verdict.PASS
    assert screen.check("acme", Job(prompt=f"{long}bad {long}")).verdict is Verdict.FLAG
    messages = [Message(role="user", content="good"), Message(role="user", content="bad")]
    assert found_in(screen.check("acme", Job(messages=messages))) == {("model", "classifier", "messages"): 1}


def test_a_job_that_another_rule_rejects_is_not_read_by_the_model(screen: Screen) -> None:
    assert [found.rule for found in screen.check("acme", Job(prompt="bad falcon")).findings] == ["project"]


def test_a_late_text_gives_no_answer_and_costs_no_process(classifier: Classifier) -> None:
    classifier.start(["toxic"])
    before = classifier.pid

    with pytest.raises(ModelAway):
        classifier.scores(["good " * 50_000], 0.001)

    assert before is not None
    assert classifier.pid == before


def test_a_dead_or_hung_process_gives_no_answer_and_the_next_job_starts_it_again(
    classifier: Classifier, screen: Screen
) -> None:
    first = classifier.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert found_in(screen.check("acme", Job(prompt="bad"))) == {("model", "unavailable", "prompt"): 1}

    assert found_in(screen.check("acme", Job(prompt="bad"))) == {("model", "classifier", "prompt"): 1}

    second = classifier.pid
    assert second is not None and second != first
    os.kill(second, signal.SIGSTOP)
    with pytest.raises(ModelAway):
        classifier.scores(["bad " * 100_000], 0.1)
    assert classifier.pid != second


@pytest.mark.parametrize(("on_failure", "verdict"), [("pass", Verdict.PASS), ("reject", Verdict.REJECT)])
def test_without_an_answer_the_verdict_is_the_rules_own(
    model: Path, tmp_path: Path, on_failure: str, verdict: Verdict
) -> None:
    screen = screen_of(tmp_path, rule(model, f'on_failure = "{on_failure}"'))
    screen.close()  # ends the classifier's process, so that no answer comes

    screened = screen.check("acme", Job(prompt="bad"))

    assert screened.verdict is verdict
    assert [found.kind for found in screened.findings] == ["unavailable"] * (on_failure == "reject")


def test_a_label_that_the_model_lacks_is_a_mistake_of_the_rule(model: Path, tmp_path: Path) -> None:
    with pytest.raises(RulesRefused, match="the model has no label rude; it has fine, toxic"):
        screen_of(tmp_path, rule(model).replace("toxic", "rude"))


def test_a_folder_without_safetensors_is_a_mistake_of_the_rule(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "id2label": {"0": "toxic"}}))

    with pytest.raises(RulesRefused, match=r"has no \*\.safetensors"):
        screen_of(tmp_path, rule(tmp_path))


def test_a_model_that_cannot_be_loaded_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "id2label": {"0": "toxic"}}))
    (tmp_path / "model.safetensors").write_bytes(b"no weights")

    with pytest.raises(RulesRefused, match=r"rule `model`: folder: .* cannot be loaded"):
        screen_of(tmp_path, rule(tmp_path)).start()
