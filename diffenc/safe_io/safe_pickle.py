"""Reads pickled batches of arrays without executing code from the pickle.

A pickle can call any function of any module. Here only the few names that numpy arrays need are admitted, and they
resolve to small functions of this module: numpy's own functions trust their arguments, and a forged dtype makes them
read memory out of bounds.
"""

import math
import pickle
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from diffenc.errors import UserError
from diffenc.safe_io.bounded_reader import BoundedReader
from diffenc.safe_io.reading import Stream, convert_errors

# Sets hash their items, which may take exponential time (see `_keyed`). Arrays need neither sets nor LONG4, the
# operation for integers of more than 255 bytes.
_REFUSED = {operation[0] for operation in (pickle.LONG4, pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET)}
_KEYS = {  # where on the stack the keys are that an operation hashes
    pickle.SETITEM[0]: slice(-2, -1),
    pickle.SETITEMS[0]: slice(None, None, 2),
    pickle.DICT[0]: slice(None, None, 2),
}
MAX_DIMS = 32
_LONGEST_SHOWN = 80  # characters
_MAX_OPERATIONS = 2**20  # official batches take 130,000; each can make an object of a hundred bytes


def load(stream: Stream, name: str, limit: int) -> dict[str, Any]:
    """Returns the dictionary pickled in `stream` by Python 2 or 3, with keys as str and numpy arrays or lists of them as values.

    Other values keep their type in the pickle (a str of Python 2 becomes bytes).

    Args:
      limit: maximal number of bytes read; the objects take at most twice as many, plus 100 MB.

    Raises:
      UserError: the pickle names another global, is damaged or exceeds a limit; the message begins with `name`.
    """
    with convert_errors(name):
        limited = BoundedReader(stream, limit, name)
        found = Unpickler(limited, name, limit, _KNOWN).load()
        if limited.read(1):  # reading to the end also has an archive check its sum
            raise UserError(f"{name}: bytes follow the pickle's end; download it again")
        if not isinstance(found, dict):
            raise UserError(f"{name}: holds a {type(found).__name__}, not a dictionary")
        return {decode_text(key): _unwrapped(value) for key, value in found.items()}


class Unpickler(pickle._Unpickler):
    """Unpickler that admits only the globals in `known`.

    Derived from Python's pure Python unpickler: the C one can allocate gigabytes for one damaged byte (an index determines
    the size of its memo).
    """

    read: Callable[[int], bytes]
    append: Callable[[Any], None]

    def __init__(
        self, stream: Stream, name: str, limit: int, known: Mapping[tuple[str, str], Callable[..., Any]]
    ):
        """`known` has a replacement for each global, by module and name; `name` is the name of the file in messages."""
        # Strings of Python 2 contain the bytes of arrays: they must not be decoded.
        super().__init__(stream, encoding="bytes")  # pyright: ignore[reportArgumentType]
        self._name = name
        self._known = known
        self._left = limit  # bytes that may be encoded
        # The instance gets its own table: the inherited one belongs to
        # the class, and would change every unpickler in the process.
        own = {pickle.BYTEARRAY8[0]: type(self)._load_bytearray}
        own |= {operation: _keyed(self.dispatch[operation], keys) for operation, keys in _KEYS.items()}
        # An operation missing from the table raises KeyError, which becomes a UserError in `load`.
        admitted = {operation: load for operation, load in self.dispatch.items() if operation not in _REFUSED}
        self.dispatch = _Counted(admitted | own)  # pyright: ignore[reportAttributeAccessIssue] - this pickle's own

    def _load_bytearray(self) -> None:
        """Reads a bytearray; the inherited method allocates the length in the header before reading."""
        # self.read allocates no more than the stream has.
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(self.read(length))

    def _encode(self, value: Any, encoding: Any) -> bytes:
        """Replaces `_codecs.encode`, with which Python 3 writes bytes in protocol 2; bounds the total, as texts may recur."""
        if decode_text(encoding) != "latin1":
            raise ValueError(f"encoding {short_repr(encoding)}")
        self._left -= len(value)
        if self._left < 0:
            raise ValueError("too many bytes")
        return value.encode("latin1")

    def find_class(self, module: str, name: str) -> Any:
        # `_encode` counts bytes per instance, so it is a method, and not in the table of known globals.
        if (module, name) == ("_codecs", "encode"):
            return lambda value, encoding: self._encode(value, encoding)
        known = self._known.get((module, name))
        if known is None:
            raise UserError(
                f"{self._name}: its pickle asks for {short_repr(f'{module}.{name}')}; only arrays are admitted"
            )
        return lambda *args: known(*args)  # a fresh one each time: a pickle can set attributes of what it got


