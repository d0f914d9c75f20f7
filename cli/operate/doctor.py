"""`postback doctor`: names each fault of a set-up, and its fix."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cli.shared.errors import BAD_INPUT, FAILED, fail, say
from cli.shared.terminal import harmless
from workers.engines import ENGINES

if TYPE_CHECKING:
    from cli.operations.doctor.findings import Examined

    Engine = str
else:
    Engine = Literal[tuple(ENGINES)]


class Role(StrEnum):
    """A role whose needs are checked."""

    WORKER = "worker"
    DELIVER = "deliver"
    GATEWAY = "gateway"
    EXPORTER = "exporter"


def doctor(
    role: Annotated[
        list[Role] | None, typer.Option(help="Also check the needs of this role on this machine; may be repeated.")
    ] = None,
    engine: Annotated[
        Engine | None, typer.Option(help="Check this engine, which the workers on this machine use.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The engine's model, instead of the one in the settings.")] = None,
    callback_url: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Check that this machine can reach this callback URL; may be repeated."),
    ] = None,
    certificate: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Also check this file of certificates, such as the gateway's."),
    ] = None,
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Check that this key fits the first --certificate.")
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Check that clients may use the first --certificate for this name or address.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 also if there are only warnings.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
) -> None:
    """Examine Kafka, the fleet, the settings and this machine. Each check prints a line: ok, or a fault and its fix.

    The command reads the same variables as the roles, so run the command where the roles run. The command writes one
    tombstone into fleet_workers, to learn the broker's time; a key that lasts a second into each Redis, or for deltas
    an empty message; and an object that it deletes into the bucket of files.

    Exit status: 0 no fault, 1 a fault was found.
    """
    from cli.operate.doctor_checks import Door, checks
    from cli.operations.doctor.findings import FindingLevel, examine

    if not certificate and (key or host):
        raise fail(f"{'--key' if key else '--host'}: needs --certificate, the file to compare with", BAD_INPUT)
    done = examine(checks(role or (), callback_url or (), Door(certificate or (), key, host), engine, model))
    found = [(each.check, finding) for each in done for finding in each.findings]
    faults = sum(finding.level is FindingLevel.FAULT for _, finding in found)
    if as_json:
        typer.echo(json.dumps(_report(done, faults), indent=1))
    else:
        for each in done:
            for line in _lines(each):
                typer.echo(line)
        say(_summary(done, faults, len(found) - faults))
    if faults or (strict and found):
        raise typer.Exit(FAILED)


def _lines(examined: Examined) -> list[str]:
    """Return a line for each finding of a check, or one line that says that it found nothing or was skipped."""
    if examined.skipped:
        return [f"{'skipped':7}  {examined.check}: until an earlier fault is mended"]
    return [
        harmless(f"{finding.level:7}  {examined.check}: {finding.problem}; fix: {finding.fix}")
        for finding in examined.findings
    ] or [f"{'ok':7}  {examined.check}"]


def _summary(done: list[Examined], faults: int, warnings: int) -> str:
    skipped = sum(each.skipped for each in done)
    after = f"; {skipped} checks were skipped until these faults are mended" if skipped else ""
    said = f"faults: {faults}, warnings: {warnings}" if faults or warnings else "nothing is wrong"
    return f"{len(done) - skipped} checks; {said}{after}"


def _report(done: list[Examined], faults: int) -> dict[str, object]:
    return {
        "ok": faults == 0,
        "checks": [each.check for each in done if not each.skipped],
        "skipped": [each.check for each in done if each.skipped],
        "findings": [
            {"check": each.check, "level": str(finding.level), "problem": finding.problem, "fix": finding.fix}
            for each in done
            for finding in each.findings
        ],
    }
