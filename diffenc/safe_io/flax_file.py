"""Reads untrusted checkpoints that flax wrote as msgpack (`flax.serialization.to_bytes`): nested maps of arrays.

An array is extension 1, a number extension 3: (shape, name of the dtype, bytes), where the number of bytes must match
the shape. Everything else is refused.

Not `flax.serialization.msgpack_restore`: it has no limit on entries (an empty list takes one byte in the file and a
hundred in memory), keeps the last of two entries of one name, and imports all of flax.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from diffenc.errors import UserError
from diffenc.safe_io.reading import convert_errors

_ARRAY, _NUMBER = 1, 3
_MOST = 1 << 17  # entries; a checkpoint of a thousand parameters has a tenth
_LONGEST = 1 << 12  # entries of one map or list, which are counted once it is whole
_MAX_DIMS = 32
_DTYPES = {kind + bits for kind in ("int", "uint") for bits in ("8", "16", "32", "64")}
_DTYPES |= {"float16", "float32", "float64", "bool"}


def load(path: Path) -> dict[str, np.ndarray]:
    """Returns every array and number by its path in the tree, joined by "/".

    The arrays are views of copies of the file's content; the number of entries is at most _MOST.

    Raises:
      UserError: the file cannot be read, or is not in this format.
    """
    with convert_errors(path):
        content = _Budget().unpack(path.read_bytes(), _LONGEST)
        if not isinstance(content, dict):
            raise UserError(f"{path}: holds no tree of arrays")
        return to_dict(_leaves(content, ()))


def to_dict(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """Returns `pairs` as a dictionary. Raises ValueError if two have the same name."""
    found = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{ascii(name)[:80]} is there twice")
        found[name] = value
    return found


class _Budget:
    """Unpacks at most _MOST entries of maps, lists and arrays: an empty list takes a byte in the file, a hundred in memory."""

    def __init__(self):
        self._left = _MOST

    def unpack(self, data: bytes, longest: int) -> Any:
        # msgpack calls the hooks when each container is complete, innermost
        # first: the limit applies during unpacking, not afterwards.
        return msgpack.unpackb(
            data, raw=False, strict_map_key=False, max_array_len=longest, max_map_len=longest,
            list_hook=self._counted, object_pairs_hook=lambda pairs: to_dict(self._counted(pairs)), ext_hook=self._array,
        )  # fmt: skip

    def _counted(self, items: list[Any]) -> list[Any]:
        self._left -= 1 + len(items)
        if self._left < 0:
            raise ValueError(f"more than {_MOST:,} entries")
        return items

    def _array(self, code: int, data: bytes) -> np.ndarray:
        if code not in (_ARRAY, _NUMBER):
            raise ValueError(f"extension {code} is no array")
        shape, dtype, content = self.unpack(data, _MAX_DIMS)
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            raise ValueError(f"dtype {ascii(dtype)[:80]} is none of plain numbers")
        if not all(type(side) is int and side >= 0 for side in shape):
            raise ValueError("a shape is not one of whole numbers")
        # frombuffer and reshape refuse a length that does not match
        # the shape; no memory is allocated from the shape alone.
        return np.frombuffer(content, dtype).reshape(shape)


def _leaves(tree: Mapping[Any, Any], path: tuple[str, ...]) -> Iterator[tuple[str, np.ndarray]]:
    for key, value in tree.items():
        inner = (*path, str(key))
        if isinstance(value, dict):
            yield from _leaves(value, inner)
        elif isinstance(value, np.ndarray | int | float | bool):
            yield "/".join(inner), np.asarray(value)
