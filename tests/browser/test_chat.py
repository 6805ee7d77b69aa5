"""The chat page in a real browser, over a tiny model: two answers streaming, stop, regenerate, edit, phone,
and evil text."""

from __future__ import annotations

import re
import time
from dataclasses import replace

import gradio as gr
import pytest
from playwright.sync_api import Browser, Page, expect

from app.components.side_status import SideStatus
from app.gate import Gate
from app.markdown import TAGS_SHOWN_AS_TEXT, as_markdown
from app.pages import chat
from app.pages.context import PageContext
from tests.app.tiny import FakeService, bench, tiny_elastic

EVIL = """Hi ![x](http://evil.test/1.png) <img src="http://evil.test/2.png"> <b id="owned">b</b>
<div style="background:url(http://evil.test/3.png)">d</div><table background="http://evil.test/4.png"></table>
- a
  ```
<div style="background:url(http://evil.test/5.png)">e</div>
  ```
~~~
```
~~~
<div style="background:url(http://evil.test/6.png)">f</div>
```mermaid
<div style="background:url(http://evil.test/7.png)">g</div>
```
<button style="position:fixed;inset:0">h</button><script>document.title = "owned"</script>"""
MARKED = "1. First **bold** word\n2. then <b>\n\n```python\nx = 1\n```\nand the token Paris here"


class SlowGate(Gate):
    """Lets a step last long enough to be watched."""

    def __exit__(self, *_) -> None:
        time.sleep(0.02)
        super().__exit__(*_)


@pytest.fixture(scope="module")
def address():
    service = FakeService({"tiny": tiny_elastic(ends=False)})
    service.gate = SlowGate()
    with gr.Blocks(title="chat") as blocks:
        with gr.Column(elem_id="around"):  # out of sight: the page stands here alone
            around = replace(bench("tiny"), plan=gr.State({"w": [2] * 14, "a": [16] * 14, "kv": 16}))
        chat.build(PageContext(service, {"tiny": None}, bench=around))
    blocks.queue(max_size=20)
    _, address, _ = blocks.launch(
        css=f"{chat.PAGE.css}\n#around {{ display: none !important; }}",
        head=chat.PAGE.head,
        prevent_thread_lock=True,
        ssr_mode=False,
        quiet=True,
        server_name="127.0.0.1",
    )
    yield address
    blocks.close()


@pytest.fixture(scope="module")
def still_address():
    """A chat with text of every kind in it, and a status that marks a token of the last answer."""
    with gr.Blocks(title="still") as blocks:
        gr.Chatbot(
            [{"role": "assistant", "content": as_markdown(EVIL)}],
            elem_id="evil",
            allow_tags=TAGS_SHOWN_AS_TEXT,
            latex_delimiters=[],
        )
        gr.Chatbot(
            [{"role": "assistant", "content": as_markdown(MARKED)}], elem_id="chat-left", latex_delimiters=[]
        )
        at = MARKED.index("Paris")
        SideStatus(
            {"state": "done", "words": EVIL, "facts": [[EVIL, EVIL, EVIL]], "text": MARKED, "mark": [at, 5]},
            chat="chat-left",
            elem_id="status",
        )
    _, address, _ = blocks.launch(
        prevent_thread_lock=True, ssr_mode=False, quiet=True, server_name="127.0.0.1"
    )
    yield address
    blocks.close()


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desktop", "phone"])
def page(request, contexts, address: str):
    yield from opened(contexts, address, request.param)


@pytest.fixture
def desktop(contexts, address: str):
    yield from opened(contexts, address, (1280, 900))


def opened(contexts, address: str, size: tuple[int, int]):
    """The page, without console errors and without requests to elsewhere."""
    page = contexts(viewport={"width": size[0], "height": size[1]}).new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request",
        lambda r: wrong.append(r.url) if re.match(r"https?://(?!127\.0\.0\.1|localhost)", r.url) else None,
    )
    page.goto(address)
    yield page
    page.close()
    assert wrong == []


def ask(page: Page, text: str) -> None:
    page.locator("#chat-prompt textarea").fill(text)
    page.locator("#chat-prompt textarea").press("Enter")


