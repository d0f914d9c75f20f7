"""Runs the whole demo: starts the processes, submits jobs, judges the callbacks, and stops everything."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import typer

from console.demo.children import POSTBACK, Children
from console.demo.door import batch_by_sdk, open_door
from console.demo.verdict import DemoJob, DemoTally, EngineName
from console.settings import fleet_settings
from devkit.broker import Broker
from devkit.model import GEMMA_NOTE, has_small_model, small_model
from devkit.receiver import Keys, Received, Receiver
from devkit.site import Site, questions
from operators.topics import configure_groups, create_topics
from producers.client import Client
from producers.connection import admin_client
from producers.results import ResultsReader
from schemas.job import DEFAULT_TENANT, Job, Sources
from schemas.settings import KafkaSettings
from telemetry.clock import Deadline, SystemClock
from workers.delivery.keyring import Keyring

PARTITIONS = 4
ANSWER_TOKENS: dict[EngineName, int] = {"vllm": 24, "echo": 512}
"""Tokens of an answer: enough for every answer on the site (vllm), or for the whole prompt (echo)."""
BATCH_LINES = 3
LOAD_SECONDS = 900.0
"""The longest time for loading a model. A small machine needs about a minute, and a large model needs many."""
START_SECONDS = 60.0
STALL_SECONDS = 120.0
"""Seconds without a callback after which the demo stops waiting."""
LOOPBACK = "127.0.0.0/8"

_CLOCK = SystemClock()


def tell(line: str) -> None:
    """Print a line at once."""
    typer.echo(line)


def play(jobs: int, engine: EngineName) -> bool:
    """Run the demo. True if every job had its right callback. Raises BrokerError, ProducerError, ChildFailed."""
    with TemporaryDirectory(prefix="postback-demo-") as folder, _kafka() as kafka:
        keyring = Keyring.create(Path(folder) / "keyring.json", _CLOCK)
        model = _model() if engine == "vllm" else None
        environment = _environment(kafka, Path(folder) / "keyring.json")
        with Children(environment, Path(folder)) as children:
            _start_roles(children, engine, model)
            with ResultsReader(kafka) as results:
                tally = asyncio.run(_exchange(kafka, keyring, engine, jobs, children))
                tally.settled(_settled(results, len(tally.verdicts)))
            is_served = asyncio.run(_show_door(children, Path(folder) / "gateway.db", environment, engine))
            if not tally.complete:
                tell(children.last_lines())
            tell("Stopping everything …")
    tell("")
    for line in tally.summary(engine):
        tell(line)
    if tally.well and is_served:
        tell("")
        for line in next_steps(POSTBACK, own_kafka=not _is_kafka_named()):
            tell(line)
    return tally.well and is_served


# -- starting -----------------------------------------------------------------------------------------------------


@contextmanager
def _step(what: str) -> Iterator[None]:
    """Announce a step, and print its duration at its end."""
    tell(f"{what} …")
    started = _CLOCK.monotonic()
    yield
    tell(f"    done after {_CLOCK.monotonic() - started:.1f} s")


@contextmanager
def _kafka() -> Iterator[KafkaSettings]:
    """Start a Kafka, or use the one that the environment names, and make the demo's topics on it."""
    if _is_kafka_named():
        with _guest(fleet_settings().kafka) as guest:
            yield guest
        return
    with _step("Starting Apache Kafka"):
        broker = Broker.start()
    with broker:
        own = KafkaSettings(bootstrap_servers=broker.bootstrap_servers, partitions=PARTITIONS)
        _make_topics(own)
        yield own


@contextmanager
def _guest(kafka: KafkaSettings) -> Iterator[KafkaSettings]:
    """Make topics under a new prefix, and delete them at the end."""
    guest = kafka.model_copy(update={"topic_prefix": f"demo-{uuid4().hex[:8]}.", "partitions": PARTITIONS})
    try:
        _make_topics(guest)
        yield guest
    finally:
        with admin_client(guest) as admin:
            admin.delete_topics([spec.name for spec in guest.topics.specs(PARTITIONS)], raise_errors=False)


def _is_kafka_named() -> bool:
    return "POSTBACK_KAFKA__BOOTSTRAP_SERVERS" in os.environ


def _make_topics(kafka: KafkaSettings) -> None:
    with _step("Making the topics"):
        create_topics(kafka)
        configure_groups(kafka)


def _model() -> Path:
    if has_small_model():
        return small_model()
    tell(GEMMA_NOTE)
    with _step("Downloading the model (250 MB) and unpacking it, once: some two minutes"):
        folder = small_model()
    tell(f"    the model's terms are in {folder}")
    return folder


