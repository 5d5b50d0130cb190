"""Images of one's own."""

import dataclasses

from diffenc.data.manifest import Manifest
from diffenc.data.prepared import Prepared
from diffenc.registry import datasets


@datasets.register("array_record")
@dataclasses.dataclass(frozen=True)
class ArrayRecord(Prepared):
    """Whatever was prepared into DATA_DIR/`folder`: shape, levels and classes are those of its manifest.

    Attributes:
      validation: number of images cut from train, spread over it.
      folder: where in DATA_DIR the prepared data lie; must be bound.
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
