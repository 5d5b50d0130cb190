import dataclasses
from typing import ClassVar

import pytest

from diffenc import registry
from diffenc.data import versions
from diffenc.data.versions import Part, Pixels, Version

SHAPE = (4, 5, 3)
FIRST = Version(
    "first",
    (
        Part("train", pixels=Pixels("aa", "a0"), files=({"a.zip": "11"}, {"one": "22", "two": "33"})),
        Part("test", pixels=Pixels("bb"), files=({"a.zip": "11"}, {"three": "44"})),
        Part("test", "first 2 of test", pixels=Pixels("b2", "b0")),
    ),
)
SECOND = Version("second", (Part("train", pixels=Pixels("cc")), Part("test", files=({"b.zip": "55"},))))


@pytest.fixture(autouse=True)
def published(monkeypatch):
    """Two data sets of one shape with published versions."""
    monkeypatch.setattr(registry.datasets, "_classes", dict(registry.datasets._classes))
    for name, version in (("first_set", FIRST), ("second_set", SECOND)):

        @registry.datasets.register(name)
        @dataclasses.dataclass(frozen=True)
        class Published:
            image_shape: ClassVar = SHAPE
            versions: ClassVar = (version,)

        del Published


def digest(md5="", sha256=""):
    return {"bytes": 1, "md5": md5, "sha256": sha256}


def title(digests=None, train="-", test="-", any_train="", any_test="", name="first_set", shape=SHAPE):
    splits = {"train": Pixels(train, any_train), "test": Pixels(test, any_test)}
    return versions.describe(versions.identify(name, shape, splits, digests or {}), "?")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"train": "aa", "test": "bb"}, "first"),
        ({"train": "aa"}, "first: all of train, unknown version of test"),
        ({"test": "bb"}, "first: unknown version of train, all of test"),
        ({"train": "aa", "test": "b2"}, "first: all of train, first 2 of test"),
        ({"any_train": "a0", "test": "bb"}, "first"),
        ({"any_train": "a0", "any_test": "b0"}, "first: all of train, first 2 of test"),
        ({"train": "bb", "test": "aa"}, "?"),
        ({"train": "aa", "test": "bb", "name": "folder"}, "first"),
        ({"train": "aa", "test": "bb", "shape": (5, 4, 3)}, "?"),
        ({"train": "cc", "test": "bb"}, "all of train of second; all of test of first"),
        ({}, "?"),
    ],
)
def test_pixels_are_recognised_split_by_split(given, expected):
    assert title(**given) == expected


@pytest.mark.parametrize(
    ("digests", "expected"),
    [
        ({"a.zip": digest(md5="11")}, "first"),
        ({"folder/a.zip": digest(sha256="11")}, "first"),
        ({"a.zip": digest("12", "13")}, "?"),
        ({"f/one": digest("22"), "f/two": digest("33"), "f/three": digest("44")}, "first"),
        ({"f/one": digest("22"), "f/two": digest("33"), "f/three": digest("45")}, "first: all of train, unknown version of test"),
        ({"f/one": digest("22"), "f/two": digest("34"), "f/three": digest("44")}, "first: unknown version of train, all of test"),
        ({"f/one": digest("33"), "f/two": digest("22")}, "?"),
        ({"f/one": digest("22")}, "?"),
        ({"b.zip": digest("55")}, "?"),
        ({"pets/": {"files": 3, "sha256": "9"}}, "?"),
    ],
)  # fmt: skip
def test_files_are_recognised_split_by_split(digests, expected):
    assert title(digests) == expected


def test_files_tell_only_what_is_read_as_their_own_data_set():
    assert title({"a.zip": digest("11")}, name="second_set") == "?"


def test_pixels_without_a_digest_over_any_order_match_no_such_digest():
    assert title(test="-", any_test="") == "?"
