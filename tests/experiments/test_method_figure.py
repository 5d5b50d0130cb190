"""The picture of the method shows draws from the distributions that it states."""

import numpy as np
import pytest

from experiments import method_figure

GRID = method_figure.make_grid()
COUNT = 4_000


@pytest.mark.parametrize("eta", [1.0, 0.25])
def test_forward_paths_have_the_marginals_of_q(eta):
    x = method_figure.DATA[0]
    paths = method_figure.draw_forward(x, eta, GRID, COUNT, seed=0)
    for stop in (0, 150, 300):
        sigmoid = 1 / (1 + np.exp(-GRID.log_snr[stop]))
        mean, sd = sigmoid**1.5 * x, np.sqrt(1 - sigmoid)
        assert paths[:, stop].mean() == pytest.approx(mean, abs=4 * sd / COUNT**0.5)
        assert paths[:, stop].std() == pytest.approx(sd, rel=0.05)
    # Steps of size d lambda change eps by 1 - e^(-eta^2 d lambda) of its variance, twice: half of 13 / 300 at eta = 1.
    eps = paths[:, -20:] / np.sqrt(1 - 1 / (1 + np.exp(-GRID.log_snr[-20:])))
    assert np.diff(eps).var() == pytest.approx(eta**2 * 13 / 300, rel=0.1)


def test_generated_numbers_are_the_data_equally_often():
    """A draw at the last stop is that of a datum with the noise that is left there, sigma_0 = 0.018."""
    ends = method_figure.draw_reverse(GRID, COUNT, seed=1)[:, 0]
    distances = np.abs(ends[:, None] - np.asarray(method_figure.DATA))
    assert np.quantile(distances.min(axis=1), 0.99) < 4 * np.exp(-4)
    shares = np.bincount(distances.argmin(axis=1), minlength=3) / COUNT
    assert shares == pytest.approx(1 / 3, abs=0.035)


def test_the_picture(tmp_path):
    assert method_figure.main([f"--output={tmp_path}/method.png"]) == 0
    assert (tmp_path / "method.png").read_bytes().startswith(b"\x89PNG")
