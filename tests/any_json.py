"""Strategies of arbitrary JSON, for readers of documents that others write."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

COUNTS = st.integers() | st.sampled_from([-1, 2**31, 10**400])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)


def any_json(
    keys: st.SearchStrategy[str] | None = None, scalars: st.SearchStrategy[Any] = SCALARS, leaves: int = 8
) -> st.SearchStrategy[Any]:
    """JSON values of all kinds, nested up to this number of leaves; objects have these keys, by default any text."""
    names = st.text(max_size=5) if keys is None else keys

    def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4)

    return st.recursive(scalars, nested, max_leaves=leaves)


NOISE = any_json()
