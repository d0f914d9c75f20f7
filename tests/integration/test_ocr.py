"""Scanned pages and images as sources, read by Debian's tesseract, also by one that a picture has taken over."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import sys
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import psutil
import pytest

from bench.pdf_files import line, pdf, stream
from schemas.job import Sources
from telemetry.metrics import Metrics
from tests.integration.raw_server import FACT, enriching, page, saying, speaking
from tests.scanned import saved, scanned, scanned_pdf, tesseract
from workers.enrichment.evidence import Evidence
from workers.enrichment.processes.tesseract import Tesseract, fenced
from workers.enrichment.settings import EnrichmentSettings
from workers.processes.child import Child
from workers.system.errors import ProcessError
from workers.system.secrecy import prctl

QUESTION = "When did the Halvorsen bridge in Tarnby open?"
HALVES = "The Halvorsen bridge in Tarnby opened in 1987", "and carries the coast road over the river Vesla."
OTHER = "The ferry was sold to an owner in the north."
PR_SET_CHILD_SUBREAPER: Final = 36
PATIENT = {"ocr": "eng", "ocr_seconds": 100.0}


@pytest.fixture(autouse=True, scope="module")
def _installed() -> None:
    tesseract()


def document(body: bytes, media_type: str | None = None) -> Sources:
    carried = {"id": "letter", "base64": b64encode(body).decode(), "media_type": media_type}
    return Sources.model_validate({"documents": [{name: value for name, value in carried.items() if value}]})


def quoted(evidence: Evidence) -> str:
    """The words of all passages."""
    return " ".join(" ".join(" ".join(source.passages) for source in evidence.sources).split())


def read_by(evidence: Evidence) -> list[str | None]:
    return [source.particulars.read_by for source in evidence.sources]


@pytest.mark.usefixtures("trapped")
@pytest.mark.parametrize("kind", ["PDF", "PNG", "JPEG", "TIFF", "WEBP"])
async def test_a_scan_that_is_fetched_is_quoted_and_told_apart(kind: str) -> None:
    letter = scanned(*HALVES, OTHER)
    media_type = "application/pdf" if kind == "PDF" else f"image/{kind.lower()}"
    async with (
        speaking(saying(saved(letter, kind), f"Content-Type: {media_type}")) as origin,
        enriching(None, **PATIENT) as enricher,
    ):
        evidence = await enricher.enrich(Sources(urls=[f"{origin}/letter"]), QUESTION)
        assert evidence.notes == ()
        assert FACT in quoted(evidence)
        assert read_by(evidence) == ["ocr"]


@pytest.mark.usefixtures("trapped")
async def test_a_scan_in_the_job_itself_is_quoted_whatever_its_type_is_called() -> None:
    async with enriching(None, **PATIENT) as enricher:
        for body, media_type in (
            (scanned_pdf([scanned(*HALVES)]), None),
            (saved(scanned(*HALVES), "PNG"), "application/octet-stream"),
        ):
            evidence = await enricher.enrich(document(body, media_type), QUESTION)
            assert FACT in quoted(evidence), evidence.notes


@pytest.mark.usefixtures("trapped")
async def test_a_library_that_a_worker_preloads_does_not_hide_the_one_that_tesseract_loads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A worker with vLLM has loaded torch's libgomp before all other libraries; this test does the same."""
    import torch

    monkeypatch.setenv("LD_PRELOAD", str(Path(torch.__file__).parent / "lib" / "libgomp.so.1"))
    async with enriching(None, **PATIENT) as enricher:
        evidence = await enricher.enrich(document(saved(scanned(*HALVES), "PNG"), "image/png"), QUESTION)
    assert FACT in quoted(evidence), evidence.notes


@pytest.mark.usefixtures("trapped")
async def test_all_pages_of_a_fax_are_read_up_to_the_bound() -> None:
    pages = [scanned(f"Page number {number} is about bridges.") for number in ("one", "two", "three")]
    fax = saved(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    async with enriching(None, **PATIENT, ocr_pages=2) as enricher:
        found = quoted(await enricher.enrich(document(fax, "image/tiff"), "Which page is about bridges?"))
    assert "number one" in found
    assert "number two" in found
    assert "three" not in found


def _half_scanned() -> bytes:
    """A PDF with a page of text, and a page that only shows a picture of text."""
    picture = scanned(*HALVES, height=1429)
    shown = stream(
        picture.tobytes(),
        f"/Type /XObject /Subtype /Image /Width {picture.width} /Height {picture.height} "
        "/ColorSpace /DeviceGray /BitsPerComponent 8",
    )
    pages = [line(OTHER), "q 595 0 0 500 0 200 cm /X Do Q"]
    return pdf(pages, objects=[shown], resources="/XObject << /X 5 0 R >>")


@pytest.mark.usefixtures("trapped")
async def test_a_scanned_page_stands_between_pages_of_text() -> None:
    async with enriching(None, **PATIENT) as enricher:
        evidence = await enricher.enrich(document(_half_scanned()), QUESTION)
    assert OTHER in quoted(evidence)
    assert FACT in quoted(evidence)
    assert read_by(evidence) == ["ocr"]


@pytest.mark.usefixtures("trapped")
async def test_without_the_setting_no_picture_is_read() -> None:
    async with enriching() as enricher:
        evidence = await enricher.enrich(document(_half_scanned()), QUESTION)
        assert quoted(evidence) == OTHER
        assert read_by(evidence) == [None]
        (note,) = (await enricher.enrich(document(saved(scanned(*HALVES), "PNG"), "image/png"), QUESTION)).notes
        assert note.endswith("it is an image, and the operator has not turned OCR on")
        (note,) = (await enricher.enrich(document(scanned_pdf([scanned(*HALVES)])), QUESTION)).notes
        assert note.endswith("no visible text, and the operator has not turned on OCR, which reads scanned pages")


def _tesseracts() -> list[psutil.Process]:
    found = []
    for one in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found += [one] if one.name() == "tesseract" else []
    return found


async def _stopped() -> psutil.Process:
    """Wait until this process has started tesseract, and suspend tesseract, which then hangs for good."""
    while True:
        for one in _tesseracts():
            one.suspend()
            return one
        await asyncio.sleep(0.01)


@pytest.mark.usefixtures("trapped")
async def test_a_tesseract_that_hangs_is_killed_and_the_text_of_other_pages_is_used() -> None:
    async with enriching(ocr="eng", ocr_seconds=8.0) as enricher:
        hangs = asyncio.create_task(_stopped())
        evidence = await enricher.enrich(document(_half_scanned()), QUESTION)
        process = await hangs
        assert quoted(evidence) == OTHER
        await asyncio.to_thread(psutil.wait_procs, [process], timeout=60)
        assert not process.is_running()
        hangs = asyncio.create_task(_stopped())
        (note,) = (await enricher.enrich(document(saved(scanned(*HALVES), "PNG")), QUESTION)).notes
        assert note.endswith("reading its pictures took more than 8 s")
        await hangs
        assert FACT in quoted(await enricher.enrich(document(saved(scanned(*HALVES), "PNG")), QUESTION))


@pytest.mark.usefixtures("trapped")
async def test_a_document_that_waits_in_line_for_ocr_keeps_all_of_its_time_for_its_own_pictures() -> None:
    """In an earlier version, the wait behind the first document used up the second document's seconds."""
    image = document(saved(scanned(*HALVES), "PNG"))
    async with enriching(ocr="eng", ocr_seconds=8.0) as enricher:
        hangs = asyncio.create_task(_stopped())
        first = asyncio.create_task(enricher.enrich(image, QUESTION))
        await hangs
        assert FACT in quoted(await enricher.enrich(image, QUESTION))
        assert not (await first).sources


@pytest.mark.usefixtures("trapped")
async def test_a_document_whose_turn_for_ocr_does_not_come_is_left_out_with_the_reason() -> None:
    image = document(saved(scanned(*HALVES), "PNG"))
    hasty = image.model_copy(update={"budget_seconds": 5.0})
    metrics = Metrics()
    async with enriching(None, metrics, ocr="eng", ocr_seconds=60.0) as enricher:
        hangs = asyncio.create_task(_stopped())
        first = asyncio.create_task(enricher.enrich(image, QUESTION))
        process = await hangs
        (note,) = (await enricher.enrich(hasty, QUESTION)).notes
        assert re.search(r"other documents were before it in line for OCR, for more than 4(\.\d)? s$", note), note
        process.kill()
        assert not (await first).sources
    (waits,) = metrics.ocr_wait_seconds.collect()
    waited = {sample.name.rpartition("_")[2]: sample.value for sample in waits.samples}
    assert waited["count"] == 2
    assert waited["sum"] >= 4


@pytest.mark.usefixtures("trapped")
async def test_a_page_whose_pictures_were_late_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's server says that the page stays fresh, and would confirm an incomplete copy in the cache."""
    monkeypatch.setattr("schemas.settings.constants_of", lambda _: frozenset())
    monkeypatch.setenv("POSTBACK_CACHE__NEGATIVE_SECONDS", "0.01")
    headers = "Content-Type: application/pdf", "Cache-Control: max-age=9999", 'ETag: "1"'
    async with (
        speaking(saying(_half_scanned(), *headers)) as origin,
        enriching(ocr="eng", ocr_seconds=8.0) as enricher,
    ):
        hangs = asyncio.create_task(_stopped())
        late = await enricher.enrich(Sources(urls=[origin]), QUESTION)
        await hangs
        assert quoted(late) == OTHER
        again = OTHER
        for _ in range(5):  # on a busy machine, the new process may be late as well
            if again == OTHER:
                again = quoted(await enricher.enrich(Sources(urls=[origin]), QUESTION))
        assert FACT in again


@pytest.mark.usefixtures("trapped")
async def test_a_patient_job_reads_the_pictures_that_a_hasty_one_before_it_could_not() -> None:
    """In an earlier version, all jobs at a page had the deadline of the one that had asked first."""
    async with (
        speaking(saying(_half_scanned(), "Content-Type: application/pdf")) as origin,
        enriching(ocr="eng", ocr_seconds=60.0) as enricher,
    ):
        await enricher.read([], 1.0)  # the readers start outside of the jobs' time
        hangs = asyncio.create_task(_stopped())
        hasty = asyncio.create_task(enricher.enrich(Sources(urls=[origin], budget_seconds=6.0), QUESTION))
        await hangs
        patient = asyncio.create_task(enricher.enrich(Sources(urls=[origin]), QUESTION))
        assert quoted(await hasty) == OTHER
        assert FACT in quoted(await patient)
        later = await enricher.enrich(Sources(urls=[origin], budget_seconds=6.0), QUESTION)
        assert FACT in quoted(later), "the whole reading replaces the one that was cut short"


@pytest.mark.usefixtures("trapped")
async def test_a_hasty_job_gets_the_text_of_a_page_whose_pictures_a_patient_one_waits_for() -> None:
    async with (
        speaking(saying(_half_scanned(), "Content-Type: application/pdf")) as origin,
        enriching(ocr="eng", ocr_seconds=60.0) as enricher,
    ):
        hangs = asyncio.create_task(_stopped())
        patient = asyncio.create_task(enricher.enrich(Sources(urls=[origin]), QUESTION))
        process = await hangs
        assert quoted(await enricher.enrich(Sources(urls=[origin], budget_seconds=4.0), QUESTION)) == OTHER
        assert not patient.done()
        process.resume()
        assert FACT in quoted(await patient)


BOMBS = {
    "100,000 by 100,000 pixels": "its image has more than 20000000 pixels",
    "5,000 by 5,000 pixels": "its image has more than 20000000 pixels",
    "cut off": "it is not an image that can be read",
}


def _bomb(name: str) -> bytes:
    if name == "cut off":
        return saved(scanned(*HALVES), "PNG")[:9000]
    from tests.unit.test_scans import png_header

    return png_header(100_000 if name.startswith("100,000") else 5_000)


@pytest.mark.usefixtures("trapped")
@pytest.mark.parametrize("name", BOMBS)
async def test_a_hostile_image_costs_one_source(name: str) -> None:
    async with (
        speaking(saying(_bomb(name), "Content-Type: image/png")) as origin,
        speaking(saying(page(), "Content-Type: text/html")) as fine_origin,
        enriching(None, **PATIENT) as enricher,
    ):
        hostile, fine = await asyncio.gather(
            enricher.enrich(Sources(urls=[origin]), QUESTION), enricher.enrich(Sources(urls=[fine_origin]), QUESTION)
        )
    assert len(fine.sources) == 1
    (note,) = hostile.notes
    assert note.endswith(BOMBS[name])


@pytest.mark.usefixtures("trapped")
async def test_a_worker_without_the_language_does_not_start() -> None:
    with pytest.raises(ProcessError, match=r"names xyz_abc, and .* eng.* only; .*install tesseract-ocr-xyz-abc\)"):
        async with enriching(ocr="eng+xyz_abc"):
            pass


@pytest.mark.usefixtures("trapped")
async def test_a_worker_without_tesseract_does_not_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ProcessError, match="tesseract is missing; install it"):
        async with enriching(ocr="eng"):
            pass


