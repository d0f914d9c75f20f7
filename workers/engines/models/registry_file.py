"""Reads the registry's file, and checks the file against the engines' own settings.

The error names all mistakes at once.
"""

from __future__ import annotations

import os
import tomllib
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from pydantic import BaseModel, SecretStr, TypeAdapter, ValidationError

from workers.engines import ENGINES
from workers.engines.families import Family, are_read_by, families
from workers.engines.models.entries import MOST_ADDRESSES, Address, ModelEntry
from workers.engines.models.mistakes import Mistake, RegistryRefused, TomlLines, listed, nearest, quoted, reasons
from workers.engines.settings import MODEL_OPTIONS, EngineSection, EngineSettings

MOST_BYTES: Final = 256 * 1024
_TOP: Final = ("default", "engines", "models")
_ADDRESS: TypeAdapter[str] = TypeAdapter(Address)
_NOT_OF_THE_ENGINE: Final = frozenset({"model", "family", "base_url", "adapters"})
"""The settings of an engine that a registry states elsewhere: in `addresses`, or in the tables of the models."""


@dataclass(frozen=True, slots=True)
class EngineEntry:
    """One `[engines.NAME]` table: the engine's kind, and one group of settings for each address."""

    name: str
    kind: str
    sections: tuple[EngineSection, ...]
    addresses: tuple[str, ...]
    """The servers' URLs; empty for an engine without a server."""


