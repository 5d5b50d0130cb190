"""Sizes of the published models, (score network, encoder)."""

import functools
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from diffenc.config import gin_loader
from diffenc.config.gin_files import shipped_files

PUBLISHED = {
    "mnist_vdmv_8": (8_891_393, 0),
    "mnist_diffenc_8_nt": (8_891_393, 0),
    "mnist_diffenc_8_2": (8_891_393, 1_903_937),
    "cifar10_vdmv_8": (8_905_219, 0),
    "cifar10_diffenc_8_nt": (8_905_219, 0),
    "cifar10_diffenc_8_2": (8_905_219, 1_906_243),
    "cifar10_diffenc_8_4": (8_905_219, 2_744_131),
    "cifar10_vdmv_32": (30_578_179, 0),
    "cifar10_diffenc_32_2": (30_578_179, 1_906_243),
    "cifar10_diffenc_32_4": (30_578_179, 2_744_131),
    "imagenet32_vdmv_32": (122_137_603, 0),
    "imagenet32_diffenc_32_8": (122_137_603, 4_419_907),
}
TOTALS = {
    "cifar10_diffenc_8_2": 10_811_462,
    "cifar10_diffenc_8_4": 11_649_350,
    "mnist_diffenc_8_2": 10_795_330,
    "cifar10_diffenc_32_2": 32_484_422,
    "cifar10_diffenc_32_4": 33_322_310,
    "imagenet32_diffenc_32_8": 126_557_510,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_headers_state_the_size(name):
    text = (Path(__file__).parents[2] / "gin" / f"{name}.gin").read_text()
    assert re.findall(r"^# Parameters: ([\d,]+)", text, re.MULTILINE) == [f"{sum(PUBLISHED[name]):,}"]


@functools.cache
def parameters_of(plugin, image_shape):
    """The number of a network's or encoder's parameters; a network appears in several runs."""
    x, log_snr = (jax.ShapeDtypeStruct(shape, np.float32) for shape in ((1, *image_shape), (1,)))
    shapes = jax.eval_shape(plugin.init, jax.random.key(0), x, log_snr)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def load(name, *more):
    experiment = gin_loader.load_experiment([f"gin/{name}.gin", *(f"gin/{file}.gin" for file in more)], [])
    return experiment.model, experiment.dataset.image_shape


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == "mnist_diffenc_8_2" else pytest.mark.slow) for name in PUBLISHED],
)
def test_the_size_is_the_published_one(name):
    model, image_shape = load(name)
    sizes = parameters_of(model.network, image_shape), parameters_of(model.encoder, image_shape)
    assert sizes == PUBLISHED[name]
    assert sum(sizes) == TOTALS.get(name, sizes[0])


@pytest.mark.slow
def test_learned_schedules_and_paths_are_few_more_of_the_whole_model():
    few = {
        "learned_endpoints": 2,
        "learned_schedule": 2 + 3 * 32 + 1,
        "learned_path": 7,
        "vdm_released": 3075,
    }
    for more, extra in (((), 0), *(((name,), count) for name, count in few.items())):
        model, image_shape = load("mnist_diffenc_8_2", *more)
        params = jax.eval_shape(functools.partial(model.init, image_shape=image_shape), jax.random.key(0))
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 10_795_330 + extra


def test_no_run_file_is_left_out():
    files = {Path(name).stem for name in shipped_files()}
    others = {
        "quickstart",
        "mnist_small",
        "by_class",
        "learned_endpoints",
        "learned_schedule",
        "learned_path",
        "vdm_released",
        "two_heads",
        "separable",
        "mnist_diffenc_8_nt_tight",
        "cifar10_diffenc_8_nt_tight",
    }
    assert files - others == set(PUBLISHED)
