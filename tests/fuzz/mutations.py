"""Hostile values, and where to put them."""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sfumato.machine import peak_memory

GONE = object()  # a key that is taken away
HOSTILE: tuple[Any, ...] = (
    GONE, None, True, "lots", "", "\x1b[2J", -1, 0, 0.5, 1e30, -1e30, 1e300, math.nan, math.inf, 2**63, 10**13, [], {},
    [[1, [2]]], {"name": "Flow", "args": {}},
)  # fmt: skip
MEMORY = 1 << 30  # bytes that reading a small hostile file may take

NUMBERS = st.integers() | st.integers(-(2**70), 2**70) | st.floats()
PLAIN = st.none() | st.booleans() | NUMBERS | st.text(max_size=20) | st.sampled_from([v for v in HOSTILE if v != GONE])
ANY = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)


def places(value: Any, where: tuple[Any, ...] = (), most: int = 2) -> Iterator[tuple[Any, ...]]:
    """The keys that lead to everything in a tree; of lists the first `most` items."""
    if where:
        yield where
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*where, key), most)
    elif isinstance(value, list):
        for i in range(min(len(value), most)):
            yield from places(value[i], (*where, i), most)


def put(tree: Any, where: tuple[Any, ...], value: Any) -> Any:
    """A copy of the tree with another value at this place, or without it."""
    made = copy.deepcopy(tree)
    at = made
    for key in where[:-1]:
        at = at[key]
    if isinstance(at, dict) == isinstance(where[-1], int):  # an earlier change put another kind here
        raise LookupError(where)
    if value is GONE:
        del at[where[-1]]
    else:
        at[where[-1]] = value
    return made


def mutated(tree: Any) -> st.SearchStrategy[Any]:
    """The tree with one to three of its places changed."""
    change = st.tuples(st.sampled_from(list(places(tree))), ANY | st.just(GONE))

    def changed(changes: list[tuple[tuple[Any, ...], Any]]) -> Any:
        made = tree
        for where, value in changes:
            try:
                made = put(made, where, value)
            except (LookupError, TypeError):  # an earlier change took this place away
                continue
        return made

    return st.lists(change, min_size=1, max_size=3).map(changed)


def hunt(examples: int, strategy: st.SearchStrategy[Any], ask: Callable[[Any], None]) -> None:
    """Ask about as many examples, the same in each run, within the limit of memory."""
    before = peak_memory()
    usual = settings(
        max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    usual(given(strategy)(ask))()
    assert peak_memory() - before < MEMORY
