"""The site is built strictly, shows what there is, and asks no other host for anything."""

import ast
import html
import json
import os
import re
import runpy
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import diffenc
from diffenc import registry

pytest.importorskip("mkdocs")
ROOT = Path(__file__).parents[2]
LOADS = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "video": "src"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(target)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    return target


class Loaded(HTMLParser):
    """What a browser fetches for a page, by the page's own word."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag in LOADS and not (tag == "link" and given.get("rel") in ("canonical", "next", "prev")):
            self.found.append(given.get(LOADS[tag]) or "")
        self.found += re.findall(r"url\(([^)]+)\)", given.get("style") or "")


@pytest.mark.slow
def test_no_page_asks_another_host_for_anything(site):
    for page in site.rglob("*.html"):
        loaded = Loaded()
        loaded.feed(page.read_text())
        assert loaded.found
        assert [url for url in loaded.found if re.match(r"(https?:)?//", url)] == []
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import )['\"]?(?:https?:)?//", sheet.read_text())


def test_the_api_page_has_all_that_the_package_exports(site):
    page = (site / "api" / "index.html").read_text()
    found = {name.rpartition(".")[2] for name in re.findall(r'id="(diffenc[\w.]*)"', page)}
    assert (
        set(diffenc.__all__) - {"plugins", "registry"} <= found
    )  # modules, of which only the contents are shown


def test_the_notebook_is_a_page_with_its_pictures(site):
    """Links to the notebook lead there; as many pictures as the notebook's outputs hold are shown, and exist."""
    notebook = json.loads((ROOT / "docs" / "first_hour.ipynb").read_text())
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    drawn = sum("image/png" in output.get("data", {}) for output in outputs)
    folder = site / "first_hour"
    page = (folder / "index.html").read_text()
    shown = re.findall(r'src="(\.\./first_hour_files/[^"]+)"', page)
    assert len(shown) == drawn > 0
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in shown)
    assert 'id="write-an-encoder"' in page
    assert 'href="first_hour/"' in (site / "index.html").read_text()
    assert "first_hour.ipynb" not in (site / "index.html").read_text()


def test_equations_are_mathml(site):
    page = (site / "concepts" / "index.html").read_text()
    assert page.count("<math") > 60
    assert "arithmatex" not in page


def test_scripts_of_fences_are_as_high_as_those_of_letters():
    """In a norm's ‖x‖² the fence is within mpadded, which states the height of a letter; sums are left alone."""
    hooks = runpy.run_path(str(ROOT / "docs" / "hooks.py"))
    for tex in (r"\|x\|^2", r"\lVert x \rVert_2^2", r"(x + 1)^2", r"|x|^2", r"[x]_1", r"\lfloor x \rfloor^2"):
        (scripted,) = re.findall(
            r"<(?:msub|msup|msubsup)>(.*?)</(?:msub|msup|msubsup)>", hooks["mathml"](tex, block=False)
        )
        assert re.match(
            r'<mpadded height="0\.7em" depth="0\.2em"><m[oi][^>]*>&?[^<]+</m[oi]></mpadded><mn>', scripted
        )
    assert "mpadded" not in hooks["mathml"](r"x^2 + \sum_{i=1}^n i^2 + (x + 1)", block=True)
    assert hooks["mathml"](r"\lVert x \rVert", block=False).count('<mo stretchy="false">') == 2


def test_every_plugin_is_in_the_lists_and_in_the_api(site):
    lists, api = (html.unescape((site / name / "index.html").read_text()) for name in ("plugins", "api"))
    for kind, plugins in registry.REGISTRIES.items():
        ours = [name for name in plugins if plugins[name].__module__.startswith("diffenc_plugins.")]
        assert ours
        for name in ours:
            assert f"<code>{kind}.{name}</code>" in lists
            assert f'id="{plugins[name].__module__}.{plugins[name].__name__}"' in api


def said(node: ast.expr) -> str:
    """A string as the source writes it, `…` for what it puts in."""
    match node:
        case ast.Constant(value=str()):
            return str(node.value)
        case ast.JoinedStr():
            return "".join(said(part) for part in node.values)
        case _:
            return "…"


@pytest.fixture(scope="module")
def strings():
    files = [path for folder in ("diffenc", "plugins") for path in (ROOT / folder).rglob("*.py")]
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text()))]
    return [said(node) for node in nodes if isinstance(node, ast.JoinedStr | ast.Constant)]


def test_error_messages_that_are_explained_occur_in_the_code(strings):
    explained = re.findall(r"^- `(.+)`$", (ROOT / "docs" / "errors.md").read_text(), re.MULTILINE)
    assert len(explained) >= 30
    missing = [one for one in explained if not any(one in string for string in strings)]
    assert missing == []
