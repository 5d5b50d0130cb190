# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The first hour
#
# Train a small DiffEnc, measure it, look at its encoder, write an encoder of your own, and compare. All of it runs on a CPU in
# minutes, on scikit-learn's 8×8 digits, which need no download. [Concepts](concepts.md) has the equations.
#
# ## Train
#
# A `Model` combines plugins: an encoder $x_\phi(\lambda)$, a schedule of the log-SNR $\lambda$ over time, what the network estimates
# (here $v$), how the reverse process estimates the slope of the encoded image (`generative_means`), and the network. An `Experiment`
# is a model with data, an optimizer and the length of training.

# %%
import dataclasses

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from diffenc import Evaluate, Experiment, Model, evaluate, load, plugins, registry, train
from diffenc.core.gaussian import alpha_squared, scale

STEPS = 400
HIGHEST, LOWEST = 8.0, -5.0  # log-SNR at t = 0 and t = 1, which schedule and networks are told
diffenc_model = Model(
    encoder=plugins.encoders.Trainable(
        plugins.networks.EncoderUNet(blocks=1, channels=8, log_snr_max=HIGHEST, log_snr_min=LOWEST)
    ),
    schedule=plugins.schedules.Linear(HIGHEST, LOWEST),
    parameterization=plugins.parameterizations.V(),
    generative_mean=plugins.generative_means.Counterterm(),
    network=plugins.networks.UNet(
        blocks=1, channels=16, fourier_powers=(2, 3), log_snr_max=HIGHEST, log_snr_min=LOWEST
    ),
)
diffenc_run = Experiment(
    diffenc_model,
    plugins.datasets.Digits(),
    plugins.optimizers.AdamW(learning_rate=2e-3),
    steps=STEPS,
    batch_size=64,
    ema_decay=0.99,
    evaluate=Evaluate(passes=8),
)
result = train(diffenc_run, "runs/first_hour/diffenc")
print(result.step, "steps, in", result.workdir)

# %% [markdown]
# Called again with the same arguments, `train` finds the finished run in its workdir; stopped in between, it goes on from its last
# checkpoint.
#
# ## Measure
#
# `evaluate` bounds the bits per dimension of the test images, and states two errors: one for the choice of images, one for the
# times and noise that were drawn (Monte Carlo). Neither covers the choice of the seed of training. What it prints, it returns
# too: `record["bpd"]` and the rest, as in `evaluation.json` of the workdir.

# %%
record = evaluate(diffenc_run, "runs/first_hour/diffenc")

# %% [markdown]
# ## Look at the encoder
#
# `load` reads a trained model. `encode` gives the encoded image at a time $t$: at $t = 0$ it is the image, and towards $t = 1$
# what is left is up to the encoder.

# %%
model = load("runs/first_hour/diffenc")
test = diffenc_run.dataset.source("test").__getitems__(np.arange(299))["image"]
times = (0.0, 0.3, 0.5, 0.7, 1.0)
figure, axes = plt.subplots(3, len(times), figsize=(7, 4.2))
for column, t in enumerate(times):
    encoded = model.encode(test[:3], t=t)
    axes[0, column].set_title(f"t = {t}")
    for row in range(3):
        axes[row, column].imshow(encoded[row, ..., 0], cmap="gray", vmin=-1, vmax=1)
        axes[row, column].axis("off")

# %% [markdown]
# A trained encoder has the form $x_\phi = \alpha^2 x + \sigma^2 y_\phi(x, \lambda)$. To sample, it is not needed:

# %%
samples = model.sample(10, num_timesteps=100)
figure, axes = plt.subplots(1, 10, figsize=(8, 1))
for image, one in zip(samples, axes, strict=True):
    one.imshow(image[..., 0], cmap="gray", vmin=0, vmax=16)
    one.axis("off")


# %% [markdown]
# ## Write one
#
# An encoder is a frozen dataclass with `init`, which returns its parameters, and `apply`, which returns $x_\phi$: `x` is
# `[B, H, W, C]`, `log_snr` is `[B]`. At the largest log-SNR it has to be close to `x`, whose pixels are decoded there. The slope
# $\mathrm{d}x_\phi / \mathrm{d}\lambda$ is computed by automatic differentiation.


# %%
@registry.encoders.register("first_hour")
@dataclasses.dataclass(frozen=True)
class Shifted:
    """x_phi = sigmoid(log_snr + shift) x, with a learned shift."""

    start: float = 1.0

    def init(self, key, x, log_snr):
        return {"shift": jnp.asarray(self.start)}

    def apply(self, params, x, log_snr, context):
        return scale(alpha_squared(log_snr + params["shift"]), x)


shifted_run = dataclasses.replace(diffenc_run, model=dataclasses.replace(diffenc_model, encoder=Shifted()))
shifted = train(shifted_run, "runs/first_hour/shifted")
print("learned shift:", float(shifted.state.ema["encoder"]["shift"]))

# %% [markdown]
# ## Compare
#
# VDM is the identity encoder, with the generative mean that goes with it. All three runs had the same seed, so they saw the same
# batches, times and noise, and they are measured on the same draws: differences are paired.

# %%
vdm_model = dataclasses.replace(
    diffenc_model,
    encoder=plugins.encoders.Identity(),
    generative_mean=plugins.generative_means.VDM(),
)
vdm_run = dataclasses.replace(diffenc_run, model=vdm_model)
train(vdm_run, "runs/first_hour/vdm")
bounds = {
    name: load(f"runs/first_hour/{name}").elbo(test, passes=8) for name in ("vdm", "diffenc", "shifted")
}
for name, bound in bounds.items():
    difference = bound.bpd - bounds["vdm"].bpd
    error = difference.std(ddof=1) / len(difference) ** 0.5
    print(
        f"{name:8} {bound.means['bpd']:.4f}   minus vdm: {difference.mean():+.4f} ± {error:.4f} over images and draws"
    )

# %% [markdown]
# This is one seed, and a few hundred steps: it says nothing about the next seed. A comparison that does has several seeds of each
# variant, and a test: that is what `python -m diffenc.sweep` is for ([results](results.md)). Next: [write the plugin as a
# package](write_a_plugin.md), [all kinds of plugin](plugins.md), [reading a bound honestly](reading_a_bound.md).
