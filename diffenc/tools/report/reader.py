"""Files of a workdir, on a disk or an object store, and what is odd about them."""

from types import MappingProxyType
from typing import Any

from diffenc.errors import UserError
from diffenc.evaluation import records
from diffenc.evaluation.records import BrokenSealError, RequiredKeys
from diffenc.files import record_checksum, stores
from diffenc.files.record_checksum import ChecksumState
from diffenc.tools.report import formatting
from diffenc.workdir import loss_curves, provenance
from diffenc.workdir.config_check import CONFIG
from diffenc.workdir.writers import METRICS

Record = dict[str, Any]


class Reader:
    """Reads files of a workdir.

    Attributes:
      oddities: what could not be read, in words.
      unsealed: names of the records that have no checksum.
    """

    def __init__(self, place: str):
        self.place, self.store = place, stores.open_store(place)
        self.files = set(self.store.files())
        self.oddities: list[str] = []
        self.unsealed: list[str] = []
        if not self.files & {CONFIG, METRICS}:
            raise UserError(
                f"{place} holds no run (neither {CONFIG} nor {METRICS}); name the --workdir of a run"
            )

    def data(self, name: str) -> bytes | None:
        return self.store.read(name) if name in self.files else None

    def text(self, name: str) -> str:
        return (self.data(name) or b"").decode(errors="replace")

    def record(self, name: str, needed: RequiredKeys = MappingProxyType({})) -> Record | None:
        """A JSON object; None, with a word on it, where it is damaged."""
        data = self.data(name)
        if data is None:
            return None
        try:
            found = records.parse_record(data, name, self.again(name))
        except BrokenSealError as error:
            return self.odd(f"{error}.")
        except UserError:
            return self.odd(f"{name} is no JSON object, and left out.")
        fault = records.find_fault(found, needed)
        if fault is not None:
            return self.odd(f"{name} {fault}, and is left out.")
        if record_checksum.check_checksum(found) is ChecksumState.MISSING:
            self.unsealed.append(name)
        return found

    def again(self, name: str) -> str:
        """How to write a record anew."""
        mode = {"figures": "figures", loss_curves.FOLDER: "diagnose"}.get(name.partition("/")[0], "evaluate")
        if name in (provenance.DATASET, provenance.ENVIRONMENT):
            return formatting.train_command(self.place)
        return formatting.command(self.place, mode)

    def odd(self, said: str) -> None:
        self.oddities.append(said)
