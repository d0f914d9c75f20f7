"""The work of each peer: echo a prompt, sign the answer by Standard Webhooks' HMAC, and POST it to the callback."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import os
import sys
import time
from collections.abc import Callable

KEY = b"k" * 32

logging.getLogger("httpx").setLevel(logging.WARNING)  # a log line for each POST would cost Dramatiq as much as the POST


def job_of(number: int, due: float) -> dict[str, str]:
    """Return a job. Its id has its due time in monotonic seconds, which all processes of a machine share."""
    return {"id": f"{number}-{due:.6f}", "prompt": f"Where is case {number}?", "url": os.environ["CALLBACK_URL"]}


def signed(job: dict[str, str]) -> tuple[str, bytes, dict[str, str]]:
    """Return URL, body and headers of the job's callback."""
    body = json.dumps({"type": "inference.succeeded", "data": {"id": job["id"], "text": job["prompt"]}}).encode()
    now = int(time.time())
    mac = hmac.new(KEY, f"{job['id']}.{now}.".encode() + body, hashlib.sha256).digest()
    headers = {
        "content-type": "application/json",
        "webhook-id": job["id"],
        "webhook-timestamp": str(now),
        "webhook-signature": f"v1,{base64.b64encode(mac).decode()}",
    }
    return job["url"], body, headers


def submit(put: Callable[[dict[str, str]], object]) -> None:
    """Put the jobs that the arguments ask for: their number, and how many a second (0: as fast as possible)."""
    jobs, rate = int(sys.argv[-2]), float(sys.argv[-1])
    start = time.monotonic()
    for number in range(jobs):
        due = start + number / rate if rate else time.monotonic()
        time.sleep(max(0.0, due - time.monotonic()))
        put(job_of(number, due))
