"""The pages of the app: a table, in the order of their tabs. A new one is a module with an entry here; the
first is the one that everybody begins with."""

from __future__ import annotations

from app.pages.about import PAGE as ABOUT
from app.pages.ask import PAGE as ASK
from app.pages.chat import PAGE as CHAT
from app.pages.classify import PAGE as CLASSIFY
from app.pages.context import Page
from app.pages.explore import PAGE as EXPLORE

PAGES: tuple[Page, ...] = (EXPLORE, CHAT, CLASSIFY, ASK, ABOUT)
