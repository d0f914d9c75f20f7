"""The roles of `postback dev` in one process: a worker, delivery, a gateway with its console, and a receiver."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import typer
from rich.console import Console

from cli.develop.received import View
from cli.devkit.receiver import Receiver
from cli.fleet.dev_start import HOST, Ports, Wanted, servers_nearby, write_private
from cli.fleet.gateway_store import opened_store, store_url
from cli.fleet.roles import run
from cli.operations.topics import configure_groups, create_topics
from cli.shared.settings import fleet_settings, keyring_path
from cli.shared.verifying import KeyringKeys
from gateway.access.keys import create_key
from gateway.role import ROLES, Options, gateway_stages
from schemas.job import DEFAULT_TENANT
from schemas.settings import FleetSettings
from telemetry.clock import SystemClock
from workers.delivery.keyring import Keyring, KeyringExists
from workers.roles.delivery import delivery_stages
from workers.roles.model_registry import engine_of
from workers.roles.process import Listen, Process, WhenReady
from workers.roles.process import run as run_process
from workers.roles.worker import inference_stage
from workers.stage.stage import Stage

LOOPBACK = "127.0.0.0/8"

_CLOCK = SystemClock()


@dataclass(frozen=True, slots=True)
class Addresses:
    """The addresses of a running system, as `--json` prints them."""

    gateway_url: str
    console_url: str
    api_key: str
    kafka: str
    receiver_url: str
    metrics_url: str
    model: str
    keyring: str


def serve(wanted: Wanted, folder: Path, ports: Ports, kafka: str, model: str | None) -> None:
    """Make topics, keys and an API key where they are missing, and serve until a signal.

    Raises OperatorError if a part cannot start.
    """
    _set_environment(wanted, folder, kafka)
    fleet = fleet_settings()
    create_topics(fleet.kafka)
    configure_groups(fleet.kafka)
    keyring = keyring_path(fleet)
    with suppress(KeyringExists):
        Keyring.create(keyring, _CLOCK)
    run("dev", _System(wanted, fleet, ports, keyring, _api_key(folder), model).run())


def _set_environment(wanted: Wanted, folder: Path, kafka: str) -> None:
    """Set the variables of this system. Variables of the shell win, except for the addresses that options name."""
    os.environ["POSTBACK_KAFKA__BOOTSTRAP_SERVERS"] = kafka
    if wanted.base_url is not None:
        os.environ["POSTBACK_ENGINE__OPENAI__BASE_URL"] = wanted.base_url
    for name, value in {
        "POSTBACK_ENV": "development",
        "POSTBACK_KAFKA__PARTITIONS": "2",
        "POSTBACK_KEYRING": str(folder / "keyring.json"),
        "POSTBACK_GATEWAY__AUDIT_FILE": str(folder / "audit.jsonl"),
        "POSTBACK_STORE__URL": f"sqlite:///{folder / 'gateway.db'}",
        "POSTBACK_EGRESS__ALLOW_CALLBACKS": LOOPBACK,
        "POSTBACK_EGRESS__ALLOW_FETCH": LOOPBACK,
        "POSTBACK_WORKER__DRAIN_SECONDS": "2",
        "POSTBACK_REPLICA": "dev",
    }.items():
        os.environ.setdefault(name, value)


def _api_key(folder: Path) -> str:
    """Return the API key of the folder, which is made and kept there if there is none."""
    file = folder / "api-key"
    if file.exists():
        return file.read_text().strip()
    with opened_store(None) as opened:
        digests = opened.digests()
        made = opened.change(
            lambda connection: create_key(connection, digests, _CLOCK, DEFAULT_TENANT, label="postback dev")
        )
    write_private(file, made.key)
    return made.key


# -- serving ---------------------------------------------------------------------------------------------------------


class _System:
    """The parts of all roles in one process."""

    def __init__(
        self, wanted: Wanted, fleet: FleetSettings, ports: Ports, keyring: Path, key: str, model: str | None
    ) -> None:
        self._wanted = wanted
        self._fleet = fleet
        self._ports = ports
        self._keyring = keyring
        self._key = key
        self._model = model
        self._gateway_url = ""
        self._shown = View(Console(stderr=wanted.as_json))

    async def run(self) -> None:
        """Serve until a signal. Raises the errors of the roles."""
        await run_process(self._fleet, Listen(HOST, self._ports.metrics), lambda port: None, self._prepare)

    async def _prepare(self, process: Process, stack: AsyncExitStack) -> list[Stage]:
        engine = engine_of(self._wanted.engine, self._model, process.clock, process.metrics)
        stack.push_async_callback(engine.close)
        stages = [await inference_stage(process, engine, stack)]
        stages += await delivery_stages(process, stack)
        stages += await gateway_stages(process, stack, self._gateway())
        receiver = await self._receiver(stack)
        await engine.start()
        process.ready_by = None  # the gateway alone is ready without the other roles, and the system is not
        process.beside.append(WhenReady(process.readiness, lambda: self._greet(process, receiver)))
        return stages

    def _gateway(self) -> Options:
        def announce(url: str) -> None:
            self._gateway_url = url

        return Options(
            host=HOST,
            port=self._ports.gateway,
            store_url=store_url(None),
            tls_cert=None,
            tls_key=None,
            client_ca=None,
            client_crl=None,
            roles=frozenset(ROLES),
            announce=announce,
        )

    async def _receiver(self, stack: AsyncExitStack) -> Receiver:
        keys = KeyringKeys(self._keyring, DEFAULT_TENANT)
        receiver = Receiver(keys.current, self._shown.show, host=HOST, port=self._ports.receiver)
        return await stack.enter_async_context(receiver)

    async def _greet(self, process: Process, receiver: Receiver) -> None:
        addresses = Addresses(
            gateway_url=self._gateway_url,
            console_url=f"{self._gateway_url}/console",
            api_key=self._key,
            kafka=self._fleet.kafka.bootstrap_servers,
            receiver_url=receiver.url,
            metrics_url=process.metrics_url,
            model=self._model or self._wanted.engine,
            keyring=str(self._keyring),
        )
        if self._wanted.as_json:
            typer.echo(json.dumps(asdict(addresses)))
            return
        nearby = await asyncio.to_thread(servers_nearby) if self._wanted.engine == "echo" else {}
        typer.echo("\n".join(screen(addresses, self._fleet.kafka.topics.requests(), nearby)))


def screen(at: Addresses, topic: str, nearby: Mapping[str, str]) -> list[str]:
    """Return the lines that a person sees when everything serves. Code has no indentation: Python refuses it pasted."""
    question = "What is a webhook?"
    job = json.dumps({"prompt": question, "callback_url": at.receiver_url})
    lines = [
        "",
        "Postback serves on this machine. Ctrl-C ends everything.",
        f"    API        {at.gateway_url}/v1   described at {at.gateway_url}/docs",
        f"    API key    {at.api_key}",
        f"    console    {at.console_url}   shows jobs and answers; sign in with the API key",
        f"    Kafka      {at.kafka}",
        f"    callbacks  {at.receiver_url}   verified callbacks are shown below",
        f"    keyring    {at.keyring}   POSTBACK_KEYRING of `postback keys show --reveal`",
        f"    model      {at.model}",
        "",
        "A job, by curl:",
        f"curl {at.gateway_url}/v1/jobs -H 'Authorization: Bearer {at.api_key}' \\",
        f"  -H 'Content-Type: application/json' -d '{job}'",
        "",
        "By OpenAI's SDK (pip install openai):",
        "from openai import OpenAI",
        f'client = OpenAI(base_url="{at.gateway_url}/v1", api_key="{at.api_key}")',
        f'messages = [{{"role": "user", "content": "{question}"}}]',
        f'chat = client.chat.completions.create(model="{at.model}", messages=messages)',
        "print(chat.choices[0].message.content)",
        "",
        "By any Kafka client (pip install kafka-python):",
        "import json, kafka",
        f'producer = kafka.KafkaProducer(bootstrap_servers="{at.kafka}")',
        f'producer.send("{topic}", json.dumps({job}).encode())',
        "producer.flush()",
        "",
    ]
    lines += [
        f"{name} runs here: `postback dev --base-url {url}` answers with its model.\n" for name, url in nearby.items()
    ]
    return lines