def settle(page: Page) -> None:
    expect(page.locator("#chat-send")).to_be_visible(timeout=60_000)
    expect(page.locator("#chat-stop")).to_be_hidden()


def settings(page: Page) -> None:
    expect(page.locator("#chat-status-left")).to_contain_text("Next answer")  # all is mounted
    page.locator("#chat-settings button").first.click()
    expect(page.locator("#chat-seed input")).to_be_visible()


def limit(page: Page, tokens: int) -> None:
    settings(page)
    box = page.locator("#chat-max-tokens input[type=number]")
    box.fill(str(tokens))
    box.press("Tab")


def answers(page: Page, side: str):
    return page.locator(f'#chat-{side} [data-testid="bot"]')


def test_one_prompt_two_answers_streaming_then_stopped(page: Page):
    expect(page.locator("#chat-left")).to_contain_text("Both sides get the same words")
    expect(page.locator("#chat-send")).to_be_in_viewport(ratio=1)
    limit(page, 1024 - 640)
    ask(page, "What is the capital of France?")
    expect(page.locator("#chat-stop")).to_be_visible()
    expect(page.locator("#chat-prompt textarea")).to_have_value("")
    for side in ("left", "right"):
        expect(page.locator(f'#chat-{side} [data-testid="user"]')).to_contain_text("capital of France")
        expect(page.locator(f"#chat-status-{side}")).to_contain_text("Writing", timeout=20_000)
        expect(answers(page, side)).to_be_visible()
    page.locator("#chat-stop").click()
    settle(page)
    expect(page.locator("#chat-status-left")).to_contain_text(re.compile("Stopped|Done"))
    expect(page.locator("#chat-status-left")).to_contain_text(re.compile("The sides|Identical"))
    width = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert width <= 0, "the page must not scroll sideways"


def test_what_is_copied_is_what_was_written(desktop: Page, address: str):
    desktop.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=address.rstrip("/"))
    limit(desktop, 16)
    said = r"Why does `#include <stdio.h>` fail? It is \(a^2\) &amp; <b>, and $5"
    ask(desktop, said)
    settle(desktop)
    user = desktop.locator('#chat-left [data-testid="user"]')
    expect(user.locator("code")).to_have_text("#include <stdio.h>")
    expect(user).to_have_text(said.replace("`", ""))
    desktop.locator("#chat-left").get_by_role("button", name="Copy message").first.click()
    desktop.wait_for_function("navigator.clipboard.readText().then((text) => text.length > 0)")
    assert desktop.evaluate("navigator.clipboard.readText()") == said


def test_shift_enter_starts_a_line_and_enter_sends(desktop: Page):
    limit(desktop, 16)
    prompt = desktop.locator("#chat-prompt textarea")
    prompt.fill("one")
    prompt.press("Shift+Enter")
    prompt.press_sequentially("two")
    expect(prompt).to_have_value("one\ntwo")
    prompt.press("Enter")
    settle(desktop)
    expect(desktop.locator('#chat-left [data-testid="user"]')).to_contain_text("two")


def test_regenerate_edit_and_clear(desktop: Page):
    limit(desktop, 16)
    desktop.locator("#chat-examples button").first.click()
    settle(desktop)
    expect(answers(desktop, "left")).to_have_count(1)
    expect(desktop.locator("#chat-examples")).to_be_hidden()
    desktop.locator("#chat-regenerate").click()
    settle(desktop)
    expect(answers(desktop, "right")).to_have_count(1)
    desktop.locator("#chat-right").get_by_role("button", name="Edit").first.click()
    box = desktop.locator("#chat-right textarea")
    box.fill("Another question")
    desktop.locator("#chat-right").get_by_role("button", name="Submit").click()
    expect(desktop.locator('#chat-left [data-testid="user"]')).to_contain_text("Another question")
    settle(desktop)
    desktop.locator("#chat-clear").click()
    expect(answers(desktop, "left")).to_have_count(0)
    expect(desktop.locator("#chat-examples")).to_be_visible()
    expect(desktop.locator("#chat-status-left")).to_contain_text("Next answer: full precision")


