"""Four devices compute what one does; in a process that has four, for XLA reads their number once."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from diffenc.checkpoint.checkpoints import Checkpoints
from diffenc.parallel import sharding
from diffenc.training.state import abstract_state

CONFTEST = str(Path(__file__).parents[2] / "conftest.py")

TRAIN = """
import dataclasses, json, pathlib, re, runpy, sys
import jax, numpy as np
from diffenc import registry
from diffenc.evaluation import commands
from diffenc.parallel import sharding
from diffenc.errors import UserError
from diffenc.training import gradient_curve, loop
from diffenc.training.state import abstract_images, abstract_state, make_train_step

plugins = runpy.run_path(sys.argv[1])
registry.networks._classes["affine"], registry.datasets._classes["dots"] = plugins["Affine"], plugins["Dots"]
experiment = plugins["told"](batch_size=16, microbatches=2, ends_stride=2, evaluate_every=12, sample_every=12)
samples = {num: type(experiment.sample)(num_timesteps=6, num=num) for num in (3, 4)}
four = sharding.data_mesh()
for count in (1, 4):
    mesh = sharding.make_mesh(count)
    for module in (loop, commands):
        module.data_mesh = lambda shape: mesh
    loop.train(experiment, pathlib.Path(sys.argv[2], str(count)))
    commands.evaluate(experiment, pathlib.Path(sys.argv[2], str(count)))
    for chosen in samples.values():
        commands.sample(dataclasses.replace(experiment, sample=chosen), pathlib.Path(sys.argv[2], str(count)))

curves = {}
for count in (1, 3, 4):
    mesh = sharding.make_mesh(count)
    params = jax.jit(lambda: experiment.init_params(jax.random.key(0)), out_shardings=sharding.replicated(mesh))()
    measurement = gradient_curve.GradientMeasurement(experiment, mesh)
    curve = measurement.update(gradient_curve.begin_gradient_curve(), params, 20)
    curves[count] = jax.tree.map(lambda leaf: np.asarray(leaf).tolist(), {**curve.squares, "counts": curve.counts})

batch = sharding.to_devices(np.arange(8 * 3).reshape(8, 3), four)
facts = {
    "curves": curves,
    "devices": four.devices.size,
    "shards": [np.asarray(shard.data).tolist() for shard in batch.addressable_shards],
    "copies": [shard.data.shape for shard in jax.device_put(np.ones(5), sharding.replicated(four)).addressable_shards],
}
lowered = make_train_step(experiment, four).lower(abstract_state(experiment, four), abstract_images(experiment, four))
crossing = re.findall(r"(all-[a-z]+|collective-[a-z]+|reduce-scatter)(?:-start)?[(]", lowered.compile().as_text())
facts["crossing"] = sorted(set(crossing))
refused = {"Experiment.batch_size": {"batch_size": 6}, "Experiment.microbatches": {"microbatches": 4}}
for name, size in {**refused, "evaluate.batch_size": {}}.items():
    other = plugins["make"](**{"batch_size": 8, "evaluate_every": 1} | size)
    if not size:
        other = plugins["make"](batch_size=8, evaluate_every=1, evaluate=type(other.evaluate)(batch_size=10))
    try:
        loop.train(other, pathlib.Path(sys.argv[2], "refused"))
    except UserError as error:
        facts[name] = str(error)
pathlib.Path(sys.argv[2], "facts.json").write_text(json.dumps(facts))
"""


ELBO = """
import re, sys
import jax, jax.numpy as jnp
from diffenc.core.model import Draws, Model
from diffenc.parallel.sharding import data_mesh, replicated, batch_sharded
from diffenc_plugins.encoders import Trainable
from diffenc_plugins.generative_means import Counterterm
from diffenc_plugins.networks import EncoderUNet, UNet
from diffenc_plugins.parameterizations import V
from diffenc_plugins.schedules import Linear

model = Model(Trainable(EncoderUNet(1, 4)), Linear(), V(), Counterterm(), UNet(2, 4, scan=sys.argv[1] == 'loop'))
mesh = data_mesh()
split = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=batch_sharded(mesh))
params = jax.eval_shape(lambda: model.init(jax.random.key(0), (8, 8, 1)))
params = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=replicated(mesh)), params)
levels = jax.ShapeDtypeStruct((8, 8, 8, 1), jnp.uint8, sharding=batch_sharded(mesh))
draws = Draws(split(8), split(8, 8, 8, 1), split(8, 8, 8, 1))
keys = jax.random.split(jax.random.key(1), 8)
elbo = lambda *a: model.elbo(*a, num_levels=17, keys=keys).total.sum()
text = jax.jit(jax.grad(elbo) if sys.argv[2] == "gradient" else elbo).lower(params, levels, draws).compile().as_text()
print(sorted(set(re.findall(r"(all-[a-z]+|collective-[a-z]+|reduce-scatter)(?:-start)?[(]", text))))
"""


def _on_four(program: str, *arguments: Path | str) -> str:
    """Standard output of a Python program that has four devices."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    process = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def four(tmp_path_factory) -> Path:
    """A folder with the same run on one device and on four, and facts.json."""
    folder = tmp_path_factory.mktemp("four")
    _on_four(TRAIN, CONFTEST, folder)
    return folder


