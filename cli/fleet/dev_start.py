"""The first steps of `postback dev`: its folder, its ports, its Kafka, and the model server.

This module imports little: the parts of the roles are imported beside the start of Kafka.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.error import URLError
from urllib.request import urlopen

from cli.devkit.broker import Broker
from cli.devkit.kafka.cluster import check_free, free_ports
from cli.devkit.kafka.errors import PortInUse
from schemas.operator_error import OperatorError
from telemetry.atomic_file import Replacement, replace_files

HOST = "127.0.0.1"
LIST_SECONDS = 5.0
"""The time in which a model server has to list its models."""
LOOK_AROUND_SECONDS = 0.3
USUAL_PORTS = {"Ollama": 11434, "vLLM": 8000, "LM Studio": 1234}
"""The ports on which model servers for one machine listen, if they are started without options."""


class DataRefused(OperatorError):  # noqa: N818 - named after the refusal
    """The folder of --data cannot be used. The text names the file and the fix."""


class ServerRefused(OperatorError):  # noqa: N818 - named after the refusal
    """The model server of --base-url does not list its models. The text says why."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The command's options."""

    engine: str
    model: str | None
    base_url: str | None
    kafka: str | None
    data: Path | None
    port: int | None
    as_json: bool


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports of one system, which its folder keeps."""

    gateway: int = 8400
    receiver: int = 8401
    metrics: int = 8402
    kafka: int = 9092


@contextmanager
def data_folder(data: Path | None) -> Iterator[Path]:
    """Yield the folder of the data, or a folder that ends with the block. Raises DataRefused."""
    if data is None:
        with TemporaryDirectory(prefix="postback-dev-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)
        return
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise DataRefused(f"--data {data}: {error.strerror}; name a folder that can be written") from None
    yield data.resolve()


@contextmanager
def reserved_ports(folder: Path, wanted: Wanted) -> Iterator[Ports]:
    """Yield the ports that the folder keeps, or else free ports, which are kept. Raises DataRefused.

    A `postback dev` that starts meanwhile takes others, though some of them get their listener only seconds later.
    """
    file = folder / "ports.json"
    with ExitStack() as reserved:
        try:
            ports = Ports(**json.loads(file.read_text()))
            # Without Kafka's: after a kill, the last Kafka may be about to end.
            for port in (ports.gateway, ports.receiver, ports.metrics):
                _reserve(port, reserved)
        except FileNotFoundError:
            ports = Ports(**{name: _free_port(port, reserved) for name, port in asdict(Ports()).items()})
        except PortInUse as error:
            listener = "stop its listener, which may be another `postback dev`"
            raise DataRefused(f"port {error.port}, which {file} keeps, is in use; {listener}") from None
        except (OSError, ValueError, TypeError):
            raise DataRefused(f"{file} cannot be read; remove it, and the system gets new ports") from None
        if wanted.port is not None:
            ports = replace(ports, gateway=wanted.port or _free_port(0, reserved))
        if wanted.data is not None:
            write_private(file, json.dumps(asdict(ports)))
        yield ports


def _free_port(port: int, reserved: ExitStack) -> int:
    """Reserve this port if it is free, else another one that is. 0 always gives another one."""
    for candidate in (*([port] if port else []), *free_ports(5)):
        with suppress(PortInUse):
            _reserve(candidate, reserved)
            return candidate
    raise PortInUse(port)


def _reserve(port: int, reserved: ExitStack) -> None:
    """Keep the port from each `postback dev` of this machine until the stack ends. Raises PortInUse."""
    check_free(port)
    name = reserved.enter_context(socket.socket(socket.AF_UNIX))
    try:
        name.bind(f"\0postback dev {port}")  # an abstract name has no file, and ends with its process
    except OSError as error:
        raise PortInUse(port) from error


@contextmanager
def kafka(wanted: Wanted, folder: Path, ports: Ports) -> Iterator[str]:
    """Yield the address of the Kafka that the options or the environment name, or else start one."""
    named = wanted.kafka or os.environ.get("POSTBACK_KAFKA__BOOTSTRAP_SERVERS")
    if named is not None:
        yield named
        return
    with Broker.start(ports.kafka, folder / "kafka") as broker:
        yield broker.bootstrap_servers


def served_model(wanted: Wanted) -> str | None:
    """Return the model's name: for a server, by default the first one that it lists. Raises ServerRefused."""
    if wanted.engine != "openai" or wanted.model is not None or wanted.base_url is None:
        return wanted.model
    try:
        names = models_at(wanted.base_url, LIST_SECONDS)
    except OSError as error:
        raise ServerRefused(
            f"{wanted.base_url}/models does not answer ({error}); start the server, or mend --base-url"
        ) from None
    except ValueError:
        raise ServerRefused(
            f"{wanted.base_url}/models is no list of models; --base-url usually ends with /v1"
        ) from None
    if not names:
        raise ServerRefused(f"{wanted.base_url}/models lists no model; load one into the server, or give --model")
    return names[0]


def models_at(base_url: str, seconds: float) -> list[str]:
    """Return the names of the models that a server lists. Raises OSError and ValueError."""
    if not base_url.startswith(("http://", "https://")):
        raise ValueError(base_url)
    try:
        with urlopen(f"{base_url.rstrip('/')}/models", timeout=seconds) as answer:  # noqa: S310 - checked above
            listed = json.loads(answer.read(1024 * 1024))
        return [str(model["id"]) for model in listed["data"]]
    except URLError as error:
        raise OSError(getattr(error.reason, "strerror", None) or str(error.reason)) from None
    except (KeyError, TypeError, HTTPException):
        raise ValueError(base_url) from None


def servers_nearby() -> dict[str, str]:
    """Return the URLs of model servers that listen on their usual ports here, by the server's name."""
    found = {}
    for name, port in USUAL_PORTS.items():
        url = f"http://{HOST}:{port}/v1"
        try:
            models_at(url, LOOK_AROUND_SECONDS)
        except (OSError, ValueError):
            continue
        found[name] = url
    return found


def write_private(file: Path, text: str) -> None:
    """Write a file that only this user can read. Raises DataRefused."""
    try:
        replace_files(Replacement(file, f"{text}\n".encode()))
    except OSError as error:
        raise DataRefused(f"{file}: {error.strerror}; name a folder that can be written") from None
