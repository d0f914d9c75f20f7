"""Processes that read pages: a taken-over one reaches no secret and nothing outside; their start, end and secrecy."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import psutil
import pytest

from bench.evaluation.pages import load_pages
from telemetry.metrics import Metrics
from tests.integration.trapping import hook, named
from tests.postback_command import environment_of, line_of, started
from workers.enrichment.evidence import Extractor, Unreadable
from workers.enrichment.processes.pool import Pool
from workers.enrichment.settings import EnrichmentSettings
from workers.enrichment.turns import Asker
from workers.processes import child as child_module
from workers.processes import confinement
from workers.processes.child import Child, ChildLost
from workers.processes.confinement import Fence

REFUSED = {"EACCES", "EPERM", "ENOSYS"}
ALLOWED = {"thread", "flags", "own_signal"}


@pytest.fixture
def told(tmp_path: Path) -> dict[str, Any]:
    """Files and addresses for the reader's attempts."""
    keyring, removable = tmp_path / "keyring.json", tmp_path / "removable"
    keyring.write_text("secret")
    removable.touch()
    return {
        "files": [str(keyring), "/etc/passwd", "/proc/self/environ", f"/proc/{os.getpid()}/maps"],
        "writable": str(tmp_path / "written"),
        "removable": str(removable),
    }


async def found(told: dict[str, Any], *arguments: str) -> tuple[Child, dict[str, str]]:
    """A reader process and the outcome of each of its attempts."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        told = {**told, "port": server.sockets[0].getsockname()[1]}
        child = await Child.start("probing_reader", "60", str(2**31), "trafilatura", *arguments)
        try:
            answer = await child.ask({"kind": "probe"}, json.dumps(told).encode())
        finally:
            await child.kill()
    return child, answer["found"]


@pytest.mark.parametrize("arguments", [(), ("parent",)], ids=["of-pages", "of-scans"])
async def test_a_reader_opens_no_file_no_socket_and_no_process_of_others(
    told: dict[str, Any], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    """The reader also tries to open the worker's environ and mem.

    The confinement also holds for root, whom file modes do not stop.
    """
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(Path(__file__).parent), *sys.path)))
    child, outcomes = await found(told, *arguments)
    assert child.greeting["missing"] == []
    assert {name: outcome for name, outcome in outcomes.items() if outcome not in REFUSED} == dict.fromkeys(
        ALLOWED, "done"
    )
    assert Path(told["removable"]).exists()
    assert not Path(told["writable"]).exists()


@pytest.mark.parametrize("extractor", get_args(Extractor))
async def test_a_reader_of_public_pages_makes_no_call_that_its_list_lacks(trapped: None, extractor: str) -> None:
    """Also judges a robots.txt, and ranks the pages' passages."""
    child = await Child.start("workers.enrichment.processes.member", "60", str(2**31), extractor)
    pages = load_pages()
    documents = []
    for page in pages:
        media_type = page.content_type.partition(";")[0]
        task: dict[str, Any] = {
            "kind": "extract",
            "media_type": media_type,
            "charset": None,
            "url": "https://a.example/",
        }
        answer = await child.ask({**task, "ocr": True}, page.body())
        documents.append([answer.get("title"), answer.get("text", ""), answer.get("rest", "")])
    robots = {"kind": "robots", "url": "https://a.example/a", "user_agent": "postback"}
    assert (await child.ask(robots, b"User-agent: *\nDisallow: /a"))["allowed"] is False
    task = {"kind": "rank", "evidence_chars": 8000, "evidence_tokens": None, "source_tokens": 500, "passage_chars": 600}
    body = json.dumps({"question": pages[0].questions[0].text, "documents": documents}).encode()
    assert any((await child.ask(task, body))["passages"])
    await child.kill()


async def test_a_call_that_the_list_lacks_ends_a_trapped_reader_and_is_named(
    told: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hook(tmp_path, tmp_path / "calls")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), str(Path(__file__).parent), *sys.path)))
    child = await Child.start("probing_reader", "60", str(2**31), "trafilatura", "workers.enrichment.")
    with pytest.raises(ChildLost):
        await child.ask({"kind": "probe"}, json.dumps({**told, "port": 0}).encode())
    await child.kill()
    assert named(tmp_path / "calls") == [
        {"x86_64": "call 87", "aarch64": "call 35"}[platform.machine()]
    ]  # to remove a file


