"""Log lines, traces, clocks, counters with known labels, private files, and the check of state that tests leave."""

from __future__ import annotations

import gc
import io
import json
import logging
import os
import re
import signal
import stat
import string
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry, Counter, Histogram
from pydantic import BaseModel
from structlog.testing import capture_logs

from cli.fleet.roles import log_uncaught
from gateway.door.server import Refusal
from schemas.codec import Origin, read_job
from schemas.codes import DEAD_LETTER_REASONS
from schemas.endpoint import DisabledBecause
from schemas.outcome import Outcome
from schemas.screening import Verdict
from telemetry import logs
from telemetry.atomic_file import Replacement, access_problem, only_writer, replace_files
from telemetry.audit import DATASET, Audit, AuditEvent
from telemetry.clock import Deadline, SystemClock
from telemetry.hand_clock import HandClock, SetClock
from telemetry.logs import configure, get_logger, log_context, origin_of, redact, scrub
from telemetry.metrics import Metrics
from telemetry.series import ClosedCounter, QuickHistogram
from telemetry.throttle import LogThrottle
from telemetry.traces import TraceContext, exemplar, exporting, parse_traceparent, past_span, span
from tests.ecs import LOG_REQUIRED, REQUIRED, TYPES, log_lines, problems
from tests.log_store import CONFIGURATION
from tests.process_state import changes, shared_state, state_kept
from workers.delivery.breaker import BreakerState
from workers.delivery.post import FailureReason
from workers.engines.vllm.figures import Figures
from workers.stage.defects import Call
from workers.stage.settler import SettlerState

EXAMPLE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_a_traceparent_survives_the_round_trip_and_an_invalid_one_is_no_context_in_a_job_either() -> None:
    context = parse_traceparent(EXAMPLE)
    assert context == TraceContext("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", sampled=True)
    assert context.traceparent == EXAMPLE
    later = "cc" + EXAMPLE[2:]
    valid = {
        EXAMPLE: EXAMPLE,
        EXAMPLE[:-2] + "fe": EXAMPLE[:-2] + "00",  # only the flag `sampled` is kept
        later: EXAMPLE,
        later + "-what-the-future-brings": EXAMPLE,
    }
    doubtful = (later + "-", later + "-" + "x" * 257, later + "-\x1b[2J", later + "-\xe9", later + "more")
    zeros = ("00-" + "0" * 32 + EXAMPLE[35:], EXAMPLE[:36] + "0" * 16 + "-01")
    invalid = ("", EXAMPLE.upper(), EXAMPLE + "\n", EXAMPLE + "-more", EXAMPLE + "-", EXAMPLE[:-1], "ff" + EXAMPLE[2:])
    found = {value: parse_traceparent(value) for value in (*valid, *zeros, *invalid, *doubtful)}
    assert {value: str(getattr(found[value], "traceparent", None)) for value in valid} == valid
    assert [value for value in (*zeros, *invalid) if found[value] is not None] == []
    assert parse_traceparent(None) is None
    for value, read in found.items():
        headers = [("traceparent", value.encode("latin-1"))]
        carried = read_job(b'{"prompt": "q"}', headers, Origin("t", 0, 0), 0).traceparent
        assert (carried == value) is (read is not None), value


def test_a_span_without_a_collector_passes_its_parent_on(monkeypatch: pytest.MonkeyPatch) -> None:
    parent = parse_traceparent(EXAMPLE)
    with span("infer", parent) as context:
        assert context == parent
    with span("infer") as context:
        assert context is None
    assert past_span("queued", (1.0, 2.0), parent) == parent
    assert exemplar(parent) is None
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", raising=False)
    with exporting("worker"), span("infer") as context:
        assert context is None


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """The spans that end in this test.

    A process can set OpenTelemetry's provider only once, so this fixture patches the provider's getter.
    """
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    return exporter


def test_the_text_of_an_exception_is_not_exported(collected: InMemorySpanExporter) -> None:
    with pytest.raises(ValueError, match="hush"), span("infer"):
        raise ValueError("hush: the prompt")
    [ended] = collected.get_finished_spans()
    assert "hush" not in ended.to_json()
    assert (ended.status.is_ok, dict(ended.attributes or {})) == (False, {"error.type": "ValueError"})


