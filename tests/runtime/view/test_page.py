"""The page of udean-view in a real browser: Chromium, its WebGL computed by the processor."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from .test_server import EVIL, made, serving  # noqa: F401  (made is a fixture)

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs Debian's chromium and chromium-driver"
)
FLAGS = """--headless=new --no-sandbox --disable-gpu --use-angle=swiftshader --enable-unsafe-swiftshader
--disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync
--window-size=1200,800"""
PATIENCE = 120  # seconds; WebGL without a GPU on a busy machine
# The page's own modules, inside an async function that ends by `return`.
SCRIPT = """const done = arguments[arguments.length - 1], $ = (id) => document.getElementById(id);
import(new URL("view.js", document.baseURI)).then(async ({ panes }) => { %s })
    .then(done, (error) => done(`${error}`));"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(PATIENCE)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(browser, made):  # noqa: F811
    """The page, its first scan shown."""
    with serving(made / "out") as viewer:
        browser.get(viewer.address)
        shown(browser)
        yield browser


def run(page, script):
    return page.execute_async_script(SCRIPT % script)


def shown(page, name=None):
    """Wait until a scan is shown, the one that is named."""
    from selenium.webdriver.support.ui import WebDriverWait

    def there(page):
        state = page.execute_script(
            "return [document.body.dataset.state, document.getElementById('name').innerText]"
        )
        return state[0] == "shown" and name in (None, state[1])

    WebDriverWait(page, PATIENCE).until(there)


def press(page, keys):
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(page).send_keys(keys).perform()


def pixels(page, pane):
    """What a pane shows, (rows, columns, RGB)."""
    canvas = page.find_element("css selector", f"#{pane} canvas")
    return np.asarray(Image.open(io.BytesIO(canvas.screenshot_as_png)).convert("RGB")).astype(int)


def test_three_volumes_are_drawn_and_the_names_are_text(page):
    assert page.find_element("id", "name").text == EVIL[:-4] + "_sr.nii"
    assert (
        page.execute_script("return document.querySelectorAll('nav script, nav img, aside script').length")
        == 0
    )
    for pane in ("lr", "tricubic", "sr"):
        picture = pixels(page, pane)
        grey = np.ptp(picture, axis=2) < 10
        assert len(np.unique(picture[grey])) > 50 and (picture[grey] > 60).mean() > 0.1
    assert len(page.find_elements("css selector", "#histogram polyline")) == 3
    facts = page.find_element("id", "facts").text
    assert "20 × 18 × 12" in facts and "40 × 36 × 24" in facts
    assert "is not a NIfTI file" in page.find_element("css selector", "li.failed").text


def test_the_panes_look_at_one_place_and_their_pictures_coincide(page):
    from selenium.webdriver.common.action_chains import ActionChains

    canvas = page.find_element("css selector", "#tricubic canvas")
    left, top = (-canvas.size[n] // 2 for n in ("width", "height"))
    where = """const f = (pane) => [...pane.frac2mm(pane.scene.crosshairPos)].slice(0, 3);
        return Object.values(panes).map(f);"""
    before = run(page, where)
    ActionChains(page).move_to_element_with_offset(canvas, left + 60, top + 50).click().perform()
    after = run(page, where)
    assert np.abs(np.subtract(after[1], before[1])).max() > 1
    np.testing.assert_allclose(after, [after[1]] * 3, atol=1e-3)

    run(page, "panes.lr.zoom(2.5); return 0")
    press(page, "+")
    state = run(page, """return Object.values(panes).map((pane) => [pane.scene.pan2Dxyzmm[3],
        ...[[40, 40], [90, 60], [60, 200]].flatMap(([x, y]) => {
            const at = pane.canvasPos2frac([x, y]);
            return at[0] < 0 ? [0, 0, 0] : [...pane.frac2mm(at)].slice(0, 3);
        })]);""")  # fmt: skip
    assert state[0][0] == pytest.approx(3.125) and np.count_nonzero(state[0]) > 6
    np.testing.assert_allclose(state, [state[0]] * 3, atol=1e-3)
    values = [page.find_element("css selector", f"#{pane} output").text for pane in ("lr", "tricubic", "sr")]
    assert all(float(value) > 0 for value in values)
    press(page, "0")


def test_the_difference_lies_over_the_result(page):
    plain = pixels(page, "sr")
    run(page, "$('overlay').value = 'difference'; $('overlay').dispatchEvent(new Event('change')); return 0")
    run(page, "while (panes.sr.volumes.length < 2) await new Promise((r) => setTimeout(r, 100)); return 0")
    coloured = pixels(page, "sr")
    assert (np.ptp(coloured, axis=2) > 60).mean() > (np.ptp(plain, axis=2) > 60).mean() + 0.02
    assert page.find_element("id", "most").text.startswith("+")
    press(page, "dd")
    assert run(page, "return [$('overlay').value, panes.sr.volumes.length, panes.lr.volumes.length]") == [
        "",
        1,
        1,
    ]


def test_keys_step_through_scans_and_marks_are_written(page, made):  # noqa: F811
    names = [row.text for row in page.find_elements("css selector", "nav li[data-key]")]
    press(page, "b")
    press(page, "m")
    press(page, "ringing <b>here</b>\n")
    saved = made / "out" / "qc.tsv"
    wait_for(page, "return $('saved').textContent.startsWith('saved') && $('note').value.length > 0")
    wait_for(page, "return $('tally').textContent === '1 of 5 marked'")
    press(page, "n")
    shown(page, names[1])
    assert run(page, "return $('note').value") == ""
    press(page, "g")
    wait_for(page, "return $('tally').textContent === '2 of 5 marked'")
    rows = {line.split("\t")[0]: line.split("\t")[1:3] for line in saved.read_text().splitlines()[1:]}
    assert rows == {names[0]: ["bad", "ringing <b>here</b>"], names[1]: ["good", "n/a"]}
    # A click on a rating ends the note as well: both are kept.
    run(
        page,
        "$('note').focus(); $('note').value = 'sharp'; $('note').blur(); "
        "$('ratings').querySelector('[data-rating=unsure]').click(); return 0",
    )
    wait_for(page, "return document.querySelector('nav li.unsure') !== null")
    rows = {line.split("\t")[0]: line.split("\t")[1:3] for line in saved.read_text().splitlines()[1:]}
    assert rows[names[1]] == ["unsure", "sharp"]
    press(page, "p")
    shown(page, names[0])
    assert run(
        page, "return [$('note').value, $('ratings').querySelector('[aria-pressed=true]').dataset.rating]"
    ) == [
        "ringing <b>here</b>",
        "bad",
    ]
    page.refresh()
    shown(page, names[0])
    assert run(page, "return $('tally').textContent") == "2 of 5 marked"


def wait_for(page, script):
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(page, PATIENCE).until(lambda page: run(page, script) is True)


def test_nothing_was_fetched_from_elsewhere_and_nothing_went_wrong(page):
    sent = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"]
    asked = [url for url in asked if not url.startswith(("chrome", "data:", "blob:"))]
    origin = page.execute_script("return location.origin")
    assert len(asked) > 10 and all(url.startswith(f"{origin}/") for url in asked)
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []
