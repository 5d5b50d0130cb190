"""Every row at full scale is the published training, and flags change what they say."""

import functools
from typing import Any

import jax
import pytest

from diffenc import registry
from diffenc.config import gin_loader
from diffenc.config.serialize import config_text, find_differences
from diffenc.tools.tables import paper
from diffenc.tools.tables.scale import Scale, find_deviations

ROWS = [(table, row) for table in paper.TABLES if table != 1 for row in paper.load_rows(table)]
IDS = [f"{table}-{row.name}" for table, row in ROWS]
# table: steps, batch, and seeds by row
PUBLISHED = {
    2: (8_000_000, 128, {"VDMv-32": 3, "DiffEnc-32-4": 3}),
    3: (2_000_000, 128, dict.fromkeys([f"{model}_{noise}" for model in ("VDMv-8", "DiffEnc-8-2", "DiffEnc-8-nt") for noise in ("fixed", "trainable")], 5)),
    5: (2_000_000, 128, {"VDMv-32": 3, "DiffEnc-32-2": 3}),
    6: (1_500_000, 256, {"VDMv-32": 3, "DiffEnc-32-8": 3}),
    7: (1_300_000, 128, {"VDMv-8": 5, "DiffEnc-8-4": 3}),
}  # fmt: skip
PUBLISHED[4], PUBLISHED[8] = PUBLISHED[3], PUBLISHED[2]
PARAMETERS = {
    ("VDMv-8", "cifar10"): 8_905_219,
    ("DiffEnc-8-nt", "cifar10"): 8_905_219,
    ("DiffEnc-8-2", "cifar10"): 10_811_462,
    ("DiffEnc-8-4", "cifar10"): 11_649_350,
    ("VDMv-8", "mnist"): 8_891_393,
    ("DiffEnc-8-nt", "mnist"): 8_891_393,
    ("DiffEnc-8-2", "mnist"): 10_795_330,
    ("VDMv-32", "cifar10"): 30_578_179,
    ("DiffEnc-32-2", "cifar10"): 32_484_422,
    ("DiffEnc-32-4", "cifar10"): 33_322_310,
    ("VDMv-32", "imagenet32"): 122_137_603,
    ("DiffEnc-32-8", "imagenet32"): 126_557_510,
}


def load(row, scale=None) -> Any:
    variant = (scale or Scale()).variant(row)
    return gin_loader.load_experiment(variant.gin_files, variant.bindings)


@pytest.mark.parametrize("table", PUBLISHED)
def test_rows_and_seeds_are_the_published_ones(table):
    seeds = {row.name: len(Scale().seeds_of(row)) for row in paper.load_rows(table)}
    assert seeds == PUBLISHED[table][2]


@pytest.mark.parametrize(("table", "row"), ROWS, ids=IDS)
def test_a_row_trains_as_published(table, row):
    experiment = load(row)
    assert (experiment.steps, experiment.batch_size) == PUBLISHED[table][:2]
    name = registry.datasets.name_of(type(experiment.dataset))
    assert name == {4: "mnist", 6: "imagenet32"}.get(table, "cifar10")
    kind, blocks, *encoder = row.model.split("-")
    model = experiment.model
    assert model.network.blocks == int(blocks)
    assert registry.encoders.name_of(type(model.encoder)) == (
        "identity" if kind == "VDMv" else "nontrainable" if encoder == ["nt"] else "trainable"
    )
    if encoder and encoder != ["nt"]:
        assert model.encoder.network.blocks == int(encoder[0])
    learned = registry.schedules.name_of(type(model.schedule)) == "learned_endpoints"
    assert learned == (row.noise == "trainable")
    assert find_deviations(row, experiment, row.seeds) == []


@pytest.mark.slow
@pytest.mark.parametrize(("table", "row"), ROWS, ids=IDS)
def test_a_row_is_of_the_published_size(table, row):
    experiment = load(row)
    init = functools.partial(experiment.model.init, image_shape=experiment.dataset.image_shape)
    size = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(init, jax.random.key(0))))
    assert size == PARAMETERS[row.model, row.dataset] + 2 * (row.noise == "trainable")


SMALL = Scale(
    steps=100, seeds=2, batch_size=16, blocks=1, channels=32, encoder_channels=16, num_images=64, passes=3,
    bindings=("Experiment.ema_decay = 0.9", "Experiment.log_every = 7"),
)  # fmt: skip


@pytest.mark.parametrize("row", paper.load_rows(4), ids=lambda row: row.name)
def test_flags_change_what_they_name_and_nothing_else(row):
    small = load(row, SMALL)
    assert len(SMALL.seeds_of(row)) == 2
    assert (small.steps, small.log_every, small.evaluate_every, small.sample_every) == (100, 7, 0, 0)
    assert 0 < small.checkpoint_every <= 100
    assert (small.evaluate.num_images, small.evaluate.passes) == (64, 3)
    changed = {
        "Experiment.batch_size: 128 -> 16",
        "Experiment.ema_decay: 0.9999 -> 0.9",
        "network.unet.blocks: 8 -> 1",
        "network.unet.channels: 128 -> 32",
    }
    if row.model == "DiffEnc-8-2":
        changed.add("network.encoder_unet.channels: 64 -> 16")
        assert small.model.encoder.network.blocks == 2
    assert set(find_differences(config_text(load(row)), config_text(small))) == changed
    assert set(find_deviations(row, small, 2)) == {*changed, "steps: 2,000,000 -> 100", "seeds: 5 -> 2"}


def test_without_steps_the_cadences_stay():
    row = paper.load_rows(4)[0]
    assert load(row, Scale(batch_size=16)).evaluate_every == load(row).evaluate_every == 100_000


def test_more_seeds_or_other_measurements_are_still_the_published_training():
    row = paper.load_rows(4)[0]
    assert find_deviations(row, load(row, Scale(passes=4, num_images=100)), 7) == []
    assert find_deviations(row, load(row), 4) == ["seeds: 5 -> 4"]
    other = load(row, Scale(bindings=("dataset.mnist.folder = 'fashion'", "Experiment.seed = 3")))
    assert find_deviations(row, other, 5) == ["dataset.mnist.folder: 'mnist' -> 'fashion'"]
