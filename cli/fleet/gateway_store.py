"""The gateway's store, for commands that work on it beside a running gateway."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from cli.shared.settings import checked_settings

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from gateway.access.keys import KeyDigests

T = TypeVar("T")

StoreUrl = Annotated[
    str | None, typer.Option("--store", help="The gateway's database; POSTBACK_STORE__URL by default.")
]


def store_url(given: str | None) -> str:
    """Return the URL of the option --store, or that of the settings."""
    from gateway.store.settings import StoreSettings

    return given or checked_settings(StoreSettings).url


class OpenStore:
    """The store, open for one command. The methods raise StoreAway and PepperProblem."""

    def __init__(self, url: str) -> None:
        from gateway.store.store import Store

        self._url = url
        self.store = Store.open(url)

    def digests(self) -> KeyDigests:
        """Return the object that makes keys' digests with the store's pepper."""
        from gateway.access.keys import KeyDigests
        from gateway.access.pepper import load_pepper
        from gateway.access.settings import AccessSettings

        return KeyDigests(load_pepper(self.store, self._url, checked_settings(AccessSettings).pepper_file))

    def change(self, change: Callable[[Connection], T]) -> T:
        """Run a change, and return its result after the commit."""
        return self.store.submit(change).result()

    def read(self, query: Callable[[Connection], T]) -> T:
        """Run a query."""
        return self.store.read_now(query)

    def close(self) -> None:
        """Close all connections."""
        self.store.close()


@contextmanager
def opened_store(url: str | None) -> Iterator[OpenStore]:
    """Open the store for the body of a `with`. Raises StoreAway."""
    store = OpenStore(store_url(url))
    try:
        yield store
    finally:
        store.close()
