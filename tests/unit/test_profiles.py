"""Profiles: the built-in profiles, and those of an operator."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.job import Message, Search, Sources, TextPart
from workers.enrichment.answering import profile as profile_module
from workers.enrichment.answering.grounding import GroundedPrompt
from workers.enrichment.answering.profile import ProfileRefused, Profiles, UnknownProfile

SCHEMA = '{"type": "object", "properties": {"score": {"type": "integer"}}}'


def load(folder: Path, **files: str) -> Profiles:
    for name, text in files.items():
        path = folder / (name.removesuffix("_json") + (".json" if name.endswith("_json") else ".toml"))
        path.write_text(text, encoding="utf-8")
    return Profiles.load(folder, ["pubmed", "library"])


def refusal(folder: Path, **files: str) -> str:
    """The reason for refusing the files, without the folder's path."""
    with pytest.raises(ProfileRefused) as caught:
        load(folder, **files)
    return str(caught.value).replace(f"{folder}/", "")


def test_the_three_built_in_profiles_fit_their_names() -> None:
    ours = Profiles.load()
    default, medical, finance = ours["default"], ours["medical"], ours["finance"]
    assert default.applied(Sources(), "Why?") == Sources()
    assert default.instructed(GroundedPrompt("Why?", None)) == GroundedPrompt("Why?", None)
    assert medical.search is not None
    assert (medical.search.provider, medical.required, medical.minimum_support) == ("pubmed", True, "lexical")
    assert finance.response_format is not None
    assert finance.response_format.json_schema is not None
    assert set(finance.response_format.json_schema.schema_["required"]) >= {"risk_score", finance.evidence_chain}


def test_a_user_adds_a_profile_by_putting_a_file_into_a_folder(tmp_path: Path) -> None:
    own = 'instructions = "Be brief."\nresponse_schema = "s.json"\n[search]\nprovider = "library"\nlimit = 3'
    profile = load(tmp_path, legal=own, s_json=SCHEMA)["legal"]
    assert profile.applied(Sources(required=True), "What is  a\nbridge?") == Sources(
        search=Search(provider="library", query="What is a bridge?", limit=3), required=True
    )
    assert profile.response_format is not None
    assert profile.response_format.json_schema is not None
    assert profile.response_format.json_schema.name == "legal"


def test_a_profile_of_the_folder_replaces_ours_of_the_same_name(tmp_path: Path) -> None:
    profiles = load(tmp_path, medical="required = false")
    assert not profiles["medical"].required
    assert profiles["finance"].required


def test_a_jobs_own_search_stays_and_only_the_question_of_a_long_prompt_is_searched_for(tmp_path: Path) -> None:
    profile = Profiles.load()["medical"]
    own = Sources(search=Search(provider="wikipedia", query="x"), profile="medical")
    assert profile.applied(own, "Why?").search == own.search
    searched = profile.applied(Sources(), "Background. " * 100 + "Does aspirin help?").search
    assert searched is not None
    assert searched.query.endswith("Does aspirin help?")
    assert len(searched.query) <= 300
    assert profile.applied(Sources(), "  ").search is None


