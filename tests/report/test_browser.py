"""The report's page in a real browser: Chromium, without a window.

Skipped where there is none, but not where CI_NEEDS_BROWSER says that there must be one.
"""

import os
import shutil

import pytest

from diffusion import commands
from tests.report.fakes import evaluation, likelihood, save, write_run

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
DECODE_ALL = """
const done = arguments[0];
const pictures = [...document.images];
pictures.forEach(picture => { picture.loading = "eager"; });
Promise.allSettled(pictures.map(picture => picture.decode())).then(() => done());
"""
CLIPPED = """
return [...document.querySelectorAll("body *")].filter(element => {
    const place = element.getBoundingClientRect();
    return place.width && place.right > innerWidth + 1 && !element.closest(".box");
}).map(element => element.outerHTML.slice(0, 80));
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    programs = [shutil.which("chromium"), shutil.which("chromedriver")]
    if not all(programs):
        why = "no chromium and chromedriver found (Debian: apt-get install chromium chromium-driver)"
        if os.environ.get("CI_NEEDS_BROWSER"):
            pytest.fail(f"{why}, but CI_NEEDS_BROWSER is set")
        pytest.skip(why)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(programs[1]))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):
    """The page of two runs with pictures, plots and wide tables, opened."""
    root = tmp_path_factory.mktemp("runs")
    rows = [{"step": step, "loss": 1 / step, "loss/log_snr_above_6": 2 / step} for step in range(1, 40)]
    long = "a-name-without-any-place-to-break-it-that-is-wider-than-a-telephone-is"
    for name in ("first", long):
        run = write_run(root / name, rows, range(10, 200, 10), seed=len(name))
        (run / "evaluations.jsonl").write_text(evaluation({f"FID@{n}": 3.17 for n in range(12)}))
        (run / "likelihood").mkdir()
        (run / "likelihood" / "test.json").write_text(likelihood())
        save(run / "likelihood" / "test.png", 200, (480, 1200))
        (run / "samples" / "step_0000010_ema.png").write_bytes(b"no picture")
    browser.get(commands.report(root).as_uri())
    browser.execute_async_script(DECODE_ALL)
    return browser


def wide(page, width, dark=False):
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


@pytest.mark.slow
class TestInChromium:
    def test_every_picture_is_decoded(self, page):
        widths = page.execute_script("return [...document.images].map(picture => picture.naturalWidth)")
        assert sorted(set(widths)) == [30, 1200]
        # of each run two kinds at eight steps, one damaged, the last one beside the other run's, and the bound's plot
        assert len(widths) == 2 * (2 * 8 - 1 + 1 + 1)

    def test_the_console_is_empty(self, page):
        assert page.get_log("browser") == []

    def test_the_headings_are_seen_in_order(self, page):
        wide(page, 1200)
        shown = [heading.text for heading in page.find_elements("css selector", "h2") if heading.is_displayed()]
        first = shown.index("first")
        assert shown[:7] == ["Not read", "Runs", "Settings", "Loss", "Samples side by side", "Metrics", "Likelihood"]
        assert first in (7, 8)
        assert len(shown) == 9

    @pytest.mark.parametrize("width", [400, 1200])
    def test_it_does_not_scroll_sideways(self, page, width):
        wide(page, width)
        assert page.execute_script("return innerWidth") == width
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        assert page.execute_script(CLIPPED) == []

    @pytest.mark.parametrize("width", [400, 1200])
    def test_last_samples_stand_beside_each_other_within_the_page(self, page, width):
        wide(page, width)
        script = """return [...document.querySelectorAll("#samples img, #samples figure")].map(element => {
            const place = element.getBoundingClientRect();
            return [element.tagName, place.left, place.right, place.top, place.width / place.height];
        })"""
        places = page.execute_script(script)
        (_, left, right, top, _), (_, next_left, next_right, next_top, _) = [p for p in places if p[0] == "FIGURE"]
        assert (top, 0 < left < right < next_left < next_right <= width) == (next_top, True)
        images = [p for p in places if p[0] == "IMG"]
        assert [p[4] for p in images] == pytest.approx([1.5, 1.5], rel=0.01)
        assert [p[2] <= edge + 1 for p, edge in zip(images, (right, next_right), strict=True)] == [True, True]

    def test_tables_scroll_in_their_own_box(self, page):
        wide(page, 400)
        script = (
            "const box = document.querySelector('.metrics').parentElement; return [box.scrollWidth, box.clientWidth]"
        )
        inside, seen = page.execute_script(script)
        assert inside > seen

    def test_plots_are_drawn_in_the_ink_of_the_page(self, page):
        script = "return getComputedStyle(document.querySelector('.plot svg text')).fill"
        wide(page, 1200)
        light = page.execute_script(script)
        wide(page, 1200, dark=True)
        assert (light, page.execute_script(script)) == ("rgb(29, 33, 38)", "rgb(226, 230, 234)")

    def test_a_link_of_the_contents_leads_to_its_run(self, page):
        wide(page, 1200)
        page.find_element("css selector", "nav .runs a[href='#run1']").click()
        assert page.execute_script("return location.hash") == "#run1"
        assert page.execute_script("return document.querySelector('#run1').getBoundingClientRect().top") < 800
