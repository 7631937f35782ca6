# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""The page of the audit in headless Chromium: what a user does with it."""

import csv
import io
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from anomalib_comet.audit import audit
from anomalib_comet.audit.page import Facts, Pictures, write_page
from helpers.browser import chromium

N = 60
NASTY = 'quote"d, <b>&amp;日本 </x.png'  # with its slash, a folder and a file


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(downloads):
    driver = chromium(downloads)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """An audit of 60 images in two folders: scores 60 to 1, the image of score 57 unreadable, five of them injected."""
    root = tmp_path_factory.mktemp("images")
    paths = []
    for k in range(N):
        name = NASTY if k == 1 else f"{k:03}.png"
        path = root / ("line a" if k % 2 else "line b") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 60), (4 * k, 100, 100)).save(path)
        paths.append(str(path))
    (root / "line a" / "003.png").write_bytes(b"no image")
    maps = [np.linspace(0, 1, 48).reshape(6, 8)] * N
    truth = pd.DataFrame(
        {"image_path": paths, "injected": [k in {0, 2, 4, 20, 40} for k in range(N)], "defect_type": "crack"}
    )
    scores = np.arange(N, 0, -1.0)
    return audit(paths, scores, root / "out", weights=np.linspace(0.2, 1, N), maps=maps, truth=truth, title="a run")


@pytest.fixture
def page(browser, result):
    """The page as it opens for the first time."""
    open_page(browser, result.page_path)
    browser.execute_script("localStorage.clear()")
    open_page(browser, result.page_path)
    return browser


def open_page(browser, path):
    browser.get(path.as_uri())
    wait(browser, lambda: browser.execute_script("return document.documentElement.dataset.ready"))


def wait(browser, condition):
    # Tiles are drawn anew while the page scrolls: one that has just left it is looked for again.
    return WebDriverWait(browser, 60, ignored_exceptions=[StaleElementReferenceException]).until(lambda _: condition())


def element(browser, name):
    return browser.find_element(By.ID, name)


def tiles(browser):
    """The tiles in view, from the first."""

    def in_order():
        found = browser.find_elements(By.CSS_SELECTOR, ".tile")
        return found and sorted(found, key=lambda tile: int(tile.get_attribute("data-position")))

    return wait(browser, in_order)


def paths_in_view(browser):
    return [tile.get_attribute("title") for tile in tiles(browser)]


def selected_count(browser):
    return element(browser, "selected").text


def text_of_download(browser, downloads, name):
    path = downloads / name
    wait(browser, path.exists)
    wait(browser, lambda: path.stat().st_size > 0)
    content = path.read_text(encoding="utf-8")
    path.unlink()
    return content


def test_loads_without_any_network_and_in_order(page, result):
    requests = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    addresses = [
        entry["params"]["request"]["url"] for entry in requests if entry["method"] == "Network.requestWillBeSent"
    ]
    assert result.page_path.as_uri() in addresses  # the log is on
    assert all(address.startswith(("file:", "data:", "blob:")) for address in addresses)
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []
    expected = result.table["image_path"].tolist()
    assert paths_in_view(page)[:10] == expected[:10]
    first = tiles(page)[0]
    assert first.get_attribute("aria-label").startswith("rank 1, score 60, weight 0.20")
    assert "#1" in first.text
    assert page.execute_script("return document.querySelector('.tile img').naturalWidth") == 80


def test_a_request_to_elsewhere_would_be_blocked(page):
    refused = page.execute_async_script(
        "const done = arguments[0]; document.addEventListener('securitypolicyviolation', (e) => done(e.blockedURI));"
        "new Image().src = 'https://example.org/x.png';"
    )
    assert refused.startswith("https://example.org")


def test_orders(page, result):
    table = result.table.sort_values("anomaly_score")
    Select(element(page, "order")).select_by_value("normal")
    assert paths_in_view(page)[:5] == table["image_path"].tolist()[:5]
    Select(element(page, "order")).select_by_value("path")
    assert paths_in_view(page)[:5] == sorted(table["image_path"])[:5]
    Select(element(page, "order")).select_by_value("weight")
    assert paths_in_view(page)[:5] == result.table.sort_values("confidence_weight")["image_path"].tolist()[:5]


def test_filters(page):
    folder = Select(element(page, "folder"))
    assert [option.text.rpartition("/")[2] for option in folder.options] == [
        "all folders",
        "line a (29)",
        'quote"d, <b>&amp;日本 < (1)',
        "line b (30)",
    ]
    folder.select_by_index(1)
    assert element(page, "summary").text == "29 of 60 images"
    assert all("/line a/" in path for path in paths_in_view(page))
    element(page, "text").send_keys("005")
    assert {path[-7:] for path in paths_in_view(page)} == {"005.png"}
    element(page, "text").send_keys("x")
    assert element(page, "empty").is_displayed()
    element(page, "text").send_keys(Keys.BACKSPACE * 4, "日本")
    folder.select_by_index(0)
    assert [path.rpartition("/line a/")[2] for path in paths_in_view(page)] == [NASTY]
    element(page, "text").send_keys(Keys.BACKSPACE * 2)
    Select(element(page, "only")).select_by_value("unreadable")
    assert [path[-7:] for path in paths_in_view(page)] == ["003.png"]
    assert "unreadable" in tiles(page)[0].text


