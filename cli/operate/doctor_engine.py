"""Checks the engine of a worker on this machine: its packages, its model's files, or the server that it asks."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cli.operations.doctor.findings import Finding, fault, warning
from schemas.settings import read_settings
from workers.system.paths import expanded

_ANSWER_SECONDS = 5.0
_BASE_URL = "POSTBACK_ENGINE__OPENAI__BASE_URL"
_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")


def check_engine(engine: str, model: str | None) -> Iterator[Finding]:
    """Yield the faults of an engine. `model` overrides the model of the settings. Raises SettingsRefused."""
    from workers.engines.openai_http.settings import OpenAISettings, RemoteSettings
    from workers.engines.registry import engine_settings
    from workers.engines.vllm.settings import VllmSettings

    section = read_settings(engine_settings()).section(engine)
    if section.needs_package is not None and find_spec(section.needs_package[0]) is None:
        package, extra = section.needs_package
        yield fault(
            f"the engine {engine} needs the package {package}, which is not installed",
            f"run `pip install 'postback[{extra}]'`",
        )
    name = model or section.model
    variable = f"POSTBACK_ENGINE__{engine.upper()}__MODEL"
    if section.needs_model and not name:
        yield fault(f"the engine {engine} has no model", f"set {variable}, or name it with --model")
    elif isinstance(section, VllmSettings) and name:
        yield from model_findings(name, variable)
        for adapter, folder in section.adapters.items():
            yield from _folder_findings(Path(folder), f"the adapter {adapter}", "POSTBACK_ENGINE__VLLM__ADAPTERS")
    elif isinstance(section, OpenAISettings):
        key = section.api_key.get_secret_value() if section.api_key is not None else None
        yield from server_findings(section.base_url, key, name)
    elif isinstance(section, RemoteSettings) and section.api_key is None:
        variable = f"POSTBACK_ENGINE__{engine.upper()}__API_KEY"
        yield fault(f"the engine {engine} has no key", f"set {variable} to a key of the service")


def check_registry(path: Path) -> Iterator[Finding]:
    """Yield the mistakes of a model registry. Raises SettingsRefused."""
    from workers.engines.models.mistakes import RegistryRefused
    from workers.roles.model_registry import read_file

    try:
        read_file(path)
    except RegistryRefused as refused:
        for mistake in refused.mistakes:
            yield fault(f"the model registry {path}: {mistake}", "correct the file; `postback models check` reads it")


def model_findings(name: str, variable: str) -> Iterator[Finding]:
    """Yield the faults of a model's files: in its folder, or in the cache of the Hugging Face hub."""
    folder = expanded(name)
    if folder.is_absolute() or name.startswith((".", "~")) or folder.exists():
        yield from _folder_findings(folder, "the model", variable)
        return
    if any(_hub_cache().glob(f"models--{name.replace('/', '--')}/snapshots/*/config.json")):
        return
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    download = f"run `hf download {name}`"
    if offline:
        yield fault(f"the model {name} is not on this disk, and HF_HUB_OFFLINE forbids its download", download)
    else:
        yield warning(f"the model {name} is not on this disk; the worker downloads it when it starts", download)


def _hub_cache() -> Path:
    """Return the folder of downloaded models, as huggingface_hub finds it."""
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    return expanded(os.environ.get("HF_HUB_CACHE") or home / "hub")


def _folder_findings(folder: Path, whose: str, variable: str) -> Iterator[Finding]:
    try:
        names = [path.name for path in folder.iterdir()]
        files = [path for pattern in ("*.json", *_WEIGHTS) for path in folder.glob(pattern)]
        unreadable = [path.name for path in files if not os.access(path, os.R_OK)]
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or "no path of a folder").lower()
        yield fault(f"the folder of {whose} cannot be read ({reason}): {folder}", f"correct {variable}")
        return
    if unreadable:
        yield fault(
            f"files of {whose} cannot be read by this user: {', '.join(unreadable[:3])}",
            f"run `chmod -R a+rX {folder}`, or run the worker as their owner",
        )
    if not any(path.match(pattern) for path in files for pattern in _WEIGHTS):
        held = "is empty" if not names else "holds no weights (*.safetensors, *.bin or *.gguf)"
        yield fault(f"the folder of {whose} {held}: {folder}", f"download the model again, or correct {variable}")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Refuses redirects, as the engine does, because urllib would also send the key to the other server."""

    def redirect_request(self, *_args: Any) -> None:
        """Return None instead of a request, so that urllib raises HTTPError for the redirect."""


def server_findings(base_url: str, key: str | None, model: str | None) -> Iterator[Finding]:
    """Yield the faults of a server that speaks OpenAI's protocol, from its list of models. No key is shown."""
    from telemetry.logs import origin_of

    where = f"the server at {origin_of(base_url)}"
    request = urllib.request.Request(f"{base_url.rstrip('/')}/models")  # noqa: S310 - the setting allows only http(s)
    if key is not None:
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=_ANSWER_SECONDS) as answer:
            listed = json.loads(answer.read(1024 * 1024))
    except (OSError, ValueError, RecursionError, HTTPException) as error:
        yield _without_models(where, error)
        return
    names = _model_names(listed)
    if model and names and model not in names:
        yield fault(
            f"{where} does not serve the model {model}",
            f"set POSTBACK_ENGINE__OPENAI__MODEL to one of its models: {', '.join(names[:3])}",
        )


def _without_models(where: str, error: Exception) -> Finding:
    """Return the finding of a server that gave no list of models."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()
    match error:
        case urllib.error.HTTPError(code=401):
            return fault(f"{where} refuses the key (401)", "correct POSTBACK_ENGINE__OPENAI__API_KEY")
        case urllib.error.HTTPError(code=403):
            return warning(
                f"{where} does not let this key list its models (403)",
                "give the key that right, or let the worker's first request show whether it may generate",
            )
        case urllib.error.HTTPError():
            return warning(
                f"{where} lists no models ({error.code})",
                f"end {_BASE_URL} with /v1, or look at the server's log",
            )
        case ValueError():
            return fault(
                f"{where} answers, and is no model server: its list of models is no JSON", f"correct {_BASE_URL}"
            )
        case TimeoutError():
            return fault(
                f"{where} hangs: it accepts connections, and gives no answer within {_ANSWER_SECONDS:g} s",
                "restart it, and look at its log",
            )
        case _:
            return fault(f"{where} does not answer ({type(error).__name__})", f"start it, or correct {_BASE_URL}")


def _model_names(listed: object) -> list[str]:
    data = listed.get("data") if isinstance(listed, dict) else None
    entries = data if isinstance(data, list) else []
    return [each["id"] for each in entries if isinstance(each, dict) and isinstance(each.get("id"), str)]
