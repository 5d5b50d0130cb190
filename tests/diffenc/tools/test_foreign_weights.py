"""Parameters of another program, made into an export."""

import functools
import hashlib
import io
import json
import warnings
import zipfile
from typing import Any

import numpy as np
import pytest
from flax import serialization

import diffenc
from diffenc.cli.foreign_weights import main
from diffenc.config import serialize
from diffenc.errors import UserError
from diffenc.tools import foreign_weights

THEIRS = {
    "enc/w": np.arange(16, dtype=np.float32).reshape(4, 4, 1),
    "enc/b": np.full((4, 4, 1), 0.25, np.float32),
    "net/w": np.ones((4, 4, 1), np.float64),
    "net/b": np.zeros((4, 4, 1), np.float32),
    "ends/raw_drop": np.array(3.0, np.float32),
    "ends/start": np.array(5.5, np.float32),
}


def _translate(theirs):
    kinds = {"enc": "encoder", "net": "network", "ends": "schedule"}
    return {
        f"{kinds.get(name[: name.find('/')], 'other')}/{name.partition('/')[2]}": a
        for name, a in theirs.items()
    }


def _tree(flat):
    tree = {}
    for name, array in flat.items():
        *path, leaf = name.split("/")
        functools.reduce(lambda inner, part: inner.setdefault(part, {}), path, tree)[leaf] = array
    return tree


def _flax(path, **state):
    path.write_bytes(serialization.msgpack_serialize(state))
    return path


@pytest.fixture
def gin_file(tiny, tmp_path):
    path = tmp_path / "run.gin"
    path.write_text(serialize.config_text(tiny()))
    return path


def _main(file, gin_file, output):
    arguments = [str(file), f"--gin_file={gin_file}", f"--output={output}"]
    return main(_translate, "somebody", "what it does", arguments)


def test_the_average_is_taken_and_loads(gin_file, tmp_path, capsys):
    other = {name: array + 1 for name, array in THEIRS.items()}
    file = _flax(
        tmp_path / "checkpoint_7",
        step=7,
        params=_tree(other),
        ema_params=_tree(THEIRS),
        opt_state={"0": None},
    )
    assert _main(file, gin_file, tmp_path / "out") == 0
    assert "66 parameters in" in capsys.readouterr().out
    model = diffenc.load(tmp_path / "out", allow_imports=("tests",))
    assert model.step == 7
    for ours, theirs in (("encoder", "enc"), ("network", "net"), ("schedule", "ends")):
        for leaf, array in model.params[ours].items():
            assert array.dtype == np.float32
            np.testing.assert_array_equal(array, THEIRS[f"{theirs}/{leaf}"])
    card = (tmp_path / "out" / "README.md").read_text()
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert f"The parameters come from `somebody: the file checkpoint_7, SHA-256 {digest}`." in card
    assert "train images: unknown" in card


def test_a_name_that_is_no_text_is_shown(gin_file, tmp_path):
    file = _flax(tmp_path / "checkpoint", params=_tree(THEIRS))
    file = file.rename(tmp_path / "a\udcff")  # a byte that is no UTF-8
    assert _main(file, gin_file, tmp_path / "out") == 0
    assert "the file a\ufffd, SHA-256" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    "write",
    [
        lambda path: _flax(path, params=_tree(THEIRS)),
        lambda path: _flax(path, params={"params": _tree(THEIRS)}),
        lambda path: _flax(path, **_tree(THEIRS)),
        lambda path: np.savez(path, **THEIRS),
        lambda path: np.savez(
            path, x=np.zeros(3), **{f"param/{name}": array for name, array in THEIRS.items()}
        ),
    ],
)
def test_parameters_are_found_wherever_they_stand(tmp_path, write):
    path = tmp_path / "file.npz"
    write(path)
    found, step = foreign_weights.read_checkpoint(path, 10_000)
    assert step == 0
    assert {name: array.tolist() for name, array in found.items()} == {
        n: a.tolist() for n, a in THEIRS.items()
    }


