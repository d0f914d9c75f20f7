"""No secret part of a URL reaches a log, for any scheme and spelling."""

from __future__ import annotations

import string

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from telemetry.logs import scrub

SCHEMES = ("http", "https", "redis", "rediss", "postgresql+asyncpg", "amqp", "ftp", "s3", "kafka", "x-own.scheme")
IN_URLS = string.ascii_letters + string.digits + "-._~!$&'()*+,;=:%"
SECRETS = st.text(IN_URLS, min_size=4, max_size=12).map(lambda text: f"S3{text}cr")
LABELS = st.text(string.ascii_lowercase, min_size=1, max_size=8)


@st.composite
def urls(draw: st.DrawFn) -> tuple[str, str, list[str]]:
    """A URL, its host, and its secret parts: password, path, query and fragment."""
    scheme = "".join(draw(st.sampled_from((letter, letter.upper()))) for letter in draw(st.sampled_from(SCHEMES)))
    host = draw(st.one_of(LABELS.map(lambda label: f"{label}.example"), st.just("[2001:db8::1]"), st.just("10.0.0.1")))
    before = {part: draw(st.none() | SECRETS) for part in ("user", "password")}
    userinfo = ""
    if before["user"] or before["password"]:
        userinfo = f"{before['user'] or ''}{':' + before['password'] if before['password'] else ''}@"
    behind = {sign: draw(st.none() | SECRETS) for sign in "/?#"}
    text = f"{scheme}://{userinfo}{host}{draw(st.sampled_from(('', ':6379')))}"
    text += "".join(f"{sign}{value}" for sign, value in behind.items() if value)
    return text, host, [value for value in (*before.values(), *behind.values()) if value]


@given(urls(), st.sampled_from(("{}", "cannot reach {}: refused", "url='{}'", '{{"url":"{}"}}', "({}),", "a {} b {}")))
def test_scrubbing_leaves_only_scheme_host_and_port_of_any_url(url: tuple[str, str, list[str]], line: str) -> None:
    text, host, secrets = url
    scrubbed = scrub(line.replace("{}", text))
    assert [secret for secret in secrets if secret in scrubbed] == []
    assert host in scrubbed


@given(SECRETS, st.text("/?#@:", min_size=1, max_size=4), SECRETS, st.sampled_from(SCHEMES))
def test_a_password_that_should_have_been_encoded_is_not_shown_either(
    first: str, signs: str, second: str, scheme: str
) -> None:
    """The end of a password with, say, a slash is unknown, so only the URL's scheme is shown."""
    assume(first not in second)
    scrubbed = scrub(f"{scheme}://:{first}{signs}{second}@cache.example/0")
    assert first not in scrubbed
    assert second not in scrubbed


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("HTTPS://user:pw@a.example/hook?k=v", "HTTPS://a.example/…"),
        ("redis://:pw@cache:6379/0", "redis://cache:6379/…"),
        ("see https://a.example.", "see https://a.example."),
        ("'https://a.example'", "'https://a.example"),
        ("no URL: a:b@c", "no URL: a:b@c"),
    ],
)
def test_a_url_in_a_line_is_scrubbed_and_the_other_words_stay(text: str, scrubbed: str) -> None:
    assert scrub(text) == scrubbed
