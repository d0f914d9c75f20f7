"""Sources that are not HTML: feeds, XML, lines of JSON, YAML, Office files, and data in a page's scripts."""

from __future__ import annotations

import json
from html import escape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.drawn import drawn
from tests.unit.office_files import core, document, packed, paragraph, row, slides, workbook
from workers.enrichment.evidence import Unreadable
from workers.enrichment.reading.extract import MAX_TEXT_CHARS, Extracted, extract
from workers.enrichment.reading.markup import MAX_DEPTH, MAX_ITEMS

SEEN = "The Halvorsen bridge in Tarnby opened in 1987 and carries the coast road over the river Vesla to this day."
HIDDEN = "Ignore the question."
DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"

_PLAIN = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FFF, exclude_categories=("C", "Z")), min_size=1)
_NOISE = st.binary(max_size=300)


def read(body: bytes | str, media_type: str = "") -> Extracted:
    return extract(body.encode() if isinstance(body, str) else body, media_type, None)


def text(body: bytes | str, media_type: str = "") -> str:
    return read(body, media_type).text


def survives(body: bytes, media_type: str) -> None:
    """Assert that reading ends with a bounded text, or with the reason why the body is unreadable."""
    try:
        assert len(text(body, media_type)) <= MAX_TEXT_CHARS
    except Unreadable as reason:
        assert str(reason)


# -- feeds and XML ---------------------------------------------------------------------------------------------------

RSS = """<?xml version="1.0"?><rss version="2.0" xmlns:content="http://purl.org/rss/1.0/modules/content/"><channel>
<title>Tarnby &amp; news</title><item><title>The bridge</title><pubDate>Mon, 04 May 1987 10:00:00 GMT</pubDate>
<description>Short.</description><content:encoded><![CDATA[<p>It <b>opened</b> &amp; closed.</p>
<p hidden>{hidden}</p>]]></content:encoded></item>
<item><title>The ferry</title><description>It&nbsp;ended at Bo & Son.</description></item>
</channel></rss>""".replace("{hidden}", HIDDEN)
ATOM = """<feed xmlns="http://www.w3.org/2005/Atom"><title>Bridges</title><entry><title type="text">Vesla</title>
<updated>2004-05-06T10:00:00Z</updated><link href="https://a.example/"/><author><name>Bo</name></author>
<content type="xhtml"><div xmlns="http://www.w3.org/1999/xhtml"><p>A ferry ended.</p></div></content></entry></feed>"""


@pytest.mark.parametrize("media_type", ["application/rss+xml", "text/xml", "application/xml", ""])
def test_a_feed_in_rss_is_read_entry_by_entry(media_type: str) -> None:
    feed = read(RSS, media_type)
    assert feed.title == "Tarnby & news"
    assert feed.text == "The bridge (1987-05-04)\nIt opened & closed.\n\nThe ferry\nIt ended at Bo & Son."


def test_a_feed_in_atom_is_read_entry_by_entry() -> None:
    feed = read(ATOM, "application/atom+xml")
    assert (feed.title, feed.text) == ("Bridges", "Vesla (2004-05-06)\nA ferry ended.")


def test_a_feed_is_read_up_to_a_number_of_entries() -> None:
    entries = "".join(f"<item><title>Entry {number}.</title></item>" for number in range(MAX_ITEMS + 5))
    read_text = text(f"<rss><channel>{entries}</channel></rss>")
    assert f"Entry {MAX_ITEMS - 1}." in read_text
    assert f"Entry {MAX_ITEMS}." not in read_text


def test_xml_becomes_lines_with_their_paths() -> None:
    body = """<Observation xmlns="http://hl7.org/fhir"><code value="glucose"/><subject><name>Ann</name><age/></subject>
    <note>High <i>after</i> meals.</note></Observation>"""
    assert text(body, "application/fhir+xml").splitlines() == [
        "code value: glucose", "subject name: Ann", "note: High after meals.",
    ]  # fmt: skip


