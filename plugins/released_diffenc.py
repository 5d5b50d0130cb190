"""The authors' released checkpoints of DiffEnc (arXiv:2310.19789), as trained models of ours.

  python -m diffenc_plugins.released_diffenc FILE --gin_file=gin/cifar10_diffenc_32_4.gin --output=DIR

FILE is a flax checkpoint, or an .npz with the same names; the run file is that of the model in FILE, followed by
--gin_file=gin/learned_endpoints.gin if the ends of the schedule were learned. `diffenc.load("DIR")` loads the result.
The names follow the published code: "GroupNorm_0" and "dense0" are flax's and VDM's, and
`up_blocks_0` is the deepest level. Convolutions have the same layout, except transposed ones; blocks are stored one by one there,
and stacked by shape here.
"""

import functools
import re
import sys
from collections.abc import Mapping

import numpy as np

from diffenc.cli import foreign_weights
from diffenc_plugins.networks.stacks import BlockShape
from diffenc_plugins.schedules.builtin import SMALLEST_DROP

# Applied in this order, each pattern to the result of the ones before.
NAMES = (
    (r"^score_model/(VDMUNet_0/)?", "network/"),
    (r"^encdec/inner_encoder/(enc_model/)?", "encoder/"),
    (r"(TimeEmbedding_0|time_embedding)/dense", "embed_"),
    (r"\bmid(\.block|_resnet)_1", "middle_0"),
    (r"\bmid(\.block|_resnet)_2", "middle_1"),
    (r"\bmid[._]attn_1", "attention"),
    (r"\b(down|up)\.block_", r"\1_"),
    (r"\bup_blocks_0/conv_trans", "unpool_1"),  # there are always two levels
    (r"\bup_blocks_1/conv_trans", "unpool_0"),
    (r"\b(?:down|up)_blocks_\d/(down|up)_(\d)_resnet_block/", r"\1_\2_0/"),  # of m = 2
    (r"\b(?:down|up)_blocks_\d/(down|up)_(\d)_resnet_block(\d)/", r"\1_\2_\3/"),
    (r"\bnin_shortcut\b", "shortcut"),
    (r"\bcond_proj\b", "embedding"),
    (r"\bproj_out\b", "out"),
    (r"/q/", "/query/"),
    (r"/k/", "/key/"),
    (r"/v/", "/value/"),
    (r"\bconv1\b", "conv_0"),
    (r"\bconv2\b", "conv_1"),
    (r"\battention/GroupNorm_0", "attention/norm"),
    (r"^(network|encoder)/GroupNorm_0", r"\1/norm_out"),
    (r"\bGroupNorm_", "norm_"),
    (r"(norm\w*)/bias$", r"\1/offset"),
    (r"/kernel$", "/w"),
    (r"/bias$", "/b"),
)

WAYS = ("down", "middle", "up")
BLOCK = re.compile(
    rf"(?P<network>network|encoder)/(?P<place>(?:{'|'.join(WAYS)})(?:_\d{{1,5}}){{1,2}})/(?P<leaf>.+)"
)


def name_of(theirs: str) -> str:
    """Returns our name of the parameter that they call `theirs`; for an unknown parameter, a name that no model here has."""
    ours = theirs
    for pattern, replacement in NAMES:
        ours = re.sub(pattern, replacement, ours)
    return ours


def translate(theirs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns their parameters by our names and in our layout; gamma = b + |w| t is our -(start - drop t)."""
    ends = {name: array for name, array in theirs.items() if name in ("gamma/b", "gamma/w")}
    ours = {name_of(name): _laid_out(name, array) for name, array in theirs.items() if name not in ends}
    if len(ours) + len(ends) < len(theirs):
        raise ValueError("two of these names are one of ours")
    ours = stack_blocks(ours)
    if "gamma/b" in ends:
        # gamma is -log_snr: gamma(0) = b is minus our log_snr at t = 0.
        ours["schedule/start"] = np.asarray(-ends["gamma/b"].reshape(()))
    if "gamma/w" in ends:
        ours["schedule/raw_drop"] = raw_drop(ends["gamma/w"].reshape(()))
    return ours


def stack_blocks(named: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Stacks separate blocks, such as "network/down_3/conv_0/w", in the layout of our networks.

    Blocks of one shape are stacked in the order of computation; a block of unknown shape is left as it is.
    """
    stacks: dict[str, list[tuple[tuple[int, ...], np.ndarray]]] = {}
    others = {}
    for name, array in named.items():
        found = BLOCK.match(name)
        kernel = named.get(f"{found['network']}/{found['place']}/conv_0/w") if found else None
        if found is None or kernel is None or kernel.ndim != 4:
            others[name] = array
            continue
        stack = BlockShape(*kernel.shape[2:]).stack
        stacks.setdefault(f"{found['network']}/{stack}/{found['leaf']}", []).append(
            (_order(found["place"]), array)
        )
    for name, parts in stacks.items():
        if len({array.shape for _, array in parts}) > 1:
            raise ValueError(f"blocks of one shape differ in {name}")
        others[name] = np.stack([array for _, array in sorted(parts, key=lambda part: part[0])])
    return others


def _order(place: str) -> tuple[int, ...]:
    """Returns a block's sort key in its network's order of computation: down, middle, up; upwards the deepest level first."""
    way, *numbers = place.split("_")
    level, number = map(int, numbers) if len(numbers) == 2 else (0, int(numbers[0]))
    return WAYS.index(way), -level if way == "up" else level, number


def _laid_out(name: str, array: np.ndarray) -> np.ndarray:
    """Returns an array in our layout: kernels of transposed convolutions are HWIO in flax, HWOI here."""
    return array.swapaxes(2, 3) if name.endswith("/conv_trans/kernel") and array.ndim == 4 else array


def raw_drop(w: np.ndarray) -> np.ndarray:
    """Returns the raw_drop at which softplus(raw_drop) + SMALLEST_DROP = |w|; drops below the floor become the floor."""
    # log(e^d - 1) = d + log(1 - e^-d), the inverse of softplus
    # without overflow; in float64, since |w| - SMALLEST_DROP may cancel.
    drop = np.maximum(np.abs(w.astype(np.float64)) - SMALLEST_DROP, 1e-6)
    return np.asarray(drop + np.log(-np.expm1(-drop)), np.float32)


parse = functools.partial(foreign_weights.parse_args, str(__doc__))
main = functools.partial(foreign_weights.main, translate, "the authors of DiffEnc", str(__doc__))


if __name__ == "__main__":
    sys.exit(main())