def set_slider(browser, name, value):
    browser.execute_script(
        "const s = document.getElementById(arguments[0]); s.value = arguments[1];"
        "s.dispatchEvent(new Event('input', {bubbles: true}))",
        name,
        value,
    )


def test_threshold_marks_and_counts(page):
    assert element(page, "above").text == "0 images above"  # the fence of evenly spread scores is beyond them
    set_slider(page, "slider", 900)  # of 1..60: 54.1
    assert float(element(page, "value").get_attribute("value")) == pytest.approx(54.1)
    assert element(page, "above").text == "6 images above"
    marked = [tile for tile in tiles(page) if "beyond" in tile.get_attribute("class")]
    assert [int(tile.get_attribute("data-position")) for tile in marked] == [0, 1, 2, 3, 4, 5]
    set_slider(page, "value", 50.5)
    assert element(page, "above").text == "10 images above"
    Select(element(page, "only")).select_by_value("above")
    assert element(page, "summary").text == "10 of 60 images"
    page.find_element(By.CSS_SELECTOR, "input[name=by][value=weight]").click()
    set_slider(page, "value", 0.21)
    assert element(page, "above").text == "1 image below"
    assert element(page, "summary").text == "1 of 60 images"


def test_scores_over_orders_of_magnitude_spread_over_the_slider(browser, tmp_path):
    paths = [str(tmp_path / f"{k}.png") for k in range(5)]
    for path in paths:
        Image.new("RGB", (8, 8)).save(path)
    spread = audit(paths, [1.0, 10.0, 100.0, 1000.0, 10000.0], tmp_path / "out")
    open_page(browser, spread.page_path)
    set_slider(browser, "slider", 500)
    assert float(element(browser, "value").get_attribute("value")) == pytest.approx(100.0)
    assert element(browser, "above").text == "2 images above"


def click(browser, position, shift=False):
    browser.execute_script(
        "document.querySelector('.tile[data-position=\"' + arguments[0] + '\"]')"
        ".dispatchEvent(new MouseEvent('click', {bubbles: true, shiftKey: arguments[1]}))",
        position,
        shift,
    )


def test_selection_by_mouse_and_keyboard(page):
    tiles(page)[2].click()
    assert selected_count(page) == "1 image selected"
    assert tiles(page)[2].get_attribute("aria-selected") == "true"
    click(page, 6, shift=True)
    assert selected_count(page) == "5 images selected"
    tiles(page)[2].click()
    assert selected_count(page) == "4 images selected"
    Select(element(page, "order")).select_by_value("normal")
    element(page, "text").send_keys("nothing")
    assert selected_count(page) == "4 images selected (4 not shown)"
    element(page, "clear").click()
    assert selected_count(page) == "Nothing selected"
    element(page, "text").send_keys(Keys.BACKSPACE * 7)
    Select(element(page, "order")).select_by_value("suspicious")
    grid = element(page, "grid")
    grid.send_keys(Keys.HOME, " ", Keys.ARROW_RIGHT, Keys.SHIFT, Keys.ARROW_RIGHT, Keys.NULL)
    assert selected_count(page) == "3 images selected"
    grid.send_keys(Keys.END)
    wait(page, lambda: str(N - 1) in [tile.get_attribute("data-position") for tile in tiles(page)])
    assert grid.get_attribute("aria-activedescendant") == tiles(page)[-1].get_attribute("id")
    grid.send_keys(Keys.CONTROL, "a", Keys.NULL)
    assert selected_count(page) == "60 images selected"
    grid.send_keys(Keys.ESCAPE)
    assert selected_count(page) == "Nothing selected"