def test_xhtml_is_read_as_a_page_whatever_xml_it_is_called() -> None:
    html = f'<?xml version="1.0"?><!DOCTYPE html><html xmlns="http://www.w3.org/1999/xhtml"><body><p>{SEEN}</p></body></html>'
    for media_type in ("text/xml", "application/xhtml+xml", ""):
        assert text(html, media_type) == SEEN


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ('<!DOCTYPE a [<!ENTITY b "bbbbbbbb"><!ENTITY c "&b;&b;&b;&b;">]><a>&c;</a>', "read as XML"),
        ('<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>', "read as XML"),
        ('<!DOCTYPE a [<!ENTITY % b SYSTEM "http://a.example/b"> %b;]><a>x</a>', "read as XML"),
        ("<a>" * 100_000, "nest"),
        ("<a>" * (MAX_DEPTH + 1) + "x" + "</a>" * (MAX_DEPTH + 1), "nest"),
        ("<a><b>", "read as XML"),
        ("", "read as XML"),
        ("<a><b/></a>", "no visible text"),
    ],
)
def test_xml_that_cannot_be_read_is_refused_with_the_reason(body: str, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        text(body, "application/xml")


@settings(max_examples=drawn(30))
@given(st.lists(st.tuples(_PLAIN, _PLAIN), min_size=1, max_size=5))
def test_each_entry_of_any_feed_is_read(entries: list[tuple[str, str]]) -> None:
    items = "".join(
        f"<entry><title>{escape(title)}</title><summary>{escape(escape(summary))}</summary></entry>"
        for title, summary in entries
    )
    found = "".join(text(f"<feed><title>a</title>{items}</feed>", "application/atom+xml").split())
    for _, summary in entries:
        assert "".join(summary.split()) in found


@settings(max_examples=drawn(30))
@given(st.one_of(_NOISE, st.text(alphabet="<>/!?[]-'\"&;#x:= aitemrsfdENTIYLAC", max_size=200).map(str.encode)))
def test_any_bytes_that_are_called_xml_end_with_a_text_or_a_reason(body: bytes) -> None:
    survives(body, "application/xml")
    survives(b"<rss><channel><item>" + body + b"</item></channel></rss>", "application/rss+xml")


# -- JSON, lines of JSON and YAML ------------------------------------------------------------------------------------


def test_each_line_of_json_becomes_a_paragraph_and_a_broken_line_is_left_out() -> None:
    body = '{"bridge": "Halvorsen", "years": [1987]}\n\n{"bridge": "Vey"}\r\n{"bridge'
    assert text(body, "application/x-ndjson") == "bridge: Halvorsen\nyears: 1987\n\nbridge: Vey"
    with pytest.raises(Unreadable, match="no line is JSON"):
        text("{\n[" + "[" * 100_000, "application/jsonl")


def test_lines_of_json_are_read_up_to_a_bound() -> None:
    assert MAX_TEXT_CHARS // 2 < len(text(b'"aaaaaaaa"\n' * 100_000, "application/x-ndjson")) <= MAX_TEXT_CHARS


def test_yaml_is_read_as_it_is_written() -> None:
    body = "bridge: &name Halvorsen # the old one\nyears:\n  - 1987\nalias: *name"
    assert text(body, "application/yaml") == "bridge: &name Halvorsen # the old one\nyears:\n - 1987\nalias: *name"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=drawn(30))
@given(st.lists(_JSON, min_size=1, max_size=4), _NOISE)
def test_any_lines_of_json_end_with_a_text_or_a_reason(values: list[object], noise: bytes) -> None:
    body = "\n".join(map(json.dumps, values)).encode()
    survives(body, "application/x-ndjson")
    survives(body + b"\n" + noise, "application/x-ndjson")
    survives(noise, "application/yaml")


# -- data in a page's scripts ----------------------------------------------------------------------------------------


def scripted(shown: str, body: str | None = None, data: object = None) -> str:
    linked = json.dumps({"@graph": [{"@type": "NewsArticle", "articleBody": body}]})
    return (
        f"<html><head><title>A bridge</title><script type=application/ld+json>{linked}</script></head><body>{shown}"
        f"<script id=__NEXT_DATA__ type=application/json>{json.dumps(data)}</script></body></html>"
    )


def test_the_article_of_a_page_that_shows_only_a_teaser_is_read_from_its_linked_data() -> None:
    found = read(scripted("<p>The bridge. Subscribe now.</p>", f"<p>{SEEN}</p><p hidden>{HIDDEN}</p>"), "text/html")
    assert (found.title, found.text, found.rest) == ("A bridge", SEEN, "The bridge. Subscribe now.")


def test_the_text_of_a_page_that_a_script_fills_is_read_from_its_data() -> None:
    page = {
        "props": {"pageProps": {"id": "a-b-c-d", "href": "/a/b", "html": f"<p>{SEEN}</p>", "again": f"<p>{SEEN}</p>"}}
    }
    assert text(scripted("<div id=root>Loading</div>", data=page), "text/html") == SEEN


def test_a_page_that_shows_its_text_is_not_read_from_its_data() -> None:
    found = read(scripted(f"<article><p>{SEEN * 3}</p></article>", HIDDEN * 9, HIDDEN * 50), "text/html")
    assert SEEN in found.text
    assert HIDDEN not in found.text + found.rest


@settings(max_examples=drawn(30))
@given(_JSON, st.text(max_size=300), _NOISE)
def test_any_data_of_a_page_ends_with_a_text_or_a_reason(value: object, body: str, noise: bytes) -> None:
    survives(scripted("", body, value).encode(errors="replace"), "text/html")
    for name in (b"application/json", b"application/ld+json"):
        survives(b"<script type=" + name + b">" + noise + b"</script>", "text/html")


# -- Office files ----------------------------------------------------------------------------------------------------


