"""The head of a proxy's answer to CONNECT, whatever bytes a proxy sends, and the settings of the proxy."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.settings import SettingsRefused, read_settings
from workers.egress import EgressSettings, ProxyFailed
from workers.egress.proxy import MAX_HEAD_BYTES, read_credentials, status_in

STATUSES = st.integers(100, 999)
PHRASES = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40)
FIELDS = st.lists(st.tuples(st.from_regex(r"[A-Za-z-]{1,20}", fullmatch=True), PHRASES), max_size=5)


def head(status: int, phrase: str, fields: list[tuple[str, str]]) -> bytes:
    """The head of an answer with this status and these fields, by RFC 9112."""
    lines = [f"HTTP/1.1 {status} {phrase}", *(f"{name}: {value}" for name, value in fields), "", ""]
    return "\r\n".join(lines).encode()


@given(STATUSES, PHRASES, FIELDS, st.data())
def test_the_status_of_every_head_is_read_once_the_head_is_complete(
    status: int, phrase: str, fields: list[tuple[str, str]], data: st.DataObject
) -> None:
    whole = head(status, phrase, fields)
    assert status_in(whole) == status
    assert status_in(whole[: data.draw(st.integers(0, len(whole) - 2))]) is None


@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda noise: b"HTTP/1.1 2" + noise + b"\r\n\r\n"))
def test_any_bytes_of_a_proxy_raise_only_the_proxy_s_own_errors(noise: bytes) -> None:
    try:
        status = status_in(noise)
    except ProxyFailed:
        return
    assert status is None or 100 <= status <= 999


@given(STATUSES, st.binary(min_size=1))
def test_bytes_after_the_head_of_an_open_tunnel_are_refused(status: int, more: bytes) -> None:
    whole = head(status, "", []) + more
    if 200 <= status <= 299:
        with pytest.raises(ProxyFailed):
            status_in(whole)
    else:
        assert status_in(whole) == status


def test_a_head_without_an_end_is_refused_beyond_the_limit() -> None:
    endless = b"HTTP/1.1 200 OK\r\nA: " + b"a" * MAX_HEAD_BYTES
    assert status_in(endless[:MAX_HEAD_BYTES]) is None
    with pytest.raises(ProxyFailed):
        status_in(endless)


@pytest.mark.parametrize(
    ("value", "place"),
    [("http://proxy.corp.example:3128", ("proxy.corp.example", 3128)), ("http://[fd00::7]:80/", ("fd00::7", 80))],
)
def test_a_proxy_is_set_by_its_address(value: str, place: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTBACK_EGRESS__PROXY", value)
    found = EgressSettings().fetch_proxy()
    assert found is not None
    assert (found.host, found.port) == place


@pytest.mark.parametrize(
    "value",
    ["proxy:3128", "https://proxy:3128", "http://proxy", "http://user:s3cret@proxy:3128", "http://proxy:0",
     "http://proxy:65536", "http://[fd00:::7]:80", "http://proxy:3128/path", "socks5://proxy:1080", "",
     "http://proxy..example:3128", f"http://{'a' * 64}:3128"],
)  # fmt: skip
def test_any_other_value_is_refused_and_not_shown(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTBACK_EGRESS__PROXY", value)
    with pytest.raises(SettingsRefused, match=r"^POSTBACK_EGRESS__PROXY: ") as refused:
        read_settings(EgressSettings)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    "content", [b"", b"user", b":password", b"user:pass\nsecond:line", b"\xff:\xfe", b"a:b" * 2000]
)
def test_a_file_without_one_line_of_credentials_is_refused_at_the_start(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "credentials"
    file.write_bytes(content)
    monkeypatch.setenv("POSTBACK_EGRESS__PROXY_CREDENTIALS", str(file))
    with pytest.raises(SettingsRefused, match="credentials of the operator's proxy"):
        read_settings(EgressSettings)


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_password_may_end_with_a_space(end: str, tmp_path: Path) -> None:
    (tmp_path / "credentials").write_bytes(f"fleet: a password {end}".encode())
    assert read_credentials(tmp_path / "credentials") == "fleet: a password "