def test_a_reader_that_needs_libraries_reads_only_their_folders() -> None:
    """The process of the embedding model is confined in the same way."""
    script = (
        "from workers.processes.confinement import confine; import sysconfig; from pathlib import Path\n"
        "assert confine([sysconfig.get_path('stdlib'), '/nowhere']) == []\n"
        "import colorsys\n"
        "for refused in ('/etc/passwd', '/proc/self/environ'):\n"
        "    try: Path(refused).read_bytes()\n"
        "    except PermissionError: continue\n"
        "    raise SystemExit(f'{refused} was read')\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])


async def test_a_kernel_without_confinement_still_reads_and_the_log_says_so_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A reader that reports missing confinement twice leads to one warning."""
    lacking = tmp_path / "lacking_reader.py"
    lacking.write_text(
        "from workers.enrichment.processes import member\n"
        "from workers.processes import confinement\n"
        "def none(*_): raise OSError(38, 'no such call')\n"
        "confinement.system_call = none\n"
        "member.main()\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), *sys.path)))
    child_module.warn_of_missing.cache_clear()
    task = {"kind": "extract", "media_type": "text/plain", "charset": "utf-8", "url": "https://a.example/"}
    for _ in range(2):
        child = await Child.start("lacking_reader", "60", str(2**31), "resiliparse")
        assert set(child.greeting["missing"]) == set(Fence)
        assert (await child.ask(task, b"A bridge."))["text"] == "A bridge."
        await child.kill()
    child_module.warn_of_missing.cache_clear()
    assert [record.getMessage().count("landlock") for record in caplog.records] == [1]


@pytest.mark.parametrize("machine", confinement.ARCHITECTURES)
def test_a_filter_fits_the_kernel_and_its_jumps_stay_within_it(machine: str) -> None:
    """BPF's jumps are relative and forward, see bpf(2); a program has at most 4,096 instructions."""
    program = confinement.filter_program(confinement.ARCHITECTURES[machine], reads_files=True, may_execute=True)
    steps = [program[start : start + 8] for start in range(0, len(program), 8)]
    assert len(steps) < 4096
    assert all(index + 1 + max(step[2], step[3]) < len(steps) for index, step in enumerate(steps[:-1]))


# -- start and end, while jobs come and go faster than processes start ---------------------------------------------

TASK = {"kind": "extract", "media_type": "text/plain", "charset": "utf-8", "url": "https://a.example/"}


Children = Callable[[], list[psutil.Process]]


@pytest.fixture
def children() -> Children:
    """A function that lists the children that the test has started, without earlier ones such as a broker."""
    before = psutil.Process().children()
    return lambda: [child for child in psutil.Process().children() if child not in before]


async def asked(pool: Pool) -> str:
    return str((await pool.ask(dict(TASK), b"A bridge.", Asker("default")))["text"])


def python_that(script: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the members' interpreter with this shell script."""
    program = folder / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


async def test_waiters_that_give_up_leave_no_more_than_one_starting_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, children: Children
) -> None:
    python_that("exec sleep 60", tmp_path, monkeypatch)
    pool = Pool(EnrichmentSettings(members=2), Metrics())
    for _ in range(6):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asked(pool), 0.1)
    assert len(children()) == 1
    await pool.close()
    assert children() == []


async def test_a_reader_that_starts_for_a_job_that_is_gone_serves_the_next(children: Children) -> None:
    pool = Pool(EnrichmentSettings(members=2, member_seconds=10), Metrics())
    first = asyncio.create_task(asked(pool))
    await asyncio.sleep(0.05)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert await asked(pool) == "A bridge."
    assert len(children()) == 1
    await pool.close()


async def test_a_pool_closes_while_a_reader_that_never_gets_ready_is_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, children: Children
) -> None:
    python_that("exec sleep 60", tmp_path, monkeypatch)
    pool = Pool(EnrichmentSettings(), Metrics())
    warming = asyncio.create_task(pool.warm())
    await asyncio.sleep(0.1)
    async with asyncio.timeout(20):
        await pool.close()
        await warming
    assert children() == []


async def test_a_reader_that_cannot_start_is_our_own_fault_and_the_next_job_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, children: Children
) -> None:
    pool = Pool(EnrichmentSettings(member_seconds=10), Metrics())
    with monkeypatch.context() as patched:
        python_that("exit 1", tmp_path, patched)
        with pytest.raises(Unreadable, match="could not be started") as failed:
            await asked(pool)
        assert failed.value.is_ours
    assert await asked(pool) == "A bridge."
    await pool.close()


# -- secrets, unreadable by other processes of the same user -------------------------------------------------------


def test_a_process_that_keeps_its_secrets_is_readable_by_no_other_and_still_measures_itself() -> None:
    """The user is unprivileged, like uid 10001 of the image; prometheus still reads the process's own /proc."""
    script = Path(__file__).parent / "secret_process.py"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, env=environment)
    found = json.loads(done.stdout)
    assert found["before"] == ["environ", "mem", "maps"]
    assert found["after"] == []
    assert found["core"] == [0, 0]
    assert found["no_new_privs"]
    assert found["open_files"]
    assert set(found["metrics"]) >= {
        "process_cpu_seconds_total",
        "process_max_fds",
        "process_open_fds",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
        "process_virtual_memory_bytes",
    }


def test_every_command_keeps_its_secrets(tmp_path: Path) -> None:
    """A process's dumpable flag is visible from inside only; this test checks the other effects of `harden_process`."""
    environment = environment_of(POSTBACK_KEYRING=tmp_path / "keyring.json")
    process = started("receive", "--port", "0", env=environment)
    try:
        line_of(process.stderr)
        about = Path(f"/proc/{process.pid}")
        assert "NoNewPrivs:\t1" in (about / "status").read_text()
        limits = (about / "limits").read_text().splitlines()
        assert ["0", "0"] in [line.split()[4:6] for line in limits if line.startswith("Max core file size")]
    finally:
        process.kill()
        process.communicate()
