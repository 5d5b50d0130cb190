import json

import jax.numpy as jnp
import numpy as np
import pytest

from diffenc.core.model import UNIFORM
from diffenc.errors import UserError
from diffenc.workdir import loss_curves
from diffenc_plugins.time_samplers import Importance


@pytest.fixture
def file(tmp_path):
    loss_curves.curve_path(tmp_path).parent.mkdir()
    return loss_curves.curve_path(tmp_path)


def test_the_curve_is_the_root_mean_square_and_says_what_it_is_of(tmp_path, file):
    of = {"step": 3, "split": "train", "num_images": 7, "passes": 2, "seed": 5}
    file.write_text(json.dumps({"rms": [0.5, 2, 0.0], "loss": [1, 1, 1], **of}))
    curve, said = loss_curves.load_curve(file)
    np.testing.assert_array_equal(curve, [0.5, 2, 0])
    assert said == of
    propose, curve_of = loss_curves.bind_curve(Importance(), tmp_path)
    np.testing.assert_array_equal(propose(jnp.array([0.3])), Importance()(jnp.array([0.3]), curve))
    assert curve_of == {"curve_of": of}


def test_a_changed_digit_is_no_curve(file, write_record):
    write_record(file, {"rms": [0.5, 2.0]})
    np.testing.assert_array_equal(loss_curves.load_curve(file)[0], [0.5, 2.0])
    file.write_text(file.read_text().replace("2.0", "3.0"))
    with pytest.raises(UserError, match=r"does not match its sha256"):
        loss_curves.load_curve(file)


def test_only_a_proposal_that_needs_the_curve_reads_it(tmp_path, file):
    with pytest.raises(UserError, match="--mode=diagnose first"):
        loss_curves.bind_curve(Importance(), tmp_path)
    with pytest.raises(
        UserError, match=r"time_sampler\.importance.*: fits and curves stay in the run's workdir: load that"
    ):
        loss_curves.bind_curve(Importance(), None)
    file.write_text("no curve")
    propose, curve_of = loss_curves.bind_curve(UNIFORM, tmp_path)
    np.testing.assert_array_equal(propose(jnp.array([0.25])), [[0.25], [1]])
    assert curve_of == {}


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"rms": 3}', '{"rms": []}', '{"rms": [1, null]}', '{"rms": [1, -1]}',
     '{"rms": ["a"]}', '{"rms": [[1, 2]]}', '{"rms": [1, NaN]}'],
)  # fmt: skip
def test_what_is_no_curve_is_refused_in_one_line(file, text):
    file.write_text(text)
    with pytest.raises(
        UserError, match=r"loss\.json is not a loss curve: delete it.*--mode=diagnose"
    ) as caught:
        loss_curves.load_curve(file)
    assert "\n" not in str(caught.value)
