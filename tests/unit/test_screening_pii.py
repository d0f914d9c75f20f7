"""Personal data that the input filter finds, and texts that only look like it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.screening_rules import pii, redacted, screen_of

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


def test_a_number_between_other_groups_of_digits_is_found(tmp_path: Path) -> None:
    screen = screen_of(tmp_path, pii())

    assert redacted(screen, "1234 4111 1111 1111 1111 22 items") == "1234 [redacted:card] 22 items"
    assert redacted(screen, "+1 415 555 2671 22 items") == "[redacted:phone] 22 items"


def test_a_national_phone_number_needs_its_region(tmp_path: Path) -> None:
    assert redacted(screen_of(tmp_path, pii()), "030 901820") == "030 901820"
    assert redacted(screen_of(tmp_path, pii(more='regions = ["DE", "FR"]')), "030 901820") == "[redacted:phone]"
    assert redacted(screen_of(tmp_path, pii(more='regions = ["US"]')), "(415) 555-2671") == "[redacted:phone]"


def test_phone_numbers_beyond_the_checked_ones_count_unchecked(tmp_path: Path) -> None:
    """A bounded number of candidates is checked; the other candidates count as numbers, so a long list hides none."""
    no_numbers = "; ".join(["+1 000 0000"] * 20_010)

    assert redacted(screen_of(tmp_path, pii()), no_numbers).count("[redacted:phone]") == 10
