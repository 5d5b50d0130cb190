"""--mode=compress and decompress on trained runs: pixels compared here, and bits with what evaluation measures."""

import dataclasses
import shutil

import numpy as np
import pytest

from diffenc import registry
from diffenc.compression import commands, trained_chain
from diffenc.compression.agreement import Probe
from diffenc.compression.stream import CodedImages, read_stream, write_stream
from diffenc.config.settings import Compress, Evaluate
from diffenc.data.sources import ArraySource, subsample
from diffenc.errors import UserError
from diffenc.evaluation import commands as evaluation
from diffenc.evaluation import fit_variance
from diffenc.export import export
from diffenc.training import loop
from diffenc_plugins.conditionings import ByClass
from diffenc_plugins.encoders import Trainable
from diffenc_plugins.stochasticities import Constant
from diffenc_plugins.variances import Fitted

T, COUNT = 30, 250


@dataclasses.dataclass(frozen=True)
class ManyDots:
    """4x4x1 images in 5 levels: 23 to train on, 260 to test on. While they are `absent`, none can be read."""

    absent = False

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return 4, 4, 1

    @property
    def num_levels(self) -> int:
        return 5

    @property
    def num_classes(self) -> int:
        return 3

    def source(self, split: str) -> ArraySource:
        assert not self.absent
        count = {"train": 23, "test": 260}[split]
        images = np.random.default_rng(count).integers(0, 5, (count, 4, 4, 1)).astype(np.uint8)
        return ArraySource(images, np.arange(len(images), dtype=np.int32) % 3)

    def fingerprint(self, split: str) -> str:
        assert not self.absent
        return f"{split} of many dots"


def make(tiny, told=False, compress=None, **evaluate):
    """An experiment of these dots, T = 30."""
    base = tiny(steps=3)
    model = base.model
    if told:
        affine = dataclasses.replace(model.network, classes=3)
        model = dataclasses.replace(model, encoder=Trainable(affine), network=affine, conditioning=ByClass())
    evaluate = {"num_timesteps": T, "num_images": COUNT, "passes": 30, "batch_size": 125, **evaluate}
    return dataclasses.replace(
        base,
        model=model,
        dataset=ManyDots(),
        evaluate=Evaluate(**evaluate),
        compress=compress or Compress(batch_size=60, bins=8),
    )


@pytest.fixture(scope="module", autouse=True)
def _many_dots():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.datasets._classes, "many_dots", ManyDots)
        yield


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """The run of `make(tiny, told)`."""
    runs = {}

    def find(told):
        if told not in runs:
            runs[told] = tmp_path_factory.mktemp("trained") / "run"
            loop.train(make(tiny, told), runs[told])
        return runs[told]

    return find


CASES = {
    "equal variances": ({}, {}),
    "told classes": ({"told": True}, {}),
    "another path, fitted variances": ({}, {"stochasticity": Constant(0.6), "variance": Fitted()}),
}


@pytest.fixture(scope="module", params=CASES.values(), ids=[*CASES])
def coded(request, tiny, trained, tmp_path_factory):
    """An experiment, its workdir with a stream, the record of that, and the bits/dim that evaluation measures."""
    model, evaluate = request.param
    experiment = make(tiny, **model, **evaluate)
    workdir = tmp_path_factory.mktemp("coded") / "run"
    shutil.copytree(trained(model.get("told", False)), workdir)
    if "variance" in evaluate:
        fit_variance.fit_variance(experiment, workdir)
    record = commands.compress(experiment, workdir)
    return experiment, workdir, record, evaluation.evaluate(experiment, workdir)


def sent(experiment):
    """The images and labels that were compressed."""
    source = subsample(experiment.dataset.source("test"), COUNT, 0)
    return source.__getitems__(np.arange(COUNT))


def test_bits_are_the_bound_of_as_many_steps(coded):
    """Over five seeds the chains of these images spread by 0.3 to 0.6 %, and a model of three steps takes 1 % more than its bound.

    A cell far from q's mean has a 2^-24 of its mass at least, and what a rough model makes of such a latent is dear;
    test_bits_back has the closed form, to 1 %.
    """
    _, _, record, measured = coded
    assert record["bpd_net"] == pytest.approx(measured["bpd"], rel=0.03), "one chain of each image"
    assert measured["bpd_mc_se"] < 0.005 * measured["bpd"]


def test_the_record_says_what_the_file_is_made_of(coded, read_record):
    experiment, workdir, record, _ = coded
    assert read_record(workdir / "compression.json") == record
    file = workdir / "compressed.diffenc"
    assert record["file_bytes"] == file.stat().st_size
    header, words = read_stream(file)
    label_bits = COUNT * np.log2(3) if experiment.model.condition_metadata() else 0
    assert record.get("label_bits", 0) == pytest.approx(label_bits)
    bits = record["initial_bits"] + record["net_bits"] + label_bits
    assert abs(32 * len(words) - bits) <= 33
    with np.load(workdir / "compression.npz") as arrays:
        assert arrays["net_bits"].shape == (5,)
        assert arrays["net_bits"].sum() == pytest.approx(record["net_bits"] + label_bits)
    lattice_bits = sum(np.log2(each.std_q * np.sqrt(2 * np.pi * np.e)) for each in header.chain.lattices(8))
    assert record["initial_bits"] == pytest.approx(60 * 16 * lattice_bits, rel=0.01)
    assert (record["T"], record["num_images"], record["bins"], record["batch_size"]) == (T, COUNT, 8, 60)


