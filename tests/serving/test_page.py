"""The page in a real browser: where selenium and Chromium are installed."""

import shutil

import numpy as np
import pytest
from PIL import Image

webdriver = pytest.importorskip("selenium.webdriver")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="Chromium and its driver are not installed"),
]


def open_browser(width=1000, height=900):
    """A browser without a window."""
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},{height}"):
        options.add_argument(flag)
    return webdriver.Chrome(options=options, service=Service(DRIVER))


def run(browser, seconds=60):
    """Presses Run and returns the lines of the answer."""
    from selenium.webdriver.support.ui import WebDriverWait

    browser.execute_script("document.getElementById('status').textContent = ''")
    browser.find_element("id", "run").click()
    done = lambda b: b.find_element("id", "status").text or b.find_elements("css selector", "#answer .error")  # noqa: E731
    WebDriverWait(browser, seconds).until(done)
    return [line.get_attribute("textContent") for line in browser.find_elements("css selector", "#answer p")]


@pytest.fixture
def browser():
    browser = open_browser()
    yield browser
    browser.quit()


def test_pictures_and_texts_go_in_and_the_answer_of_the_model_comes_out(server, generator, browser, tmp_path):
    pixels = np.random.default_rng(5).integers(0, 256, (24, 20, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    browser.get(server.url)
    boxes = lambda: browser.find_elements("css selector", "#prompt textarea")  # noqa: E731
    boxes()[0].send_keys("see <image> ")
    browser.find_element("id", "files").send_keys(str(tmp_path / "one.png"))
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 10).until(lambda b: len(boxes()) == 2)
    boxes()[1].send_keys(" plus")
    browser.execute_script("document.querySelector('details').open = true")
    browser.execute_script("document.getElementById('max_tokens').value = 7")
    prompt = ["see <image> ", Image.fromarray(pixels), " plus"]
    assert run(browser) == [generator.generate(prompt, max_new_tokens=7)]
    assert "%" in browser.find_element("css selector", "#answer span").get_attribute("title")
    browser.execute_script("document.getElementById('beams').value = 3")
    expected = [found.text for found in generator.complete([prompt], max_new_tokens=7, beams=3, n=3)[0]]
    assert run(browser) == expected
    browser.execute_script(
        "document.getElementById('beams').value = 1; document.getElementById('choices').value = 'a\\nb'"
    )
    assert run(browser)[0] in ("a", "b")
    browser.find_element("css selector", "#prompt figure button").click()
    assert [box.get_attribute("value") for box in boxes()] == ["see <image>  plus"]
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_errors_of_the_server_are_shown_and_a_phone_is_wide_enough(server, browser):
    browser.get(server.url)
    browser.find_element("css selector", "#prompt textarea").send_keys("x")
    browser.execute_script("document.getElementById('max_tokens').value = 5000")
    assert "more than any slot" in run(browser)[0]
    browser.set_window_size(390, 800)
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
