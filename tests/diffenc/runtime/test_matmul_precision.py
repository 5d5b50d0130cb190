"""What a device computes products of float32 in: as JAX documents each level, and on this device as seen in its products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc.runtime.matmul_precision import matmul_precision, products_of_float32

# Bits behind the point that a factor keeps.
BITS = {"float32": 23, "tfloat32": 10, "float16": 10, "bfloat16": 7, "bfloat16_3x": 15}
PLACES = np.arange(1, 24)


def kept(multiply) -> int:
    """How many bits of a factor arrive in its product with 1."""
    factors = np.ones(256, np.float32)
    factors[: len(PLACES)] += 2.0**-PLACES
    products = np.asarray(multiply(jnp.diag(factors)))
    return int(PLACES[products[: len(PLACES)] == factors[: len(PLACES)]].max())


def by_matrix_product(diagonal) -> jax.Array:
    return jnp.diag(jax.jit(jnp.matmul)(diagonal, jnp.eye(len(diagonal))))


def by_convolution(diagonal) -> jax.Array:
    size = len(diagonal)
    kernel = jnp.eye(size).reshape(1, 1, size, size)
    convolve = jax.jit(
        lambda x: jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    )
    return jnp.diag(convolve(diagonal.reshape(size, 1, 1, size)).reshape(size, size))


@pytest.mark.parametrize(
    "setting",
    [None, pytest.param("default", marks=pytest.mark.slow), pytest.param("high", marks=pytest.mark.slow), "highest", "bfloat16", pytest.param("tensorfloat32", marks=pytest.mark.slow), pytest.param("float32", marks=pytest.mark.slow), pytest.param("F32_F32_F32", marks=pytest.mark.slow), pytest.param("BF16_BF16_F32", marks=pytest.mark.slow),
     "BF16_BF16_F32_X3", pytest.param("F16_F16_F16", marks=pytest.mark.slow)],
)  # fmt: skip
@pytest.mark.slow
def test_on_this_device_products_keep_as_many_bits_as_stated(setting):
    with jax.default_matmul_precision(setting):
        of_matrices, _, of_convolutions = matmul_precision().partition(", convolutions ")
        assert kept(by_matrix_product) == BITS[of_matrices]
        assert kept(by_convolution) == BITS[of_convolutions or of_matrices]


# As jax.lax.Precision is documented.
@pytest.mark.parametrize(
    ("kind", "default", "high"),
    [
        ("cpu", "float32", "float32"),
        ("NVIDIA H200", "tfloat32", "tfloat32"),
        ("NVIDIA A100-SXM4-40GB", "tfloat32", "tfloat32"),
        ("NVIDIA GeForce RTX 3090", "tfloat32", "tfloat32"),
        ("NVIDIA L4", "tfloat32", "tfloat32"),
        ("Tesla V100-SXM2-16GB", "float32", "float32"),
        ("Tesla T4", "float32", "float32"),
        ("NVIDIA GeForce RTX 2080 Ti", "float32", "float32"),
        ("NVIDIA GeForce GTX 1080", "float32", "float32"),
        ("TPU v4", "bfloat16", "bfloat16_3x"),
        ("TPU v5 lite", "bfloat16", "bfloat16_3x"),
    ],
)
def test_each_level_of_jax_means_another_precision_on_another_device(kind, default, high):
    assert [products_of_float32(word, kind) for word in ("default", "bfloat16")] == [default] * 2
    assert [products_of_float32(word, kind) for word in ("high", "tensorfloat32")] == [high] * 2
    assert [products_of_float32(word, kind) for word in ("highest", "float32")] == ["float32"] * 2


@pytest.mark.parametrize(
    ("setting", "stated"),
    [
        ("BF16_BF16_F32", "bfloat16, convolutions tfloat32"),
        ("BF16_BF16_F32_X6", "bfloat16_6x, convolutions tfloat32"),
        ("TF32_TF32_F32", "tfloat32"),
        ("TF32_TF32_F32_X3", "tfloat32_3x, convolutions tfloat32"),
        ("F32_F32_F32", "float32, convolutions tfloat32"),
        ("F64_F64_F64", "float32, convolutions tfloat32"),
    ],
)
def test_convolutions_do_not_heed_an_algorithm(setting, stated):
    assert products_of_float32(setting, "NVIDIA H200") == stated


def test_tf32_may_be_forbidden():
    assert products_of_float32("default", "NVIDIA H200", without_tf32=True) == "float32"


def test_a_device_that_is_not_known_is_not_guessed_at():
    assert products_of_float32("default", "AMD Instinct MI300X") == "default of AMD Instinct MI300X"


def test_what_was_stated_stays_where_it_is_read_again():
    for kind in ("cpu", "NVIDIA H200", "TPU v4"):
        for setting in ("default", "high", "highest", "BF16_BF16_F32", "TF32_TF32_F32_X3"):
            stated = products_of_float32(setting, kind)
            assert products_of_float32(stated, kind) == stated


def test_in_float64_products_are_too(x64):
    assert matmul_precision() == "float64"
