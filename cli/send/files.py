"""`postback files`: files that a gateway stores, such as the requests and the answers of batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.shared.errors import say
from cli.shared.output import check_place, refuse_one_file
from cli.shared.terminal import harmless
from cli.shared.through_gateway import GATEWAY, KEY, gateway_client, key_file
from cli.shared.transfers import download_to, files_told, uploading

if TYPE_CHECKING:
    from postback_client import StoredFile

app = typer.Typer(no_args_is_help=True, help="Upload files to a gateway, and list, download and delete them.")

ID = typer.Argument(metavar="ID", help="The file's id.")
AS_JSON = typer.Option("--json", help="Print JSON, for programs.")


@app.command("list")
def list_files(
    gateway: Annotated[str, GATEWAY],
    key: Annotated[str | None, KEY] = None,
    purpose: Annotated[str | None, typer.Option(help="Only files with this purpose, such as batch_output.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Show at most this many files.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line, for programs.")] = False,
) -> None:
    """List files, the newest first."""
    with gateway_client(gateway, key) as client:
        for _, file in zip(range(limit), client.files.list(purpose=purpose), strict=False):
            typer.echo(json.dumps(file.raw) if as_json else _line(file))


@app.command()
def upload(
    file: Annotated[Path, typer.Argument(help="The file to upload.")],
    gateway: Annotated[str, GATEWAY],
    key: Annotated[str | None, KEY] = None,
    purpose: Annotated[str, typer.Option(help="The file's purpose; a file of requests needs `batch`.")] = "batch",
    as_json: Annotated[bool, AS_JSON] = False,
) -> None:
    """Upload a file; the id goes to standard output.

    A large file is uploaded in parts. The same command, run again within an hour, continues an upload that was cut off.
    """
    with files_told(), gateway_client(gateway, key) as client:
        with uploading(file, purpose) as (state, progress):
            made = client.files.upload(file, purpose=purpose, state=state, on_bytes=progress)
        typer.echo(json.dumps(made.raw) if as_json else made.id)


@app.command()
def show(
    file_id: Annotated[str, ID],
    gateway: Annotated[str, GATEWAY],
    key: Annotated[str | None, KEY] = None,
    as_json: Annotated[bool, AS_JSON] = False,
) -> None:
    """Show a file's name, size and purpose."""
    with gateway_client(gateway, key) as client:
        file = client.files.retrieve(file_id)
        typer.echo(json.dumps(file.raw) if as_json else _line(file))


@app.command()
def download(
    file_id: Annotated[str, ID],
    gateway: Annotated[str, GATEWAY],
    output: Annotated[Path, typer.Option(help="Write the content to this file.")],
    key: Annotated[str | None, KEY] = None,
) -> None:
    """Download a file's content. The file of --output is replaced once the content is whole."""
    refuse_one_file({"--output": output}, {"--key": key_file(key)})
    check_place("--output", output)
    with gateway_client(gateway, key) as client:
        download_to(client, file_id, "--output", output, f"postback files download {file_id} --output {output}")


@app.command()
def delete(
    file_id: Annotated[str, ID], gateway: Annotated[str, GATEWAY], key: Annotated[str | None, KEY] = None
) -> None:
    """Delete a file with its content. A file that a batch reads cannot be deleted."""
    with gateway_client(gateway, key) as client:
        client.files.delete(file_id)
        say(f"the file {file_id} is deleted")


def _line(file: StoredFile) -> str:
    return harmless(f"{file.id}  {file.purpose}  {file.bytes} bytes  {file.filename}")
