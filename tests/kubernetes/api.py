"""Requests to a Kubernetes API server. Paths and fields are those of the Kubernetes API reference."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import requests

Object: TypeAlias = dict[str, Any]
"""An object of the Kubernetes API as JSON."""

_REQUEST_SECONDS = 60.0
_PATCHES = {
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "apply": "application/apply-patch+yaml",
}


class Refused(Exception):  # noqa: N818 - the server's word
    """The API server answered with an error status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


@dataclass(frozen=True, slots=True)
class Api:
    """An API server and its administrator's token."""

    url: str
    token: str
    authority: Path

    def get(self, path: str, **query: str) -> Object:
        return self._ask("GET", path, query=query)

    def items(self, path: str, **query: str) -> list[Object]:
        """The objects of a list."""
        found: list[Object] = self.get(path, **query)["items"]
        return found

    def find(self, path: str) -> Object | None:
        """The object, or None if there is none."""
        try:
            return self.get(path)
        except Refused as error:
            if error.code == requests.codes.not_found:
                return None
            raise

    def answers(self, path: str) -> bool:
        """True if the server serves this path."""
        try:
            self._send("GET", path, None, None, "")
        except (Refused, requests.RequestException):
            return False
        return True

    def create(self, path: str, body: Object, **query: str) -> Object:
        return self._ask("POST", path, body, query)

    def collection(self, body: Object, namespace: str) -> str:
        """The path where objects of this kind are created. Raises KeyError if the server does not know the kind."""
        version = body["apiVersion"]
        group = f"/apis/{version}" if "/" in version else f"/api/{version}"
        names = {each["kind"]: each["name"] for each in self.get(group)["resources"] if "/" not in each["name"]}
        return f"{group}/namespaces/{namespace}/{names[body['kind']]}"

    def patch(self, path: str, body: Object, kind: str = "merge", **query: str) -> Object:
        return self._ask("PATCH", path, body, query, _PATCHES[kind])

    def apply(self, path: str, body: Object) -> Object:
        """Create or replace an object (server-side apply)."""
        return self.patch(path, body, "apply", fieldManager="tests", force="true")

    def delete(self, path: str, body: Object | None = None) -> Object:
        return self._ask("DELETE", path, body)

    def watch(self, path: str, seconds: int, **query: str) -> Iterator[Object]:
        """Yield the events of a list for this many seconds; the first events are about the objects that exist."""
        asked = {**query, "watch": "true", "timeoutSeconds": str(seconds)}
        with self._send("GET", path, None, asked, "", stream=True) as answer:
            for line in answer.iter_lines():
                yield json.loads(line)

    def _ask(
        self, method: str, path: str, body: Object | None = None, query: Object | None = None, kind: str = ""
    ) -> Object:
        answer: Object = self._send(method, path, body, query, kind).json()
        return answer

    def _send(
        self, method: str, path: str, body: Object | None, query: Object | None, kind: str, *, stream: bool = False
    ) -> requests.Response:
        answer = requests.request(
            method,
            self.url + path,
            params=query,
            data=None if body is None else json.dumps(body),
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": kind or "application/json"},
            verify=str(self.authority),
            timeout=_REQUEST_SECONDS,
            stream=stream,
        )
        if not answer.ok:
            raise Refused(answer.status_code, _message(answer))
        return answer


def _message(answer: requests.Response) -> str:
    try:
        return str(answer.json()["message"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:500]
