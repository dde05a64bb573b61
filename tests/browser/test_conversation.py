"""A conversation on the page: how it goes on and how it begins anew."""

import re

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser


def test_a_conversation_goes_on(desk):
    desk.page.check("[name=mode][value=chat]")
    desk.run(message="Sort these numbers: 7 3 12 5.", system="Be brief.")
    turns = desk.page.locator("#turns li")
    expect(turns).to_have_count(2)
    expect(desk.page.locator("#message")).to_have_value("")
    answer = desk.pane().locator(".answer").inner_text()
    body = desk.run(message="Sort these numbers: 9 4.")
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Sort these numbers: 7 3 12 5."},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "Sort these numbers: 9 4."},
    ]
    expect(turns).to_have_count(4)
    desk.page.get_by_label("Remove turn 2").click()
    expect(turns).to_have_count(3)
    desk.page.click("#fresh")
    expect(turns).to_have_count(0)


def test_a_conversation_by_enter(desk):
    page = desk.page
    page.check("[name=mode][value=chat]")
    expect(page.locator("#run")).to_have_text("Send")
    page.click("#run")
    expect(page.locator("#message")).to_have_accessible_description(re.compile("message is empty"))
    page.locator("#message").press_sequentially("Sort these numbers:")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("9 4 2.")
    page.keyboard.press("Enter")
    desk.wait()
    expect(page.locator("#turns .user p")).to_have_text("Sort these numbers:\n9 4 2.")
    desk.wait_for_drawing()
    expect(desk.pane()).not_to_have_class(re.compile(r"\bold\b"))
    expect(page.locator("#whose")).to_be_hidden()
    page.check("#compare")
    expect(page.locator("#whose")).to_be_visible()
    expect(page.locator("#turns li").last).to_be_in_viewport()
    page.click("#fresh")
    expect(desk.pane().locator(".work")).to_be_hidden()
    expect(desk.pane().locator(".empty")).to_be_visible()


def test_a_new_conversation_ends_the_answer_to_the_old(desk):
    held = []
    desk.page.check("[name=mode][value=chat]")
    desk.page.fill("#message", "What is the capital of Norway?")
    desk.page.route("**/v1/chat/completions", lambda route: held.append(route))
    desk.page.click("#run")
    expect(desk.pane().locator(".note")).to_contain_text("Waiting")
    desk.page.click("#fresh")
    expect(desk.page.locator("#run")).to_be_enabled()
    expect(desk.page.locator("#turns li")).to_have_count(0)
