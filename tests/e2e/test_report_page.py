"""The demo's report page in a real browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from e2e_support import DemoRun

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.timeout(1200),
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: apt install chromium)"),
]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.mark.parametrize("width", [390, 1280])
def test_everything_is_visible_and_nothing_sticks_out(browser: Any, demo: DemoRun, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(f"file://{demo.folder / 'report.html'}")
    for part in ("#loss svg", "#entries", "#records", "#answers .box"):
        box = page.locator(part).first.bounding_box()
        assert box, part
        assert box["height"] > 20, part
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    tops = page.evaluate(
        "[...document.querySelectorAll('main > *')].map(e => e.getBoundingClientRect()).map(r => [r.top, r.bottom])"
    )
    assert all(first[1] <= second[0] + 1 for first, second in pairwise(tops)), "sections overlap"
    assert "validation loss" in page.inner_text("main")
    assert [url for url in requests if not url.startswith("file://")] == []
    page.close()


def test_kept_records_stand_on_the_page(browser: Any, demo: DemoRun) -> None:
    page = browser.new_page()
    page.goto(f"file://{demo.folder / 'report.html'}")
    assert page.locator("#records tr").count() == 1 + 4
    page.close()
