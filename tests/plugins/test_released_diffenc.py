"""The released checkpoints' names: trees built from how the published code's modules nest, block by block.

Sizes are those of the published models, arrays that take no memory. What the numbers mean is tested in tests/golden.
"""

import numpy as np
import pytest

from diffenc.config import gin_loader
from diffenc.export.loading import abstract_names
from diffenc_plugins import released_diffenc

# As the authors' code counts them, without the two numbers of learned ends: (score network, encoder).
PUBLISHED = {
    "mnist_vdmv_8": (8_891_393, 0),
    "cifar10_vdmv_32": (30_578_179, 0),
    "cifar10_diffenc_8_nt": (8_905_219, 0),
    "mnist_diffenc_8_2": (8_891_393, 1_903_937),
    "cifar10_diffenc_8_2": (8_905_219, 1_906_243),
    "cifar10_diffenc_8_4": (8_905_219, 2_744_131),
    "imagenet32_diffenc_32_8": (122_137_603, 4_419_907),
}


def conv(name, side, before, after):
    return {f"{name}/kernel": (side, side, before, after), f"{name}/bias": (after,)}


def dense(name, before, after):
    return {f"{name}/kernel": (before, after), f"{name}/bias": (after,)}


def norm(name, channels):
    return {f"{name}/scale": (channels,), f"{name}/bias": (channels,)}


def resnet(name, before, after, embedding):
    return {
        **norm(f"{name}/GroupNorm_0", before),
        **conv(f"{name}/conv1", 3, before, after),
        f"{name}/cond_proj/kernel": (embedding, after),
        **norm(f"{name}/GroupNorm_1", after),
        **conv(f"{name}/conv2", 3, after, after),
        **(dense(f"{name}/nin_shortcut", before, after) if before != after else {}),
    }


def attention(name, channels):
    parts = [dense(f"{name}/{part}", channels, channels) for part in ("q", "k", "v", "proj_out")]
    return {
        key: shape for part in (norm(f"{name}/GroupNorm_0", channels), *parts) for key, shape in part.items()
    }


def ends(name, time, before, width, pixels):
    """The time embedding with the condition's one number, and the first and last layers."""
    return {
        **dense(f"{name}/{time}/dense0", width + 1, 4 * width),
        **dense(f"{name}/{time}/dense1", 4 * width, 4 * width),
        **conv(f"{name}/conv_in", 3, before, width),
        **norm(f"{name}/GroupNorm_0", width),
        **conv(f"{name}/conv_out", 3, width, pixels),
    }


def score(n, width, pixels):
    unet, tree = "score_model/VDMUNet_0", ends("score_model", "TimeEmbedding_0", 5 * pixels, width, pixels)
    for i in range(n):
        tree |= resnet(f"{unet}/down.block_{i}", width, width, 4 * width)
    for i in (1, 2):
        tree |= resnet(f"{unet}/mid.block_{i}", width, width, 4 * width)
    tree |= attention(f"{unet}/mid.attn_1", width)
    for i in range(n + 1):
        tree |= resnet(f"{unet}/up.block_{i}", 2 * width, width, 4 * width)
    return tree