def test_a_question_that_no_profile_searches_for_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a long question blocks the event loop for seconds, so unneeded questions are not read."""
    monkeypatch.setattr(profile_module, "question_in", pytest.fail)
    profiles = Profiles.load()
    assert profiles["default"].applied(Sources(), "Why?").search is None
    own = Sources(search=Search(provider="wikipedia", query="x"))
    assert profiles["medical"].applied(own, "Why?").search == own.search


def test_instructions_stand_ahead_of_the_sources_in_a_prompt_and_in_a_chat(tmp_path: Path) -> None:
    profile = load(tmp_path, brief='instructions = """\nBe brief.\n"""')["brief"]
    assert profile.instructed(GroundedPrompt("Sources. Why?", None)).prompt == "Be brief.\n\nSources. Why?"
    system, answer = Message(role="system", content="S"), Message(role="assistant", content="A")
    chat = (system, Message(role="user", content="Sources. Why?"), answer)
    assert profile.instructed(GroundedPrompt(None, chat)).messages == (
        system, Message(role="user", content="Be brief.\n\nSources. Why?"), answer,
    )  # fmt: skip
    parts = [TextPart(type="text", text="Why?")]
    (message,) = profile.instructed(GroundedPrompt(None, (Message(role="user", content=parts),))).messages or ()
    assert message.text == "Be brief.\nWhy?"


def test_an_unknown_profile_is_refused_with_the_names_of_the_known_ones() -> None:
    with pytest.raises(UnknownProfile, match="default, finance, medical"):
        Profiles.load()["legal"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("required = ", "x.toml: it is not TOML: Invalid value (at end of document)"),
        ("requierd = true", "x.toml: requierd: there is no such field; there are: instructions, required, rewrite, "),
        ("required = 1", "x.toml: required: Input should be a valid boolean"),
        ('minimum_support = "some"', "x.toml: minimum_support: Input should be 'exact', 'fuzzy' or 'lexical'"),
        ('[search]\nprovider = "pubmed"\nlimit = 99', "x.toml: search.limit: Input should be less than or equal to 20"),
        ('[search]\nprovidr = "pubmed"', "search.providr: there is no such field; there are: provider, limit"),
        ('[search]\nprovider = "brave"', "x.toml: search.provider: no provider brave is configured; there are: libr"),
        ('response_schema = "nosuch.json"', "nosuch.json: it cannot be read: No such file or directory"),
        ('response_schema = "../s.json"', "x.toml: response_schema: must be the name of a file beside it"),
        ('response_schema = "s.json"\nname = "y"', "x.toml: `name` and `response_format` cannot be set"),
        ('evidence_chain = "evidence"', "x.toml: evidence_chain: names an array of the answer, so response_schema is"),
    ],
)  # fmt: skip
def test_a_file_that_is_wrong_is_refused_by_file_field_and_fix(tmp_path: Path, text: str, why: str) -> None:
    assert why in refusal(tmp_path, x=text)


@pytest.mark.parametrize("schema", ["{", "[]", '{"type": "string"}', '{"type": "object", "maximum": NaN}'])
def test_an_invalid_schema_is_refused_by_its_file(tmp_path: Path, schema: str) -> None:
    why = refusal(tmp_path, x='response_schema = "s.json"', s_json=schema)
    assert why.startswith(("s.json: it is not JSON: ", "s.json: it must be a JSON Schema of an object"))


def test_files_that_are_no_text_or_too_large_and_a_path_that_is_no_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ProfileRefused, match=r"PROFILES_FOLDER: .* is not a folder"):
        Profiles.load(tmp_path / "nosuch")
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ProfileRefused, match=r"x\.toml: it is not UTF-8"):
        Profiles.load(tmp_path)
    (tmp_path / "x.toml").write_text("#" * 300_000)
    with pytest.raises(ProfileRefused, match=r"x\.toml: it is larger than"):
        Profiles.load(tmp_path)
    (tmp_path / "x.toml").unlink()
    (tmp_path / "my profile.toml").write_text("required = true")
    with pytest.raises(ProfileRefused, match=r"my profile\.toml: name: String should match pattern"):
        Profiles.load(tmp_path)


def test_evidence_of_a_structured_answer_can_only_name_a_source_that_is_there() -> None:
    finance = Profiles.load()["finance"]
    allowed = []
    for sources in (3, 0):
        form = finance.answer_format(sources)
        assert form is not None
        assert form.json_schema is not None
        number = form.json_schema.schema_["properties"]["evidence"]["items"]["properties"]["source"]
        allowed.append((number["minimum"], number["maximum"]))
    assert allowed == [(1, 3), (1, 1)]
    assert finance == Profiles.load()["finance"]


@pytest.mark.parametrize("items", ['{"$ref": "#/$defs/item"}', '{"properties": {"source": {"type": "string"}}}', "[]"])
def test_a_schema_that_numbers_its_sources_in_another_way_stays_as_it_is(tmp_path: Path, items: str) -> None:
    schema = f'{{"type": "object", "properties": {{"chain": {{"items": {items}}}}}}}'
    profile = load(tmp_path, own='response_schema = "s.json"\nevidence_chain = "chain"', s_json=schema)["own"]
    assert profile.answer_format(3) == profile.response_format
