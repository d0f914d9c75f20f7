"""A Redis, and settings for each level of the page cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.redis_server import RedisServer


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=["memory", "redis", "disk"])
def level(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """Settings with one cache level only."""
    off = {"memory_bytes": 0}
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis")
        return {**off, "redis_url": server.url, "redis_prefix": f"{tmp_path.name}:"}
    return {**off, "disk_path": tmp_path / "pages.sqlite"} if request.param == "disk" else {}
