"""The page in a real browser, from disk and without a network: keys, buttons, widths, numbers and pictures."""

import numpy as np
import pytest

from diffenc.tools.explore import arrays, page
from tests.diffenc.tools.report.browser import installed_browser, require_fit

pytestmark = pytest.mark.slow
WIDTHS = (390, 1440)
TIMES = arrays.midpoint_times(5)


@pytest.fixture(scope="module")
def tab():
    with installed_browser() as found:
        yield found


@pytest.fixture(scope="module")
def measured(trained):
    """Two models of long names, their images, and the panels of both."""
    name = "a_rather_long_name_of_a_run_without_any_space_in_it_" * 2
    models = [trained("runs/plain", plain=True), trained(f"runs/{name}", num_timesteps=4)]
    shown = arrays.choose_images(models, 4)
    return models, shown, [arrays.measure_panels(model, shown, TIMES) for model in models]


@pytest.fixture(scope="module")
def file(measured, tmp_path_factory):
    models, shown, panels = measured
    output = tmp_path_factory.mktemp("page") / "page.html"
    output.write_text(page.render_page(models, shown, TIMES, panels))
    return output


STATE = "[Number(document.querySelector('#t').value), Number(document.querySelector('[aria-pressed=true]').dataset.pick)]"


def test_keys_and_buttons_move_the_time_and_choose_the_image(tab, file):
    tab.open(file, 1440)
    assert tab.run(STATE) == [2, 0]
    for key, state in (
        *(("ArrowRight", [3, 0]), ("ArrowLeft", [2, 0]), ("n", [2, 1]), ("n", [2, 2]), ("p", [2, 1])),
        ("ArrowDown", [2, 1]),  # scrolls, out of the controls
    ):
        tab.press(key)
        assert tab.run(STATE) == state
    tab.run("document.querySelector('#t').focus()")
    for key, state in (("ArrowDown", [2, 2]), ("ArrowUp", [2, 1]), ("End", [4, 1]), ("ArrowRight", [4, 1])):
        tab.press(key)
        assert tab.run(STATE) == state
    assert tab.run("document.querySelector('#t').getAttribute('aria-valuetext')") == "t = 0.9"
    assert tab.run("document.querySelector('[data-t]').textContent") == "0.9"
    tab.run("document.querySelector('[data-step=\"-1\"]').click()")
    tab.run("document.querySelector('[data-pick=\"3\"]').click()")
    assert tab.run(STATE) == [3, 3]
    assert "(4 of 4 here)" in tab.run("document.querySelector('[data-chosen]').textContent")


def test_the_numbers_are_those_measured(tab, file, measured):
    _, _, panels = measured
    tab.open(file, 1440)
    tab.press("n")
    tab.press("ArrowRight")
    for run, panel in enumerate(panels):
        cells = ("share", "image"), ("total", "image"), ("share", "mean"), ("total", "mean")
        found = [
            float(tab.run(f"document.querySelector('[data-run=\"{run}\"] [data-{kind}={of}]').textContent"))
            for kind, of in cells
        ]
        bits = panel.bits
        expected = [bits[1, 3], bits[1].mean(), bits[:, 3].mean(), bits.mean()]
        np.testing.assert_allclose(found, expected, rtol=6e-4)
    assert tab.run("document.querySelector('[data-run=\"1\"] [data-point]').textContent").startswith(
        "step 3 of 4, from t = 0.75: λ = "
    )


def test_the_pictures_are_the_formulas(tab, file, measured):
    _, shown, panels = measured
    tab.open(file, 1440)
    x = 2 * (shown.levels[0] + 0.5) / 5 - 1
    for run, panel in enumerate(panels):
        z = panel.alpha[2] * panel.x_phi[0, 2] + panel.sigma[2] * shown.eps[0]
        for name, values in (("x", x), ("x_phi", panel.x_phi[0, 2]), ("z", z), ("x_hat", panel.x_hat[0, 2])):
            canvas = f"document.querySelector('[data-run=\"{run}\"] [data-panel={name}]')"
            data = tab.run(f"[...{canvas}.getContext('2d').getImageData(0, 0, 4, 4).data]")
            grey = np.array(data).reshape(4, 4, 4)
            expected = np.clip(127.5 * (values + 1), 0, 255)
            np.testing.assert_allclose(grey[..., :1], expected, atol=4)  # of 8 bits, twice
            assert (grey[..., 3] == 255).all()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_is_no_wider_than_the_window(tab, file, width, dark):
    tab.open(file, width, dark=dark)
    require_fit(tab, width, dark)


@pytest.mark.parametrize("width", WIDTHS)
def test_what_is_touched_is_large_enough_and_named(tab, file, width):
    tab.open(file, width)
    sizes = tab.run("""[...document.querySelectorAll('button, input[type=range], .stretch')].map(
        e => [e.getBoundingClientRect().width, e.getBoundingClientRect().height])""")
    assert len(sizes) == 4 + 2 + 1 + 1
    assert np.min(sizes) >= 44
    assert tab.run("[...document.querySelectorAll('button')].every(e => e.getAttribute('aria-label'))")
    assert tab.run("document.querySelector('label[for=t]').textContent") == "Time t"


def test_nothing_is_asked_for_and_nothing_complained_of(tab, file):
    tab.open(file, 1440)
    asked = [address for address in tab.requested if not address.startswith("data:")]
    assert asked == [file.resolve().as_uri()]
    assert tab.complaints == []
