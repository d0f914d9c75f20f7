"""A server of OpenAI's protocol that lists the prompts it got; a test can hold the server's answers back."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler
from typing import Any

from telemetry.clock import SystemClock

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

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._say({"object": "list", "data": [{"id": "m", "object": "model"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                engine.answer(body["messages"][-1]["content"])
                self._say({"choices": [{"message": {"role": "assistant", "content": "So."}, "finish_reason": "stop"}]})

            def _say(self, answer: Any) -> None:
                body = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                pass

        self.handler = Handler

    def answer(self, prompt: str) -> None:
        """Note the prompt, and wait until it may be answered."""
        self.asked.append(prompt)
        if prompt.startswith(self.held):
            self.release.wait(_HELD_SECONDS)
        else:
            _CLOCK.sleep(self.seconds)
