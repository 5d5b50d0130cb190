"""Products whose factors are rounded, beside numpy's of factors that were rounded bit by bit; and the command on a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from diffenc.core.objective import continuous
from diffenc.training import loop
from experiments import rounded_products
from experiments.rounded_products import CASES, round_products

RANDOM = np.random.default_rng(0)
A, B = (RANDOM.normal(size=(5, 5)).astype(np.float32) for _ in range(2))


def rounded(x, bits):
    """Numbers with so many bits of mantissa, the nearest, ties to even, by integers."""
    raw, cut = x.view(np.uint32).astype(np.uint64), 23 - bits
    half = (1 << (cut - 1)) - 1 + ((raw >> cut) & 1)
    return (((raw + half) >> cut) << cut).astype(np.uint32).view(np.float32)


@pytest.mark.parametrize("bits", [7, 10])
def test_factors_are_rounded_and_sums_are_not(bits):
    got = jax.jit(round_products(jnp.matmul, bits, CASES["none held"]))(A, B)
    want = rounded(A, bits).astype(np.float64) @ rounded(B, bits).astype(np.float64)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert np.abs(want - A.astype(np.float64) @ B).max() > 1e-4


def test_products_at_full_precision_are_held_and_slopes_are_rounded():
    @jax.jit
    def slope(x):  # of x -> x (x B), where the second product is at full precision
        def square(x):
            with jax.default_matmul_precision("highest"):
                y = jnp.matmul(x, B)
            return jax.checkpoint(jnp.matmul)(x, y)

        return jax.jvp(square, (x,), (jnp.ones_like(x),))[1]

    got = round_products(slope, 7, CASES["held"])(A)
    ones = np.ones((5, 5))
    want = rounded(ones.astype(np.float32), 7).astype(np.float64) @ rounded(A @ B, 7)
    want = want + rounded(A, 7).astype(np.float64) @ rounded((ones @ B).astype(np.float32), 7)
    # products that float32 itself rounds, before they are rounded again: one unit in the last place of few bits
    np.testing.assert_allclose(got, want, rtol=0.02, atol=0.02)
    exact = ones @ (A.astype(np.float64) @ B) + A @ (ones @ B)
    assert np.abs(got - want).max() < 0.2 * np.abs(got - exact).max()


def test_a_product_in_a_loop_is_refused():
    def power(x):
        return jax.lax.scan(lambda y, _: (jnp.matmul(y, B), None), x, length=3)[0]

    with pytest.raises(NotImplementedError, match="a product within scan"):
        round_products(power, 7, CASES["held"])(A)


def test_the_command_states_every_case(tiny, tmp_path, capsys):
    experiment, workdir = tiny(steps=2), tmp_path / "run"
    loop.train(experiment, workdir)
    shifts = list(rounded_products.measure_shifts(experiment, workdir, 5, {"continuous": continuous}))
    assert len(shifts) == 2 * len(CASES)
    # its networks have no products: they multiply number by number
    assert all(shift.largest == 0 for *_, shift in shifts)
    Console(width=120).print(rounded_products.format_table(shifts))
    assert "held but encoder" in capsys.readouterr().out
    assert rounded_products.main(["--workdir=unused", "--images=1"]) == 1