@pytest.fixture
def facts(four):
    return json.loads((four / "facts.json").read_text())


def _rows(workdir: Path) -> list[dict]:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in row.items() if "second" not in key and key != "data_wait"}
        for row in rows
    ]


@pytest.mark.parametrize(
    ("form", "of"),
    [
        ("written out", "loss"),
        pytest.param("loop", "gradient", marks=pytest.mark.slow),
        pytest.param("written out", "gradient", marks=pytest.mark.slow),
    ],
)
def test_the_loss_of_a_split_batch_moves_no_activation(form, of):
    """Each device keeps to its own images: all that crosses is the sum over the batch."""
    assert _on_four(ELBO, form, of).strip() == "['all-reduce']"


@pytest.mark.slow
def test_taking_a_batch_in_parts_moves_no_image(facts):
    """Each device cuts its own share into parts."""
    assert facts["crossing"] == ["all-reduce"]


def test_a_batch_whose_parts_do_not_split_evenly_is_refused(facts):
    assert facts["Experiment.microbatches"] == (
        "Experiment.batch_size = 8 does not divide evenly into Experiment.microbatches = 4 parts, each "
        "split over the devices (4): take a multiple of 16, or another number of parts"
    )


def test_losses_are_those_of_one_device(four):
    one, many = _rows(four / "1"), _rows(four / "4")
    assert [row.keys() for row in one] == [row.keys() for row in many]
    assert len(one) == 5
    for a, b in zip(one, many, strict=True):
        for key, value in a.items():
            if not key.endswith("latent_mc_se"):  # rounding alone: the latent loss draws nothing
                assert b[key] == pytest.approx(value, rel=1e-5), (key, a["step"])


def test_parameters_are_those_of_one_device_and_go_back_to_one(four):
    """Checkpoints of four devices, restored here, where there is one."""
    experiment = runpy.run_path(CONFTEST)["told"](batch_size=8, microbatches=2)
    wanted = abstract_state(experiment, sharding.data_mesh())
    one, many = (Checkpoints(four / count / "checkpoints").restore(wanted).tree for count in ("1", "4"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one, many)


@pytest.mark.parametrize("count", ["3", "4"])
def test_the_gradients_over_time_are_those_of_one_device(facts, count):
    """Also on three, of which not all have an image in the last turn."""
    one, several = facts["curves"]["1"], facts["curves"][count]
    assert sum(several["counts"]) == 16
    assert min(map(max, one.values())) > 0
    for name, values in one.items():
        np.testing.assert_allclose(several[name], values, rtol=1e-4, err_msg=name)


def test_an_evaluation_is_that_of_one_device(four):
    one, many = (np.load(four / count / "evaluation.npz") for count in ("1", "4"))
    for term in ("reconstruction", "latent", "diffusion"):
        assert one[term].shape == many[term].shape == (2, 13)
        np.testing.assert_allclose(one[term], many[term], rtol=1e-3)


@pytest.mark.parametrize("num", [3, 4])
def test_samples_are_those_of_one_device(four, num):
    """Split over the devices where they divide evenly, else drawn whole on each."""
    one, many = (
        np.asarray(Image.open(four / n / f"samples/000000012_T6_n{num}_seed0.png")) for n in ("1", "4")
    )
    assert one.shape == many.shape
    assert (one != many).mean() < 0.02, "but for a level that rounding tipped over"


def test_a_batch_is_split_and_all_else_copied(facts):
    assert facts["devices"] == 4
    rows = np.arange(8 * 3).reshape(4, 2, 3)
    assert facts["shards"] == rows.tolist()
    assert facts["copies"] == [[5]] * 4


@pytest.mark.parametrize(("name", "size"), [("Experiment.batch_size", 6), ("evaluate.batch_size", 10)])
def test_a_batch_that_does_not_split_evenly_is_refused(four, facts, name, size):
    assert facts[name] == f"{name} = {size} does not divide evenly over 4 devices: take a multiple of 4"
    assert not (four / "refused").exists()


def test_one_device_takes_any_batch():
    mesh = sharding.data_mesh()
    for size in (1, 7):
        sharding.check_divisible("Experiment.batch_size", size, mesh)
    assert sharding.to_devices(np.zeros((7, 2)), mesh).shape == (7, 2)
