"""The page of udean-view in a real browser: Chromium, its WebGL computed by the processor."""

import contextlib
import io
import json
import re
import shutil
import time

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from udean.runtime.scan import intensity
from udean.runtime.scan.scan import open_scan

from .test_server import EVIL, STATIC, made, serving  # noqa: F401  (made is a fixture)

Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs Debian's chromium and chromium-driver"
)
FLAGS = """--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync
--disable-background-networking --disable-component-update --window-size=1280,800"""
WEBGL = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")
PATIENCE = 120  # seconds; WebGL without a GPU on a busy machine
# The page's own modules, inside an async function that ends by `return`.
SCRIPT = """const done = arguments[arguments.length - 1], $ = (id) => document.getElementById(id);
import(new URL("view.js", document.baseURI)).then(async ({ panes, add }) => { %s })
    .then(done, (error) => done(`${error}`));"""
LOCATIONS = """const f = (pane) => [...pane.frac2mm(pane.scene.crosshairPos)].slice(0, 3);
    return Object.values(panes).filter((pane) => pane.ready).map(f);"""


@contextlib.contextmanager
def chromium(folder, *flags):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS.split(), *flags, f"--user-data-dir={folder}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(PATIENCE)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium"), *WEBGL) as browser:
        yield browser


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
    """The picture in a pane, (rows, columns, RGB)."""
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
    before = run(page, LOCATIONS)
    ActionChains(page).move_to_element_with_offset(canvas, left + 60, top + 50).click().perform()
    after = run(page, LOCATIONS)
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
    wait_for(page, "return $('tally').textContent === '1 of 6 marked'")
    press(page, "n")
    shown(page, names[1])
    assert run(page, "return $('note').value") == ""
    press(page, "g")
    wait_for(page, "return $('tally').textContent === '2 of 6 marked'")
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
    assert run(page, "return $('tally').textContent") == "2 of 6 marked"


def wait_for(page, script):
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(page, PATIENCE).until(lambda page: run(page, script) is True)


def choose(page, name):
    """Go to a scan by its name in the list."""
    page.find_element("xpath", f"//nav//button[starts-with(., '{name}')]").click()
    shown(page, next(row.text for row in page.find_elements("css selector", "nav li[aria-current]")))


def test_the_slider_and_the_keys_go_through_the_slices_of_all_panes(page):
    press(page, "2")  # coronal
    press(page, "0")
    start = int(run(page, "return $('slice').value"))
    assert page.find_element("id", "count").text == f"{start + 1} of 36"
    before = run(page, LOCATIONS)
    press(page, Keys.ARROW_UP * 3)
    assert int(run(page, "return $('slice').value")) == start + 3
    after = run(page, LOCATIONS)
    assert (np.abs(np.subtract(after, before)).max(1) > 1e-3).all()
    np.testing.assert_allclose(after, [after[0]] * 3, atol=1e-3)
    run(page, "$('slice').value = 1; $('slice').dispatchEvent(new Event('input')); return 0")
    assert run(page, "return panes.sr.slice") == {"name": "coronal", "index": 1, "count": 36}
    press(page, "4")


def test_two_pictures_blink_in_one_place(page):
    press(page, "t")
    fronts = "return [...document.querySelectorAll('figure.front')].map((figure) => figure.id).join()"
    for wanted in ("tricubic", "sr", "tricubic"):
        wait_for(page, f"return (() => {{ {fronts} }})() === '{wanted}'")
    press(page, " ")  # halts, and shows the other one
    first = run(page, fronts)
    assert page.find_element("id", "halt").text.endswith("Blink")
    assert len([f for f in page.find_elements("css selector", "figure") if f.is_displayed()]) == 1
    assert run(page, f"await new Promise((r) => setTimeout(r, 1600)); {fronts}") == first
    size = run(page, "return [$('tricubic'), $('sr')].map((f) => JSON.stringify(f.getBoundingClientRect()))")
    assert size[0] == size[1]
    one = pixels(page, first)
    press(page, " ")
    second = run(page, fronts)
    assert {first, second} == {"tricubic", "sr"}
    other = pixels(page, second)
    assert one.shape == other.shape and 0 < np.abs(one - other).mean() < 10  # one head, two pictures
    press(page, "l")
    wait_for(page, f"return (() => {{ {fronts} }})() === 'lr'")
    press(page, "a")
    assert len([f for f in page.find_elements("css selector", "figure") if f.is_displayed()]) == 3