def test_a_span_of_the_past_has_its_times_and_ends_no_earlier_than_it_begins(collected: InMemorySpanExporter) -> None:
    past_span("queued", (1.5, 2.0), parse_traceparent(EXAMPLE))
    past_span("queued", (3.0, 2.0))
    assert [(each.start_time, each.end_time) for each in collected.get_finished_spans()] == [
        (1_500_000_000, 2_000_000_000),
        (2_000_000_000, 2_000_000_000),
    ]


def test_an_observation_links_to_its_trace_if_the_collector_gets_the_trace(collected: InMemorySpanExporter) -> None:
    context = parse_traceparent(EXAMPLE)
    assert exemplar(context) == {"trace_id": "4bf92f3577b34da6a3ce929d0e0e4736"}
    assert exemplar(parse_traceparent(EXAMPLE[:-2] + "00")) is None
    assert exemplar(None) is None


@given(st.text() | st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", fullmatch=True))
def test_any_header_value_is_a_context_or_none(value: str) -> None:
    context = parse_traceparent(value)
    assert context is None or parse_traceparent(context.traceparent) == context


# -- clocks ------------------------------------------------------------------------------------------------------------


def test_the_steady_clock_goes_on_while_a_linux_machine_is_suspended() -> None:
    # Linux's steady clocks differ only after a suspension, which no test can cause, so compare the clock's name.
    steady = SystemClock.monotonic
    clock = getattr(steady, "func", steady), getattr(steady, "args", ())
    on_linux = sys.platform == "linux"
    assert clock == ((time.clock_gettime, (time.CLOCK_BOOTTIME,)) if on_linux else (time.monotonic, ()))


def test_a_sleep_moves_a_hand_clock_and_its_deadlines_pass_without_a_wait() -> None:
    clock = HandClock(100.0)
    deadline = Deadline.after(clock, 3600.0)

    clock.sleep(3599.0)
    assert (clock.time(), clock.monotonic(), deadline.remaining) == (3699.0, 3699.0, 1.0)
    clock.sleep(1.0)
    assert deadline.passed
    with pytest.raises(AssertionError, match=r"2\.5 s"):
        SetClock().sleep(2.5)


# -- counters ----------------------------------------------------------------------------------------------------------


OPEN = {"model_cost", "http_requests"}
"""Counters whose label values come from a registry's currencies, and from routes and statuses."""
COUNTED: Mapping[str, Iterable[str]] = {
    "jobs": Outcome,
    "repairs": [state.value for state in SettlerState if state not in (SettlerState.READY, SettlerState.SETTLING)],
    "handler_defects": get_args(Call),
    "dead_letters": DEAD_LETTER_REASONS,
    "endpoints_disabled": set(DisabledBecause) - {DisabledBecause.OPERATOR},
    "breaker_changes": set(BreakerState) - {BreakerState.HALF_OPEN},
    "callbacks": {"delivered", *FailureReason},
    "screened": Verdict,
    "http_connections_refused": {*get_args(Refusal), "handshake"},
}
"""Counters for whose label values the code has one list."""


def closed() -> dict[str, ClosedCounter]:
    return {name: one for name, one in vars(Metrics()).items() if isinstance(one, ClosedCounter)}


def test_each_counter_with_labels_has_the_values_that_the_code_counts_or_is_listed_as_open() -> None:
    labelled = {name for name, one in vars(Metrics()).items() if isinstance(one, Counter) and one._labelnames}

    assert labelled - closed().keys() == OPEN
    counted = {name: set(map(str, values)) for name, values in COUNTED.items()}
    assert {name: set(closed()[name].values) for name in counted} == counted


def test_the_reference_names_each_known_value() -> None:
    unnamed = [
        (name, value)
        for name, counter in closed().items()
        for value in counter.values
        if name != "dead_letters" and not re.search(rf"\b{value}\b", next(iter(counter.describe())).documentation)
    ]
    assert unnamed == []


def test_a_begun_counter_has_a_series_of_0_for_each_known_value_and_no_series_before() -> None:
    metrics = Metrics()
    assert shown(metrics.model_requests) == {}
    begun = metrics.model_requests.begin("small")
    begun["failed"].inc()

    assert shown(metrics.model_requests) == {("small", "answered"): 0, ("small", "refused"): 0, ("small", "failed"): 1}
    Figures(metrics, [0])
    assert shown(metrics.engine_tokens) == {("prompt",): 0, ("generation",): 0}
    assert shown(metrics.engine_prefix_tokens) == {("hit",): 0, ("miss",): 0}


def shown(counter: ClosedCounter) -> dict[tuple[str, ...], float]:
    """Return the value of each series of the counter, by the labels of the series."""
    [family] = counter.collect()
    return {tuple(one.labels.values()): one.value for one in family.samples if one.name.endswith("_total")}


# -- private files -----------------------------------------------------------------------------------------------------


PATH = Path("/etc/postback/keys")


def status(mode: int, owner: int, group: int = 10001) -> os.stat_result:
    return os.stat_result((stat.S_IFREG | mode, 1, 1, 1, owner, group, 1, 0, 0, 0))


def test_a_file_is_refused_that_a_stranger_owns_or_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    for user, mode, owner, refused_for in (
        *((10001, mode, 10001, None) for mode in (0o600, 0o400)),
        # The chart's Secret has the mode 0440 by its defaultMode and the pod's fsGroup; Kubernetes' default is 0644.
        *((10001, mode, 0, None) for mode in (0o440, 0o640, 0o600)),
        *((0, mode, 0, None) for mode in (0o600, 0o440)),
        *((10001, mode, 0, "chmod 600") for mode in (0o644, 0o444, 0o660)),
        *((10001, mode, 10001, "chmod 600") for mode in (0o640, 0o604)),
        *((10001, mode, 1000, "chown 10001") for mode in (0o600, 0o440)),
        (0, 0o600, 1000, "chown 0"),
    ):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        problem = access_problem(status(mode, owner), PATH)
        assert (problem is None) == (refused_for is None), (user, oct(mode), owner)
        assert problem is None or (refused_for or "") in problem.fix


def test_root_may_administer_another_users_file_and_no_one_else_may(monkeypatch: pytest.MonkeyPatch) -> None:
    for user, allowed in ((0, True), (1000, False)):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        assert (access_problem(status(0o600, 10001), PATH, by_root=True) is None) is allowed
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert access_problem(status(0o644, 10001), PATH, by_root=True) is not None


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_file_is_private_or_public_under_any_umask(tmp_path: Path) -> None:
    for umask in (0o000, 0o077):
        key, certificate = tmp_path / f"key-{umask}", tmp_path / f"certificate-{umask}"
        before = os.umask(umask)
        try:
            replace_files(Replacement(key, b"k"), Replacement(certificate, b"c", private=False))
        finally:
            os.umask(before)
        assert (mode_of(key), mode_of(certificate)) == (0o600, 0o644)


def test_a_replaced_file_keeps_its_mode_unless_others_could_use_a_private_one_and_links_are_followed(
    tmp_path: Path,
) -> None:
    path, link = tmp_path / "file", tmp_path / "link"
    link.symlink_to(path)
    for before, private, after in (
        (0o400, True, 0o400),
        (0o644, True, 0o600),
        (0o666, True, 0o600),
        (0o640, False, 0o640),
        (0o444, False, 0o444),
    ):
        path.unlink(missing_ok=True)
        path.write_bytes(b"old")
        path.chmod(before)
        replace_files(Replacement(link, b"new", private=private))
        assert (path.read_bytes(), mode_of(path), link.is_symlink()) == (b"new", after, True)


def test_no_file_changes_if_one_of_them_cannot_be_written(tmp_path: Path) -> None:
    first = tmp_path / "first"
    first.write_bytes(b"old")
    with pytest.raises(OSError, match="No such file"):
        replace_files(Replacement(first, b"new"), Replacement(tmp_path / "absent" / "second", b"new"))
    assert first.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [first]


def test_a_file_that_a_crash_left_unfinished_is_removed_by_the_next_writer(tmp_path: Path) -> None:
    left, other = tmp_path / ".key.abc.unfinished", tmp_path / ".hidden"
    left.write_bytes(b"half a key")
    other.write_bytes(b"another program's file")
    with only_writer(tmp_path):
        assert list(tmp_path.iterdir()) == [other]


# -- state of the process ----------------------------------------------------------------------------------------------


def test_a_change_is_named_until_it_is_taken_back() -> None:
    folder, handler, kept, umask = Path.cwd(), signal.getsignal(signal.SIGTERM), state_kept(), os.umask(0o022)
    os.umask(umask)

    def configure() -> None:
        kept.__enter__()
        logs.configure("worker", stream=io.StringIO())

    def handle(given: signal.Handlers | Callable[..., object] | int | None) -> Callable[[], object]:
        return lambda: signal.signal(signal.SIGTERM, given)

    made: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "logger root": (configure, lambda: kept.__exit__(None, None, None)),
        "handler of SIGTERM": (handle(lambda *_: None), handle(handler)),
        "folder": (lambda: os.chdir("/"), lambda: os.chdir(folder)),
        "variable POSTBACK_OF_A_TEST": (
            lambda: os.environ.update(POSTBACK_OF_A_TEST="1"),
            lambda: os.environ.pop("POSTBACK_OF_A_TEST"),
        ),
        "umask": (lambda: os.umask(0o070), lambda: os.umask(umask)),
        "tracemalloc": (tracemalloc.start, tracemalloc.stop),
        "garbage collection": (gc.disable, gc.enable),
        "sys.path": (lambda: sys.path.append("/nowhere"), lambda: sys.path.remove("/nowhere")),
    }
    before = shared_state()
    for name, (change, take_back) in made.items():
        change()
        try:
            assert name in [line.partition(":")[0] for line in changes(before, shared_state())]
        finally:
            take_back()
        assert changes(before, shared_state()) == [], name


