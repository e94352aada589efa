"""The report in a real browser: everything is there, nothing is fetched, nothing is complained about."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lde_cvx import fixed_words
from lde_cvx.report import bracket, lower, number, render, share, upper, verdict_words
from tests.audit_example import example_summary
from verification.checking.outward import down, up

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")


class References(HTMLParser):
    """Everything in a page that a browser would load."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {k: v or "" for k, v in attrs}
        self.loads += [values[k] for k in ("src", "srcset", "data", "poster") if k in values]
        self.loads += [values["href"]] if tag == "link" else []
        self.links += [values["href"]] if tag == "a" else []
        self.ids += [values["id"]] if "id" in values else []


@pytest.fixture(scope="module")
def summary() -> dict:
    return example_summary()


@pytest.fixture(scope="module")
def page(summary: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render(summary), encoding="utf-8")
    return path


def chromium(page: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    profile = page.parent / "profile"
    common = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--enable-logging=stderr",
        f"--user-data-dir={profile}",
    ]
    return subprocess.run([BROWSER, *common, *arguments, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)


def test_nothing_is_loaded_from_elsewhere(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    seen = References()
    seen.feed(html)
    assert seen.loads
    assert all(ref.startswith("data:") for ref in seen.loads)
    assert "url(" not in html
    assert "@import" not in html
    assert "<script" not in html
    inside = {link[1:] for link in seen.links if link.startswith("#")}
    assert inside
    assert inside <= set(seen.ids), "a link inside the page leads nowhere"
    outside = [link for link in seen.links if not link.startswith("#")]
    assert all(re.fullmatch(r"certificates/[\w.-]+\.json|summary\.json|results\.csv", link) for link in outside)


def test_a_bracket_from_zero_is_not_called_one() -> None:
    assert verdict_words({"verdict": "BRACKETED", "lower": 0.0}) == "witness only"
    assert verdict_words({"verdict": "BRACKETED", "lower": 1e-9}) == "bracketed"


def test_the_fixed_words_are_all_there_and_values_are_escaped(page: Path, summary: dict) -> None:
    html = page.read_text(encoding="utf-8")
    text = unescape(html)
    for term, words in (*fixed_words.CERTIFIED, *fixed_words.NOT_CERTIFIED):
        assert term in text
        assert words in text
    assert fixed_words.SIGNING in text
    assert "SR 11-7" not in html
    assert not re.search(r"\bproved\b", html)
    assert "3 &lt;b&gt;x&lt;/b&gt;" in html, "text from the data is escaped"
    cells = re.search(r'<table class="sign">.*?</table>', html, re.S)
    assert cells
    assert cells[0].count("<td></td>") == 9, "names, dates and signatures stay blank"


@needs_browser
@pytest.mark.browser
def test_a_browser_shows_every_row_and_complains_about_nothing(page: Path, summary: dict) -> None:
    done = chromium(page, "--dump-dom")
    for person in summary["applicants"]:
        for row in person["rows"]:
            assert f'data-row="{row["id"]}-{row["norm"]}"' in done.stdout
    assert done.stdout.count('class="person"') == len(summary["applicants"])
    assert "CONSOLE" not in done.stderr, done.stderr


@needs_browser
@pytest.mark.browser
def test_the_log_would_show_a_complaint(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        "<!doctype html><meta http-equiv='Content-Security-Policy' content=\"default-src 'none'\"><img src='http://127.0.0.1:9/x.png'>"
    )
    assert "CONSOLE" in chromium(page, "--dump-dom").stderr


@needs_browser
@pytest.mark.browser
def test_the_screenshot_is_not_blank(page: Path) -> None:
    import matplotlib.image

    shot = page.parent / "shot.png"
    chromium(page, f"--screenshot={shot}", "--window-size=1300,2400")
    pixels = matplotlib.image.imread(shot)
    assert pixels.shape[:2] == (2400, 1300)
    colours = {tuple(c) for c in (pixels[::7, ::7, :3].reshape(-1, 3) * 255).round().astype(int).tolist()}
    assert len(colours) > 50
    assert (11, 110, 110) in colours, "the teal of the interval plot"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (float("inf"), "∞"), (float("nan"), "–"), (None, "–"), (1.23456, "1.235"), (123456.7, "123457"),
        (12345678.0, "1.235e+07"), (-0.5, "−0.5000"), (3.1e-7, "3.100e−07"),
    ],
)  # fmt: skip
def test_numbers_in_words(value: float | None, text: str) -> None:
    assert number(value) == text


def test_the_drawing_of_a_row_stays_inside() -> None:
    for person in example_summary()["applicants"]:
        for row in person["rows"]:
            b = bracket(row)
            assert 0 <= b.lower <= 100
            assert b.lower + b.open <= 100.0001
            assert b.linear is None or 0 <= b.linear <= 100


@pytest.mark.parametrize("value", [0.45978715041274343, 1.0, 2.0 / 3, 123456.7, 3.14159e-7, 9.9999999, 1e300, 5e-324])
def test_bounds_in_print_are_bounds(value: float) -> None:
    """0.459787… is certified, 0.4598 is not."""
    for digits in (2, 3, 4, 6):
        assert 0 < down(value, digits) * (1 - 1e-15) <= value <= up(value, digits) * (1 + 1e-15)
        assert up(value, digits) - down(value, digits) <= 1.001 * 10.0 ** (1 - digits) * value or value < 1e-300
    assert float(lower(value).replace("−", "-")) <= value * (1 + 1e-15)
    assert float(upper(value).replace("−", "-")) >= value * (1 - 1e-15)


def test_exact_figures_and_no_figures_stay() -> None:
    for value in (0.0, math.inf, 0.25, 12.5):
        assert down(value, 4) == up(value, 4) == value
    assert lower(0.45978715041274343) == "0.4597"
    assert upper(0.539146860684297) == "0.5392"
    assert share(0.999) == "99 %"
