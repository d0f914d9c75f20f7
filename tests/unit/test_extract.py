"""Extraction of the text that a person would see from a page's bytes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devkit.site import HIDDEN_SENTENCE
from tests.drawn import drawn
from workers.enrichment.evidence import Unreadable
from workers.enrichment.fetching.robots_rule import crawl_delay_seconds, may_fetch
from workers.enrichment.readable import readable_text
from workers.enrichment.reading.extract import MAX_TEXT_CHARS, depth_exceeds, extract
from workers.enrichment.reading.inline_style import hides
from workers.enrichment.reading.markup import MAX_DEPTH

SEEN = "The Halvorsen bridge in Tarnby opened in 1987 and carries the coast road over the river Vesla to this day."


def page(more: str = "") -> bytes:
    body = f"<body><article><p>{SEEN}</p>{more}</article></body>"
    return f"<html><head><title>A bridge</title></head>{body}</html>".encode()


def text_of(body: bytes, media_type: str = "text/html", charset: str | None = "utf-8") -> str:
    """Return the main text and the rest of the text."""
    extracted = extract(body, media_type, charset)
    return f"{extracted.text}\n\n{extracted.rest}".strip()


def test_the_readable_text_is_the_main_text_or_else_the_rest() -> None:
    assert readable_text(page(), "text/html") == SEEN
    assert readable_text(f"<body><nav>{SEEN}</nav></body>".encode(), " Text/HTML ") == SEEN
    assert readable_text(SEEN.encode("utf-16"), "text/plain", charset="utf-16") == SEEN
    with pytest.raises(Unreadable):
        readable_text(b"\x89PNG", "image/png")


def test_the_example_of_the_reference_runs() -> None:
    reference = Path(__file__).parents[2] / "docs" / "reference" / "extraction.md"
    example = reference.read_text().split("```python\n")[1].split("```")[0]
    names: dict[str, object] = {}
    exec(example, names)
    assert names["text"] == "Grape."


def test_title_and_main_text_are_found() -> None:
    extracted = extract(page(), "text/html", "utf-8")
    assert extracted.title == "A bridge"
    assert SEEN in extracted.text


@pytest.mark.parametrize(
    "markup",
    [
        "<p hidden>{0}</p>",
        "<p style='display:none'>{0}</p>",
        "<p style='DISPLAY : NONE !important'>{0}</p>",
        "<p style='visibility:hidden'>{0}</p>",
        "<p style='opacity:0'>{0}</p>",
        "<p style='opacity:.01'>{0}</p>",
        "<p style='font-size:0'>{0}</p>",
        "<p style='font-size:1px'>{0}</p>",
        "<p style='position:absolute;left:-9999px'>{0}</p>",
        "<p style='position:fixed;top:-200em'>{0}</p>",
        "<p style='text-indent:-9999px'>{0}</p>",
        "<p style='margin-left:-5000px'>{0}</p>",
        "<p style='transform:translateX(-9999px)'>{0}</p>",
        "<p style='transform:scale(0)'>{0}</p>",
        "<p style='clip-path:inset(50%)'>{0}</p>",
        "<p style='position:absolute;clip:rect(0,0,0,0)'>{0}</p>",
        "<p style='height:0;overflow:hidden'>{0}</p>",
        "<p style='width:1px;height:1px;overflow:hidden'>{0}</p>",
        "<p style='color:#fff;background:#fff'>{0}</p>",
        "<p style='color:transparent'>{0}</p>",
        "<p style='color:rgba(0,0,0,0)'>{0}</p>",
        "<p style='color:#ffffff'>{0}</p>",
        "<font color=white>{0}</font>",
        "<p class='note sr-only'>{0}</p>",
        "<div class='d-none'><div><p>{0}</p></div></div>",
        "<div hidden><p hidden>{0}</p></div>",
        "<template>{0}</template>",
        "<script>document.write('{0}')</script>",
        "<textarea hidden>{0}</textarea>",
        "<!-- {0} -->",
        "<img alt='{0}'>",
        "<svg><text>{0}</text></svg>",
        "<iframe srcdoc='{0}'></iframe>",
        "<p title='{0}'></p>",
        "<p popover>{0}</p>",
        "<button aria-expanded=false aria-haspopup=menu aria-controls=menu>Menu</button><p id=menu hidden>{0}</p>",
        "<p id=named hidden>{0}</p><p aria-controls=named>A word.</p>",
        "<p style='/**/display:none'>{0}</p>",
        "<p style='display:none/**/'>{0}</p>",
        "<p style='display:no\\6e e'>{0}</p>",
        "<p style='d\\69splay:none'>{0}</p>",
        "<p style='font:0/0 a'>{0}</p>",
        "<p style='zoom:0'>{0}</p>",
        "<p style='scale:0'>{0}</p>",
        "<p style='filter:opacity(0)'>{0}</p>",
        "<p style='opacity:1%'>{0}</p>",
        "<p style='position:absolute;inset:0 auto auto -9999px'>{0}</p>",
        "<p style='margin:0 0 0 -9999px'>{0}</p>",
        "<p style='translate:-9999px'>{0}</p>",
        "<p style='-webkit-transform:translate3d(-9999px,0,0)'>{0}</p>",
        "<p style='transform:matrix(1,0,0,1,-9999,0)'>{0}</p>",
        "<p style='clip-path:polygon(0 0, 0 0)'>{0}</p>",
        "<p style='color:#fefefe'>{0}</p>",
        "<p style='-webkit-text-fill-color:transparent'>{0}</p>",
    ],
)
def test_text_that_a_person_does_not_see_is_left_out(markup: str) -> None:
    text = text_of(page(markup.format(HIDDEN_SENTENCE)))
    assert "PWNED" not in text
    assert SEEN in text


@pytest.mark.parametrize(
    "markup",
    [
        "<p style='color:#fff;background:#000'>{0}</p>",
        "<div style='background:navy'><p style='color:white'>{0}</p></div>",
        "<p style='opacity:0.9;font-size:12px;left:-3px'>{0}</p>",
        "<p style='height:0'>{0}</p>",
        "<noscript><p>{0}</p></noscript>",
        "<p aria-hidden=true>{0}</p>",
        "<div role=tabpanel hidden>{0}</div>",
        "<button aria-expanded=false aria-controls='other more'>More</button><p id=more style='display:none'>{0}</p>",
        "<p class='hidden md:block'>{0}</p>",
        "<p class='invisible lg:visible'>{0}</p>",
        "<p class='d-none d-md-block'>{0}</p>",
        "<p style='color:transparent;background:linear-gradient(red,blue);-webkit-background-clip:text'>{0}</p>",
        "<p style='margin:0 -9999px;padding:0 9999px'>{0}</p>",
        "<p style='position:absolute;left:calc(50% - 300px);transform:translate(-50%,-100%)'>{0}</p>",
        "<p style=\"background:url('a;display:none')\">{0}</p>",
        "<p style='position:absolute;clip:rect(0,100px,100px,0)'>{0}</p>",
    ],
)
def test_text_that_a_person_sees_stays(markup: str) -> None:
    assert "A second sentence, visible." in text_of(page(markup.format("A second sentence, visible.")))


@pytest.mark.parametrize(
    ("markup", "seen"),
    [
        ("<ul><li>It was closed for a year.</li><li>It was painted twice.</li></ul>", "It was painted twice."),
        ("<p>It opens at <time datetime='08:00'>eight</time> and closes at ten.</p>", "opens at eight and closes"),
        ("<p>この<b>橋</b>は<em>川</em> を越える。</p>", "この橋は川を越える。"),
    ],
)
def test_text_that_looks_like_a_menu_or_an_icon_is_read(markup: str, seen: str) -> None:
    """resiliparse 2.0.1 drops such markup."""
    text = text_of(f"<html><body><p>{SEEN}</p>{markup}</body></html>".encode())
    assert "".join(seen.split()) in "".join(text.split())


def test_menus_and_icons_are_still_left_out() -> None:
    menu = "<ul><li><a href=/a>All the bridges</a></li><li><a href=/b>All the ferries</a></li></ul>"
    html = f"<html><body>{menu}<p>{SEEN}</p><p><i>\uf101</i></p></body></html>"
    assert extract(html.encode(), "text/html", "utf-8").text == SEEN


def test_a_box_of_an_article_is_read() -> None:
    facts = "<aside><h2>Facts</h2><div>Length</div><div>412 metres</div><a href=/more>More</a></aside>"
    assert "412 metres" in text_of(page(facts))


@pytest.mark.parametrize(
    "style",
    ["{" * 100_000, "'" * 100_000, "a:" * 50_000, "width:" + "calc(" * 20_000, "color:" + "rgb(" * 20_000,
     "display:no\\", "color:" + "rgba(" + "0," * 50_000, "filter:" + "opacity(" * 20_000, "/*" * 50_000, "\\110000" * 9,
     "opacity:1.2.3"],
)  # fmt: skip
def test_an_inline_style_without_sense_is_survived(style: str) -> None:
    assert SEEN in text_of(page(f'<p style="{style}">A word.</p>'))


@given(st.text(alphabet="display:none;opacity0.-px/*\\()'calrgb#f%", max_size=60))
def test_any_inline_style_hides_or_does_not(style: str) -> None:
    assert hides(style) in (True, False)


def test_a_page_that_is_hidden_until_its_script_runs_is_read() -> None:
    body = f"<body><div style='display:none'><p>{SEEN}</p></div><p>Loading</p></body>"
    assert SEEN in text_of(body.encode())


def test_the_rest_of_a_page_is_kept_apart_from_its_main_text() -> None:
    comments = "".join(f"<li>Comment {number}: the toll was abolished in 1999.</li>" for number in range(3))
    html = f"<html><body><article><p>{SEEN * 5}</p></article><footer><ul>{comments}</ul></footer></body></html>"
    extracted = extract(html.encode(), "text/html", "utf-8")
    assert SEEN in extracted.text
    assert "1999" not in extracted.text
    assert extracted.rest.count("1999") == 3
    assert SEEN not in extracted.rest


_NESTED = ["div", "b", "span", "blockquote", "x-y", "ul><li", 'div title="<"', "!--><div", "!-- --!><div"]


@pytest.mark.parametrize("name", [*_NESTED, "table"])
def test_a_hundred_thousand_nested_tags_are_refused_before_parsing(name: str) -> None:
    with pytest.raises(Unreadable, match="nest"):
        extract(f"<{name}>".encode() * 100_000 + SEEN.encode(), "text/html", "utf-8")


@pytest.mark.parametrize("name", _NESTED)
def test_some_thousand_nested_tags_are_refused_in_the_parsed_tree(name: str) -> None:
    with pytest.raises(Unreadable, match="nest"):
        extract(f"<{name}>".encode() * 1100 + SEEN.encode(), "text/html", "utf-8")


def test_elements_that_nest_up_to_the_cap_are_read() -> None:
    body = "<div>" * (MAX_DEPTH - 2) + SEEN  # html and body are the other two levels
    assert SEEN in text_of(body.encode())


def test_end_tags_that_close_nothing_do_not_hide_the_depth() -> None:
    assert depth_exceeds("<div></b></i></x>" * 2000, MAX_DEPTH)


@pytest.mark.parametrize(
    "html",
    [
        "<p>short" * 50_000,
        "<li>a<br><img src=x>" * 5000,
        "<script>" + "'<div>'" * 5000 + "</script>",
        "<!--" + "<div>" * 5000 + "-->",
        "<svg>" + "<path d='x'/>" * 5000 + "</svg>",
        "<div><p>a</div>" * 5000,
        "<a" * 100_000,
    ],
)
def test_a_long_page_is_not_a_deep_one(html: str) -> None:
    assert not depth_exceeds(html, MAX_DEPTH)


def test_many_short_paragraphs_are_read_up_to_a_bound() -> None:
    body = ("<html><body><article>" + "<p>A short paragraph.</p>" * 40_000 + "</article></body></html>").encode()
    assert 0 < len(text_of(body)) <= MAX_TEXT_CHARS


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"%PDF-1.7 ...", "PDF"),
        (b"PK\x03\x04...", "ZIP"),
        (b"\x1f\x8b\x08\x00...", "gzip"),
        (b"\x89PNG\r\n\x1a\n", "image"),
        (b"abc\0\0\0\0\0\0\0\0", "binary"),
        (b"", "no visible text"),
        (b"<html><body><script>x</script></body></html>", "no visible text"),
    ],
)
def test_a_body_of_another_type_than_it_states_is_refused_with_the_reason(body: bytes, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        extract(body, "text/html", None)


@pytest.mark.parametrize("media_type", ["image/png", "application/octet-stream", "video/mp4"])
def test_a_type_that_is_not_read_is_named(media_type: str) -> None:
    with pytest.raises(Unreadable, match=media_type):
        extract(b"something", media_type, None)


def test_plain_text_and_pages_without_a_type_are_read() -> None:
    assert text_of(b"Just text.\n\n\n\nMore.", "text/plain") == "Just text.\n\nMore."
    assert text_of(b"Just text.", "") == "Just text."
    assert SEEN in text_of(page(), "")


@settings(max_examples=drawn(100))
@given(st.text(st.sampled_from(["a", "\n", " ", "\t", "\xa0", "\x85", "\u2028", "\u3000", "\r", "\x1c"]), max_size=30))
def test_each_run_of_blanks_becomes_one_space_and_each_run_of_empty_lines_one(between: str) -> None:
    tidied = re.sub(r"\n\s*\n+", "\n\n", re.sub(r"[^\S\n]+", " ", f"a{between}b"))
    assert text_of(f"a{between}b".encode(), "text/plain") == tidied


def test_json_becomes_lines_with_their_paths() -> None:
    body = json.dumps({"bridge": {"name": "Halvorsen", "years": [1987, 2004]}, "open": True}).encode()
    assert text_of(body, "application/json").splitlines() == [
        "bridge name: Halvorsen", "bridge years: 1987", "bridge years: 2004", "open: True",
    ]  # fmt: skip
    assert text_of(b'"x"', "application/vnd.api+json") == "x"


@pytest.mark.parametrize("body", [b"{", b"[" * 100_000, b"9" * 10_000, b'{"a": NaN'])
def test_invalid_json_is_refused(body: bytes) -> None:
    with pytest.raises(Unreadable):
        extract(body, "application/json", None)


def test_robots_rules_are_read_for_us_and_for_all() -> None:
    rules = b"User-agent: *\nDisallow: /private/\n\nUser-agent: postback\nDisallow: /not-us/\n"
    assert not may_fetch(rules, "https://a.example/not-us/x", "Postback")
    assert may_fetch(rules, "https://a.example/private/x", "Postback")
    assert not may_fetch(rules, "https://a.example/private/x", "Other")
    assert may_fetch(b"\xff\x00nonsense", "https://a.example/", "Postback")


@pytest.mark.parametrize(
    ("line", "seconds"), [("", 0.0), ("Crawl-delay: 2.5", 2.5), ("Crawl-delay: -1", 0.0), ("Crawl-delay: soon", 0.0)]
)
def test_a_robots_txt_may_ask_for_pauses(line: str, seconds: float) -> None:
    assert crawl_delay_seconds(f"User-agent: *\n{line}\nDisallow: /x\n".encode(), "Postback") == seconds