def encoder(m, pixels):
    """Two levels of 64 and 128 channels, m / 2 blocks in each; only where there are several are they numbered."""
    name, widths, embedding = "encdec/inner_encoder", (64, 128), 256
    unet, tree = f"{name}/enc_model", ends(name, "time_embedding", pixels, 64, pixels)
    numbers = [""] if m == 2 else list(range(m // 2))
    before = 64
    for level, width in enumerate(widths):
        for number in numbers:
            tree |= resnet(
                f"{unet}/down_blocks_{level}/down_{level}_resnet_block{number}", before, width, embedding
            )
            before = width
    for i in (1, 2):
        tree |= resnet(f"{unet}/mid_resnet_{i}", 128, 128, embedding)
    tree |= attention(f"{unet}/mid_attn_1", 128)
    for place, level in enumerate((1, 0)):
        width, block = widths[level], f"{unet}/up_blocks_{place}"
        tree |= conv(f"{block}/conv_trans", 2, 128, width)
        before = 2 * width
        for number in numbers:
            tree |= resnet(f"{block}/up_{level}_resnet_block{number}", before, width, embedding)
            before = width
    return tree


def tree_of(name):
    """The published model behind a run file: shapes by their names."""
    dataset, _, n, m = (*name.split("_"), "")[:4]
    pixels = 1 if dataset == "mnist" else 3
    width = 256 if dataset == "imagenet32" else 128
    return score(int(n), width, pixels), encoder(int(m), pixels) if m.isdigit() else {}


def arrays_of(shapes):
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "cifar10_diffenc_8_2" else pytest.mark.slow)
        for name in PUBLISHED
    ],
)
def test_every_parameter_has_its_place(name):
    parts = tree_of(name)
    assert tuple(sum(int(np.prod(shape)) for shape in part.values()) for part in parts) == PUBLISHED[name]
    ours = released_diffenc.translate(arrays_of({**parts[0], **parts[1]}))
    wanted = abstract_names(gin_loader.load_experiment([f"gin/{name}.gin"], []))
    assert {key: array.shape for key, array in ours.items()} == {
        key: leaf.shape for key, leaf in wanted.items()
    }


@pytest.mark.parametrize(("w", "b"), [(18.3, -13.3), (-18.3, -13.3), (0.5, 2.0)])
def test_learned_ends_are_the_same_line(w, b):
    """gamma(t) = b + |w| t, and log-SNR is -gamma; ours is computed by hand."""
    ours = released_diffenc.translate(
        {"gamma/w": np.array([w], np.float32), "gamma/b": np.array([b], np.float32)}
    )
    assert {name: array.shape for name, array in ours.items()} == {
        "schedule/start": (),
        "schedule/raw_drop": (),
    }
    for t in (0.0, 0.4, 1.0):
        log_snr = ours["schedule/start"] - (np.log1p(np.exp(ours["schedule/raw_drop"])) + 0.01) * t
        assert log_snr == pytest.approx(-(b + abs(w) * t), abs=1e-4)
    wanted = abstract_names(
        gin_loader.load_experiment(["gin/mnist_vdmv_8.gin", "gin/learned_endpoints.gin"], [])
    )
    assert {name for name in wanted if name.startswith("schedule/")} == ours.keys()


def test_ends_that_met_stay_as_close_as_ours_can():
    ours = released_diffenc.translate(
        {"gamma/w": np.zeros(1, np.float32), "gamma/b": np.zeros(1, np.float32)}
    )
    assert np.log1p(np.exp(ours["schedule/raw_drop"].astype(np.float64))) < 1e-5


def test_transposed_convolutions_change_their_layout_and_no_other():
    kernel = np.arange(2 * 2 * 3 * 5, dtype=np.float32).reshape(2, 2, 3, 5)
    block = "encdec/inner_encoder/enc_model/up_blocks_0"
    ours = released_diffenc.translate(
        {f"{block}/conv_trans/kernel": kernel, "score_model/conv_in/kernel": kernel}
    )
    turned = ours["encoder/unpool_1/w"]
    assert all(turned[i, j, c, d] == kernel[i, j, d, c] for i, j, d, c in np.ndindex(kernel.shape))
    np.testing.assert_array_equal(ours["network/conv_in/w"], kernel)


def test_names_of_no_published_model_stay_unknown():
    shapes = {
        "score_model/VDMUNet_0/down.attn_0/q/kernel": (4, 4),
        "encdec/other/kernel": (1,),
        "gamma/c": (1,),
    }
    wanted = abstract_names(gin_loader.load_experiment(["gin/cifar10_diffenc_8_2.gin"], []))
    assert not released_diffenc.translate(arrays_of(shapes)).keys() & wanted.keys()


def test_two_names_that_would_be_one_are_not_merged():
    names = ("score_model/VDMUNet_0/down.block_0/conv1/bias", "score_model/down.block_0/conv1/bias")
    with pytest.raises(ValueError, match="two of these names"):
        released_diffenc.translate(arrays_of(dict.fromkeys(names, (4,))))


def test_the_command_says_what_it_wants(capsys):
    with pytest.raises(SystemExit) as left:
        released_diffenc.main(["--help"])
    assert left.value.code == 0
    assert "--gin_file" in capsys.readouterr().out
