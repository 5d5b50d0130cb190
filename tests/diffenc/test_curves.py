import json

import numpy as np
import pytest

from diffenc import curves
from diffenc.errors import UserError


def write(workdir, text):
    (workdir / "diagnostics").mkdir()
    (workdir / "diagnostics" / "loss.json").write_text(text)


def test_no_file_is_no_curve(tmp_path):
    assert curves.load(tmp_path) is None


def test_the_curve_is_the_root_mean_square(tmp_path):
    write(tmp_path, json.dumps({"rms": [0.5, 2, 0.0], "loss": [1, 1, 1]}))
    np.testing.assert_array_equal(curves.load(tmp_path), [0.5, 2, 0])


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"rms": 3}', '{"rms": []}', '{"rms": [1, null]}', '{"rms": [1, -1]}',
     '{"rms": ["a"]}', '{"rms": [[1, 2]]}', '{"rms": [1, NaN]}'],
)  # fmt: skip
def test_what_is_no_curve_is_refused_in_one_line(tmp_path, text):
    write(tmp_path, text)
    with pytest.raises(
        UserError, match=r"loss\.json is no curve of the loss: delete it.*--mode=diagnose"
    ) as caught:
        curves.load(tmp_path)
    assert "\n" not in str(caught.value)
