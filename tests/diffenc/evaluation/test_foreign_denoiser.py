"""How denoisers of other code are called, and which are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc.errors import UserError
from diffenc.evaluation.foreign_denoiser import check_denoiser, prepare_denoiser, relative_difference

Z = jax.random.normal(jax.random.key(0), (6, 2, 2, 3))
LEVEL = jnp.linspace(-1.0, 4.0, 6)


def check(function, jit=None, tolerance=1e-3, z=Z):
    denoise = prepare_denoiser(function, jit, z, LEVEL[: len(z)])
    check_denoiser(denoise, z, LEVEL[: len(z)], None, tolerance)
    return denoise


def test_a_function_of_jax_is_compiled_and_any_other_gets_writable_numpy_arrays():
    seen = []

    def of_jax(z, level):
        return jnp.tanh(z) * level.reshape(-1, 1, 1, 1)

    def of_numpy(z, level):
        seen.append((type(z), type(level), z.flags.writeable))
        return np.tanh(np.asarray(z)) * np.asarray(level).reshape(-1, 1, 1, 1)

    compiled, plain = check(of_jax), check(of_numpy)
    assert compiled.jitted is not None
    assert plain.jitted is None
    assert set(seen[1:]) == {(np.ndarray, np.ndarray, True)}, "but for the attempt to trace it"
    np.testing.assert_allclose(compiled(Z, LEVEL), plain(Z, LEVEL), rtol=1e-5)


def test_jit_can_be_insisted_on():
    with pytest.raises(jax.errors.TracerArrayConversionError):
        check(lambda z, level: np.asarray(z), jit=True)
    calls = []
    check(lambda z, level: calls.append(type(z)) or z, jit=False)
    assert set(calls) == {np.ndarray}


def test_labels_are_a_third_argument():
    labels = jnp.arange(6, dtype=jnp.int32)
    denoise = prepare_denoiser(lambda z, level, label: z + label.reshape(-1, 1, 1, 1), None, Z, LEVEL, labels)
    check_denoiser(denoise, Z, LEVEL, labels, 1e-3)
    np.testing.assert_allclose(denoise(Z, LEVEL, labels)[5], Z[5] + 5)


@pytest.mark.parametrize(
    "mixing",
    [
        lambda z, level: z - z.mean(axis=0, keepdims=True),
        lambda z, level: z[::-1],
        lambda z, level: z + 0.01 * z.std(),
        lambda z, level: z * (level.reshape(-1, 1, 1, 1) - level.mean()),
        lambda z, level: z + jnp.arange(len(z)).reshape(-1, 1, 1, 1),
        lambda z, level: z.at[1:].add(0.1 * z[:-1]) if isinstance(z, jax.Array) else z,
    ],
    ids=["mean", "order", "spread", "levels", "place", "neighbour"],
)
@pytest.mark.parametrize("jit", [True, False])
def test_what_mixes_the_images_of_a_batch_is_refused(mixing, jit):
    def function(z, level):
        return mixing(jnp.asarray(z), jnp.asarray(level))

    with pytest.raises(UserError, match=r"mixes the images of a batch.*running statistics"):
        check(function, jit)


@pytest.mark.parametrize("jit", [None, False])
def test_what_is_not_deterministic_is_refused(jit):
    """Compiled, the noise would be frozen: the function itself is called too."""
    random = np.random.default_rng(0)
    with pytest.raises(UserError, match=r"not deterministic.*module.eval\(\)"):
        check(lambda z, level: z + 0.1 * random.normal(size=z.shape), jit)


def test_a_counter_is_no_fixed_function():
    calls = []

    def function(z, level):
        calls.append(1)
        return z * len(calls)

    with pytest.raises(UserError, match="not deterministic"):
        check(function)


@pytest.mark.parametrize(
    "fixed",
    [
        lambda z, level: z.clip(-0.1, 0.1),
        lambda z, level: jnp.zeros_like(z),
        lambda z, level: z + jax.random.normal(jax.random.key(3), z.shape[1:])[None],
        lambda z, level: (3 * jnp.tanh(z) - 2 * z) * level.reshape(-1, 1, 1, 1),
        lambda z, level: z.astype(jnp.bfloat16),
        lambda z, level: jnp.where(z > 0, jnp.nan, z),
    ],
    ids=["clipped", "zero", "fixed noise", "guided", "bfloat16", "nan"],
)
def test_any_fixed_function_passes(fixed):
    check(fixed)


def test_rounding_is_no_mixing_up_to_the_tolerance():
    def noisy(z, level):
        return np.asarray(z) * (1 + 1e-2 * np.cos(1e3 * np.asarray(z).sum()))

    with pytest.raises(UserError, match=r"mixes.*or give a larger tolerance"):
        check(noisy)
    check(noisy, tolerance=0.1)


def test_one_image_has_no_company():
    check(lambda z, level: z - z.mean(axis=0, keepdims=True), z=Z[:1])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda z, level: np.concatenate([z, z], -1), r"shape \[6, 2, 2, 6\] for z of shape \[6, 2, 2, 3\].*out\[..., :3\]"),
        (lambda z, level: np.moveaxis(np.array(z), -1, 1), "move the channels to the last axis"),
        (lambda z, level: np.array(z)[:, 0], "it must return one estimate shaped like z"),
        (lambda z, level: np.array(z).astype(int), "returns int64: it must return floats"),
        (lambda z, level: Unconvertible(), r"returns Unconvertible, which numpy does not convert .*detach\(\).cpu\(\).numpy\(\)"),
    ],
    ids=["channels", "channels first", "axes", "integers", "no array"],
)  # fmt: skip
def test_other_outputs_are_refused(function, message):
    with pytest.raises(UserError, match=message):
        check(function, jit=False)


class Unconvertible:
    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("Can't call numpy() on Tensor that requires grad")


def test_differences_are_relative_to_the_image():
    one = np.ones((2, 2, 2, 1))
    one[1] *= 1000
    other = one.copy()
    other[0, 0, 0, 0] += 0.2
    assert relative_difference(one, other) == pytest.approx(0.1)
    assert relative_difference(one, one * np.nan) == np.inf
    assert relative_difference(one * np.nan, one * np.nan) == 0
