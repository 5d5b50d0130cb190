"""Contractions counted by hand, and beside XLA's own count."""

import dataclasses
import math
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from diffenc.interfaces import NO_CONTEXT, Images
from diffenc.parallel.sharding import data_mesh
from diffenc.tools.planning import flops
from diffenc.tools.planning.flops import count_work
from diffenc.training.state import abstract_state, make_train_step
from diffenc_plugins.networks import UNet

NHWC = ("NHWC", "HWIO", "NHWC")


def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def conv(x, w, strides=(1, 1), padding="SAME", **changes):
    return lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=NHWC, **changes)


def by_role(work):
    return {role: work.where(lambda one, role=role: one.role == role).flops for role in flops.ROLES}


def times(work):
    """How many contractions in all."""
    return sum(work.counts.values())


def test_a_matrix_product():
    work = count_work(jnp.matmul, array(4, 5), array(5, 7))
    assert work.flops == 2 * 4 * 5 * 7
    ((contraction, count),) = work.counts.items()
    assert (contraction.lhs.shape, contraction.rhs.shape, count) == ((4, 5), (5, 7), 1)
    assert (contraction.role, contraction.is_convolution) == ("forward", False)


def test_a_jitted_function_with_compiler_options():
    product = jax.jit(jnp.matmul, compiler_options={"xla_backend_optimization_level": "1"})
    assert count_work(product, array(4, 5), array(5, 7)).flops == 2 * 4 * 5 * 7


def test_attention():
    def attention(query, key, value):
        weights = jnp.einsum("bic,bjc->bij", query, key)
        return jnp.einsum("bij,bjc->bic", weights, value)

    tokens = array(3, 10, 4)
    assert count_work(attention, tokens, tokens, tokens).flops == 2 * (2 * 3 * 10 * 10 * 4)


@pytest.mark.parametrize(
    ("changes", "positions"),
    [
        ({"padding": "VALID"}, 6 * 3 * (7 * 3)),
        ({}, (3 * 8 - 2) * (3 * 9 - 2)),  # a window at a border lacks one of its three rows
        ({"padding": ((1, 1), (0, 0))}, (3 * 8 - 2) * 3 * 7),
        ({"padding": ((2, 0), (0, 0)), "strides": (3, 1)}, (1 + 3 + 3) * (7 * 3)),
        ({"padding": "VALID", "strides": (2, 3)}, 3 * 3 * (3 * 3)),
        ({"padding": "VALID", "rhs_dilation": (3, 1)}, 2 * 3 * (7 * 3)),
        # between its rows are zeros: windows of three hold one or two, by turns, and they start on two
        ({"padding": ((0, 0), (0, 0)), "lhs_dilation": (2, 1)}, (7 * 2 + 6 * 1) * (7 * 3)),
    ],
)
def test_a_convolution(changes, positions):
    """`positions` counts pairs of an output and an element under its window: images are 8x9, windows 3x3."""
    x, w = array(2, 8, 9, 4), array(3, 3, 4, 5)
    work = count_work(lambda x, w: conv(x, w, **changes), x, w)
    assert work.flops == 2 * 2 * 4 * 5 * positions
    assert work.flops == xla(lambda x, w: conv(x, w, **changes), x, w)


def xla(function, *arguments):
    """XLA's own count."""
    analysis: Any = jax.jit(function).lower(*arguments).compile().cost_analysis()
    return analysis["flops"]


@pytest.mark.parametrize(
    ("changes", "kernel", "products"),
    [
        ({"feature_group_count": 2}, (3, 3, 2, 6), 2 * 2 * 6),  # images, channels in of a group, channels out
        ({"batch_group_count": 2}, (3, 3, 4, 6), 1 * 4 * 6),
    ],
)
def test_a_convolution_in_groups(changes, kernel, products):
    x, w = array(2, 6, 6, 4), array(*kernel)

    def grouped(x, w):
        return conv(x, w, padding="VALID", **changes)

    assert count_work(grouped, x, w).flops == 2 * products * (4 * 3) * (4 * 3)
    # the same, as many times as there are outputs
    out = jax.eval_shape(grouped, x, w)
    assert count_work(grouped, x, w).flops == 2 * math.prod(out.shape) * 9 * kernel[2]


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_both_gradients_of_a_convolution_cost_what_it_costs(strides):
    def loss(x, w):
        return jnp.sum(conv(x, w, strides) ** 2)

    x, w = array(2, 8, 8, 3), array(3, 3, 3, 5)
    found = by_role(count_work(jax.grad(loss, argnums=(0, 1)), x, w))
    one = 2 * 2 * 3 * 5 * {1: 22, 2: 3 * 4 - 1}[strides[0]] ** 2
    assert found == {
        "forward": one, "recomputed": 0, "input_gradient": one, "kernel_gradient": one, "gradient": 0
    }  # fmt: skip


def test_the_gradients_of_a_convolution_are_told_apart():
    def loss(x, w):
        return jnp.sum(conv(x, w) ** 2)

    x, w = array(2, 8, 8, 3), array(3, 3, 3, 5)
    for argument, role in enumerate(("input_gradient", "kernel_gradient")):
        found = by_role(count_work(jax.grad(loss, argument), x, w))
        assert {role for role, flop in found.items() if flop} == {"forward", role}


def test_the_gradients_of_a_matrix_product():
    def loss(a, b):
        return jnp.sum(jnp.sin(a @ b))

    found = by_role(count_work(jax.grad(loss, argnums=(0, 1)), array(4, 5), array(5, 7)))
    assert (found["forward"], found["gradient"]) == (280, 560)


