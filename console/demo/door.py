"""The demo's HTTP gateway: OpenAI's own SDK uploads a batch, waits for it, and downloads the answers.

Only the site's pages have the answers to the lines' questions. A base model has no chat template, so the lines are
completions.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from console.demo.children import POSTBACK, ChildFailed, Children
from console.demo.verdict import DemoJob, has_answer
from telemetry.clock import Deadline, SystemClock

START_SECONDS = 120.0
BATCH_SECONDS = 300.0
_URL = re.compile(r"the API is at (http://\S+) under /v1")
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


def batch_by_sdk(
    url: str,
    store: Path,
    environment: dict[str, str],
    asked: Sequence[DemoJob],
    max_tokens: int,
    tell: Callable[[str], None],
) -> bool:
    """Run a batch with OpenAI's SDK. True if each line's answer in the output file is right.

    Without the SDK (`pip install openai`), nothing is run.
    """
    try:
        from openai import OpenAI
    except ModuleNotFoundError:
        tell("    OpenAI's SDK is not installed here, so no batch was submitted: pip install openai")
        return True
    client = OpenAI(base_url=f"{url}/v1", api_key=_key(store, environment))
    with client:
        uploaded = client.files.create(file=("questions.jsonl", io.BytesIO(_lines(asked, max_tokens))), purpose="batch")
        batch = client.batches.create(input_file_id=uploaded.id, endpoint="/v1/completions", completion_window="24h")
        tell(f"    {batch.id} of {len(asked)} lines is accepted")
        deadline = Deadline.after(_CLOCK, BATCH_SECONDS)
        while batch.status not in ("completed", "failed", "expired", "cancelled") and not deadline.passed:
            _CLOCK.sleep(0.2)
            batch = client.batches.retrieve(batch.id)
        if batch.status != "completed" or batch.output_file_id is None:
            tell(f"WRONG: the batch is {batch.status}")
            return False
        lines = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    answers = {line["custom_id"]: line["response"]["body"]["choices"][0]["text"] for line in lines}
    right = [one for one in asked if has_answer(answers.get(one.job_id, ""), one.question.answer)]
    for one in asked:
        if one not in right:
            tell(f'WRONG: the answer to {one.job_id} lacks "{one.question.answer}"')
    tell(f"    {batch.status}: {len(right)} of {len(asked)} lines are answered rightly in {batch.output_file_id}")
    return len(right) == len(asked)


def _key(store: Path, environment: dict[str, str]) -> str:
    """Create an API key with the command. Raises ChildFailed."""
    command = [str(POSTBACK), "api-keys", "create", "--tenant", _TENANT, "--store", f"sqlite:///{store}", "--json"]
    made = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise ChildFailed(f"`postback api-keys create` ended with status {made.returncode}: {made.stderr.strip()}")
    return str(json.loads(made.stdout)["key"])


def _lines(asked: Sequence[DemoJob], max_tokens: int) -> bytes:
    """Return the lines of the batch, one question each."""
    lines = (
        {
            "custom_id": one.job_id,
            "method": "POST",
            "url": "/v1/completions",
            "body": {
                "prompt": one.question.text,
                "sources": {"urls": [one.source], "required": True},
                "max_tokens": max_tokens,
                "temperature": 0.0,
            },
        }
        for one in asked
    )
    return "".join(f"{json.dumps(line)}\n" for line in lines).encode()
