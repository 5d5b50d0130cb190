from pathlib import Path

import pytest

import diffenc_plugins
from diffenc.errors import UserError
from diffenc.tools.scaffold import index

FOLDER = Path(str(diffenc_plugins.__path__[0]))
INDICES = sorted(path for path in FOLDER.glob("*/__init__.py"))


@pytest.mark.parametrize("path", INDICES, ids=lambda path: path.parent.name)
def test_those_of_this_project_are_read_to_the_letter(path):
    text = path.read_text()
    assert str(index.parse_index(text, "x")) == text


def test_a_plugin_gets_its_line_where_it_belongs():
    text = '"""Some."""\n\nfrom p.a import A\nfrom p.c import VDM\n\n__all__ = ["VDM", "A"]\n'
    added = index.parse_index(text, "x").with_class("p.b", "B")
    assert str(added) == (
        '"""Some."""\n\nfrom p.a import A\nfrom p.b import B\nfrom p.c import VDM\n\n__all__ = ["VDM", "A", "B"]\n'
    )
    assert added.with_class("p.b", "B") == added


def test_the_first_plugin_of_a_package():
    assert str(index.parse_index('"""Some."""\n', "x").with_class("p.b", "B")) == (
        '"""Some."""\n\nfrom p.b import B\n\n__all__ = ["B"]\n'
    )


def test_long_lines_are_broken():
    long = "A" * 100
    added = index.parse_index('"""Some."""\n', "x").with_class("p.b", long)
    assert str(added).splitlines()[2:] == [
        "from p.b import (",
        f"    {long},",
        ")",
        "",
        "__all__ = [",
        f'    "{long}",',
        "]",
    ]
    assert index.parse_index(str(added), "x") == added


@pytest.mark.parametrize(
    "text",
    [
        '"""Some."""\n\nimport os\n',
        '"""Some."""\n\nfrom p.a import A  # a comment\n\n__all__ = ["A"]\n',
        '"""Some."""\n\nfrom p.a import A as B\n\n__all__ = ["B"]\n',
        "VERSION = 1\n",
        "",
    ],
)
def test_what_would_get_lost_is_refused(text):
    with pytest.raises(UserError, match=r"^here/__init__\.py has more than .*--package=DIR"):
        index.parse_index(text, "here/__init__.py")


def test_what_is_no_python_is_refused():
    with pytest.raises(UserError, match=r"^here:2: is not valid Python"):
        index.parse_index("a = 1\nb = = 2\n", "here")


def test_two_modules_have_no_class_of_one_name():
    known = index.Index("Doc.", {"a.my_blur": ("MyBlur",)})
    with pytest.raises(UserError, match=r"a\.my_blur has a class MyBlur too"):
        known.with_class("a.my__blur", "MyBlur")
    assert known.with_class("a.my_blur", "MyBlur") == known
