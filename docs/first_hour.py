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
# Train a small DiffEnc, measure it, look at its encoder, write an encoder of your own, and compare. Computing takes about ten
# minutes on two CPU cores; the images are scikit-learn's 8×8 digits, which need no download. [Concepts](concepts.md) has the
# equations.
#
# To run it, in an environment with diffenc: `pip install jupyterlab matplotlib`, then `jupyter lab first_hour.ipynb`. Runs are
# written to `runs/first_hour` beside the notebook; delete that folder to start again.
#
# ## Train
#
# A `Model` combines plugins: an encoder $x_\phi(\lambda)$; a schedule, the log-SNR $\lambda$ as a function of time; the
# parameterization, what the network estimates (here $v$, from which $\hat x$ is computed); the generative mean; and the network. The
# generative mean is the mean of a reverse step: since the encoded image changes with time, it has a *counterterm*, an estimate of
# $\mathrm{d}x_\phi/\mathrm{d}\lambda$, here $\sigma^2 \hat x$.
#
# An `Experiment` is a model with data, an optimizer, the length of training, `ema_decay` of the moving average of the parameters,
# which all that follows uses, and how it is evaluated: `passes` is how often each test image is seen, each time with other times
# and noise. This is the model of `gin/quickstart.gin`.

# %%
import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import matplotlib.pyplot as plt

from diffenc import (
    Evaluate,
    Experiment,
    Model,
    evaluate,
    load,
    plugins,
    read_images,
    registry,
    testing,
    train,
)
from diffenc.core.gaussian import alpha_squared, scale
from diffenc.interfaces import NO_CONTEXT

STEPS = 1200
# log-SNR at t = 0 and t = 1; the networks scale their time embedding to it
HIGHEST, LOWEST = 8.0, -5.0
diffenc_model = Model(
    encoder=plugins.encoders.Trainable(
        plugins.networks.EncoderUNet(blocks=1, channels=16, log_snr_max=HIGHEST, log_snr_min=LOWEST)
    ),
    schedule=plugins.schedules.Linear(HIGHEST, LOWEST),
    parameterization=plugins.parameterizations.V(),
    generative_mean=plugins.generative_means.Counterterm(),
    network=plugins.networks.UNet(
        blocks=1, channels=32, fourier_powers=(2, 3), log_snr_max=HIGHEST, log_snr_min=LOWEST
    ),
)
diffenc_run = Experiment(
    diffenc_model,
    plugins.datasets.Digits(),
    plugins.optimizers.AdamW(learning_rate=2e-3),
    steps=STEPS,
    batch_size=64,
    ema_decay=0.999,
    log_every=20,
    evaluate=Evaluate(passes=8),
)

# %% [markdown]
# `train` takes a few minutes, and returns the state after the last step. Called again with the same arguments, it finds the
# finished run in its workdir; stopped in between, it goes on from its last checkpoint.

# %%
result = train(diffenc_run, "runs/first_hour/diffenc")
rows = [json.loads(line) for line in Path(result.workdir, "metrics.jsonl").read_text().splitlines()]
rows = [row for row in rows if "bpd" in row]
plt.figure(figsize=(6, 3), layout="constrained")
plt.plot([row["step"] for row in rows], [row["bpd"] for row in rows], label="batches of train")
plt.axhline(2.44, color="gray", linestyle=":", label="a histogram of each pixel, test")
plt.xlabel("step")
plt.ylabel("bits/dim")
plt.ylim(1.8, 4.1)
_ = plt.legend()
# %% [markdown]
# ## Measure
#
# `evaluate` measures an upper bound of the bits per dimension of the test images, and states two errors: by the choice of the
# images, and by the times and noise that were drawn (Monte Carlo). Neither says how much another training seed would change the
# result. `T continuous` is the limit of infinitely many steps; `<=` is an upper bound of an error that Monte-Carlo noise hides; `pixels`
# identifies the test images by their SHA-256. What it prints, it returns too, as in `evaluation.json` of the workdir.
#
# For comparison: 17 equally likely levels take $\log_2 17 = 4.09$ bits/dim, a histogram of each pixel 2.44.

# %%
record = evaluate(diffenc_run, "runs/first_hour/diffenc")

# %% [markdown]
# ## Look at the encoder
#
# `load` reads a trained model. Its `encode` gives the encoded image at a time $t$, with pixels from −1 to 1. This encoder is
# $x_\phi = \alpha^2 x + \sigma^2 y_\phi(x, \lambda)$ with a network $y_\phi$ whose last layer starts at zero, so training began at the
# upper row, $\alpha^2 x$, which at $t = 1$ is all but gone. What the lower row shows in its place was learned.

