"""The kernel distance against two loops over all pairs, and its error against the spread of repetitions."""

import numpy as np
import pytest

from diffenc.tools.fid.kid import kernel_distance, squared_mmd

RNG = np.random.default_rng(0)


def by_loops(one, other):
    def k(x, y):
        return (sum(float(a) * float(b) for a, b in zip(x, y, strict=True)) / len(x) + 1) ** 3

    def mean(pairs):
        values = [k(x, y) for x, y in pairs]
        return sum(values) / len(values)

    def different(vectors):
        return [(x, y) for i, x in enumerate(vectors) for j, y in enumerate(vectors) if i != j]

    crossed = [(x, y) for x in one for y in other]
    return mean(different(one)) + mean(different(other)) - 2 * mean(crossed)


@pytest.mark.parametrize(("n", "m", "size"), [(2, 2, 1), (5, 9, 3), (12, 4, 7)])
def test_all_pairs_but_those_of_a_vector_with_itself(n, m, size):
    one, other = RNG.normal(size=(n, size)).astype(np.float32), RNG.normal(size=(m, size)) + 1
    assert squared_mmd(one, other) == pytest.approx(by_loops(one, other), rel=1e-10)


def test_blocks_are_disjoint_and_their_spread_is_the_error():
    one, other = RNG.normal(size=(23, 3)), RNG.normal(size=(21, 3)) * 2
    each = [by_loops(one[k : k + 5], other[k : k + 5]) for k in (0, 5, 10, 15)]
    found = kernel_distance(one, other, 5)
    assert found.value == pytest.approx(np.mean(each), rel=1e-10)
    assert found.error == pytest.approx(np.std(each, ddof=1) / 2, rel=1e-10)


@pytest.mark.parametrize(("count", "size", "blocks"), [(23, 5, 4), (9, 2, 4), (3, 2, 1), (4, 2, 2)])
def test_there_are_four_blocks_if_there_can_be(count, size, blocks):
    one, other = RNG.normal(size=(count, 2)), RNG.normal(size=(count + 3, 2))
    each = [by_loops(one[k : k + size], other[k : k + size]) for k in range(0, size * blocks, size)]
    found = kernel_distance(one, other, 1000)
    assert found.value == pytest.approx(np.mean(each), rel=1e-9)
    assert (found.error is None) == (blocks == 1)
    assert found.num == size * blocks


def test_between_sets_of_one_kind_it_is_nothing_but_its_error():
    """Without bias: the mean of many repetitions is within four of their errors; and the stated error is their spread."""
    found = [kernel_distance(RNG.normal(size=(80, 4)), RNG.normal(size=(80, 4)), 10) for _ in range(400)]
    values = np.array([one.value for one in found])
    spread = values.std(ddof=1)
    assert abs(values.mean()) < 4 * spread / 20
    stated = np.sqrt(np.mean([(one.error or np.nan) ** 2 for one in found]))
    assert stated == pytest.approx(spread, rel=0.2)


def test_one_vector_has_no_pairs():
    with pytest.raises(ValueError, match="1 and 4 vectors: two of each are needed"):
        squared_mmd(np.zeros((1, 2)), np.zeros((4, 2)))