def test_loggers_and_handlers_are_as_before_after_a_role_ran_in_this_process() -> None:
    before = shared_state()
    with state_kept():
        logs.configure("worker", stream=io.StringIO(), level="DEBUG")
        log_uncaught()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        logging.getLogger("kafka").setLevel(logging.CRITICAL)
    assert changes(before, shared_state()) == []


@given(st.lists(st.floats(-1, 20) | st.sampled_from([0.1, 1.0, 10.0]), max_size=30))
def test_our_metrics_show_what_those_of_the_library_show(amounts: list[float]) -> None:
    shown, bounds = [], (0.1, 1.0, 10.0)
    for histogram, counter in ((QuickHistogram, ClosedCounter), (Histogram, Counter)):
        registry = CollectorRegistry()
        seconds = histogram("seconds", "x", ("phase",), buckets=bounds, registry=registry).labels("a")
        jobs = counter("jobs", "x", ("end",), registry=registry).labels("b")
        for at, amount in enumerate(amounts):
            trace_id = {"trace_id": "a"} if at % 3 == 2 else None
            seconds.observe(amount, trace_id)
            jobs.inc(abs(amount), trace_id)
        samples = [sample for each in registry.collect() for sample in each.samples]
        shown.append({(one.name, *one.labels.values()): one.value for one in samples if "_created" not in one.name})
    assert shown[0] == pytest.approx(shown[1])


SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"  # the Standard Webhooks specification has this example
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
PRIVATE_NAMES = (
    *("secret", "token", "password", "authorization", "prompt", "messages", "text", "body"),
    *("Authorization", "sasl_password", "api-key", "a.b_body"),
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


def test_the_job_in_the_context_stands_on_every_line_and_a_librarys_line_ends_in_the_same_stream(
    pipe: io.StringIO,
) -> None:
    with log_context(job_id="j1", traceparent=TRACEPARENT):
        get_logger().info("A job was taken.", action="job_taken")
    logging.getLogger("aiohttp.server").error("Error handling %s", "request")
    inside, outside = lines(pipe)
    assert inside["postback.job_id"] == "j1"
    assert inside["trace.id"] == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert inside["span.id"] == "00f067aa0ba902b7"
    said = (outside["message"], outside["log.logger"], outside["log.level"])
    assert said == ("Error handling request", "aiohttp.server", "error")
    assert {"trace.id", "postback.job_id"}.isdisjoint(outside)


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


def test_a_field_with_a_private_name_is_redacted_and_a_count_or_an_id_is_not() -> None:
    for name in PRIVATE_NAMES:
        assert redact({"a": [{name: "hunter2"}]}) == {"a": [{name: "[redacted]"}]}
        assert redact({name: ["hunter2"]}) == {name: "[redacted]"}
    counts = dict.fromkeys(("prompt_tokens", "body_bytes", "context", "job_id", "key"), 5)
    assert redact(counts) == counts


def test_a_secret_in_any_string_is_redacted_and_an_unknown_object_is_named_by_its_type_only() -> None:
    assert redact({"note": f"key {SECRET}, whsk_AAAA+/=="}) == {"note": "key whsec_[redacted], whsk_[redacted]"}
    assert redact("Authorization: Bearer abcdefgh12345") == "Authorization: Bearer [redacted]"
    private = {"job": Strict(prompt="my private question"), "raw": b"abc"}
    assert redact(private) == {"job": "<Strict>", "raw": "<3 bytes>"}


def test_lines_can_be_captured_by_tests(pipe: io.StringIO) -> None:
    with capture_logs() as captured:
        get_logger().info("A job was taken.", action="job_taken")
    assert captured == [{"event": "A job was taken.", "action": "job_taken", "log_level": "info"}]
    assert pipe.getvalue() == ""


def test_the_origin_of_a_url_says_nothing_more() -> None:
    origins = {
        "https://user:pw@example.com/hook/tok?k=v#f": "https://example.com",
        "http://example.com:8080/x": "http://example.com:8080",
        "http://[::1]:8080/x": "http://[::1]:8080",
        "HTTPS://Example.COM:443/x": "https://example.com",
        "http://example.com:0080": "http://example.com",
        "http://example.com:443/": "http://example.com:443",
        "http://[2001:DB8:0:0::1]:80/x": "http://[2001:db8::1]",
        "https://BÜCHER.example/x": "https://xn--bcher-kva.example",
        "https://xn--bcher-kva.example": "https://xn--bcher-kva.example",
        "https://faß.example": "https://xn--fa-hia.example",
        "https://☃.example": "https://xn--n3h.example",
        "http://example。com/": "http://example.com",
        "http://my_host.example./x": "http://my_host.example.",
        "file:///etc/passwd": "file:",
    }
    none = ("http://example.com:99999/x", "http://[", "http://[::1::]/", "http://a\u202eb.example/", "/hook/secret")
    origins |= dict.fromkeys((*none, "secret", ""), "(not a URL)")
    assert {url: origin_of(url) for url in origins} == origins


# -- URLs --------------------------------------------------------------------------------------------------------------


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


def test_a_url_in_a_line_is_scrubbed_and_the_other_words_stay() -> None:
    scrubbed = {
        "HTTPS://user:pw@a.example/hook?k=v": "HTTPS://a.example/…",
        "redis://:pw@cache:6379/0": "redis://cache:6379/…",
        "see https://a.example.": "see https://a.example.",
        "'https://a.example'": "'https://a.example",
        "no URL: a:b@c": "no URL: a:b@c",
    }
    assert {text: scrub(text) for text in scrubbed} == scrubbed


# -- ECS ---------------------------------------------------------------------------------------------------------------


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.from_regex(r"x_[a-z_]{1,12}", fullmatch=True)
"""Names of the keyword arguments of a log call, in the form that our own calls use."""
FAILING = """
import logging, sys, threading, warnings
from cli.fleet.roles import log_uncaught
from telemetry import logs

class Finalized:
    def __del__(self):
        raise ValueError("in a finalizer")

logs.configure("worker")
log_uncaught()
warnings.warn("old since\\nlong")
logging.getLogger("library").error("%d of %d", "one")
for target in (lambda: 1 / 0, sys.exit):
    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
Finalized()
raise RuntimeError("first line\\nsecond line of https://user:pw@example.com/hook")
"""


FULL = AuditEvent(
    *("createJobs", "creation", True, "key_1", "acme", ["job_1"], ["0" * 64], 202, "req_1"), "2001:db8::1"
)


@contextmanager
def logging_to(stream: io.TextIOWrapper) -> Iterator[None]:
    with state_kept():
        configure("worker", stream=stream, level="INFO")
        yield
        stream.flush()


@example("\ud800", {"x_a": float("nan"), "x_b": [float("inf")]}, "utf-8")
@given(st.text(), st.dictionaries(NAMES, VALUES, max_size=4), st.sampled_from(["utf-8", "ascii"]))
def test_any_log_line_is_one_ecs_line_in_any_encoding(message: str, fields: dict[str, object], encoding: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    with logging_to(stream):
        get_logger().info(message, action="job-done", **fields)
        logging.getLogger("library").warning("%s", message)
    stream.seek(0)
    ours, theirs = log_lines(stream.read())
    assert ours.keys() >= {f"postback.{name}" for name in fields}
    assert theirs["log.logger"] == "library"


def test_failures_that_no_code_handles_are_ecs_lines_too() -> None:
    done = subprocess.run([sys.executable, "-c", FAILING], capture_output=True, text=True, check=False)
    lines = log_lines(done.stderr)
    assert (done.returncode, done.stdout) == (1, "")
    assert [(line.get("event.action"), line.get("error.type")) for line in lines] == [
        (None, None),  # the line is a warning by Python
        ("log-line-failed", None),
        ("thread-crashed", "ZeroDivisionError"),
        ("error-ignored", "ValueError"),
        ("process-crashed", "RuntimeError"),
    ]
    assert "user:pw" not in done.stderr


def test_an_audit_line_is_an_ecs_line(capfd: pytest.CaptureFixture[str]) -> None:
    audit = Audit(None, SystemClock(), "gateway")
    audit.record(AuditEvent("createJobs", "denied", False, None, None))
    audit.record(FULL)
    assert [problems(line, REQUIRED) for line in capfd.readouterr().out.splitlines()] == [[], []]


# -- Filebeat's templates ----------------------------------------------------------------------------------------------


LOGS = {
    *(*LOG_REQUIRED, "log.logger", "process.pid", "event.action", "trace.id", "span.id"),
    *("error.type", "error.message", "error.stack_trace"),
}
STREAMS = {"logs": "postback", "audit": DATASET}


def file(name: str) -> Any:
    return json.loads((CONFIGURATION / name).read_text())


def mapped(properties: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each field of a mapping, with its type."""
    for name, field in properties.items():
        if "properties" in field:
            yield from mapped(field["properties"], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field["type"]


@pytest.mark.parametrize("kind", STREAMS)
def test_a_template_maps_each_field_of_our_lines_to_its_ecs_type_and_our_own_fields_to_one_that_takes_any_value(
    tmp_path: Path, kind: str
) -> None:
    audit = Audit(tmp_path / "audit.jsonl", SystemClock(), "gateway")
    audit.record(FULL)
    audit.close()
    said = json.loads((tmp_path / "audit.jsonl").read_text())
    needed = LOGS if kind == "logs" else {name for name in said if not name.startswith("postback.")}
    fields = dict(mapped(file(f"{kind}.template.json")["template"]["mappings"]["properties"]))
    assert fields.pop("postback") == "flattened"
    assert fields == {name: TYPES[name] for name in fields}
    assert sorted(needed - fields.keys()) == []


@pytest.mark.parametrize(("kind", "dataset"), STREAMS.items())
def test_a_data_stream_has_its_own_template_and_its_own_retention(kind: str, dataset: str) -> None:
    template, policy = file(f"{kind}.template.json"), file(f"{kind}.policy.json")["policy"]
    assert template["index_patterns"] == [f"logs-{dataset}-*"]
    assert template["template"]["settings"]["index.lifecycle.name"] == f"postback-{kind}"
    assert f"dataset: {dataset}, namespace" in (CONFIGURATION / "filebeat.yml").read_text()
    assert policy["phases"]["delete"]["min_age"] == {"logs": "30d", "audit": "400d"}[kind]
    assert "rollover" in policy["phases"]["hot"]["actions"]


# -- throttled lines ---------------------------------------------------------------------------------------------------


def test_a_line_is_admitted_once_in_a_period_of_its_kind_with_the_count_of_those_held_back() -> None:
    assert LogThrottle(10.0).admit(0.0) == LogThrottle(10.0).admit(1e9) == 0
    throttle = LogThrottle(10.0)
    times = (100.0, 100.0, 105.0, 109.9, 110.0, 119.9, 120.0)
    assert [throttle.admit(now) for now in times] == [0, None, None, None, 3, None, 1]
    assert [throttle.admit(120.0, kind) for kind in ("a", "b", "a")] == [0, 0, None]


def test_kinds_are_bounded_and_a_forgotten_one_is_admitted_again() -> None:
    throttle = LogThrottle(10.0, most_kinds=3)
    for kind in "abcd":
        assert throttle.admit(0.0, kind) == 0
        assert len(throttle) <= 3

    assert throttle.admit(0.0, "d") is None
    assert throttle.admit(0.0, "a") == 0
