"""A user's own images."""

import dataclasses

from diffenc.data.manifest import Manifest
from diffenc.data.prepared import Prepared
from diffenc.registry import datasets


@datasets.register("array_record")
@dataclasses.dataclass(frozen=True)
class ArrayRecord(Prepared):
    """The data set prepared in DATA_DIR/`folder`; shape, levels and classes come from its manifest.

    Attributes:
      validation: number of images cut from train, spread over it.
      folder: the folder of the prepared data in DATA_DIR; must be bound.
    """

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self._found().image_shape

    @property
    def num_levels(self) -> int:
        return self._found().num_levels

    @property
    def num_classes(self) -> int:
        return self._found().num_classes

    def manifest(self) -> Manifest:
        return self._found()
