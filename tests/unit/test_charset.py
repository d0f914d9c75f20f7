"""A page's charset follows from its declaration, which is read as browsers read it, and from the page's bytes."""

from __future__ import annotations

import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_extract import text_of
from workers.enrichment.reading.charset import decode

RUSSIAN = "Мост Халворсена в Тарнби был открыт в 1987 году и с тех пор соединяет два берега реки. "  # noqa: RUF001 - Russian
PRICES = "Three for 24.00 €, five for 29.00 €, ten for 39.00 €. Bird bath “Finch”, 39.00 €. "
JAPANESE = "この橋は1987年に開通し、それ以来二つの岸を結んでいます。"


@pytest.mark.parametrize(
    ("text", "encoding", "declared"),
    [
        (RUSSIAN, "cp1251", "windows-1251"),
        (RUSSIAN, "cp1251", None),
        (RUSSIAN, "cp1251", "utf-8"),
        (RUSSIAN, "cp1251", "zlib"),
        (RUSSIAN, "utf-8", "iso-8859-1"),
        (RUSSIAN, "utf-8", None),
        (JAPANESE, "shift_jis", "Shift_JIS"),
        (JAPANESE, "shift_jis", "utf-8"),
        (JAPANESE, "iso2022_jp", "iso-2022-jp"),
        (JAPANESE, "iso2022_jp", None),
        (JAPANESE, "iso2022_jp", "utf-8"),
        (JAPANESE, "utf-16", None),
        (PRICES, "cp1252", None),
        ("Brücke", "cp1252", "latin1"),
        ("plain", "ascii", None),
    ],
)
def test_a_charset_is_found_whatever_is_declared(text: str, encoding: str, declared: str | None) -> None:
    assert decode((text * 3).encode(encoding), declared) == text * 3


def test_a_page_may_declare_its_charset_itself() -> None:
    body = f"<meta http-equiv=Content-Type content='text/html; charset=windows-1251'>{RUSSIAN}".encode("cp1251")
    assert RUSSIAN in decode(body, None)
    assert RUSSIAN in decode(f'<meta charset="windows-1251">{RUSSIAN}'.encode("cp1251"), "utf-8")


def test_xml_may_declare_its_charset() -> None:
    body = f'<?xml version="1.0" encoding="windows-1251"?><a>{RUSSIAN}</a>'.encode("cp1251")
    assert text_of(body, "application/xml", None) == RUSSIAN.strip()


@pytest.mark.parametrize(
    ("text", "encoding", "label"),
    [
        ("①株式会社のページ", "cp932", "shift_jis"),
        ("똠방각하의 글", "cp949", "euc-kr"),
        ("朱镕基", "gb18030", "gb2312"),
    ],
)
def test_a_label_means_the_charset_that_browsers_take_it_for(text: str, encoding: str, label: str) -> None:
    assert decode(text.encode(encoding), label) == text
    meta = f"<meta charset={label}>"
    assert decode(meta.encode() + text.encode(encoding), None) == meta + text


@pytest.mark.parametrize("label", ["punycode", "unicode_escape", "utf-7", "zlib", "rot13", "x" * 10_000, "\0"])
def test_a_codec_that_is_no_charset_of_browsers_is_not_used(label: str) -> None:
    assert decode(b"\\u003cp\\u003e +ADw- abc-", label) == "\\u003cp\\u003e +ADw- abc-"
    assert decode(f"<meta charset={label}>+ADw-".encode(), None) == f"<meta charset={label}>+ADw-"


@given(st.binary(max_size=200), st.text(max_size=20))
def test_any_bytes_and_any_label_are_decoded(body: bytes, label: str) -> None:
    assert isinstance(decode(body, label), str)
    assert isinstance(decode(b'<?xml version="1.0" encoding="' + body + b'"?>', None), str)


def test_a_byte_order_mark_beats_the_header_and_is_dropped() -> None:
    assert decode(codecs.BOM_UTF8 + "é".encode(), "iso-8859-1") == "é"


GERMAN = "Die Brücke über den Fluß wurde 1987 für den Verkehr geöffnet. "
LONG = 2000


@pytest.mark.parametrize("declared", ["utf-8", None, "iso-8859-1"])
@pytest.mark.parametrize("text", [GERMAN, RUSSIAN, JAPANESE])
@pytest.mark.parametrize("stray", [b"\xff", b"\xc3", b"\xe2\x82"])
def test_a_stray_byte_costs_a_page_of_utf_8_one_character(text: str, declared: str | None, stray: bytes) -> None:
    half = (text * LONG).encode()
    assert decode(half + stray + half, declared) == text * LONG + "\ufffd" + text * LONG


def test_a_stray_byte_costs_a_page_of_its_declared_charset_one_character() -> None:
    for text, encoding in ((RUSSIAN, "windows-1251"), (JAPANESE, "shift_jis"), (JAPANESE, "euc_jp")):
        half = (text * LONG).encode(encoding)
        stray = b"\x98" if encoding == "windows-1251" else b"\xff"
        decoded = decode(half + stray + half, encoding)
        assert decoded.startswith(text * LONG)
        assert decoded.endswith(text * (LONG - 1))
        meta = f"<meta charset={encoding}>".encode()
        assert decode(meta + half + stray + half, None).endswith(text * (LONG - 1))


def test_windows_1252_has_a_character_for_each_byte() -> None:
    """Browsers decode five bytes of windows-1252 as control characters (WHATWG Encoding, section 9)."""
    for stray in b"\x81\x8d\x8f\x90\x9d":
        body = GERMAN.encode("cp1252") + bytes([stray]) + GERMAN.encode("cp1252")
        for label in ("latin1", "windows-1252"):
            assert decode(body, label) == f"{GERMAN}{chr(stray)}{GERMAN}"


def test_a_few_characters_of_another_charset_do_not_make_a_page_utf_8() -> None:
    text = "It\u2019s the bridge that opened in 1987, and the ferry\u2019s end. " + "The coast road runs over it. " * 40
    assert decode(text.encode("cp1252") * 10, "utf-8") == text * 10


def test_a_byte_order_mark_is_believed_whatever_follows() -> None:
    assert decode(codecs.BOM_UTF8 + GERMAN.encode() + b"\xff", "utf-8") == GERMAN + "\ufffd"
    body = codecs.BOM_UTF16_LE + RUSSIAN.encode("utf-16-le") + b"\x00"
    assert decode(body, None) == RUSSIAN + "\ufffd"


@pytest.mark.parametrize("shift", [0, 1])
def test_a_charset_is_detected_wherever_the_sample_ends(shift: int) -> None:
    text = "x" * shift + (JAPANESE + "\n") * 5000
    assert decode(text.encode("shift_jis"), None) == text


def test_bytes_that_are_no_text_at_all_are_survived() -> None:
    assert decode(bytes(range(128, 256)) * 4, "utf-8")
