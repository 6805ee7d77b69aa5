"""Patience of the browser tests: what the page shows may be late on a slow or busy machine. And what
the files share: contexts, and when a page rests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

expect.set_options(timeout=20_000)

UNCHANGED = """() => new Promise((done) => {
  let timer;
  const changes = new MutationObserver(begin);
  function begin() {
    clearTimeout(timer);
    timer = setTimeout(() => { changes.disconnect(); done(); }, 333);
  }
  changes.observe(document, { subtree: true, childList: true, attributes: true, characterData: true });
  begin();
})"""


@pytest.fixture(scope="module")
def contexts(browser: Browser) -> Iterator[Callable[..., BrowserContext]]:
    """The context of a file's pages with these options (viewport, has_touch, ...): one for all, so that their
    scripts are fetched and compiled once. An empty page of the same site stays open in it, and with it the
    process that has compiled them. Whoever must be another visitor makes a context of their own."""
    made: dict[str, BrowserContext] = {}

    def context(**options) -> BrowserContext:
        key = repr(sorted(options.items()))
        if key not in made:
            made[key] = browser.new_context(**options)
            empty = made[key].new_page()
            empty.route("**", lambda route: route.fulfill(body=""))
            empty.goto("http://127.0.0.1/")
        return made[key]

    yield context
    for one in made.values():
        one.close()


@pytest.fixture(scope="session")
def rest() -> Callable[[Page], None]:
    """Waits until nothing of a page has changed for a third of a second."""
    return lambda page: page.evaluate(UNCHANGED)
