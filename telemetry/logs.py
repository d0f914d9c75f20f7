"""Log lines: ECS JSON for programs, coloured text on a terminal; no secret and no prompt in either.

A line has a fixed sentence, an `action` of `telemetry/actions.py`, and ids as fields:

    log = get_logger()
    log.info("A callback was delivered.", action="callback-delivered", job_id=job_id, origin=origin_of(url))

In JSON these fields are `message`, `event.action`, `postback.job_id` and `postback.origin`: the Elastic Common Schema
asks for a prefix before a program's own fields. Libraries' loggers (aiohttp, kafka, confluent) use the same stream.
"""

from __future__ import annotations

import enum
import logging
import math
import os
import re
import sys
from collections.abc import Mapping, MutableMapping
from ipaddress import ip_address
from itertools import pairwise
from pathlib import PurePath
from typing import Any, TextIO
from urllib.parse import urlsplit

import idna
from opentelemetry import trace

from schemas.operator_error import OperatorError

# If structlog finds rich, it imports it for tracebacks that are never written here, which takes a sixth of a second.
_HIDES_RICH = "rich" not in sys.modules
if _HIDES_RICH:
    sys.modules["rich"] = None  # type: ignore[assignment]
import structlog  # noqa: E402
from structlog.contextvars import bound_contextvars  # noqa: E402
from structlog.typing import EventDict, Processor, WrappedLogger  # noqa: E402

if _HIDES_RICH:
    del sys.modules["rich"]

__all__ = ["UnknownLevel", "configure", "get_logger", "is_debugging", "log_context", "origin_of", "redact"]

_OURS = "postback"
_LOGGER = logging.getLogger(_OURS)
ECS_VERSION = "9.4.0"
REDACTED = "[redacted]"
NO_ORIGIN = "(not a URL)"
"""The result of `origin_of` for a text that is not a URL."""

_PORTS = {"http": 80, "https": 443}

_PRIVATE_WORDS = frozenset(
    {"secret", "secrets", "token", "tokens", "password", "passphrase", "authorization", "credential", "credentials"}
    | {"cookie", "apikey", "prompt", "prompts", "messages", "text", "body"}
)
_PRIVATE_PAIRS = frozenset({("api", "key"), ("private", "key")})
_SCRUBS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(whsec_|whsk_)[A-Za-z0-9+/=_-]+"), rf"\1{REDACTED}"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9+/=._~-]{8,}"), rf"\1 {REDACTED}"),
    # pydantic quotes the rejected input, which may be a prompt.
    (re.compile(r"input_value=.*?, input_type=", re.DOTALL), f"input_value={REDACTED}, input_type="),
)

