"""pytest's hooks for the suite as a whole: long parts, order, shared servers, and which process runs a file."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

from tests import selection
from tests.selection import ROOT, Outcomes, Selection
from tests.services import Services

_SELECTION = pytest.StashKey[Selection]()
_SUITE = pytest.StashKey["Suite"]()


class Suite:
    """The controller's view of a run: its shared servers, and the outcomes of its tests."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._stack = ExitStack()
        included = () if _is_partial(config) else config.stash[_SELECTION].included
        self._digests = {name: selection.parts()[name].digest() for name in included}
        self._outcomes = Outcomes()
        self.services = ""
        if config.getvalue("numprocesses"):
            folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="services."))
            self._stack.enter_context(Services(Path(folder)))
            self.services = folder

    def pytest_report_header(self) -> str:
        """Say which long parts run."""
        if _with_paths(self._config):
            return "long parts: the command line decides"
        included = self._config.stash[_SELECTION].included
        left_out = [name for name in selection.parts() if name not in included]
        return f"long parts: {', '.join(included) or 'none'} run; {', '.join(left_out) or 'none'} left out"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the outcome of a test's phase."""
        self._outcomes.add(report.nodeid, report.outcome, report.duration)

    def pytest_sessionfinish(self) -> None:
        """Write the digests of the parts that passed, and the seconds if they are wanted; end the shared servers."""
        parts = selection.parts()
        whole = {n: digest for n, digest in self._digests.items() if self._outcomes.whole(parts[n].places())}
        if whole:
            selection.write_passed(whole)
        if self._config.getoption("--write-seconds"):
            self._outcomes.write_seconds()
        self._stack.close()


class ByScope(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
    """Gives each group of files that belong together to one process."""

    def _split_scope(self, nodeid: str) -> str:
        return selection.scope(super()._split_scope(nodeid))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that choose long parts."""
    group = parser.getgroup("postback")
    names = ", ".join(selection.parts())
    group.addoption("--long", action="append", default=[], metavar="PART", help=f"run only this long part: {names}")
    group.addoption("--all", action="store_true", help="run every long part, beside all other tests")
    group.addoption("--write-seconds", action="store_true", help="write the seconds of each file to tests/seconds.json")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Choose the long parts, and in the controller begin to note outcomes."""
    if (given := getattr(config, "workerinput", None)) is not None:
        config.stash[_SELECTION] = Selection(tuple(given["included"]), given["alone"])
        return
    config.stash[_SELECTION] = _selected(config)
    config.stash[_SUITE] = Suite(config)
    config.pluginmanager.register(config.stash[_SUITE], "suite")


def _selected(config: pytest.Config) -> Selection:
    named: list[str] = config.getoption("--long")
    if unknown := [name for name in named if name not in selection.parts()]:
        raise pytest.UsageError(f"--long {unknown[0]}: the parts are {', '.join(selection.parts())}")
    if named and (bare := [name for name in config.args if name in selection.parts()]):
        raise pytest.UsageError(f"{bare[0]} is read as a path; each part needs its own option: --long {bare[0]}")
    if named:
        return Selection(tuple(named), alone=True)
    if config.getoption("--all") or _with_paths(config):
        return Selection(tuple(selection.parts()), alone=False)
    return Selection(tuple(selection.due()), alone=False)


def _is_partial(config: pytest.Config) -> bool:
    """True if the command line may leave out single tests of a part: then the part cannot pass as a whole."""
    option = config.option
    last_failed = config.getoption("lf", default=False)  # missing without pytest's cache, as in bench/mutations.py
    return bool(option.keyword or option.markexpr or option.deselect or last_failed or _with_paths(config))


def _with_paths(config: pytest.Config) -> bool:
    """True if the command line names files, folders or tests: then it decides alone what runs."""
    return config.args_source is not pytest.Config.ArgsSource.TESTPATHS


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: WorkerController) -> None:
    """Tell a test process the selection, and the folder of the shared servers."""
    chosen = node.config.stash[_SELECTION]
    node.workerinput.update(
        included=list(chosen.included), alone=chosen.alone, services=node.config.stash[_SUITE].services
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByScope | None:
    """Replace `--dist loadfile` by its variant for files that belong together."""
    return ByScope(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the files of long parts that are not due."""
    if collection_path.suffix != ".py" or not collection_path.is_relative_to(ROOT):
        return None
    return config.stash[_SELECTION].leaves_out_file(collection_path.relative_to(ROOT).as_posix()) or None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out single tests of parts that are not due, and begin with those that take longest.

    So no process ends with a long file alone.
    """
    chosen = config.stash[_SELECTION]
    left_out = [item for item in items if chosen.leaves_out(item.nodeid)]
    config.hook.pytest_deselected(items=left_out)
    kept = [item for item in items if not chosen.leaves_out(item.nodeid)]
    order = selection.longest_first([selection.file_of(item.nodeid) for item in kept])
    items[:] = [kept[index] for index in order]
