"""The settings of --mode=fid."""

import dataclasses

from diffenc.config.settings import check_bounds, check_seed, require
from diffenc.fields.checked import checked
from diffenc.interfaces import SPLITS, Features


@checked("fid")
@dataclasses.dataclass(frozen=True)
class Fid:
    """Settings of --mode=fid; the settings of sampling, except `num` and `seed`, are in `sample`.

    Attributes:
      features: the features by which images are compared; None = features.inception.
      nums: numbers of samples to compare; smaller numbers use the first samples of the largest.
      splits: the splits with which samples are compared.
      num_images: number of images of each split, drawn by the seed; None = all.
      batch_size: samples drawn at a time. A stopped run loses at most as many.
      kid_images: maximal number of samples, and of images of a split, in the kernel distance.
      kid_block: number of images per block of the kernel distance.
      seed: seed of the samples.
    """

    features: Features | None = None
    nums: tuple[int, ...] = (10_000, 50_000)
    splits: tuple[str, ...] = ("train", "test")
    num_images: int | None = None
    batch_size: int = 256
    kid_images: int = 10_000
    kid_block: int = 1_000
    seed: int = 0

    def __post_init__(self):
        check_seed("fid.seed", self.seed)
        require(
            bool(self.nums) and min(self.nums) >= 2, f"fid.nums = {self.nums}: must be of 2 samples or more"
        )
        require(bool(self.splits), "fid.splits is empty: name one or more splits")
        for split in self.splits:
            require(split in SPLITS, f"fid.splits = {self.splits!r}: must be of {', '.join(SPLITS)}")
        given = self.num_images is None or self.num_images >= 2
        require(given, f"fid.num_images = {self.num_images}: must be at least 2")
        check_bounds("fid", self, batch_size=1, kid_images=2, kid_block=2)
