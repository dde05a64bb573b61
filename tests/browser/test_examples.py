"""The page to somebody who was given its address alone: what it is, and what there is to try."""

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser
RIGHT = {
    "A word problem": "The answer is 8.",
    "A capital": "Oslo",
    "An opposite": "cold",
    "Sorting": "3 9 14 20",
    "Yes or no": "No",
    "What it can do": "I can work out small sums",
    "A gap to fill": "The answer is Paris.",
    "JSON": '{"name": "Tom", "count": 3}',
    "One word at a time": "Ann",
}


def test_the_page_says_what_it_is(desk):
    expect(desk.page.locator("#intro")).to_contain_text("masks become words, several at once, in no fixed order")
    expect(desk.page.locator("#about")).to_contain_text("demo is a tiny toy model")
    expect(desk.page.locator("#about")).to_contain_text("It knows nothing else")
    expect(desk.page.locator("#model")).to_contain_text("million parameters")
    expect(desk.pane().locator(".empty")).to_be_visible()
    expect(desk.page.locator("#access")).to_be_hidden()
    desk.run()
    expect(desk.pane().locator(".empty")).to_be_hidden()
    expect(desk.pane().locator(".key")).to_be_visible()


def test_every_example_runs_and_is_answered_right(desk):
    desk.page.fill("#seed", "3")
    buttons = desk.page.locator("#examples button")
    assert [*buttons.all_inner_texts()] == [*RIGHT]
    for name, words in RIGHT.items():
        desk.page.get_by_role("button", name=name).click()
        expect(desk.pane().locator(".answer")).to_contain_text(words)
        expect(desk.page.locator("#run")).to_be_enabled()
    expect(desk.page.locator("#seed")).to_have_value("")  # an example is all of a request


def test_an_example_takes_the_place_of_a_run(desk):
    held = []
    desk.page.route("**/v1/completions", lambda route: held.append(route))
    desk.page.click("#run")
    expect(desk.pane().locator(".note")).to_contain_text("Waiting")
    desk.page.unroute("**/v1/completions")
    desk.page.get_by_role("button", name="A capital").click()
    expect(desk.pane().locator(".answer")).to_have_text("The answer is Oslo.")
    expect(desk.pane().locator(".failure")).to_be_hidden()


def test_another_model_has_no_examples(desk_at, golden_server):
    desk = desk_at(golden_server).open()
    expect(desk.page.locator("#model")).to_contain_text("parameters")
    expect(desk.page.locator("#examples")).to_be_hidden()
    expect(desk.page.locator("#about")).to_be_hidden()
