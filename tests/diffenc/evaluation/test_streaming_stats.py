import numpy as np
import pytest

from diffenc.evaluation.streaming_stats import ImageMeans, StreamingMean


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


def test_errors_over_images_are_the_spread_of_repeats():
    """Images of their own means, seen again and again in every bin: another sample of images would differ by this."""
    rng, images, bins, times = np.random.default_rng(0), 30, 4, 6
    means, errors, together, wholes = [], [], [], []
    for _ in range(400):
        values = rng.normal(size=(images, 1)) + 0.2 * rng.normal(size=(images, bins * times)) + 7
        result = ImageMeans(images, bins)
        image, index = np.repeat(np.arange(images), bins * times), np.tile(np.arange(bins), images * times)
        result.add(image, index, values.ravel())
        np.testing.assert_allclose(result.mean, [values.ravel()[index == i].mean() for i in range(bins)])
        np.testing.assert_array_equal(result.count, images * times)
        means.append(result.mean)
        errors.append(result.standard_error)
        wholes.append(result.mean.mean())
        together.append(result.mean_error)
    np.testing.assert_allclose(np.mean(errors, axis=0), np.std(means, axis=0), rtol=0.12)
    np.testing.assert_allclose(np.mean(together), np.std(wholes), rtol=0.12)
    assert np.mean(together) > 3 * np.std(wholes) / np.sqrt(bins * times) / 1.2
