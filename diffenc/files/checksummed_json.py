"""JSON files that tell whether they are whole: beside their content, its SHA-256."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from diffenc.files.stores import Store, is_damage


class UnreadableError(Exception):
    """What is stored is not there whole, or not as it was written."""


def dumps(content: Mapping[str, Any]) -> str:
    """The file that says `content`. Raises TypeError if that has no JSON form."""
    checksum = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps({**content, "checksum": checksum})


def read(store: Store, name: str) -> dict[str, Any]:
    """What the file `name` says.

    Raises:
      UnreadableError: it is absent or damaged.
      OSError: the store refused to say.
    """
    try:
        raw = (store.read(name) or b"").decode()
        content = json.loads(raw)
        del content["checksum"]
        whole = dumps(content) == raw
    except OSError as error:
        if not is_damage(error):
            raise
        raise UnreadableError(f"{name}: {error}") from error
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise UnreadableError(f"{name}: {error}") from error
    if not whole:
        raise UnreadableError(f"{name}: wrong checksum")
    return content
