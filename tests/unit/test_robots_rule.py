"""Postback finds the rule of a robots.txt for a URL by the user agent under which it looks for rules."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from workers.enrichment.fetching.robots_rule import crawl_delay_seconds, may_fetch
from workers.enrichment.settings import EnrichmentSettings

URL = "https://a.example/x"


def test_a_mark_of_the_encoding_before_the_first_line_changes_nothing() -> None:
    assert not may_fetch(b"\xef\xbb\xbfUser-agent: *\nDisallow: /", URL, "Postback")


def test_rules_for_our_name_take_precedence_over_rules_for_all() -> None:
    body = b"User-agent: *\nDisallow: /\n\nUser-agent: acmebot\nAllow: /\nCrawl-delay: 2\n"
    assert not may_fetch(body, URL, "Postback")
    assert may_fetch(body, URL, "AcmeBot")
    assert (crawl_delay_seconds(body, "Postback"), crawl_delay_seconds(body, "AcmeBot")) == (0.0, 2.0)


def test_the_name_for_robots_txt_is_part_of_the_user_agent() -> None:
    agent = "Mozilla/5.0 (compatible; AcmeBot/1.0; +https://acme.example/bot)"
    assert EnrichmentSettings(user_agent=agent, robots_agent="AcmeBot").robots_agent == "AcmeBot"
    with pytest.raises(ValidationError, match="robots_agent is not a part of user_agent"):
        EnrichmentSettings(user_agent=agent)
