"""A real browser, headless, for tests of pages."""

import itertools
import shutil
from collections.abc import Iterator, Sequence

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
PHONE, DESKTOP = 390, 1280

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


def views(
    uri: str, schemes: Sequence[str] = ("light", "dark"), timeout_s: float = 30.0
) -> Iterator:
    """The page as a phone and a desktop show it, one by one, loaded with all its pictures.

    After each was looked at: nothing sticks out of the page, no script erred or spoke, and the
    page asked for nothing but itself.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for width, scheme in itertools.product((PHONE, DESKTOP), schemes):
            view = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            said: list[str] = []
            asked: list[str] = []
            view.on("pageerror", lambda error, said=said: said.append(str(error)))
            view.on("console", lambda message, said=said: said.append(message.text))
            view.on("request", lambda request, asked=asked: asked.append(request.url))
            view.goto(uri, timeout=timeout_s * 1000)
            yield view
            assert not view.evaluate("document.documentElement.scrollWidth > innerWidth")
            assert said == []
            assert [url for url in asked if not url.startswith("data:")] == [uri]
            view.close()
        browser.close()
