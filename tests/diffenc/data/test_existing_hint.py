"""What one is told where a folder's files are others than those that were prepared."""

import pytest

from diffenc.data.existing_conversion import refuse_other_files
from diffenc.data.manifest import Manifest
from diffenc.errors import UserError


def refusal(tmp_path, name):
    there = Manifest("folder", "mine", (8, 8, 3), 256, 1, (), {}, {name: {"sha256": "a"}}, "", "0")
    with pytest.raises(UserError) as refused:
        refuse_other_files(there, tmp_path, {name: {"sha256": "b"}})
    return str(refused.value)


def test_a_text_edited_beside_the_images_is_thought_of(tmp_path):
    told = refusal(tmp_path, "src/")
    assert "src/ differs or is absent" in told
    assert "a text beside the images may be all that was edited" in told
    assert "what is there can be used" in told


def test_of_a_single_file_it_is_not(tmp_path):
    assert "a text beside" not in refusal(tmp_path, "data.bin")