@contextmanager
def _first_process() -> Iterator[None]:
    """Adopt orphans as the first process of a container does."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0)


async def _reading() -> Child:
    """A process for OCR; its own alarm and that of tesseract come only after ten minutes."""
    found = Tesseract.find("eng")
    numbers = "600", str(EnrichmentSettings().member_bytes), "1"
    return await Child.start(
        "workers.enrichment.processes.ocr", *numbers, "eng", found.program, found.data, *found.libraries
    )


@pytest.mark.usefixtures("trapped")
async def test_a_killed_tesseract_leaves_no_dead_process_in_a_container() -> None:
    with _first_process():
        child = await _reading()
        (started,) = _tesseracts()
        await child.kill()
        assert started.pid not in [one.pid for one in psutil.Process().children()]


@pytest.mark.usefixtures("trapped")
async def test_a_tesseract_ends_with_the_process_that_started_it() -> None:
    with _first_process():
        child = await _reading()
        (started,) = _tesseracts()
        started.suspend()  # a suspended tesseract, like one that computes, does not notice the end of its input
        reader = started.parent()
        assert reader is not None
        reader.kill()
        async with asyncio.timeout(60):
            while child.alive:  # if the reader were still alive, `kill` would end tesseract too
                await asyncio.sleep(0.01)
            await child.kill()
        assert _tesseracts() == []


# -- confinement ---------------------------------------------------------------------------------------------------

ATTEMPTS = """
import errno, json, os, socket, sys
keyring, written, port, parent = sys.argv[1:]
attempts = {
    "password": lambda: open("/etc/passwd").read(),
    "keyring": lambda: open(keyring).read(),
    "environ": lambda: open(f"/proc/{parent}/environ").read(),
    "write": lambda: open(written, "w"),
    "tcp": lambda: socket.create_connection(("127.0.0.1", int(port)), timeout=5),
    "udp": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    "fork": lambda: os.fork() or os._exit(0),
    "program": lambda: os.execv("/bin/sh", ["sh", "-c", "exit 3"]),
    "signal": lambda: os.kill(int(parent), 0),
    "own": lambda: open(sys.executable, "rb").close(),
}
found = {}
for name, attempt in attempts.items():
    try:
        attempt()
        found[name] = "done"
    except OSError as error:
        found[name] = errno.errorcode[error.errno]
