"""Runs the commands and the programs of the pages under "Send jobs" as the pages have them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.codec import Origin, read_job
from schemas.payload import with_payload
from tests.fleet_here import FleetHere
from tests.integration.gateway.gateway_process import Gateway, running_gateway
from tests.postback_command import POSTBACK
from tests.postgres_server import PostgresServer

pytestmark = pytest.mark.broker
PLACE = Origin("model_requests", 0, 0)
ROOT = Path(__file__).parents[3]
HOWTO = ROOT / "docs" / "howto"


def blocks_of(page: Path, language: str) -> list[str]:
    """Return a page's blocks of code in this language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


START, KEY, JOB, BATCH, EVENTS, POSTGRESQL, TRACE = blocks_of(HOWTO / "gateway.md", "sh")
[PROGRAM] = blocks_of(HOWTO / "gateway.md", "python")
SUBMIT, COLLECT = blocks_of(HOWTO / "batches.md", "sh")
ASK, ASK_BATCH, VERIFY = blocks_of(ROOT / "producers" / "postback_client" / "README.md", "python")


@pytest.fixture(scope="module")
def served(module_fleet_here: FleetHere) -> Iterator[Gateway]:
    """The page's gateway on a free port, beside an echo worker."""
    module_fleet_here.worker("w")
    with running_gateway(module_fleet_here) as started:
        yield started


def run(gateway: Gateway, *blocks: str) -> str:
    """Run blocks of the page in one shell, against this gateway; return the output of the last block."""
    text = f"\necho {'-' * 20}\n".join(blocks).replace("http://127.0.0.1:8080", gateway.url)
    environment = gateway.environment()
    environment["PATH"] = f"{POSTBACK.parent}:{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", text],
        cwd=gateway.product.folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout.rpartition("-" * 20)[2]


def test_the_page_starts_the_gateway_that_the_contract_names() -> None:
    assert "postback gateway --port 8080" in START


@pytest.mark.postgresql
def test_the_gateway_starts_on_postgresql_with_the_page_s_variables(
    module_fleet_here: FleetHere, postgres: PostgresServer
) -> None:
    store, folder = postgres.new_database(), module_fleet_here.folder
    page = POSTGRESQL.replace("postgresql+psycopg://postback:PASSWORD@db.example/postback", store)
    variables = dict(re.findall(r"(POSTBACK_\w+)=(\S+)", page.replace("=pepper", f"={folder / 'pepper'}")))
    assert variables["POSTBACK_STORE__URL"] == store
    gateway = Gateway(module_fleet_here.gateway("postgresql", "--port", "0", **variables), module_fleet_here, store)
    gateway.wait_until_ready()
    _, read = run(gateway, KEY, JOB.replace("sky-1", "sky-2")).replace("}{", "}\n{").strip().splitlines()
    assert json.loads(read)["id"] == "sky-2"
    gateway.role.end()


def test_a_job_is_accepted_read_streamed_and_traced(served: Gateway) -> None:
    accepted, read = run(served, KEY, JOB).replace("}{", "}\n{").strip().splitlines()
    assert (json.loads(accepted)["id"], json.loads(read)["id"]) == ("sky-1", "sky-1")
    assert "event: inference.succeeded" in run(served, KEY, EVENTS)
    assert run(served, TRACE).startswith("job        sky-1, tenant acme, succeeded")


def test_a_batch_is_uploaded_run_and_downloaded(served: Gateway) -> None:
    lines = run(served, KEY, BATCH).strip().splitlines()
    assert [json.loads(line)["custom_id"] for line in lines] == ["a", "b"]


def test_openais_sdk_needs_two_variables_only(served: Gateway) -> None:
    program = f"python - <<'PROGRAM'\n{PROGRAM}PROGRAM\n"
    assert "Why is the sky blue?" in run(served, KEY, program)


def test_a_file_of_jobs_and_batch_lines_is_submitted_and_collected(served: Gateway) -> None:
    folder = served.product.folder
    body = {"messages": [{"role": "user", "content": "Name a river."}]}
    line = {"custom_id": "row-2", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "echo", **body}}
    jobs = [{"prompt": "Name a lake."}, line]
    (folder / "jobs.jsonl").write_text("".join(f"{json.dumps(job)}\n" for job in jobs))
    run(served, SUBMIT)
    ids = (folder / "ids.txt").read_text().split()
    receipt = [json.loads(row) for row in (folder / "receipt.jsonl").read_text().splitlines()]
    assert [(row["job_id"], row["accepted"]) for row in receipt] == [(job_id, True) for job_id in ids]
    counted, so_far, as_batch, waited = COLLECT.splitlines()
    run(served, waited)
    results = [json.loads(row) for row in (folder / "results.jsonl").read_text().splitlines()]
    assert {result["job_id"]: result["text"] for result in results} == dict(
        zip(ids, ("Name a lake.", "Name a river."), strict=True)
    )
    assert "succeeded" in run(served, counted)
    run(served, so_far, as_batch)
    output = [json.loads(row) for row in (folder / "output.jsonl").read_text().splitlines()]
    assert sorted(str(row["custom_id"]) for row in output) == ["None", "row-2"]


def test_the_client_library_s_programs_run(served: Gateway) -> None:
    (served.product.folder / "requests.jsonl").write_text(
        '{"custom_id":"a","method":"POST","url":"/v1/chat/completions",'
        '"body":{"model":"echo","messages":[{"role":"user","content":"one"}]}}\n'
    )
    ask = ASK.replace('"https://postback.example", key', '"http://127.0.0.1:8080", os.environ["OPENAI_API_KEY"]')
    batch = ASK_BATCH.replace("\n", "\n    ")
    program = f"import os\n{ask}    {batch}"
    said = run(served, KEY, f"python - <<'PROGRAM'\n{program}\nPROGRAM\n")
    assert sorted(line.partition(" ")[2] for line in said.strip().splitlines()) == [
        "succeeded Why is the sea salt?",
        "succeeded Why is the sky blue?",
    ]
    [answer] = (served.product.folder / "answers.jsonl").read_text().splitlines()
    assert json.loads(answer)["response"]["body"]["choices"][0]["message"]["content"] == "one"


def test_the_client_library_refuses_what_is_not_signed(served: Gateway) -> None:
    program = VERIFY.replace("request.headers, body", "{}, b'{}'").replace('"whsec_..."', f'"whsec_{"A" * 32}"')
    caught = f"from postback_client import CallbackRefused\ntry:\n    {program}".replace("\n\n", "\n    ")
    caught = f"{caught.rstrip()}\nexcept CallbackRefused:\n    print('refused')\n"
    assert run(served, f"python - <<'PROGRAM'\n{caught}PROGRAM\n").strip() == "refused"


def test_the_jobs_of_the_pages_about_payloads_and_images_are_valid() -> None:
    job, document = blocks_of(HOWTO / "payloads.md", "json")
    [picture] = blocks_of(HOWTO / "images.md", "json")
    by_reference = read_job(job.encode(), None, PLACE, 0).job
    unhashed = by_reference.model_copy(update={"payload_sha256": None})
    assert with_payload(unhashed, document.encode()).job.messages is not None
    assert read_job(picture.encode(), None, PLACE, 0).job.messages is not None
