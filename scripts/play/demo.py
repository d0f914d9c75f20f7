"""The demo: starts `postback dev`, submits questions to it, judges the callbacks, and stops everything.

Only the pages of the demo's site have the answers to the questions.
"""

from __future__ import annotations

import asyncio
import io
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Literal, Self
from uuid import uuid4

import typer

from cli.devkit.receiver import Keys, Received, Receiver
from cli.shared.settings import fleet_settings
from producers.client import Client
from producers.connection import admin_client
from producers.results import ResultsReader
from schemas.job import DEFAULT_TENANT, Job, Sources
from schemas.settings import KafkaSettings
from scripts.play.model import GEMMA_NOTE, has_small_model, small_model
from scripts.play.site import Question, Site, questions
from telemetry.clock import Deadline, SystemClock
from workers.delivery.keyring import Keyring

EngineName = Literal["vllm", "echo"]

_QUOTED_AROUND = 40
_QUOTED_MOST = 160
_NAMED = 10


@dataclass(slots=True)
class DemoJob:
    """One question that went out as a job."""

    job_id: str
    question: Question
    source: str
    """The URL of the page that has the answer."""
    sent_at: float = 0.0
    """Unix seconds; set when the job is handed to the producer."""


@dataclass(frozen=True, slots=True)
class DemoVerdict:
    """The judgement of one callback."""

    asked: DemoJob
    text: str
    sources: Sequence[str]
    seconds: float
    """Seconds from submit to callback."""
    problems: tuple[str, ...]
    """The faults of the callback; empty if it is right."""

    def lines(self, place: str) -> Iterator[str]:
        """Lines to print: the question, the answer with its sources, and its problems."""
        yield f"{place}  {self.asked.question.text}"
        indent = " " * (len(place) + 2)
        named = ", ".join(self.sources) or "no source"
        yield f"{indent}{_around(self.text, self.asked.question.answer)}"
        yield f"{indent}{named} · signature verified · {self.seconds:.2f} s"
        for problem in self.problems:
            yield f"{indent}WRONG: {problem}"


def judged(asked: DemoJob, received: Received) -> DemoVerdict:
    """Compare a verified callback with the expected answer and source of its job, and return the verdict."""
    result: dict[str, Any] = received.event["data"]
    text, sources = result.get("text") or "", result.get("sources") or []
    problems = [
        *_outcome_problems(received.event["type"], result),
        *([] if has_answer(text, asked.question.answer) else [f'the answer lacks "{asked.question.answer}"']),
        *([] if asked.source in sources else [f"{asked.source} is not among the sources"]),
    ]
    return DemoVerdict(asked, text, sources, received.received_at - asked.sent_at, tuple(problems))


def _outcome_problems(kind: str, result: Mapping[str, Any]) -> Iterator[str]:
    if kind != "inference.succeeded" or result.get("outcome") != "succeeded":
        error = result.get("error") or {}
        yield f"the outcome is {result.get('outcome')}: {error.get('message', 'no reason given')}"


def has_answer(text: str, answer: str) -> bool:
    """True if the text has the answer, ignoring case. A number inside a longer number is no match."""
    return _found(text, answer) is not None


def _found(text: str, answer: str) -> re.Match[str] | None:
    return re.search(rf"(?<!\d){re.escape(answer)}(?!\d)", text, re.IGNORECASE)


def _around(text: str, answer: str) -> str:
    """Return the text on one line; a long text is cut to the part around the answer."""
    line = " ".join(text.split())
    if len(line) <= _QUOTED_MOST:
        return line or "(nothing)"
    found = _found(line, answer)
    begin = max(0, found.start() - _QUOTED_AROUND) if found else 0
    end = min(len(line), begin + _QUOTED_MOST)
    return f"{'…' if begin else ''}{line[begin:end]}{'…' if end < len(line) else ''}"


