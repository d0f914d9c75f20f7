"""The operator's file: each mistake is named with its line, its rule and the fix, and all at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.job import Job
from screening.loading import load_screen
from screening.refused import RulesRefused
from screening.screen import Screen
from screening.settings import ScreeningSettings

MISTAKES = {
    'rule = 1': "`rule` is not a list of tables",
    "": "has no rule",
    'rules = "x"\n[[rule]]\nname = "a"\nkind = "pii"\nfind = ["card"]\nverdict = "flag"': "`rules` is not known here",
    "[[rule]]\nname =": "is not TOML",
    '[[rule]]\nname = "a"': "line 1, rule `a`: kind: is missing; it is regex, pii, words or classifier",
    '[[rule]]\nname = "a"\nkind = "magic"': "line 1, rule `a`: kind: is not known",
    '[[rule]]\nname = "A B"\nkind = "words"\nwords = ["x"]': "rule `A B`: name: is not 1 to 63 lower-case letters",
    '# note\n\n[[rule]]\nname = "a"\nkind = "regex"\nverdict = "flag"': "line 3, rule `a`: patterns: Field required",
    '[[rule]]\nname = "a"\nkind = "regex"\npatterns = ["(b"]\nverdict = "flag"':
        "rule `a`: pattern 1 of `patterns`: RE2 does not take it (missing ): (b)",
    '[[rule]]\nname = "a"\nkind = "regex"\npatterns = ["c", "(?=b)"]\nverdict = "flag"': "pattern 2 of `patterns`",
    '[[rule]]\nname = "a"\nkind = "regex"\npatterns = ["b*"]\nverdict = "flag"': "matches the empty text",
    "[[rule]]\nname = 'a'\nkind = 'regex'\npatterns = ['\\C']\nverdict = 'flag'": "matches half a character",
    '[[rule]]\nname = "a"\nkind = "pii"\nfind = ["cards"]\nverdict = "flag"': "find.0: Input should be 'card', 'iban'",
    '[[rule]]\nname = "a"\nkind = "pii"\nfind = ["card"]\nverdict = "pass"': "a rule may flag, redact or reject",
    '[[rule]]\nname = "a"\nkind = "pii"\nfind = ["card"]\nverdict = "flag"\nregions = ["de"]': "two capital letters",
    '[[rule]]\nname = "a"\nkind = "pii"\nfind = ["card"]\nverdict = "flag"\nfields = ["body"]': "fields.0: Input",
    '[[rule]]\nname = "a"\nkind = "pii"\nfind = ["card"]\nverdict = "flag"\ntenants = []': "tenants: Tuple",
    '[[rule]]\nname = "a"\nkind = "pii"\nfind = ["card"]\nverdict = "flag"\ntenants = ["b"]\nexcept_tenants = ["c"]':
        "has `tenants` and `except_tenants`; keep one of them",
    '[[rule]]\nname = "a"\nkind = "pii"\nfind = ["card"]\nverdict = "flag"\nignore_case = true':
        "ignore_case: is no option of this kind of rule",
    '[[rule]]\nname = "a"\nkind = "words"': "has no words; name `lists`, `files` or `words`",
    '[[rule]]\nname = "a"\nkind = "words"\nfiles = ["none.txt"]': "cannot be read (No such file or directory)",
    '[[rule]]\nname = "a"\nkind = "words"\nwords = ["x"]\nexcept_words = ["X"]': "has no words left",
    '[[rule]]\nname = "a"\nkind = "words"\nwords = ["x"]\n[[rule]]\nname = "a"\nkind = "words"\nwords = ["y"]':
        "line 5, rule `a`: has the name of line 1, rule `a`; give each rule its own name",
    '[[rule]]\nname = "a"\nkind = "classifier"\nfolder = "m"\nlabels = {a = 1}\nverdict = "redact"': "cannot redact",
    '[[rule]]\nname = "a"\nkind = "classifier"\nfolder = "m"\nlabels = {toxic = 0.5}\nverdict = "flag"':
        "has no config.json that can be read",
}  # fmt: skip


def refused(path: Path) -> RulesRefused:
    with pytest.raises(RulesRefused) as caught:
        Screen.load(path)
    return caught.value


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_named_with_its_place_and_the_fix(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(text, encoding="utf-8")

    error = refused(path)

    [mistake] = error.mistakes
    assert MISTAKES[text] in mistake
    assert str(error) == f"{path}: {mistake}"


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(
        '[[rule]]\nname = "one"\nkind = "magic"\n'
        '[[rule]]\nname = "two"\nkind = "regex"\npatterns = ["("]\nverdict = "flag"\n'
    )

    assert [mistake.split(":")[0] for mistake in refused(path).mistakes] == ["line 1, rule `one`", "line 4, rule `two`"]


@pytest.mark.parametrize("content", [b"\xff", b"# " + b"x" * 1024 * 1024], ids=["no UTF-8", "too large"])
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rules.toml"
    path.write_bytes(content)

    assert len(refused(path).mistakes) == 1


def test_a_missing_file_is_refused_with_the_setting_that_names_it(tmp_path: Path) -> None:
    assert "POSTBACK_SCREENING__RULES" in str(refused(tmp_path / "none.toml"))


def test_without_the_setting_there_is_no_filter() -> None:
    assert load_screen(ScreeningSettings(rules=None)) is None


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["pii", "flag", "card", "regex"]),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)
tables = st.dictionaries(st.sampled_from(["name", "kind", "find", "verdict", "words"]), values)
files = tables.map(lambda table: "[[rule]]\n" + "".join(f"{key} = {value!r}\n" for key, value in table.items()))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=200) | files)
def test_any_file_gives_a_filter_or_a_refusal(tmp_path: Path, text: str) -> None:
    path = tmp_path / "any.toml"
    path.write_text(text, encoding="utf-8")
    try:
        screen = Screen.load(path)
    except RulesRefused as error:
        assert error.mistakes
    else:
        screen.check("acme", Job(prompt="hello"))