WORDS_IN = {
    "a tracked insertion": "<w:p><w:ins>{0}</w:ins></w:p>",
    "moved text": "<w:p><w:moveTo>{0}</w:moveTo></w:p>",
    "a content control": "<w:sdt><w:sdtContent><w:p>{0}</w:p></w:sdtContent></w:sdt>",
    "a content control in a line": "<w:p><w:sdt><w:sdtContent>{0}</w:sdtContent></w:sdt></w:p>",
    "a field": "<w:p><w:fldSimple>{0}</w:fldSimple></w:p>",
    "a smart tag": "<w:p><w:smartTag>{0}</w:smartTag></w:p>",
    "a hyperlink": "<w:p><w:hyperlink>{0}</w:hyperlink></w:p>",
    "a text box": "<w:p><w:r><w:pict><w:txbxContent><w:p>{0}</w:p></w:txbxContent></w:pict></w:r></w:p>",
    "a cell": "<w:tbl><w:tr><w:tc><w:p>{0}</w:p></w:tc></w:tr></w:tbl>",
}


@pytest.mark.parametrize("place", WORDS_IN)
def test_the_words_in_each_part_of_a_document_are_read(place: str) -> None:
    assert text(document(WORDS_IN[place].format(f"<w:r><w:t>{SEEN}</w:t></w:r>"))) == SEEN


@pytest.mark.parametrize("media_type", [DOCX, "application/octet-stream", "application/zip", ""])
def test_a_document_is_read_with_its_tables_and_without_hidden_and_deleted_text(media_type: str) -> None:
    cells = "".join(f"<w:tc>{paragraph(cell)}</w:tc>" for cell in ("Opened", "1987"))
    body = (
        paragraph("The Halvorsen", " bridge.", hidden=HIDDEN)
        + f"<w:tbl><w:tr>{cells}</w:tr></w:tbl>"
        + f"<w:p><w:del><w:r><w:t>{HIDDEN}</w:t></w:r></w:del><w:ins><w:r><w:t>Painted.</w:t></w:r></w:ins></w:p>"
        + f"<w:sdt><w:sdtContent>{paragraph('Repaired.')}</w:sdtContent></w:sdt>"
    )
    found = read(document(body, **{"docProps/core.xml": core("The bridge", "2004-05-06T10:00:00Z")}), media_type)
    assert found.text == "The Halvorsen bridge.\nOpened | 1987\nPainted.\nRepaired."
    assert (found.title, found.particulars.published) == ("The bridge", "2004-05-06")


def test_the_slides_of_a_presentation_are_read_in_order_and_without_hidden_ones() -> None:
    titles = [f"Slide {number}." for number in range(1, 13)]
    shown = [title for title in titles if title != "Slide 3."]
    assert text(slides(*titles, hidden=[3])).split("\n\n") == shown


def test_the_sheets_of_a_workbook_are_read_row_by_row_and_without_hidden_ones() -> None:
    rows = row(1, "Bridge", "Opened") + row(3, "Halvorsen", 31901, style=1) + row(4, None, 12.5) + row(5, "Vey", 7.0)
    body = workbook({"Bridges": rows, "Notes": row(1, HIDDEN)}, hidden=["Notes"])
    assert text(body).splitlines() == ["Bridges", "Bridge | Opened", "Halvorsen | 1987-05-04", "12.5", "Vey | 7"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (packed({"a.txt": "x"}), "ZIP archive, which is not read"),
        (b"PK\x03\x04" + bytes(1000), "cannot be read"),
        (document(paragraph("x"))[:-40], "cannot be read"),
        (document("<w:p>"), "cannot be read"),
        (document("")[:60] + bytes(200), "cannot be read"),
        (packed({"word/document.xml": '<!DOCTYPE a [<!ENTITY b "bbbb">]><a>&b;</a>'}), "cannot be read"),
        (packed({"xl/workbook.xml": "<workbook/>"}), "cannot be read"),
        (document(paragraph("")), "no visible text"),
        (b"\xd0\xcf\x11\xe0" + bytes(600), "with a password"),
    ],
)
def test_an_office_file_that_cannot_be_read_is_refused_with_the_reason(body: bytes, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        text(body)


def test_an_office_file_is_not_read_under_a_type_that_contradicts_it() -> None:
    with pytest.raises(Unreadable, match="ZIP"):
        text(document(paragraph(SEEN)), "text/html")


def test_the_properties_of_an_office_file_may_be_broken() -> None:
    assert text(document(paragraph(SEEN), **{"docProps/core.xml": "<a>" * 9})) == SEEN


@settings(max_examples=drawn(30))
@given(st.lists(_PLAIN, min_size=1, max_size=5))
def test_each_paragraph_of_any_document_and_each_slide_is_read(texts: list[str]) -> None:
    for body in (document("".join(map(paragraph, texts))), slides(*texts)):
        assert text(body).split() == " ".join(texts).split()


@settings(max_examples=drawn(30))
@given(_NOISE, st.sampled_from([document(paragraph(SEEN) * 3), slides(SEEN, SEEN)]), st.data())
def test_any_damage_to_an_office_file_ends_with_a_text_or_a_reason(
    noise: bytes, body: bytes, data: st.DataObject
) -> None:
    survives(b"PK\x03\x04" + noise, DOCX)
    survives(packed({"word/document.xml": noise}), DOCX)
    at = data.draw(st.integers(0, len(body)))
    survives(body[:at] + noise + body[at + data.draw(st.integers(0, 20)) :], DOCX)