@pytest.mark.parametrize("unit, size", [("mm", 1), ("micron", 1e-3), ("meter", 1e3)])
def test_a_file_of_the_readers_lies_where_it_belongs(page, made, tmp_path, unit, size):  # noqa: F811
    choose(page, "scaled")
    truth = nib.load(made / "out/scaled_sr.nii.gz")
    affine = np.diag([1 / size] * 3 + [1]) @ truth.affine
    # 40 times as bright as the scan, in whose window it is shown: what is restored is a little brighter.
    scan, voxels = open_scan(made / "scans/scaled.nii.gz"), np.sort(truth.get_fdata().ravel())
    white = intensity.unit(scan.voxels(), intensity.RULE, scan.slope, scan.inter)
    gain = 40 * white / voxels[int(0.999 * (voxels.size - 1))]
    image = nib.Nifti1Image((truth.get_fdata() * gain).astype(np.float32), affine)
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "truth.nii.gz")
    page.find_element("id", "file").send_keys(str(tmp_path / "truth.nii.gz"))
    wait_for(page, "return panes.other?.ready === true && $('warnings').textContent.includes('40 times')")
    places = run(page, LOCATIONS)
    np.testing.assert_allclose(places, [places[0]] * 4, atol=1e-2)
    assert page.find_element("css selector", "#other b").text == "truth.nii.gz"
    own, sr = pixels(page, "other"), pixels(page, "sr")
    assert np.abs(own - sr).mean() < 4  # the same picture under the same window
    assert "oblique" not in page.find_element("id", "warnings").text
    page.find_element("id", "remove").click()
    assert not page.find_element("id", "other").is_displayed()


def test_files_are_dropped_and_what_is_no_volume_is_said(page, tmp_path):
    choose(page, "scaled")
    sent = """const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(5000).fill(65)], "letter.nii"));
        const drag = (kind) => document.body.dispatchEvent(
            new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true}));
        drag("dragover");
        const hint = !$("drop").hidden;
        drag("drop");
        return hint && $("drop").hidden;"""
    assert run(page, sent) is True
    wait_for(page, "return $('other').textContent.includes('letter.nii is not a volume')")
    press(page, "n")  # the next scan has no such file
    wait_for(page, "return $('other').hidden")


def test_the_map_of_expected_errors_has_a_pane_and_an_odd_spacing_its_own_interpolation(page):
    choose(page, "thin")
    assert page.find_element("css selector", "#tricubic b").text == "Cubic B-spline"
    places = run(page, LOCATIONS)
    assert len(places) == 4
    np.testing.assert_allclose(places, [places[0]] * 4, atol=1e-2)
    picture = pixels(page, "error")
    assert (np.ptp(picture, axis=2) > 60).mean() > 0.1  # in colour
    assert re.fullmatch(r"0 – \d.*", page.find_element("css selector", "#error .ramp").text)
    choose(page, "scaled")
    assert not page.find_element("id", "error").is_displayed()
    assert page.find_element("css selector", "#tricubic b").text == "Tricubic"


def resized(page, width, height, scheme="dark"):
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    wait_for(page, f"return innerWidth === {width}")
    run(
        page,
        "return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(0))))",
    )


