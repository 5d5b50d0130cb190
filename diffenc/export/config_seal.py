"""Binds the config to the parameters in the metadata of a file of weights, to detect that one of them was changed.

bindings   {key: value} of the config as written
seal       SHA-256 of all metadata except `config` and `seal`, hence of `bindings` and of the parameters' SHA-256 too

Bindings that may change when a run is measured, such as evaluate.passes, may still be changed in the config. This is not a
protection against forgery.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from absl import logging

from diffenc.config import serialize
from diffenc.errors import UserError
from diffenc.files import atomic

BINDINGS, SEAL = "bindings", "seal"


def bind_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `metadata`, as read back from JSON, with `bindings` and `seal`."""
    plain = json.loads(atomic.to_json(metadata))
    plain[BINDINGS] = serialize.parse_bindings(plain["config"])
    return {**plain, SEAL: _seal(plain)}


def check_binding(where: str, metadata: Mapping[str, Any]) -> None:
    """Raises UserError unless the config is the one that was written with the parameters of the file `where`.

    For files of earlier versions, without a seal, only the config_hash is compared, with a warning.
    """
    if SEAL not in metadata:
        _check_hash(where, metadata)
        return
    if metadata[SEAL] != _seal(metadata):
        raise UserError(f"{where}: is damaged: its metadata is not what was written; download it again")
    written = "".join(f"{key} = {value}\n" for key, value in metadata[BINDINGS].items())
    refuse_other(
        f"{where}: its config",
        written,
        metadata["config"],
        "export the run again, or download the file again",
    )


def refuse_other(which: str, written: str, found: str, hint: str) -> None:
    """Raises UserError, naming the fields, unless the config text `found` agrees with `written`, that of the parameters."""
    differing = serialize.find_differences(written, found)
    if differing:
        raise UserError(
            f"{which} is not the one that was written with the parameters ({serialize.format_differences(differing)}): {hint}"
        )


def _check_hash(where: str, metadata: Mapping[str, Any]) -> None:
    if serialize.hash_text(metadata["config"]) != metadata["config_hash"]:
        raise UserError(
            f"{where}: its config is not the one that was written with the parameters (its config_hash differs): "
            "export the run again, or download the file again"
        )
    logging.warning(
        "%s was written by an earlier version: only its config_hash was compared; whether the config is that of the "
        "parameters could not be",
        where,
    )


def _seal(metadata: Mapping[str, Any]) -> str:
    # Without `config`, since its settings of measurements may change; `bindings` has the original values.
    sealed = {key: value for key, value in metadata.items() if key not in ("config", SEAL)}
    return hashlib.sha256(json.dumps(sealed, sort_keys=True).encode()).hexdigest()
