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
# minutes on two CPU cores; the images are scikit-learn's 8×8 digits, which need no download.
#
# To run it, in a checkout: `make install`, `source .venv/bin/activate`, `pip install jupyterlab`, then a copy that is yours to
# edit: `cp docs/first_hour.ipynb docs/mine.ipynb` and `jupyter lab docs/mine.ipynb`, or without a browser `jupyter execute --inplace docs/mine.ipynb`. Runs are
# written to `runs/first_hour` beside the notebook; delete that folder to start again.
#
# A diffusion model adds noise to an image $x$ until nothing is left of it, and learns the way back. In DiffEnc an **encoder** first changes the
# image with the noise level, to $x_\phi$, and is trained with the model:
#
# $$z_t = \alpha\, x_\phi(\lambda_t) + \sigma\, \epsilon, \qquad \alpha^2 = \mathrm{sigmoid}(\lambda), \quad \sigma^2 = 1 - \alpha^2,
# \qquad \epsilon \sim \mathcal{N}(0, I),$$
#
# where $\lambda$, the log of the signal-to-noise ratio, falls from time $t = 0$ (data) to $t = 1$ (noise). **VDM** is the special case
# $x_\phi = x$. Whether an encoder helps is what one measures, by the bound on the likelihood below. [Concepts](concepts.md) has all
# equations.
#
# ## Train
#
# A `Model` combines plugins: an encoder $x_\phi(\lambda)$; a schedule, $\lambda$ as a function of time; the network; the parameterization,
# what the network estimates, here $v = \alpha \epsilon - \sigma x_\phi$, from which an estimate $\hat x$ is computed; and the generative mean, the mean of a step
# back from $z_t$ to less noise. Since $x_\phi$ changes with time, that mean has a *counterterm* for $\mathrm{d}x_\phi/\mathrm{d}\lambda$, here
# $\sigma^2 \hat x$, which is right for $x_\phi = \alpha^2 x$, where training starts.
#
# An `Experiment` is a model with data, an optimizer, the length of training, `ema_decay`, the decay of the moving average of the
# parameters (evaluation and samples use the average), and how it is evaluated: `passes` is how often each test image is seen, each time
# with other times and noise. This is the model of `gin/quickstart.gin`.

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
from diffenc.core.pixels import scale_pixels
from diffenc.interfaces import NO_CONTEXT

