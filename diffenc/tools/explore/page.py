"""Rendering of the page: arrays as 8-bit integers, and the template that holds them."""

import base64
import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from diffenc import registry
from diffenc.config.experiment import Experiment
from diffenc.data.sources import dataset_name
from diffenc.errors import UserError
from diffenc.export.trained_model import TrainedModel
from diffenc.tools.explore.arrays import Panels, ShownImages, Times
from diffenc.tools.report.formatting import shorten_digest
from diffenc.tools.report.run_data import unique_labels

NUM_IMAGES, NUM_TIMES, FEW_TIMES = 12, 25, 13  # by default; fewer of large images
PICTURES = 3  # embedded for each run, image and t
DEFAULT_BYTES, MAX_BYTES = 5_500_000, 60_000_000  # of a page's pictures: by default, and at most
LEVELS = 127  # of a quantised value, on each side of 0


def choose_counts(
    experiments: Sequence[Experiment], num_images: int | None, num_times: int | None
) -> tuple[int, int]:
    """Returns the numbers of images and of times; None = by default, for at most DEFAULT_BYTES of pictures.

    Raises:
      UserError: the page would be larger than MAX_BYTES.
    """
    picture = math.prod(experiments[0].dataset.image_shape) * 4 / 3  # bytes in base64
    at_each_time = PICTURES * len(experiments) * picture
    if num_times is None:
        num_times = NUM_TIMES if 4 * NUM_TIMES * at_each_time <= DEFAULT_BYTES else FEW_TIMES
        depths = [experiment.num_timesteps for experiment in experiments]
        num_times = _divide_over_steps(num_times, depths)
    if num_images is None:
        num_images = min(NUM_IMAGES, max(1, int(DEFAULT_BYTES / (num_times * at_each_time))))
    if num_images * num_times * at_each_time > MAX_BYTES:
        raise UserError(
            f"--num_images={num_images} at {num_times} times: the page would have more than {MAX_BYTES:,} bytes; "
            "lower --num_images or --num_times"
        )
    return num_images, num_times


def _divide_over_steps(num_times: int, depths: Sequence[int]) -> int:
    """Returns at most `num_times`, so that they lie equally often in each step of each T (0 = continuous) if they can."""
    common = math.lcm(*(depth for depth in depths if depth))
    if common > num_times:
        return num_times
    # Of chains alone, each step once. Otherwise the mean over t would weigh steps unequally.
    return common if all(depths) else num_times - num_times % common


def render_page(
    models: Sequence[TrainedModel], shown: ShownImages, times: Times, panels: Sequence[Panels]
) -> str:
    """Returns the HTML page of `models`, with what each makes of the images."""
    # autoescape: names of folders, data sets and plugins are untrusted text. The script and the arrays have none.
    report, own = (PackageLoader(f"diffenc.tools.{name}") for name in ("report", "explore"))
    environment = Environment(
        loader=ChoiceLoader([own, report]), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    script = environment.get_template("explore.js").render()
    css = "".join(environment.get_template(name).render() for name in ("style.css", "explore.css"))
    labels = unique_labels([model.name.rstrip("/") or model.name for model in models])
    html = environment.get_template("explore.html.jinja").render(
        # Markup exempts the package's own files from escaping; nothing else on the page is exempt.
        script=Markup(script),
        css=Markup(css),
        # For the content security policy: only this script may run, whatever a text on the page contains.
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=make_data(models, shown, times, panels),
        runs=[(label, describe_run(model, shown)) for label, model in zip(labels, models, strict=True)],
        shown=shown,
        num_times=len(times),
        has_classes=models[0].experiment.dataset.num_classes > 1,
        has_steps=any(model.experiment.num_timesteps for model in models),
    )
    return html.encode(errors="replace").decode().rstrip() + "\n"  # names of folders may hold lone surrogates


def describe_run(model: TrainedModel, shown: ShownImages) -> list[tuple[str, str]]:
    """Returns name and value of each fact about a run."""
    experiment, parts = model.experiment, model.model
    depth = experiment.num_timesteps
    encoder, mean = (
        kind.name_of(type(part)) or type(part).__name__
        for kind, part in (
            (registry.encoders, parts.encoder),
            (registry.generative_means, parts.generative_mean),
        )
    )
    condition = [("Condition", str(parts.conditioning.label))] if parts.condition_metadata() else []
    return [
        ("Data", f"{dataset_name(experiment.dataset)}, {shown.split} split"),
        ("Pixels", shorten_digest(shown.fingerprint)),
        ("Encoder", encoder),
        ("Generative mean", mean),
        ("Path", registry.stochasticities.spell(parts.stochasticity)),
        ("Time", f"T = {depth:,} steps" if depth else "continuous"),
        *condition,
        ("Checkpoint", f"step {model.step:,}"),
    ]


def make_data(
    models: Sequence[TrainedModel], shown: ShownImages, times: Times, panels: Sequence[Panels]
) -> dict[str, Any]:
    """Returns the numbers in the page, as plain JSON without text from the run."""
    return {
        "shape": list(shown.levels.shape[1:]),
        "levels": models[0].experiment.dataset.num_levels,
        "x": encode_bytes(shown.levels),
        "eps": quantise(shown.eps[:, None].astype(np.float64)),
        "images": shown.indices.tolist(),
        "times": round_numbers(times),
        "runs": [
            {
                **{
                    name: round_numbers(getattr(one, name))
                    for name in ("time", "log_snr", "alpha", "sigma", "bits")
                },
                **{name: quantise(getattr(one, name)) for name in ("x_phi", "x_hat", "residual")},
                "steps": model.experiment.num_timesteps,
            }
            for model, one in zip(models, panels, strict=True)
        ],
    }


def quantise(values: Float[np.ndarray, "n t h w c"]) -> dict[str, Any]:
    """Returns the values as integers q: v = limit (q - 128) / 127 with a `limit` for each picture, the largest |v|.

    The error is at most limit / 254. What is not finite becomes 0.
    """
    finite = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    # Rounded up as it is written, so that no value exceeds it.
    limit = np.vectorize(_round_up, otypes=[float])(np.abs(finite).max(axis=(2, 3, 4)))
    scaled = finite / np.where(limit > 0, limit, 1)[..., None, None, None]
    return {"limit": limit.tolist(), "values": encode_bytes(np.round(LEVELS * scaled) + LEVELS + 1)}


def _round_up(value: float) -> float:
    return float(f"{value * (1 + 1e-5):.6g}")


def encode_bytes(values: np.ndarray) -> str:
    """Returns integers from 0 to 255 as base64."""
    return base64.b64encode(values.astype(np.uint8).tobytes()).decode()


def round_numbers(values: Any) -> Any:
    """Returns an array as lists of numbers of six digits; None for what is not finite."""
    if np.ndim(values):
        return [round_numbers(each) for each in values]
    return float(f"{values:.6g}") if math.isfinite(values) else None
