"""The lazy group: its help is a table, and a command's module is imported when the command is called."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption
from typer.main import get_command, get_group

from cli.shared.help import EXAMPLES

if TYPE_CHECKING:
    from typer._click import Command, Context, HelpFormatter, Parameter


@dataclass(frozen=True)
class Listed:
    """A command in a section of the help of `postback`.

    Its module has an `app`, a group of commands, or else a function with the command's name.
    """

    section: str
    folder: str
    """The folder in `cli/` of the section's modules."""

    def help(self, name: str) -> str:
        """Return the help of the command from its module's source: importing all modules would take a second."""
        function = name.replace("-", "_")
        module = Path(__file__).parents[1] / self.folder / f"{function}.py"
        for each in ast.parse(module.read_text(encoding="utf-8")).body:
            if isinstance(each, ast.FunctionDef) and each.name == function:
                return ast.get_docstring(each) or ""
            if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == "app":
                [said] = (one.value for one in cast("ast.Call", each.value).keywords if one.arg == "help")
                return str(ast.literal_eval(said))
        raise LookupError(f"{module} has neither an `app` nor a function {function}")

    def load(self, name: str) -> Command:
        """Import the command's module, and return the command or the group of commands."""
        function = name.replace("-", "_")
        module = import_module(f"cli.{self.folder}.{function}")
        group: typer.Typer | None = getattr(module, "app", None)
        if group is not None:
            return get_group(_complete(group, f"{name} "))
        alone = typer.Typer(add_completion=False)
        alone.command(name)(getattr(module, function))
        return get_command(_complete(alone, ""))


class Group(TyperGroup):
    """Lists its commands by sections. The summaries are wrapped; typer would cut them at the end of the line."""

    def get_params(self, ctx: Context) -> list[Parameter]:
        """Return the options. Typer would import pydantic to check None, the default of its flags such as --help."""
        options = super().get_params(ctx)
        for option in options:
            if isinstance(option, TyperOption) and option.is_flag and option.default is None:
                option.default = False
        return options

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:
        """Write each section with its commands."""
        for section, commands in groupby(self.commands.items(), lambda item: getattr(item[1], "section", "Commands")):
            with formatter.section(section):
                formatter.write_dl([(name, command.get_short_help_str(_WHOLE)) for name, command in commands])


_WHOLE = 1_000
"""More characters than the first sentence of any help has."""


class _Unloaded(TyperCommand):
    """Stands in the list for a command whose module is not imported."""

    def __init__(self, name: str, listed: Listed) -> None:
        super().__init__(name)
        self.section, self._listed = listed.section, listed

    def get_short_help_str(self, limit: int = 45) -> str:
        """Return the first sentence of the command's help."""
        self.help = self._listed.help(self.name or "")
        return super().get_short_help_str(limit)


class Listing(Group):
    """The lazy group: it lists `listed`, and loads a command when it is called or completed."""

    listed: ClassVar[Mapping[str, Listed]]

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = {name: _Unloaded(name, listed) for name, listed in self.listed.items()}

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
        """Load the command."""
        listed = self.listed.get(cmd_name)
        return listed.load(cmd_name) if listed is not None else None


def _complete(app: typer.Typer, prefix: str) -> typer.Typer:
    """Add the examples to the help of each command, and lay out all help without rich."""
    app.rich_markup_mode = None
    app.info.cls = Group
    for command in app.registered_commands:
        function = command.callback
        name = command.name or (function.__name__.replace("_", "-") if function is not None else "")
        examples = EXAMPLES.get(f"{prefix}{name}", ())
        title = "Example:" if len(examples) == 1 else "Examples:"
        # A paragraph that begins with a backspace is not wrapped.
        command.epilog = "\b\n" + "\n".join((title, *(f"  {each}" for each in examples))) if examples else None
    return app
