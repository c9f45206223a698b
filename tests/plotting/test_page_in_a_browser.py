"""The page in a real Chromium without a window: its slider, clicks and console, at desktop and phone sizes."""

from __future__ import annotations

import importlib
import shutil
import time

import numpy as np
import pytest
from page_city import EVIL, forecast_slots

from simmst.plotting import Page, write_page
from simmst.training import History

for package in ("plotly", "jinja2", "pandas"):
    pytest.importorskip(package)
webdriver = pytest.importorskip("selenium.webdriver", reason="selenium comes with the extra 'browser'")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if CHROMIUM is None or DRIVER is None:
    pytest.skip("Chromium and its driver are Debian's packages chromium and chromium-driver", allow_module_level=True)

SIZES = {"desk": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module", params=SIZES)
def browser(request):
    width, height = SIZES[request.param]
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    if request.param == "phone":
        screen = {"width": width, "height": height, "pixelRatio": 2.0, "touch": True}
        options.add_experimental_option("mobileEmulation", {"deviceMetrics": screen})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.kind = request.param
    yield driver
    driver.quit()


@pytest.fixture(scope="module", params=["grid", "places", "points"])
def page(request, tmp_path_factory):
    slots = forecast_slots(request.param)
    history = History("real", [{"epoch": 1, "train_loss": 0.5}, {"epoch": 2, "train_loss": 0.4}])
    path = tmp_path_factory.mktemp("page") / "page.html"
    return request.param, slots, write_page(path, Page(slots, histories=[history]))


@pytest.fixture
def opened(browser, page):
    geometry, slots, path = page
    browser.get(path.as_uri())
    until(browser, "document.documentElement.dataset.state", "ready")
    yield browser, geometry, slots
    assert browser.get_log("browser") == [], "the console has no messages"
    assert script(browser, "performance.getEntriesByType('resource').length") == 0, "nothing is requested"


def script(browser, code):
    return browser.execute_script(f"return {code}")


def until(browser, code, wanted):
    end = time.monotonic() + 30
    while script(browser, code) != wanted:
        assert time.monotonic() < end, f"{code} is {script(browser, code)!r}, wanted {wanted!r}"
        time.sleep(0.02)


def map_values(browser, geometry, view="truth"):
    """Return the values on the map, one per cell, NaN for none."""
    code = {"grid": "z.flat()", "places": "marker.color", "points": "y"}[geometry]
    shown = script(browser, f"Array.from(document.getElementById('map-{view}').data[0].{code})")
    return np.array([np.nan if value is None else value for value in shown])


def wanted_values(slots, slot, view):
    """Return the cells of the raster, or the places, of the first service."""
    truth, forecast = slots.dataset.series()[slot, 0], slots.forecast[slot, 0]
    values = {"truth": truth, "forecast": forecast, "error": forecast - truth}[view]
    shown = np.full(slots.dataset.mask.shape, np.nan)
    shown[slots.dataset.mask] = values
    return shown.ravel()


def close_to(found, wanted):
    np.testing.assert_allclose(found, wanted, atol=0.02 * np.nanmax(np.abs(wanted)))


def press(browser, geometry, cell, slots):
    """Click or tap a cell of the visible map."""
    row, column = slots.dataset.cells[cell]
    if geometry == "grid":
        x, y = column, row
    elif geometry == "places":
        x, y = slots.dataset.lonlat[row, column]
    else:
        slot = int(script(browser, "document.getElementById('slot').value"))
        x, y = cell, float(slots.dataset.series()[slot, 0, cell]) / 2
    place = script(
        browser,
        f"""(() => {{
          const div = document.getElementById('map-truth'), {{ xaxis, yaxis }} = div._fullLayout;
          div.scrollIntoView({{ block: 'center' }});
          const box = div.getBoundingClientRect();
          return [box.x + xaxis._offset + xaxis.d2p({x}), box.y + yaxis._offset + yaxis.d2p({y})].map(Math.round);
        }})()""",
    )
    kind = "touch" if browser.kind == "phone" else "mouse"
    pointer = importlib.import_module("selenium.webdriver.common.actions.pointer_input").PointerInput(kind, kind)
    actions = webdriver.ActionChains(browser, devices=[pointer])
    actions.w3c_actions.pointer_action.move_to_location(*place)
    actions.w3c_actions.pointer_action.pointer_down()
    actions.w3c_actions.pointer_action.pointer_up()
    actions.w3c_actions.perform()


def test_the_slider_moves_the_map(opened):
    browser, geometry, slots = opened
    slider = browser.find_element("id", "slot")
    first = int(slider.get_attribute("value"))
    close_to(map_values(browser, geometry), wanted_values(slots, first, "truth"))
    label = script(browser, "document.getElementById('when').textContent")
    for _ in range(3):
        slider.send_keys(webdriver.Keys.ARROW_LEFT)
    assert int(slider.get_attribute("value")) == first - 3
    assert script(browser, "document.getElementById('when').textContent") != label
    until(browser, "document.getElementById('series').layout.shapes[0].x0.slice(11, 13)", f"{(first - 3) % 24:02d}")
    for view in ("truth",) if browser.kind == "phone" else ("truth", "forecast", "error"):
        close_to(map_values(browser, geometry, view), wanted_values(slots, first - 3, view))


def test_a_click_on_a_cell_shows_its_series(opened):
    browser, geometry, slots = opened
    for cell, name in ((4, "c4"), (2, EVIL)):
        press(browser, geometry, cell, slots)
        until(browser, "document.getElementById('cell-title').textContent", f"cell {name}, call")
        low, high, forecast, truth = script(browser, "document.getElementById('series').data.map((trace) => trace.y)")
        close_to(np.array(truth, dtype=float), slots.dataset.series()[:, 0, cell])
        close_to(np.array(forecast, dtype=float), slots.forecast[:, 0, cell])
        close_to(np.array(low, dtype=float), slots.interval[0][:, 0, cell])
        close_to(np.array(high, dtype=float), slots.interval[1][:, 0, cell])
    assert browser.title.startswith("a & <u>b</u> on SURROGATE <i>toytown</i>"), "no name is executed"
    assert script(browser, "document.querySelectorAll('body u, body i, body b').length") == 0, "no name becomes markup"


def test_the_other_service_and_a_cell_by_its_name(opened):
    browser, _, slots = opened
    browser.find_element("css selector", "#service option[value='1']").click()
    until(browser, "document.getElementById('cell-title').textContent.endsWith('<b>sms</b>')", True)
    find = browser.find_element("id", "find")
    find.clear()
    find.send_keys("c6", webdriver.Keys.ENTER)
    until(browser, "document.getElementById('cell-title').textContent", "cell c6, <b>sms</b>")
    truth = script(browser, "document.getElementById('series').data.at(-1).y")
    close_to(np.array(truth, dtype=float), slots.dataset.series()[:, 1, 6])
    find.clear()
    find.send_keys("nowhere", webdriver.Keys.ENTER)
    until(browser, "document.getElementById('cell-errors').textContent.startsWith('there is no cell nowhere')", True)


def test_everything_fits_its_width(opened):
    browser, geometry, slots = opened
    assert script(browser, "document.documentElement.scrollWidth") <= SIZES[browser.kind][0]
    assert script(browser, "document.getElementById('training-0').data[0].y") == [0.5, 0.4]
    shown = "[...document.querySelectorAll('.maps figure')].filter((one) => one.offsetWidth > 0).length"
    assert script(browser, shown) == (1 if browser.kind == "phone" else 3)
    if browser.kind == "phone":
        browser.find_element("css selector", "button[data-view='error']").click()
        slot = int(script(browser, "document.getElementById('slot').value"))
        until(browser, "(document.getElementById('map-error').data || []).length > 0", True)
        close_to(map_values(browser, geometry, "error"), wanted_values(slots, slot, "error"))
        assert script(browser, shown) == 1


def test_a_page_that_was_cut_short_says_so(browser, page, tmp_path):
    text = page[2].read_text(encoding="utf-8")
    start = text.index('id="page-arrays"')
    broken = tmp_path / "broken.html"
    broken.write_text(text[: start + 60] + text[start + 90 :], encoding="utf-8")
    browser.get(broken.as_uri())
    until(browser, "document.documentElement.dataset.state", "failed")
    assert "damaged" in script(browser, "document.getElementById('problem').textContent")
    browser.get_log("browser")
