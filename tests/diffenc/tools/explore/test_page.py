"""The page: what is embedded in it, and that no name becomes markup."""

import base64
import dataclasses
import json

import html5lib
import numpy as np
import pytest
from scipy.special import expit

from diffenc.errors import UserError
from diffenc.tools.explore import arrays, page
from tests.conftest import Dots

TIMES = arrays.midpoint_times(3)


def rendered(*models, count=4) -> str:
    shown = arrays.choose_images(models, count)
    panels = [arrays.measure_panels(model, shown, TIMES) for model in models]
    return page.render_page(models, shown, TIMES, panels)


def parsed(html: str):
    return html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(html)


def embedded(html: str) -> dict:
    return json.loads(parsed(html).find(".//script[@id='data']").text)


def decode(array: dict, shape=(4, 4, 1)) -> tuple[np.ndarray, float]:
    """The values by the scale that stands with them, and their largest error."""
    limit = np.array(array["limit"])
    integers = np.frombuffer(base64.b64decode(array["values"]), np.uint8).astype(float)
    values = limit[..., None, None, None] * (integers.reshape(*limit.shape, *shape) - 128) / 127
    return values, float(limit.max()) / 254 + 1e-6


@pytest.fixture(scope="module")
def html(trained):
    return rendered(trained("runs/plain", plain=True), trained("runs/other", seed=1))


def test_the_embedded_arrays_are_those_of_the_formulas(html, trained):
    data = embedded(html)
    levels = np.frombuffer(base64.b64decode(data["x"]), np.uint8).reshape(4, 4, 4, 1)
    images = trained().experiment.dataset.source("test").images
    np.testing.assert_array_equal(levels, images[data["images"]])
    x = 2 * (levels + 0.5) / 5 - 1
    plain = data["runs"][0]
    x_phi, error = decode(plain["x_phi"])
    np.testing.assert_allclose(x_phi, np.broadcast_to(x[:, None], x_phi.shape), atol=error)
    # x_hat = alpha z - sigma (w z + b) at z = alpha x_phi + sigma eps, from what is embedded
    eps, eps_error = decode(data["eps"])
    alpha, sigma = (np.array(plain[key])[:, None, None, None] for key in ("alpha", "sigma"))
    np.testing.assert_allclose(alpha**2, expit(np.array(plain["log_snr"]))[:, None, None, None], rtol=1e-4)
    z, z_error = alpha * x_phi + sigma * eps, error + eps_error  # alpha, sigma < 1
    network = {key: np.asarray(leaf) for key, leaf in trained(plain=True).params["network"].items()}
    x_hat, x_hat_error = decode(plain["x_hat"])
    expected = alpha * z - sigma * (network["w"] * z + network["b"])
    np.testing.assert_allclose(x_hat, expected, atol=x_hat_error + 2 * z_error)
    residual, residual_error = decode(plain["residual"])
    np.testing.assert_allclose(residual, x_hat - x_phi, atol=residual_error + x_hat_error + error)


def test_both_runs_have_one_noise_and_one_time(html):
    data = embedded(html)
    assert np.shape(data["eps"]["limit"]) == (4, 1)  # of each image
    assert data["times"] == pytest.approx([1 / 6, 1 / 2, 5 / 6], rel=1e-5)
    assert [run["time"] for run in data["runs"]] == [data["times"]] * 2
    assert data["runs"][0]["bits"] != data["runs"][1]["bits"]


def test_what_is_quantised_comes_back_within_half_a_level():
    values = (
        np.random.default_rng(0).normal(size=(3, 5, 4, 4, 1))
        * np.geomspace(1e-6, 1e3, 5)[:, None, None, None]
    )
    values[1, 1] = 0
    back, _ = decode(page.quantise(values))
    largest = np.abs(values).max(axis=(2, 3, 4), keepdims=True)
    assert (np.abs(back - values) <= largest * (1 + 1e-4) / 254).all()
    broken = page.quantise(np.full((1, 1, 4, 4, 1), np.nan))
    assert (decode(broken)[0] == 0).all()


def test_numbers_that_are_not_finite_are_null():
    assert page.round_numbers(np.array([[1.23456789, np.nan], [np.inf, 0]])) == [[1.23457, None], [None, 0]]


def test_the_page_states_what_it_is_of(trained):
    said = " ".join(
        "".join(parsed(rendered(trained("runs/t4", plain=True, num_timesteps=4))).itertext()).split()
    )
    for fact in (
        "t4",
        "dots, test split",
        "test of dots",
        "identity",
        "vdm",
        "T = 4 steps",
        "step 12",
        "noisier end",
    ):
        assert fact in said
    assert "ε is one draw for each image" in said
    assert "noisier end" not in "".join(parsed(rendered(trained())).itertext())


HOSTILE = [
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "<!--<script>",
    "\ud800{{ 7 * 7 }}",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_never_markup(trained, name):
    html = rendered(trained(f"a{name}", plain=True), trained(f"b{name}", plain=True))
    tree = parsed(html)
    assert len(tree.findall(".//script")) == 2
    assert not tree.findall(".//img")
    assert [
        attribute for each in tree.iter() for attribute in each.attrib if str(attribute).startswith("on")
    ] == []
    headings = ["".join(each.itertext()) for each in tree.findall(".//section[@data-run]/h2")]
    tail = name.split("/")[-1].encode(errors="replace").decode()
    assert all(heading.endswith(tail) for heading in headings)
    assert "49" not in headings[0]


def test_nothing_is_asked_of_a_network(html):
    assert "http:" not in html
    assert "https:" not in html
    assert "url(" not in html
    tree = parsed(html)
    links = [each.get(key) for each in tree.iter() for key in ("href", "src", "action") if each.get(key)]
    assert set(links) == {"data:,", "#main"}
    (policy,) = (each.get("content") for each in tree.findall(".//meta[@http-equiv]"))
    assert policy.startswith("default-src 'none'; ")


@dataclasses.dataclass(frozen=True)
class Sized(Dots):
    """Dots of another shape."""

    shape: tuple[int, int, int] = (8, 8, 1)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.shape


@pytest.mark.parametrize(
    ("shape", "runs", "counts"),
    [
        ((28, 28, 1), 2, (12, 25)),
        ((32, 32, 3), 1, (12, 25)),
        ((32, 32, 3), 2, (8, 25)),
        ((64, 64, 3), 2, (4, 13)),
    ],
)
def test_a_page_is_of_six_megabytes_at_most_by_default(tiny, shape, runs, counts):
    experiments = [tiny(dataset=Sized(shape))] * runs
    num_images, num_times = page.choose_counts(experiments, None, None)
    assert runs * num_images * num_times * 3 * np.prod(shape) * 4 / 3 < 5.6e6
    assert (num_images, num_times) == counts


def test_given_counts_are_kept_and_steps_not_repeated(tiny):
    continuous, of_steps = tiny(dataset=Sized()), tiny(dataset=Sized(), num_timesteps=8)
    assert page.choose_counts([continuous], 3, 7) == (3, 7)
    assert page.choose_counts([of_steps], None, None) == (12, 8)
    assert page.choose_counts([of_steps, continuous], None, None) == (12, 24)
    five, many = (tiny(dataset=Sized(), num_timesteps=depth) for depth in (5, 100))
    assert page.choose_counts([five, of_steps], None, None) == (12, 25)  # 40 have no step twice
    assert page.choose_counts([many, continuous], None, None) == (12, 25)
    with pytest.raises(UserError, match=r"--num_images=90000 at 25 times.*lower --num_images"):
        page.choose_counts([continuous], 90_000, None)
