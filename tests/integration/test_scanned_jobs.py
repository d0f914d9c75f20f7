"""Jobs with scans and pages as sources, through Kafka and real workers, also while the processes that read them die."""

from __future__ import annotations

import select
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.http_handler import Answering, handling
from tests.integration.raw_server import SLOW
from tests.product import Product, RoleProcess, eventually
from tests.scanned import saved, scanned, scanned_pdf, tesseract

pytestmark = [pytest.mark.broker, pytest.mark.timeout(600)]

WORKER = {
    "POSTBACK_EGRESS__ALLOW_FETCH": "127.0.0.1/32",
    "POSTBACK_ENRICHMENT__OCR": "eng",
    "POSTBACK_ENRICHMENT__BUDGET_SECONDS": "120",
    "POSTBACK_ENRICHMENT__MEMBER_SECONDS": "60",
    "POSTBACK_ENRICHMENT__ROBOTS": "false",
}
"""No alarm ends a process during a test."""
LINES = "The Halvorsen bridge in Tarnby opened in 1987", "and carries the coast road over the river Vesla."
QUESTION = "When did the Halvorsen bridge in Tarnby open?"
SCAN = scanned_pdf([scanned(*LINES)])
PICTURE = saved(scanned(*LINES), "PNG")


@pytest.fixture(autouse=True, scope="module")
def _installed() -> None:
    tesseract()


class Served(Answering):
    """Answers with the scan, or with a page that takes minutes to read."""

    def do_GET(self) -> None:
        self.answer(200, *((SCAN, "application/pdf") if self.path == "/scan" else (SLOW, "text/html")))


def carrying(name: str, body: bytes, **sources: Any) -> dict[str, Any]:
    """A job that carries this document."""
    document = {"id": "letter", "base64": b64encode(body).decode()}
    return {"job_id": name, "prompt": QUESTION, "sources": {"documents": [document], **sources}}


def by_job(product: Product) -> dict[str, dict[str, Any]]:
    """The result of each job; fails if a job has two."""
    product.outcomes()
    return {result["job_id"]: result for result in product.results()}


def child_of(worker: RoleProcess, is_wanted: Callable[[psutil.Process], bool]) -> psutil.Process:
    """Wait for a wanted process among those that the worker, or a process of the worker, has started."""
    found: list[psutil.Process] = []

    def is_found() -> bool:
        for process in psutil.Process(worker.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                found.extend([process] if is_wanted(process) else [])
        return bool(found)

    eventually(is_found, 120, worker.said)
    return found[0]


def stopped_tesseract(worker: RoleProcess) -> tuple[psutil.Process, psutil.Process]:
    """Suspend a tesseract of this worker, and wait until it has input; return this process and its parent."""
    # Only a tesseract that reads a picture has the argument `-`; the worker's first tesseract lists the languages.
    program = child_of(worker, lambda process: "tesseract" in process.name() and "-" in process.cmdline())
    program.suspend()
    eventually(partial(has_input, program), 120, worker.said)
    starter = program.parent()
    assert starter is not None
    return program, starter


def is_busy_reader(process: psutil.Process) -> bool:
    """True for a process that reads pages, once it has computed for longer than its start takes."""
    return "workers.enrichment.processes.member" in process.cmdline() and process.cpu_times().user > 5


def has_input(process: psutil.Process) -> bool:
    """True if bytes, or the end of the input, wait in the pipe that is the process's standard input."""
    with Path(f"/proc/{process.pid}/fd/0").open("rb") as pipe:
        return bool(select.select([pipe], [], [], 0)[0])


def has_ended(process: psutil.Process) -> bool:
    """True if the process is gone, or only its exit status is left."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_scans_of_all_kinds_of_sources_are_named_in_the_results_with_the_way_of_reading(product: Product) -> None:
    with handling(Served) as origin:
        worker = product.worker("w1", **WORKER)
        product.submit(
            [
                carrying("pdf", SCAN, required=True),
                carrying("image", PICTURE, required=True),
                {"job_id": "url", "prompt": QUESTION, "sources": {"urls": [f"{origin}/scan"], "required": True}},
            ]
        )
        product.wait_for_results(3, 240)
        product.wait_until_nothing_is_left()
        results = by_job(product)

    assert {name: result["outcome"] for name, result in results.items()} == dict.fromkeys(
        ("pdf", "image", "url"), "succeeded"
    ), results
    names = {"pdf": "letter", "image": "letter", "url": f"{origin}/scan"}
    for name, result in results.items():
        assert result["sources"] == [names[name]], result
        (details,) = result["source_details"]
        assert (details["id"], details["read_by"]) == (names[name], "ocr")
        assert "opened in 1987" in " ".join(result["text"].split())
    assert LINES[0] not in worker.said()


def test_a_job_whose_reading_process_is_killed_has_one_result_that_names_the_reason(product: Product) -> None:
    worker = product.worker("w1", **WORKER)
    product.submit([carrying("hit", SCAN)])
    program, starter = stopped_tesseract(worker)
    starter.kill()
    product.wait_for_results(1, 60)
    eventually(lambda: has_ended(program), 60, "tesseract outlives the process that started it")
    product.submit([carrying("next", SCAN)])
    product.wait_for_results(2, 240)
    product.wait_until_nothing_is_left()
    results = by_job(product)

    assert product.outcomes() == {"hit": "succeeded", "next": "succeeded"}
    assert results["hit"].get("sources", []) == []
    reason = "reading its pictures needed more memory than allowed, or crashed the reader"
    assert results["hit"]["notes"][0].endswith(reason), results["hit"]
    assert results["next"]["source_details"][0]["read_by"] == "ocr"
    assert product.dead_letters() == []


def test_a_job_whose_page_reader_is_killed_has_one_result_that_names_the_reason(product: Product) -> None:
    with handling(Served) as origin:
        worker = product.worker("w1", **WORKER)
        product.submit([{"job_id": "hit", "prompt": QUESTION, "sources": {"urls": [f"{origin}/slow"]}}])
        child_of(worker, is_busy_reader).kill()
        product.wait_for_results(1, 60)
        product.submit([carrying("next", SCAN)])
        product.wait_for_results(2, 240)
        product.wait_until_nothing_is_left()
        results = by_job(product)

    assert product.outcomes() == {"hit": "succeeded", "next": "succeeded"}
    reason = "reading it needed more memory than allowed, or crashed the reader"
    assert results["hit"]["notes"][0].endswith(reason), results["hit"]
    assert results["next"]["source_details"][0]["read_by"] == "ocr"
    assert product.dead_letters() == []


def test_a_job_whose_worker_is_killed_while_it_reads_has_one_result_by_another_worker(product: Product) -> None:
    worker = product.worker("w1", **WORKER)
    product.submit([carrying("hit", SCAN, required=True)])
    reading = stopped_tesseract(worker)
    worker.kill()
    for process in reading:
        eventually(partial(has_ended, process), 60, f"{process} outlives its worker")
    product.worker("w1", **WORKER)
    product.wait_for_results(1, 240)
    product.wait_until_nothing_is_left()
    results = by_job(product)

    assert product.outcomes() == {"hit": "succeeded"}
    assert results["hit"]["source_details"][0]["read_by"] == "ocr"
