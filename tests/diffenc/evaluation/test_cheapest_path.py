"""Against the enumeration of all paths."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffenc.evaluation import cheapest_path as module
from diffenc.evaluation.cheapest_path import cheapest_path


def total(cost, path) -> float:
    return sum(cost[later, earlier] for earlier, later in itertools.pairwise(path))


def by_enumeration(cost, num_edges):
    inner = itertools.combinations(range(1, len(cost) - 1), num_edges - 1)
    return min(((0, *nodes, len(cost) - 1) for nodes in inner), key=lambda path: total(cost, path))


@given(seed=st.integers(0, 2**32 - 1), nodes=st.integers(2, 9), rows=st.sampled_from([1, 2, 3, 64]))
@settings(deadline=None, max_examples=60)
def test_no_path_is_cheaper(seed, nodes, rows):
    cost = np.random.default_rng(seed).normal(size=(nodes, nodes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_ROWS", rows)
        for num_edges in range(1, nodes):
            path = cheapest_path(cost, num_edges)
            assert tuple(path) == by_enumeration(cost, num_edges)


def test_only_what_lies_below_the_diagonal_is_read():
    cost = np.random.default_rng(0).normal(size=(8, 8))
    spoilt = np.where(np.tri(8, k=-1, dtype=bool), cost, np.nan)
    kept = spoilt.copy()
    for num_edges in range(1, 8):
        np.testing.assert_array_equal(cheapest_path(spoilt, num_edges), cheapest_path(cost, num_edges))
    np.testing.assert_array_equal(spoilt, kept)


def test_an_edge_that_must_not_be_taken_is_not():
    cost = np.ones((5, 5))
    cost[3, 2] = np.inf
    assert list(cheapest_path(cost, 3)) in ([0, 1, 2, 4], [0, 1, 3, 4])
    assert total(cost, cheapest_path(cost, 3)) == 3


@pytest.mark.parametrize("power", [1.5, 2.0, 3.0])
def test_splitting_helps_where_long_steps_cost_more_than_their_parts(power):
    """For (t - s)^p with p > 1 equal steps are best, and T^(1 - p) is what they cost in all."""
    t = np.linspace(0, 1, 61)
    cost = np.abs(t[:, None] - t[None]) ** power
    totals = []
    for num_edges in (1, 2, 3, 4, 5, 6, 10, 60):
        path = cheapest_path(cost, num_edges)
        assert set(np.diff(path)) == {60 // num_edges}
        totals.append(total(cost, path))
        np.testing.assert_allclose(totals[-1], num_edges ** (1 - power), rtol=1e-12)
    assert np.all(np.diff(totals) < 0)


@pytest.mark.parametrize("num_edges", [0, -1, 5, 6])
def test_a_path_that_there_is_not_is_refused(num_edges):
    with pytest.raises(ValueError, match=f"no path of {num_edges} edges over 5 nodes"):
        cheapest_path(np.ones((5, 5)), num_edges)


def test_a_thousand_edges_take_seconds():
    """For (t - s)^2 over 2048 cells: 48 steps of three cells, all others of two."""
    t = np.arange(2049.0)
    cost = (t[:, None] - t[None]) ** 2
    started = time.monotonic()
    path = cheapest_path(cost, 1000)
    assert time.monotonic() - started < 30
    np.testing.assert_array_equal(np.bincount(np.diff(path)), [0, 0, 952, 48])
