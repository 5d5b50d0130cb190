"""Links of the pages lead somewhere: to files, pictures and headings that there are."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The ids that headings get, by the rule that GitHub and Python-Markdown share for plain text."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S), re.M
    )
    plain = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
    return {re.sub(r"\s+", "-", text) for text in plain}


def test_a_link_leads_somewhere(page):
    for target in LINK.findall(CODE.sub("", page.read_text(encoding="utf-8"))):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.is_file(), f"{page}: {target}"
        assert not anchor or anchor in anchors(found), f"{page}: {target}"


@pytest.mark.parametrize("text", ["An encoder of your own", "How large, and T steps", "FID"])
def test_anchors_are_those_of_the_site(text, tmp_path):
    slugs = pytest.importorskip("markdown.extensions.toc")
    page = tmp_path / "page.md"
    page.write_text(f"## {text}\n")
    assert anchors(page) == {slugs.slugify(text, "-")}


def test_every_page_of_docs_is_in_the_navigation(pages):
    yaml = pytest.importorskip("yaml")

    class Loader(yaml.SafeLoader):
        pass

    nav = re.search(r"^nav:.*", (ROOT / "mkdocs.yml").read_text(), re.M | re.S)
    assert nav
    text = str(yaml.load(nav[0], Loader))
    for page in pages[1:]:
        name = page.relative_to(ROOT).as_posix().removeprefix("docs/")
        assert f"'{name}'" in text, name
