"""The words of the doctor's findings."""

from __future__ import annotations

import pytest

from operators.doctor.findings import in_words


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "0 s"), (59.0, "59 s"), (60.0, "1.0 min"), (3590.0, "59.8 min"), (9000.0, "2.5 h")]
)
def test_a_length_of_time_has_the_unit_that_shows_it(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
