"""Evaluations read again, from files made here."""

import io
import json
import math

import numpy as np
import pytest

from diffenc.errors import UserError
from diffenc.evaluation import saved_records

TERMS = ("reconstruction", "latent", "diffusion")
NATS = {name: np.array([[1.0, 2.0, 4.0], [3.0, 2.0, 0.0]]) * (k + 1) for k, name in enumerate(TERMS)}
TIMES = np.linspace(0, 0.9, 6).reshape(2, 3, 1)
DIMS = 6


def npz(arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def record(**changes):
    total = sum(NATS.values()).mean() / (DIMS * math.log(2))  # pyright: ignore[reportAttributeAccessIssue]
    return {"bpd": total, "num_images": 3, **changes}


def test_terms_are_in_bits_a_dimension():
    found = saved_records.terms_by_pass(npz({**NATS, "times": TIMES}), record(), "file")
    for k, name in enumerate(TERMS):
        by_pass = np.array([[1, 2, 4], [3, 2, 0]]) * (k + 1) / (6 * math.log(2))
        np.testing.assert_allclose(found[name].values, by_pass)
        np.testing.assert_array_equal(found[name].times, TIMES)
    np.testing.assert_allclose(
        found["total"].values, np.array([[6, 12, 24], [18, 12, 0]]) / (6 * math.log(2))
    )


def test_terms_without_their_times_are_means_over_passes():
    """They were stratified over batches in a fixed order: their passes do not tell images from noise."""
    total = saved_records.terms_by_pass(npz(NATS), record(), "file")["total"]
    np.testing.assert_allclose(total.values, np.array([[12, 12, 12]]) / (6 * math.log(2)))
    assert total.over_images.se is None


@pytest.mark.parametrize(
    ("data", "said", "message"),
    [
        (b"", {}, "cannot be read"),
        (b"PK\x03\x04 nothing", {}, "cannot be read"),
        (npz({"latent": NATS["latent"]}), {}, "cannot be read"),
        (npz({name: np.array([[object()]], dtype=object) for name in TERMS}), {}, "cannot be read"),
        (npz(NATS), {"bpd": None}, "holds no finite terms of 3"),
        (npz(NATS), {"num_images": 4}, "holds no finite terms of 4"),
        (npz(NATS), {"bpd": record()["bpd"] * 1.01}, "is of another evaluation"),
        (npz(NATS), {"bpd": 0.0}, "is of another evaluation"),
        (npz(NATS), {"bpd": 5e-324}, "is of another evaluation"),
        (npz(NATS), {"bpd": -record()["bpd"]}, "is of another evaluation"),
        (npz(dict.fromkeys(TERMS, np.zeros((2, 3)))), {}, "is of another evaluation"),
        (npz({**NATS, "latent": np.array([[1.0, math.nan, 1.0]] * 2)}), {}, "holds no finite terms of 3"),
        (npz({**NATS, "latent": np.array([[1.0, math.inf, 1.0]] * 2)}), {}, "holds no finite terms of 3"),
        (npz(dict.fromkeys(TERMS, np.ones(3))), {}, "cannot be read"),
        (npz({**NATS, "times": TIMES[:1]}), {}, "cannot be read"),
    ],
)
def test_what_does_not_belong_together_is_refused(data, said, message):
    with pytest.raises(UserError, match=f"^file: {message}"):
        saved_records.terms_by_pass(data, record(**said), "file")


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000])
def test_what_is_no_record_is_refused(data):
    with pytest.raises(UserError, match=r"^name: is not valid JSON"):
        saved_records.parse_record(data, "name")


def test_a_spread_that_an_earlier_version_wrote_is_an_upper_bound():
    old = {
        "bpd": 2.0,
        "bpd_se": 0.05,
        "bpd_mc_se": 0.01,
        "bpd_latent": 0.1,
        "bpd_latent_se": None,
        "kid_se": 0.3,
    }
    found = saved_records.parse_record(json.dumps(old).encode(), "name")
    assert found == {**old, "bpd_se": None, "bpd_se_upper": 0.05, "bpd_latent_se_upper": None}
    new = {"bpd": 2.0, "bpd_se": 0.02, "bpd_se_uncertainty": 0.001, "bpd_se_upper": 0.05, "bpd_mc_se": 0.01}
    assert saved_records.parse_record(json.dumps(new).encode(), "name") == new


def test_what_differs_is_named():
    assert saved_records.list_differences({"a": 1, "b": 2}, {"a": 1, "c": 3}, ("a", "b", "c")) == [
        "b 2 and None",
        "c None and 3",
    ]


def test_records_from_before_are_compared_by_what_they_meant():
    """They held JAX's setting, which the device gives its meaning, and not the generator."""
    keys = ("matmul_precision", "prng")
    old = {"matmul_precision": "default", "device": "NVIDIA A100-SXM4-40GB", "precision": "float32"}
    new = {**old, "matmul_precision": "tfloat32", "prng": "threefry2x32, partitionable"}
    assert saved_records.list_differences(old, new, keys) == []
    on_cpu = {**old, "device": "cpu"}
    assert saved_records.list_differences(old, on_cpu, keys) == ["matmul_precision tfloat32 and float32"]
    assert (
        saved_records.list_differences(
            {**old, "precision": "float64"}, {**new, "matmul_precision": "float64"}, keys
        )
        == []
    )
    drawn = {**new, "prng": "rbg"}
    assert saved_records.list_differences(old, drawn, keys) == ["prng threefry2x32, partitionable and rbg"]


def test_a_record_of_an_earlier_version_has_its_time_sampler():
    found = saved_records.parse_record(b'{"proposal": "uniform", "bpd": 1.5}', "evaluation.json")
    assert found["time_sampler"] == "uniform"