@pytest.mark.parametrize(
    "width, height, panes", [(390, 844, 1), (768, 1024, 3), (1280, 800, 3), (3840, 2160, 3)]
)
def test_it_fits_a_phone_and_a_wall(page, width, height, panes):
    try:
        resized(page, width, height)
        assert run(page, "return document.documentElement.scrollWidth") <= width
        figures = [f for f in page.find_elements("css selector", "figure") if f.is_displayed()]
        assert len(figures) == panes
        for figure in figures:
            assert figure.size["width"] >= min(0.9 * width, 0.1 * width + 130) and figure.size["height"] > 300
        outside = """return [...document.querySelectorAll("#tools *, #turns *, #slices *, #ratings *")]
            .filter((part) => part.checkVisibility())
            .filter((part) => part.getBoundingClientRect().right > innerWidth).length"""
        assert run(page, outside) == 0
        if width < 500:
            page.find_element("id", "menu").click()
            assert page.find_element("id", "scans").is_displayed()
            press(page, Keys.ESCAPE)
            assert not page.find_element("id", "scans").is_displayed()
            page.find_element("css selector", "#tabs [data-pane=lr]").click()
            assert page.find_element("id", "lr").is_displayed()
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_words_stand_out_in_light_and_in_dark(page):
    """Contrast of 4.5 to 1 and more (WCAG 2.2, 1.4.3), of all text that is shown."""
    script = """const light = (colour) => {
            const [r, g, b] = colour.match(/[\\d.]+/g).map(Number)
                .map((c) => (c / 255 <= 0.04045 ? c / 3294.6 : ((c / 255 + 0.055) / 1.055) ** 2.4));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const back = (part) => {
            const colour = getComputedStyle(part).backgroundColor;
            return /rgba.*, 0(\\.\\d+)?\\)/.test(colour) ? back(part.parentElement) : colour;
        };
        const poor = [];
        for (const part of document.querySelectorAll("body *:not(figure *, dialog *, script, option)")) {
            const text = [...part.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
            if (!text || !part.checkVisibility() || part.closest("#drop")) continue;
            const pair = [light(getComputedStyle(part).color), light(back(part))].sort((a, b) => b - a);
            if ((pair[0] + 0.05) / (pair[1] + 0.05) < 4.5) poor.push(part.textContent.slice(0, 40));
        }
        return [poor, getComputedStyle(document.body).backgroundColor];"""
    try:
        backs = []
        for scheme in ("light", "dark"):
            resized(page, 1280, 800, scheme)
            poor, back = run(page, script)
            assert poor == []
            backs.append(sum(map(int, re.findall(r"\d+", back)[:3])))
        assert backs[0] > 600 and backs[1] < 100
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_keyboard_alone_reaches_everything_and_shows_where_it_is(page):
    """Every control has a name, is reached by Tab, and is outlined then; every key is told in the help."""
    run(page, "$('filter').focus(); return 0")
    reached = {"filter"}
    for _ in range(60):
        press(page, Keys.TAB)
        part = page.switch_to.active_element
        if part.tag_name == "body":
            break
        name, outlined = run(page, """const part = document.activeElement, style = getComputedStyle(part);
            const outlined = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 1;
            return [part.ariaLabel || part.labels?.[0]?.textContent || part.textContent || part.title,
                outlined || part.matches("#window input")];  // which are outlined at their thumbs
            """)  # fmt: skip
        assert name.strip() and outlined, part.get_attribute("outerHTML")[:200]
        reached.add(part.get_attribute("id") or name.strip())
    assert reached > {"filter", "overlay", "open", "help", "slice", "note", "low", "high", "smooth"}
    assert reached > {"Axial", "All", "Side by side", "Good", "Bad"}
    press(page, Keys.ESCAPE)
    press(page, "?")
    assert page.find_element("id", "keys").is_displayed()
    told = {key.text for key in page.find_elements("css selector", "#keys kbd")}
    press(page, Keys.ENTER)
    assert not page.find_element("id", "keys").is_displayed()
    source = (STATIC / "view.js").read_text()
    handled = set(
        re.findall(
            r'(?:^  |, )"?(.|Arrow\w+)"?: ', source.partition("const KEYS = {")[2].partition("};")[0], re.M
        )
    )
    arrows = {"ArrowRight": "→", "ArrowLeft": "←", "ArrowUp": "↑", "ArrowDown": "↓", " ": "Space", "-": "−"}
    assert {arrows.get(key, key) for key in handled} - {"=", "2", "3"} == told - {"Esc"}
    documented = (STATIC.parents[2] / "docs/view.md").read_text()
    assert all(f"`{key}`" in documented for key in told)


def test_a_note_is_kept_when_the_page_is_left(page, made):  # noqa: F811
    choose(page, "free")
    press(page, "m")
    press(page, "left at once")
    address = page.current_url
    page.get("about:blank")
    for _ in range(100):
        if "left at once" in (made / "out/qc.tsv").read_text():
            break
        time.sleep(0.1)
    page.get(address)
    shown(page)
    assert run(page, "return $('note').value") == "left at once"


def test_without_webgl_there_are_still_pictures(made, tmp_path):  # noqa: F811
    with chromium(tmp_path, "--disable-3d-apis") as page, serving(made / "out") as viewer:
        page.get(viewer.address)
        shown(page)
        assert "no WebGL2" in page.find_element("id", "still").text
        wait_for(
            page, "return [...document.querySelectorAll('figure img')].every((img) => img.naturalWidth > 0)"
        )
        choose(page, "thin")
        press(page, "1")
        loaded = """return document.images.length === 4 &&
            [...document.images].every((image) => image.naturalWidth > 0)"""
        wait_for(page, loaded)
        first = run(page, "return document.querySelector('#sr img').src")
        press(page, Keys.ARROW_UP)
        wait_for(page, loaded)
        image = page.find_element("css selector", "#sr img")
        assert image.get_attribute("src") != first and image.get_attribute("alt").startswith(
            "axial, 12 of 20"
        )
        assert image.size["width"] / image.size["height"] == pytest.approx(34 / 30, rel=0.02)
        press(page, "l")
        wait_for(page, "return $('lr').classList.contains('front')")
        assert not page.find_element("id", "overlay").is_displayed()
        assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_nothing_was_fetched_from_elsewhere_and_nothing_went_wrong(page):
    sent = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"]
    asked = [url for url in asked if not url.startswith(("chrome", "data:", "blob:"))]
    origin = page.execute_script("return location.origin")
    assert len(asked) > 10 and all(url.startswith(f"{origin}/") for url in asked)
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []
