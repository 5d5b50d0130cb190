"""Whether the newest checkpoint of a workdir is of the run that its files say, for the report. Reads no arrays."""

import json
import re
from collections.abc import Callable, Iterable

from diffenc.checkpoint.meta import META
from diffenc.config.experiment import FREE_TO_MEASURE
from diffenc.errors import UserError
from diffenc.workdir import run_id
from diffenc.workdir.config_check import ExpectedMetadata

_CHECKPOINT = re.compile(rf"checkpoints/(\d+)(?:-(\d+))?/{META}")


def mismatch(place: str, files: Iterable[str], config: str, read: Callable[[str], str]) -> str | None:
    """Returns what is wrong with the newest checkpoint, in words; None where nothing is, or nobody can tell.

    Args:
      place: the workdir, as its user calls it.
      files: all names in it.
      config: text of its config.gin; "" where there is none.
      read: gives the text of a file, "" where there is none.
    """
    found = [match for match in map(_CHECKPOINT.fullmatch, files) if match]
    if not found:
        return None
    name = max(found, key=lambda match: (int(match[1]), int(match[2] or 0)))[0]
    try:
        metadata = json.loads(read(name))["metadata"]
        identity = read(run_id.FILE).strip()
        known = identity if run_id.is_valid(identity) else None
        ExpectedMetadata(place, config or None, config or None, known, FREE_TO_MEASURE).check(
            name.removesuffix(f"/{META}"), metadata
        )
    except UserError as error:
        return f"{error}."
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):  # damaged, or of other code
        return None
    return None
