"""Log lines: their form on a pipe and on a terminal, and the secrets that they never contain."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel
from structlog.testing import capture_logs

from telemetry.logs import configure, get_logger, log_context, origin_of, redact
from tests.process_state import state_kept

SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"  # the Standard Webhooks specification has this example
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


PRIVATE_NAMES = (
    "secret token password authorization prompt messages text body Authorization sasl_password api-key a.b_body"
)


class Strict(BaseModel):
    prompt: str


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def pipe() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    with state_kept():
        configure("worker", stream=stream, level="INFO")
        yield stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_on_a_pipe_is_one_ecs_object(pipe: io.StringIO) -> None:
    get_logger().info("A job was settled.", action="job_settled", job_id="j1", offset=7)
    [line] = lines(pipe)
    assert line.pop("@timestamp").endswith("Z")
    assert line.pop("process.pid") > 0
    assert line == {
        "log.level": "info",
        "message": "A job was settled.",
        "ecs.version": "9.4.0",
        "service.name": "worker",
        "log.logger": "postback",
        "event.action": "job_settled",
        "postback.job_id": "j1",
        "postback.offset": 7,
    }


def test_a_line_on_a_terminal_is_readable_text() -> None:
    stream = Terminal()
    with state_kept():
        configure("worker", stream=stream)
        get_logger().warning("The broker is away.", action="broker_away", token="abc")
    assert "The broker is away." in stream.getvalue()
    assert "\x1b[" in stream.getvalue()
    assert "abc" not in stream.getvalue()


def test_a_librarys_line_ends_in_the_same_stream(pipe: io.StringIO) -> None:
    logging.getLogger("aiohttp.server").error("Error handling %s", "request")
    [line] = lines(pipe)
    assert (line["message"], line["log.logger"], line["log.level"]) == (
        "Error handling request",
        "aiohttp.server",
        "error",
    )


def test_the_job_in_the_context_stands_on_every_line(pipe: io.StringIO) -> None:
    with log_context(job_id="j1", traceparent=TRACEPARENT):
        get_logger().info("A job was taken.", action="job_taken")
    get_logger().info("Idle.", action="idle")
    inside, outside = lines(pipe)
    assert inside["postback.job_id"] == "j1"
    assert inside["trace.id"] == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert inside["span.id"] == "00f067aa0ba902b7"
    assert "trace.id" not in outside
    assert "postback.job_id" not in outside


def test_an_exception_is_named_and_its_text_is_scrubbed(pipe: io.StringIO) -> None:
    try:
        raise RuntimeError(f"refused {SECRET} at https://user:pw@example.com/hook/tok?k=v")
    except RuntimeError:
        get_logger().exception("A callback failed.", action="callback_failed")
    [line] = lines(pipe)
    assert line["error.type"] == "RuntimeError"
    assert "RuntimeError" in line["error.stack_trace"]
    assert "https://example.com/…" in line["error.message"]
    for private in ("C2FVsBQI", "user:pw", "hook/tok", "k=v"):
        assert private not in pipe.getvalue()


def test_the_input_that_pydantic_quotes_is_not_logged(pipe: io.StringIO) -> None:
    document = {"prompt": ["my private question"]}
    try:
        Strict.model_validate(document)
    except ValueError:
        get_logger().exception("A job is invalid.", action="job_invalid")
    assert "string_type" in pipe.getvalue()
    assert "my private question" not in pipe.getvalue()


@pytest.mark.parametrize("name", PRIVATE_NAMES.split())
def test_a_field_with_a_private_name_is_redacted(name: str) -> None:
    assert redact({"a": [{name: "hunter2"}]}) == {"a": [{name: "[redacted]"}]}
    assert redact({name: ["hunter2"]}) == {name: "[redacted]"}


@pytest.mark.parametrize("name", ["prompt_tokens", "body_bytes", "context", "job_id", "key"])
def test_a_count_or_an_id_is_not_redacted(name: str) -> None:
    assert redact({name: 5}) == {name: 5}


def test_a_secret_in_any_string_is_redacted() -> None:
    assert redact({"note": f"key {SECRET}, whsk_AAAA+/=="}) == {"note": "key whsec_[redacted], whsk_[redacted]"}
    assert redact("Authorization: Bearer abcdefgh12345") == "Authorization: Bearer [redacted]"


def test_an_unknown_object_is_named_by_its_type_only() -> None:
    assert redact({"job": Strict(prompt="my private question"), "raw": b"abc"}) == {
        "job": "<Strict>",
        "raw": "<3 bytes>",
    }


def test_lines_can_be_captured_by_tests(pipe: io.StringIO) -> None:
    with capture_logs() as captured:
        get_logger().info("A job was taken.", action="job_taken")
    assert captured == [{"event": "A job was taken.", "action": "job_taken", "log_level": "info"}]
    assert pipe.getvalue() == ""


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://user:pw@example.com/hook/tok?k=v#f", "https://example.com"),
        ("http://example.com:8080/x", "http://example.com:8080"),
        ("http://[::1]:8080/x", "http://[::1]:8080"),
        ("HTTPS://Example.COM:443/x", "https://example.com"),
        ("http://example.com:0080", "http://example.com"),
        ("http://example.com:443/", "http://example.com:443"),
        ("http://[2001:DB8:0:0::1]:80/x", "http://[2001:db8::1]"),
        ("https://BÜCHER.example/x", "https://xn--bcher-kva.example"),
        ("https://xn--bcher-kva.example", "https://xn--bcher-kva.example"),
        ("https://faß.example", "https://xn--fa-hia.example"),
        ("https://☃.example", "https://xn--n3h.example"),
        ("http://example。com/", "http://example.com"),
        ("http://my_host.example./x", "http://my_host.example."),
        ("file:///etc/passwd", "file:"),
        ("http://example.com:99999/x", "(not a URL)"),
        ("http://[", "(not a URL)"),
        ("http://[::1::]/", "(not a URL)"),
        ("http://a\u202eb.example/", "(not a URL)"),
        ("/hook/secret", "(not a URL)"),
        ("secret", "(not a URL)"),
        ("", "(not a URL)"),
    ],
)
def test_the_origin_of_a_url_says_nothing_more(url: str, origin: str) -> None:
    assert origin_of(url) == origin
