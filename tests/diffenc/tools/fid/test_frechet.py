"""The distance against scipy's root of a matrix and closed forms; moments against numpy's of all vectors at once."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from diffenc.tools.fid.frechet import Gaussian, Moments, frechet_distance

RNG = np.random.default_rng(0)


def gaussian(size, rank=None, scale=1.0):
    root = RNG.normal(size=(size, rank or 2 * size))
    return Gaussian(RNG.normal(size=size), scale * root @ root.T)


def by_scipy(one, other):
    root = sqrtm(one.covariance @ other.covariance)
    shift = np.square(one.mean - other.mean).sum()
    return shift + np.trace(one.covariance + other.covariance - 2 * np.real(root))


@pytest.mark.parametrize("size", [1, 2, 17, 60])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_it_is_what_scipys_root_gives(size, scale):
    one, other = gaussian(size), gaussian(size, scale=scale)
    assert frechet_distance(one, other) == pytest.approx(by_scipy(one, other), rel=1e-9)
    assert frechet_distance(one, other) == pytest.approx(frechet_distance(other, one), rel=1e-9)


def test_of_independent_dimensions_it_is_the_sum_of_squared_differences():
    means, deviations = RNG.normal(size=(2, 30)), RNG.uniform(0, 3, (2, 30))
    deviations[0, :7] = 0
    both = [Gaussian(mean, np.diag(deviation**2)) for mean, deviation in zip(means, deviations, strict=True)]
    wanted = np.square(means[0] - means[1]).sum() + np.square(deviations[0] - deviations[1]).sum()
    assert frechet_distance(*both) == pytest.approx(wanted, rel=1e-12)


def test_on_two_lines_it_is_the_distance_of_their_directions():
    """x = g u and y = g v for one normal g: the best coupling; so |u|^2 + |v|^2 - 2 |u . v|."""
    u, v = RNG.normal(size=(2, 50))
    one, other = (Gaussian(np.zeros(50), np.outer(w, w)) for w in (u, v))
    assert frechet_distance(one, other) == pytest.approx(u @ u + v @ v - 2 * abs(u @ v), rel=1e-12)


@pytest.mark.parametrize(("count", "size"), [(5, 40), (40, 40), (41, 300)])
def test_with_fewer_vectors_than_features_nothing_is_lost(count, size):
    """Of C = A^T A / (n - 1) the root's trace is the nuclear norm of A B^T / (n - 1), A being the centred vectors."""
    sets = [RNG.normal(size=(count, size)), RNG.normal(size=(count, size)) * 3]
    a, b = (vectors - vectors.mean(axis=0) for vectors in sets)
    overlap = np.linalg.norm(a @ b.T, "nuc") / (count - 1)
    traces = (np.square(a).sum() + np.square(b).sum()) / (count - 1)
    shift = np.square(sets[0].mean(axis=0) - sets[1].mean(axis=0)).sum()
    assert frechet_distance(*map(of, sets)) == pytest.approx(shift + traces - 2 * overlap, rel=1e-10)


def of(vectors):
    moments = Moments(vectors.shape[1])
    moments.add(vectors)
    return moments.gaussian


def test_from_itself_nothing_is_any_distance_away():
    for one in (gaussian(30), gaussian(30, rank=4), Gaussian(np.ones(3), np.zeros((3, 3)))):
        assert abs(frechet_distance(one, one)) <= 1e-12 * np.trace(one.covariance)


def test_where_one_is_a_point_the_other_has_only_its_spread():
    one = gaussian(6)
    point = Gaussian(np.zeros(6), np.zeros((6, 6)))
    wanted = one.mean @ one.mean + np.trace(one.covariance)
    assert frechet_distance(one, point) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("cuts", [[], [1], [3, 3, 90], [50, 99], list(range(100))])
def test_moments_are_those_of_all_vectors_at_once(cuts):
    vectors = (RNG.normal(size=(100, 4)) + 1e6).astype(np.float32)
    moments = Moments(4)
    for part in np.split(vectors, cuts):
        moments.add(part)
    exact = vectors.astype(np.float64)
    assert moments.count == 100
    np.testing.assert_allclose(moments.gaussian.mean, exact.mean(axis=0), rtol=1e-15)
    np.testing.assert_allclose(moments.gaussian.covariance, np.cov(exact, rowvar=False), rtol=1e-8)


def test_moments_so_far_stay_as_they_were():
    moments = Moments(2)
    moments.add(np.array([[1.0, 2.0]]))
    first = moments.gaussian
    np.testing.assert_array_equal(first.covariance, np.zeros((2, 2)))
    moments.add(np.array([[3.0, 6.0]]))
    np.testing.assert_array_equal(first.mean, [1, 2])
    np.testing.assert_allclose(moments.gaussian.covariance, [[2, 4], [4, 8]])
