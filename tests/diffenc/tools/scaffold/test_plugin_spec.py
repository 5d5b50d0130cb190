import ast
import builtins
import re

import pytest

from diffenc.errors import UserError
from diffenc.registry import REGISTRIES
from diffenc.tools.scaffold.plugin_spec import PluginSpec


@pytest.mark.parametrize(
    ("name", "class_name"), [("my_blur", "MyBlur"), ("blur2", "Blur2"), ("aB_c__d", "ABCD"), ("x_", "X")]
)
def test_a_class_is_called_after_its_plugin(name, class_name):
    assert PluginSpec("encoder", name).class_name == class_name
    PluginSpec("encoder", name).check()


@pytest.mark.parametrize("kind", REGISTRIES)
def test_every_kind_has_its_templates(kind):
    wanted = PluginSpec(kind, "brand_new")
    wanted.check()
    head = r'\.register\("brand_new"\)\n@dataclasses\.dataclass\(frozen=True\)\nclass BrandNew(\(\w+\))?:\n    """'
    assert re.search(head, wanted.text("plugin.py"))
    assert f'testing.CHECKS["{kind}"]' in wanted.text("test.py", module="a.brand_new")
    assert "from a.brand_new import BrandNew\n" in wanted.text("test.py", module="a.brand_new")
    assert f"@{kind}.brand_new()" in wanted.text("plugin.gin")


@pytest.mark.parametrize(("kind", "folder"), [("encoder", "encoders"), ("features", "features")])
def test_a_kind_has_a_folder(kind, folder):
    assert PluginSpec(kind, "x").folder == folder


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
        ("encoder", "none", "its class would be called None, which is a word of Python's: choose another"),
        ("encoder", "true", "its class would be called True, which is a word"),
        ("dataset", "false", "its class would be called False, which is a word"),
        ("writer", "writer", "its class would be called Writer, a name that its files use otherwise"),
    ],
)
def test_what_cannot_be_had_is_refused(kind, name, says):
    with pytest.raises(UserError, match=says) as refused:
        PluginSpec(kind, name).check()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", REGISTRIES)
def test_no_name_of_a_templates_own_can_be_had(kind):
    """Whatever the module holds when it is read by Python, but for the plugin itself."""
    tree = ast.parse(PluginSpec(kind, "brand_new").text("plugin.py"))
    own = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    own |= {alias.asname or alias.name for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names}  # fmt: skip
    own |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and hasattr(builtins, node.id)}
    classes = {name for name in own - {"BrandNew"} if name[:1].isupper() and name.isalnum()}
    assert len(classes) > 0
    for name in classes:
        with pytest.raises(UserError, match=f"its class would be called {name}"):
            PluginSpec(kind, name).check()


def test_a_name_of_another_kind_is_free():
    PluginSpec("schedule", "blurring").check()