def test_every_image_comes_back_without_fits_data_or_settings(coded, tiny, tmp_path, monkeypatch):
    """Another batch size, T, variance and path are bound, and the run's fits and data set are gone."""
    experiment, workdir, _, _ = coded
    expected = sent(experiment)
    elsewhere = tmp_path / "run"
    shutil.copytree(workdir, elsewhere)
    shutil.rmtree(elsewhere / "fits", ignore_errors=True)
    other = dataclasses.replace(
        experiment,
        evaluate=Evaluate(batch_size=9, num_timesteps=3),
        compress=Compress(batch_size=7, bins=3, seed=8, decoded=str(tmp_path / "images.npz")),
    )
    monkeypatch.setattr(ManyDots, "absent", True)
    assert commands.decompress(other, elsewhere) == tmp_path / "images.npz"
    with np.load(tmp_path / "images.npz") as found:
        np.testing.assert_array_equal(found["images"], expected["image"])
        assert ("labels" in found) == bool(experiment.model.condition_metadata())
        if "labels" in found:
            np.testing.assert_array_equal(found["labels"], expected["label"])


@pytest.fixture(scope="module")
def plain(tiny, trained, tmp_path_factory):
    """An experiment, and a workdir with a stream of 30 images."""
    experiment = make(tiny, num_images=30, compress=Compress(batch_size=60, bins=8))
    workdir = tmp_path_factory.mktemp("plain") / "run"
    shutil.copytree(trained(False), workdir)
    commands.compress(experiment, workdir)
    return experiment, workdir


def test_an_export_decodes_as_its_run_does(plain, tmp_path):
    experiment, workdir = plain
    folder = shutil.copytree(export.export(experiment, workdir), tmp_path / "theirs")
    file = shutil.copy(workdir / "compressed.diffenc", tmp_path / "file")
    other = dataclasses.replace(experiment, compress=Compress(file=str(file)))
    with np.load(commands.decompress(other, folder)) as found:
        np.testing.assert_array_equal(
            found["images"], subsample(ManyDots().source("test"), 30, 0).__getitems__(np.arange(30))["image"]
        )


OTHER = "0" * 64
REFUSED = {
    "weights": ({"weights": OTHER}, r"encoded by another model \(of other weights\)"),
    "config": ({"config_hash": OTHER}, r"another model \(of other config\)"),
    "levels": ({"num_levels": 6, "num_classes": 3}, r"of other levels, classes"),
    "jaxlib": ({"environment": "jaxlib"}, r"was encoded with jaxlib 0\.0, and here there is jaxlib \d"),
    "devices": ({"environment": "devices"}, r"was encoded with devices 0\.0, and here .* 1 x cpu"),
    "code": ({"program": OTHER}, "another version of the code"),
    "digits": ({"results": OTHER}, "a probe of the model gives other digits here"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_another_model_or_machine_is_refused_before_anything_is_decoded(
    plain, tmp_path, monkeypatch, changes, message
):
    experiment, workdir = plain
    header, words = read_stream(workdir / "compressed.diffenc")
    if "environment" in changes:
        changes = {"environment": {**header.environment, changes["environment"]: "0.0"}}
    write_stream(tmp_path / "file", CodedImages(dataclasses.replace(header, **changes), words))
    out = tmp_path / "images.npz"
    other = dataclasses.replace(experiment, compress=Compress(file=f"{tmp_path}/file", decoded=str(out)))
    monkeypatch.setattr(commands, "decode_images", lambda *_: pytest.fail("decoded"))
    with pytest.raises(UserError, match=message):
        commands.decompress(other, workdir)
    assert not out.exists()


def test_a_difference_that_the_probe_does_not_find_ends_in_an_error_and_no_file(plain, tmp_path, monkeypatch):
    experiment, workdir = plain
    header, _ = read_stream(workdir / "compressed.diffenc")
    means = trained_chain.TrainedChain.generative_mean
    monkeypatch.setattr(
        trained_chain.TrainedChain,
        "generative_mean",
        lambda self, index, z: means(self, index, z) * (1 + 1e-3 * (index == 2)),
    )
    monkeypatch.setattr(commands, "probe", lambda chain: Probe(header.program, header.results))
    out = tmp_path / "images.npz"
    other = dataclasses.replace(experiment, compress=Compress(decoded=str(out)))
    with pytest.raises(UserError, match="other values than encoding for batch 1 of 1"):
        commands.decompress(other, workdir)
    assert not out.exists()


def test_continuous_time_is_refused(plain):
    experiment, workdir = plain
    continuous = dataclasses.replace(experiment, evaluate=Evaluate(num_timesteps=0))
    with pytest.raises(UserError, match="--mode=compress needs T: give --num_timesteps=T"):
        commands.compress(continuous, workdir)
