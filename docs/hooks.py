"""What mkdocs.yml has done to the pages: equations, lists of plugins, and pages of notebooks and of experiments/."""

import html
import re
from collections.abc import Iterator
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

from diffenc import registry
from diffenc.cli import run

ROOT = Path(__file__).parents[1]
EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
PLUGINS = re.compile(r"<!-- plugins: (\w+) -->")
CLOSING = r"&#x0(?:0029|005D|007D|007C|2016|2225|27E9|230B|2309);|[)\]}|‖∥⟩⌋⌉]"
NORM = re.compile(r"<mo>(&#x0(?:2016|007C|2225);)</mo>")  # latex2mathml leaves those of \lVert to stretch
SCRIPTED_FENCE = re.compile(rf"<(msup|msub|msubsup)><(m[oi])([^>]*)>({CLOSING})</\2>")
NO_PAGES = {"records", "models"}  # folders of experiments/: files of runs, and models with their cards
NOTEBOOK = "first_hour"
DEEPER = "\n    options: {heading_level: 4, members: []}"
CLASSES = "<!-- classes of plugins -->"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page of the notebook, and the pages of experiments/ and their pictures where links in the checkout lead to them."""
    for file in notebook_files(config):
        files.append(file)
    for path in sorted((ROOT / "experiments").rglob("*")):
        if path.suffix in (".md", ".png") and NO_PAGES.isdisjoint(path.parts):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def notebook_files(config: MkDocsConfig) -> Iterator[File]:
    """The executed notebook as a page, with the pictures of its outputs."""
    notebook = ROOT / "docs" / f"{NOTEBOOK}.ipynb"
    folder = {"output_files_dir": f"{NOTEBOOK}_files"}
    text, found = MarkdownExporter().from_filename(str(notebook), resources=folder)
    yield File.generated(config, f"{NOTEBOOK}.md", content=text.replace("![png]", "![what the cell draws]"))
    for name, picture in found["outputs"].items():
        yield File.generated(config, name, content=picture)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Lists plugins where a comment asks for them; links that hold in the checkout hold in the site too."""
    registry.discover()
    listed = PLUGINS.sub(lambda match: table(match[1]), markdown)
    listed = listed.replace(CLASSES, classes())
    listed = listed.replace("](../experiments/", "](experiments/").replace("](../docs/", "](../")
    return listed.replace(f"{NOTEBOOK}.ipynb)", f"{NOTEBOOK}.md)")


def table(kind: str) -> str:
    """Names and first lines of the plugins of one kind, as `diffenc.run --list` shows them."""
    lines = [
        line.split(maxsplit=1) for line in run.list_plugins().splitlines() if line.startswith(f"{kind}.")
    ]
    if not lines:
        return ""
    rows = [f"| `{name}` | {html.escape(said)} |" for name, said in lines]
    return "\n".join(["| | |", "|---|---|", *rows])


def classes() -> str:
    """What has mkdocstrings show every plugin of ours."""
    shown = []
    for kind, plugins in registry.REGISTRIES.items():
        ours = [plugins[name] for name in plugins if plugins[name].__module__.startswith("diffenc_plugins.")]
        shown += [f"### {kind}", *(f"::: {one.__module__}.{one.__name__}{DEEPER}" for one in ours)]
    return "\n\n".join(shown)


def on_page_content(content: str, **_: object) -> str:
    """Writes equations as MathML, which browsers show by themselves."""
    return EQUATION.sub(lambda match: mathml(html.unescape(match[2]), match[1] == "div"), content)


def mathml(tex: str, block: bool) -> str:
    if block:
        return f'<div class="equation">{lower_scripts(convert(tex, display="block"))}</div>'
    return lower_scripts(convert(tex))


def lower_scripts(equation: str) -> str:
    """Sets scripts of a closing fence, as in ‖x‖², as high as those of a letter: fences keep their size, and count less.

    MathML hangs a superscript on the top of its base, which for a fence is far above the letters; TeX does not.
    Scripts of a whole between \\left and \\right stay where they are.
    """
    equation = NORM.sub(r'<mo stretchy="false">\1</mo>', equation)
    return SCRIPTED_FENCE.sub(
        r'<\1><mpadded height="0.7em" depth="0.2em"><\2\3 form="postfix">\4</\2></mpadded>', equation
    )