print(json.dumps(found))
"""


def test_a_fenced_program_reads_its_own_files_and_nothing_else(tmp_path: Path) -> None:
    """Python runs a stranger's code in tesseract's place, with the same confinement."""
    keyring = tmp_path / "keyring.json"
    keyring.write_text("secret")
    own = [*{sys.base_prefix + "/lib", "/usr/lib", "/lib64"}, os.path.realpath(sys.executable), "/etc/ld.so.cache"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        told = [str(keyring), str(tmp_path / "written"), str(server.getsockname()[1]), str(os.getpid())]
        command = [os.path.realpath(sys.executable), "-I", "-S", "-c", ATTEMPTS, *told]
        output, _ = fenced(command, own, 60).communicate(timeout=60)
    found = json.loads(output)
    assert found.pop("own") == "done"
    assert set(found.values()) <= {"EACCES", "EPERM", "ENOSYS"}, found
    assert len(found) == 9


@pytest.mark.parametrize("is_named", [False, True])
def test_tesseract_reads_its_input_and_no_file_that_the_input_names(tmp_path: Path, is_named: bool) -> None:
    """If the input is no image, tesseract reads it as a list of image files."""
    tesseract()
    picture = saved(scanned("The secret is kept in Tarnby."), "PNG")
    file = tmp_path / "picture.png"
    file.write_bytes(picture)
    given = f"{file}\n".encode() if is_named else picture
    output, _ = Tesseract.find("eng").start("eng", 60).communicate(given, timeout=60)
    assert (b"The secret is kept in Tarnby." in output) == (not is_named)
