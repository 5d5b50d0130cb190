"""Arrays from a checkpoint that flax wrote as msgpack (`flax.serialization.to_bytes`): nested maps with arrays in them.

An array is extension 1, a number extension 3: (shape, name of the dtype, bytes), where the bytes must be as many as the
shape wants. Nothing else is taken.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from diffenc.data.paths import reading
from diffenc.errors import UserError

_ARRAY, _NUMBER = 1, 3
_DTYPES = {kind + bits for kind in ("int", "uint") for bits in ("8", "16", "32", "64")}
_DTYPES |= {"float16", "float32", "float64", "bool"}


def load(path: Path) -> dict[str, np.ndarray]:
    """Every array and number by its path, the parts joined by "/". The arrays are views of the file's content.

    Raises:
      UserError: it cannot be read, or is no such file.
    """
    with reading(path):
        content = msgpack.unpackb(path.read_bytes(), ext_hook=_array, raw=False, strict_map_key=False)
        if not isinstance(content, dict):
            raise UserError(f"{path}: holds no tree of arrays")
        return dict(_leaves(content, ()))


def _array(code: int, data: bytes) -> np.ndarray:
    if code not in (_ARRAY, _NUMBER):
        raise ValueError(f"extension {code} is no array")
    shape, dtype, content = msgpack.unpackb(data, raw=False)
    if dtype not in _DTYPES:
        raise ValueError(f"dtype {dtype!r} is none of plain numbers")
    if not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError("a shape is not one of whole numbers")
    return np.frombuffer(content, dtype).reshape(shape)


def _leaves(tree: Mapping[Any, Any], path: tuple[str, ...]) -> Iterator[tuple[str, np.ndarray]]:
    for key, value in tree.items():
        inner = (*path, str(key))
        if isinstance(value, dict):
            yield from _leaves(value, inner)
        elif isinstance(value, np.ndarray | int | float | bool):
            yield "/".join(inner), np.asarray(value)
