"""Pictures within the page: grids of samples, and the encoder's heat maps, one for each t."""

import base64
import dataclasses
import io

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from diffenc.evaluation import plots
from diffenc.evaluation.image_grid import make_grid, to_uint8
from diffenc.evaluation.records import finite_number
from diffenc.evaluation.uncertainty_format import round_to_error
from diffenc.tools.report.run_data import FigureData, RunData

MOST = 1_500_000  # bytes of a grid of samples, and about so many letters of a run's frames
MOST_IMAGES = 10  # whose heat maps are shown
COLUMNS = 5
GAP = 14  # what part of an image's side lies between two images


@dataclasses.dataclass(frozen=True)
class Picture:
    """A PNG within the page.

    Attributes:
      source: a data: address.
      alt: what it shows.
    """

    source: str
    width: int
    height: int
    alt: str


@dataclasses.dataclass(frozen=True)
class Frames:
    """How one run's encoder changes images, a frame for each t.

    Attributes:
      images: the images themselves.
      change: of each t its picture, and the limit of its colours.
      encoded: of each t; empty where it was not filed for the same step, images and times.
    """

    run: int
    label: str
    note: str
    images: Picture
    change: tuple[tuple[Picture, str], ...]
    encoded: tuple[Picture, ...]

    @property
    def size(self) -> int:
        """Letters that its pictures take."""
        return sum(len(one.source) for one in (self.images, *(one for one, _ in self.change), *self.encoded))


def samples(held: RunData) -> tuple[Picture, str] | str | None:
    """The newest grid and what it is; or why it is not shown; None where there is none."""
    filed = held.numbers("samples")
    drawn = _drawn_samples(filed) if filed else None
    if held.samples is None or (
        drawn and filed and (finite_number(filed.record["of"].get("step")) or 0) > held.samples[1]
    ):
        return drawn
    name, step, data = held.samples
    if len(data) > MOST:
        return (
            drawn
            or f"samples/{name} has {len(data):,} bytes, more than the {MOST:,} that this page takes in."
        )
    said = f"samples/{name}, step {step:,}"
    picture = embedded(data, f"Grid of samples drawn from the model at step {step:,}")
    return (picture, said) if picture else drawn or f"samples/{name} is no PNG, or a damaged one."


def embedded(data: bytes, alt: str) -> Picture | None:
    """A PNG as it is; None if it is none."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            width, height = image.size
            image.verify()
    except Exception:  # Pillow fails in many ways
        return None
    return Picture(f"data:image/png;base64,{base64.b64encode(data).decode()}", width, height, alt)


def png(pixels: UInt8[np.ndarray, "h w c"], alt: str) -> Picture:
    """An array of 1, 3 or 4 channels as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG", optimize=True)
    source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Picture(source, pixels.shape[1], pixels.shape[0], alt)


def _drawn_samples(filed: FigureData) -> tuple[Picture, str] | None:
    """From the levels that --mode=figures keeps."""
    levels, num_levels = filed.arrays.get("levels"), finite_number(filed.record.get("num_levels"))
    of = filed.record["of"]
    if levels is None or num_levels is None or levels.size > MOST:
        return None
    try:
        sheet = make_grid(to_uint8(levels, int(num_levels)), scale=2)
    except Exception:  # whatever is in the file is no such grid
        return None
    said = f"figures/samples, step {of.get('step')}"
    return png(sheet, f"Grid of samples drawn from the model at step {of.get('step')}"), said


def frames(run: int, held: RunData) -> tuple[tuple[float, ...], Frames] | str | None:
    """The times, and the frames; or why there are none to show; None where nothing was filed."""
    filed = held.numbers("heat_maps")
    if filed is None:
        return None
    if filed.record.get("note"):
        return str(filed.record["note"])
    try:
        x, change = (_finite(filed.arrays[name])[:MOST_IMAGES] for name in ("x", "change"))
        times = tuple(t for t in map(finite_number, filed.record["t"]) if t is not None)
        if not change.size or x.ndim != 4 or change.shape != (len(x), len(times), *x.shape[1:3]):
            raise ValueError("other shapes")
    except (KeyError, TypeError, ValueError):
        return "figures/heat_maps.npz does not hold the arrays of heat maps."
    if not change.any():
        return f"This encoder changes nothing over t (step {filed.record['of'].get('step')})."
    found = _frames(run, held, filed, times, x, change)
    if found.size > MOST and len(x) > 1:
        fewer = max(1, len(x) * MOST // found.size)
        found = _frames(run, held, filed, times, x[:fewer], change[:fewer])
    return times, found


def _frames(
    run: int, held: RunData, filed: FigureData, times: tuple[float, ...], x: np.ndarray, change: np.ndarray
) -> Frames:
    limits = np.abs(change).max(axis=(0, 2, 3))
    shown = plots.diverging_colours(change, limits[:, None, None])
    rows = filed.record.get("rows")
    which = ", ".join(map(str, rows[: len(x)])) if isinstance(rows, list) else f"{len(x)} images"
    gap = finite_number(filed.record.get("gap")) or 0.0
    parts = []
    for place, (t, limit) in enumerate(zip(times, limits, strict=True)):
        alt = f"{held.label}: change of the encoded images at t = {t:g}, at most {limit:.2g} per unit of t"
        parts.append((png(tiles(shown[:, place]), f"{alt}. {which}"), _limit(float(limit))))
    note = f"Step {filed.record['of'].get('step')}, {which}. Change from t − {gap:g} to t."
    images = png(tiles(plots.to_rgb(x)), f"The images themselves: {which}")
    return Frames(run, held.label, note, images, tuple(parts), _encoded(held, filed, times, x))


def _encoded(
    held: RunData, heat_maps: FigureData, times: tuple[float, ...], x: np.ndarray
) -> tuple[Picture, ...]:
    """Of the same encoder, images and times alone."""
    filed = held.numbers("encoded")
    x_phi = None if filed is None else filed.arrays.get("x_phi")
    if filed is None or x_phi is None or x_phi.ndim != 5 or filed.record.get("t") != list(times):
        return ()
    if filed.record["of"].get("step") != heat_maps.record["of"].get("step"):
        return ()
    x_phi = _finite(x_phi)[: len(x)]
    if not np.array_equal(_finite(filed.arrays.get("x", np.zeros(0)))[: len(x)], x):
        return ()
    return tuple(
        png(tiles(plots.to_rgb(x_phi[:, place])), f"{held.label}: encoded images at t = {t:g}")
        for place, t in enumerate(times)
    )


def tiles(colours: Float[np.ndarray, "n h w 3"]) -> UInt8[np.ndarray, "rows cols 4"]:
    """Images in rows of COLUMNS, a little apart; what is between them is transparent."""
    n, height, width, _ = colours.shape
    columns, gap = min(COLUMNS, n), max(1, round(max(height, width) / GAP))
    cells = np.zeros((-(-n // columns) * columns, height + gap, width + gap, 4), np.uint8)
    cells[:n, :height, :width, :3] = np.round(255 * colours)
    cells[:n, :height, :width, 3] = 255
    rows = cells.reshape(-1, columns, *cells.shape[1:]).swapaxes(1, 2)
    return rows.reshape(-1, columns * (width + gap), 4)[:-gap, :-gap]


def _limit(limit: float) -> str:
    return f"± {round_to_error(limit, limit).error}" if limit else "0"


def _finite(values: np.ndarray) -> np.ndarray:
    return np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
