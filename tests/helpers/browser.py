"""Pages opened in a real browser without a window: Chromium, driven by Playwright.

`make test` installs both where it can. Where they are missing, the tests that need them are skipped.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PHONE = {"viewport": {"width": 375, "height": 700}, "is_mobile": True, "has_touch": True}
# The lowest contrast of any text on the page with what is behind it, by the formula of WCAG 2, and that text.
_CONTRAST = """
() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = numbers(colour).slice(0, 3).map((each) => {
      const part = each / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (node) => {
    const cell = node.closest("g.cell");
    if (cell) return getComputedStyle(cell.querySelector("rect")).fill;
    for (let at = node; at; at = at.parentElement) {
      const { backgroundColor } = getComputedStyle(at);
      const [, , , opacity = 1] = numbers(backgroundColor);
      if (opacity > 0) return backgroundColor;
    }
    return "rgb(255, 255, 255)";
  };
  let lowest = [21, "nothing"];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || ["SCRIPT", "STYLE", "OPTION"].includes(node.tagName)) continue;
    if (!node.getClientRects().length) continue;
    const style = getComputedStyle(node);
    const [a, b] = [light(node.closest("svg") ? style.fill : style.color), light(ground(node))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < lowest[0]) lowest = [contrast, `${node.tagName} ${node.className} ${walker.currentNode.data}`];
  }
  return lowest;
}
"""


@contextmanager
def chromium() -> Iterator[Any]:
    """A running browser. The test is skipped, with the reason, where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    with playwright.sync_playwright() as driver:
        if found is None and not Path(driver.chromium.executable_path).exists():
            pytest.skip("no Chromium: apt-get install chromium, or playwright install chromium")
        # Chromium refuses its sandbox to root, and /dev/shm is small in containers.
        options = ["--disable-dev-shm-usage", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        running = driver.chromium.launch(executable_path=found, args=options)
        try:
            yield running
        finally:
            running.close()


@dataclass
class Opened:
    """A page in the browser with what it said and asked for. tab: Playwright's page."""

    tab: Any
    said: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def texts(self, selector: str) -> list[str]:
        """The texts of all visible elements of a selector."""
        return [each.inner_text() for each in self.tab.locator(selector).all() if each.is_visible()]

    def lowest_contrast(self) -> tuple[float, str]:
        """The lowest contrast of any text with what is behind it, from 1 to 21, and where that is."""
        contrast, where = self.tab.evaluate(_CONTRAST)
        return contrast, where

    def is_wider_than_its_window(self) -> bool:
        return bool(self.tab.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))


@contextmanager
def opened(browser: Any, path: Path, **options: Any) -> Iterator[Opened]:
    """A file in a window of its own. options: of Playwright's contexts, such as `color_scheme="dark"` or `PHONE`."""
    context = browser.new_context(**options)
    try:
        page = Opened(context.new_page())
        page.tab.on("console", lambda message: page.said.append(f"{message.type}: {message.text}"))
        page.tab.on("pageerror", lambda error: page.said.append(f"error: {error}"))
        page.tab.on("request", lambda request: page.requests.append(request.url))
        page.tab.goto(path.resolve().as_uri())
        yield page
    finally:
        context.close()
