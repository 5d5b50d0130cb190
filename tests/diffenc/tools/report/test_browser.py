"""The page in a real browser, from disk and without a network: keys, widths, and what it asks for."""

import dataclasses

import pytest

from diffenc.config.figure_settings import Figures
from diffenc.config.serialize import config_text
from diffenc.config.settings import Diagnose, Evaluate, Sample
from diffenc.evaluation import commands
from diffenc.tools.figures.figures import figures
from diffenc.training import loop

from .browser import installed_browser, require_fit
from .conftest import CONFIG, evaluation, rendered

pytestmark = pytest.mark.slow
WIDTHS = (360, 768, 1440)


@pytest.fixture(scope="module")
def tab():
    with installed_browser() as found:
        yield found


@pytest.fixture
def page(whole, made, tmp_path):
    """Two runs, of long names."""
    name = "a_rather_long_name_of_a_run_without_any_space_in_it_" * 2
    other = made(
        name, config=CONFIG.replace("identity", "trainable"), said=evaluation(), plus=[0.1, 0.2, 0.5]
    )
    output = tmp_path / "page.html"
    output.write_text(rendered(whole, other))
    return output


SHOWN = "[...document.querySelectorAll('[data-frame]')].filter(f => !f.hidden).map(f => f.querySelector('img').currentSrc)"
VISIBLE = "[...document.querySelectorAll('[data-frame]')].filter(f => f.getClientRects().length).map(f => f.dataset.frame)"


def test_the_slider_is_moved_by_keys_and_says_so(tab, page):
    tab.open(page, 1440)
    slider = "document.querySelector('[data-slide] input')"
    assert tab.run(f"document.querySelector(`label[for='${{{slider}.id}}']`).textContent") == "Time t"
    assert tab.run(f"{slider}.getAttribute('aria-valuetext')") == "t = 1"
    tab.run(f"{slider}.focus()")
    (before,), place = tab.run(SHOWN), tab.run(VISIBLE)
    tab.press("ArrowLeft")
    (after,) = tab.run(SHOWN)
    assert before != after
    assert (place, tab.run(VISIBLE)) == (["1"], ["0"])
    assert tab.run(f"{slider}.getAttribute('aria-valuetext')") == "t = 0.5"
    assert tab.run("document.querySelector('[data-t]').textContent") == "0.5"
    tab.press("End")
    assert tab.run(SHOWN) == [before]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_is_no_wider_than_the_window(tab, page, width, dark):
    tab.open(page, width, dark=dark)
    tab.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    require_fit(tab, width, dark)


@pytest.mark.parametrize("width", WIDTHS)
def test_only_boxes_that_scroll_are_wider_than_themselves(tab, page, width):
    tab.open(page, width)
    tab.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    cut = """[...document.querySelectorAll('main *')].filter(e => {
      if (e.closest('svg, .slider, pre, .interval') || e.scrollWidth <= e.clientWidth + 1 || !e.clientWidth) return false;
      return getComputedStyle(e).overflowX !== 'auto' && !e.closest('.scroll');
    }).map(e => e.outerHTML.slice(0, 200))"""
    assert [one for one in tab.run(cut) if 'class="plot"' not in one and "aria-hidden" not in one] == []


def test_nothing_is_asked_for_and_nothing_complained_of(tab, page):
    tab.open(page, 1440)
    assert [address for address in tab.requested if not address.startswith("data:")] == [
        page.resolve().as_uri()
    ]
    assert tab.complaints == []


def test_all_pictures_are_there(tab, page):
    tab.open(page, 1440)
    assert tab.run("document.images.length") >= 3
    assert tab.run("[...document.images].every(i => i.complete && i.naturalWidth > 0)")


def test_the_first_tab_skips_to_the_figures(tab, page):
    tab.open(page, 1440)
    tab.press("Tab")
    assert tab.run("document.activeElement.className") == "skip"
    assert tab.run("document.activeElement.getBoundingClientRect().left") >= 0
    tab.press("Enter")
    assert tab.run("location.hash") == "#main"


def test_printed_it_shows_every_frame(tab, page):
    tab.open(page, 1440)
    tab.send("Emulation.setEmulatedMedia", media="print")
    assert len(tab.run(VISIBLE)) == 2
    tab.send("Emulation.setEmulatedMedia", media="")


def test_a_run_from_its_training_to_its_page(tab, tiny, tmp_path):
    """What the modes themselves leave in a workdir."""
    experiment = tiny(
        evaluate_every=6,
        evaluate=Evaluate(passes=2),
        sample=Sample(num_timesteps=4, num=3),
        figures=Figures(only=("heat_maps", "encoded", "schedule", "loss"), num_images=4, times=(0.5, 1.0)),
        diagnose=Diagnose(bins=2, passes=4),
    )
    runs = []
    for seed in range(2):
        one = dataclasses.replace(experiment, seed=seed)
        runs.append(tmp_path / f"seed_{seed}")
        loop.train(one, runs[-1])
        assert (runs[-1] / "config.gin").read_text() == config_text(one)
        commands.sample(one, runs[-1])
        figures(one, runs[-1])
    output = tmp_path / "page.html"
    output.write_text(rendered(*runs))
    tab.open(output, 360)
    said = tab.run("document.body.innerText")
    assert "Run:" not in said
    assert "4 × 4 × 1" in said
    assert "standard error over 2 seeds" in said
    assert tab.run("document.querySelectorAll('.chart').length") == 10
    assert tab.run("document.documentElement.scrollWidth") == 360
    assert tab.complaints == []
