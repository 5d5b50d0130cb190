"""Reading of a workdir's files, on a disk or an object store, with a list of the problems found."""

import json
import re
from types import MappingProxyType
from typing import Any

from diffenc.checkpoint.meta import META
from diffenc.config.experiment import FREE_TO_MEASURE
from diffenc.errors import UserError
from diffenc.evaluation import saved_records
from diffenc.evaluation.saved_records import ChecksumMismatchError, RequiredKeys
from diffenc.files import record_checksum, stores
from diffenc.files.record_checksum import ChecksumState
from diffenc.tools.report import formatting
from diffenc.workdir import loss_curves, provenance, run_id
from diffenc.workdir.config_check import CONFIG, ExpectedMetadata
from diffenc.workdir.writers import METRICS

Record = dict[str, Any]

CHECKPOINT = re.compile(rf"checkpoints/(\d+)(?:-(\d+))?/{META}")


class WorkdirReader:
    """Reads files of a workdir.

    Attributes:
      problems: sentences on files that could not be read.
      unsealed: names of the records without checksum.
    """

    def __init__(self, workdir: str):
        self.workdir, self.store = workdir, stores.open_store(workdir)
        # Listed once: a run may be writing, and the whole page should be of one moment.
        self.files = set(self.store.files())
        self.problems: list[str] = []
        self.unsealed: list[str] = []
        if not self.files & {CONFIG, METRICS}:
            raise UserError(
                f"{workdir} holds no run (neither {CONFIG} nor {METRICS}); name the --workdir of a run"
            )

    def data(self, name: str) -> bytes | None:
        """Returns the bytes of a file; None if it is absent."""
        return self.store.read(name) if name in self.files else None

    def text(self, name: str) -> str:
        """Returns the text of a file; empty if it is absent."""
        return (self.data(name) or b"").decode(errors="replace")

    def record(self, name: str, needed: RequiredKeys = MappingProxyType({})) -> Record | None:
        """Returns a JSON object; None if it is absent, or, with an entry in `problems`, if it is damaged."""
        data = self.data(name)
        if data is None:
            return None
        try:
            record = saved_records.parse_record(data, name, self.regenerate_command(name))
        except ChecksumMismatchError as error:
            return self.add_problem(f"{error}.")
        except UserError:
            return self.add_problem(f"{name} is not a JSON object and is left out.")
        fault = saved_records.find_fault(record, needed)
        if fault is not None:
            return self.add_problem(f"{name} {fault}, and is left out.")
        if record_checksum.check_checksum(record) is ChecksumState.MISSING:
            self.unsealed.append(name)
        return record

    def regenerate_command(self, name: str) -> str:
        """Returns the command that writes a record again."""
        mode = {"figures": "figures", loss_curves.FOLDER: "diagnose"}.get(name.partition("/")[0], "evaluate")
        if name in (provenance.DATASET, provenance.ENVIRONMENT):
            return formatting.train_command(self.workdir)
        return formatting.mode_command(self.workdir, mode)

    def check_newest_checkpoint(self) -> None:
        """Adds a problem if the newest checkpoint belongs to another run than config.gin. Reads no arrays."""
        checkpoints = [match for match in map(CHECKPOINT.fullmatch, self.files) if match]
        if not checkpoints:
            return
        name = max(checkpoints, key=lambda match: (int(match[1]), int(match[2] or 0)))[0]
        config = self.text(CONFIG) or None
        try:
            metadata = json.loads(self.text(name))["metadata"]
            identity = self.text(run_id.FILE).strip()
            known = identity if run_id.is_valid(identity) else None
            expected = ExpectedMetadata(self.workdir, config, config, known, FREE_TO_MEASURE)
            expected.check(name.removesuffix(f"/{META}"), metadata)
        except UserError as error:
            self.add_problem(f"{error}.")
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            pass  # damaged, or written by another version: not comparable

    def add_problem(self, problem: str) -> None:
        self.problems.append(problem)