_URL = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)([^\s\"<>]*)")
"""An apostrophe may be part of a URL (RFC 3986, section 2.2), so an apostrophe after a quoted URL is taken as part of
the URL."""

_HOST = re.compile(r"\[[0-9A-Fa-f:.]*\](?::[0-9]+)?|[^\[\]'(),;{}]*")
"""A host with its port, without a sentence's punctuation after the URL."""

log_context = bound_contextvars
"""`with log_context(job_id=…, traceparent=…):` adds these fields to each line logged in the block, after awaits too."""

# Our own log calls pass through these steps before they reach the standard library's handlers. The list must stay the
# same object for the process's life, because loggers keep the list, and structlog.testing.capture_logs swaps its
# content.
_OWN_STEPS: list[Processor] = [
    structlog.stdlib.filter_by_level,
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
]
_FOREIGN_STEPS: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


class UnknownLevel(OperatorError, ValueError):  # noqa: N818 - it names what was asked for
    """POSTBACK_LOG_LEVEL is none of DEBUG, INFO, WARNING, ERROR and CRITICAL."""

    exit_status = 2

    def __init__(self) -> None:
        super().__init__(self.__doc__)


def is_debugging() -> bool:
    """True if DEBUG lines are written.

    Code that logs a line for every job calls this first, because the call costs a hundredth of a line's time.
    """
    return _LOGGER.isEnabledFor(logging.DEBUG)


def get_logger(name: str = _OURS) -> structlog.stdlib.BoundLogger:
    """Return a logger. The call is cheap. Before `configure`, lines go to the standard library's handlers."""
    logger: structlog.stdlib.BoundLogger = structlog.wrap_logger(
        logging.getLogger(name), processors=_OWN_STEPS, wrapper_class=structlog.stdlib.BoundLogger
    )
    return logger


def configure(service: str, *, stream: TextIO | None = None, level: str | None = None) -> None:
    """Send this process's log lines, including libraries', to `stream` (standard error by default).

    `service` becomes `service.name`. `level` is a name such as INFO; the default is `POSTBACK_LOG_LEVEL`, or else INFO.
    Raises UnknownLevel.
    """
    wanted = (level or os.environ.get("POSTBACK_LOG_LEVEL", "INFO")).upper()
    if wanted not in logging.getLevelNamesMapping():
        raise UnknownLevel
    stream = sys.stderr if stream is None else stream
    steps = _terminal_steps() if stream.isatty() else _json_steps(service)
    handler = _LineHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_FOREIGN_STEPS,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *steps],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    number = logging.getLevelNamesMapping()[wanted]
    # Only our own lines may have the level DEBUG, at which some libraries write bodies of requests, and so prompts.
    root.setLevel(max(number, logging.INFO))
    logging.getLogger(_OURS).setLevel(number if number < logging.INFO else logging.NOTSET)
    logging.captureWarnings(True)
    for chatty in ("aiohttp.access", "asyncio", "kafka", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    structlog.configure(
        processors=_OWN_STEPS,
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )


class _LineHandler(logging.StreamHandler[TextIO]):
    """Writes log lines. If a library's line cannot be formatted, a line of our own names the library instead."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the standard library's name
        """Log a library's failure; logging itself would print a plain traceback."""
        if record.name == _OURS:
            super().handleError(record)
            return
        get_logger().error(
            "A library's log line cannot be formatted; the line is left out.",
            action="log-line-failed",
            library=record.name,
            error=type(sys.exc_info()[1]).__name__,
        )


def origin_of(url: str) -> str:
    """Return scheme, host and port of a URL. Logs show only these, because a callback's path and query carry tokens.

    Equal origins give equal texts (RFC 6454, section 6.2): lower-case ASCII, without the scheme's default port.
    Never raises.
    """
    try:
        parts = urlsplit(url)
        host, port = _ascii_host(parts.hostname or ""), parts.port
    except ValueError:
        return NO_ORIGIN
    if not host:
        return f"{parts.scheme}:" if parts.scheme else NO_ORIGIN
    return f"{parts.scheme}://{host}" + (f":{port}" if port not in (None, _PORTS.get(parts.scheme)) else "")


def _ascii_host(host: str) -> str:
    """Convert a host to ASCII. Raises ValueError."""
    if ":" in host:
        return f"[{ip_address(host).compressed}]"
    if host.isascii():
        return host
    try:
        return idna.encode(host, uts46=True).decode()
    except UnicodeError:
        return host.encode("idna").decode()  # IDNA of 2003, which yarl uses too, also allows emoji


def redact(value: Any, name: str = "") -> Any:
    """Return the loggable form of `value`: numbers unchanged, texts scrubbed, fields with a private name redacted.

    For an object of another type, only the type's name is returned, because the object's text may contain a prompt.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no NaN and no infinity (RFC 8259, section 6)
    if value is None or (isinstance(value, bool | int | float) and not isinstance(value, enum.Enum)):
        return value
    if _is_private(name):
        return REDACTED
    if isinstance(value, str | PurePath | BaseException):
        return scrub(str(value))
    if isinstance(value, enum.Enum):
        return redact(value.value)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if isinstance(value, Mapping):
        return {str(key): redact(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [redact(item) for item in value]
    return f"<{type(value).__name__}>"


def scrub(text: str) -> str:
    """Remove webhook secrets, bearer tokens, and the paths and queries of URLs from a text."""
    for pattern, replacement in _SCRUBS:
        text = pattern.sub(replacement, text)
    return _URL.sub(_scrubbed, text) if "://" in text else text


def _scrubbed(url: re.Match[str]) -> str:
    """Return only scheme, host and port, because URLs carry tokens in paths and queries, and passwords before hosts."""
    scheme, rest = url.groups()
    authority = re.split(r"[/?#\\]", rest, maxsplit=1)[0]
    behind = rest[len(authority) :]
    if "@" in behind:
        return f"{scheme}…"  # the host is uncertain, because a password may have a slash, and a path may have an @
    host = _HOST.match(authority.rpartition("@")[2])
    return f"{scheme}{host[0] if host else ''}" + ("/…" if behind else "")


def _is_private(name: str) -> bool:
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
    return not _PRIVATE_WORDS.isdisjoint(words) or not _PRIVATE_PAIRS.isdisjoint(pairwise(words))


def _terminal_steps() -> list[Processor]:
    return [
        structlog.processors.format_exc_info,
        _redact_all,
        structlog.dev.ConsoleRenderer(colors=True, exception_formatter=structlog.dev.plain_traceback),
    ]


def _json_steps(service: str) -> list[Processor]:
    def as_ecs(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        return _as_ecs(service, event)

    return [
        _name_the_error,
        structlog.processors.format_exc_info,
        _redact_all,
        as_ecs,
        structlog.processors.JSONRenderer(),  # writes ASCII, because the stream may have any encoding
    ]


def _name_the_error(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    info = event.get("exc_info")
    error = info if isinstance(info, BaseException) else sys.exc_info()[1] if info is True else None
    if isinstance(info, tuple):
        error = info[1]
    if error is not None:
        event["error.type"] = type(error).__qualname__
        event["error.message"] = str(error)
    return event


def _redact_all(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    for name, value in event.items():
        event[name] = redact(value, name)
    return event


_ECS_NAMES = {
    "timestamp": "@timestamp",
    "level": "log.level",
    "event": "message",
    "logger": "log.logger",
    "action": "event.action",
    "trace_id": "trace.id",
    "span_id": "span.id",
    "exception": "error.stack_trace",
}


def _as_ecs(service: str, event: EventDict) -> EventDict:
    """Return the event with the names of the Elastic Common Schema, and with the fields that people look for first."""
    line: dict[str, Any] = {"@timestamp": event.get("timestamp"), "log.level": event.get("level"), "message": ""}
    line |= {"ecs.version": ECS_VERSION, "service.name": service, "process.pid": os.getpid(), **_trace_of(event)}
    for name, value in event.items():
        line[_ECS_NAMES.get(name) or (name if "." in name else f"postback.{name}")] = value
    return line


def _trace_of(event: MutableMapping[str, Any]) -> dict[str, str]:
    """Return the job's trace if the line has one, else the current span's."""
    traceparent = event.pop("traceparent", None)
    if isinstance(traceparent, str) and traceparent.count("-") >= 3:
        _, trace_id, span_id, *_ = traceparent.split("-")
        return {"trace.id": trace_id, "span.id": span_id}
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {"trace.id": f"{context.trace_id:032x}", "span.id": f"{context.span_id:016x}"}
