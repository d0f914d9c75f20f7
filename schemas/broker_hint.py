"""Advice if Kafka does not answer: the exact command that starts a broker, or that names another broker."""

from __future__ import annotations

from typing import Final

_VARIABLE: Final = "POSTBACK_KAFKA__BOOTSTRAP_SERVERS"
_DEFAULT_PORT: Final = "9092"
_OF_THIS_MACHINE: Final = frozenset({"127.0.0.1", "localhost", "::1"})


def broker_hint(bootstrap_servers: str) -> str:
    """Return a hint: start a broker at these addresses (`host:port`, separated by commas), or name another broker."""
    host, _, port = bootstrap_servers.split(",")[0].strip().rpartition(":")
    if host.strip("[]") in _OF_THIS_MACHINE and port.isdecimal():
        option = "" if port == _DEFAULT_PORT else f" --port {port}"
        return (
            f"start one with `postback broker start{option}`, or name yours with `export {_VARIABLE}=HOST:PORT` "
            "(and set its credentials, if it asks for them)"
        )
    return (
        f"check that it runs and that its name resolves here, or start one with `postback broker start` and name it "
        f"with `export {_VARIABLE}=127.0.0.1:{_DEFAULT_PORT}`"
    )
