"""JSON files with a checksum: their content, and its SHA-256 under `checksum`."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from diffenc.files.stores import Store, is_damage


class UnreadableError(Exception):
    """A stored file is absent, incomplete or changed."""


def dumps(content: Mapping[str, Any]) -> str:
    """Returns the text of the file with `content`. Raises TypeError if `content` has no JSON form."""
    checksum = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps({**content, "checksum": checksum})


def read(store: Store, name: str) -> dict[str, Any]:
    """Returns the content of the file `name`.

    Raises:
      UnreadableError: the file is absent or damaged.
      OSError: the store cannot be read.
    """
    try:
        raw = (store.read(name) or b"").decode()
        content = json.loads(raw)
        del content["checksum"]
        # Compared byte for byte with the text that `dumps` would write: stricter
        # than a checksum of the parsed content, and needs no canonical form.
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
