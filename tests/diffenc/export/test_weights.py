"""Files of weights: read by hand from the format's description, and by the library that defines it."""

import hashlib
import json
import struct

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from diffenc.errors import UserError
from diffenc.export import weights
from diffenc.export.weights import WeightsMetadata

ARRAYS = {
    "network/conv/w": np.arange(6, dtype=np.float32).reshape(2, 3) / 7,
    "encoder/b": np.array([1.5, -2.25, np.float32(1e-30)], np.float32),
    "schedule/start": np.array(13.3, np.float32),
    "network/none": np.zeros((0, 4), np.float32),
    "network/count": np.array([3, -1], np.int32),
}
SHAPES = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in ARRAYS.items()}
DATASET = {
    "dataset": "dots",
    "train_images": "ab12",
    "image_shape": [4, 4, 1],
    "num_levels": 5,
    "num_classes": 3,
}
ABOUT = WeightsMetadata("Experiment.seed = 0\n", "c0ffee", 1200, "0.1.0", DATASET)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.safetensors"
    weights.write(path, ARRAYS, ABOUT)
    return path


def _by_hand(content):
    """The header, and each array from its bytes: a length, JSON, then the buffer (safetensors' format)."""
    (length,) = struct.unpack("<Q", content[:8])
    header, buffer = json.loads(content[8 : 8 + length]), content[8 + length :]
    dtypes = {"F32": "<f4", "I32": "<i4"}
    metadata = json.loads(header.pop("__metadata__")["diffenc"])
    arrays = {
        name: np.frombuffer(buffer[slice(*said["data_offsets"])], dtypes[said["dtype"]]).reshape(
            said["shape"]
        )
        for name, said in header.items()
    }
    return metadata, arrays


def _refused(action, path, *words):
    with pytest.raises(UserError) as refused:
        action()
    message = str(refused.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    assert all(word in message for word in words), message


def test_every_bit_is_in_the_file(file):
    metadata, by_hand = _by_hand(file.read_bytes())
    for found in (by_hand, load_file(file), weights.read(file, SHAPES)):
        assert found.keys() == ARRAYS.keys()
        for name, array in ARRAYS.items():
            assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
            assert found[name].tobytes() == array.tobytes()
    in_order = b"".join(ARRAYS[name].tobytes() for name in sorted(ARRAYS))
    assert metadata == {
        "layout": 2, "config": "Experiment.seed = 0\n", "config_hash": "c0ffee", "step": 1200, "code": "0.1.0",
        "dataset": DATASET, "origin": "", "run": "", "packages": "", "sha256": hashlib.sha256(in_order).hexdigest(),
        "bindings": {"Experiment.seed": "0"}, "seal": metadata["seal"],
    }  # fmt: skip
    sealed = {key: value for key, value in metadata.items() if key not in ("config", "seal")}
    assert metadata["seal"] == hashlib.sha256(json.dumps(sealed, sort_keys=True).encode()).hexdigest()


def test_the_same_model_is_the_same_file(file, tmp_path):
    weights.write(tmp_path / "again", dict(reversed(ARRAYS.items())), ABOUT)
    assert (tmp_path / "again").read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    "dtype", ["bfloat16", "float16", "float64", "bool", "int8", "int64", "uint8", "uint32"]
)
def test_parameters_of_any_type(tmp_path, dtype):
    arrays = {
        "a": np.array([[1, 0], [1, 1]]).astype(jax.numpy.dtype(dtype)),
        "b": np.array(1).astype(jax.numpy.dtype(dtype)),
    }
    weights.write(tmp_path / "a", arrays, ABOUT)
    found = weights.read(
        tmp_path / "a", {key: jax.ShapeDtypeStruct(a.shape, a.dtype) for key, a in arrays.items()}
    )
    for key, array in arrays.items():
        assert (found[key].dtype, found[key].shape) == (array.dtype, array.shape)
        assert found[key].tobytes() == array.tobytes()


def test_what_it_says_comes_back(file):
    assert weights.read_metadata(file) == ABOUT