def test_an_empty_message_gets_a_sentence_and_a_bad_one_is_kept(desktop: Page):
    desktop.locator("#chat-send").click()
    expect(desktop.get_by_text("type a message first")).to_be_visible()
    ask(desktop, "many words " * 200)
    expect(desktop.get_by_text("shorten the message")).to_be_visible()
    expect(desktop.locator("#chat-prompt textarea")).to_have_value(re.compile("many words"))
    expect(desktop.locator("#chat-send")).to_be_visible()


def test_a_new_seed_is_drawn_in_the_page_and_a_plan_choice_is_shown(desktop: Page):
    settings(desktop)
    before = desktop.locator("#chat-seed input").input_value()
    desktop.locator("#chat-new-seed").click()
    expect(desktop.locator("#chat-seed input")).not_to_have_value(before)
    desktop.locator("#chat-plan-right select").select_option("W8")
    expect(desktop.locator("#chat-status-right")).to_contain_text("Next answer: W8")


def test_two_tabs_stream_at_once_and_closing_one_leaves_the_other(browser: Browser, address: str):
    first, second = browser.new_page(), browser.new_page()
    for page in (first, second):
        page.goto(address)
        limit(page, 384)
        ask(page, "Hello")
    for page in (first, second):
        expect(page.locator("#chat-status-right")).to_contain_text("Writing", timeout=30_000)
    first.close()
    seen = answers(second, "left").inner_text()
    expect(answers(second, "left")).not_to_have_text(seen)
    second.locator("#chat-stop").click()
    settle(second)
    second.close()


def test_untrusted_text_loads_nothing_and_is_only_text(contexts, still_address: str):
    for page in opened(contexts, still_address, (1280, 900)):
        expect(page.locator('#evil [data-testid="bot"]')).to_contain_text("owned")
        expect(page.locator("#status")).to_contain_text("owned")
        page.wait_for_timeout(300)
        assert page.title() == "still"
        assert page.locator("#owned").count() == 0
        assert page.locator("#evil [style*=evil], #evil [data-testid=bot] img").count() == 0


def test_the_mark_lies_on_the_token_in_the_rendered_text(contexts, still_address: str):
    for page in opened(contexts, still_address, (1280, 900)):
        script = "[...(CSS.highlights.get('quept-parting-chat-left') ?? [])].map(String)"
        page.wait_for_function(f"{script}.length === 1")
        assert page.evaluate(script) == ["Paris"]


def test_a_blind_round_hides_whose_an_answer_is_until_one_chose_and_counts_it(desktop: Page):
    limit(desktop, 16)
    bar = desktop.locator("#chat-blind .blind")
    bar.get_by_role("button", name="Blind round").click()
    expect(bar).to_contain_text("Ask something below")
    ask(desktop, "What is the capital of France?")
    expect(bar).to_contain_text("Which one is your plan")
    expect(desktop.locator("#chat-status-left .words")).to_be_hidden()
    expect(desktop.locator("#chat-plan-right")).to_be_hidden()
    assert desktop.evaluate("CSS.highlights.size") == 0
    swapped = desktop.evaluate("document.getElementById('chat-sides').dataset.swapped === 'yes'")
    bar.get_by_role("button", name=f"It is {'A' if swapped else 'B'}").click()
    expect(bar).to_contain_text("Right: ")
    expect(bar).to_contain_text("1 of 1 between full precision and your plan")
    expect(desktop.locator("#chat-status-left .words")).to_be_visible()
    desktop.wait_for_function("CSS.highlights.size > 0")
    with desktop.expect_download() as download:
        bar.get_by_role("button", name="Save chat").click()
    assert download.value.suggested_filename.startswith("chat-full-precision-vs-your-plan")
    assert (
        download.value.path()
        .read_text("utf-8")
        .startswith("# What is the capital of France?\n\n## full precision")
    )
    bar.get_by_role("button", name="Next round").click()
    expect(answers(desktop, "left")).to_have_count(0)
