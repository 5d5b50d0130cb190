"""Who is told which class, what is refused, and that labels reach every measurement."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc.config import gin_loader
from diffenc.config.conditioning_check import check_conditioning
from diffenc.config.serialize import config_text, find_differences
from diffenc.config.settings import Diagnose, Evaluate, Fit, KSample, Sample
from diffenc.core.discretization import equal_times
from diffenc.core.model import Model, draw_noise
from diffenc.data.sources import ArraySource, describe_images, require_same_images
from diffenc.errors import UserError
from diffenc.evaluation import diagnose, fit_variance, k_sample, ode_likelihood, step_costs
from diffenc.evaluation.batches import EvaluationBatches, resolve_batch_size
from diffenc.evaluation.evaluation_record import image_metadata
from diffenc.evaluation.evaluator import Evaluator
from diffenc.evaluation.sample_images import ImageSampler
from diffenc.interfaces import NO_CONTEXT, ClassConditional
from diffenc.parallel.sharding import data_mesh, images_to_devices
from diffenc.tools.fid.class_labels import class_shares, draw_labels
from diffenc.training.state import init_state, make_train_step
from diffenc_plugins.conditionings import ByClass, Nothing
from diffenc_plugins.encoders import Identity, Trainable
from diffenc_plugins.generative_means import VDM
from diffenc_plugins.networks import EncoderUNet, UNet
from diffenc_plugins.parameterizations import X
from diffenc_plugins.schedules import Linear

PATTERNS = np.random.default_rng(3).integers(0, 5, (3, 4, 4, 1))  # what images of a class are
SCALED = 2 * (PATTERNS + 0.5) / 5 - 1
SHIFTS = np.array([0.0, 0.004, -0.002, 0.008])  # what the encoder adds to those of no class, and of each


@dataclasses.dataclass(frozen=True)
class Three:
    """4x4x1 images that their class says all of."""

    image_shape: ClassVar = (4, 4, 1)
    num_levels: ClassVar = 5
    num_classes: ClassVar = 3
    wrong: int = 0

    def source(self, split):
        labels = np.arange({"train": 16, "test": 7}[split]) % 3
        return ArraySource(PATTERNS[labels].astype(np.uint8), ((labels + self.wrong) % 3).astype(np.int32))

    def fingerprint(self, split):
        return f"{split} of three"


@dataclasses.dataclass(frozen=True)
class Shifted(ClassConditional):
    """An image and a number of its class, at every noise level."""

    classes: int = 3

    def init(self, key, x, log_snr):
        return {}

    def apply(self, params, x, log_snr, context=NO_CONTEXT):
        shift = jnp.asarray(SHIFTS, x.dtype)[context.condition]
        return x + jnp.broadcast_to(shift, x.shape[:1])[:, None, None, None]


@dataclasses.dataclass(frozen=True)
class Knows(ClassConditional):
    """The only image of a class, or what `Shifted` makes of it; E[x | z] where it is told none."""

    classes: int = 3
    shifted: bool = True

    def init(self, key, z, log_snr):
        return {"gain": jnp.ones(())}

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        mixed = params["gain"] * best(z, log_snr)
        if not self.classes:
            return mixed
        condition = context.condition
        assert condition is not None
        images = jnp.asarray(SCALED, z.dtype)[jnp.maximum(condition, 1) - 1]
        known = Shifted().apply({}, images, log_snr, context) if self.shifted else images
        return jnp.where((condition > 0)[:, None, None, None], known, mixed)


def best(z, log_snr):
    """E[x | z] over three images as likely as each other."""
    images = jnp.asarray(SCALED, z.dtype)
    alpha, sigma_2 = jnp.sqrt(jax.nn.sigmoid(log_snr)), jax.nn.sigmoid(-log_snr)
    far = z[:, None] - alpha[:, None, None, None, None] * images[None]
    odds = jax.nn.softmax(-jnp.sum(far**2, axis=(2, 3, 4)) / (2 * sigma_2[:, None]), axis=1)
    return jnp.einsum("bk,khwc->bhwc", odds, images)


@dataclasses.dataclass(frozen=True)
class Plain(Knows):
    """The only image of a class; grey where it is told none."""

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        condition = context.condition
        assert condition is not None
        images = jnp.asarray(SCALED, z.dtype)[jnp.maximum(condition, 1) - 1]
        return jnp.where((condition > 0)[:, None, None, None], images, 0)


def model_of(encoder: Any = Shifted(), network: Any = Knows(), drop=0.0, ends=(8.0, -8.0)):
    return Model(encoder, Linear(*ends), X(), VDM(), network, ByClass(drop=drop))


@pytest.fixture
def three(tiny):
    """Such a run on such images, with changes."""

    def make(**changes):
        return tiny(**{"model": model_of(), "dataset": Three(), **changes})

    return make


DATA: Any = Three()
PARAMS: Any = {"encoder": {}, "schedule": {}, "network": {"gain": jnp.ones(())}}


def test_labels_reach_evaluation(three):
    """Where the class says all, there is nothing left to estimate; with another class there is."""
    right, wrong = (
        Evaluator(three(dataset=data), data_mesh()).measure(PARAMS) for data in (Three(), Three(1))
    )
    np.testing.assert_allclose(right.terms["diffusion"], 0, atol=1e-6)
    assert np.all(wrong.terms["diffusion"] > 1e-3)


def test_labels_reach_training_and_some_are_dropped(three):
    """The loss of a step on images of known class is that of those whose class was withheld."""
    for drop, seen in ((0.0, False), (0.5, True)):
        experiment, mesh = three(model=model_of(drop=drop), batch_size=16), data_mesh()
        batch = experiment.dataset.source("train").__getitems__(np.arange(16))
        images = images_to_devices(batch, experiment.model.conditioning, mesh)
        np.testing.assert_array_equal(images.condition, np.arange(16) % 3 + 1)
        state = make_train_step(experiment, mesh)(jax.jit(lambda e=experiment: init_state(e))(), images)
        assert (float(state.sums.terms.diffusion) > 1e-3) == seen


def test_the_encoder_keeps_what_the_network_is_not_told():
    """Else guidance would set two processes against each other."""
    levels, labels = jnp.asarray(PATTERNS), jnp.arange(1, 4)
    draws = draw_noise(jax.random.key(0), levels.shape)
    terms = [
        model_of(network=Knows(classes)).elbo(
            PARAMS, levels, draws, num_levels=5, condition=labels, network_condition=told
        )
        for classes, told in ((3, jnp.zeros(3, jnp.int32)), (0, None))
    ]
    np.testing.assert_array_equal(terms[0], terms[1])


def test_labels_reach_the_k_sample_bound(three):
    settings = {"evaluate": Evaluate(num_timesteps=5), "k_sample": KSample(samples=2)}
    right, wrong = (three(dataset=data, **settings) for data in (Three(), Three(1)))
    right, wrong = (k_sample.measure_log_weights(e, data_mesh(), PARAMS).log_w for e in (right, wrong))
    # a step that errs by nothing weighs nothing: what is left are both ends
    assert np.all(right.mean(axis=1) - wrong.mean(axis=1) > 10)


def test_labels_reach_the_fits(three):
    settings = Fit("test", passes=1, times_per_image=1, knots=5)
    for wrong in (0, 1):
        experiment = three(dataset=Three(wrong), fit=settings)
        model, dataset, mesh = experiment.model, experiment.dataset, data_mesh()
        resolved = resolve_batch_size(settings, experiment.batch_size)
        passes = EvaluationBatches(dataset, model.conditioning, resolved, mesh, "fit", 4)
        cost = fit_variance.measure_chain_costs(
            model, dataset.num_levels, mesh, PARAMS, equal_times(4), passes
        ).mean
        squares = step_costs.measure_step_costs(model, dataset, resolved, mesh, PARAMS).mean
        for found in (cost, squares):
            np.testing.assert_array_equal(found > 1e-6, np.full(found.shape, bool(wrong)))


@pytest.mark.slow
def test_labels_reach_the_diagnosis(three):
    settings = Diagnose("test", num_images=None, passes=4, bins=2)
    for wrong in (0, 1):
        experiment = three(dataset=Three(wrong), diagnose=settings)
        resolved = resolve_batch_size(settings, experiment.batch_size)
        inputs = experiment.model, experiment.dataset, resolved, data_mesh(), PARAMS
        loss = diagnose.loss_record(*inputs)["loss"]
        ends = diagnose.ends_record(*inputs)["v_hat_from_expected_rms"]
        assert (max(loss) > 1e-6, max(ends) > 1e-3) == (bool(wrong), bool(wrong))


@pytest.mark.slow
def test_labels_reach_the_likelihood(three):
    model = model_of(network=Knows(shifted=False), ends=(4.0, -4.0))
    right, wrong = (
        ode_likelihood.solve_images(
            three(model=model, dataset=data, evaluate=Evaluate(num_images=3)), model, data_mesh(), PARAMS
        )
        for data in (Three(), Three(1))
    )
    assert np.all(wrong.nats - right.nats > 10)


def test_samples_show_the_classes_in_turn(three):
    def draw(**settings):
        experiment = three(
            model=model_of(network=Plain(), drop=0.1), sample=Sample(num_timesteps=8, **settings)
        )
        return ImageSampler(experiment.model, experiment.dataset, experiment.sampling, data_mesh()).draw(
            PARAMS
        )

    np.testing.assert_array_equal(draw(num=5), PATTERNS[[0, 1, 2, 0, 1]])
    np.testing.assert_array_equal(draw(num=3, classes=(2, 0)), PATTERNS[[2, 0, 2]])
    stretched = np.clip(np.round(2 * SCALED * 2.5 + 2), 0, 4)  # 2 x - grey
    assert np.any(stretched != PATTERNS)
    np.testing.assert_array_equal(draw(num=3, guidance=1.0), stretched)


@pytest.mark.slow
def test_images_may_be_of_classes_that_the_caller_names(three):
    experiment = three(model=model_of(network=Plain(), drop=0.1), sample=Sample(num_timesteps=8, num=4))
    images = ImageSampler(experiment.model, experiment.dataset, experiment.sampling, data_mesh())
    np.testing.assert_array_equal(images.draw(PARAMS, labels=np.array([2, 2, 0, 1])), PATTERNS[[2, 2, 0, 1]])
    np.testing.assert_array_equal(images.draw(PARAMS), PATTERNS[[0, 1, 2, 0]])


@pytest.mark.slow
def test_classes_are_drawn_by_their_shares_of_the_train_split(tiny, monkeypatch):
    monkeypatch.setattr("diffenc.tools.fid.class_labels._CHUNK", 5)
    np.testing.assert_allclose(class_shares(tiny().dataset), np.array([8, 8, 7]) / 23)
    one, other = (draw_labels(np.array([0.7, 0.0, 0.3]), 4000, jax.random.key(seed)) for seed in (0, 1))
    counts = np.bincount(one, minlength=3)
    assert counts[1] == 0
    assert abs(counts[0] - 2800) < 4 * np.sqrt(4000 * 0.7 * 0.3)
    assert 0.35 < np.mean(one != other) < 0.49  # 2 x 0.7 x 0.3
    assert np.mean(np.diff(one) != 0) > 0.35, "in no order"


@pytest.mark.slow
def test_a_known_class_saves_its_logarithm(three):
    """Of three images as likely as each other -log p(x) is log 3, and -log p(x | class) 0: by the best denoisers."""
    encoder, settings = Identity(), Evaluate(passes=400, times_per_image=20, batch_size=7)
    told = three(
        model=model_of(encoder, Knows(shifted=False)), evaluate=dataclasses.replace(settings, passes=1)
    )
    blind = model_of(encoder, Knows(classes=0))
    blind = three(model=dataclasses.replace(blind, conditioning=Nothing()), evaluate=settings)
    known, unknown = (Evaluator(e, data_mesh()).measure(PARAMS) for e in (told, blind))
    np.testing.assert_allclose(known.terms["diffusion"], 0, atol=1e-6)
    images = unknown.terms["diffusion"].mean(axis=0)
    error = 4 * unknown.metrics()["bpd_diffusion_mc_se"] * 16 * np.log(2)
    assert error < 0.1
    assert abs(images[:6].mean() - np.log(3)) < error  # of each two; the seventh would outweigh


def test_what_a_figure_says(three):
    def stated(encoder, network):
        e, n = Trainable(EncoderUNet(1, 4, classes=encoder)), UNet(1, 4, classes=network)
        return model_of(e, n).condition_metadata()

    assert stated(0, 3) == {"condition": "class"}
    assert stated(3, 0) == {"encoder_condition": "class"}  # a bound on p(x) still
    assert stated(3, 3) == {"condition": "class", "encoder_condition": "class"}
    assert stated(0, 0) == {}


def test_records_and_titles_say_it(three):
    told, blind = (
        image_metadata(three().dataset, model_of(network=Knows(classes=count)), "test", 7) for count in (3, 0)
    )
    assert (told["condition"], told["encoder_condition"]) == ("class", "class")
    assert "condition" not in blind
    assert describe_images(told).endswith(" test | class")
    assert describe_images(blind).endswith(" test")
    require_same_images([told, told | {"bpd": 1}])
    with pytest.raises(UserError, match=r"images given different things, and not .* \| class, .* test, "):
        require_same_images([told, blind])


def refused(match, **parts):
    encoder, network = parts.get("encoder", 0), parts.get("network", 0)
    model = model_of(Trainable(EncoderUNet(1, 4, classes=encoder)), UNet(1, 4, classes=network))
    model = dataclasses.replace(model, conditioning=parts.get("told", ByClass()))
    with pytest.raises(UserError, match=match) as caught:
        check_conditioning(model, DATA)
    assert "\n" not in str(caught.value)


def test_parts_that_do_not_fit_what_they_are_told_are_refused():
    refused(r"^network\.unet\.classes = 3, and the model is unconditional: bind", network=3, told=Nothing())
    refused(r"^network\.encoder_unet\.classes = 3, and the model is", encoder=3, told=Nothing())
    refused(r"^network\.unet\.classes = 4, and Three has 3 classes", network=4)
    refused(r"^network\.encoder_unet\.classes = 2, and", network=3, encoder=2)
    refused(r"each image's class, and neither .* bind network\.unet\.classes = 3")


@pytest.mark.parametrize(
    ("settings", "network", "drop", "why"),
    [
        ({"classes": (0,)}, 0, 0.1, r"^sample\.classes = \(0,\): the network is unconditional"),
        ({"guidance": 1.0}, 0, 0.1, r"^sample\.guidance = 1\.0: the network is unconditional"),
        ({"classes": (0, 3)}, 3, 0.1, r"^sample\.classes = \(0, 3\): Three has classes 0 \.\. 2$"),
        ({"classes": (-1,)}, 3, 0.1, r"^sample\.classes = \(-1,\): Three has classes"),
        (
            {"guidance": 1.0},
            3,
            0.0,
            r"^sample\.guidance = 1\.0 needs .* conditioning\.by_class\.drop above 0$",
        ),
    ],
)
def test_samples_that_the_model_cannot_draw_are_refused(three, settings, network, drop, why):
    model = model_of(network=Knows(classes=network), drop=drop)
    with pytest.raises(UserError, match=why):
        three(model=model, sample=Sample(**settings))


def test_a_run_from_before_classes_goes_on():
    """What its config does not name has the value it had."""
    new = config_text(gin_loader.load_experiment(["gin/mnist_diffenc_8_2.gin"], []))
    later = ("Model.conditioning", ".classes = ", "network.encoder_unet.last")
    old = "".join(line for line in new.splitlines(keepends=True) if not any(name in line for name in later))
    assert len(new.splitlines()) - len(old.splitlines()) == 5  # sample.classes too
    assert find_differences(old, new) == []
    told = config_text(gin_loader.load_experiment(["gin/mnist_diffenc_8_2.gin", "gin/by_class.gin"], []))
    assert len(find_differences(old, told)) == 4
