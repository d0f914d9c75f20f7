"""The suite's own parts: long parts and their digests, the order of files, and the servers that processes share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import selection
from tests.selection import Outcomes, Part, Selection
from tests.services import Services, address


@pytest.fixture
def part(tmp_path: Path) -> Part:
    """A part with a helper, in a tree of its own: tests/test_a.py imports tests/helper.py, and protects `room`."""
    for name, text in {
        "tests/test_a.py": "from tests import helper\n\ndef test_one() -> None: ...\n",
        "tests/helper.py": "from tests.deeper import x\n",
        "tests/deeper.py": "x = 1\n",
        "tests/other.py": "",
        "room/code.py": "",
        "room/__pycache__/code.pyc": "",
        "requirements/dev.txt": "",
        "elsewhere.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return Part("a", ("tests/test_*.py",), ("room",))


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("tests/test_a.py", True),
        ("tests/helper.py", True),
        ("tests/deeper.py", True),
        ("room/code.py", True),
        ("room/new.py", True),
        ("requirements/dev.txt", True),
        ("tests/other.py", False),
        ("elsewhere.py", False),
        ("room/__pycache__/code.pyc", False),
    ],
)
def test_a_part_is_due_after_a_change_of_its_tests_their_helpers_its_paths_or_the_pins(
    part: Part, tmp_path: Path, file: str, counts: bool
) -> None:
    before = part.digest(tmp_path)
    with (tmp_path / file).open("a") as changed:
        changed.write("# changed\n")
    assert (part.digest(tmp_path) != before) is counts


@pytest.mark.parametrize(
    ("tests", "protects"),
    [
        ("tests/test_gone.py", "room"),
        ("tests/test_a.py::test_gone", "room"),
        ("tests/helper.py", "room"),
        ("tests/test_a.py", "gone"),
    ],
)
def test_a_place_that_does_not_exist_is_an_error(part: Part, tmp_path: Path, tests: str, protects: str) -> None:
    with pytest.raises(ValueError, match=r"^long.toml: the part a (names|protects) \S+, which does not exist$"):
        Part("a", (tests,), (protects,)).digest(tmp_path)


def test_the_parts_of_this_suite_exist() -> None:
    assert all(len(part.digest()) == 64 and part.places() for part in selection.parts().values())


def test_a_part_without_an_option_of_its_own_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        pytest.main(["--long", "faults", "deaths", "--collect-only", "-p", "no:cacheprovider"])
        == pytest.ExitCode.USAGE_ERROR
    )
    assert "deaths is read as a path; each part needs its own option: --long deaths" in capsys.readouterr().err


def test_a_run_leaves_out_the_tests_of_parts_that_it_does_not_include() -> None:
    whole, single = "tests/integration/test_vllm_pooling.py", "tests/integration/test_worker_check.py"
    one, neighbour = f"{single}::test_vllm_is_loaded_asked_and_ended", f"{single}::test_another"
    unit = "tests/unit/test_suite.py"
    files, tests = (whole, single, unit), (f"{whole}::test_x[a]", one, neighbour, f"{unit}::test_x")
    runs = {
        "default": Selection((), alone=False),
        "due": Selection(("vllm",), alone=False),
        "long": Selection(("vllm",), alone=True),
        "another": Selection(("logs",), alone=True),
    }
    assert {
        name: ([run.leaves_out_file(file) for file in files], [run.leaves_out(test) for test in tests])
        for name, run in runs.items()
    } == {
        "default": ([True, False, False], [True, True, False, False]),
        "due": ([False, False, False], [False, False, False, False]),
        "long": ([False, False, True], [False, False, True, True]),
        "another": ([True, True, True], [True, True, True, True]),
    }


def test_a_part_has_passed_if_every_place_ran_and_every_phase_of_its_tests_passed() -> None:
    outcomes = Outcomes()
    for nodeid, outcome in (
        ("tests/test_a.py::test_one[x]", "passed"),
        ("tests/test_a.py::test_two", "passed"),
        ("tests/test_b.py::test_one", "passed"),
        ("tests/test_b.py::test_two", "failed"),
        ("tests/test_c.py::test_one", "skipped"),
    ):
        outcomes.add(nodeid, outcome, 0.1)
    assert {
        place: outcomes.whole([place])
        for place in ("tests/test_a.py", "tests/test_b.py", "tests/test_b.py::test_one", "tests/test_c.py", "other.py")
    } == {
        "tests/test_a.py": True,
        "tests/test_b.py": False,
        "tests/test_b.py::test_one": True,
        "tests/test_c.py": False,
        "other.py": False,
    }


def test_the_longest_files_come_first_and_tests_of_a_file_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "seconds", lambda: {"long.py": 30.0, "longer.py": 40.0})
    monkeypatch.setattr(selection, "scope", lambda file: "group" if file in {"long.py", "short.py"} else file)
    files = ["new.py", "long.py", "longer.py", "short.py", "long.py"]
    assert [files[index] for index in selection.longest_first(files)] == [
        "longer.py",
        "long.py",
        "short.py",
        "long.py",
        "new.py",
    ]
    assert selection.longest_first(files) == [2, 1, 3, 4, 0]


def test_a_server_starts_once_when_it_is_asked_for_and_ends_with_the_run(tmp_path: Path) -> None:
    seen: list[str] = []

    @contextmanager
    def server() -> Iterator[str]:
        seen.append("started")
        yield "127.0.0.1:1"
        seen.append("ended")

    @contextmanager
    def broken() -> Iterator[str]:
        with Path("/nonexistent/server").open():  # raises before the server is there
            yield ""

    @contextmanager
    def unwanted() -> Iterator[str]:
        seen.append("unwanted")
        yield ""

    with Services(tmp_path, {"kafka": server, "postgresql": broken, "other": unwanted}):
        assert seen == []
        assert [address(tmp_path, "kafka"), address(tmp_path, "kafka")] == ["127.0.0.1:1"] * 2
        with pytest.raises(RuntimeError, match="postgresql did not start: FileNotFoundError"):
            address(tmp_path, "postgresql")
        assert seen == ["started"]
    assert seen == ["started", "ended"]
