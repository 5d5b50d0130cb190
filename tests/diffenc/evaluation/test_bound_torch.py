"""A PyTorch network, trained for a moment and measured, is worth what the same network is in JAX."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import pytest

import diffenc
from diffenc.config.settings import Evaluate
from diffenc.core.model import Model
from diffenc.errors import UserError
from diffenc.evaluation.evaluator import Evaluator
from diffenc.parallel.sharding import data_mesh
from diffenc_plugins.datasets import Digits
from diffenc_plugins.encoders import Identity
from diffenc_plugins.generative_means import VDM
from diffenc_plugins.parameterizations import Epsilon
from diffenc_plugins.schedules import Linear

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow

WIDTH, FREQUENCIES = 256, np.array([0.25, 0.5, 1.0, 2.0], np.float32)
OURS = (-16 / 17, 16 / 17)  # the pixels of this code
GIVEN = {"predicts": "eps", "num_levels": 17, "passes": 8, "log_snr": (7.0, -6.0), "pixel_range": OURS}


def images(split: str) -> np.ndarray:
    source = Digits().source(split)
    return source.__getitems__(np.arange(len(source)))["image"]


class Network(torch.nn.Module):
    """An estimate of eps [B, C, H, W]: two hidden layers of the pixels and of waves of log_snr."""

    def __init__(self):
        super().__init__()
        sizes = [64 + 2 * len(FREQUENCIES), WIDTH, WIDTH, 64]
        self.layers = torch.nn.ModuleList(map(torch.nn.Linear, sizes, sizes[1:]))
        self.dropout = torch.nn.Dropout(0.1)

    def forward(self, z, log_snr):
        phase = log_snr[:, None] * torch.from_numpy(FREQUENCIES)
        hidden = torch.cat([z.flatten(1), phase.sin(), phase.cos()], 1)
        for layer in self.layers[:-1]:
            hidden = self.dropout(torch.nn.functional.silu(layer(hidden)))
        share = (log_snr / 2).sigmoid().reshape(-1, 1, 1, 1)
        return (1 - share) * z + share * self.layers[-1](hidden).reshape(z.shape)


@pytest.fixture(scope="module")
def network():
    """Trained on the train split of digits for 4,000 steps: half a minute."""
    torch.manual_seed(0)
    network = Network()
    x = torch.from_numpy(2 * (images("train") + 0.5) / 17 - 1).float().movedim(-1, 1)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(4000):
        batch = x[torch.randint(len(x), (128,))]
        log_snr, eps = torch.rand(128) * 13 - 6, torch.randn_like(batch)
        alpha, sigma = (each.sigmoid().sqrt().reshape(-1, 1, 1, 1) for each in (log_snr, -log_snr))
        loss = (network(alpha * batch + sigma * eps, log_snr) - eps).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def wrapped(network):
    @torch.no_grad()
    def denoiser(z, log_snr):
        out = network(torch.from_numpy(z).movedim(-1, 1), torch.from_numpy(log_snr))
        return out.movedim(1, -1).numpy()

    return denoiser


def in_jax(network):
    """The same function of the same weights."""
    weights = [(layer.weight.detach().numpy().T, layer.bias.detach().numpy()) for layer in network.layers]

    def denoiser(z, log_snr):
        phase = log_snr[:, None] * jnp.asarray(FREQUENCIES)[None]
        hidden = jnp.concatenate([z.reshape(len(z), -1), jnp.sin(phase), jnp.cos(phase)], 1)
        for weight, bias in weights[:-1]:
            hidden = hidden @ weight + bias[None]
            hidden = hidden / (1 + jnp.exp(-hidden))
        out = (hidden @ weights[-1][0] + weights[-1][1][None]).reshape(z.shape)
        share = (1 / (1 + jnp.exp(-log_snr / 2))).reshape(-1, 1, 1, 1)
        return (1 - share) * z + share * out

    return denoiser


@dataclasses.dataclass(frozen=True, eq=False)
class InJax:
    """It as a network of this code."""

    function: Callable

    def init(self, key, z, log_snr):
        return {}

    def apply(self, params, z, log_snr, context):
        return self.function(z, log_snr)


def test_it_is_worth_what_the_same_network_is_in_our_code(network, tiny):
    theirs = diffenc.bound(wrapped(network), images("test"), **GIVEN)
    print(theirs)
    function = in_jax(network)
    model = Model(Identity(), Linear(*GIVEN["log_snr"]), Epsilon(), VDM(), InJax(function))
    experiment = tiny(model=model, dataset=Digits(), evaluate=Evaluate(passes=8, batch_size=64))
    params = {"encoder": {}, "schedule": {}, "network": {}}
    ours = Evaluator(experiment, data_mesh()).measure(params)
    print(ours.metrics())
    np.testing.assert_allclose(theirs.per_image, ours.bits_per_dim()["bpd"].mean(axis=0), rtol=1e-3)
    assert theirs.bits_per_dim == pytest.approx(ours.metrics()["bpd"], rel=1e-5)
    by_jax = diffenc.bound(function, images("test"), **GIVEN)
    assert by_jax.bits_per_dim == pytest.approx(theirs.bits_per_dim, rel=1e-5)
    assert theirs.fingerprint == Digits().fingerprint("test")
    assert theirs.warnings == ()
    assert theirs.bits_per_dim < 4


def test_it_is_refused_while_it_trains(network):
    network.train()
    with pytest.raises(UserError, match=r"not deterministic.*module.eval\(\)"):
        diffenc.bound(wrapped(network), images("test")[:32], **GIVEN)
    network.eval()


def test_gradients_are_named(network):
    def denoiser(z, log_snr):
        out = network(torch.from_numpy(z).movedim(-1, 1), torch.from_numpy(log_snr))
        return out.movedim(1, -1)

    with pytest.raises(UserError, match=r"detach\(\).cpu\(\).numpy\(\)"):
        diffenc.bound(denoiser, images("test")[:32], **GIVEN)
