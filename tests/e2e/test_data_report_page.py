"""The page of ``jobs/report.py`` in a real browser: legible, nothing overlapping, nothing loaded."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")
JOB = Path(__file__).resolve().parents[2] / "jobs" / "report.py"
pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: apt install chromium)"),
]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
# Pairs of texts of one SVG whose boxes overlap by more than a hair: those of the turned labels of the sunburst only
# meet in their boxes, not on the page, so they are left out.
OVERLAPS = """
[...document.querySelectorAll('.charts svg')].flatMap(svg => {
  const texts = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()])
    .filter(([text, box]) => text.trim() && box.width);
  return texts.flatMap(([a, p], i) => texts.slice(i + 1).filter(([b, q]) =>
    Math.min(p.right, q.right) - Math.max(p.left, q.left) > 2 &&
    Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 3).map(([b]) => [a, b]));
})
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run's folder with everything that a page can show, and its report."""
    folder = tmp_path_factory.mktemp("run")
    seeds = Path(__file__).resolve().parents[2] / "alpaca_ray" / "data" / "seed_tasks.jsonl"
    records = []
    for number, line in enumerate(seeds.read_text(encoding="utf-8").splitlines()):
        task = json.loads(line)
        record = {"instruction": task["instruction"], **task["instances"][0]} if "instances" in task else task
        records.append({**record, "most_similar_instructions": {"x": 0.2 + number / 400}})
    records.append(
        {"instruction": "W" * 5000, "input": "", "output": "<img src='http://127.0.0.1:9/x.png'>" + "W" * 5000}
    )
    (folder / "regen.json").write_text(json.dumps(records))
    rejected = [{"reason": "too_similar", "score": 0.7 + number / 100} for number in range(30)]
    (folder / "rejected.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rejected))
    metrics = {
        "kept": len(records),
        "rejected": {"too_similar": 30, "starts_with_punctuation": 4, "blacklisted_word": 1},
        "errors": {"rate_limit": 900, "connection_dropped_by_server": 2},
        "requests": 1_234_567,
        "tokens": {"prompt": 1_234_567_890, "completion": 98_765_432},
        "cost": {"total": 12345.678},
        "seconds": 86_400,
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    manifest = {"stage": "generate", "data_file": "regen.json", "settings": {"similarity_threshold": 0.7}}
    (folder / "run.json").write_text(json.dumps(manifest))
    command = [sys.executable, str(JOB), str(folder), "--tokenizer", "words", "--samples", "100"]
    subprocess.run(command, check=True, timeout=200, capture_output=True)
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_everything_is_visible_and_nothing_overlaps(browser: Any, report: Path, width: int, scheme: str) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(f"file://{report}")
    assert [url for url in requests if not url.startswith("file://")] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    figures = page.locator("#figures .card").first.bounding_box()
    assert figures["y"] + figures["height"] < 500, "the headline figures are the first thing to be seen"
    for part in (
        "#verbs svg:visible",
        "#verb-table",
        "#lengths svg",
        "#account svg",
        "#account table",
        "#records .box",
    ):
        box = page.locator(part).first.bounding_box()
        assert box, part
        assert box["height"] > 40, part
        assert box["x"] + box["width"] <= width, part
    tops = page.evaluate(
        "[...document.querySelectorAll('main > *')].map(e => e.getBoundingClientRect()).map(r => [r.top, r.bottom])"
    )
    assert all(first[1] <= second[0] + 1 for first, second in pairwise(tops)), "sections overlap"
    assert page.evaluate(OVERLAPS) == []
    page.close()


def test_labels_of_charts_are_large_enough_on_a_phone(browser: Any, report: Path) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 900})
    page.goto(f"file://{report}")
    heights = page.evaluate(
        "[...document.querySelectorAll('.charts svg text')].map(t => t.getBoundingClientRect())"
        ".filter(r => r.width > r.height).map(r => r.height)"
    )
    assert heights
    assert min(heights) >= 9
    assert page.locator("#verbs .compact svg").is_visible()
    assert not page.locator("#verbs .full svg").is_visible()
    page.close()


def test_charts_follow_the_colour_scheme(browser: Any, report: Path) -> None:
    colours = {}
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)
        page.goto(f"file://{report}")
        colours[scheme] = page.evaluate(
            "[document.body, document.querySelector('#lengths svg text')].map(e => getComputedStyle(e))"
            ".map((s, i) => i ? s.fill : s.backgroundColor)"
        )
        page.close()
    assert colours["light"] == ["rgb(245, 246, 248)", "rgb(91, 102, 117)"]
    assert colours["dark"] == ["rgb(20, 24, 31)", "rgb(163, 173, 187)"]