def test_exports(page, result, downloads):
    assert not element(page, "save-text").is_enabled()
    set_slider(page, "value", 56.5)
    element(page, "select-above").click()
    wanted = result.table["image_path"].tolist()[:4]
    element(page, "save-text").click()
    assert text_of_download(page, downloads, "audit_delete.txt") == "".join(f"{path}\n" for path in wanted)
    page.find_element(By.CSS_SELECTOR, "input[name=purpose][value=anomalies]").click()
    element(page, "save-csv").click()
    rows = list(csv.DictReader(io.StringIO(text_of_download(page, downloads, "audit_anomalies.csv"))))
    assert [row["image_path"] for row in rows] == wanted
    assert {row["label"] for row in rows} == {"abnormal"}
    assert [float(row["anomaly_score"]) for row in rows] == [60, 59, 58, 57]
    assert float(rows[0]["confidence_weight"]) == pytest.approx(0.2)
    page.execute_cdp_cmd("Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]})
    element(page, "copy").click()
    wait(page, lambda: "4 paths copied" in element(page, "message").text)
    copied = page.execute_async_script("navigator.clipboard.readText().then(arguments[0], arguments[0])")
    assert copied == "".join(f"{path}\n" for path in wanted)


def test_heat_map_on_hover_and_by_toggle(page):
    painted = ".tile canvas[data-painted]"
    assert page.find_elements(By.CSS_SELECTOR, painted) == []
    hover(page, tiles(page)[0])
    wait(page, lambda: len(page.find_elements(By.CSS_SELECTOR, painted)) == 1)
    alpha = page.execute_script(
        "const c = document.querySelector('.tile canvas');"
        "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "return [d[3], d[4 * (c.width * c.height - 1) + 3]]"
    )
    assert alpha[0] < 30  # clear at the low end
    assert alpha[1] > 150  # coloured at the high one
    element(page, "heat").click()
    with_picture = len(page.find_elements(By.CSS_SELECTOR, ".tile img"))
    wait(page, lambda: len(page.find_elements(By.CSS_SELECTOR, painted)) == with_picture)
    element(page, "grid").send_keys("h")
    wait(page, lambda: page.find_elements(By.CSS_SELECTOR, painted) == [])
    assert "50 %" in element(page, "scale-note").text
    assert "99.9 %" in element(page, "scale-note").text


def hover(browser, tile):
    ActionChains(browser).move_to_element(tile).perform()


def test_truth_is_hidden_until_asked_for(page, result):
    assert page.find_elements(By.CSS_SELECTOR, ".flag") == []
    assert "crack" not in "".join(tile.get_attribute("aria-label") for tile in tiles(page))
    element(page, "truth").click()
    flagged = {
        int(flag.find_element(By.XPATH, "..").get_attribute("data-position"))
        for flag in page.find_elements(By.CSS_SELECTOR, ".flag")
    }
    assert {0, 2, 4} <= flagged <= {0, 2, 4, 20, 40}
    section = element(page, "evaluation").text
    assert f"{result.evaluation.average_precision:.3f}" in section
    assert element(page, "curve").is_displayed()


def test_detail(page, result):
    element(page, "grid").send_keys(Keys.HOME, Keys.ARROW_RIGHT, Keys.ENTER)
    assert element(page, "detail-path").text == result.table["image_path"][1]
    assert element(page, "detail-open").get_attribute("href").startswith("file:///")
    assert "%22" in element(page, "detail-open").get_attribute("href")
    element(page, "detail-select").click()
    element(page, "detail").find_element(By.CSS_SELECTOR, "button.main").click()
    assert selected_count(page) == "1 image selected"


def test_selection_and_threshold_survive_a_reload(page, result):
    set_slider(page, "value", 55.5)
    element(page, "select-above").click()
    open_page(page, result.page_path)
    assert selected_count(page) == "5 images selected"
    assert element(page, "above").text == "5 images above"


def test_ten_thousand_images(browser, tmp_path):
    """Pictures of the usual size, all different, at most a few hundred elements, wherever one scrolls."""
    count = 10_000
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (20, 12, 12, 3), dtype=np.uint8)
    kinds = []
    for pixels in noise:
        stream = io.BytesIO()
        Image.fromarray(pixels).resize((144, 144)).save(stream, "WEBP", quality=75)
        kinds.append(stream.getvalue())
    table = pd.DataFrame(
        {
            "rank": pd.Series(range(1, count + 1), dtype="Int64"),
            "image_path": [f"/data/line {k % 7}/{k:05}.png" for k in range(count)],
            "anomaly_score": np.linspace(9, 0, count),
            "confidence_weight": np.linspace(0.1, 1, count),
            "status": "ok",
        }
    )
    pictures = {path: Pictures(kinds[k % 20], kinds[0]) for k, path in enumerate(table["image_path"])}
    write_page(tmp_path / "audit.html", table, pictures, Facts("many", "", 4.5, 144, (0.0, 1.0)))
    open_page(browser, tmp_path / "audit.html")
    assert element(browser, "summary").text == "10,000 images"
    assert element(browser, "above").text == "5,000 images above"
    element(browser, "heat").click()
    for share in (0.1, 0.5, 0.77, 1.0):
        browser.execute_script(
            "const g = document.getElementById('grid'); g.scrollTop = g.scrollHeight * arguments[0]", share
        )
        wait(browser, lambda share=share: int(tiles(browser)[-1].get_attribute("data-position")) > share * count - 100)
        assert len(tiles(browser)) < 120
        assert browser.execute_script("return document.getElementsByTagName('*').length") < 2500
    wait(
        browser,
        lambda: browser.execute_script(
            "return [...document.images].filter(i => i.closest('.tile')).every(i => i.naturalWidth)"
        ),
    )
    assert paths_in_view(browser)[-1] == "/data/line 3/09999.png"
    element(browser, "select-shown").click()
    assert selected_count(browser) == "10,000 images selected"
