import numpy as np
import pytest

from diffenc.streaming import StreamingMean


@pytest.mark.parametrize("sizes", [[1], [3, 1, 50], [0, 7], [2] * 20])
def test_streamed_means_and_errors_are_numpys(sizes):
    rng, bins = np.random.default_rng(len(sizes)), 6
    result, kept = StreamingMean(bins), [[] for _ in range(bins)]
    for size in sizes:
        index = rng.integers(0, bins - 1, size)  # the last stays empty
        value = 1e6 * (index + 1) + rng.normal(size=size)
        result.add(index, value)
        for i, v in zip(index, value, strict=True):
            kept[i].append(v)
    np.testing.assert_array_equal(result.count, [len(values) for values in kept])
    for i, values in enumerate(kept):
        assert result.mean[i] == pytest.approx(np.mean(values) if values else 0, rel=1e-14)
        error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.inf
        assert result.standard_error[i] == pytest.approx(error, rel=1e-7)