def _keyed(load: Callable[[Any], None], keys: slice) -> Callable[[Any], None]:
    """Wraps `load`, an operation that hashes the stack's items at `keys` as keys of a dictionary, to admit only text as keys.

    Nested pairs, each with the same pair twice, take a few bytes in the file, and exponential time to hash.
    """

    def checked(unpickler: Any) -> None:
        for key in unpickler.stack[keys]:
            if not isinstance(key, str | bytes):
                raise ValueError(f"a {type(key).__name__} for a key")
        load(unpickler)

    return checked


class _Counted(dict):
    """Table of pickle operations that counts look-ups, and refuses more than _MAX_OPERATIONS."""

    def __init__(self, operations: dict[int, Any]):
        super().__init__(operations)
        self._left = _MAX_OPERATIONS

    def __getitem__(self, operation: int) -> Any:
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"more than {_MAX_OPERATIONS:,} operations")
        return super().__getitem__(operation)


class _Dtype:
    """Replaces numpy.dtype; plain numbers only."""

    def __init__(self, spec: Any, align: Any = False, copy: Any = True):
        del align, copy
        # Numbers of fixed size: no object pointers, strings or fields.
        if not re.fullmatch(r"b1|[iu][1248]|f[248]", decode_text(spec)):
            raise ValueError(f"dtype {short_repr(spec)} is not a plain number")
        self.dtype = np.dtype(decode_text(spec))

    def __setstate__(self, state: tuple) -> None:
        _, order, subdtype, names, fields, *_ = state
        if (subdtype, names, fields) != (None, None, None):
            raise ValueError("a structured dtype")
        self.dtype = self.dtype.newbyteorder(decode_text(order))  # pyright: ignore[reportArgumentType]


class _Array:
    """Replaces numpy.ndarray; `array` is set with the state."""

    array: np.ndarray

    def __init__(self, *args: Any):
        self.array = np.zeros(0, np.uint8)

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, raw = state
        self.array = _from_bytes(raw, dtype, shape, "F" if fortran else "C")


def _unwrapped(value: Any) -> Any:
    if isinstance(value, list):
        return [item.array if isinstance(item, _Array) else item for item in value]
    return value.array if isinstance(value, _Array) else value


def _from_bytes(raw: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if not isinstance(raw, bytes | bytearray) or not isinstance(dtype, _Dtype):
        raise ValueError("an array without bytes or dtype")
    if not isinstance(shape, tuple) or len(shape) > MAX_DIMS or not all(map(is_size, shape)):
        raise ValueError("a shape that no array has")
    # math.prod of Python integers cannot overflow, as a product in numpy could.
    if math.prod(shape) * dtype.dtype.itemsize != len(raw):
        raise ValueError(f"{len(raw)} bytes for an array {shape} of {dtype.dtype}")
    return np.frombuffer(raw, dtype.dtype).reshape(shape, order=order)


def is_size(size: Any) -> bool:
    """Whether `size` is a valid size of an array's axis."""
    return type(size) is int and 0 <= size < 2**31


def _from_buffer(raw: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    made = _Array()
    made.array = _from_bytes(raw, dtype, shape, order)
    return made


def decode_text(value: Any) -> str:
    """Returns `value` as str. Raises ValueError if it is not text."""
    if not isinstance(value, str | bytes):
        raise ValueError(f"a {type(value).__name__} where text belongs")
    return value.decode("ascii") if isinstance(value, bytes) else value


def short_repr(value: Any) -> str:
    """Returns an untrusted value for messages: short, in one line, without control characters."""
    return ascii(value)[:_LONGEST_SHOWN]


def _opaque(*args: Any) -> None:
    raise ValueError("numpy.ndarray is called")


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _opaque,  # named, never called: the argument of _reconstruct
    ("numpy", "dtype"): _Dtype,
}
for _core in ("numpy.core", "numpy._core"):  # before and after numpy 2
    _KNOWN[f"{_core}.multiarray", "_reconstruct"] = _Array
    _KNOWN[f"{_core}.numeric", "_frombuffer"] = _from_buffer
