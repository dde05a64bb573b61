"""Holes in a prompt, made of what is selected."""

import re

import httpx
import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser


def test_a_selection_becomes_a_hole(desk):
    desk.page.fill("#prompt", "Sort these numbers: 7 3 12 5. Answer: Sorted: 3 5 7 12.")
    desk.page.locator("#prompt").evaluate("area => area.setSelectionRange(45, 54)")
    desk.page.click("#hole")
    tokens = httpx.post(f"{desk.url}/tokenize", json={"prompt": " 3 5 7 12"}).json()["count"]
    expected = f"Sort these numbers: 7 3 12 5. Answer: Sorted:<|fill:{tokens}|>."
    expect(desk.page.locator("#prompt")).to_have_value(expected)
    body = desk.run()
    assert body["prompt"] == expected
    assert "max_tokens" not in body
    text = desk.whole(body)["choices"][0]["text"]
    expect(desk.pane().locator(".answer")).to_have_text(text)
    assert text.startswith("Sort these numbers: 7 3 12 5. Answer: Sorted:")
    desk.wait_for_drawing()
    assert sum("token" in cell["marks"] for cell in desk.cells()) == tokens


@pytest.mark.parametrize(("first", "last"), [(45, 50), (44, 50), (45, 51)])
def test_a_selected_word_becomes_a_hole_of_its_size(desk, first, last):
    """However the spaces around it were selected; and Ctrl+Z takes that back."""
    text = "What is the capital of France? The answer is Paris of course."
    prompt = desk.prompt
    prompt.fill(text)
    prompt.evaluate("(area, [first, last]) => area.setSelectionRange(first, last)", [first, last])
    desk.page.click("#hole")
    expect(prompt).to_have_value("What is the capital of France? The answer is<|fill:1|> of course.")
    desk.page.keyboard.press("Control+z")
    expect(prompt).to_have_value(text)


def test_a_hole_without_a_selection_or_a_text(desk):
    prompt = desk.prompt
    prompt.fill("some text")
    desk.page.click("#hole")
    expect(prompt).to_have_accessible_description(re.compile("Nothing is selected"))
    expect(prompt).to_have_value("some text")
    desk.run(prompt="<|fill:8|>")
    expect(prompt).to_have_accessible_description(re.compile("nothing but holes"))
