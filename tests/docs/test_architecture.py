"""The architecture page: its paths exist, its layers are those that are kept, in the same order."""

import itertools
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def layers():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = [one for one in settings["tool"]["importlinter"]["contracts"] if one["type"] == "layers"]
    return [
        {name.strip().removeprefix("diffenc.") for name in layer.split("|")} for layer in contract["layers"]
    ]


def test_every_path_exists():
    paths = re.findall(r"`([\w/]+(?:\.py|/))`", PAGE)
    assert len(paths) > 25
    for path in paths:
        assert (ROOT / "diffenc" / path).exists() or (ROOT / path).exists(), path


def test_every_module_and_function_exists():
    for module, name in re.findall(r"`([\w/]+\.py)`, `(\w+)`", PAGE):
        assert re.search(
            rf"^(def|class) {name}\b|^{name}\b", (ROOT / "diffenc" / module).read_text(), re.M
        ), name


def test_the_picture_has_the_layers_in_their_order():
    picture = PAGE.partition("```text")[2].partition("```")[0]
    places = {name: re.search(rf"(?:│ |  |\.){name}\b", picture) for layer in layers() for name in layer}
    assert all(places.values()), {name for name, place in places.items() if place is None}
    order = [[place.start() for name in layer if (place := places[name])] for layer in layers()]
    lines = [[picture.count("\n", 0, start) for start in starts] for starts in order]
    assert all(max(above) <= min(below) for above, below in itertools.pairwise(lines))


def test_every_package_is_in_the_picture():
    packages = {path.parent.name for path in (ROOT / "diffenc").glob("*/__init__.py")}
    assert packages == {name for layer in layers() for name in layer} & packages
    assert all(package in PAGE for package in packages)
