"""Checks the services beside Kafka (the gateway's store, and Redis), and the packages that a role needs."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from operators.doctor.findings import Finding, fault, warning
from schemas.settings import read_settings

ROLES = {"worker": "worker", "deliver": "worker", "gateway": "gateway"}
"""Maps each role that needs more than the base install to the extra that installs the role's packages."""
_PACKAGES = {"worker": ("aiohttp", "confluent_kafka", "uvloop"), "gateway": ("sqlalchemy", "starlette", "uvicorn")}
_REDIS_SECONDS = 3.0


def check_packages(roles: Sequence[str]) -> Iterator[Finding]:
    """Yield a fault for each role whose packages are not installed."""
    for role in roles:
        extra = ROLES.get(role)
        absent = [name for name in _PACKAGES.get(extra or "", ()) if find_spec(name) is None]
        if absent:
            yield fault(f"`postback {role}` needs {absent[0]}", f"run `pip install 'postback[{extra}]'`")


def check_store() -> Iterator[Finding]:
    """Yield the faults of the gateway's database. The check makes no table and no file. Raises SettingsRefused."""
    from gateway.errors import StoreAway
    from gateway.store.schema import examine_store
    from gateway.store.settings import StoreSettings

    try:
        examine_store(read_settings(StoreSettings).url)
    except StoreAway as away:
        problem, _, fix = str(away).partition("; ")
        yield fault(problem, fix or "start the database, or correct POSTBACK_STORE__URL")


def check_bucket() -> Iterator[Finding]:
    """Yield a fault if the bucket of the gateway's files is away, missing or read-only. Raises SettingsRefused.

    The check writes an empty object and deletes it.
    """
    from gateway.blobs.base import BlobsAway, has_answer
    from gateway.blobs.folder import open_blobs
    from gateway.blobs.settings import FilesSettings

    variable, step = "POSTBACK_FILES__PLACE", "read"
    try:
        blobs = open_blobs(read_settings(FilesSettings), "")
        has_answer(blobs)
        step = "written"
        name = f"doctor-{secrets.token_hex(8)}"
        writer = blobs.create(name)
        writer.write(b"doctor")
        writer.commit()
        step = "deleted from"
        blobs.delete(name)
    except BlobsAway as away:
        problem, _, fix = str(away).partition("; ")
        yield fault(f"the bucket of {variable} cannot be {step}: {problem}", fix or f"correct {variable} and its keys")


def check_ocr(languages: str) -> Iterator[Finding]:
    """Yield a fault if tesseract or one of the languages is missing."""
    from workers.enrichment.processes.tesseract import Tesseract
    from workers.system.errors import ProcessError

    try:
        Tesseract.find(languages)
    except ProcessError as missing:
        problem, _, fix = str(missing).partition("; ")
        yield fault(problem, fix)


def check_entailment(judge: str | None) -> Iterator[Finding]:
    """Yield a warning if no judge of answers is named, and a fault if the cross-encoder cannot be loaded."""
    from workers.enrichment.answering.profile import Profiles
    from workers.enrichment.settings import BY_ENGINE, ENTAILMENT_SETTING

    if not judge:
        profiles = Profiles.load()
        names = " and ".join(name for name in profiles.names if profiles[name].requires)
        yield warning(
            f"jobs with the profiles {names} fail as profile_unavailable, since {ENTAILMENT_SETTING} is not set",
            f"set it to a cross-encoder's folder or to {BY_ENGINE}, or use other profiles",
        )
    elif judge != BY_ENGINE and not Path(judge).exists():
        yield fault(f"{ENTAILMENT_SETTING} names no file or folder", f"correct the path, or set it to {BY_ENGINE}")
    elif judge != BY_ENGINE and (find_spec("onnxruntime") is None or find_spec("tokenizers") is None):
        yield fault(
            f"{ENTAILMENT_SETTING} needs onnxruntime and tokenizers", "run `pip install 'postback[worker,entailment]'`"
        )


def check_redis(variable: str, url: str) -> Iterator[Finding]:
    """Yield a fault if the Redis at `url` cannot be used. The URL, which may contain a password, is not shown."""
    if find_spec("redis") is None:
        yield fault(
            f"{variable} is set, and the package redis is not installed", "run `pip install 'postback[worker]'`"
        )
        return
    from redis import Redis
    from redis.exceptions import AuthenticationError, NoPermissionError, ReadOnlyError, RedisError

    try:
        with Redis.from_url(url, socket_timeout=_REDIS_SECONDS, socket_connect_timeout=_REDIS_SECONDS) as client:
            client.ping()
            client.set("postback/doctor", b"", px=1000)
    except AuthenticationError:
        yield fault(f"the Redis of {variable} refuses the password", f"correct the password in {variable}")
    except (ReadOnlyError, NoPermissionError) as error:
        yield fault(
            f"the Redis of {variable} takes no writes ({type(error).__name__})",
            f"name the primary in {variable}, and a user that may write",
        )
    except (RedisError, OSError) as error:
        yield fault(f"the Redis of {variable} fails ({type(error).__name__})", f"start it, or correct {variable}")
    except ValueError:
        yield fault(f"{variable} is no URL of a Redis", f"set {variable}=redis://HOST:6379/0")