STEPS = 1200
# log-SNR at t = 0, where the noise is a sixth of the distance of two neighbouring levels of the 17, and at t = 1, where the image is
# all but gone. The networks scale their time embedding to it.
HIGHEST, LOWEST = 8.0, -5.0
diffenc_model = Model(
    encoder=plugins.encoders.Trainable(
        plugins.networks.EncoderUNet(blocks=1, channels=16, log_snr_max=HIGHEST, log_snr_min=LOWEST)
    ),
    schedule=plugins.schedules.Linear(HIGHEST, LOWEST),
    parameterization=plugins.parameterizations.V(),
    generative_mean=plugins.generative_means.Counterterm(),
    # sin and cos of 2 pi 2^2 z and of 2 pi 2^3 z, its inputs beside z, tell neighbouring levels apart
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
# `train` takes about two minutes and shows nothing meanwhile, unless the log is turned on: `from absl import logging; logging.set_verbosity("info")`. It returns the
# state after the last step. Called again with the same arguments, it finds the finished run in its workdir. Interrupting the kernel
# saves the run first, and the same call goes on from there.

# %%
result = train(diffenc_run, "runs/first_hour/diffenc")
rows = [json.loads(line) for line in Path(result.workdir, "metrics.jsonl").read_text().splitlines()]
rows = [row for row in rows if "bpd" in row]
plt.figure(figsize=(6, 3), layout="constrained")
plt.plot(
    [row["step"] for row in rows], [row["bpd"] for row in rows], label="batches of train, means of 20 steps"
)
plt.axhline(2.44, color="gray", linestyle=":", label="a histogram of each pixel, test")
plt.xlabel("step")
plt.ylabel("bits/dim")
plt.ylim(1.8, 4.1)  # the first 100 steps are above
_ = plt.legend()
# %% [markdown]
# ## Measure
#
# `evaluate` measures an upper bound of the bits per dimension of the test images, the sum of three terms: `reconstruction`, of the pixels from the least
# noisy $z_0$; `latent`, what the noisiest $z_1$ still tells of the image; and `diffusion`, of all steps between. It states two errors: by the
# choice of the images, and by the times and noise that were drawn (Monte Carlo). Neither says how much another training seed would
# change the result. `T continuous` is the limit of infinitely many steps; `<=` marks an upper bound of an error that Monte-Carlo noise hides;
# `pixels` are the first 16 digits of the test images' SHA-256. What it prints, it returns too, as in `evaluation.json` of the workdir.
#
# For comparison: 17 equally likely levels take $\log_2 17 = 4.09$ bits/dim, a histogram of each pixel 2.44. The bound lies below the end of
# the curve above: that is of the current parameters, with dropout, this of the averaged ones, without. With 32 passes it is the
# README's value; its third decimal differs between processors.

# %%
record = evaluate(diffenc_run, "runs/first_hour/diffenc")

# %% [markdown]
# ## Look at the encoder
#
# `load` reads a trained model. Its `encode` gives the encoded image at a time $t$. Levels are pixels between −1 and 1 there, as the networks
# see them. This encoder is $x_\phi = \alpha^2 x + \sigma^2 y_\phi(x, \lambda)$ with a network $y_\phi$ whose last layer starts at zero, so training
# began at the upper row, $\alpha^2 x$, which at $t = 1$ is all but gone. What the lower row shows in its place was learned.

# %%
model = load("runs/first_hour/diffenc")
test = read_images(diffenc_run.dataset, "test")  # uint8 levels 0 .. 16, [299, 8, 8, 1]
image = test[2:3]
pixels = scale_pixels(jnp.asarray(test), 17)
times = (0.0, 0.5, 0.6, 0.7, 0.85, 1.0)
figure, axes = plt.subplots(2, len(times), figsize=(9, 3.2), layout="constrained")
for column, t in enumerate(times):
    log_snr = diffenc_model.log_snr(model.params, jnp.array([t]))
    rows = {
        r"$\alpha^2 x$": scale(alpha_squared(log_snr), pixels[2:3]),
        r"$x_\phi$": model.encode(image, t=t),
    }
    axes[0, column].set_title(f"t = {t}\nλ = {float(log_snr[0]):.1f}")
    for axis, (label, encoded) in zip(axes[:, column], rows.items(), strict=True):
        axis.imshow(encoded[0, ..., 0], cmap="gray", vmin=-1, vmax=1)
        axis.set(xticks=[], yticks=[], ylabel=label if column == 0 else "")
_ = figure.colorbar(axes[0, 0].images[0], ax=axes, label="pixel")

last = model.encode(test, t=1.0)
x, encoded = (values - values.mean() for values in (pixels, last))
share = float(jnp.vdot(encoded, x) / jnp.vdot(x, x))
left = 1 - share**2 * float(jnp.vdot(x, x) / jnp.vdot(encoded, encoded))
print(
    f"Over all test images x_phi at t = 1 is {share:.2f} x and a constant, but for {left:.0%} of its variance."
)
# %% [markdown]
# So what it learned is mostly to undo its start: to keep the image, with most of its contrast, where VDM keeps all of it.
#
# Sampling does not need the encoder: a step back takes the network's $\hat x$ and the counterterm. (With a trained encoder only their sum is
# learned, an estimate of $x_\phi + \mathrm{d}x_\phi/\mathrm{d}\lambda$; $\hat x$ alone is then no estimate of $x_\phi$:
# [Concepts](concepts.md#sampling).) At $t = 0$ the encoded image is nearly the image. In 100 steps, below ten test images that
# they have nothing to do with:

# %%
samples = model.sample(10, num_timesteps=100)
figure, axes = plt.subplots(2, 10, figsize=(9, 2.1), layout="constrained")
for row, (label, images) in enumerate({"test": test[:10], "sampled": samples}.items()):
    axes[row, 0].set_ylabel(label)
    for drawn, axis in zip(images, axes[row], strict=True):
        axis.imshow(drawn[..., 0], cmap="gray", vmin=0, vmax=16)
        axis.set(xticks=[], yticks=[])


# %% [markdown]
# ## Write an encoder
#
# $x_\phi = \mathrm{sigmoid}(\lambda + s)\, x$ has two known ends: with $s = 0$ it is the paper's non-trainable encoder $\alpha^2 x$, with
# $s \to \infty$ VDM's $x$. Which way does the bound pull a learned $s$?
#
# An encoder is a frozen dataclass, registered under the name by which the run's config stores it. `init` returns its parameters: any
# pytree of arrays, `{}` if it has none. `apply` returns $x_\phi$ of images `x` `[B, H, W, C]`, pixels between −1 and 1, and `log_snr` `[B]`; images of
# a batch must not influence each other. `context` has classes and dropout keys, unused here. $x_\phi$ has to be smooth in
# $\lambda$, as JAX differentiates it for $\mathrm{d}x_\phi/\mathrm{d}\lambda$, and close to `x` at the largest $\lambda$, where the pixels are
# decoded. `scale(c, x)` multiplies image b by `c[b]`, and `alpha_squared` is the sigmoid. `testing.check` tries what it can of this.
# Training takes more than a minute, and warns that the class lives in this kernel, so that no other program can load the run; [a
# package](write_a_plugin.md) has no such limit.


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
# - Towards VDM again; how far it would go, so few steps do not tell. The reason: with $a = \mathrm{sigmoid}(\lambda + s)$, the loss at a $\lambda$
#   has the weight $e^\lambda a^2 (2 - a)^2$, where a VDM with the same $z_t$ has $e^\lambda a^2 (3 - 2a)$, less by $e^\lambda a^2 (1 - a)^2$: on this path an encoder that
#   shrinks the image costs bits. A noisier path mends that ([Concepts](concepts.md#how-noisy-the-path-is)).
# - The counterterm $\sigma^2 \hat x$ is the exact slope of $\alpha^2 x$, here only where the shift is 0. The bound holds for any pair of encoder
#   and generative mean, and in continuous time it contains only $(1 + \sigma^2)\, \hat x$, so that the network can make up for a counterterm that
#   does not fit: VDM's $x_\phi = x$ trained with this counterterm was lower than VDM below by 0.005 ± 0.003 (one run of seed 0). What $\hat x$ means does depend on it.
#   [Plugins](plugins.md) has the others.
# - If you change the encoder, give it a new workdir: a finished run is recognised by its config, in which the code of `apply` is not.
#
# ## Compare
#
# VDM is the identity encoder, with the generative mean that goes with it: no counterterm. It has 163,297 parameters; DiffEnc's encoder has 33,585
# more and makes a step take 1.6 times as long. All three runs have the default `seed=0`, so they started from the same weights of the network
# and saw the same batches, times and noise.
#
# `elbo` is `evaluate` for images of your choice: `bound.bpd` has one value for each image, `bound.means` means and errors. With its default seed all
# three are measured on the same draws. So differences are paired. Their ± is the standard error over images of the differences, which covers
# both the choice of images and the draws, and is if anything too large, because times are spread evenly over the images of a pass.

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
# So here DiffEnc is behind VDM by two to three of these errors, and `shifted` by five. But they are about these three trained networks, not about the methods: another
# seed gives other networks. With `seed=1` the same difference was −0.002 ± 0.004, and two seeds decide nothing either. With
# several seeds of each variant the question can be answered, and `python -m diffenc.sweep` runs and tests that ([how](sweeps.md)).
# [What has been found so far](results.md): no advantage of DiffEnc is established with small networks.
#
# Next:
#
# - **See more of both runs**: `python -m diffenc.tools.explore docs/runs/first_hour/diffenc docs/runs/first_hour/vdm` makes a page in which one moves $t$ and sees
#   $x_\phi$, $z_t$ and $\hat x$ ([more](explore.md)), and `python -m diffenc.report` with the same arguments [a report](report.md).
# - **Another seed**: `_ = train(dataclasses.replace(diffenc_run, seed=1), "runs/first_hour/diffenc_1")`, and the same for `vdm_run`.
# - **An exercise**: train the `MyBlur` of [Write a plugin](write_a_plugin.md) under a name and in a workdir of its own, with
#   `generative_means.VDM()`, and compare.
# - **Your own network**, of PyTorch too: [what is its NLL?](nll_of_my_model.md)
# - [All kinds of plugin](plugins.md), and [reading a bound honestly](reading_a_bound.md).
