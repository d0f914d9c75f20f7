"""`postback batches`: files of requests that a gateway answers within 24 hours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.shared.errors import FAILED, say
from cli.shared.output import check_place, refuse_one_file
from cli.shared.progress import INTERRUPTED, bars
from cli.shared.terminal import harmless
from cli.shared.through_gateway import GATEWAY, KEY, gateway_client, key_file
from cli.shared.transfers import download_to, files_told, uploading

if TYPE_CHECKING:
    from postback_client import Batch, HttpClient

app = typer.Typer(no_args_is_help=True, help="Upload files of requests to a gateway, and download their answers.")

ID = typer.Argument(metavar="ID", help="The batch's id.")
AS_JSON = typer.Option("--json", help="Print JSON, for programs.")
OUTPUT = typer.Option(help="Write the answers to the lines that succeeded to this file.")
ERRORS = typer.Option(help="Write the errors of the lines that did not succeed to this file.")


@app.command()
def create(
    file: Annotated[Path, typer.Argument(help="A file of OpenAI Batch lines, one request a line.")],
    gateway: Annotated[str, GATEWAY],
    key: Annotated[str | None, KEY] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the batch has ended.")] = False,
    timeout: Annotated[float | None, typer.Option(min=0, help="With --wait: wait at most this many seconds.")] = None,
    output: Annotated[Path | None, OUTPUT] = None,
    errors: Annotated[Path | None, ERRORS] = None,
    as_json: Annotated[bool, AS_JSON] = False,
) -> None:
    """Upload a file and begin a batch of it; the id goes to standard output. --output and --errors imply --wait.

    A large file is uploaded in parts: the same command, run again within an hour, continues an upload that was cut off.
    The gateway checks the lines after the upload, and ends the batch as `failed` if a line is no request.

    Exit status: 0 the batch has begun (with --wait: completed, every line succeeded), 1 otherwise, 2 bad input.
    """
    _check_files(output, errors, {"the requests": file, "--key": key_file(key)})
    with files_told(), gateway_client(gateway, key) as client:
        with uploading(file, "batch") as (state, progress):
            batch = client.batches.create(file, state=state, on_bytes=progress)
        if not as_json:
            typer.echo(batch.id)
        if wait or output is not None or errors is not None:
            _finish(client, batch.id, timeout, output, errors, as_json=as_json)
        elif as_json:
            typer.echo(json.dumps(batch.raw))


@app.command()
def wait(
    batch_id: Annotated[str, ID],
    gateway: Annotated[str, GATEWAY],
    key: Annotated[str | None, KEY] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Wait at most this many seconds; by default there is no limit.")
    ] = None,
    output: Annotated[Path | None, OUTPUT] = None,
    errors: Annotated[Path | None, ERRORS] = None,
    as_json: Annotated[bool, AS_JSON] = False,
) -> None:
    """Wait until a batch has ended, and download its answers.

    Exit status: 0 the batch is completed and every line succeeded, 1 otherwise or if the time is up.
    """
    _check_files(output, errors, {"--key": key_file(key)})
    with gateway_client(gateway, key) as client:
        _finish(client, batch_id, timeout, output, errors, as_json=as_json)


@app.command("list")
def list_batches(
    gateway: Annotated[str, GATEWAY],
    key: Annotated[str | None, KEY] = None,
    limit: Annotated[int, typer.Option(min=1, help="Show at most this many batches.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line, for programs.")] = False,
) -> None:
    """List batches, the newest first."""
    with gateway_client(gateway, key) as client:
        for _, batch in zip(range(limit), client.batches.list(), strict=False):
            typer.echo(json.dumps(batch.raw) if as_json else _line(batch))


@app.command()
def show(
    batch_id: Annotated[str, ID],
    gateway: Annotated[str, GATEWAY],
    key: Annotated[str | None, KEY] = None,
    as_json: Annotated[bool, AS_JSON] = False,
) -> None:
    """Show a batch."""
    with gateway_client(gateway, key) as client:
        batch = client.batches.retrieve(batch_id)
        typer.echo(json.dumps(batch.raw) if as_json else _line(batch))


@app.command()
def cancel(
    batch_id: Annotated[str, ID], gateway: Annotated[str, GATEWAY], key: Annotated[str | None, KEY] = None
) -> None:
    """Cancel a batch: lines without an answer end as cancelled, and the files get the lines that were answered."""
    with gateway_client(gateway, key) as client:
        say(f"the batch is {client.batches.cancel(batch_id).status}")


def _check_files(output: Path | None, errors: Path | None, inputs: Mapping[str, str | Path | None]) -> None:
    """End the command before its first request if an output is one of the other files, or cannot be written."""
    outputs = {"--output": output, "--errors": errors}
    refuse_one_file(outputs, inputs)
    for option, path in outputs.items():
        check_place(option, path)


def _finish(
    client: HttpClient, batch_id: str, timeout: float | None, output: Path | None, errors: Path | None, *, as_json: bool
) -> None:
    """Wait until the batch has ended, download its files, and exit with 1 unless every line succeeded."""
    batch = _ended(client, batch_id, timeout)
    wanted = (("--output", batch.output_file_id, output), ("--errors", batch.error_file_id, errors))
    for option, file_id, path in wanted:
        if path is None:
            continue
        if file_id is None:
            say(f"the batch has no file for {option}; {path} stays as it is")
            continue
        again = " ".join(f"{name} {place}" for name, _, place in wanted if place is not None)
        download_to(client, file_id, option, path, f"postback batches wait {batch.id} {again}")
    say(_line(batch))
    if as_json:
        typer.echo(json.dumps(batch.raw))
    if batch.status != "completed" or batch.request_counts.failed:
        raise typer.Exit(FAILED)


def _ended(client: HttpClient, batch_id: str, timeout: float | None) -> Batch:
    with bars() as progress:
        bar = progress.add_task("answered", total=None, awaits="answers")

        def moved(batch: Batch) -> None:
            counts = batch.request_counts
            done = counts.completed + counts.failed
            progress.update(bar, total=counts.total or None, completed=done, failed=counts.failed)

        try:
            return client.batches.wait(batch_id, timeout, on_batch=moved)
        except KeyboardInterrupt:
            progress.stop()
            say(f"stopped waiting; the batch goes on: postback batches wait {batch_id}")
            raise typer.Exit(INTERRUPTED) from None


def _line(batch: Batch) -> str:
    counts = batch.request_counts
    done = f"{counts.completed} of {counts.total} succeeded, {counts.failed} failed"
    return harmless(f"{batch.id}  {batch.status}  {done}")