def blocks(wrap):
    """Three products by 4x4 matrices and their gradient, each wrapped."""

    def loss(matrices, x):
        step = wrap(lambda x, matrix: (jnp.sin(x @ matrix), None))
        return jnp.sum(lax.scan(step, x, matrices)[0])

    return count_work(jax.grad(loss), array(3, 4, 4), array(5, 4))


def test_a_scan_counts_as_often_as_it_runs():
    work = blocks(lambda step: step)
    one = 2 * 5 * 4 * 4
    assert work.flops == 3 * 3 * one  # XLA, which counts the body of a loop once, says a third
    assert by_role(work)["recomputed"] == 0
    assert set(work.counts.values()) == {3}


def test_what_is_computed_again_for_the_backward_pass_counts_again():
    found = by_role(blocks(jax.checkpoint))
    one = 3 * 2 * 5 * 4 * 4
    assert (found["forward"], found["recomputed"], found["gradient"]) == (one, one, 2 * one)


def test_a_scan_within_a_scan():
    def outer(x, matrices):
        return lax.scan(
            lambda x, _: (lax.scan(lambda x, m: (x @ m, None), x, matrices)[0], None), x, length=5
        )

    assert count_work(outer, array(4, 4), array(3, 4, 4)).flops == 5 * 3 * 2 * 64


def test_of_branches_the_costliest_counts():
    def either(x):
        return lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x @ x @ x, x)

    work = count_work(either, array(4, 4))
    assert work.flops == 2 * (2 * 64)
    assert work.notes == ()


def test_a_loop_of_unknown_length_is_noted():
    def loop(x):
        return lax.while_loop(lambda x: (x @ x)[0, 0] < 1, lambda x: x @ x, x)

    work = count_work(loop, array(4, 4))
    assert work.flops == 2 * (2 * 64)  # of the condition and of the body
    (note,) = work.notes
    assert "while" in note
    assert count_work(lambda x: lax.while_loop(lambda x: x[0] < 1, lambda x: x + 1, x), array(4)).notes == ()


def test_functions_with_derivatives_of_their_own():
    @jax.custom_jvp
    def product(x):
        return x @ x

    product.defjvp(lambda primals, tangents: (product(*primals), tangents[0]))

    @jax.custom_vjp
    def other(x):
        return x @ x

    other.defvjp(lambda x: (other(x), x), lambda x, g: (g @ x,))
    x = array(4, 4)
    assert count_work(lambda x: product(x) + other(x), x).flops == 2 * (2 * 64)
    assert count_work(jax.grad(lambda x: jnp.sum(other(product(x)))), x).flops == 3 * (2 * 64)


def test_work_that_is_shared_out_counts_for_all_devices():
    # an abstract mesh: there is one device here
    mesh = jax.sharding.AbstractMesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    split = PartitionSpec("data")
    shared = jax.shard_map(
        jnp.matmul, mesh=mesh, in_specs=(split, PartitionSpec()), out_specs=split, axis_names={"data"}
    )
    assert count_work(shared, array(8, 5), array(5, 7)).flops == 2 * 8 * 5 * 7


def test_by_dtype():
    def both(a, b):
        return a @ a, b @ b @ b

    work = count_work(both, array(4, 4), array(4, 4, dtype=jnp.bfloat16))
    assert work.by_dtype == {"float32": 2 * 64, "bfloat16": 2 * (2 * 64)}


def test_a_contraction_can_be_performed_by_itself():
    def strided(x, w):
        return conv(x, w, (2, 1))

    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 6, 6, 3)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(3, 3, 3, 4)), jnp.float32)
    (contraction,) = count_work(strided, x, w).counts
    np.testing.assert_array_equal(contraction(x, w), strided(x, w))
    assert contraction in {contraction}


def score_network(blocks, channels, side, colours):
    """Multiply-adds of the published score network for one image, layer by layer."""
    near, places = (3 * side - 2) ** 2, side**2  # places under the windows of a 3x3 convolution

    def block(channels_in):
        convolutions = near * channels * (channels_in + channels)
        shortcut = places * channels_in * channels if channels_in != channels else 0
        return convolutions + shortcut + 4 * channels * channels

    embedding = 4 * channels * (channels + 1) + (4 * channels) ** 2
    attention = 4 * places * channels**2 + 2 * places**2 * channels
    ends = near * channels * (5 * colours) + near * channels * colours
    return embedding + (blocks + 2) * block(channels) + attention + (blocks + 1) * block(2 * channels) + ends


@pytest.mark.parametrize("scan", [False, True])
def test_the_score_network(scan):
    network, z, log_snr = UNet(blocks=2, channels=16, scan=scan), array(3, 12, 12, 1), array(3)
    params = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros(z.shape), jnp.zeros(3)))
    work = count_work(network.apply, params, z, log_snr)
    assert work.flops == 3 * 2 * score_network(blocks=2, channels=16, side=12, colours=1)


def test_a_train_step(tiny):
    """A product in the score network, and the gradients by its matrix and by z, through which encoders learn."""
    experiment, mesh = tiny(), data_mesh()
    experiment = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, network=Mixed()))
    state = abstract_state(experiment, mesh)
    images = Images(cast(Any, array(4, 4, 4, 1, dtype=jnp.uint8)))
    found = by_role(count_work(make_train_step(experiment, mesh), state, images))
    one = 2 * 4 * 16 * 16
    assert (found["forward"], found["gradient"]) == (one, 2 * one)


@dataclasses.dataclass(frozen=True)
class Mixed:
    """A network that mixes all 16 pixels by a matrix."""

    def init(self, key, z, log_snr):
        return jnp.zeros((16, 16))

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        return (z.reshape(-1, 16) @ params).reshape(z.shape)
