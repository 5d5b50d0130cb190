"""The checksum in a JSON record of its own content: its last key, `sha256`.

It is the SHA-256 of `json.dumps(rest, sort_keys=True)`, where `rest` is the record without that key, so that the file is
plain JSON and may be reformatted. It detects damage and careless editing. It does not protect against forgery: anyone can
compute the checksum of a changed record.
"""

import enum
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffenc.files import atomic

KEY = "sha256"
BROKEN = f"its content does not match its {KEY}: it is damaged, or was edited"
UNSEALED = "unsealed (written by an earlier version)"


class ChecksumState(enum.Enum):
    """Whether the checksum of a record matches its content; MISSING if it has none."""

    WHOLE = "whole"
    BROKEN = "broken"
    MISSING = "missing"


def with_checksum(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `record` as read back from its JSON form, with its checksum.

    Raises:
      TypeError: a value in `record` has no JSON form.
    """
    # Read back first: the checksum must be of the types after reading, e.g. lists for tuples, as `check_checksum` sees them.
    plain = strip_checksum(json.loads(atomic.to_json(record)))
    return {**plain, KEY: _digest(plain)}


def write_record(path: atomic.PathLike, record: Mapping[str, Any]) -> None:
    """Replaces the file `path` by the record with its checksum. Raises UserError if it cannot be written."""
    atomic.write_json(path, with_checksum(record))


def check_checksum(record: Mapping[str, Any]) -> ChecksumState:
    """Compares a record, as `json.loads` returns it, with its checksum."""
    if KEY not in record:
        return ChecksumState.MISSING
    return ChecksumState.WHOLE if record[KEY] == _digest(strip_checksum(record)) else ChecksumState.BROKEN


def strip_checksum(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the record without its checksum."""
    return {key: value for key, value in record.items() if key != KEY}


def is_broken(record: Any) -> bool:
    """Whether `record` is an object whose checksum does not match its content."""
    return isinstance(record, Mapping) and check_checksum(record) is ChecksumState.BROKEN


def read_intact(path: Path) -> dict[str, Any] | None:
    """Returns the object in a JSON file without its checksum; None if the file is absent, damaged or has no object."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return strip_checksum(found) if isinstance(found, dict) and not is_broken(found) else None


def _digest(rest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