def _environment(kafka: KafkaSettings, keyring: Path) -> dict[str, str]:
    """Return the children's environment: the demo's settings and, if the shell names a Kafka, its settings of Kafka."""
    kept = ("POSTBACK_KAFKA__",) if _is_kafka_named() else ()
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith("POSTBACK_") or name.startswith(kept)
    }
    return inherited | {
        "POSTBACK_ENV": "development",
        "POSTBACK_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "POSTBACK_KAFKA__TOPIC_PREFIX": kafka.topic_prefix,
        "POSTBACK_KAFKA__PARTITIONS": str(kafka.partitions),
        "POSTBACK_KEYRING": str(keyring),
        "POSTBACK_EGRESS__ALLOW_CALLBACKS": LOOPBACK,
        "POSTBACK_EGRESS__ALLOW_FETCH": LOOPBACK,
        # A small machine that has just loaded a model reads its first pages slowly, so these limits are generous.
        "POSTBACK_ENRICHMENT__BUDGET_SECONDS": "30",
        "POSTBACK_ENRICHMENT__MEMBER_SECONDS": "10",
        # A base model goes on after its answer with a question of its own, so generation stops at the end of the line.
        "POSTBACK_ENGINE__VLLM__STOP": json.dumps(["\n"]),
        "POSTBACK_ENGINE__VLLM__MAX_MODEL_LEN": "2048",
        "POSTBACK_ENGINE__VLLM__MAX_NUM_SEQS": "16",
    }


def _start_roles(children: Children, engine: EngineName, model: Path | None) -> None:
    named = ("--model", str(model)) if model is not None else ()
    worker = children.start("worker", "--engine", engine, *named)
    delivery = children.start("deliver")
    with _step("Loading the model into vLLM" if model is not None else "Starting a worker with the echo engine"):
        children.wait_ready(worker, LOAD_SECONDS)
    with _step("Starting delivery"):
        children.wait_ready(delivery, START_SECONDS)


async def _show_door(children: Children, store: Path, environment: dict[str, str], engine: EngineName) -> bool:
    """Start a gateway, and run a batch through it. True if each line was answered rightly."""
    with _step("Starting the HTTP gateway"):
        url = open_door(children, store)
    tell(f"    the API is at {url}/v1, and {url}/docs describes it")
    tell(f"    the console page is at {url}/console")
    async with Site() as site:
        asked = _asked(site, BATCH_LINES)
        with _step("Submitting a batch with OpenAI's SDK"):
            return await asyncio.to_thread(batch_by_sdk, url, store, environment, asked, ANSWER_TOKENS[engine], tell)


# -- asking -------------------------------------------------------------------------------------------------------


async def _exchange(
    kafka: KafkaSettings, keyring: Keyring, engine: EngineName, jobs: int, children: Children
) -> DemoTally:
    """Submit the jobs, and receive callbacks until every job has one, or none came for STALL_SECONDS."""
    now = _CLOCK.time()
    keys = Keys(keyring.secrets(DEFAULT_TENANT, now), keyring.public_keys(DEFAULT_TENANT, now), DEFAULT_TENANT)
    callbacks: asyncio.Queue[Received] = asyncio.Queue()
    async with Site() as site, Receiver(lambda: keys, callbacks.put_nowait) as receiver:
        asked = _asked(site, jobs)
        tell(f"Submitting {jobs} jobs; only {site.url('/')} has their answers …")
        tally = DemoTally({one.job_id: one for one in asked})
        await asyncio.to_thread(_submit, kafka, asked, engine, receiver.url)
        await _collect(tally, callbacks, children)
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


async def _collect(tally: DemoTally, callbacks: asyncio.Queue[Received], children: Children) -> None:
    patience = Deadline.after(_CLOCK, STALL_SECONDS)
    while not tally.complete and not patience.passed:
        try:
            async with asyncio.timeout(1.0):
                received = await callbacks.get()
        except TimeoutError:
            children.check()
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


# -- next steps ----------------------------------------------------------------------------------------------------


def commands(postback: Path, *, own_kafka: bool) -> list[str]:
    """Return the commands, quoted for a shell. With `own_kafka` the first command also starts a Kafka."""
    name = _typed(postback)
    start = f"{name} broker start && " if own_kafka else ""
    return [
        f"{start}{name} topics create",
        f"{name} worker --engine echo &",
        f"""echo '{{"prompt": "What is a webhook?"}}' | {name} submit - --wait""",
    ]


def next_steps(postback: Path, *, own_kafka: bool) -> list[str]:
    """Return the lines to print."""
    name = _typed(postback)
    end = f"`kill %1; {name} broker stop` ends it" if own_kafka else "`kill %1` ends the worker"
    return [
        f"Next: keep a fleet running on this machine, and ask it something. {end}.",
        *(f"    {command}" for command in commands(postback, own_kafka=own_kafka)),
        f"`{name} --help` shows every command, and README.md how to use a model and take callbacks.",
    ]


def _typed(postback: Path) -> str:
    """Return `postback` if a shell finds this file by that name, else the file's whole path."""
    found = shutil.which("postback")
    if found is not None and Path(found).resolve() == postback.resolve():
        return "postback"
    return shlex.quote(str(postback))
