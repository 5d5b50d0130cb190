"""Inception against a second writing of it in numpy, after the description of the network as its weights are named."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc.errors import UserError
from diffenc.safe_io import torch_file
from diffenc_plugins.features import Inception, inception

quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Reference:
    """In float64, [B, C, H, W], with weights made up as they are met and kept as a state dict.

    `shrink` divides the number of channels.
    """

    def __init__(self, shrink, seed=0):
        self.state, self.shrink, self.rng = {}, shrink, np.random.default_rng(seed)

    def conv(self, name, x, out, kernel, stride=1, pad=(0, 0)):
        height, width = kernel
        shape = (out // self.shrink, x.shape[1], height, width)
        weight = self.rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
        norm = {
            "weight": self.rng.uniform(0.5, 1.5, shape[0]),
            "bias": self.rng.normal(size=shape[0]) / 5,
            "running_mean": self.rng.normal(size=shape[0]) / 5,
            "running_var": self.rng.uniform(0.001, 2, shape[0]),
        }
        kept = {"conv.weight": weight} | {f"bn.{part}": value for part, value in norm.items()}
        self.state |= {f"{name}.{part}": value.astype(np.float32) for part, value in kept.items()}
        weight, scale, bias, mean, variance = (
            value.astype(np.float32).astype(float) for value in kept.values()
        )
        x = np.pad(x, ((0, 0), (0, 0), (pad[0], pad[0]), (pad[1], pad[1])))
        rows, columns = (
            (length - size) // stride + 1 for length, size in zip(x.shape[2:], kernel, strict=True)
        )
        total = np.zeros((len(weight), len(x), rows, columns))
        for i, j in np.ndindex(height, width):
            part = x[:, :, i : i + stride * rows : stride, j : j + stride * columns : stride]
            total += np.tensordot(weight[:, :, i, j], part, axes=(1, 1))
        total = total.transpose(1, 0, 2, 3)
        each = (slice(None), None, None)
        normed = (total - mean[each]) / np.sqrt(variance[each] + 0.001) * scale[each] + bias[each]
        return np.maximum(normed, 0)

    def pool(self, x, of, stride, pad):
        """`of` the 3x3 around each place, NaN where there is none."""
        x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)), constant_values=np.nan)
        rows, columns = ((length - 3) // stride + 1 for length in x.shape[2:])
        parts = [
            x[:, :, i : i + stride * rows : stride, j : j + stride * columns : stride]
            for i, j in np.ndindex(3, 3)
        ]
        return of(np.stack(parts), axis=0)

    def mean(self, x):
        return self.pool(x, np.nanmean, 1, 1)

    def max(self, x):
        return self.pool(x, np.nanmax, 1, 1)

    def halve(self, x):
        return self.pool(x, np.nanmax, 2, 0)

    def stem(self, name, x, out, kernel, **options):
        return self.conv(name, x, out, kernel, **options)

    def block_a(self, name, x, out):
        c = functools.partial(self.named, name)
        one = c("branch1x1", x, 64, (1, 1))
        five = c("branch5x5_2", c("branch5x5_1", x, 48, (1, 1)), 64, (5, 5), pad=(2, 2))
        three = c("branch3x3dbl_2", c("branch3x3dbl_1", x, 64, (1, 1)), 96, (3, 3), pad=(1, 1))
        three = c("branch3x3dbl_3", three, 96, (3, 3), pad=(1, 1))
        return np.concatenate([one, five, three, c("branch_pool", self.mean(x), out, (1, 1))], axis=1)

    def block_b(self, name, x):
        c = functools.partial(self.named, name)
        three = c("branch3x3", x, 384, (3, 3), stride=2)
        double = c("branch3x3dbl_2", c("branch3x3dbl_1", x, 64, (1, 1)), 96, (3, 3), pad=(1, 1))
        return np.concatenate(
            [three, c("branch3x3dbl_3", double, 96, (3, 3), stride=2), self.halve(x)], axis=1
        )

    def block_c(self, name, x, inner):
        c = functools.partial(self.named, name)
        lying, standing = ({"kernel": (1, 7), "pad": (0, 3)}, {"kernel": (7, 1), "pad": (3, 0)})
        seven = c("branch7x7_2", c("branch7x7_1", x, inner, (1, 1)), inner, **lying)
        seven = c("branch7x7_3", seven, 192, **standing)
        double = c("branch7x7dbl_2", c("branch7x7dbl_1", x, inner, (1, 1)), inner, **standing)
        double = c("branch7x7dbl_4", c("branch7x7dbl_3", double, inner, **lying), inner, **standing)
        double = c("branch7x7dbl_5", double, 192, **lying)
        one, pool = c("branch1x1", x, 192, (1, 1)), c("branch_pool", self.mean(x), 192, (1, 1))
        return np.concatenate([one, seven, double, pool], axis=1)

    def block_d(self, name, x):
        c = functools.partial(self.named, name)
        three = c("branch3x3_2", c("branch3x3_1", x, 192, (1, 1)), 320, (3, 3), stride=2)
        seven = c("branch7x7x3_2", c("branch7x7x3_1", x, 192, (1, 1)), 192, (1, 7), pad=(0, 3))
        seven = c("branch7x7x3_3", seven, 192, (7, 1), pad=(3, 0))
        return np.concatenate(
            [three, c("branch7x7x3_4", seven, 192, (3, 3), stride=2), self.halve(x)], axis=1
        )

    def block_e(self, name, x, pool):
        c = functools.partial(self.named, name)
        lying, standing = ({"kernel": (1, 3), "pad": (0, 1)}, {"kernel": (3, 1), "pad": (1, 0)})
        three = c("branch3x3_1", x, 384, (1, 1))
        double = c("branch3x3dbl_2", c("branch3x3dbl_1", x, 448, (1, 1)), 384, (3, 3), pad=(1, 1))
        parts = [
            c("branch1x1", x, 320, (1, 1)),
            c("branch3x3_2a", three, 384, **lying),
            c("branch3x3_2b", three, 384, **standing),
            c("branch3x3dbl_3a", double, 384, **lying),
            c("branch3x3dbl_3b", double, 384, **standing),
            c("branch_pool", pool(x), 192, (1, 1)),
        ]
        return np.concatenate(parts, axis=1)

    def named(self, block, name, *arguments, **options):
        return self.conv(f"{block}.{name}", *arguments, **options)

    @property
    def layers(self):
        """Each layer by name, in order, and the channels that come in at full width."""
        conv, e = self.conv, functools.partial
        return {
            "Conv2d_1a_3x3": (3, e(conv, "Conv2d_1a_3x3", out=32, kernel=(3, 3), stride=2)),
            "Conv2d_2a_3x3": (32, e(conv, "Conv2d_2a_3x3", out=32, kernel=(3, 3))),
            "Conv2d_2b_3x3": (32, e(conv, "Conv2d_2b_3x3", out=64, kernel=(3, 3), pad=(1, 1))),
            "maxpool1": (64, self.halve),
            "Conv2d_3b_1x1": (64, e(conv, "Conv2d_3b_1x1", out=80, kernel=(1, 1))),
            "Conv2d_4a_3x3": (80, e(conv, "Conv2d_4a_3x3", out=192, kernel=(3, 3))),
            "maxpool2": (192, self.halve),
            "Mixed_5b": (192, e(self.block_a, "Mixed_5b", out=32)),
            "Mixed_5c": (256, e(self.block_a, "Mixed_5c", out=64)),
            "Mixed_5d": (288, e(self.block_a, "Mixed_5d", out=64)),
            "Mixed_6a": (288, e(self.block_b, "Mixed_6a")),
            "Mixed_6b": (768, e(self.block_c, "Mixed_6b", inner=128)),
            "Mixed_6c": (768, e(self.block_c, "Mixed_6c", inner=160)),
            "Mixed_6d": (768, e(self.block_c, "Mixed_6d", inner=160)),
            "Mixed_6e": (768, e(self.block_c, "Mixed_6e", inner=192)),
            "Mixed_7a": (768, e(self.block_d, "Mixed_7a")),
            "Mixed_7b": (1280, e(self.block_e, "Mixed_7b", pool=self.mean)),
            "Mixed_7c": (2048, e(self.block_e, "Mixed_7c", pool=self.max)),
        }

    def features(self, images):
        """Of [B, 299, 299, 3] in -1 .. 1."""
        x = images.transpose(0, 3, 1, 2).astype(float)
        for _, layer in self.layers.values():
            x = layer(x=x)
        return x.mean(axis=(2, 3))


def bilinear(image, size):
    """Loops; pixels are squares, and the outermost go on."""
    taken = []
    for axis in (0, 1):
        length = image.shape[axis]
        centre = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
        low = np.minimum(centre.astype(int), max(length - 2, 0))
        share = (centre - low).reshape([-1 if a == axis else 1 for a in range(3)])
        high = np.minimum(low + 1, length - 1)
        image = image.take(low, axis) * (1 - share) + image.take(high, axis) * share
        taken.append(low)
    return image


def test_the_layers_are_those_of_the_description():
    assert list(inception.LAYERS) == list(Reference(16).layers)


AGAIN = [f"Mixed_{name}" for name in ("5c", "5d", "6c", "6d", "6e")]  # the same but for their widths


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in AGAIN)) for name in inception.LAYERS],
)
def test_each_layer_is_the_one_in_numpy(name):
    reference = Reference(16)
    channels, layer = reference.layers[name]
    channels = 3 if channels == 3 else channels // 16
    x = np.random.default_rng(1).normal(size=(2, channels, 9, 7))
    wanted = layer(x=x).transpose(0, 2, 3, 1)
    weights = inception.fold_batch_norms(reference.state, "a file")
    found = quick(inception.LAYERS[name])(weights, jnp.asarray(x.transpose(0, 2, 3, 1), jnp.float32))
    np.testing.assert_allclose(found, wanted, atol=2e-5 * np.abs(wanted).max())
    assert np.ptp(wanted) > 0.1


def test_from_levels_to_features_of_a_narrow_network():
    images = np.random.default_rng(2).integers(0, 256, (2, 32, 20, 3), dtype=np.uint8)
    reference = Reference(16)
    wanted = reference.features(np.stack([bilinear(image / 255, 299) * 2 - 1 for image in images]))
    weights = inception.fold_batch_norms(reference.state, "a file")
    found = quick(functools.partial(inception.features_of, inception.preprocess_as_port))(weights, images)
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())


def test_in_float64_features_are_float32_all_the_same(x64):
    weights = inception.fold_batch_norms(narrow(), "a file")
    images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.uint8)
    shape = jax.eval_shape(
        functools.partial(inception.features_of, inception.preprocess_as_port), weights, images
    )
    assert (shape.shape, shape.dtype) == ((1, 128), jnp.float32)
    assert inception.preprocess_as_graph(jnp.zeros((1, 8, 8, 3), jnp.float32)).dtype == jnp.float32


@pytest.mark.slow
@pytest.mark.parametrize("form", ["archive", "older"])
def test_the_whole_network_from_a_file(form, torch_writer, tmp_path):
    images = np.random.default_rng(2).integers(0, 256, (1, 28, 28, 1), dtype=np.uint8)
    reference = Reference(1)
    scaled = bilinear(np.repeat(images[0], 3, axis=-1) / 255, 299) * 2 - 1
    wanted = reference.features(scaled[None])
    path = getattr(torch_writer, form)(tmp_path / "weights.pth", torch_writer.state(reference.state))
    found = jax.jit(lambda extract, images: extract(images))(Inception(str(path)).load(), images)
    assert found.shape == (1, 2048)
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())


def test_the_graphs_own_beginning_moves_the_image_and_takes_128_as_zero():
    ramp = np.arange(8.0).reshape(1, 8, 1, 1) * np.ones((1, 8, 8, 3)) * 30
    port, graph = (
        np.asarray(function(jnp.asarray(ramp, jnp.float32)))
        for function in (inception.preprocess_as_port, inception.preprocess_as_graph)
    )
    i = np.array([20, 150, 250])  # where both are within the ramp
    np.testing.assert_allclose(graph[0, i, 5, 1], (i / 299 * 8 * 30 - 128) / 128, rtol=1e-4)
    np.testing.assert_allclose(port[0, i, 5, 1], ((i + 0.5) / 299 * 8 - 0.5) * 30 / 255 * 2 - 1, rtol=1e-4)


@functools.cache
def narrow():
    """The state dict of a narrow network."""
    reference = Reference(16)
    reference.features(np.zeros((1, 75, 75, 3)))
    return reference.state


def small(torch_writer, tmp_path, drop=(), **changes):
    arrays = {key: value for key, value in narrow().items() if key not in drop} | changes
    return torch_writer.archive(tmp_path / "weights.pth", torch_writer.state(arrays))


@pytest.mark.parametrize(
    ("drop", "changes", "says"),
    [
        ((), {}, r"is not pt_inception-2015-12-05-6726825d\.pth \(128 features\)"),
        (("Mixed_5b.branch1x1.bn.bias",), {}, r"has no 'Mixed_5b\.branch1x1\.bn\.bias', so it is not"),
        pytest.param(
            ("Mixed_7a.branch3x3_1.conv.weight",),
            {},
            r"is not .*\(no Mixed_7a\.branch3x3_1\)",
            marks=pytest.mark.slow,
        ),
        (
            (),
            {"Conv2d_4a_3x3.conv.weight": np.zeros((12, 9, 3, 3), np.float32)},
            r"is not .*\(other shapes\)",
        ),
        pytest.param(
            (),
            {"Conv2d_4a_3x3.bn.bias": np.zeros(9, np.float32)},
            r"\('Conv2d_4a_3x3' has other shapes\)",
            marks=pytest.mark.slow,
        ),
        (
            (),
            {"a\nb.conv.weight": np.zeros((9, 9, 1, 1), np.float32)},
            r"has no 'a\\nb\.bn\.weight', so it is not",
        ),
        pytest.param(
            (),
            {"Conv2d_4a_3x3.conv.weight": np.zeros(12, np.float32)},
            r"\('Conv2d_4a_3x3' has other shapes\)",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_weights_that_are_not_those_are_refused(torch_writer, tmp_path, drop, changes, says):
    path = small(torch_writer, tmp_path, drop, **changes)
    with pytest.raises(UserError, match=says) as refused:
        Inception(str(path)).load()
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_where_the_file_is_looked_for_and_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFENC_DATA", str(tmp_path))
    for weights, where in ((None, tmp_path / inception.FILE), ("~/w.pth", "w.pth")):
        with pytest.raises(UserError, match=r"bind features\.inception\.weights") as refused:
            Inception(weights).identity()
        assert str(where) in str(refused.value)
        assert "bind fid.features to other features" in str(refused.value)
    (tmp_path / inception.FILE).write_bytes(b"weights")
    assert Inception().identity() == Inception(str(tmp_path / inception.FILE)).identity()


def test_the_identity_is_of_the_file_and_of_how_images_are_resized(tmp_path, monkeypatch):
    path = tmp_path / "w.pth"
    path.write_bytes(b"abc")
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of the standard
    monkeypatch.setattr(inception, "VERSION", 7)
    assert Inception(str(path)).identity() == f"{sha256} port v7"
    assert Inception(str(path), "graph").identity() == f"{sha256} graph v7"
    with pytest.raises(
        UserError, match=r"features\.inception\.preprocess = 'tf': must be one of port, graph"
    ):
        Inception(preprocess="tf")


def test_fid_is_of_the_published_weights_and_the_usual_resizing_alone(tmp_path, monkeypatch):
    path = tmp_path / "w.pth"
    path.write_bytes(b"abc")
    assert Inception(str(path)).metric() == "fd_inception"
    assert inception.SHA256_START == "6726825d"
    monkeypatch.setattr(inception, "SHA256_START", "ba7816bf")
    assert Inception(str(path)).metric() == "fid"
    assert Inception(str(path), "graph").metric() == "fd_inception"
    with pytest.raises(UserError, match="no such file"):
        Inception(str(tmp_path / "absent")).metric()


def test_a_file_of_other_weights_is_told_of(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(inception.logging, "warning", lambda line, *values: said.append(line % values))
    path = tmp_path / "w.pth"
    path.write_bytes(b"abc")
    Inception(str(path)).identity()
    assert "is not the published" in said[0]
    assert "called fd_inception" in said[0]
    monkeypatch.setattr(inception, "SHA256_START", "ba7816bf")
    Inception(str(path)).identity()
    assert len(said) == 1


def test_the_file_is_read_by_what_runs_nothing(tmp_path):
    path = tmp_path / "w.pth"
    path.write_bytes(b"cposix\nsystem\n(S'true'\ntR.")
    with pytest.raises(UserError, match=r"asks for 'posix\.system'"):
        Inception(str(path)).load()
    assert inception.torch_file is torch_file
