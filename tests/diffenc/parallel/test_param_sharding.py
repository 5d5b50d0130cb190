"""Which axis of which parameter is split, and that each parameter crosses between devices once."""

import json
import os
import re
import subprocess
import sys
from math import prod

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from diffenc.config.settings import MeshConfig
from diffenc.errors import UserError
from diffenc.parallel import param_sharding
from diffenc.parallel.sharding import data_mesh, make_mesh


def shapes(**of):
    return {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in of.items()}


@pytest.mark.parametrize(
    ("shape", "fsdp", "spec"),
    [
        ((3, 3, 128, 256), 4, P(None, None, None, "fsdp")),
        ((3, 3, 256, 128), 4, P(None, None, "fsdp", None)),
        ((128, 128), 4, P(None, "fsdp")),
        ((129, 64), 4, P(None, "fsdp")),
        ((129, 65), 4, P()),
        ((4096,), 4, P("fsdp")),
        ((4092,), 4, P()),  # small
        ((), 4, P()),
        ((128, 128), 1, P()),
    ],
)
def test_the_longest_axis_that_divides_is_split(shape, fsdp, spec):
    assert param_sharding.specs_of(shapes(w=shape), MeshConfig(fsdp=fsdp))["w"] == spec


def test_exceptions_go_by_name_and_the_first_that_fits_counts():
    params = {"network": shapes(a=(64, 128), b=(64, 128)), "encoder": shapes(a=(64, 128), tiny=(2, 2))}
    rules = (("network/a", 0), ("*/a", None), ("*/tiny", 1))
    specs = param_sharding.specs_of(params, MeshConfig(fsdp=2, rules=rules))
    assert specs == {
        "network": {"a": P("fsdp", None), "b": P(None, "fsdp")},
        "encoder": {"a": P(), "tiny": P(None, "fsdp")},
    }


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (("nothing", 0), "mesh.rules: 'nothing' matches no parameter; they have names like 'a/w'"),
        (("a/w", 0), "axis 0 of the shape (3, 128) does not split into mesh.fsdp = 2 parts"),
        (("a/w", 2), "axis 2 of the shape (3, 128) does not split"),
    ],
)
def test_a_rule_that_cannot_be_followed_is_refused(rule, says):
    with pytest.raises(UserError, match=re.escape(says)):
        param_sharding.specs_of({"a": shapes(w=(3, 128))}, MeshConfig(fsdp=2, rules=(rule,)))


def test_averages_and_moments_lie_where_their_parameter_does():
    """In a state of any structure; what has another shape, or is no parameter's, is copied."""
    mesh = make_mesh()
    params = {"network": shapes(w=(64, 128), b=(8,))}
    factored = {"network": shapes(w=(64,), b=(8,))}
    state = {
        "step": jax.ShapeDtypeStruct((), np.int32),
        "ema": params,
        "opt": [(params, factored), params["network"]],
    }
    placed = param_sharding.shardings_of(state, params, mesh, MeshConfig(fsdp=2))
    got = jax.tree.map(lambda sharding: sharding.spec, placed)
    split = {"network": {"w": P(None, "fsdp"), "b": P()}}
    copied = {"network": {"w": P(), "b": P()}}
    assert got == {"step": P(), "ema": split, "opt": [(split, copied), {"w": P(), "b": P()}]}


def test_a_mesh_that_is_not_of_these_devices_is_refused():
    assert data_mesh().devices.shape == (1, 1)
    with pytest.raises(UserError, match=r"mesh.data = 0 and mesh.fsdp = 2 do not arrange the 1 devices"):
        data_mesh(MeshConfig(fsdp=2))
    with pytest.raises(UserError, match=r"mesh.data = 3 and mesh.fsdp = 1"):
        data_mesh(MeshConfig(data=3))
    with pytest.raises(UserError, match=r"mesh.fsdp = 0: must be at least 1"):
        MeshConfig(fsdp=0)


CROSSING = """
import json, re, sys
import jax, jax.numpy as jnp
from diffenc.config.experiment import Experiment
from diffenc.core.model import Model
from diffenc.config.settings import MeshConfig
from diffenc.interfaces import NO_CONTEXT
from diffenc.parallel.sharding import data_mesh
from diffenc.training.state import abstract_images, abstract_state, make_train_step
from diffenc_plugins.datasets import Digits
from diffenc_plugins.encoders import Trainable
from diffenc_plugins.generative_means import Counterterm
from diffenc_plugins.optimizers import AdamW
from diffenc_plugins.parameterizations import V
from diffenc_plugins.schedules import LearnedEndpoints

class Perceptron:
    def init(self, key, z, log_snr):
        keys = jax.random.split(key, 2)
        return {"in": jax.random.normal(keys[0], (64, 128)), "b": jnp.zeros(128), "out": jax.random.normal(keys[1], (128, 64))}

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        h = jnp.tanh(z.reshape(-1, 64) @ params["in"] + params["b"][None] * log_snr[:, None])
        return z + (h @ params["out"]).reshape(z.shape)

model = Model(Trainable(Perceptron()), LearnedEndpoints(8.0, -5.0), V(), Counterterm(), Perceptron())
experiment = Experiment(model, Digits(), AdamW(), batch_size=8, mesh=MeshConfig(fsdp=int(sys.argv[1])))
mesh = data_mesh(experiment.mesh)
state = abstract_state(experiment, mesh)
text = make_train_step(experiment, mesh).lower(state, abstract_images(experiment, mesh)).compile().as_text()
found = re.findall(r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?[(]", text)
split = [leaf.size for leaf in jax.tree.leaves(state.params) if not leaf.sharding.is_fully_replicated]
print(json.dumps([found, split, sum(leaf.size for leaf in jax.tree.leaves(state.params))]))
"""


def crossing(fsdp: int) -> tuple[dict[str, list[int]], list[int], int]:
    """Operation -> scalars that each one gives a device; sizes of the parameters that are split; of all together."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    process = subprocess.run(
        [sys.executable, "-c", CROSSING, str(fsdp)],
        env=os.environ | {"XLA_FLAGS": flags}, capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    found, split, total = json.loads(process.stdout)
    sizes: dict[str, list[int]] = {}
    for shape, operation in found:
        numbers = [
            prod(map(int, filter(None, dims.split(",")))) for dims in re.findall(r"\w+\[([\d,]*)\]", shape)
        ]
        sizes.setdefault(operation, []).append(sum(numbers))
    return sizes, split, total


@pytest.mark.slow
def test_copied_parameters_cross_in_one_sum():
    """With the three terms of the loss, and norms. The encoder is used three times a step, and summed once."""
    sizes, split, total = crossing(fsdp=1)
    assert split == []
    assert set(sizes) == {"all-reduce"}
    large = [size for size in sizes["all-reduce"] if size > 100]
    assert len(large) == 1
    assert sum(sizes["all-reduce"]) - total in range(13)


def test_split_parameters_are_gathered_once_and_their_gradients_scattered_once():
    sizes, split, total = crossing(fsdp=4)
    assert split == 4 * [64 * 128]
    assert set(sizes) == {"all-reduce", "all-gather", "reduce-scatter"}
    assert sorted(sizes["all-gather"]) == sorted(split)
    assert sorted(4 * size for size in sizes["reduce-scatter"]) == sorted(split)
    assert sum(sizes["all-reduce"]) - (total - sum(split)) in range(13), "what is not split, terms and norms"