def test_all_that_does_not_fit_is_named(gin_file, tmp_path, capsys):
    wrong = {**THEIRS, "net/w": np.zeros((2, 2)), "net/more": np.zeros(3), "what": np.zeros(1)}
    del wrong["enc/b"], wrong["ends/start"]
    assert _main(_flax(tmp_path / "file", params=_tree(wrong)), gin_file, tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for words in (
        "missing: encoder/b, schedule/start;",
        "not of this model: network/more, other/;",
        "network/w is float32[2, 2] and not float32[4, 4, 1]",
    ):
        assert words in error
    assert not (tmp_path / "out").exists()


def test_whole_numbers_are_no_weights(gin_file, tmp_path, capsys):
    wrong = {**THEIRS, "net/b": np.zeros((4, 4, 1), np.int32)}
    assert _main(_flax(tmp_path / "file", params=_tree(wrong)), gin_file, tmp_path / "out") == 1
    assert "network/b is int32[4, 4, 1] and not float32[4, 4, 1]" in capsys.readouterr().err


def test_what_the_translation_refuses_is_said_in_a_line(gin_file, tmp_path, capsys):
    def refuse(theirs):
        raise ValueError("two of these\nnames are one")

    arguments = [
        str(_flax(tmp_path / "file", params=_tree(THEIRS))),
        f"--gin_file={gin_file}",
        "--output=out",
    ]
    assert main(refuse, "somebody", "", arguments) == 1
    error = capsys.readouterr().err
    assert "two of these names are one" in error
    assert error.count("\n") == 1


def test_nothing_of_somebody_is_overwritten(gin_file, tmp_path, capsys):
    file, output = _flax(tmp_path / "file", params=_tree(THEIRS)), tmp_path / "out"
    output.mkdir()
    (output / "thesis.tex").write_text("years")
    assert _main(file, gin_file, output) == 1
    assert f"--output={output}: is there, and no export" in capsys.readouterr().err
    assert (output / "thesis.tex").read_text() == "years"
    assert _main(file, gin_file, tmp_path / "new") == 0
    assert _main(file, gin_file, tmp_path / "new") == 0, "an export is replaced"


def _content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("others", [("thesis.tex", ".git/HEAD"), ("config.gin/mine",), (".git/HEAD",)])
def test_a_folder_of_somebody_with_a_file_of_weights_is_left_as_it_is(gin_file, tmp_path, capsys, others):
    """As a clone of a hub's repository is one."""
    file, output = _flax(tmp_path / "file", params=_tree(THEIRS)), tmp_path / "out"
    for name in ("model.safetensors", "README.md", *others):
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_text(f"years of {name}")
    before = _content(output)
    assert _main(file, gin_file, output) == 1
    error = capsys.readouterr().err
    first = min(name.partition("/")[0] for name in others)
    assert f"{output} holds {first}, which no export wrote" in error
    assert "move it out of there, or write to another folder" in error
    assert error.count("\n") == 1
    assert _content(output) == before


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 no archive", json.dumps({"a": 1}).encode()])
def test_files_that_are_none(gin_file, tmp_path, capsys, content):
    file = tmp_path / "file"
    if content is not None:
        file.write_bytes(content)
    assert _main(file, gin_file, tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {file}: ")
    assert error.count("\n") == 1


def test_as_much_is_read_as_a_checkpoint_of_the_model_can_take(tiny, gin_file, tmp_path, capsys):
    """66 parameters in 6 leaves, 8 times in float32, with 1 KiB for each leaf, and 1 MiB."""
    limit = foreign_weights.max_checkpoint_bytes(tiny())
    assert limit == 8 * (66 * 4 + 6 * 1024) + 2**20
    wide = {name: array.astype(np.float64) for name, array in THEIRS.items()}
    whole = {
        "params": _tree(wide),
        "ema_params": _tree(wide),
        "opt_state": {"mu": _tree(wide), "nu": _tree(wide)},
    }
    assert _main(_flax(tmp_path / "whole", **whole), gin_file, tmp_path / "out") == 0
    large = _flax(tmp_path / "large", **_tree(THEIRS), more=np.zeros(limit // 8))
    assert _main(large, gin_file, tmp_path / "new") == 1
    assert (
        f"more than the {limit:,} that a checkpoint of this model may: is --gin_file"
        in capsys.readouterr().err
    )


def test_a_bomb_is_not_unpacked(tmp_path):
    """Each of its arrays is within the limit, and all together are not."""
    parts = {f"{number}": np.zeros(1000) for number in range(10)}
    np.savez_compressed(tmp_path / "bomb.npz", allow_pickle=False, **parts)
    with pytest.raises(UserError, match=r"bomb\.npz: holds 81,280 bytes, more than the 50,000 that"):
        foreign_weights.read_checkpoint(tmp_path / "bomb.npz", 50_000)
    assert len(foreign_weights.read_checkpoint(tmp_path / "bomb.npz", 81_280)[0]) == 10


@pytest.mark.parametrize("step", [np.nan, -1, 1e30, np.inf, 2.5, 2**53 + 1])
def test_what_is_no_step(tmp_path, step):
    with pytest.raises(UserError, match=r"step = .*: is no number of steps"):
        foreign_weights.read_checkpoint(_flax(tmp_path / "file", step=step, params=_tree(THEIRS)), 10_000)


@pytest.mark.parametrize("step", [0, 2**53, 7.0, np.uint64(9), np.array([3, 3])])
def test_what_is_a_step(tmp_path, step):
    found = foreign_weights.read_checkpoint(
        _flax(tmp_path / "file", step=step, params=_tree(THEIRS)), 10_000
    )[1]
    assert found == (0 if np.ndim(step) else step)  # one for each device is not asked


def test_a_name_that_is_there_twice_is_refused(tmp_path):
    twice = _flax(tmp_path / "file", params={"params": {"a": np.zeros(2)}, "a": np.ones(2)})
    with pytest.raises(UserError, match="'a' is there twice"):
        foreign_weights.read_checkpoint(twice, 10_000)
    with zipfile.ZipFile(tmp_path / "file.npz", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for value in (0.0, 1.0):
            buffer = io.BytesIO()
            np.save(buffer, np.full(2, value))
            archive.writestr("a.npy", buffer.getvalue())
    with pytest.raises(UserError, match="'a' is there twice"):
        foreign_weights.read_checkpoint(tmp_path / "file.npz", 10_000)


def test_networks_in_pytorch_are_measured_instead(gin_file, torch_writer, tmp_path, capsys):
    state = torch_writer.state({"input_blocks.0.0.weight": np.zeros((2, 2), np.float32)})
    files = [torch_writer.archive(tmp_path / "new.pt", state), torch_writer.older(tmp_path / "old.pt", state)]
    arrays: dict[str, Any] = {"input_blocks/0/0/weight": np.zeros(4)}
    np.savez(tmp_path / "converted.npz", **arrays)
    for file in [*files, tmp_path / "converted.npz"]:
        assert _main(file, gin_file, tmp_path / "out") == 1
        error = capsys.readouterr().err
        assert error.startswith(f"error: {file}: ")
        assert "improved-diffusion" in error
        assert "diffenc.bound (docs/nll_of_my_model.md)" in error
        assert error.count("\n") == 1