def test_arrays_in_another_order_of_memory_are_the_same(tmp_path):
    turned = {"w": np.arange(6, dtype=np.float32).reshape(2, 3).T}
    weights.write(tmp_path / "a", turned, ABOUT)
    np.testing.assert_array_equal(load_file(tmp_path / "a")["w"], turned["w"])


def test_a_file_that_the_library_wrote_is_read(file, tmp_path):
    metadata, _ = _by_hand(file.read_bytes())
    save_file(ARRAYS, tmp_path / "other", {"diffenc": json.dumps(metadata)})
    assert weights.read(tmp_path / "other", SHAPES).keys() == ARRAYS.keys()
    assert weights.read_metadata(tmp_path / "other") == ABOUT


def _header(content, change):
    """`content` with its header changed, and the header's length right."""
    (length,) = struct.unpack("<Q", content[:8])
    header = change(content[8 : 8 + length])
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


DAMAGES = {
    "cut": lambda content: content[:-1],
    "empty": lambda content: b"",
    "half a header": lambda content: content[:60],
    "garbage": lambda content: bytes(range(256)) * 4,
    "a header longer than the file": lambda content: struct.pack("<Q", 2**40) + content[8:],
    "longer": lambda content: content + b"\0\0\0\0",
    "a shape that lies": lambda content: _header(content, lambda h: h.replace(b"[2,3]", b"[2,999]")),
    "offsets that lie": lambda content: _header(content, lambda h: h.replace(b'"data_offsets":[0,', b'"data_offsets":[4,')),
    "no such dtype": lambda content: _header(content, lambda h: h.replace(b'"F32"', b'"F33"')),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
@pytest.mark.parametrize("read", [weights.read_metadata, lambda path: weights.read(path, SHAPES)])
def test_a_damaged_file_is_refused(file, damage, read):
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert file.read_bytes() != whole
    _refused(lambda: read(file), file, "damaged")


def test_one_flipped_bit_is_noticed(file):
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)
    _refused(lambda: weights.read(file, SHAPES), file, "is damaged", "download it again")


def test_all_parameters_that_differ_are_named(file):
    wanted = {
        "network/conv/w": jax.ShapeDtypeStruct((3, 2), np.float32),
        "encoder/b": jax.ShapeDtypeStruct((3,), np.int32),
        "encoder/c": jax.ShapeDtypeStruct((), np.float32),
        **{name: SHAPES[name] for name in ("schedule/start", "network/none")},
    }
    _refused(
        lambda: weights.read(file, wanted),
        file,
        "missing: encoder/c;",
        "not of this model: network/count;",
        "encoder/b is float32[3] and not int32[3], network/conv/w is float32[2, 3] and not float32[3, 2]",
    )


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"layout": 1}, "has layout 1"),
        ({"layout": 3}, "has layout 3"),
        ({"layout": None}, "was not written by diffenc"),
        ({"step": "12"}, "step is no int"),
        ({"step": -1}, "cannot be"),
        ({"config": None}, "damaged"),
        ({"config": "x" * (2**20 + 1)}, "cannot be"),
        ({"dataset": []}, "dataset is no dict"),
        ({"dataset": DATASET | {"image_shape": [4, 4]}}, "image_shape"),
        ({"dataset": DATASET | {"image_shape": [4, 4, -1]}}, "image_shape"),
        ({"dataset": DATASET | {"image_shape": [2**40, 4, 1]}}, "image_shape"),
        ({"dataset": DATASET | {"image_shape": 3}}, "damaged"),
        ({"dataset": DATASET | {"num_levels": 257}}, "num_levels"),
        ({"dataset": DATASET | {"num_levels": True}}, "num_levels"),
        ({"dataset": DATASET | {"num_classes": "3"}}, "num_classes"),
        ({"dataset": DATASET | {"dataset": 3}}, "dataset is no name"),
    ],
)
def test_metadata_that_cannot_be_are_refused(file, change, word):
    metadata, arrays = _by_hand(file.read_bytes())
    said = {key: value for key, value in {**metadata, **change}.items() if value is not None}
    save_file(arrays, file, {"diffenc": json.dumps(said)})
    _refused(lambda: weights.read_metadata(file), file, word)


