import pytest

from diffenc.data.versions import Version, identify

PIXELS = {"train": "aa", "test": "bb"}
VERSIONS = (
    Version("first", pixels=PIXELS),
    Version("second", files=({"a.zip": "11"}, {"one": "22", "two": "33"})),
)


def digest(md5="", sha256=""):
    return {"bytes": 1, "md5": md5, "sha256": sha256}


@pytest.mark.parametrize(
    ("pixels", "digests", "title"),
    [
        (PIXELS, {}, "first"),
        (PIXELS | {"test": "cc"}, {}, "?"),
        ({"train": "aa"}, {}, "?"),
        ({}, {"a.zip": digest(md5="11")}, "second"),
        ({}, {"folder/a.zip": digest(sha256="11")}, "second"),
        ({}, {"a.zip": digest("12", "13")}, "?"),
        ({}, {"a.zip": digest("11"), "b.zip": digest("44")}, "?"),
        ({}, {"f/one": digest("22"), "f/two": digest("33")}, "second"),
        ({}, {"f/one": digest("22")}, "?"),
        ({}, {"pets/": {"files": 3, "sha256": "9"}}, "?"),
        ({}, {}, "?"),
    ],
)
def test_a_version_is_told_by_all_its_pixels_or_by_all_its_files(pixels, digests, title):
    assert identify(VERSIONS, pixels, digests, "?") == title
