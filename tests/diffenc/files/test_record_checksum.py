"""The checksum of records, computed here as docs/workdir.md says; every changed digit breaks it."""

import hashlib
import json
import re

import numpy as np
import pytest

from diffenc.files import record_checksum
from diffenc.files.record_checksum import ChecksumState

RECORD = {
    "bpd": 2.7826,
    "se": np.float32(0.25),
    "nan": float("nan"),
    "of": {"T": [1, 2], "ä": "ö"},
    "n": None,
}


def test_the_checksum_is_that_of_the_rest_as_sorted_json(tmp_path):
    record_checksum.write_record(tmp_path / "record.json", RECORD)
    found = json.loads((tmp_path / "record.json").read_text())
    checksum = found.pop("sha256")
    assert found == {"bpd": 2.7826, "se": 0.25, "nan": None, "of": {"T": [1, 2], "ä": "ö"}, "n": None}
    assert checksum == hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def test_indenting_and_reordering_break_nothing_and_sealing_twice_is_sealing_once():
    sealed = record_checksum.with_checksum(RECORD)
    again = json.loads(json.dumps(dict(reversed(sealed.items())), indent=7))
    assert record_checksum.check_checksum(again) is ChecksumState.WHOLE
    assert record_checksum.with_checksum(sealed) == sealed


def test_any_digit_changed_breaks_the_seal(tmp_path):
    record_checksum.write_record(tmp_path / "record.json", RECORD)
    text = (tmp_path / "record.json").read_text()
    places = [match.start() for match in re.finditer(r"\d", text)]
    assert len(places) > 20
    for place in places:
        changed = text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :]
        try:
            record = json.loads(changed)
        except ValueError:  # a key's or an escape's digit that is no JSON any more
            continue
        assert record_checksum.is_broken(record) or "sha256" not in record, changed
        (tmp_path / "changed.json").write_text(changed)
        assert "sha256" not in record or record_checksum.read_intact(tmp_path / "changed.json") is None


@pytest.mark.parametrize(
    "change",
    [{"bpd": 2.7825}, {"more": 1}, {"sha256": "0" * 64}, {"sha256": None}, {"of": {"T": [2, 1], "ä": "ö"}}],
)
def test_what_was_edited_is_broken(change):
    assert (
        record_checksum.check_checksum(record_checksum.with_checksum(RECORD) | change) is ChecksumState.BROKEN
    )


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", "[" * 100_000, '{"a": 1, "sha256": "0"}'])
def test_what_is_no_sound_record_is_none(tmp_path, text):
    (tmp_path / "record.json").write_text(text)
    assert record_checksum.read_intact(tmp_path / "record.json") is None
    assert record_checksum.read_intact(tmp_path / "absent.json") is None


def test_a_record_from_before_is_read_and_called_unsealed(tmp_path):
    (tmp_path / "record.json").write_text('{"bpd": 1.5}')
    assert record_checksum.read_intact(tmp_path / "record.json") == {"bpd": 1.5}
    assert record_checksum.check_checksum({"bpd": 1.5}) is ChecksumState.MISSING
