"""Pictures embedded in the page: grids of samples, and the encoder's heat maps, one for each t."""

import base64
import dataclasses
import io

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from diffenc.evaluation import plots
from diffenc.evaluation.image_grid import make_grid, to_uint8
from diffenc.evaluation.saved_records import finite_number
from diffenc.evaluation.uncertainty_format import round_to_error
from diffenc.tools.report.formatting import format_count
from diffenc.tools.report.run_data import FigureData, RunData

MAX_BYTES = 1_500_000  # of a grid of samples, and approximately of the frames of a run
MAX_IMAGES = 10  # with heat maps
COLUMNS = 5
GAP = 14  # the space between images is 1 / GAP of their side


@dataclasses.dataclass(frozen=True)
class Picture:
    """An embedded PNG.

    Attributes:
      source: a data: URL.
      alt: description for screen readers.
    """

    source: str
    width: int
    height: int
    alt: str


@dataclasses.dataclass(frozen=True)
class Frames:
    """The changes of images by one run's encoder, with a frame for each t.

    Attributes:
      images: the original images.
      change: for each t, its picture and the limit of its colour scale.
      encoded: for each t; empty without data for the same step, images and times.
    """

    run: int
    label: str
    note: str
    images: Picture
    change: tuple[tuple[Picture, str], ...]
    encoded: tuple[Picture, ...]

    @property
    def size(self) -> int:
        """Number of characters of all its pictures."""
        return sum(len(one.source) for one in (self.images, *(one for one, _ in self.change), *self.encoded))


def load_samples(run: RunData) -> tuple[Picture, str] | str | None:
    """Returns the newest grid and its caption; or the reason why it is not shown; None if there is none."""
    figure = run.figures.get("samples")
    drawn = _draw_samples(figure) if figure else None
    if run.samples is None or (
        drawn and figure and (finite_number(figure.record["of"].get("step")) or 0) > run.samples[1]
    ):
        return drawn
    name, step, data = run.samples
    if len(data) > MAX_BYTES:
        return drawn or f"samples/{name} has {len(data):,} bytes, more than the limit of {MAX_BYTES:,}."
    caption = f"samples/{name}, step {step:,}"
    picture = embed_png(data, f"Grid of samples drawn from the model at step {step:,}")
    return (picture, caption) if picture else drawn or f"samples/{name} is not a PNG, or is damaged."


def embed_png(data: bytes, alt: str) -> Picture | None:
    """Returns a PNG file as a picture; None if it is not a valid one."""
    try:
        # One format: Pillow's decoders of others are not run on
        # untrusted files. verify checks the chunks' checksums.
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            width, height = image.size
            image.verify()
    except Exception:  # Pillow fails in many ways
        return None
    return Picture(f"data:image/png;base64,{base64.b64encode(data).decode()}", width, height, alt)


