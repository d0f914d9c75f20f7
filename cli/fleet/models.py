"""`postback models`: the registry's file, which says which models a fleet has, and a bench of one on the fleet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.fleet.models_bench import bench
from cli.shared.errors import BAD_INPUT, FAILED, fail, say
from cli.shared.settings import checked_settings
from cli.shared.terminal import table

if TYPE_CHECKING:
    from workers.engines.models.registry_file import ModelRegistry, RegistryModel

app = typer.Typer(no_args_is_help=True, help="Check the model registry, show its models, and measure one.")

File = Annotated[Path | None, typer.Option("--file", help="The registry's file, instead of POSTBACK_WORKER__REGISTRY.")]
WithoutSecrets = Annotated[
    bool, typer.Option("--without-secrets", help="Do not look for the engines' keys, which this machine may lack.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
_COLUMNS = ("model", "aliases", "engine", "serves", "lane", "family", "escalates to")


@app.command("list")
def list_models(file: File = None, without_secrets: WithoutSecrets = False, as_json: AsJson = False) -> None:
    """List the models with their aliases and engines. A star marks the model of jobs without `model_id`."""
    registry = _registry(file, without_secrets)
    if as_json:
        typer.echo(json.dumps([_described(registry, model) for model in registry.models.values()], indent=1))
        return
    for line in table([_COLUMNS, *(_row(registry, model) for model in registry.models.values())]):
        typer.echo(line)


@app.command()
def check(file: File = None, without_secrets: WithoutSecrets = False, as_json: AsJson = False) -> None:
    """Check the file, and name each mistake with its line, its field and the fix. Status 1 means mistakes.

    Workers refuse to start with the same mistakes.
    """
    from workers.engines.models.mistakes import RegistryRefused

    try:
        registry = _registry(file, without_secrets)
    except RegistryRefused as refused:
        if not as_json:
            raise
        mistakes = [{"line": each.line, "field": each.field, "reason": each.reason} for each in refused.mistakes]
        typer.echo(json.dumps({"mistakes": mistakes}, indent=1))
        raise typer.Exit(FAILED) from None
    if as_json:
        typer.echo(json.dumps({"mistakes": []}, indent=1))
        return
    models, names = len(registry.models), len(registry.lanes())
    say(f"the registry is valid: {models} models with {names} names")


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="A model's name or alias.")],
    file: File = None,
    without_secrets: WithoutSecrets = False,
    as_json: AsJson = False,
) -> None:
    """Show a model: its engine, its limits and prices, and the facts of its family. Keys are never shown."""
    registry = _registry(file, without_secrets)
    found = [model for model in registry.models.values() if name in model.names]
    if not found:
        from workers.engines.models.mistakes import nearest

        raise fail(f"the registry has no model of this name: {nearest(name, [*registry.lanes()])}", FAILED)
    described = _described(registry, found[0])
    if as_json:
        typer.echo(json.dumps(described, indent=1))
        return
    for line in _lines(described):
        typer.echo(line)


app.command()(bench)


def _registry(file: Path | None, without_secrets: bool) -> ModelRegistry:
    """Return the checked registry. Raises RegistryRefused and SettingsRefused."""
    from workers.inference.settings import WorkerSettings
    from workers.roles.model_registry import read_file

    path = file or checked_settings(WorkerSettings).registry
    if path is None:
        raise fail("name the registry's file with --file, or set POSTBACK_WORKER__REGISTRY", BAD_INPUT)
    return read_file(path, with_secrets=not without_secrets)


def _row(registry: ModelRegistry, model: RegistryModel) -> tuple[str, ...]:
    entry = model.entry
    star = "*" if model.name == registry.default else ""
    return (
        f"{model.name}{star}",
        ", ".join(entry.aliases) or "-",
        f"{model.engine.name} ({model.engine.kind})",
        entry.model or model.name,
        entry.lane or "-",
        model.family.name if model.family is not None else "-",
        entry.escalate.to if entry.escalate else "-",
    )


def _described(registry: ModelRegistry, model: RegistryModel) -> dict[str, Any]:
    """Return a model as JSON, without its engine's settings, which may hold secrets."""
    entry = model.entry.model_dump(mode="json", exclude={"engine", "model", "family"})
    return {
        "name": model.name,
        "default": model.name == registry.default,
        "engine": {"name": model.engine.name, "kind": model.engine.kind, "addresses": [*model.engine.addresses]},
        "model": model.entry.model or model.name,
        **entry,
        "family": _family(model),
    }


def _family(model: RegistryModel) -> dict[str, Any] | None:
    """Return the facts of the model's family, or None if the family is unknown."""
    return model.family.model_dump(mode="json", exclude={"ids"}) if model.family is not None else None


def _lines(described: dict[str, Any], indent: str = "") -> list[str]:
    """Return the fields as lines, with the fields of a nested object below its name. Absent values are left out."""
    lines: list[str] = []
    for name, value in described.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}:", *_lines(value, indent + "  ")] if value else []
        elif isinstance(value, list):
            lines += [f"{indent}{name}: {', '.join(map(str, value))}"] if value else []
        elif value is not None:
            lines.append(f"{indent}{name}: {json.dumps(value) if isinstance(value, bool) else value}")
    return lines
