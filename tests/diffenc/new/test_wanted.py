import pytest

from diffenc.errors import UserError
from diffenc.new.wanted import Wanted
from diffenc.registry import REGISTRIES


@pytest.mark.parametrize(
    ("name", "class_name"), [("my_blur", "MyBlur"), ("blur2", "Blur2"), ("aB_c__d", "ABCD"), ("x_", "X")]
)
def test_a_class_is_called_after_its_plugin(name, class_name):
    assert Wanted("encoder", name).class_name == class_name
    Wanted("encoder", name).check()


@pytest.mark.parametrize("kind", REGISTRIES)
def test_every_kind_has_its_templates(kind):
    wanted = Wanted(kind, "brand_new")
    wanted.check()
    assert (
        '.register("brand_new")\n@dataclasses.dataclass(frozen=True)\nclass BrandNew:\n    """'
        in wanted.text("plugin.py")
    )
    assert f'testing.CHECKS["{kind}"]' in wanted.text("test.py", module="a.brand_new")
    assert "from a.brand_new import BrandNew\n" in wanted.text("test.py", module="a.brand_new")
    assert f"@{kind}.brand_new()" in wanted.text("plugin.gin")


@pytest.mark.parametrize(("kind", "folder"), [("encoder", "encoders"), ("features", "features")])
def test_a_kind_has_a_folder(kind, folder):
    assert Wanted(kind, "x").folder == folder


@pytest.mark.parametrize(
    ("kind", "name", "says"),
    [
        (
            "encodr",
            "my_blur",
            r"no kind of plugin is called 'encodr'; nearest: encoder; kinds: encoder, .*writer$",
        ),
        ("encoder", "my-blur", r"NAME 'my-blur': must be a letter, then .* as my_blur$"),
        ("encoder", "1st", "must be a letter"),
        ("encoder", "", "must be a letter"),
        ("encoder", "_blur", "must be a letter"),
        ("encoder", "../blur", "must be a letter"),
        ("encoder", "blür", "must be a letter"),
        ("encoder", "class", "NAME 'class' is a word of Python's"),
        (
            "encoder",
            "blurring",
            r"encoder\.blurring is already diffenc_plugins\.encoders\.blurring\.Blurring",
        ),
        ("encoder", "data", "its class would be called Data"),
        ("network", "float", "its class would be called Float"),
    ],
)
def test_what_cannot_be_had_is_refused(kind, name, says):
    with pytest.raises(UserError, match=says) as refused:
        Wanted(kind, name).check()
    assert "\n" not in str(refused.value)


def test_a_name_of_another_kind_is_free():
    Wanted("schedule", "blurring").check()