def encode_png(pixels: UInt8[np.ndarray, "h w c"], alt: str) -> Picture:
    """Returns an array of 1, 3 or 4 channels as a picture."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG", optimize=True)
    source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Picture(source, pixels.shape[1], pixels.shape[0], alt)


def _format_step(figure: FigureData) -> str:
    return format_count(figure.record["of"].get("step"))


def _draw_samples(figure: FigureData) -> tuple[Picture, str] | None:
    """Draws a grid and its caption from the levels that --mode=figures writes."""
    levels, num_levels = figure.arrays.get("levels"), finite_number(figure.record.get("num_levels"))
    step = _format_step(figure)
    # The array comes from an untrusted file: its size bounds the work.
    if levels is None or num_levels is None or levels.size > MAX_BYTES:
        return None
    try:
        sheet = make_grid(to_uint8(levels, int(num_levels)), scale=2)
    except Exception:  # other shapes or types fail in many ways
        return None
    return encode_png(
        sheet, f"Grid of samples drawn from the model at step {step}"
    ), f"figures/samples, step {step}"


def make_frames(index: int, run: RunData) -> tuple[tuple[float, ...], Frames] | str | None:
    """Returns the times and the frames; or the reason why they cannot be shown; None without heat maps."""
    figure = run.figures.get("heat_maps")
    if figure is None:
        return None
    if figure.record.get("note"):
        return str(figure.record["note"])
    try:
        x, change = (_replace_non_finite(figure.arrays[name])[:MAX_IMAGES] for name in ("x", "change"))
        times = tuple(t for t in map(finite_number, figure.record["t"]) if t is not None)
        if not change.size or x.ndim != 4 or change.shape != (len(x), len(times), *x.shape[1:3]):
            raise ValueError("other shapes")
    except (KeyError, TypeError, ValueError):
        return "figures/heat_maps.npz does not contain valid heat maps."
    if not change.any():
        return f"This encoder does not depend on t (step {_format_step(figure)})."
    frames = _draw_frames(index, run, figure, times, x, change)
    if frames.size > MAX_BYTES and len(x) > 1:
        # Proportional: images compress about alike.
        fewer = max(1, len(x) * MAX_BYTES // frames.size)
        frames = _draw_frames(index, run, figure, times, x[:fewer], change[:fewer])
    return times, frames


def _draw_frames(
    index: int, run: RunData, figure: FigureData, times: tuple[float, ...], x: np.ndarray, change: np.ndarray
) -> Frames:
    limits = np.abs(change).max(axis=(0, 2, 3))
    colours = plots.diverging_colours(change, limits[:, None, None])
    rows = figure.record.get("rows")
    which = ", ".join(map(str, rows[: len(x)])) if isinstance(rows, list) else f"{len(x)} images"
    gap = finite_number(figure.record.get("gap")) or 0.0
    parts = []
    for index_of_t, (t, limit) in enumerate(zip(times, limits, strict=True)):
        alt = f"{run.label}: change of the encoded images at t = {t:g}, at most {limit:.2g} per unit of t"
        parts.append(
            (encode_png(tile_images(colours[:, index_of_t]), f"{alt}. {which}"), _format_limit(float(limit)))
        )
    note = f"Step {_format_step(figure)}, {which}. Change from t − {gap:g} to t."
    images = encode_png(tile_images(plots.to_rgb(x)), f"The original images: {which}")
    return Frames(index, run.label, note, images, tuple(parts), _draw_encoded(run, figure, times, x))


def _draw_encoded(
    run: RunData, heat_maps: FigureData, times: tuple[float, ...], x: np.ndarray
) -> tuple[Picture, ...]:
    """Returns the encoded images if they are of the same step, images and times; else none."""
    figure = run.figures.get("encoded")
    x_phi = None if figure is None else figure.arrays.get("x_phi")
    if figure is None or x_phi is None or x_phi.ndim != 5 or figure.record.get("t") != list(times):
        return ()
    if figure.record["of"].get("step") != heat_maps.record["of"].get("step"):
        return ()
    x_phi = _replace_non_finite(x_phi)[: len(x)]
    if not np.array_equal(_replace_non_finite(figure.arrays.get("x", np.zeros(0)))[: len(x)], x):
        return ()
    return tuple(
        encode_png(tile_images(plots.to_rgb(x_phi[:, index])), f"{run.label}: encoded images at t = {t:g}")
        for index, t in enumerate(times)
    )


def tile_images(colours: Float[np.ndarray, "n h w 3"]) -> UInt8[np.ndarray, "rows cols 4"]:
    """Arranges images in rows of COLUMNS, with transparent gaps."""
    n, height, width, _ = colours.shape
    columns, gap = min(COLUMNS, n), max(1, round(max(height, width) / GAP))
    cells = np.zeros((-(-n // columns) * columns, height + gap, width + gap, 4), np.uint8)
    cells[:n, :height, :width, :3] = np.round(255 * colours)
    cells[:n, :height, :width, 3] = 255
    rows = cells.reshape(-1, columns, *cells.shape[1:]).swapaxes(1, 2)
    return rows.reshape(-1, columns * (width + gap), 4)[:-gap, :-gap]


def _format_limit(limit: float) -> str:
    return f"± {round_to_error(limit, limit).error}" if limit else "0"


def _replace_non_finite(values: np.ndarray) -> np.ndarray:
    return np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
