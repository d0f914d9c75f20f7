"""A server of OpenAI's protocol that lists the prompts it got; a test can hold the server's answers back."""

from __future__ import annotations

import json
import threading

from telemetry.clock import SystemClock
from tests.http_handler import Answering

_CLOCK = SystemClock()
_HELD_SECONDS = 600.0
"""A held answer is sent after this time at the latest, so that the server's threads end."""


class SteeredEngine:
    """The server's handler class, and the state by which a test directs the server."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        """The prompt of each request."""
        self.seconds = 0.0
        """The seconds that each answer takes, unless it is held."""
        self.held = "Ponder"
        """The beginning of prompts that get no answer before `release`."""
        self.release = threading.Event()
        engine = self

        class Handler(Answering):
            def do_GET(self) -> None:
                self.answer_json(200, {"object": "list", "data": [{"id": "m", "object": "model"}]})

            def do_POST(self) -> None:
                body = json.loads(self.body())
                engine.answer(body["messages"][-1]["content"])
                self.answer_json(
                    200, {"choices": [{"message": {"role": "assistant", "content": "So."}, "finish_reason": "stop"}]}
                )

        self.handler = Handler

    def answer(self, prompt: str) -> None:
        """Note the prompt, and wait until it may be answered."""
        self.asked.append(prompt)
        if prompt.startswith(self.held):
            self.release.wait(_HELD_SECONDS)
        else:
            _CLOCK.sleep(self.seconds)
