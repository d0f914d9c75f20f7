"""A check after each unit test, since most unit tests share one process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.process_state import changes, shared_state


@pytest.fixture(autouse=True)
def no_state_left_changed() -> Iterator[None]:
    """Fail the test if it leaves changes in state that it shares with later tests of this process."""
    before = shared_state()
    yield
    if left := changes(before, shared_state()):
        pytest.fail("the test left state of the process changed:\n" + "\n".join(left))
