"""Commands that work through a gateway, over HTTPS, instead of through Kafka."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from cli.shared.errors import BAD_INPUT, fail, say, telling
from cli.shared.given_secrets import given_text
from cli.shared.settings import checked_settings

if TYPE_CHECKING:
    from postback_client import HttpClient, SubmitFailed
    from producers.client import SubmitError
    from producers.receipts import Receipt
    from schemas.result import Result
    from schemas.topics import Lane

GATEWAY: Any = typer.Option(
    "--gateway",
    metavar="URL",
    help="Work through the gateway at this URL, not through Kafka. The jobs belong to the key's tenant.",
)
KEY: Any = typer.Option(
    "--key",
    metavar="KEY|@FILE",
    help="With --gateway: the API key, or @FILE to read the key from a file; by default the key of "
    "POSTBACK_GATEWAY_KEY or POSTBACK_GATEWAY_KEY_FILE. Other users can read a command's arguments.",
)
TOGETHER = 500
"""The largest number of jobs in one request."""
_LONGEST_KEY = 4096
_NEEDS_CLIENT = "this command needs {}: install the wheel of producers/postback_client"

OnAnswer = Callable[[int, "SubmitError | None"], None]


@contextmanager
def gateway_client(url: str, key: str | None) -> Iterator[HttpClient]:
    """Connect to the gateway for a block. Errors of the gateway end the command with their text."""
    try:
        from postback_client import HttpClient, PostbackError
    except ModuleNotFoundError as error:
        raise fail(_NEEDS_CLIENT.format(error.name), BAD_INPUT) from None
    from cli.shared.gateway_settings import GatewayClientSettings

    settings = checked_settings(GatewayClientSettings)
    given = settings.key.get_secret_value() if settings.key is not None else ""
    if key is not None:
        given = given_text("--key", key, _LONGEST_KEY)
    if not given and settings.key_file is not None:
        given = given_text("--key", f"@{settings.key_file}", _LONGEST_KEY)
    if not given:
        raise fail("give the API key: set POSTBACK_GATEWAY_KEY or POSTBACK_GATEWAY_KEY_FILE, or --key @FILE", BAD_INPUT)
    ca_file = str(settings.ca_file) if settings.ca_file is not None else None
    with telling(ValueError, code=BAD_INPUT):
        client = HttpClient(url, given, ca_file=ca_file, tell=say)
    with telling(PostbackError), client:
        yield client


def key_file(key: str | None) -> str | None:
    """Return the name of the file that `--key` names as @FILE, or None."""
    return key[1:] if key is not None and key.startswith("@") else None


def send(client: HttpClient, receipt: Receipt, left: Sequence[int], *, lane: Lane, on_answer: OnAnswer) -> None:
    """Submit jobs of a receipt, and call `on_answer` for each job. A refused request does not stop later requests."""
    from postback_client import InvalidRequest, SubmitFailed
    from producers.client import SubmitError
    from schemas.codec import write_job

    stopped: str | None = None
    for start in range(0, len(left), TOGETHER):
        part = range(start, min(start + TOGETHER, len(left)))
        ids = [receipt.entries[left[number]].job_id for number in part]
        failed: SubmitFailed | None = None
        if stopped is None:
            try:
                client.submit(
                    (json.loads(write_job(receipt.jobs[left[number]])) for number in part),
                    lane=lane,
                )
            except SubmitFailed as error:
                failed = error
                if not isinstance(error.__cause__, InvalidRequest):
                    stopped = f"an earlier request failed, so the job was not sent: {error.__cause__}"
        for number, job_id in zip(part, ids, strict=True):
            reason = _reason(job_id, failed) if failed is not None else stopped
            perhaps = failed is not None and job_id in failed.doubtful
            on_answer(number, None if reason is None else SubmitError(number, job_id, reason, perhaps=perhaps))


def look_up(client: HttpClient, receipt: Receipt) -> int:
    """Ask the gateway for each job whose acceptance is unknown; note the jobs that it has, and return their number."""
    from postback_client import NotFound

    found = 0
    for index in receipt.doubtful:
        try:
            client.status(receipt.entries[index].job_id)
        except NotFound:
            continue
        receipt.answer(index, None)
        found += 1
    return found


def streamed(client: HttpClient, job_ids: Sequence[str], timeout: float | None) -> Iterator[Result]:
    """Yield the jobs' results as they come, until each has one or the time is up."""
    from postback_client import StillWaiting
    from schemas.codec import read_result

    try:
        for result in client.stream(job_ids, timeout):
            yield read_result(json.dumps(result.raw).encode())
    except StillWaiting:
        return


def stored(client: HttpClient, job_ids: Sequence[str]) -> Iterator[Result]:
    """Yield the results that the gateway has now.

    A job that the gateway does not know is treated as a job without a result.
    """
    from postback_client import NotFound
    from schemas.codec import read_result

    for job_id in job_ids:
        try:
            result = client.result(job_id)
        except NotFound:
            continue
        if result is not None:
            yield read_result(json.dumps(result.raw).encode())


def _reason(job_id: str, failed: SubmitFailed) -> str | None:
    """Return the reason why a job of a failed request is not accepted; None for an accepted job."""
    return None if job_id in failed.accepted else str(failed.__cause__)
