"""--mode=fid on a trained run: its figures recomputed from the samples beside them, and what a kill leaves."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy.linalg import sqrtm

from diffenc import registry
from diffenc.config.fid_settings import Fid
from diffenc.config.settings import Sample
from diffenc.data.sources import ArraySource
from diffenc.errors import UserError
from diffenc.evaluation.restore_params import restore_ema
from diffenc.evaluation.sample_images import ImageSampler
from diffenc.parallel.sharding import data_mesh
from diffenc.runtime.progress import Progress
from diffenc.tools.fid import fid
from diffenc.tools.fid.extraction import Extractor
from diffenc.tools.fid.kid import kernel_distance
from diffenc.tools.fid.split_features import summarize_split
from diffenc.training import loop
from diffenc_plugins.conditionings import ByClass
from diffenc_plugins.features import Inception
from diffenc_plugins.variances import Fixed

SPREAD = np.array([0, 64, 128, 191, 255])  # 5 levels over 0 .. 255


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Some pixels of an image."""

    places: tuple[int, ...] = (0, 5, 6, 11)

    num_features: int = 4

    def metric(self):
        return "fd_pixels"

    def identity(self):
        return f"pixels {self.places}"

    def load(self):
        def chosen(places, images):
            return images.reshape(len(images), -1)[:, places].astype(jnp.float32)

        return Partial(chosen, jnp.array(self.places))


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fid") / "run"
    loop.train(tiny(ema_decay=0.99, steps=3), folder)
    return folder