@dataclass(slots=True)
class DemoTally:
    """The callbacks so far."""

    asked: dict[str, DemoJob]
    """The jobs by id."""
    verdicts: dict[str, DemoVerdict] = field(default_factory=dict)
    webhook_ids: dict[str, str | None] = field(default_factory=dict)
    repeats: int = 0
    """The number of verified callbacks for jobs that already had a callback, which at-least-once delivery permits."""
    problems: list[str] = field(default_factory=list)
    """Problems that belong to no single answer."""

    @property
    def complete(self) -> bool:
        """True if every job has had a verified callback."""
        return len(self.verdicts) == len(self.asked)

    def add(self, received: Received) -> DemoVerdict | None:
        """Return the verdict on a job's first verified callback; None for any other callback."""
        if not received.verified:
            self.problems.append(f"a callback was not verified: {received.problem}")
            return None
        job_id = received.event["data"]["id"]
        if job_id not in self.asked:
            self.problems.append("a callback came for a job that was not submitted")
            return None
        if job_id in self.verdicts:
            self._repeated(job_id, received.webhook_id)
            return None
        verdict = judged(self.asked[job_id], received)
        self.verdicts[job_id], self.webhook_ids[job_id] = verdict, received.webhook_id
        return verdict

    def _repeated(self, job_id: str, webhook_id: str | None) -> None:
        self.repeats += 1
        if self.webhook_ids[job_id] != webhook_id:
            self.problems.append(f"{job_id} was repeated with another webhook-id")

    def settled(self, results: Counter[str]) -> None:
        """Note a problem for each job without exactly one result. `results` counts the committed results."""
        for job_id in self.asked:
            if results[job_id] != 1:
                self.problems.append(f"{job_id} has {results[job_id]} results in Kafka instead of one")

    @property
    def right(self) -> int:
        """The number of jobs with a right callback."""
        return sum(not verdict.problems for verdict in self.verdicts.values())

    @property
    def well(self) -> bool:
        """True if every callback is right and there are no other problems."""
        return self.right == len(self.asked) and not self.problems

    def summary(self, engine: EngineName) -> Iterator[str]:
        """The closing lines, to print."""
        total, verified = len(self.asked), len(self.verdicts)
        seconds = sorted(verdict.seconds for verdict in self.verdicts.values())
        yield f"{verified} of {total} answered, {self.right} {_RIGHT[engine]}, {verified} signatures verified"
        if not self.problems:
            yield "Kafka has exactly one settled result for each job"
        if self.repeats:
            yield f"{self.repeats} callbacks were repeated with the same webhook-id, as a sender may"
        if seconds:
            percentiles = f"p50 {percentile(seconds, 0.5):.2f} s, p99 {percentile(seconds, 0.99):.2f} s"
            yield f"from submit to callback: {percentiles}, with all jobs submitted at once"
        if engine == "echo":
            yield _ECHO_NOTE
        missing = [job_id for job_id in self.asked if job_id not in self.verdicts]
        for problem in [*(f"{job_id} has had no callback" for job_id in missing), *self.problems][:_NAMED]:
            yield f"WRONG: {problem}"


_RIGHT: dict[EngineName, str] = {"vllm": "right with the right source", "echo": "with the right page in the prompt"}
_ECHO_NOTE = (
    "the echo engine repeats its prompt, so nothing was answered here: the demo checked that the page's fact is in the "
    "prompt, and its URL among the sources; `scripts/demo` without --engine asks a model"
)


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the percentile by nearest rank: the smallest value with at least `share` of all values at or below it."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


POSTBACK = Path(sys.executable).with_name("postback")
PARTITIONS = 4
ANSWER_TOKENS: dict[EngineName, int] = {"vllm": 24, "echo": 512}
"""Tokens of an answer: enough for every answer on the site (vllm), or for the whole prompt (echo)."""
BATCH_LINES = 3
LOAD_SECONDS = 900.0
"""The longest time for loading a model. A small machine needs about a minute, and a large model needs many."""
START_SECONDS = 60.0
STALL_SECONDS = 120.0
"""Seconds without a callback after which the demo stops waiting."""
BATCH_SECONDS = 300.0
_POLL_SECONDS = 0.1
_STOP_SECONDS = 15.0
_LOG_LINES = 15
_LOG_COLUMNS = 500
_NAMES_KAFKA = "POSTBACK_KAFKA__BOOTSTRAP_SERVERS"
_CLOCK = SystemClock()


def tell(line: str) -> None:
    """Print a line at once."""
    typer.echo(line)


def play(jobs: int, engine: EngineName) -> bool:
    """Run the demo. True if every job had its right callback. Raises ProducerError and SystemFailed."""
    model = _model() if engine == "vllm" else None
    with (
        TemporaryDirectory(prefix="postback-demo-") as folder,
        _own_topics() as (kafka, environment),
        System(engine, model, environment, Path(folder)) as system,
    ):
        with _step("Starting everything" if model is None else "Starting everything, and loading the model"):
            at = system.addresses(LOAD_SECONDS)
        tell(f"    the API is at {at['gateway_url']}/v1, and {at['gateway_url']}/docs describes it")
        tell(f"    the console page is at {at['console_url']}")
        kafka = kafka.model_copy(update={"bootstrap_servers": at["kafka"]})
        with ResultsReader(kafka) as results:
            tally = asyncio.run(_exchange(kafka, Keyring.load(Path(at["keyring"])), engine, jobs, system))
            tally.settled(_settled(results, len(tally.verdicts)))
        is_served = asyncio.run(_batch(at, engine))
        if not tally.complete:
            tell(f"`postback dev` still runs. {system.last_lines()}")
        tell("Stopping everything …")
    tell("")
    for line in tally.summary(engine):
        tell(line)
    if tally.well and is_served:
        tell(f"\nNext: `{_typed(POSTBACK)} dev` keeps all of this running, and shows a first job of yours.")
    return tally.well and is_served