def _with_metadata(file, **changes):
    """The same parameters; None removes a key."""
    metadata, arrays = _by_hand(file.read_bytes())
    said = {key: value for key, value in {**metadata, **changes}.items() if value is not None}
    save_file(arrays, file, {"diffenc": json.dumps(said)})


def test_a_config_changed_beside_the_same_parameters_is_refused_naming_the_field(file, caplog):
    _with_metadata(file, config="Experiment.seed = 1\nModel.extra = 2\n")
    differing = "(Experiment.seed: 0 -> 1; Model.extra: absent -> 2)"
    _refused(
        lambda: weights.read_metadata(file),
        file,
        f"its config is not the one that was written with the parameters {differing}",
    )
    _with_metadata(file, config="# a comment\nExperiment.seed = 0\nevaluate.passes = 7\n")
    assert weights.read_metadata(file).config.endswith("passes = 7\n"), "which is free to change"
    assert not caplog.records


@pytest.mark.parametrize(
    "changes",
    [
        {"config": "Experiment.seed = 1\n", "bindings": {"Experiment.seed": "1"}},
        {"step": 1201},
        {"config_hash": "coffee"},
        {"sha256": "0" * 64},
        {"run": "0" * 32},
        {"bindings": {}},
        {"bindings": None},
        {"bindings": 3},
        {"seal": 3},
        {"dataset": DATASET | {"num_classes": 2}},
    ],
)
def test_any_other_change_of_the_metadata_is_damage(file, changes):
    _with_metadata(file, **changes)
    _refused(lambda: weights.read_metadata(file), file, "is damaged")


@pytest.mark.parametrize("bindings", [3, [], {"Experiment.seed": [0]}, None])
def test_bindings_that_cannot_be_under_a_right_seal(file, bindings):
    metadata, _ = _by_hand(file.read_bytes())
    sealed = {k: v for k, v in {**metadata, "bindings": bindings}.items() if k not in ("config", "seal")}
    seal = hashlib.sha256(json.dumps(sealed, sort_keys=True).encode()).hexdigest()
    metadata, arrays = _by_hand(file.read_bytes())
    save_file(arrays, file, {"diffenc": json.dumps({**metadata, "bindings": bindings, "seal": seal})})
    _refused(lambda: weights.read_metadata(file), file)


def test_a_file_of_before_is_known_by_its_config_hash_with_one_warning(file, caplog):
    config = "import a\nExperiment.seed = 0\nevaluate.passes = 2\n"
    kept = hashlib.sha256(b"import a\nExperiment.seed = 0").hexdigest()
    older = {"bindings": None, "seal": None, "run": None, "config": config, "config_hash": kept}
    _with_metadata(file, **older)
    assert weights.read_metadata(file).config == config
    (warned,) = caplog.messages
    assert warned.startswith(f"{file} was written by an earlier version: only its config_hash was compared")
    _with_metadata(file, **older | {"config": config.replace("seed = 0", "seed = 1")})
    _refused(
        lambda: weights.read_metadata(file),
        file,
        "not the one that was written with the",
        "config_hash differs",
    )


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", "[" * 100_000])
def test_metadata_that_are_none(tmp_path, text):
    save_file(ARRAYS, tmp_path / "odd", {"diffenc": text})
    _refused(lambda: weights.read_metadata(tmp_path / "odd"), tmp_path / "odd", "damaged")


def test_a_file_without_metadata_is_none_of_ours(tmp_path):
    save_file(ARRAYS, tmp_path / "theirs")
    _refused(
        lambda: weights.read_metadata(tmp_path / "theirs"), tmp_path / "theirs", "was not written by diffenc"
    )


def test_no_file(tmp_path):
    _refused(lambda: weights.read_metadata(tmp_path / "absent"), tmp_path / "absent")
    _refused(lambda: weights.read_metadata(tmp_path), tmp_path)