@dataclass(frozen=True, slots=True)
class RegistryModel:
    """One model: its table, its engine, and the engine's settings for this model, one group for each address."""

    name: str
    entry: ModelEntry
    engine: EngineEntry
    sections: tuple[EngineSection, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The names that a job may give in `model_id`."""
        return (self.name, *self.entry.aliases)

    @property
    def family(self) -> Family | None:
        """The family that the table names, else the family of the model's name; None for no known family."""
        return self.sections[0].model_family()


@dataclass(frozen=True, slots=True)
class ModelRegistry:
    """The content of the whole file. `default` is the model of jobs without `model_id`."""

    models: Mapping[str, RegistryModel]
    default: str

    def of_lane(self, lane: str | None) -> dict[str, RegistryModel]:
        """Return the models that the workers of this engine lane serve, the default model first."""
        mine = [model for model in self.models.values() if model.entry.lane == lane]
        return {model.name: model for model in sorted(mine, key=lambda model: model.name != self.default)}

    def lanes(self) -> dict[str, str | None]:
        """Map each name and alias to its model's lane."""
        return {name: model.entry.lane for model in self.models.values() for name in model.names}


def read_registry(
    path: Path,
    settings: EngineSettings,
    *,
    profiles: Collection[str] | None = None,
    environment: Mapping[str, str] = os.environ,
    with_secrets: bool = True,
) -> ModelRegistry:
    """Read and check the file. Raises RegistryRefused with all mistakes.

    `settings` has the engines' settings of the environment; a setting in the file replaces the environment's.
    `profiles` are the known profiles; with None, the tables' profiles are not checked. Without `with_secrets`, keys are
    not looked up.
    """
    text, document = _document(path)
    reader = _Reader(settings, profiles, environment if with_secrets else None)
    registry = reader.read(document)
    if registry is not None:
        return registry
    lines = TomlLines(text)
    mistakes = [Mistake(lines.of(place), ".".join(place), reason) for place, reason in reader.found]
    raise RegistryRefused(path, sorted(mistakes, key=lambda each: each.line or 0))


def _document(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        text = content.decode().replace("\r\n", "\n")
        if len(content) > MOST_BYTES:
            raise RegistryRefused(path, [Mistake(None, "", f"is larger than {MOST_BYTES} bytes; remove unused models")])
        return text, tomllib.loads(text)
    except OSError as error:
        reason = f"cannot be read ({error.strerror}); correct POSTBACK_WORKER__REGISTRY"
    except UnicodeDecodeError as error:
        reason = f"is not UTF-8 text (byte {error.start}); save it as UTF-8"
    except tomllib.TOMLDecodeError as error:
        reason = f"is not TOML: {error}"
    except (RecursionError, ValueError):  # ValueError is raised for an integer with thousands of digits
        reason = "is not TOML that can be read: a value is nested too deeply or too long; write it shorter"
    raise RegistryRefused(path, [Mistake(None, "", reason)])


class _Reader:
    """Collects the mistakes of one document in `found`, each with its path."""

    def __init__(
        self, settings: EngineSettings, profiles: Collection[str] | None, environment: Mapping[str, str] | None
    ) -> None:
        self.found: list[tuple[tuple[str, ...], str]] = []
        self._settings = settings
        self._profiles = profiles
        self._environment = environment

    def read(self, document: dict[str, Any]) -> ModelRegistry | None:
        """Return the registry, or None if the document has a mistake."""
        for name in document:
            if name not in _TOP:
                self._wrong((name,), f"is not known here: {nearest(name, _TOP)}")
        tables, models = self._tables(document, "engines"), self._tables(document, "models")
        engines = {name: self._engine(name, table) for name, table in tables.items() if isinstance(table, dict)}
        entries = {name: self._entry(name, table) for name, table in models.items() if isinstance(table, dict)}
        self.found += mistakes_between(tables, models, self._settings, self._profiles)
        default = document.get("default", next(iter(models), ""))
        if not isinstance(default, str) or (models and default not in models):
            self._wrong(("default",), f"must be the name of a model; there are: {listed(models)}")
        if self.found:
            return None
        read = {
            name: _model(name, entry, engine)
            for name, entry in entries.items()
            if entry is not None and (engine := engines[entry.engine]) is not None
        }
        return ModelRegistry(read, str(default))

    def _wrong(self, path: tuple[str, ...], reason: str) -> None:
        self.found.append((path, reason))

    def _tables(self, document: dict[str, Any], name: str) -> dict[str, Any]:
        """Return the tables below `engines` or `models`.

        A value that is no table is noted as a mistake, and returned too.
        """
        tables = document.get(name)
        if not isinstance(tables, dict) or not tables:
            self._wrong((name,), f"has no table; write [{name}.NAME] for each {name.removesuffix('s')}")
            return {}
        for key, table in tables.items():
            if not isinstance(table, dict):
                self._wrong((name, key), f"must be a table; write [{name}.{key}]")
        return tables

    # -- engines -------------------------------------------------------------------------------------------------

    def _engine(self, name: str, table: dict[str, Any]) -> EngineEntry | None:
        place, before = ("engines", name), len(self.found)
        options = dict(table)
        kind, addresses = options.pop("kind", None), options.pop("addresses", None)
        known = kind if isinstance(kind, str) and kind in ENGINES else None
        if known is None:
            why = "is missing; add it" if kind is None else f"is no engine: {nearest(str(kind), [*ENGINES])}"
            self._wrong((*place, "kind"), why)
        kinds = [type(self._settings.section(each)) for each in ([known] if known else ENGINES)]
        for option in options:
            if any(_is_secret(each, option) for each in kinds):
                options[option] = self._secret((*place, option), options[option])
        for option in _NOT_OF_THE_ENGINE & {*options}:
            instead = "`addresses`" if option == "base_url" else "the tables of the models"
            self._wrong((*place, option), f"stands in {instead}; move it there")
            del options[option]
        checked = self._addresses(place, addresses, kinds)
        if known is None:
            return None
        section = self._settings.section(known)
        settings = type(section)
        try:
            base = settings.model_validate({**_given(section), **options})
        except ValidationError as error:
            for path, reason in reasons(error, settings):
                self._wrong((*place, *path), reason)
            return None
        if len(self.found) > before:
            return None
        sections = tuple(base.model_copy(update={"base_url": each}) for each in checked) or (base,)
        return EngineEntry(name, known, sections, checked or _own_address(base))

    def _addresses(
        self, place: tuple[str, ...], addresses: object, kinds: Collection[type[EngineSection]]
    ) -> tuple[str, ...]:
        if addresses is None:
            return ()
        path = (*place, "addresses")
        if not any("base_url" in kind.model_fields for kind in kinds):
            self._wrong(path, "has no meaning for an engine inside the worker; delete it")
            return ()
        if not isinstance(addresses, list) or not 1 <= len(addresses) <= MOST_ADDRESSES:
            self._wrong(path, f"must be a list of 1 to {MOST_ADDRESSES} URLs")
            return ()
        for number, address in enumerate(addresses, 1):
            try:
                _ADDRESS.validate_python(address, strict=True)
            except ValidationError:
                self._wrong(path, f"entry {number} must be an http or https URL without credentials")
        if len({str(each) for each in addresses}) < len(addresses):
            self._wrong(path, "has one URL twice; delete one of them")
        return tuple(cast("list[str]", addresses))

    def _secret(self, path: tuple[str, ...], reference: object) -> SecretStr:
        try:
            if self._environment is None:
                checked_reference(reference)
                return SecretStr("")
            return SecretStr(secret(reference, self._environment))
        except SecretMistake as mistake:
            self._wrong(path, str(mistake))
            return SecretStr("")

    # -- models --------------------------------------------------------------------------------------------------

    def _entry(self, name: str, table: dict[str, Any]) -> ModelEntry | None:
        place = ("models", name)
        if not 1 <= len(name) <= 256 or not all("!" <= each <= "~" for each in name):
            self._wrong(place, "is no name that a job can give; use printable ASCII without spaces")
        try:
            return ModelEntry.model_validate(table)
        except ValidationError as error:
            for path, reason in reasons(error, ModelEntry):
                self._wrong((*place, *path), reason)
            return None


def _model(name: str, entry: ModelEntry, engine: EngineEntry) -> RegistryModel:
    options: dict[str, object] = {field: getattr(entry, field) for field in MODEL_OPTIONS}
    sections = []
    for each in engine.sections:
        images = entry.images if entry.images is not None else _reads_images(each, entry, name)
        sections.append(each.for_model(entry.model or name, entry.family, options | {"images": images}))
    return RegistryModel(name, entry, engine, tuple(sections))


def _reads_images(section: EngineSection, entry: ModelEntry, name: str) -> bool | None:
    """Return True if the family that the table names reads images; None leaves the decision to the engine."""
    if entry.family is None or "images" not in section.registry_fields:
        return None
    return are_read_by(families()[entry.family], entry.model or name) or None


def _given(section: EngineSection) -> dict[str, Any]:
    """Return the settings that the environment gives, except the server, the server's key, and the model."""
    names = section.model_fields_set - _NOT_OF_THE_ENGINE
    return {name: getattr(section, name) for name in names if not _is_secret(type(section), name)}


def _own_address(section: EngineSection) -> tuple[str, ...]:
    address = getattr(section, "base_url", None)
    return (address,) if address is not None else ()


def _is_secret(model: type[BaseModel], name: str) -> bool:
    return name in model.model_fields and "SecretStr" in str(model.model_fields[name].annotation)


# -- Checks of the tables against each other --
Found = tuple[tuple[str, ...], str]
"""A mistake's path in the file, and its text."""


def mistakes_between(
    engines: Mapping[str, Any],
    models: Mapping[str, Any],
    settings: EngineSettings,
    profiles: Collection[str] | None,
) -> Iterator[Found]:
    """Yield a mistake for each value of `[models]` that does not fit the other tables.

    The checks read the raw tables, so that a mistake inside a table hides no mistake between that table and others.
    Values of a wrong type are skipped here, since the table's own check reports them.

    `profiles` are the known profiles; with None, the tables' profiles are not checked.
    """
    tables = {name: table for name, table in models.items() if isinstance(table, dict)}
    for name, table in tables.items():
        yield from _names_unknown(name, table, engines, profiles)
        yield from _unsupported(name, table, engines, settings)
        yield from _escalation(name, table, models)
    yield from _shared_names(tables)
    yield from _second_in_process(tables, engines)


def _names_unknown(
    name: str, table: Mapping[str, Any], engines: Mapping[str, Any], profiles: Collection[str] | None
) -> Iterator[Found]:
    engine, profile = table.get("engine"), table.get("profile")
    if isinstance(engine, str) and engine not in engines:
        yield ("models", name, "engine"), f"is no table of [engines]: {nearest(engine, engines)}"
    if isinstance(profile, str) and profiles is not None and profile not in profiles:
        yield ("models", name, "profile"), f"is no profile: {nearest(profile, profiles)}"


def _unsupported(
    name: str, table: Mapping[str, Any], engines: Mapping[str, Any], settings: EngineSettings
) -> Iterator[Found]:
    kind = _kind(table, engines)
    if kind is not None:
        for field in settings.section(kind).unsupported(table):
            yield ("models", name, field), f"has no meaning for this engine ({quoted(kind)}); delete it"


def _escalation(name: str, table: Mapping[str, Any], models: Mapping[str, Any]) -> Iterator[Found]:
    escalate = table.get("escalate")
    to = escalate.get("to") if isinstance(escalate, dict) else None
    if not isinstance(to, str):
        return
    path = ("models", name, "escalate", "to")
    if to == name:
        yield path, "is the model itself; name another model"
    elif to not in models:
        yield path, f"is no model: {nearest(to, models)}"
    elif isinstance(models[to], dict) and table.get("lane") != models[to].get("lane"):
        yield path, "is a model of another lane, which this model's workers do not serve; name one of the same lane"


def _shared_names(tables: Mapping[str, Mapping[str, Any]]) -> Iterator[Found]:
    """Yield a mistake for each name that several models claim."""
    claims: defaultdict[str, list[str]] = defaultdict(list)
    for name, table in tables.items():
        aliases = table.get("aliases")
        for claimed in (name, *(aliases if isinstance(aliases, list) else ())):
            if isinstance(claimed, str):
                claims[claimed].append(name)
    for claimed, owners in claims.items():
        if len(owners) > 1:
            reason = (
                f"{quoted(claimed)} is given more than once as a name, by {listed(dict.fromkeys(owners))}; give it once"
            )
            yield ("models", owners[-1], "aliases"), reason


def _second_in_process(tables: Mapping[str, Mapping[str, Any]], engines: Mapping[str, Any]) -> Iterator[Found]:
    """Yield a mistake for each vLLM model after the first of its lane.

    One worker's process would run all vLLM models of the lane on one GPU.
    """
    first: dict[str | None, str] = {}
    for name, table in tables.items():
        lane = table.get("lane")
        if _kind(table, engines) == "vllm" and (lane is None or isinstance(lane, str)):
            owner = first.setdefault(lane, name)
            if owner != name:
                reason = f"is the second vLLM model in one worker, beside {quoted(owner)}; give one another lane"
                yield ("models", name, "engine"), reason


def _kind(table: Mapping[str, Any], engines: Mapping[str, Any]) -> str | None:
    """Return the kind of the engine that a model's table names; None if the file names no known kind."""
    engine = table.get("engine")
    named = engines.get(engine) if isinstance(engine, str) else None
    kind = named.get("kind") if isinstance(named, dict) else None
    return kind if isinstance(kind, str) and kind in ENGINES else None


# -- Keys: the file names an environment variable or a file, never the key itself --
_MOST_KEY_BYTES: Final = 64 * 1024
_HOW: Final = '{ env = "VARIABLE" } or { file = "/run/secrets/key" }'


class SecretMistake(Exception):  # noqa: N818 - named after the file's fault
    """A value that is not a reference, or a reference that leads to no key. The error's text has no part of a key."""


def secret(reference: object, environment: Mapping[str, str] = os.environ) -> str:
    """Return the key that a reference leads to, without white space around it. Raises SecretMistake."""
    kind, where = checked_reference(reference)
    if kind == "env":
        found = environment.get(where)
        if found is None:
            raise SecretMistake(f"the environment has no variable {where}; set it, or name another one")
    else:
        found = _key_in(Path(where))
    if not found.strip():
        raise SecretMistake(f"the {'variable' if kind == 'env' else 'file'} {where} is empty; put the key there")
    if not found.strip().isprintable() or not found.isascii():
        raise SecretMistake(f"the key of {where} has characters that no HTTP header takes; write it as one line")
    return found.strip()


def checked_reference(reference: object) -> tuple[str, str]:
    """Return the kind (`env` or `file`) and the name in a reference, without reading the variable or file.

    Raises SecretMistake.
    """
    if isinstance(reference, str):
        raise SecretMistake(f"holds the key in clear text; write {_HOW}, and replace the key, since files are copied")
    if not isinstance(reference, dict) or len(reference) != 1:
        raise SecretMistake(f"must be {_HOW}")
    [(kind, where)] = reference.items()
    if kind not in ("env", "file") or not isinstance(where, str) or not where.isprintable() or not where:
        raise SecretMistake(f"must be {_HOW}")
    return kind, where


def _key_in(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_KEY_BYTES + 1)
    except OSError as error:
        raise SecretMistake(f"the file {path} cannot be read: {error.strerror}") from None
    if len(content) > _MOST_KEY_BYTES:
        raise SecretMistake(f"the file {path} is larger than {_MOST_KEY_BYTES} bytes; it should hold the key alone")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise SecretMistake(f"the file {path} is not UTF-8; it should hold the key alone") from None