@pytest.fixture
def workdir(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(registry.features._classes, "pixels", Pixels)
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def experiment(tiny):
    def make(sample=Sample(num_timesteps=6, num=3), **settings):
        settings = {"features": Pixels(), "nums": (6, 11), "batch_size": 4, **settings}
        return tiny(ema_decay=0.99, steps=3, sample=sample, fid=Fid(**settings))

    return make


@pytest.fixture
def drawn(monkeypatch):
    """How often samples were drawn; after `drawn.stop_after` it is as if the process were stopped."""

    class Drawn(list):
        stop_after = 10**9

    calls, draw = Drawn(), ImageSampler.draw

    def counted(self, params, after_stretch, key, labels):
        def stretch():
            after_stretch()
            if len(calls) >= calls.stop_after:
                raise KeyboardInterrupt

        result = draw(self, params, stretch, key, labels)
        calls.append(result)
        return result

    monkeypatch.setattr(ImageSampler, "draw", counted)
    return calls


def samples(workdir):
    (folder,) = (workdir / "fid").iterdir()
    return np.concatenate([np.load(path) for path in sorted(folder.glob("*.npy"))])


def vectors(images):
    return SPREAD[images.reshape(len(images), 16)[:, [0, 5, 6, 11]]].astype(float)


def frechet(one, other):
    covariances = [np.cov(each, rowvar=False) for each in (one, other)]
    shift = np.square(one.mean(axis=0) - other.mean(axis=0)).sum()
    return shift + np.trace(sum(covariances) - 2 * np.real(sqrtm(covariances[0] @ covariances[1])))


def test_all_distances_follow_from_the_samples_beside_them(experiment, workdir, capsys, read_record):
    settings = experiment()
    figures = fid.fid(settings, workdir)
    assert read_record(workdir / "fid.json") == figures
    assert read_record(workdir / "fids" / "0001.json") == figures
    images, out = samples(workdir), capsys.readouterr().out
    places = fid.subset_order(np.array([6, 11]), 0)
    assert images.shape == (12, 4, 4, 1)
    assert len(np.unique(images.reshape(12, 16), axis=0)) > 6, "no chunk is another one again"
    asked = [(num, split) for num in (6, 11) for split in ("train", "test")]
    assert [(row["num"], row["split"]) for row in figures["distances"]] == asked
    for row in figures["distances"]:
        split = summarize_split(settings.dataset, row["split"], settings.fid, Extractor(Pixels()))
        mine, theirs = vectors(images[: row["num"]]), vectors(settings.dataset.source(row["split"]).images)
        assert row["distance"] == pytest.approx(frechet(mine, theirs), rel=1e-6)
        kernel = kernel_distance(mine[np.argsort(places[: row["num"]])], split.some, 1000)
        assert (row["kid"], row["kid_se"]) == (pytest.approx(kernel.value), pytest.approx(kernel.error))
        assert row["kid_num"] == {6: 6, 11: 10}[row["num"]], "blocks of two"
        assert f"{row['distance']:.6g}" in out
    assert figures["metric"] == "fd_pixels"
    assert "fd_pixels" in out


def test_places_are_random_and_the_first_samples_have_the_first():
    found = fid.subset_order(np.array([300, 1000]), 5)
    for num in (300, 1000):
        assert sorted(found[:num]) == list(range(num))
    for part in (found[:300], found[300:]):
        assert 0.4 < np.mean(np.diff(part) > 0) < 0.6
    np.testing.assert_array_equal(found[:300], fid.subset_order(np.array([300]), 5))
    assert (found != fid.subset_order(np.array([300, 1000]), 6)).mean() > 0.9


class InTurn(fid.SampleCache):
    """Samples whose four features are those of classes in turn, four times the identity."""

    def __init__(self, folder):
        self.folder, self.size = folder, 40

    def progress(self, num):
        return fid.Progress("", num)

    def chunk(self, index, progress):
        levels = np.zeros((40, 16), np.uint8)
        levels[np.arange(40), np.array([0, 5, 6, 11])[np.arange(40) % 4]] = 4
        return levels.reshape(40, 4, 4, 1)


def test_the_order_in_which_samples_come_does_not_decide_the_kernel_distance(experiment, tmp_path):
    settings = experiment(nums=(1200,), kid_block=8)
    (found,) = fid.summarize_samples(settings.fid, 5, InTurn(tmp_path), Extractor(Pixels()))
    scaled = found.some / 255
    assert len(np.unique(scaled, axis=0)) == 4
    others = np.eye(4)[np.random.default_rng(0).integers(0, 4, 1200)]
    kernel = kernel_distance(scaled, others, 8)
    assert abs(kernel.value) < 4 * (kernel.error or 0)


def test_classes_are_drawn_by_the_shares_of_train_or_as_they_are_bound(tiny, monkeypatch, workdir):
    @dataclasses.dataclass(frozen=True)
    class Uneven(type(tiny().dataset)):
        """Three in four are of class 2, none of class 1."""

        def source(self, split):
            images = super().source(split).images
            return ArraySource(images, np.where(np.arange(len(images)) % 4, 2, 0).astype(np.int32))

    monkeypatch.setitem(registry.datasets._classes, "uneven", Uneven)
    blind = tiny().model
    network = dataclasses.replace(blind.network, classes=3)
    told = dataclasses.replace(blind, network=network, conditioning=ByClass())
    seen = []

    def draw(self, params, after_stretch, key, labels):
        seen.append(labels)
        return np.zeros((64, 4, 4, 1), np.int32)

    monkeypatch.setattr(ImageSampler, "draw", draw)

    def draws(workdir, classes=None, model=told):
        settings = tiny(
            model=model,
            dataset=Uneven(),
            sample=Sample(num_timesteps=6, classes=classes),
            fid=Fid(batch_size=64),
        )
        made = fid.SampleCache(settings, data_mesh(), {}, workdir, 3)
        for index in (0, 1):
            made.chunk(index, made.progress(128))
        return made.metadata.get("classes_drawn")

    assert draws(workdir) == "at random, by the shares of train"
    assert draws(workdir / "again") == "at random, by the shares of train"
    assert set(seen[0]) == {0, 2}
    assert 0.6 < np.mean(np.concatenate(seen) == 2) < 0.9, "17 of 23 are"
    assert (seen[0] != seen[1]).any()
    for k in (0, 1):
        np.testing.assert_array_equal(seen[k], seen[k + 2])
    assert draws(workdir, (2, 0, 1)) == "sample.classes in turn"
    np.testing.assert_array_equal(np.concatenate(seen[4:]), np.resize([2, 0, 1], 128))
    assert draws(workdir, model=blind) is None
    assert seen[6:] == [None, None]


def test_how_far_the_features_of_samples_that_are_there_have_come_is_shown(experiment, workdir, monkeypatch):
    shown = []

    class Shown(Progress):
        def __init__(self, task, total):
            super().__init__(task, total)
            self.task, self.total, self.done = task, total, 0
            shown.append(self)

        def __call__(self):
            self.done += 1

    fid.fid(experiment(), workdir)
    monkeypatch.setattr(fid, "Progress", Shown)
    fid.fid(experiment(features=Pixels((1, 2, 3, 4))), workdir)
    fid.fid(experiment(), workdir)
    told = [(each.total, each.done) for each in shown if each.task == "features of samples"]
    assert told == [(3, 3), (0, 0)]


def test_what_the_figures_are_of_is_said(experiment, workdir):
    figures = fid.fid(experiment(seed=7), workdir)
    said = {
        "metric": "fd_pixels",
        "features_identity": "pixels (0, 5, 6, 11)",
        "num_features": 4,
        "dataset": "dots",
        "step": 3,
        "seed": 7,
        "batch_size": 4,
        "num_images": None,
        "kid_images": 10_000,
        "kid_block": 1000,
    }
    assert {key: figures[key] for key in said} == said
    sampling = {"num_timesteps": 6, "times": "equal", "variance": "equal", "sampler": "ancestral"}
    assert figures["sampling"] == sampling | {"classes": None, "guidance": 0.0}
    assert figures["features"].startswith("pixels(places=(0, 5, 6, 11)")
    assert {split: (of["num_images"], of["fingerprint"]) for split, of in figures["images"].items()} == {
        "train": (23, "train of dots"),
        "test": (13, "test of dots"),
    }
    assert len(figures["config_hash"]) == 64
    assert "classes_drawn" not in figures
    part = fid.fid(experiment(seed=7, num_images=5), workdir)
    assert (part["num_images"], part["images"]["train"]["num_images"]) == (5, 5)


def test_samples_are_of_the_averaged_model_by_the_chosen_sampler(experiment, workdir):
    settings = experiment(nums=(4,), sample=Sample(num_timesteps=3, num=1, sampler="ddim"))
    fid.fid(settings, workdir)
    mesh = data_mesh()
    ema, _ = restore_ema(settings, workdir, mesh, None)
    (folder,) = (workdir / "fid").iterdir()
    key = jax.random.fold_in(fid.root_key(0, "fid"), 0)
    alone = dataclasses.replace(settings.sampling, num=4)
    images = ImageSampler(settings.model, settings.dataset, alone, mesh).draw(ema, lambda: None, key)
    np.testing.assert_array_equal(np.load(folder / "000000.npy"), images)
    assert json.loads((folder / "of.json").read_text())["sampling"]["sampler"] == "ddim"


def test_stopped_it_goes_on_and_ends_the_same(experiment, workdir, drawn, tmp_path):
    other = Path(shutil.copytree(workdir, tmp_path / "other"))
    whole = fid.fid(experiment(), other)
    del drawn[:]
    drawn.stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        fid.fid(experiment(), workdir)
    assert len(drawn) == 2
    assert not (workdir / "fid.json").exists()
    drawn.stop_after = 10**9
    assert fid.fid(experiment(), workdir) == whole
    assert len(drawn) == 3
    np.testing.assert_array_equal(samples(workdir), samples(other))


def test_more_samples_and_other_features_are_had_from_those_that_are_there(experiment, workdir, drawn):
    fid.fid(experiment(), workdir)
    first = samples(workdir)
    fid.fid(experiment(nums=(6, 17)), workdir)
    assert len(drawn) == 3 + 2
    np.testing.assert_array_equal(samples(workdir)[:12], first)
    figures = fid.fid(experiment(nums=(17,), features=Pixels((1, 2, 3, 4))), workdir)
    assert len(drawn) == 5
    assert [row["num"] for row in figures["distances"]] == [17, 17]
    mine = SPREAD[samples(workdir)[:17].reshape(17, 16)[:, 1:5]].astype(float)
    theirs = SPREAD[experiment().dataset.source("train").images.reshape(23, 16)[:, 1:5]].astype(float)
    assert figures["distances"][0]["distance"] == pytest.approx(frechet(mine, theirs), rel=1e-6)
    assert len(list((workdir / "fids").glob("*.json"))) == 3


def test_samples_drawn_otherwise_lie_elsewhere(experiment, workdir):
    def folder(step=3, **settings):
        return fid.SampleCache(experiment(**settings), data_mesh(), {}, workdir, step).folder

    others = [
        folder(),
        folder(step=2),
        folder(seed=1),
        folder(batch_size=6),
        folder(sample=Sample(num_timesteps=5)),
        folder(sample=Sample(num_timesteps=6, sampler="ddim")),
        folder(sample=Sample(num_timesteps=6, variance=Fixed(0.5))),
    ]
    with jax.default_matmul_precision("F16_F16_F32"):
        others.append(folder())
    assert len(set(others)) == len(others)
    with jax.default_matmul_precision("highest"):  # what a CPU multiplies in anyway
        assert (folder() == others[0]) is (jax.default_backend() == "cpu")
    assert (
        folder()
        == folder(sample=Sample(num_timesteps=6, num=9, seed=5))
        == folder(nums=(2,), splits=("test",))
    )


@pytest.mark.slow
def test_a_damaged_chunk_is_drawn_again(experiment, workdir, drawn):
    whole = fid.fid(experiment(), workdir)
    file = next((workdir / "fid").rglob("000001.npy"))
    file.write_bytes(b"")
    for part in (workdir / "fid").rglob("*/*/000001.npy"):
        part.unlink()
    assert fid.fid(experiment(), workdir) == whole
    assert len(drawn) == 4


def test_without_the_weights_nothing_is_drawn(experiment, workdir, drawn):
    for features in (None, Inception("absent.pth")):
        with pytest.raises(UserError, match=r"bind features\.inception\.weights"):
            fid.fid(experiment(features=features), workdir)
    assert not (workdir / "fid").exists()
    assert drawn == []


def test_images_of_two_channels_are_refused(experiment, workdir):
    @dataclasses.dataclass(frozen=True)
    class Two(type(experiment().dataset)):
        image_shape = (4, 4, 2)

    with pytest.raises(UserError, match="for images of 1 or 3 channels, and these have 2"):
        fid.choose_features(experiment().fid, Two().image_shape)
