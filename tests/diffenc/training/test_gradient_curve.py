"""Times of training drawn by the size of the gradient: what is measured, on a model whose gradients are known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc.core.model import Model
from diffenc.data.sources import ArraySource
from diffenc.errors import UserError
from diffenc.interfaces import NO_CONTEXT
from diffenc.parallel.sharding import data_mesh
from diffenc.runtime.signals import Interrupted
from diffenc.training import gradient_curve, hooks
from diffenc.training.gradient_curve import (
    BINS,
    DECAY,
    MEASURED_IMAGES,
    PRIOR_COUNT,
    SHARES,
    GradientCurve,
    begin_gradient_curve,
)
from diffenc.training.loop import train
from diffenc.workdir import loss_curves
from diffenc_plugins.encoders import Identity
from diffenc_plugins.generative_means import VDM
from diffenc_plugins.parameterizations import X
from diffenc_plugins.schedules import Linear
from diffenc_plugins.time_samplers import ImportanceByGradient

IMAGE = np.random.default_rng(0).integers(0, 5, (4, 4, 1))


@dataclasses.dataclass(frozen=True)
class Blind:
    """An estimate that is the same for every image and noise level: b."""

    def init(self, key, z, log_snr):
        return {"b": jnp.ones(z.shape[1:])}

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        return jnp.broadcast_to(params["b"][None], z.shape)


def test_sizes_weigh_the_groups_against_each_other():
    """By hand: each group's share of its own integral, however large its gradients are."""
    encoder, others = np.array([1.0, 4.0, 1.0, 2.0]), np.array([900.0, 0.0, 100.0, 0.0])
    counts = np.array([2.0, 4.0, 1.0, 1.0])

    def share(squares):
        means = (squares + PRIOR_COUNT * squares.sum() / counts.sum()) / (counts + PRIOR_COUNT)
        return means / means.mean()

    for factor in (1.0, 1e6):
        curve = GradientCurve(
            {"encoder": jnp.asarray(factor * encoder), "others": jnp.asarray(others)}, jnp.asarray(counts)
        )
        want = np.sqrt(SHARES["encoder"] * share(encoder) + SHARES["others"] * share(others))
        np.testing.assert_allclose(gradient_curve.gradient_sizes(curve), want, rtol=1e-6)
    only = GradientCurve({"encoder": jnp.zeros(4), "others": jnp.asarray(others)}, jnp.asarray(counts))
    np.testing.assert_allclose(
        gradient_curve.gradient_sizes(only), np.sqrt(SHARES["others"] * share(others)), rtol=1e-6
    )
    np.testing.assert_array_equal(gradient_curve.gradient_sizes(begin_gradient_curve()), np.ones(BINS))


@dataclasses.dataclass(frozen=True)
class OneImage:
    """Images that are all the same."""

    image_shape = IMAGE.shape
    num_levels = 5
    num_classes = 1

    def source(self, split):
        return ArraySource(np.stack([IMAGE] * 9).astype(np.uint8), np.zeros(9, np.int32))

    def fingerprint(self, split):
        return split


def test_measured_is_the_norm_of_each_images_gradient(tiny):
    """-1/2 dSNR/dt || b - x ||^2 has the gradient -dSNR/dt (b - x) in b: in each bin, its square's mean over t by quadrature."""
    model = Model(Identity(), Linear(2.0, -2.0), X(), VDM(), Blind())
    experiment, mesh = tiny(model=model, dataset=OneImage()), data_mesh()
    measurement, curve = gradient_curve.GradientMeasurement(experiment, mesh), begin_gradient_curve()
    params = jax.jit(lambda: experiment.init_params(jax.random.key(0)))()
    for step in (20, 40, 60):
        curve = measurement.update(curve, params, step)
    # of three measurements, as many images in each bin
    want_count = MEASURED_IMAGES / BINS * (1 + DECAY + DECAY**2)
    np.testing.assert_allclose(curve.counts, want_count, rtol=1e-5)
    t = (np.arange(BINS * 1000) + 0.5) / (BINS * 1000)
    rate = 4 * np.exp(2 - 4 * t) / (IMAGE.size * np.log(2))
    residual = 1 - ((2 * IMAGE + 1) / 5 - 1.0)
    means = np.mean(np.square(rate).reshape(BINS, -1), axis=1) * np.sum(np.square(residual))
    # a bin is a sixteenth of t, over which the square of the rate changes by exp(1/2)
    np.testing.assert_allclose(curve.squares["others"] / curve.counts, means, rtol=0.3)
    np.testing.assert_allclose(
        np.sum(np.asarray(curve.squares["others"] / curve.counts)), np.sum(means), rtol=0.2
    )
    np.testing.assert_array_equal(curve.squares["encoder"], 0)


def test_a_run_that_stops_goes_on_with_its_curve(tiny, tmp_path, monkeypatch):
    """Measured after every second step; stopped after a third."""
    monkeypatch.setattr(hooks.MeasureGradients, "every", 2)
    experiment = tiny(time_sampler=ImportanceByGradient(), steps=6, checkpoint_every=3)
    whole = train(experiment, tmp_path / "whole").state
    monkeypatch.setattr(hooks.Checkpoint, "__call__", stop_after(3, hooks.Checkpoint.__call__))
    with pytest.raises(Interrupted):
        train(experiment, tmp_path / "parts")
    monkeypatch.undo()
    monkeypatch.setattr(hooks.MeasureGradients, "every", 2)
    parts = train(experiment, tmp_path / "parts").state
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    assert isinstance(whole.curve, GradientCurve)
    # after steps 2, 4 and 6
    count = MEASURED_IMAGES * (1 + DECAY + DECAY**2)
    np.testing.assert_allclose(np.sum(np.asarray(whole.curve.counts)), count, rtol=1e-5)
    assert all(
        np.all(np.asarray(squares) >= 0) and np.any(squares) for squares in whole.curve.squares.values()
    )


def stop_after(step, hook):
    """Returns `hook`, which after its work at `step` finds the run asked to stop."""

    def stopping(self, session):
        hook(self, session)
        if session.step == step:
            raise Interrupted(15)

    return stopping


def test_evaluation_has_no_gradients(tmp_path):
    with pytest.raises(UserError, match=r"bind it to Experiment\.time_sampler"):
        loss_curves.bind_curve(ImportanceByGradient(), tmp_path)
