"""Products whose factors are rounded, beside numpy's of factors that were rounded bit by bit; and the command on a run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from diffenc.core.discretization import equal_steps
from diffenc.core.objective import continuous, discrete
from diffenc.training import loop
from diffenc_plugins.encoders import Trainable
from diffenc_plugins.networks import EncoderUNet, UNet
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


def test_products_in_a_loop_are_rounded_as_those_written_out():
    def power(x, scan):
        """Of the carry, an entry of each turn and a constant; the products of each turn are kept."""
        return scan(
            lambda y, b: (jnp.matmul(y, b) / 5, jnp.matmul(B, y)), x, jnp.stack([B, A, B]), reverse=True
        )

    def written_out(turn, carry, xs, reverse):
        assert reverse
        rows = []
        for x in xs[::-1]:
            carry, row = turn(carry, x)
            rows.append(row)
        return carry, jnp.stack(rows[::-1])

    loop_, plain = (
        round_products(lambda x, s=s: power(x, s), 7, CASES["held"])(A) for s in (jax.lax.scan, written_out)
    )
    for one, other, exact in zip(loop_, plain, power(A, jax.lax.scan), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
        assert np.abs(one - exact).max() > 1e-4


def test_a_product_in_a_branch_is_refused():
    def choose(x):
        return jax.lax.cond(x[0, 0] > 0, lambda y: jnp.matmul(y, B), lambda y: y, x)

    with pytest.raises(NotImplementedError, match="a product within cond"):
        round_products(choose, 7, CASES["held"])(A)


def test_each_case_rounds_other_products_of_real_networks(tiny, tmp_path, monkeypatch):
    """At T = 4, where the encoder is held at both ends of a step."""
    networks = {"network": UNet(1, 8), "encoder": Trainable(EncoderUNet(1, 8))}
    experiment = tiny(model=dataclasses.replace(tiny().model, **networks))
    key = jax.random.key(0)
    drawn = jax.tree.map(lambda leaf: 0.3 * jax.random.normal(key, leaf.shape), experiment.init_params(key))
    params = drawn | {"schedule": experiment.init_params(key)["schedule"]}
    monkeypatch.setattr(rounded_products, "restore_for_bound", lambda *_: (params, 0))
    monkeypatch.setattr(rounded_products, "MANTISSA_BITS", {"bfloat16": 7})
    rules = {"4": discrete(equal_steps(4))}
    shifts = [shift.mean for *_, shift in rounded_products.measure_shifts(experiment, tmp_path, 5, rules)]
    assert len({*shifts, 0.0}) == 1 + len(CASES)


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
