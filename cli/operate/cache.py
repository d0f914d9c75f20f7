"""`postback cache`: invalidates pages that workers have cached."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from cli.shared.errors import BAD_INPUT, fail, say
from cli.shared.settings import checked_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from yarl import URL

    from workers.enrichment.settings import CacheSettings

app = typer.Typer(no_args_is_help=True, help="Invalidate pages that workers have cached.")


@app.callback()
def _cache() -> None:
    """Keep the name `invalidate` on the command line: typer drops the name of a group's only command."""


@app.command()
def invalidate(
    url: Annotated[str | None, typer.Argument(help="The page's URL, as jobs name it.")] = None,
    host: Annotated[str | None, typer.Option(help="Invalidate all pages of this host, instead of one page.")] = None,
) -> None:
    """Invalidate a page, or all pages of a host, for every tenant: every worker reads them again.

    Workers see the invalidation within a second, in Redis or in the cache's file on this machine.
    """
    if (url is None) == (host is None):
        raise fail("name either a URL or --host", BAD_INPUT)
    from yarl import URL

    from workers.enrichment.cache.entry import target_of_host, target_of_url

    if url is not None and not url.lower().startswith(("http://", "https://")):
        raise fail("a URL starts with http:// or https://", BAD_INPUT)
    if url is not None and not _is_read(lambda: URL(url)):
        raise fail("this URL cannot be read", BAD_INPUT)
    if host is not None and not _is_read(lambda: URL.build(scheme="http", host=host.strip("[]"))):
        raise fail("this is no host; give its name alone, such as example.com", BAD_INPUT)
    settings = _settings()
    target = target_of_url(url) if url is not None else target_of_host(host or "")
    problems = asyncio.run(_tell(settings, target))
    for problem in problems:
        say(problem)
    if problems:
        raise typer.Exit(1)
    say(f"invalidated; workers see it within {settings.pause_seconds:g} s")


def _is_read(read: Callable[[], URL]) -> bool:
    """True if `read` returns a URL with a host."""
    try:
        return bool(read().host)
    except (ValueError, TypeError, LookupError):  # yarl raises IndexError for https://a[]@/
        return False


def _settings() -> CacheSettings:
    from workers.enrichment.settings import CacheSettings

    settings = checked_settings(CacheSettings)
    if settings.redis_url is None and settings.disk_path is None:
        raise fail(
            "no shared cache is configured: set POSTBACK_CACHE__REDIS_URL or POSTBACK_CACHE__DISK_PATH to the workers' "
            "value; to empty a worker's own memory, restart the worker",
            BAD_INPUT,
        )
    return settings


async def _tell(settings: CacheSettings, target: str) -> list[str]:
    """Invalidate the target in each shared level of the cache. Return a problem for each level that failed."""
    from telemetry.clock import SystemClock
    from workers.enrichment.cache.cache import longest_kept_seconds, shared_levels
    from workers.enrichment.cache.levels import LevelFailed

    clock, problems = SystemClock(), []
    for level in shared_levels(settings, clock):
        try:
            await level.invalidate(target, clock.time(), longest_kept_seconds(settings))
        except LevelFailed as failed:
            problems.append(f"{level.name}: {failed}; nothing there is invalidated, so run this again")
        await level.close()
    return problems