# %%
model = load("runs/first_hour/diffenc")
test = read_images(diffenc_run.dataset, "test")  # uint8 levels 0 .. 16, [299, 8, 8, 1]
image = test[2:3]
pixels = jnp.asarray(image) / 8 - 1
times = (0.0, 0.5, 0.6, 0.7, 0.85, 1.0)
figure, axes = plt.subplots(2, len(times), figsize=(9, 3.2), layout="constrained")
for column, t in enumerate(times):
    log_snr = diffenc_model.log_snr(model.params, jnp.array([t]))
    rows = {
        r"$\alpha^2 x$": scale(alpha_squared(log_snr), pixels),
        r"$x_\phi$": model.encode(image, t=t),
    }
    axes[0, column].set_title(f"t = {t}\nλ = {float(log_snr[0]):.1f}")
    for axis, (label, encoded) in zip(axes[:, column], rows.items(), strict=True):
        axis.imshow(encoded[0, ..., 0], cmap="gray", vmin=-1, vmax=1)
        axis.set(xticks=[], yticks=[], ylabel=label if column == 0 else "")
_ = figure.colorbar(axes[0, 0].images[0], ax=axes, label="pixel")
# %% [markdown]
# Sampling has no use of the encoder: a reverse step takes the network's estimate $\hat x$ of $x_\phi$ and the counterterm, and at
# $t = 0$ the encoded image is nearly the image. In 100 steps:

# %%
samples = model.sample(10, num_timesteps=100)
figure, axes = plt.subplots(2, 10, figsize=(9, 2.1), layout="constrained")
for row, (label, images) in enumerate({"test": test[:10], "sampled": samples}.items()):
    axes[row, 0].set_ylabel(label)
    for drawn, axis in zip(images, axes[row], strict=True):
        axis.imshow(drawn[..., 0], cmap="gray", vmin=0, vmax=16)
        axis.set(xticks=[], yticks=[])


# %% [markdown]
# ## Write one
#
# $x_\phi = \mathrm{sigmoid}(\lambda + s)\, x$ has two known ends: with $s = 0$ it is the paper's non-trainable encoder $\alpha^2 x$, with
# $s \to \infty$ VDM's identity. Which does the bound prefer?
#
# An encoder is a frozen dataclass, registered under the name by which the run's config stores it. `init` returns its parameters: any
# pytree of arrays, `{}` if it has none. `apply` returns $x_\phi$ of images `x` `[B, H, W, C]`, pixels from −1 to 1, and `log_snr` `[B]`; images of
# a batch must not influence each other. `context` has classes and dropout keys, unused here. It has to be smooth in
# $\lambda$, as JAX differentiates it for $\mathrm{d}x_\phi/\mathrm{d}\lambda$, and close to `x` at the largest $\lambda$, where the pixels are
# decoded. `scale(c, x)` multiplies image b by `c[b]`, and `alpha_squared` is the sigmoid. `testing.check` tries what it can of this.


# %%
@registry.encoders.register("shifted_here")
@dataclasses.dataclass(frozen=True)
class Shifted:
    """x_phi = sigmoid(log_snr + shift) x, with a learned shift."""

    start: float = 0.0

    def init(self, key, x, log_snr):
        return {"shift": jnp.asarray(self.start)}

    def apply(self, params, x, log_snr, context=NO_CONTEXT):
        return scale(alpha_squared(log_snr + params["shift"]), x)


testing.check(Shifted())
shifted_model = dataclasses.replace(diffenc_model, encoder=Shifted())
shifted_run = dataclasses.replace(diffenc_run, model=shifted_model)
shifted = train(shifted_run, "runs/first_hour/shifted")
print(f"shift: {Shifted().start} -> {float(shifted.state.ema['encoder']['shift']):.2f}")

# %% [markdown]
# - The warning is expected: the class lives in this kernel, so no other program can load the run. [A package](write_a_plugin.md)
#   has no such limit.
# - The counterterm $\sigma^2 \hat x$ is the exact slope of $\alpha^2 x$, here only where the shift is 0. The bound holds for any pair of encoder
#   and generative mean; one that fits badly costs bits. [Plugins](plugins.md) has the others.
# - If you change the encoder, give it a new workdir: a finished run is recognised by its config, in which the code of `apply` is not.
#
# ## Compare
#
# VDM is the identity encoder, with the generative mean that goes with it: no counterterm. All three runs have the default `seed=0`,
# so they started from the same weights of the network and saw the same batches, times and noise; `elbo`, with one seed too, measures
# them on the same draws. So differences are paired. Their ± is the standard error over images of the differences, which contains
# both images and draws, and is if anything too large.

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
    line = f"{name:8} {bound.means['bpd']:.3f} ± {bound.means['bpd_mc_se']:.3f} Monte Carlo"
    if name != "vdm":
        difference = bound.bpd - bounds["vdm"].bpd
        error = difference.std(ddof=1) / len(difference) ** 0.5
        line += f"; minus vdm {difference.mean():+.4f} ± {error:.4f}"
    print(line)

# %% [markdown]
# A ± here is about these three trained networks, not about the methods: another seed gives other networks. With several seeds
# of each variant the question can be answered, and `python -m diffenc.sweep` runs and tests that ([how](sweeps.md)). From here:
# `train(dataclasses.replace(diffenc_run, seed=1), "runs/first_hour/diffenc_1")`, and the same for the others.
#
# Next: [write the plugin as a package](write_a_plugin.md), [all kinds of plugin](plugins.md), [reading a bound
# honestly](reading_a_bound.md). An exercise: replace `Shifted` by the blur of the first, with `generative_means.VDM()`, and compare.