# -- the system ------------------------------------------------------------------------------------------------------


class SystemFailed(Exception):  # noqa: N818 - named after the event
    """`postback dev` ended, or did not become ready. The text ends with the last lines of its log."""


class System:
    """`postback dev` in its own session, so that Ctrl-C reaches only the demo, which then stops it.

    On a machine with `setpriv` (util-linux), the kernel kills the process when the demo is killed.
    """

    def __init__(self, engine: EngineName, model: Path | None, environment: Mapping[str, str], folder: Path) -> None:
        self._said, self._log = folder / "addresses.json", folder / "dev.log"
        leash = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
        options = ["--engine", engine, *(["--model", str(model)] if model else []), "--data", str(folder / "data")]
        with self._said.open("wb") as said, self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*leash, POSTBACK, "dev", "--json", "--port", "0", *options],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=log,
                start_new_session=True,
            )

    def addresses(self, seconds: float) -> dict[str, str]:
        """Return the addresses that the system prints when everything serves. Raises SystemFailed."""
        deadline = Deadline.after(_CLOCK, seconds)
        while not (said := self._said.read_text()).endswith("\n"):
            self.check()
            if deadline.passed:
                raise SystemFailed(f"`postback dev` was not ready after {seconds:g} s. {self.last_lines()}")
            _CLOCK.sleep(_POLL_SECONDS)
        read: dict[str, str] = json.loads(said)
        return read

    def check(self) -> None:
        """Raise SystemFailed if the process has ended."""
        status = self._process.poll()
        if status is not None:
            raise SystemFailed(f"`postback dev` ended with status {status}. {self.last_lines()}")

    def last_lines(self) -> str:
        """Return the last lines of the process's log as text."""
        lines = self._log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
        return "\n".join(["The end of its log:", *(f"  {line[:_LOG_COLUMNS]}" for line in lines)])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def _own_topics() -> Iterator[tuple[KafkaSettings, dict[str, str]]]:
    """Yield the settings of Kafka and the system's environment.

    On a Kafka that the shell names, the topics have a prefix of their own, and are deleted at the end.
    """
    is_guest = _NAMES_KAFKA in os.environ
    kept = ("POSTBACK_KAFKA__",) if is_guest else ()
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith("POSTBACK_") or name.startswith(kept)
    }
    kafka = fleet_settings().kafka if is_guest else KafkaSettings()
    own = {"topic_prefix": f"demo-{uuid4().hex[:8]}." if is_guest else "", "partitions": PARTITIONS}
    kafka = kafka.model_copy(update=own)
    environment = inherited | {
        "POSTBACK_LOG_LEVEL": "INFO",
        "POSTBACK_KAFKA__TOPIC_PREFIX": kafka.topic_prefix,
        "POSTBACK_KAFKA__PARTITIONS": str(PARTITIONS),
        # A small machine that has just loaded a model reads its first pages slowly, so these limits are generous.
        "POSTBACK_ENRICHMENT__BUDGET_SECONDS": "30",
        "POSTBACK_ENRICHMENT__MEMBER_SECONDS": "10",
        # A base model goes on after its answer with a question of its own, so generation stops at the end of the line.
        "POSTBACK_ENGINE__VLLM__STOP": json.dumps(["\n"]),
        "POSTBACK_ENGINE__VLLM__CONTEXT_TOKENS": "2048",
        "POSTBACK_ENGINE__VLLM__MAX_CONCURRENCY": "16",
    }
    try:
        yield kafka, environment
    finally:
        if is_guest:
            with admin_client(kafka) as admin:
                admin.delete_topics([spec.name for spec in kafka.topics.specs(PARTITIONS)], raise_errors=False)


@contextmanager
def _step(what: str) -> Iterator[None]:
    """Announce a step, and print its duration at its end."""
    tell(f"{what} …")
    started = _CLOCK.monotonic()
    yield
    tell(f"    done after {_CLOCK.monotonic() - started:.1f} s")


