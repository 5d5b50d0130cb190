"""The released checkpoints of VDM (arXiv:2107.00630), as trained models of ours.

  python -m diffenc_plugins.released_vdm FILE --gin_file=gin/cifar10_vdmv_32.gin --gin_file=gin/vdm_released.gin --output=DIR

FILE is a flax checkpoint, or an .npz with the same names; the first run file has the sizes of the model in FILE.
`diffenc.load("DIR")` loads the result. The network's names are those of DiffEnc's published code
(`diffenc_plugins.released_diffenc`), except for the two layers of the time embedding. The learned schedule, l1 to l3 of VDM's
App. I.2, becomes `schedule.monotone` of as many units, which divides by the whole rise:

  gamma(t) = b_1 + |w_1| t + sum_k |v_k| (2 sigmoid(2 |a_k| (t - 1/2) + c_k) - 1) / K, log-SNR = -gamma.
"""

import functools
import re
import sys
from collections.abc import Mapping

import numpy as np
from scipy.special import expit

from diffenc.cli import foreign_weights
from diffenc_plugins import released_diffenc
from diffenc_plugins.schedules import monotone
from diffenc_plugins.schedules.monotone import invert_positive

GAMMA = tuple(f"gamma/{name}" for name in ("l1/kernel", "l1/bias", "l2/kernel", "l2/bias", "l3/kernel"))
LEAST = 1e-12  # of what ours has above zero


def translate(theirs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns their parameters by our names and in our layout.

    Raises:
      ValueError: two names are one of ours, or `schedule.monotone` cannot fall as their schedule does.
    """
    gamma = {name: theirs[name] for name in GAMMA if name in theirs}
    others = {_as_in_diffenc(name): array for name, array in theirs.items() if name not in gamma}
    ours = released_diffenc.translate(others)
    return ours | (translate_gamma(gamma) if len(gamma) == len(GAMMA) else gamma)  # named as none of ours


def translate_gamma(theirs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the parameters of `schedule.monotone`, by our names, at which log-SNR = -gamma; `theirs` are those in `GAMMA`.

    Raises:
      ValueError: the shapes do not match, or less of the rise is linear than `schedule.monotone` allows.
    """
    w_1, b_1, a, c, v = (np.asarray(theirs[name], np.float64).reshape(-1) for name in GAMMA)
    units = len(v)
    if not (len(w_1) == len(b_1) == 1 and len(a) == len(c) == units > 0):
        raise ValueError(
            f"gamma/l1 to l3 hold {len(w_1)}, {len(b_1)}, {len(a)}, {len(c)} and {units} numbers"
        )
    # 2 sigmoid(x) - 1 = 2 (sigmoid(x) - 1/2), and 2 |a| (t - 1/2) + c = 2 |a| t + (c - |a|).
    weight, steepness, offset = 2 * np.abs(v) / units, 2 * np.abs(a), c - np.abs(a)
    bumps = np.sum(weight * (expit(steepness + offset) - expit(offset)))
    rise = np.abs(w_1[0]) + bumps
    gamma_0 = b_1[0] + np.sum(weight * (expit(offset) - 0.5))
    return {
        "schedule/ends/start": np.asarray(-gamma_0, np.float32),
        "schedule/ends/raw_drop": released_diffenc.raw_drop(np.asarray(rise)),
        **_interior(np.abs(w_1[0]) / rise, weight / rise, steepness, offset, bumps / rise),
    }


def _interior(
    linear: float, weight: np.ndarray, steepness: np.ndarray, offset: np.ndarray, bumps: float
) -> dict[str, np.ndarray]:
    """Returns the raw parameters of `schedule.monotone` for these values; its line has at least a part of the `bumps`' rise."""
    units, least = len(weight), monotone.LEAST_SLOPE + monotone.LEAST_LINEAR * bumps
    if not linear > least:
        raise ValueError(
            f"gamma rises by its line, l1, for {linear:.3g} of the whole, and schedule.monotone for {least:.3g} at least"
        )
    raw = {
        "linear": invert_positive(linear - least, 1 - monotone.FIRST_BUMPS),
        "weight": invert_positive(np.maximum(weight, LEAST), monotone.FIRST_BUMPS / units),
        "steepness": invert_positive(np.maximum(steepness, LEAST), monotone.first_steepness(units)),
        "offset": offset + steepness * monotone.centres(units),
    }
    return {f"schedule/interior/{name}": np.asarray(value, np.float32) for name, value in raw.items()}


def _as_in_diffenc(name: str) -> str:
    return re.sub(r"^score_model/dense", "score_model/TimeEmbedding_0/dense", name)


parse = functools.partial(foreign_weights.parse_args, str(__doc__))
main = functools.partial(foreign_weights.main, translate, "the authors of VDM", str(__doc__))


if __name__ == "__main__":
    sys.exit(main())
