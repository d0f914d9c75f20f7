"""`postback top` on a real broker: one frame for pipes, a live screen that Ctrl-C ends, and hostile names."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import unicodedata
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from cli.operate.top import TokenRates
from cli.operate.top_view import view
from cli.operations.deliveries import CallbackStep
from cli.operations.top import Frame, RecentEvents
from schemas.outcome import Outcome
from schemas.settings import KafkaSettings
from schemas.worker import announcement, worker_key, write_announcement
from telemetry.clock import SystemClock
from telemetry.hand_clock import HandClock
from tests.fleet_here import FleetHere
from tests.http_handler import Answering, handling
from tests.integration.test_tail import attempt, letter, put, result
from tests.postback_command import POSTBACK, environment_of, postback_here
from tests.product import eventually

pytestmark = pytest.mark.broker


def announce(fleet: KafkaSettings) -> None:
    from confluent_kafka import Producer

    producer = Producer(fleet.client_config())
    said = announcement("gpu-1", None, ["gemma[red]"], int(SystemClock().time() * 1000), "1.2.3")
    producer.produce(fleet.topics.workers, write_announcement(said), worker_key("gpu-1"), 0)
    assert producer.flush(20) == 0


def test_one_frame_shows_lanes_workers_and_the_failures_of_the_last_minute(fleet: KafkaSettings) -> None:
    put(
        fleet,
        (fleet.topics.requests(), b'{"prompt": "Why?"}', {}),
        result(fleet, "a-1", Outcome.SUCCEEDED, "small", "acme"),
        attempt(fleet, "a-1", "acme", status=None, error="connect_failed", at=round(SystemClock().time() * 1000)),
        letter(fleet, "a-2"),
    )
    announce(fleet)
    done = postback_here("top", "--once", "--metrics", "http://127.0.0.1:9/metrics", env=environment_of(fleet))
    assert (done.returncode, done.stderr) == (0, "")
    words = done.stdout.split()
    assert done.stdout.startswith("1 jobs and 1 callbacks wait; 0.0 jobs/s; 1 workers; 1 dead letters; 0 endpoints")
    assert words[words.index("gpu-1") :][:4] == ["gpu-1", "(shared)", "1.2.3", "gemma[red]"]
    lines = [line.split() for line in done.stdout.splitlines()]
    for row in (["settled", "succeeded", "1"], ["attempt", "connect_failed", "1"], ["dead", "letter", "timeout", "1"]):
        assert row in lines, done.stdout
    assert "http://127.0.0.1:9  does not answer with metrics" in done.stdout


def test_the_live_screen_is_drawn_and_ctrl_c_ends_it_with_0(fleet: KafkaSettings) -> None:
    master, screen = os.openpty()
    env = environment_of(fleet, TERM="xterm", COLUMNS="120", LINES="40")
    process = subprocess.Popen([POSTBACK, "top", "--interval", "0.5"], env=env, stdout=screen, stderr=screen)
    os.close(screen)
    try:
        drawn = b""
        while b"callbacks wait" not in drawn:
            drawn += os.read(master, 4096)
        process.send_signal(signal.SIGINT)
        with io.FileIO(master) as rest:
            try:
                while rest.read(4096):
                    pass
            except OSError:
                pass  # the terminal ended together with the process
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def test_a_real_workers_jobs_and_tokens_per_second_are_shown(fleet_here: FleetHere) -> None:
    worker = fleet_here.worker("w1")
    eventually(lambda: bool(fleet_here.read(fleet_here.kafka.topics.workers)), 120, worker.said)
    master, screen = os.openpty()
    env = environment_of(fleet_here.kafka, TERM="xterm", COLUMNS="160", LINES="40")
    metrics = f"http://127.0.0.1:{worker.port}/metrics"
    command = [str(POSTBACK), "top", "--interval", "0.5", "--metrics", metrics]
    process = subprocess.Popen(command, env=env, stdout=screen, stderr=screen)
    os.close(screen)
    try:
        drawn, frames = "", 0
        while not all(re.search(rf"(?<![\d.])(?!0+(?:\.0+)? )[\d.]+ {unit}/s", drawn) for unit in ("jobs", "tokens")):
            drawn += os.read(master, 65536).decode(errors="replace")
            # Submit jobs after each frame, so that the next frame finds more answers.
            if drawn.count("callbacks wait") > frames:
                frames = drawn.count("callbacks wait")
                fleet_here.submit([{"prompt": "How many words are here?"}] * 20)
    finally:
        process.kill()
        process.wait()
        os.close(master)


class MetricsPage(Answering):
    """Metrics of a role that counts 100 tokens between two readings."""

    total = 0

    def do_GET(self) -> None:
        MetricsPage.total += 100
        body = (
            "# TYPE postback_tokens_total counter\n"
            f'postback_tokens_total{{kind="completion"}} {MetricsPage.total}\n'
            'postback_tokens_total{kind="wasted"} 7\n'
        ).encode()
        self.answer(200, body if self.path == "/metrics" else b"\xff" * len(body))


@pytest.fixture
def role() -> Iterator[str]:
    with handling(MetricsPage) as url:
        yield url


def test_tokens_per_second_are_shown_from_the_second_reading_on(role: str) -> None:
    tokens = TokenRates()
    assert tokens.lines([f"{role}/metrics"], 10.0) == {role: "100 tokens"}
    assert tokens.lines([f"{role}/metrics"], 14.0) == {role: "200 tokens, 25 tokens/s"}
    for wrong in (f"{role}/noise", "file:///etc/passwd", "http://[", "http://a:x/", "http://a b/", ""):
        assert list(TokenRates().lines([wrong], 1.0).values()) == ["does not answer with metrics"]


def step(at_ms: int, error: str) -> CallbackStep:
    return CallbackStep(at_ms, "attempt", "acme", "job-1", None, {"error": error})


def test_events_count_for_a_minute_and_the_number_of_names_is_bounded() -> None:
    clock = HandClock()
    recent, now_ms = RecentEvents(clock), int(clock.time() * 1000)
    recent.add(step(now_ms, "timeout"))
    recent.add(step(2**62, "timeout"))  # a wrong clock stated this time
    assert recent.counts() == {("attempt", "timeout"): 2}
    for number in range(1000):
        recent.add(step(now_ms, f"{number} " * 100))
    counted = recent.counts()
    assert len(counted) <= 101
    assert counted["attempt", "others"] > 800
    assert max(len(name) for _, name in counted) <= 60
    clock.sleep(60)
    assert recent.counts() == Counter()


@given(st.lists(st.text(max_size=200), max_size=5), st.text(max_size=100))
@settings(max_examples=30)
def test_no_name_moves_the_cursor_or_is_read_as_markup(names: list[str], metric: str) -> None:
    figures = {
        "jobs": 1,
        "callbacks": 0,
        "dead_letters": 0,
        "disabled_endpoints": 0,
        "lanes": [
            {
                "lane": name,
                "jobs": 1,
                "oldest_job_seconds": 1.5,
                "tightest_deadline_seconds": None,
                "workers": 0,
                "wanted_replicas": 1,
            }
            for name in names
        ],
    }
    frame = Frame(figures, (), Counter({("dead_letter", name): 1 for name in names}))
    screen = io.StringIO()
    Console(file=screen, width=400).print(view(frame, {"role": metric}))
    obeyed = ("Cc", "Cf", "Zl", "Zp")
    assert not any(unicodedata.category(one) in obeyed for one in screen.getvalue().replace("\n", ""))
