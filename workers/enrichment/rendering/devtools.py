"""One connection to a browser by Chromium's DevTools protocol: commands, their results, and events, in JSON.

A hostile page may take over its browser, so each message counts as hostile.
Protocol: https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count
from typing import Any, Final, TypeVar

import aiohttp
from pydantic import Field, ValidationError

from schemas.bounded import BoundedModel

MOST_MESSAGES: Final = 10_000
"""Cap on the messages of one connection. A page of 200 files has about 1,000."""

Heard = Callable[[str, dict[str, Any]], None]
"""A function that gets an event's name and parameters."""
_Value = TypeVar("_Value")


class BrowserFailed(Exception):  # noqa: N818 - named after the event
    """The browser gave no usable answer. The text gives the reason, without addresses and secrets."""


class _Message(BoundedModel):
    """The result of a command if it has an `id`, else an event."""

    id: int | None = None
    method: str = ""
    params: dict[str, Any] = Field(default_factory=dict)
    result: dict[str, Any] | None = None


class DevTools:
    """Speaks the protocol over one WebSocket. While `listen` runs, `heard` is called with each event."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, heard: Heard) -> None:
        self._socket = socket
        self._heard = heard
        self._ids = count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def call(self, method: str, session: str | None = None, **params: object) -> dict[str, Any]:
        """Run a command, for a page if `session` is given, else for the browser. Return the command's result.

        Raises BrowserFailed. The result arrives only while `listen` runs.
        """
        number = next(self._ids)
        command = {"id": number, "method": method, "params": params}
        self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            await self._socket.send_json(command if session is None else {**command, "sessionId": session})
            return await self._waiting[number]
        except OSError:
            raise BrowserFailed("its connection ended") from None
        finally:
            del self._waiting[number]

    async def listen(self) -> None:
        """Read messages until the connection ends. Always raises BrowserFailed."""
        for _ in range(MOST_MESSAGES):
            received = await self._socket.receive()
            if received.type is not aiohttp.WSMsgType.TEXT:
                raise BrowserFailed("its connection ended, or a message is too large or not text")
            try:
                message = _Message.model_validate_json(received.data)
            except ValidationError:
                raise BrowserFailed("it does not speak the DevTools protocol") from None
            if message.id is None:
                self._heard(message.method, message.params)
            else:
                self._settle(message.id, message.result)
        raise BrowserFailed(f"the page makes it send more than {MOST_MESSAGES} messages")

    def _settle(self, number: int, result: dict[str, Any] | None) -> None:
        waiting = self._waiting.get(number)
        if waiting is None or waiting.done():
            return
        if result is None:
            waiting.set_exception(BrowserFailed("it refuses a command"))
        else:
            waiting.set_result(result)


def member(result: dict[str, Any], name: str, kind: type[_Value]) -> _Value:
    """Return the value under `name` in a command's result.

    Raises BrowserFailed for a value of another type than `kind`.
    """
    value = result.get(name)
    if not isinstance(value, kind):
        raise BrowserFailed("it does not speak the DevTools protocol")
    return value