def _model() -> Path:
    if has_small_model():
        return small_model()
    tell(GEMMA_NOTE)
    with _step("Downloading the model (250 MB) and unpacking it, once: some two minutes"):
        folder = small_model()
    tell(f"    the model's terms are in {folder}")
    return folder


def _typed(postback: Path) -> str:
    """Return `postback` if a shell finds this file by that name, else the file's whole path."""
    found = shutil.which("postback")
    if found is not None and Path(found).resolve() == postback.resolve():
        return "postback"
    return shlex.quote(str(postback))


# -- asking ----------------------------------------------------------------------------------------------------------


async def _exchange(kafka: KafkaSettings, keyring: Keyring, engine: EngineName, jobs: int, system: System) -> DemoTally:
    """Submit the jobs, and receive callbacks until every job has one, or none came for STALL_SECONDS."""
    now = _CLOCK.time()
    keys = Keys(keyring.secrets(DEFAULT_TENANT, now), keyring.public_keys(DEFAULT_TENANT, now), DEFAULT_TENANT)
    callbacks: asyncio.Queue[Received] = asyncio.Queue()
    async with Site() as site, Receiver(lambda: keys, callbacks.put_nowait) as receiver:
        asked = _asked(site, jobs)
        tell(f"Submitting {jobs} jobs; only {site.url('/')} has their answers …")
        tally = DemoTally({one.job_id: one for one in asked})
        await asyncio.to_thread(_submit, kafka, asked, engine, receiver.url)
        await _collect(tally, callbacks, system)
    return tally


def _asked(site: Site, jobs: int) -> list[DemoJob]:
    return [
        DemoJob(f"demo-{number}", question, site.url(question.path))
        for number, question in enumerate(islice(cycle(questions()), jobs), start=1)
    ]


def _submit(kafka: KafkaSettings, asked: list[DemoJob], engine: EngineName, callback_url: str) -> None:
    def jobs() -> Iterator[Job]:
        for one in asked:
            one.sent_at = _CLOCK.time()
            yield Job(
                job_id=one.job_id,
                prompt=one.question.text,
                sources=Sources(urls=[one.source], required=True),
                callback_url=callback_url,
                max_tokens=ANSWER_TOKENS[engine],
                temperature=0.0,
            )

    with Client(kafka) as client:
        receipt = client.submit(jobs())
    for error in receipt.errors:
        tell(f"WRONG: {error.job_id} was not accepted: {error.reason}")


async def _collect(tally: DemoTally, callbacks: asyncio.Queue[Received], system: System) -> None:
    patience = Deadline.after(_CLOCK, STALL_SECONDS)
    while not tally.complete and not patience.passed:
        try:
            async with asyncio.timeout(1.0):
                received = await callbacks.get()
        except TimeoutError:
            system.check()
            continue
        patience = Deadline.after(_CLOCK, STALL_SECONDS)
        verdict = tally.add(received)
        if verdict is not None:
            total = len(tally.asked)
            for line in verdict.lines(f"{len(tally.verdicts):>{len(str(total))}}/{total}"):
                tell(line)


def _settled(results: ResultsReader, expected: int) -> Counter[str]:
    """Count the results of each job. Reads until no more come, so that a second result is seen."""
    found: Counter[str] = Counter()
    deadline = Deadline.after(_CLOCK, START_SECONDS)
    while not deadline.passed:
        batch = [settled.result.job_id for settled in results.poll()]
        found.update(batch)
        if not batch and found.total() >= expected:
            break
    return found


# -- a batch by OpenAI's SDK -----------------------------------------------------------------------------------------


async def _batch(at: Mapping[str, str], engine: EngineName) -> bool:
    """Run a batch through the gateway. True if each line was answered rightly."""
    async with Site() as site:
        asked = _asked(site, BATCH_LINES)
        with _step("Submitting a batch with OpenAI's SDK"):
            return await asyncio.to_thread(batch_by_sdk, at, asked, ANSWER_TOKENS[engine])


def batch_by_sdk(at: Mapping[str, str], asked: Sequence[DemoJob], max_tokens: int) -> bool:
    """Run a batch with OpenAI's SDK. True if each line's answer in the output file is right.

    Without the SDK (`pip install openai`), nothing is run.
    """
    try:
        from openai import OpenAI
    except ModuleNotFoundError:
        tell("    OpenAI's SDK is not installed here, so no batch was submitted: pip install openai")
        return True
    client = OpenAI(base_url=f"{at['gateway_url']}/v1", api_key=at["api_key"])
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


def _lines(asked: Sequence[DemoJob], max_tokens: int) -> bytes:
    """Return the lines of the batch, one question each: completions, since a base model has no chat template."""
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
