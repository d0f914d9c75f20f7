"""The callbacks that a replay of an endpoint selects."""

from __future__ import annotations

import pytest

from producers.selection import is_at


@pytest.mark.parametrize(
    ("url", "endpoint", "meant"),
    [
        ("https://h/in?t=1", "https://h/in?t=1", True),
        ("https://h/in?t=1", "https://h/in", False),
        ("https://h/in", "https://h", True),
        ("https://h:443/in", "https://h", True),
        ("https://h/in", "HTTPS://H:443", True),
        ("https://bücher.example/in", "https://xn--bcher-kva.example", True),
        ("https://h:8443/in", "https://h", False),
        ("http://h/in", "https://h", False),
        ("https://h/in", "https://h?", False),
        ("https://h/in", "https://h/", False),
        ("https://h/in", "h", False),
        ("http://[", "x://[", False),
        (None, "https://h", False),
    ],
)
def test_an_endpoint_is_a_url_or_an_origin_with_all_of_its_urls_in_any_spelling(
    url: str | None, endpoint: str, meant: bool
) -> None:
    assert is_at(url, endpoint) is meant
