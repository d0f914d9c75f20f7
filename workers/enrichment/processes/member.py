"""The loop of a member of the pool: `python -m workers.enrichment.processes.member SECONDS BYTES EXTRACTOR`.

The process takes tasks from standard input and answers on standard output, as `frames` describes. The first answer
names the fences that this kernel lacks (`missing`); the other fences keep the process from opening files and sockets.
The process ends when its input closes, so it never outlives the worker. If a task hangs and the worker dies before it
can kill the process, an alarm ends the process.
"""

from __future__ import annotations

import contextlib
import encodings
import importlib
import json
import math
import os
import pkgutil
import resource
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

from protego import Protego

from workers.enrichment.choosing.rank import Budget, Ranking
from workers.enrichment.evidence import Extractor, Unreadable
from workers.enrichment.reading.extract import Extracted, extract
from workers.enrichment.reading.pictures import Postponed
from workers.enrichment.reading.steering import steering
from workers.processes.confinement import confine
from workers.processes.frames import receive, send

Kind = Callable[..., dict[str, Any]]
"""A function that answers tasks of one kind. Its arguments are the task's body and the task's other values."""

_ALARM_GRACE_SECONDS = 1.0
_IMPORTED_LATE = ("workers.enrichment.reading.pdf", "idna.uts46data")
_OF_EXTRACTOR = {"trafilatura": ("workers.enrichment.reading.by_trafilatura",)}
"""Maps each optional extractor's name to the modules that it needs."""


def main() -> None:
    """Answer tasks until the input ends."""
    seconds, size, extractor = float(sys.argv[1]), int(sys.argv[2]), cast("Extractor", sys.argv[3])
    limit_memory(size)
    import_all(extractor)
    serve({**_KINDS, "extract": partial(extract_page, extractor=extractor)}, seconds)


def limit_memory(size: int) -> None:
    """Limit this process's address space, in bytes."""
    with contextlib.suppress(OSError):  # if memory runs out, the kernel kills this process rather than the worker
        Path("/proc/self/oom_score_adj").write_text("1000")
    with contextlib.suppress(ValueError, OSError):  # some systems lack this limit; the timeout applies in any case
        resource.setrlimit(resource.RLIMIT_AS, (size, size))


def serve(kinds: Mapping[str, Kind], seconds: float, *, is_parent: bool = False) -> None:
    """Confine this process, and answer tasks until the input ends.

    If a task takes a second longer than `seconds`, an alarm ends the process. `is_parent` is passed on to `confine`.
    """
    status = _status()
    send(sys.stdout.buffer, {"missing": confine(is_parent=is_parent)})
    while (request := receive(sys.stdin.buffer)) is not None:
        signal.setitimer(signal.ITIMER_REAL, seconds + _ALARM_GRACE_SECONDS)
        send(sys.stdout.buffer, _answer(kinds, *request, status))
        signal.setitimer(signal.ITIMER_REAL, 0)


def import_all(extractor: Extractor) -> None:
    """Import now the modules that libraries import late, because a confined process cannot read the modules' files."""
    for name in (*_IMPORTED_LATE, *_OF_EXTRACTOR.get(extractor, ())):
        importlib.import_module(name)
    for module in pkgutil.iter_modules(encodings.__path__):
        with contextlib.suppress(ImportError):  # some codecs exist only on Windows
            importlib.import_module(f"encodings.{module.name}")


def _answer(kinds: Mapping[str, Kind], task: dict[str, Any], body: bytes, status: int | None) -> dict[str, Any]:
    try:
        answer = kinds[task.pop("kind")](body, **task)
    except Unreadable as unreadable:
        answer = {"unreadable": str(unreadable)}
    except MemoryError:
        answer = {"unreadable": "reading it needed more memory than allowed"}
    return {**answer, "peak_kib": _peak_kib(status)}


def _status() -> int | None:
    """Open this process's status file while files can still be opened."""
    try:
        return os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def _peak_kib(status: int | None) -> int:
    """Return the peak memory of this program, in KiB.

    `ru_maxrss` is used only without /proc. `ru_maxrss` survives exec(2), so it would include the memory of the worker
    that forked the member: gigabytes with an engine in the worker.
    """
    if status is None:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(os.pread(status, 16 * 1024, 0).partition(b"VmHWM:")[2].split()[0])


def extract_page(
    body: bytes,
    media_type: str,
    charset: str | None,
    url: str,
    extractor: Extractor = "resiliparse",
    ocr: bool = False,
) -> dict[str, Any]:
    """Return a page's title, main text, other text and particulars.

    If `ocr` is true and the page has pictures of text, the answer has `pictures`: another process must read the
    pictures.
    """
    postponed = Postponed() if ocr else None
    try:
        extracted = extract(body, media_type, charset, url, extractor, postponed)
    except Unreadable:
        if postponed is None or not postponed.has_pictures:
            raise
        extracted = Extracted(None, "")
    has_pictures = postponed is not None and postponed.has_pictures
    return answered(extracted) | ({"pictures": True} if has_pictures else {})


def answered(extracted: Extracted) -> dict[str, Any]:
    """Return an extracted page in the form of a member's answer."""
    return {
        "title": extracted.title,
        "text": extracted.text,
        "rest": extracted.rest,
        "particulars": asdict(extracted.particulars),
    }


def rank_passages(
    body: bytes,
    evidence_chars: int,
    evidence_tokens: int | None,
    source_tokens: int,
    passage_chars: int,
    candidates: int = 0,
    by_meaning: Sequence[int] = (),
) -> dict[str, Any]:
    """Return the passages that answer the question best, within a budget, and the candidates for a second ranking.

    In the answer, `steering` has for each document the ways in which its passages try to steer the model.
    """
    request = json.loads(body)
    texts = [(title or "", *parts) for title, *parts in request["documents"]]
    ranking = Ranking(request["question"], texts, passage_chars)
    budget = Budget(evidence_chars, evidence_tokens, source_tokens)
    passages = ranking.chosen(budget, by_meaning)
    labels = [steering(title, *some) if some else [] for (title, *_), some in zip(texts, passages, strict=True)]
    return {"passages": passages, "steering": labels, "candidates": ranking.candidates(candidates)}


def judge_robots(body: bytes, url: str, user_agent: str) -> dict[str, Any]:
    """Return whether a robots.txt allows a URL, and the file's crawl delay in seconds."""
    return {"allowed": may_fetch(body, url, user_agent), "delay": crawl_delay_seconds(body, user_agent)}


def may_fetch(body: bytes, url: str, user_agent: str) -> bool:
    """True if robots.txt allows this URL, by the rules for `user_agent` or else for all agents (RFC 9309)."""
    return bool(_parsed(body).can_fetch(url, user_agent))


def crawl_delay_seconds(body: bytes, user_agent: str) -> float:
    """Return the site's `Crawl-delay` for `user_agent`, or 0. The directive is common, but not part of RFC 9309."""
    delay = _parsed(body).crawl_delay(user_agent)
    return float(delay) if delay is not None and math.isfinite(delay) and delay > 0 else 0.0


@lru_cache(maxsize=16)
def _parsed(body: bytes) -> Protego:
    # The codec drops a byte order mark, which would hide the first line.
    return Protego.parse(body.decode("utf-8-sig", "replace"))


_KINDS: dict[str, Kind] = {
    "extract": extract_page,
    "rank": rank_passages,
    "robots": judge_robots,
}


if __name__ == "__main__":
    main()
