"""Reads data sets that tensorflow-datasets prepared as array_record, through tensorflow-datasets itself."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffenc.data.recipe import Recipe
from diffenc.errors import UserError
from diffenc.interfaces import Batch
from diffenc.safe_io.reading import convert_errors

_TEST_NAMES = ("test", "validation", "valid", "val")
_BATCH = 256  # examples read at a time


def make_recipe(source: Path) -> Recipe:
    """Returns the recipe of the data set in `source`, the folder of one version, with dataset_info.json and features.json.

    Raises:
      UserError: tensorflow-datasets is not installed, or `source` has no such data set of uint8 images of one shape.
    """
    builder = _builder(source)
    with convert_errors(source):
        info = builder.info
        image = info.features["image"]
        label = dict(info.features).get("label")
        shape, splits = tuple(image.shape), _splits(source, info.splits)
        sources = {split: builder.as_data_source(name) for split, name in splits.items()}
    if len(shape) != 3 or None in shape or image.np_dtype != np.uint8:
        raise UserError(
            f"{source}: its images are {image.np_dtype} {shape}, not uint8 of one shape (H, W, C)"
        )
    return Recipe(
        name="tfds",
        files={f"{source.name}/": source},
        image_shape=shape,
        num_classes=label.num_classes if label is not None else 1,
        classes=tuple(label.names or ()) if label is not None else (),
        read=lambda split, first: _batches(sources[split], first, str(source)),
        otherwise=f"{info.full_name} of tensorflow-datasets",
        counts={split: len(held) for split, held in sources.items()},
        note=_note(splits, info.splits),
    )


def _builder(source: Path) -> Any:
    try:
        import tensorflow_datasets as tfds  # pyright: ignore[reportMissingImports] - an extra, and large
    except ImportError as error:
        raise UserError(
            "reading what tensorflow-datasets prepared takes tensorflow-datasets: pip install 'diffenc[tfds]'"
        ) from error
    if not (source / "dataset_info.json").is_file():
        raise UserError(
            f"--source={source}: has no dataset_info.json; name the folder of one version of a data set"
        )
    with convert_errors(source):
        builder = tfds.builder_from_directory(str(source))
    # as_data_source, which reads examples by index, needs array_record.
    if builder.info.file_format.value != "array_record":
        raise UserError(
            f"{source}: is prepared as {builder.info.file_format.value}; prepare it again with "
            "tfds.builder(NAME, file_format='array_record').download_and_prepare()"
        )
    return builder


def _splits(source: Path, held: Any) -> dict[str, str]:
    """Returns the names of the train and test splits in tensorflow-datasets."""
    test = next((name for name in _TEST_NAMES if name in held), None)
    if "train" not in held or test is None:
        raise UserError(
            f"{source}: has the splits {', '.join(held)}; needed are train, and test or validation"
        )
    return {"train": "train", "test": test}


def _note(splits: Mapping[str, str], held: Any) -> str:
    """Returns a note on which split serves as test, and which splits are not read."""
    unread = [
        f"{name} ({held[name].num_examples:,} examples)" for name in held if name not in splits.values()
    ]
    said = [f"test is its {splits['test']}"] if splits["test"] != "test" else []
    return "; ".join([*said, *([f"not read: {', '.join(unread)}"] if unread else [])])


def _batches(examples: Any, first: int, name: str) -> Iterator[Batch]:
    for start in range(first, len(examples), _BATCH):
        with convert_errors(name):
            part = examples.__getitems__(list(range(start, min(start + _BATCH, len(examples)))))
            images = np.stack([example["image"] for example in part])
            labels = np.array([example.get("label", 0) for example in part], np.int32)
        yield {"image": images, "label": labels}
