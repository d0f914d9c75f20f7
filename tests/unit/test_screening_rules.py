"""The input filter: rules, words, personal data, redaction, and hostile texts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.job import Job, Message, Search, Sources, TextPart
from schemas.screening import Verdict
from tests.screening_rules import CARD, found_in, pii, redacted, regex, screen_of, words
from tests.unit.counted_calls import calls_of
from workers.screening.loading import RulesRefused, ScreeningSettings, load_screen
from workers.screening.plain import plain
from workers.screening.screen import Screen

# -- screening rules -------------------------------------------------------------------------------------------------
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


def refused(path: Path, content: str | bytes) -> RulesRefused:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RulesRefused) as caught:
        Screen.load(path)
    return caught.value


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_named_with_its_place_and_the_fix(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rules.toml"

    error = refused(path, text)

    [mistake] = error.mistakes
    assert MISTAKES[text] in mistake
    assert str(error) == f"{path}: {mistake}"


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    error = refused(
        tmp_path / "rules.toml",
        '[[rule]]\nname = "one"\nkind = "magic"\n'
        '[[rule]]\nname = "two"\nkind = "regex"\npatterns = ["("]\nverdict = "flag"\n',
    )

    assert [mistake.split(":")[0] for mistake in error.mistakes] == ["line 1, rule `one`", "line 4, rule `two`"]


@pytest.mark.parametrize("content", [b"\xff", b"# " + b"x" * 1024 * 1024], ids=["no UTF-8", "too large"])
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, content: bytes) -> None:
    assert len(refused(tmp_path / "rules.toml", content).mistakes) == 1


def test_a_missing_file_is_refused_with_the_setting_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(RulesRefused, match="POSTBACK_SCREENING__RULES"):
        Screen.load(tmp_path / "none.toml")


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


# -- screening words -------------------------------------------------------------------------------------------------
IS_FLAGGED = [
    "you bastard",
    "YOU BASTARD",
    "you bastards!",
    "b@stard",
    "b4$t4rd",
    "baaaastard",
    "ba\u200bst\u00adard",
    "ｂａｓｔａｒｄ",
    "𝖇𝖆𝖘𝖙𝖆𝖗𝖉",
    "b\u0336a\u0336s\u0336t\u0336a\u0336r\u0336d",
    "bаstаrd",  # with Cyrillic а
    "sh1t",
    "$hit",
    "SHIIIIT",
    "blow-job",
    "blow\njob",
    "a$$",
    "what a dipshit.",
    "🖕",
]
IS_INNOCENT = [
    "Scunthorpe, Penistone and Lightwater are towns",
    "The assassin classified a bass in the cockpit; the analyst assumed grass.",
    "gay marriage and gay rights",
    "a lesbian poet, a trans woman, a queer archive",
    "breast cancer screening and prostate cancer",
    "sexual health: penis, vagina, semen and rectum are words of medicine",
    "how to kill a Python process",
    "Dick Cheney met Mr Hancock; Moby-Dick is a novel",
    "the Alaskan pipeline, a hoe for the garden, and hard-core memory",
    "the A55 road and order 455; part A$5 costs $5",
    "Shiitake, Matsushita, Dickens, cocktail, button, Essex, therapist",
    "tied up in traffic, that sucks",
    "XXX marks the spot; xx% of XXXL shirts",
    "a rape crisis centre; white power supply; date raped is reported",
    "as soon as possible",
    "Die Rosette am Dom, der Lümmel von der letzten Bank",
    "Un con vélo; coño is said in Spain only",
]


@pytest.mark.parametrize("text", IS_FLAGGED)
def test_a_listed_word_is_flagged_in_any_disguise(tmp_path: Path, text: str) -> None:
    screened = screen_of(tmp_path, words()).check("acme", Job(prompt=f"Well, {text} indeed"))

    assert screened.verdict is Verdict.FLAG
    assert found_in(screened) == {("words", "words", "prompt"): 1}


@pytest.mark.parametrize("text", IS_INNOCENT)
def test_an_innocent_text_passes(tmp_path: Path, text: str) -> None:
    assert screen_of(tmp_path, words()).check("acme", Job(prompt=text)).findings == ()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("german", "So ein Scheisser, du Hurensohn"),
        ("german", "so eine Scheisse"),
        ("german", "so eine SCHEIẞE"),  # an eszett is found as double s too
        ("french", "quelle connasse"),
        ("spanish", "cabrón"),
    ],
)
def test_each_list_finds_words_of_its_language(tmp_path: Path, name: str, text: str) -> None:
    assert screen_of(tmp_path, words(f'lists = ["{name}"]')).check("acme", Job(prompt=text)).findings
    assert not screen_of(tmp_path, words('words = ["unused"]')).check("acme", Job(prompt=text)).findings


def test_everyday_words_count_where_a_rule_says_so(tmp_path: Path) -> None:
    job = Job(prompt="penis")

    assert not screen_of(tmp_path, words()).check("acme", job).findings
    assert screen_of(tmp_path, words('lists = ["english"]\neveryday = true')).check("acme", job).findings


def test_an_operator_adds_words_from_files_and_takes_words_away(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("# our own\nblockhead\nbig  fool\nfool\n", encoding="utf-8")
    screen = screen_of(tmp_path, words('lists = ["english"]\nfiles = ["own.txt"]\nexcept_words = ["Bastard", "fool"]'))

    assert screen.check("acme", Job(prompt="a BLOCKHEAD")).findings
    assert not screen.check("acme", Job(prompt="a bastard and a fool")).findings


def test_each_place_counts_once_whichever_readings_find_it(tmp_path: Path) -> None:
    screened = screen_of(tmp_path, words()).check("acme", Job(prompt="bastard, shit and shiiit, b4stard"))

    assert found_in(screened) == {("words", "words", "prompt"): 4}


# -- screening pii ---------------------------------------------------------------------------------------------------
IS_FOUND = {
    # The card networks publish these test numbers.
    "4111111111111111": "card",
    "4111-1111-1111-1111": "card",
    "4222222222222": "card",
    "5555 5555 5555 4444": "card",
    "2223 0031 2200 3222": "card",
    "3782 822463 10005": "card",
    "371449635398431": "card",
    "3056 930902 5904": "card",
    "6011 1111 1111 1117": "card",
    "3566 0020 2036 0505": "card",
    "6200 0000 0000 0005": "card",
    "４１１１ １１１１ １１１１ １１１１": "card",
    "٤١١١١١١١١١١١١١١١": "card",
    "4111\u200b1111\u200b1111\u200b1111": "card",
    "4\u03361\u03361\u03361\u0336111111111111": "card",
    # The IBAN registry gives these examples.
    "DE89 3704 0044 0532 0130 00": "iban",
    "GB29NWBK60161331926819": "iban",
    "FR14 2004 1010 0505 0001 3M02 606": "iban",
    "NO93 8601 1117 947": "iban",
    "MT84MALT011000012345MTLCAST001S": "iban",
    "CR05 0152 0200 1026 2840 66": "iban",
    "de89370400440532013000": "iban",
    "ada@example.org": "email",
    "first.last+tag@mail.example.co.uk": "email",
    "müller@exämple.de": "email",
    "ada＠example．org": "email",
    "+49 30 901820": "phone",
    "+1 (415) 555-2671": "phone",
    "+442083661177": "phone",
    "8.8.8.8": "ip",
    "2001:4860:4860::8888": "ip",
    "536-90-4399": "ssn",
    "536 90 4399": "ssn",
}
IS_NOT_FOUND = [
    "order 4111111111111112",  # the number fails the Luhn check
    "order 1234567812345670",  # the number passes the Luhn check, but has no network's prefix
    "ISBN 978-3-16-148410-0",
    "ISBN 9783161484100",
    "EAN 4006381333931",
    "0.4111111111111111",
    "sha 4111111111111111abcdef",
    "invoice 2024-11-27 17:30:00",
    "DE89 3704 0044 0532 0130 01",  # the checksum's remainder is not 1
    "DE89 3704 0044 0532 0130",  # the IBAN is two digits too short
    "DE44 words that follow",
    "@decorator and @media queries",
    "user@localhost",
    "ada@example",
    "version 8.8.8.8",
    "10.0.0.1 and 127.0.0.1 and 192.168.1.1 and 192.0.2.7",
    "999.1.1.1",
    "1.2.3.4.5",
    "std::vector and a::b and 12:30:45 and 00:1a:2b:3c:4d:5e",
    "000-12-3456 and 666-12-3456 and 987-65-4321",
    "536-00-4399 and 536-90-0000",
    "12345-536-90-4399-1",
    "+1 000 000 000",
    "a budget of 30.901820 or 2026-11-27",
    "call 112",
]


@pytest.mark.parametrize("text", IS_FOUND)
def test_personal_data_is_redacted_and_the_text_around_it_stays(tmp_path: Path, text: str) -> None:
    screen = screen_of(tmp_path, pii())

    assert redacted(screen, f"Überweise „{text}“ — danke!") == f"Überweise „[redacted:{IS_FOUND[text]}]“ — danke!"


@pytest.mark.parametrize("text", IS_NOT_FOUND)
def test_a_text_that_only_looks_like_personal_data_stays(tmp_path: Path, text: str) -> None:
    screen = screen_of(tmp_path, pii(more='regions = ["US"]'))

    assert redacted(screen, f"Note: {text}, thanks.") == f"Note: {text}, thanks."


@pytest.mark.parametrize(
    ("regions", "text", "changed"),
    [
        # A number between other groups of digits is found.
        ("", "1234 4111 1111 1111 1111 22 items", "1234 [redacted:card] 22 items"),
        ("", "+1 415 555 2671 22 items", "[redacted:phone] 22 items"),
        # A national phone number needs its region.
        ("", "030 901820", "030 901820"),
        ('regions = ["DE", "FR"]', "030 901820", "[redacted:phone]"),
        ('regions = ["US"]', "(415) 555-2671", "[redacted:phone]"),
    ],
)
def test_a_number_is_found_among_others_and_by_its_region(
    tmp_path: Path, regions: str, text: str, changed: str
) -> None:
    assert redacted(screen_of(tmp_path, pii(more=regions)), text) == changed


def test_phone_numbers_beyond_the_checked_ones_count_unchecked(tmp_path: Path) -> None:
    """A bounded number of candidates is checked; the other candidates count as numbers, so a long list hides none."""
    no_numbers = "; ".join(["+1 000 0000"] * 20_010)

    assert redacted(screen_of(tmp_path, pii()), no_numbers).count("[redacted:phone]") == 10


# -- screening redaction ---------------------------------------------------------------------------------------------
FRAGMENTS = [
    CARD, "4111111111111111", "4", "1", " ", "-", ".", ":", "+49 30 901820", "+", "@", "a", "ada@example.org",
    "[redacted:card]", "[redacted:", "]", "8.8.8.8", "536-90-4399", "DE89370400440532013000", "\u200b", "４１１１",
    "\u0301",
    "bastard", "b4$t4rd", "x", "é", "ﬁ", "日本", "\n", "İ", "ﷺ", "😀", "\x00",
]  # fmt: skip
MARKER = re.compile(r"\[redacted:(?:card|iban|email|phone|ip|ssn|pattern)\]")
texts = st.text(min_size=1, max_size=80) | st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=12).map("".join)


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Screen:
    folder = tmp_path_factory.mktemp("rules")
    return screen_of(folder, pii(more='regions = ["DE", "US"]'), words(), regex(r"x+\s?[a-z]", name="pattern"))


@given(texts)
def test_each_plain_character_knows_its_original_place(text: str) -> None:
    folded = plain(text)
    places = [folded.original(number, number + 1) for number in range(len(folded.text))]

    assert places == sorted(places)
    for character, (start, end) in zip(folded.text, places, strict=True):
        assert 0 <= start < end <= len(text)
        assert character in plain(text[start:end]).text
    assert plain(folded.text).text == folded.text


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts)
def test_only_matches_change_and_a_second_reading_changes_nothing(screen: Screen, text: str) -> None:
    job = Job(prompt=text)
    first = screen.check("acme", job)
    changed = first.job.prompt
    assert changed is not None

    kept = map(re.escape, MARKER.split(changed))
    assert re.fullmatch("(?s:.+?)".join(kept), text), "a character outside of the markers is not the original's"

    second = screen.check("acme", first.job)
    of_markers = [finding for finding in first.findings if finding.verdict is Verdict.REDACT]
    assert (second.job, second.verdict) == (first.job, first.verdict)
    assert [finding for finding in second.findings if finding.verdict is Verdict.REDACT] == of_markers
    assert len(MARKER.findall(changed)) == sum(finding.count for finding in of_markers)


@given(texts)
def test_a_card_is_found_between_any_texts_without_digits(screen: Screen, text: str) -> None:
    around = re.sub(r"[\w.,:+/@-]", "", plain(text).text)

    assert redacted(screen, f"{around} {CARD} {around}") == f"{around} [redacted:card] {around}"


def test_each_field_is_redacted_in_its_place(tmp_path: Path) -> None:
    everywhere = 'fields = ["prompt", "messages", "search", "metadata"]'
    screen = screen_of(tmp_path, pii(more=everywhere))
    job = Job(
        messages=[
            Message(role="system", content="plain"),
            Message(role="user", content=f"pay {CARD}"),
            Message(role="user", content=[TextPart(type="text", text="a"), TextPart(type="text", text=CARD)]),
        ],
        sources=Sources(
            search=Search(provider="bureau", query=f"who owns {CARD}", parameters={"card": CARD}),
            searches=[Search(provider="wikipedia", query=CARD)],
        ),
        metadata={"card": CARD, "ward": "3b"},
    )

    screened = screen.check("acme", job)

    assert found_in(screened) == {
        ("pii", "card", "messages"): 2,
        ("pii", "card", "search"): 3,
        ("pii", "card", "metadata"): 1,
    }
    messages, sources = screened.job.messages or [], screened.job.sources
    assert [message.text for message in messages] == ["plain", "pay [redacted:card]", "a\n[redacted:card]"]
    assert messages[0] is (job.messages or [])[0]
    assert sources is not None and sources.search is not None and sources.search.query == "who owns [redacted:card]"
    assert sources.search.parameters == {"card": "[redacted:card]"}
    assert [one.query for one in sources.searches] == ["[redacted:card]"]
    assert screened.job.metadata == {"card": "[redacted:card]", "ward": "3b"}


def job_with_schemas(schema: object) -> Job:
    return Job.model_validate(
        {
            "prompt": "hello",
            "tools": [
                {"type": "function", "function": {"name": "ping"}},
                {"type": "function", "function": {"name": "pay", "description": CARD, "parameters": schema}},
            ],
            "response_format": {"type": "json_schema", "json_schema": {"name": CARD, "schema": schema}},
        }
    )


def schemas_of(job: Job) -> list[object]:
    assert job.tools is not None
    assert job.response_format is not None
    assert job.response_format.json_schema is not None
    return [job.tools[1].function.parameters, job.response_format.json_schema.schema_]


def test_the_strings_of_schemas_are_redacted_like_other_texts(tmp_path: Path) -> None:
    """The model reads names of properties, descriptions, enumerated values and examples as it reads a prompt."""
    other = "5555 5555 5555 4444"
    schema = {
        "type": "object",
        "description": f"pay by {CARD}",
        "properties": {CARD: {"enum": ["a", CARD, 7, None]}, other: {"type": "string", "examples": [[{"by": CARD}]]}},
        "required": ["by"],
    }
    job, screen = job_with_schemas(schema), screen_of(tmp_path, pii())

    screened = screen.check("acme", job)

    marker = "[redacted:card]"
    assert found_in(screened) == {("pii", "card", "tools"): 6, ("pii", "card", "response_format"): 6}
    assert (
        schemas_of(screened.job)
        == [
            {
                "type": "object",
                "description": f"pay by {marker}",
                "properties": {
                    marker: {"enum": ["a", marker, 7, None]},
                    f"{marker} 2": {"type": "string", "examples": [[{"by": marker}]]},
                },
                "required": ["by"],
            }
        ]
        * 2
    )
    assert screened.job.tools is not None
    assert [tool.function.description for tool in screened.job.tools] == [None, marker]
    assert screened.job.response_format is not None
    assert screened.job.response_format.json_schema is not None
    assert screened.job.response_format.json_schema.name == marker
    assert schemas_of(job) == [schema] * 2
    again = screen.check("acme", screened.job)
    assert (again.job, again.findings) == (screened.job, screened.findings)


def test_a_rule_may_reject_a_job_by_a_string_of_its_schemas(tmp_path: Path) -> None:
    screen = screen_of(tmp_path, regex("project falcon", "reject", name="falcon"))
    deep: dict[str, object] = {"title": "project falcon"}
    for _ in range(300):
        deep = {"properties": {"a": deep}}

    assert [found.field for found in screen.check("acme", job_with_schemas(deep)).refusals] == [
        "tools",
        "response_format",
    ]


def test_the_words_of_json_schema_itself_are_no_text(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 3}}, "required": ["a"]}
    screen = screen_of(tmp_path, regex("maximum|type|object|x[A-Z]|required", "reject"))

    assert screen.check("acme", job_with_schemas(schema)).findings == ()


def test_a_match_over_several_parts_of_a_message_leaves_one_marker(tmp_path: Path) -> None:
    screen = screen_of(tmp_path, regex(r"project\s+falcon", name="falcon"))
    parts = [TextPart(type="text", text=text) for text in ("the project", "falcon flies", "project falcon")]

    screened = screen.check("acme", Job(messages=[Message(role="user", content=parts)]))

    [message] = screened.job.messages or []
    assert not isinstance(message.content, str)
    assert [*message.texts] == ["the [redacted:falcon]", " flies", "[redacted:falcon]"]
    assert found_in(screened) == {("falcon", "regex", "messages"): 2}


def test_a_text_that_markers_make_too_long_for_its_field_becomes_one_marker(tmp_path: Path) -> None:
    screen = screen_of(tmp_path, regex("[0-9]", name="digit", more='fields = ["metadata"]'))
    job = Job(prompt="hello", metadata={"row": "1 " * 1000})

    assert screen.check("acme", job).job.metadata == {"row": "[redacted:digit]"}


def test_overlapping_matches_share_one_marker(tmp_path: Path) -> None:
    screen = screen_of(tmp_path, regex("pay 4111", name="pay"), pii())

    assert redacted(screen, f"I pay {CARD} now") == "I [redacted:pay] now"


def test_a_marker_that_is_written_by_hand_shields_nothing_else(tmp_path: Path) -> None:
    screen = screen_of(tmp_path, pii(), regex("secret.*end", name="secret"))

    assert redacted(screen, f"[redacted:{CARD}]") == "[redacted:[redacted:card]]"
    assert redacted(screen, "secret [redacted:card] end") == "[redacted:secret]"


def test_the_label_of_a_marker_is_no_match(tmp_path: Path) -> None:
    screen = screen_of(tmp_path, pii(), regex("card", "reject", name="cards"), regex("redacted", name="word"))

    assert redacted(screen, f"pay {CARD}") == "pay [redacted:card]"
    assert screen.check("acme", Job(prompt="pay [redacted:card]")).verdict is Verdict.REDACT


def test_the_strictest_verdict_counts_and_a_rejected_job_is_left_as_it_is(tmp_path: Path) -> None:
    screen = screen_of(tmp_path, pii(), regex("falcon", "reject", name="falcon"), words())
    job = Job(prompt=f"you bastard, {CARD}, falcon")

    screened = screen.check("acme", job)

    assert screened.verdict is Verdict.REJECT
    assert screened.job is job
    assert [finding.rule for finding in screened.refusals] == ["falcon"]
    assert [finding.rule for finding in screened.findings] == ["pii", "falcon", "words"]


def test_rules_read_only_the_jobs_of_their_tenants(tmp_path: Path) -> None:
    screen = screen_of(
        tmp_path,
        regex("falcon", "reject", 'tenants = ["acme"]', "one"),
        regex("eagle", "reject", 'except_tenants = ["acme"]', "two"),
    )
    job = Job(prompt="falcon and eagle")

    assert [finding.rule for finding in screen.check("acme", job).findings] == ["one"]
    assert [finding.rule for finding in screen.check("other", job).findings] == ["two"]


# -- screening hostile -----------------------------------------------------------------------------------------------
REPEATED = [
    "1", "4111 ", "12 ", "a@", "a@b.co ", "+1", "+49 30 901820; ", "030 901820, ", "(", "1.2.3.4 ", ":",
    "1::2 ", "DE89 ", "536-90-4399 ", "x ", "x", "a", "bastard ", "bastaaard ", "b4$t4rd ", "４１",
    "[redacted:card]", "\n", "İ", "аb ", "\u0301\u0327", "a\u0327\u0301", "e\u200b", "ﷺ", "😀", "@", "-",
    "a-", "$",
]  # fmt: skip
CHARS = 16_384


@pytest.fixture(scope="module")
def hostile_screen(tmp_path_factory: pytest.TempPathFactory) -> Screen:
    folder = tmp_path_factory.mktemp("rules")
    return screen_of(
        folder, pii(more='regions = ["DE", "US"]'), words(), regex(r"x.*y|x", "flag"), regex(r"(a+)+\$", name="nested")
    )


def calls(screen: Screen, text: str) -> int:
    """Calls of functions during a check."""
    job = Job(prompt=text)
    return calls_of(lambda: screen.check("acme", job))


@pytest.mark.parametrize("piece", REPEATED, ids=ascii)
def test_twice_the_text_takes_at_most_twice_the_steps(hostile_screen: Screen, piece: str) -> None:
    """A step is a call of a function.

    A call takes linear time at most: RE2 never backtracks, and neither does any pattern of `re` here.
    """
    half = piece * (CHARS // 2 // len(piece))
    calls(hostile_screen, half)  # fills the caches before the calls are counted

    assert calls(hostile_screen, half + half) <= 2.2 * calls(hostile_screen, half) + 2000


@pytest.mark.parametrize("pattern", [r"(\w+\s?)+:", "(x+x+)+y", "(a|aa)+$", "^(.*?,){11}P"])
def test_a_pattern_that_backtracking_would_never_finish_ends(tmp_path: Path, pattern: str) -> None:
    screen = screen_of(tmp_path, regex(pattern, "reject"))

    assert screen.check("acme", Job(prompt="aaaa xxxx 1,2,3, " * 20_000)).verdict is Verdict.PASS


def test_every_match_of_a_long_text_is_found_also_at_the_edges_of_windows(tmp_path: Path) -> None:
    screen = screen_of(tmp_path, regex(r"\bné+d\b", name="need"))
    text = "".join(f"{'.' * gap}néééd " for gap in range(200))

    assert redacted(screen, text) == text.replace("néééd", "[redacted:need]")
    assert redacted(screen, "." * 1022 + "nééd.") == "." * 1022 + "[redacted:need]."
    assert redacted(screen, "." * 1020 + "xnééd") == "." * 1020 + "xnééd"
    assert redacted(screen, "." * 2046 + "néédx") == "." * 2046 + "néédx"


def test_a_match_is_sought_within_two_windows(tmp_path: Path) -> None:
    """Without the bound, a pattern that reads to the end of the text for each match would take quadratic time."""
    screen = screen_of(tmp_path, regex("a[^z]*z|b+", name="long"))

    assert redacted(screen, f"a{'.' * 1000}z") == "[redacted:long]"
    assert redacted(screen, f"a{'.' * 3000}z") == f"a{'.' * 3000}z"
    assert redacted(screen, "b" * 5000) == "[redacted:long]"


def test_anchors_mean_the_whole_text(tmp_path: Path) -> None:
    screen = screen_of(tmp_path, regex(r"^begin|end$", name="edge"))
    middle = " begin end " * 500

    assert redacted(screen, f"begin{middle}end") == f"[redacted:edge]{middle}[redacted:edge]"
