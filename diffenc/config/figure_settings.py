"""The settings of --mode=figures."""

import dataclasses

from diffenc.config.settings import check_images, check_seed, require
from diffenc.fields.checked import checked


@checked("figures")
@dataclasses.dataclass(frozen=True)
class Figures:
    """Settings of --mode=figures, on the checkpoint that evaluation reads.

    Attributes:
      only: names of figures, as ("heat_maps", "spectra"); () = all.
      split: the split of the images.
      images: indices in the split of the images shown; () = one of each class, ten at most, drawn by the seed.
      times: ascending t at which the encoded image and its change are shown.
      gap: t - s in the change (x_t - x_s) / (t - s).
      num_images: number of images in averages, drawn by the seed; None = all. Their encodings at all `times` are held in
        memory together.
      seed: seed of images and of permutations.
    """

    only: tuple[str, ...] = ()
    split: str = "test"
    images: tuple[int, ...] = ()
    times: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    gap: float = 0.1
    num_images: int | None = 256
    seed: int = 0

    def __post_init__(self):
        check_seed("figures.seed", self.seed)
        check_images("figures", self.split, self.num_images)
        require(self.num_images != 1, "figures.num_images = 1: errors over images take at least 2")
        ascending = all(s < t for s, t in zip(self.times, self.times[1:], strict=False))
        require(
            bool(self.times) and ascending and self.times[-1] <= 1,
            f"figures.times = {self.times}: must be ascending, at most 1, and at least one",
        )
        require(
            0 < self.gap <= self.times[0] + 1e-9,
            f"figures.gap = {self.gap}: must be above 0, and at most figures.times[0] = {self.times[0]}, "
            "for t - gap is not below 0",
        )
