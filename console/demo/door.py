"""The demo's HTTP gateway: OpenAI's own SDK uploads a batch, waits for it, and downloads the answers."""

from __future__ import annotations

import io
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from console.demo.children import POSTBACK, ChildFailed, Children
from telemetry.clock import Deadline, SystemClock

QUESTIONS = ("What is a webhook?", "What is a batch?", "What is a topic?")
START_SECONDS = 120.0
BATCH_SECONDS = 300.0
_URL = re.compile(r"the API is at (http://\S+)/v1")
_TENANT = "demo"
_CLOCK = SystemClock()


def open_door(children: Children, store: Path) -> str:
    """Start a gateway with a new store, and return its URL, without `/v1`. Raises ChildFailed."""
    gateway = children.start("gateway", "--port", "0", "--store", f"sqlite:///{store}")
    children.wait_ready(gateway, START_SECONDS)
    found = _URL.search(gateway.log)
    if found is None:
        raise ChildFailed(f"`{gateway.name}` printed no URL. {gateway.last_lines()}")
    return found[1]


def batch_by_sdk(url: str, store: Path, environment: dict[str, str], tell: Callable[[str], None]) -> bool:
    """Run a batch with OpenAI's SDK. True if each line has its answer in the output file.

    Without the SDK (`pip install openai`), nothing is run.
    """
    try:
        from openai import OpenAI
    except ModuleNotFoundError:
        tell("    OpenAI's SDK is not installed here, so no batch was submitted: pip install openai")
        return True
    client = OpenAI(base_url=f"{url}/v1", api_key=_key(store, environment))
    with client:
        uploaded = client.files.create(file=("questions.jsonl", io.BytesIO(_lines())), purpose="batch")
        batch = client.batches.create(
            input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        tell(f"    {batch.id} of {len(QUESTIONS)} lines is accepted")
        deadline = Deadline.after(_CLOCK, BATCH_SECONDS)
        while batch.status not in ("completed", "failed", "expired", "cancelled") and not deadline.passed:
            _CLOCK.sleep(0.2)
            batch = client.batches.retrieve(batch.id)
        if batch.status != "completed" or batch.output_file_id is None:
            tell(f"WRONG: the batch is {batch.status}")
            return False
        answers = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    answered = {line["custom_id"] for line in answers if line["response"]["body"]["choices"][0]["message"]["content"]}
    tell(f"    {batch.status}: {len(answered)} of {len(QUESTIONS)} lines are answered in {batch.output_file_id}")
    return len(answered) == len(QUESTIONS)


def _key(store: Path, environment: dict[str, str]) -> str:
    """Create an API key with the command. Raises ChildFailed."""
    command = [str(POSTBACK), "api-keys", "create", "--tenant", _TENANT, "--store", f"sqlite:///{store}", "--json"]
    made = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise ChildFailed(f"`postback api-keys create` ended with status {made.returncode}: {made.stderr.strip()}")
    return str(json.loads(made.stdout)["key"])


def _lines() -> bytes:
    """Return the lines of the batch, one question each."""
    lines = (
        {
            "custom_id": f"question-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"messages": [{"role": "user", "content": question}], "max_tokens": 32},
        }
        for number, question in enumerate(QUESTIONS, start=1)
    )
    return "".join(f"{json.dumps(line)}\n" for line in lines).encode()
