"""Patience of the browser tests: what the page shows may be late on a slow or busy machine."""

from __future__ import annotations

from playwright.sync_api import expect

expect.set_options(timeout=20_000)
